//! Sessions of packets ([`Rules::packets`]): each packet is a message, and each reply is a packet.
//!
//! A packet is received whole, so no message is ever in progress, and `inbound` is not used. If messages may have to
//! wait for the log or for the end of a delay, packets are received one at a time ([`Session::max_packets`]). In
//! `outbound`, each reply follows its length.

use std::time::Instant;

use super::{Outlet, Phase, Session};
use crate::protocol::buffers::ByteQueue;
use crate::protocol::packet::{self, Reply};
use crate::protocol::reply::BLOCK;
use crate::protocol::rules::{LogMessages, ReplyMode, Rules};
use crate::protocol::verdict::Verdict;

/// The most packets that a session takes in one call.
pub const MAX_PACKETS: usize = 32;

/// The room before a received packet, in bytes, for the prefix of its reply.
pub const HEADROOM: usize = BLOCK;

/// The size of the length before a reply in `outbound`, in bytes.
const LENGTH_SIZE: usize = size_of::<u64>();

/// A received packet.
#[derive(Debug)]
pub struct ReceivedPacket<'a> {
    /// [`HEADROOM`] bytes, then the packet. The end of a packet longer than the room is missing.
    pub room: &'a mut [u8],
    /// The length of the packet in bytes. It is too long if it exceeds the room or [`Rules::max_message`].
    pub len: usize,
}

impl<'a> ReceivedPacket<'a> {
    fn is_too_long(&self, rules: &Rules) -> bool {
        self.len > rules.max_message.min(self.room.len() - HEADROOM)
    }

    fn message(&self) -> &[u8] {
        &self.room[HEADROOM..HEADROOM + self.len]
    }

    /// Returns the reply. If the prefix fits before the packet, the reply is one part, built in place.
    fn into_reply<'b>(self, rules: &'b Rules) -> Option<Reply<'b>>
    where
        'a: 'b,
    {
        let Self { room, len } = self;
        let end = HEADROOM + len;
        if rules.reply == ReplyMode::Echo && rules.prefix.is_short() && rules.prefix.put_before(room, HEADROOM) {
            return Some([&room[HEADROOM - rules.prefix.len()..end], &[]]);
        }
        packet::reply(rules, &room[HEADROOM..end])
    }
}

impl Session {
    /// Returns how many packets [`Session::receive_packets`] accepts in one call.
    #[must_use]
    pub fn max_packets(&self) -> usize {
        let may_wait = self.rules.log_messages == LogMessages::Full || !self.rules.reply_delay.duration().is_zero();
        if may_wait { 1 } else { MAX_PACKETS }
    }

    /// Processes one packet. Its message and reply go to `outlet`, as far as it takes them.
    pub fn receive_packet(&mut self, now: Instant, packet: ReceivedPacket<'_>, outlet: &mut impl Outlet) {
        self.take_packets::<1>(now, [packet].into_iter(), outlet);
    }

    /// Processes at most [`Session::max_packets`] packets. Their messages and replies go to `outlet`, as far as it
    /// takes them.
    pub fn receive_packets<'a>(
        &mut self,
        now: Instant,
        packets: impl Iterator<Item = ReceivedPacket<'a>>,
        outlet: &mut impl Outlet,
    ) {
        self.take_packets::<MAX_PACKETS>(now, packets, outlet);
    }

    /// Processes up to `N` packets.
    #[inline]
    fn take_packets<'a, const N: usize>(
        &mut self,
        now: Instant,
        packets: impl Iterator<Item = ReceivedPacket<'a>>,
        outlet: &mut impl Outlet,
    ) {
        if self.phase != Phase::Open {
            return self.drop_input(now, packets.map(|packet| packet.len).sum());
        }
        self.last_activity = now;
        let Self { rules, totals, .. } = self;
        let (before, mut replies, mut count) = (totals.messages, [[&[][..]; 2]; N], 0);
        let (mut is_too_long, mut unlogged) = (false, None);
        for packet in packets.take(N) {
            if packet.is_too_long(rules) {
                is_too_long = true;
                break;
            }
            totals.bytes_in += packet.len as u64;
            if !outlet.log(packet.message()) {
                unlogged = Some([rules.prefix.as_bytes(), packet.message()].concat());
                break;
            }
            totals.messages += 1;
            if let Some(reply) = packet.into_reply(rules) {
                replies[count] = reply;
                count += 1;
            }
        }
        let is_answered = totals.messages > before;
        let replies = &replies[..count];
        let taken = if count == 0 { 0 } else { outlet.send_packets(replies).min(count) };
        totals.bytes_out += replies[..taken].iter().map(length).sum::<u64>();
        if taken < count {
            let outbound = ByteQueue::from_vec(stored(&replies[taken..]), 0);
            self.set_outbound(now, outbound);
        }
        if let Some(reply) = unlogged {
            self.buffers_mut(now).await_log(now, reply);
        } else if is_too_long {
            self.close(Verdict::TooLong, now);
        } else if let Some(until) = self.delay_after_reply(now).filter(|_| is_answered) {
            self.buffers_mut(now).start_delay(until);
        }
        self.update_phase(now);
    }

    /// Does what [`Session::process_buffers`] does, for packets.
    #[inline(never)]
    pub fn process_packets(&mut self, now: Instant, outlet: &mut impl Outlet) {
        if let Phase::Logging(verdict) = self.phase {
            return self.log_remaining(verdict, outlet);
        }
        self.send_outbound_packets(now, outlet);
        if !self.has_outbound() {
            self.answer_pending_packet(now, outlet);
        }
        self.update_phase(now);
    }

    /// Sends the replies in `outbound`, until `outlet` takes fewer than it is given.
    fn send_outbound_packets(&mut self, now: Instant, outlet: &mut impl Outlet) {
        let Self { buffers: Some(buffers), totals, last_activity, .. } = self else { return };
        while !buffers.outbound.is_empty() {
            let (mut replies, mut count) = ([[&[][..]; 2]; MAX_PACKETS], 0);
            for (reply, packet) in replies.iter_mut().zip(Packets(buffers.outbound.as_slice())) {
                *reply = [packet, &[]];
                count += 1;
            }
            let taken = outlet.send_packets(&replies[..count]).min(count);
            let sent = replies[..taken].iter().map(length).sum::<u64>();
            let consumed = replies[..taken].iter().map(|[reply, _]| LENGTH_SIZE + reply.len()).sum();
            buffers.advance_outbound(now, consumed);
            totals.bytes_out += sent;
            if taken > 0 {
                *last_activity = now;
            }
            if taken < count || count == 0 {
                return;
            }
        }
    }

    /// Answers the message that waits for the log if the log accepts it now, and ends a delay that is over.
    fn answer_pending_packet(&mut self, now: Instant, outlet: &mut impl Outlet) {
        let Some(buffers) = self.buffers.as_mut() else { return };
        if buffers.is_delayed(now) {
            return;
        }
        buffers.leave_delay();
        if !self.retry_log(outlet) {
            return;
        }
        if let Some((since, echo)) = self.buffers_mut(now).take_unlogged() {
            self.exclude_log_wait(since, now);
            self.totals.messages += 1;
            let reply: Option<&[u8]> = match self.rules.reply {
                ReplyMode::Echo => Some(&echo),
                ReplyMode::Fixed => Some(&self.rules.fixed_reply),
                ReplyMode::None => None,
            };
            if let Some(reply) = reply.map(|reply| [reply, &[]]) {
                if outlet.send_packets(&[reply]) > 0 {
                    self.totals.bytes_out += length(&reply);
                } else {
                    self.set_outbound(now, ByteQueue::from_vec(stored(&[reply]), 0));
                }
            }
            if let Some(until) = self.delay_after_reply(now) {
                self.buffers_mut(now).start_delay(until);
            }
        }
        if !self.is_reading_blocked() {
            // The session has not read input until now, so the peer was not idle even if nothing was sent.
            self.last_activity = now;
        }
    }

    /// Handles a next reply that is longer than a packet can be: the message counts as too long, the peer gets the
    /// final reply instead, and the other owed replies are dropped. If the final reply itself is too long, aborts the
    /// connection.
    pub fn handle_unsendable_reply(&mut self, now: Instant) {
        let is_closing = matches!(self.phase, Phase::Closing(..));
        if !is_closing && !matches!(self.phase, Phase::Open | Phase::Stopping(..) | Phase::HalfClosed(_)) {
            return self.handle_reset();
        }
        if let Some(buffers) = &mut self.buffers {
            let mut unsent = Packets(buffers.outbound.as_slice()).skip(1);
            let final_reply = unsent.next().map(|first| unsent.last().unwrap_or(first));
            let kept = final_reply.filter(|_| is_closing).map(|reply| stored(&[[reply, &[]]]));
            if is_closing && kept.is_none() {
                return self.handle_reset();
            }
            buffers.outbound = kept.map_or_else(ByteQueue::default, |packet| ByteQueue::from_vec(packet, 0));
        }
        if !is_closing {
            self.close(Verdict::TooLong, now);
        }
    }
}

/// An iterator over the replies in `outbound`.
struct Packets<'a>(&'a [u8]);

impl<'a> Iterator for Packets<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<LENGTH_SIZE>()?;
        let (packet, rest) = rest.split_at_checked(usize::try_from(u64::from_be_bytes(*length)).ok()?)?;
        self.0 = rest;
        Some(packet)
    }
}

/// Returns whether these bytes are a sequence of replies as encoded in `outbound`.
pub(in crate::protocol) fn are_packets(bytes: &[u8]) -> bool {
    let mut packets = Packets(bytes);
    packets.by_ref().for_each(drop);
    packets.0.is_empty()
}

/// Encodes replies for `outbound`.
pub(super) fn stored(replies: &[Reply<'_>]) -> Vec<u8> {
    let size = |reply: &Reply<'_>| LENGTH_SIZE + reply[0].len() + reply[1].len();
    let mut stored = Vec::with_capacity(replies.iter().map(size).sum());
    for reply in replies {
        stored.extend_from_slice(&length(reply).to_be_bytes());
        reply.iter().for_each(|part| stored.extend_from_slice(part));
    }
    stored
}

fn length(reply: &Reply<'_>) -> u64 {
    reply.iter().map(|part| part.len() as u64).sum()
}
