//! The protocol state of one connection.
//!
//! A [`Session`] is a value without I/O. Its inputs are bytes, the end of input, room for output, and time. Its outputs are
//! replies, the next deadline, the next action that it wants ([`Want`]), and finally its [`Verdict`]. Replies and messages for
//! the log leave through an [`Outlet`], directly from the thread's [`Scratch`]. The outlet returns how many bytes the peer has
//! taken, and the session stores the rest. So between two calls, all pending data is inside the session, and it can be stored
//! and restored in another process.
//!
//! It has three buffers, which are empty and not allocated most of the time:
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
//! While `outbound` or `inbound` is not empty, or a message waits for the log, the session reads no input, unless the peer
//! could not continue otherwise ([`Session::read_ahead`]). So `outbound` has at most 64 KiB and one reply, `inbound` 256 KiB,
//! `pending_reply` one reply. If the log accepts that message while replies are owed, its reply moves to `outbound`.
//!
//! The session of a connection of packets ([`Rules::packets`]) gets packets, and its `outbound` consists of packets. It has no
//! message in progress and no `inbound`. The caller limits the size of the packets of one call, and thereby the size of
//! `outbound`.
//!
//! A message is logged before it is answered. Every message that was read is logged, even if the peer is lost, unless memory
//! runs out ([`Session::handle_out_of_memory`]).

mod activity;
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

pub use activity::Activity;
pub(super) use checkpoint::Checkpoint;
pub(super) use packets::are_packets;
pub use packets::{HEADROOM, MAX_PACKETS, ReceivedPacket};

/// The deadline of the final reply if `deadlines.write` is off.
pub(crate) const FINAL_REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long input is dropped after the end of the daemon's stream. Closing with unread input would send a reset, which would
/// destroy data on its way to the peer.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// The maximum number of bytes that are dropped then.
pub(crate) const LINGER_BYTES: u32 = 1024 * 1024;

/// The maximum length of the inbound buffer in [`Session::read_ahead`], in bytes.
const MAX_INBOUND: usize = 2 * READ_SIZE;

/// The protocol state of one connection. See the module documentation.
#[derive(Debug)]
pub struct Session {
    rules: Arc<Rules>,
    framer: Framer,
    phase: Phase,
    /// Whether the peer has ended its stream.
    input_ended: bool,
    /// [`Rules::is_plain_echo`] of its rules.
    uses_fast_path: bool,
    /// [`Rules::allows_blocks`] of its rules.
    uses_blocks: bool,
    opened: Instant,
    last_activity: Instant,
    totals: Totals,
    /// The buffers between calls. `None` most of the time.
    buffers: Option<Box<Buffers>>,
}

/// The next action that a session wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Read input: [`Session::receive`] or [`Session::handle_end_of_input`].
    Read,
    /// Call [`Session::process_buffers`] when there is room for output.
    Write,
    /// Call [`Session::process_buffers`] when the lossless log has room.
    Log,
    /// Wait for the end of the delay: [`Session::handle_timeout`] at [`Session::deadline`].
    Delay,
    /// Shut down the output of the connection, then call [`Session::handle_shutdown_sent`].
    Shutdown,
    /// Close the connection.
    Close,
}

/// The destination of a session's output.
pub trait Outlet {
    /// Sends as many of `bytes` as there is room for, and returns their number. If this is less than all, the session does not
    /// call it again in the same call.
    fn send(&mut self, bytes: &[u8]) -> usize;

    /// Sends as many of these replies as there is room for, each as one packet, in order, and returns their number. `replies`
    /// is not empty. Only sessions of packets call it, and they do not call [`Outlet::send`].
    fn send_packets(&mut self, replies: &[Reply<'_>]) -> usize;

    /// Logs a message, without its delimiter, and returns `true`, also if messages are not logged. Returns `false` if there is
    /// no room: the session then stops, and wants [`Want::Log`].
    fn log(&mut self, message: &[u8]) -> bool;

    /// Returns whether messages are logged. If not, [`Outlet::log`] need not be called.
    fn is_logging(&self) -> bool;
}

/// The counts of a session.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Bytes received, without those that were dropped while lingering.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Messages answered, including those for which no reply is configured.
    pub messages: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase<Time = Instant> {
    Open,
    /// Ending with this verdict: no input is read, and messages that were read get their replies, until this time except in a
    /// drain.
    Stopping(Verdict, Time),
    /// The peer has ended its stream. Messages that were read get their replies.
    HalfClosed(Verdict),
    /// The final reply is being sent, until this time.
    Closing(Verdict, Time),
    /// The daemon's stream has ended. Input is dropped until this time, up to this many bytes.
    Lingering(Verdict, Time, u32),
    /// The connection is broken or aborted. Messages that were read wait for the log.
    Logging(Verdict),
    Done(Verdict),
}

// --- Outputs ---------------------------------------------------------------------------------------------------------

impl Session {
    /// Returns the next action that the session wants. [`Session::handle_timeout`] may be called at any time. Input that the
    /// session does not want replaces its inbound buffer, which is then lost.
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

    /// Returns its verdict, once that is certain.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        match self.phase {
            // The verdict may still change.
            Phase::Open | Phase::Stopping(..) | Phase::HalfClosed(_) => None,
            Phase::Closing(verdict, _)
            | Phase::Lingering(verdict, ..)
            | Phase::Logging(verdict)
            | Phase::Done(verdict) => Some(verdict),
        }
    }

    /// Returns whether it was refused because its source has too many connections, or was reclaimed ([`Session::refuse`]). It
    /// then no longer counts against `limits.connections`.
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

    /// Returns the time since which it has been idle: no message is in progress, no reply is owed, and no message waits for the
    /// log. `None` if it is not idle, or if it has no idle deadline.
    #[must_use]
    pub fn idle_since(&self) -> Option<Instant> {
        let is_idle = self.phase == Phase::Open
            && self.rules.deadlines.idle.is_some()
            && !self.is_reading_blocked()
            && self.awaited() == Awaited::MessageStart;
        is_idle.then_some(self.last_activity)
    }

    /// Returns whether it is open and has no buffers, and short messages can be answered in blocks.
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

    /// Returns when the connection was opened.
    #[must_use]
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Returns when something was last received or sent.
    #[must_use]
    pub fn last_activity(&self) -> Instant {
        self.last_activity
    }

    /// Returns its rules.
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
    /// Creates the session of a connection that was opened at `now`.
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

    /// Processes `count` bytes of input in `scratch`, or one packet of this length. Messages and their replies go to `outlet`,
    /// as far as it takes them.
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
            // The peer broke no rule. Its replies may still be in the kernel, and a reset would destroy them, so the session
            // lingers until the peer stops sending. The caller of `drain` limits the total time.
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

    /// Records that the peer has ended its stream.
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
            // The partial delimiter at the end is part of the message.
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

    /// Sends owed replies, then processes the message that waits for the log, and then the inbound buffer. Stops when `outlet`
    /// takes less than it is given, after 64 KiB of further replies, or at a delay. Call it when there may be room for output
    /// or in the log. The log is asked also while replies are owed.
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

    /// Returns how many bytes [`Session::read_ahead`] may get: 0 unless replies are owed.
    #[must_use]
    pub fn read_ahead_room(&self) -> usize {
        match &self.buffers {
            Some(buffers) if !buffers.outbound.is_empty() && !self.rules.packets => {
                MAX_INBOUND.saturating_sub(buffers.inbound.as_slice().len())
            }
            _ => 0,
        }
    }

    /// Stores input that the session does not want, because replies are owed and the peer cannot take them before some of its
    /// input is read. The input is processed when the peer has taken the replies, or dropped if the session stops taking input.
    pub fn read_ahead(&mut self, now: Instant, bytes: &[u8]) {
        if self.phase == Phase::Open && !bytes.is_empty() && !self.rules.packets {
            self.totals.bytes_in += bytes.len() as u64;
            self.buffers_mut(now).inbound.push(bytes);
        }
    }

    /// Records that the peer has sent data outside the session, such as a PROXY header. Its idle deadline begins anew, and the
    /// session lingers if it ends now.
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

    /// Takes the message in progress, if there is one: its state, and the beginning of its reply.
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

    /// Updates the buffers and the phase. Called after every input.
    #[inline]
    fn update_phase(&mut self, now: Instant) {
        // The usual case: nothing to do.
        if self.buffers.is_some() || self.phase != Phase::Open {
            self.update_buffers_and_phase(now);
        }
    }

    /// Suspends or resumes the read timer, frees empty buffers, and ends the phase if all messages are answered.
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
