//! The protocol state of one connection.
//!
//! A [`Session`] does no I/O. Its inputs are received bytes, the end of input, room for output, and time. Its outputs
//! are replies, the next deadline, the action that it wants next ([`Want`]), and finally a [`Verdict`]. Replies and
//! messages to log go to an [`Outlet`], which returns how much it has taken; so replies are sent directly from the
//! thread's [`Scratch`]. The session stores what is not taken. Between two calls, it holds all pending data, and can be
//! stored and restored in another process.
//!
//! A session has three buffers, most of the time empty and not allocated:
//!
//! ```text
//! pending_reply   the reply to the message in progress, as far as it is known:  "server got:aa"
//!                 or to a message that the log has not accepted yet:            "server got:aaaa<TAB>"
//! outbound        replies that the peer has not taken yet
//! inbound         input that was read but not processed yet, because there were enough replies for one call, or
//!                 because the log accepted no more; input that was read ahead; after a restore also input to be
//!                 processed under new rules
//! ```
//!
//! While `outbound` or `inbound` is not empty, or a message waits for the log, the session reads no input, unless the
//! peer could not continue otherwise ([`Session::read_ahead`]). So `outbound` has at most 64 KiB and one reply,
//! `inbound` 256 KiB, and `pending_reply` one reply. If the log accepts that message while replies are owed, its reply
//! moves to `outbound`.
//!
//! For a connection of packets ([`Rules::packets`]), input and `outbound` consist of packets; no message is in
//! progress, and `inbound` is not used. The caller limits the bytes of the packets in one call, and thereby those of
//! stored replies.
//!
//! A message is logged before it is answered. Every message that was read is logged, even if its peer is lost, unless
//! memory runs out ([`Session::handle_out_of_memory`]).

mod checkpoint;
mod close;
mod deadlines;
mod fast_path;
mod general_path;
mod packets;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffers::{Awaited, Buffers, ByteQueue, MessageState};
use super::framer::Framer;
use super::packet::Reply;
use super::reply::{READ_SIZE, Scratch};
use super::rules::{Rules, Unterminated};
use super::verdict::Verdict;

pub(super) use checkpoint::Checkpoint;
pub(super) use packets::are_packets;
pub use packets::{HEADROOM, MAX_PACKETS, ReceivedPacket};

/// The deadline for the final reply if `deadlines.write` is off.
pub(crate) const FINAL_REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long input is discarded after our stream has ended. Closing earlier could send a reset, which would destroy data
/// that is on its way to the peer.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// The most bytes that are discarded then.
pub(crate) const LINGER_BYTES: u32 = 1024 * 1024;

/// The limit on the inbound buffer for [`Session::read_ahead`], in bytes.
const MAX_INBOUND: usize = 2 * READ_SIZE;

/// The protocol state of one connection. See the module documentation.
#[derive(Debug)]
pub struct Session {
    rules: Arc<Rules>,
    framer: Framer,
    phase: Phase,
    /// Whether the peer has ended its stream.
    input_ended: bool,
    /// Whether the rules are plain echo ([`Rules::is_plain_echo`]).
    uses_fast_path: bool,
    /// Whether nothing is logged, and messages can be processed block by block.
    uses_blocks: bool,
    opened: Instant,
    last_activity: Instant,
    totals: Totals,
    /// The buffers that are kept between two calls. `None` most of the time, to save memory.
    buffers: Option<Box<Buffers>>,
}

/// The action that a session wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Read input: [`Session::receive`], or [`Session::handle_end_of_input`].
    Read,
    /// Wait for room for output, or just call [`Session::process_buffers`] again.
    Write,
    /// Wait for room in the log, then call [`Session::process_buffers`].
    Log,
    /// Wait for the end of the delay: [`Session::handle_timeout`] at [`Session::deadline`].
    Delay,
    /// Shut down our side of the stream, then call [`Session::handle_shutdown_sent`].
    Shutdown,
    /// Close the connection.
    Close,
}

/// The destination of a session's output.
pub trait Outlet {
    /// Sends as many of `bytes` to the peer as there is room for, and returns how many. If not all were taken, the
    /// session does not call it again in the same call.
    fn send(&mut self, bytes: &[u8]) -> usize;

    /// Sends as many of these replies to the peer as there is room for, each as one packet and in order, and returns
    /// how many. `replies` is not empty. Only sessions of packets call it, instead of [`Outlet::send`].
    fn send_packets(&mut self, replies: &[Reply<'_>]) -> usize;

    /// Logs a message, given without its delimiter. Returns `false` if the log has no room: the session then stops
    /// there and wants [`Want::Log`]. Returns `true` if messages are not logged.
    fn log(&mut self, message: &[u8]) -> bool;

    /// Returns whether messages are logged. If not, [`Outlet::log`] need not be called.
    fn is_logging(&self) -> bool;
}

/// The counts of a session.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Bytes received, without those discarded at the end.
    pub bytes_in: u64,
    /// Bytes taken by the peer's side.
    pub bytes_out: u64,
    /// Messages answered, including those without a reply.
    pub messages: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase<Time = Instant> {
    Open,
    /// Ends with this verdict: reads no more input, and replies to the messages that were read, until this time. During
    /// a drain, the time does not apply.
    Stopping(Verdict, Time),
    /// The peer has ended its stream. The messages that were read get their replies.
    HalfClosed(Verdict),
    /// Sends the final reply, until this time.
    Closing(Verdict, Time),
    /// Our stream has ended. Discards input until this time, and at most this many more bytes.
    Lingering(Verdict, Time, u32),
    /// The connection is broken or aborted. Messages that were read wait for the log.
    Logging(Verdict),
    Done(Verdict),
}

// --- Outputs ---------------------------------------------------------------------------------------------------------

impl Session {
    /// Returns the action that the session wants next. Perform it before the next call of this function;
    /// [`Session::handle_timeout`] may be called at any time. Passing input that was not wanted replaces the inbound
    /// buffer, whose bytes are lost.
    #[must_use]
    #[inline]
    pub fn wants(&self) -> Want {
        if matches!(self.phase, Phase::Done(_)) {
            Want::Close
        } else if let Some(buffers) = self.buffers.as_ref().filter(|buffers| buffers.is_reading_blocked()) {
            match buffers.awaited() {
                _ if matches!(self.phase, Phase::Logging(_)) => Want::Log,
                Awaited::Log => Want::Log,
                Awaited::Delay(_) => Want::Delay,
                _ => Want::Write,
            }
        } else if matches!(self.phase, Phase::Closing(..)) {
            Want::Shutdown
        } else {
            Want::Read
        }
    }

    /// Returns why the session ended, once that is certain.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        match self.phase {
            // Another event may still change the verdict.
            Phase::Open | Phase::Stopping(..) | Phase::HalfClosed(_) => None,
            Phase::Closing(verdict, _)
            | Phase::Lingering(verdict, ..)
            | Phase::Logging(verdict)
            | Phase::Done(verdict) => Some(verdict),
        }
    }

    /// Returns whether the connection does not count against the limit on connections: it was refused because its
    /// source is at its limit, or reclaimed ([`Session::refuse`]).
    #[must_use]
    pub fn is_outside_limit(&self) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Stopping(verdict, _)
            | Phase::HalfClosed(verdict)
            | Phase::Closing(verdict, _)
            | Phase::Lingering(verdict, ..)
            | Phase::Logging(verdict)
            | Phase::Done(verdict) => {
                matches!(verdict, Verdict::TooMany { .. } | Verdict::Reclaimed)
            }
        }
    }

    /// Returns since when the session is idle: no message is in progress, no reply is owed, and no message waits for
    /// the log. `None` if it is not idle, or has no idle deadline.
    #[must_use]
    pub fn idle_since(&self) -> Option<Instant> {
        let is_idle = self.phase == Phase::Open
            && self.rules.deadlines.idle.is_some()
            && !self.is_reading_blocked()
            && self.awaited() == Awaited::MessageStart;
        is_idle.then_some(self.last_activity)
    }

    /// Returns whether the session is open without buffers, and messages are not logged.
    #[must_use]
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.buffers.is_none() && self.uses_blocks && matches!(self.phase, Phase::Open)
    }

    /// Returns the counts of bytes and messages so far.
    #[must_use]
    #[inline]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns the memory of its buffers in bytes; 0 while it has none.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.memory())
    }

    /// Returns when the connection began.
    #[must_use]
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Returns the rules of the session.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Returns the rules as a shared pointer.
    #[cfg(test)]
    pub(super) fn shared_rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Returns whether the session reads no input ([`Buffers::is_reading_blocked`]).
    #[inline]
    fn is_reading_blocked(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| buffers.is_reading_blocked())
    }
}

// --- Inputs ----------------------------------------------------------------------------------------------------------

impl Session {
    /// Creates the session of a connection that begins at `now`.
    #[must_use]
    pub fn new(rules: Arc<Rules>, now: Instant) -> Self {
        Self {
            uses_fast_path: rules.is_plain_echo(),
            uses_blocks: rules.allows_blocks(),
            rules,
            framer: Framer::default(),
            phase: Phase::Open,
            input_ended: false,
            opened: now,
            last_activity: now,
            totals: Totals::default(),
            buffers: None,
        }
    }

    /// Processes `count` bytes of input in `scratch`. Messages and replies go to `outlet`, as far as it takes them. For
    /// a connection of packets, the bytes are one packet.
    #[inline]
    pub fn receive(&mut self, now: Instant, scratch: &mut Scratch, count: usize, outlet: &mut impl Outlet) {
        if self.phase != Phase::Open {
            return self.drop_input(now, count);
        }
        let Scratch { input, input_start, output } = scratch;
        if !self.uses_fast_path && self.rules.packets {
            let room = &mut input[*input_start - HEADROOM..];
            return self.receive_packet(now, ReceivedPacket { room, len: count }, outlet);
        }
        self.totals.bytes_in += count as u64;
        self.last_activity = now;
        let end = *input_start + count;
        let range = *input_start..end;
        output.clear();
        let at = if self.uses_fast_path {
            self.answer_fast::<false>(now, input, range, output, outlet)
        } else {
            self.answer_general(now, input, range, output, outlet)
        };
        if at < end {
            self.buffers_mut(now).inbound = ByteQueue::from_slice(&input[at..end]);
        }
        self.update_phase(now);
    }

    /// Drops `count` bytes of input.
    fn drop_input(&mut self, now: Instant, count: usize) {
        match &mut self.phase {
            // The peer has broken no rule. Replies may still be in the kernel, and would be lost if we closed before
            // the peer has stopped sending. The caller of `drain` limits the total time.
            Phase::Lingering(Verdict::Shutdown, until, _) => *until = now + LINGER,
            Phase::Lingering(verdict, _, remaining) => {
                *remaining = remaining.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
                if *remaining == 0 {
                    self.phase = Phase::Done(*verdict);
                }
            }
            Phase::Open
            | Phase::Stopping(..)
            | Phase::HalfClosed(_)
            | Phase::Closing(..)
            | Phase::Logging(_)
            | Phase::Done(_) => {}
        }
    }

    /// Notes that the peer has ended its stream.
    pub fn handle_end_of_input(&mut self, now: Instant) {
        self.input_ended = true;
        match self.phase {
            Phase::Open => {}
            Phase::Lingering(verdict, ..) => {
                self.phase = Phase::Done(verdict);
                return;
            }
            Phase::Stopping(..) | Phase::HalfClosed(_) | Phase::Closing(..) | Phase::Logging(_) | Phase::Done(_) => {
                return;
            }
        }
        let bytes = self.framer.consumed();
        if bytes > self.rules.max_message {
            // The bytes that might have begun the delimiter belong to the message, so it is too long.
            return self.close(Verdict::TooLong, now);
        }
        let mut verdict = Verdict::PeerClosed;
        if let Some((state, mut reply)) = self.take_message() {
            match self.rules.unterminated {
                Unterminated::Discard if state == MessageState::LineEnds => {}
                Unterminated::Discard => {
                    verdict = Verdict::Unterminated { bytes: u32::try_from(bytes).unwrap_or(u32::MAX) };
                }
                Unterminated::Accept => {
                    reply.reserve_exact(self.rules.terminator().len());
                    reply.extend_from_slice(self.rules.terminator());
                    self.buffers_mut(now).await_log(now, reply);
                }
            }
        }
        self.framer = Framer::default();
        self.leave_delay();
        self.phase = Phase::HalfClosed(verdict);
        self.update_phase(now);
    }

    /// Sends owed replies, then processes the message that waits for the log and the inbound buffer. Stops when
    /// `outlet` does not take everything, after 64 KiB of further replies, or when a delay begins. Must be called when
    /// there may be room for output or in the log. Asks the log even while replies are owed.
    pub fn process_buffers(&mut self, now: Instant, scratch: &mut Scratch, outlet: &mut impl Outlet) {
        if self.rules.packets {
            return self.process_packets(now, outlet);
        }
        if let Phase::Logging(verdict) = self.phase {
            return self.log_remaining(verdict, outlet);
        }
        let Some(buffers) = &mut self.buffers else { return };
        if !buffers.outbound.is_empty() {
            let taken = outlet.send(buffers.outbound.as_slice());
            buffers.advance_outbound(now, taken);
            self.count_sent(now, taken);
        }
        self.answer_pending(now, &mut scratch.output, outlet);
        self.update_phase(now);
    }

    /// Returns how many bytes [`Session::read_ahead`] accepts: 0 unless replies are owed and the inbound buffer has
    /// room.
    #[must_use]
    pub fn read_ahead_room(&self) -> usize {
        match &self.buffers {
            Some(buffers) if !buffers.outbound.is_empty() && !self.rules.packets => {
                MAX_INBOUND.saturating_sub(buffers.inbound.as_slice().len())
            }
            _ => 0,
        }
    }

    /// Stores input that the session did not want because replies are owed: the peer cannot take these before some of
    /// its input is read. The input is processed later, or dropped if the session takes no more input.
    pub fn read_ahead(&mut self, now: Instant, bytes: &[u8]) {
        if self.phase == Phase::Open && !bytes.is_empty() && !self.rules.packets {
            self.totals.bytes_in += bytes.len() as u64;
            self.buffers_mut(now).inbound.push(bytes);
        }
    }

    /// Notes that the peer has sent something that was not read, or does not belong to the protocol. Restarts the idle
    /// deadline; if the session ends now, it lingers.
    pub fn note_activity(&mut self, now: Instant) {
        self.last_activity = now;
    }
}

// --- In between ------------------------------------------------------------------------------------------------------

impl Session {
    /// Returns the buffers, allocating them if there are none.
    fn buffers_mut(&mut self, now: Instant) -> &mut Buffers {
        self.buffers.get_or_insert_with(|| Box::new(Buffers::new(now)))
    }

    /// Takes the message in progress with the known part of its reply, if there is one.
    #[inline]
    fn take_message(&mut self) -> Option<(MessageState, Vec<u8>)> {
        self.buffers.as_mut()?.take_message()
    }

    /// Ends the delay, whether or not its time is over.
    fn leave_delay(&mut self) {
        if let Some(buffers) = &mut self.buffers {
            buffers.leave_delay();
        }
    }

    /// Stores replies that the peer has not taken. `outbound` must be empty.
    fn set_outbound(&mut self, now: Instant, queue: ByteQueue) {
        self.buffers_mut(now).set_outbound(now, queue);
    }

    #[inline]
    fn count_sent(&mut self, now: Instant, taken: usize) {
        if taken > 0 {
            self.totals.bytes_out += taken as u64;
            self.last_activity = now;
        }
    }

    /// Updates the buffers and the phase. Must be called after every input.
    #[inline]
    fn update_phase(&mut self, now: Instant) {
        // Checked here and inlined, because mostly there is nothing to do.
        if self.buffers.is_some() || self.phase != Phase::Open {
            self.update_buffers_and_phase(now);
        }
    }

    /// Suspends or resumes the read timer, frees empty buffers, and ends the phase if nothing is left to do in it.
    fn update_buffers_and_phase(&mut self, now: Instant) {
        let mut reading = true;
        if let Some(buffers) = &mut self.buffers {
            reading = !buffers.is_reading_blocked();
            buffers.update_read_timer(now, reading);
            if buffers.is_empty() {
                self.buffers = None;
            }
        }
        match self.phase {
            Phase::Stopping(verdict, _) if reading => self.close(verdict, now),
            Phase::HalfClosed(verdict) if reading => self.finish(verdict),
            _ => {}
        }
    }
}
