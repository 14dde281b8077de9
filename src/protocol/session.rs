//! One conversation.
//!
//! A [`Session`] is a value: input, the end of input, room for output and time go in; replies, the next deadline, what
//! it wants next ([`Want`]) and at last its [`Verdict`] come out. It does no I/O. Replies leave through an [`Outlet`]
//! that takes bytes and says how many of them the peer's side has room for, so that they can be sent from the thread's
//! [`Scratch`] without passing through the session; so do messages that are to be logged. Whatever is not taken, the
//! session keeps: between any two calls everything unfinished is inside it, and it could be put away and go on elsewhere.
//!
//! What it may have to keep are three buffers, each empty (and not allocated) most of the time:
//!
//! ```text
//! partial   the reply to the message in progress, as far as it is known:  "server got:aa"
//!           or to a message that the log has not taken yet:               "server got:aaaa<TAB>"
//! owed      replies that the peer has not taken yet
//! held      input that was read, but not looked at yet, since there were replies enough for one turn, or since
//!           the log took no more; after a thaw, also what is to be looked at again under other rules
//! ```
//!
//! While anything is owed or held or waits for the log, nothing is read. So `owed` is at most 64 KiB and one reply, `held`
//! what is left of one read, `partial` one reply.
//!
//! A message is logged before it is answered. No message that was read goes unlogged, whatever becomes of its peer, but
//! for want of memory ([`Session::out_of_memory`]).

mod checkpoint;
mod close;
mod deadlines;
mod fast_path;
mod general_path;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffers::{Awaited, Buffers, ByteQueue, MessageState};
use super::framer::Framer;
use super::reply::Scratch;
use super::rules::{Rules, Unterminated};
use super::verdict::Verdict;

pub(super) use checkpoint::Checkpoint;

/// How long the last words may take where `deadlines.write` is off.
pub(crate) const FINAL_REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// After the end of our stream, how long input is still taken and dropped, so that closing sends no reset which would
/// destroy what is on its way to the peer.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// How much is taken and dropped then, in bytes.
pub(crate) const LINGER_BYTES: u32 = 1024 * 1024;

/// One conversation. See the module's head.
#[derive(Debug)]
pub struct Session {
    rules: Arc<Rules>,
    framer: Framer,
    phase: Phase,
    /// Whether the peer has ended its stream.
    input_ended: bool,
    /// Whether its rules are [`Rules::is_plain`].
    uses_fast_path: bool,
    opened: Instant,
    last_activity: Instant,
    totals: Totals,
    /// What is kept from one call to the next; nothing most of the time, and then no memory either.
    buffers: Option<Box<Buffers>>,
}

/// What a session wants to happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Input: [`Session::receive`], or [`Session::end_of_input`].
    Read,
    /// Room for output, or a turn to go on in: [`Session::resume`].
    Write,
    /// Room in the log of messages: [`Session::resume`].
    Log,
    /// Nothing but time: [`Session::tick`].
    Delay,
    /// The end of our stream to be sent: shut down the sending side, then [`Session::sent_end`].
    Shutdown,
    /// Nothing any more; close the connection.
    Close,
}

/// Where bytes leave a session to.
pub trait Outlet {
    /// Takes as many of `bytes` to the peer as there is room for, and says how many. When it takes fewer than it was
    /// given, it is not asked again in the same call of the session.
    fn send(&mut self, bytes: &[u8]) -> usize;

    /// Logs a message, which is given without its delimiter, and returns `true`; also where messages are not logged. Or
    /// there is no room: then it returns `false`, and the session stops there and wants [`Want::Log`].
    fn log(&mut self, message: &[u8]) -> bool;
}

/// What went through a session.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Bytes received, those dropped at the end not counted.
    pub bytes_in: u64,
    /// Bytes that the peer's side took.
    pub bytes_out: u64,
    /// Messages answered; those that get no reply count as well.
    pub messages: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase<Time = Instant> {
    Open,
    /// We stop for this reason: no input is taken any more, what was read gets its replies. Unless we drain, they have
    /// until then.
    Stopping(Verdict, Time),
    /// The peer has ended its stream; what was read gets its replies.
    HalfClosed(Verdict),
    /// The last words are on their way; they have until then.
    Closing(Verdict, Time),
    /// Our stream has ended; input is dropped until then, this many more bytes of it.
    Lingering(Verdict, Time, u32),
    /// The connection is broken or given up; messages that were read wait for the log.
    Logging(Verdict),
    Done(Verdict),
}

// --- Outputs ---------------------------------------------------------------------------------------------------------

impl Session {
    /// What it wants next. Each is to be done before asking again; [`Session::tick`] may come at any time. Input that it
    /// does not want takes the place of what it keeps, which is then lost.
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

    /// Why it ended, once that is certain.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        match self.phase {
            // Something else may still come between.
            Phase::Open | Phase::Stopping(..) | Phase::HalfClosed(_) => None,
            Phase::Closing(verdict, _)
            | Phase::Lingering(verdict, ..)
            | Phase::Logging(verdict)
            | Phase::Done(verdict) => Some(verdict),
        }
    }

    /// Whether it was refused because its source has too many connections ([`Session::refuse`]).
    #[must_use]
    pub fn is_refused(&self) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Stopping(verdict, _)
            | Phase::HalfClosed(verdict)
            | Phase::Closing(verdict, _)
            | Phase::Lingering(verdict, ..)
            | Phase::Logging(verdict)
            | Phase::Done(verdict) => matches!(verdict, Verdict::TooMany { .. }),
        }
    }

    /// What went through it.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many bytes its buffers occupy: 0 while nothing is unfinished.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.memory())
    }

    /// When it began.
    #[must_use]
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// The rules it was accepted with.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The same, to be shared.
    #[cfg(test)]
    pub(super) fn shared_rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Whether replies are owed, input is held, a message waits for the log, or we pause: then nothing is read.
    #[inline]
    fn is_reading_blocked(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| buffers.is_reading_blocked())
    }
}

// --- Inputs ----------------------------------------------------------------------------------------------------------

impl Session {
    /// A conversation that begins at `now`.
    #[must_use]
    pub fn new(rules: Arc<Rules>, now: Instant) -> Self {
        Self {
            uses_fast_path: rules.is_plain_echo(),
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

    /// `count` bytes came, and lie in `scratch`. Messages and their replies go to `outlet`, as far as it takes them.
    #[inline]
    pub fn receive(&mut self, now: Instant, scratch: &mut Scratch, count: usize, outlet: &mut impl Outlet) {
        match &mut self.phase {
            Phase::Open => {}
            // A peer that we leave did no wrong: what it is owed lies in the kernel, and would go if we closed before it
            // has stopped to send. How long all that may take is limited by who stops us.
            Phase::Lingering(Verdict::Shutdown, until, _) => {
                *until = now + LINGER;
                return;
            }
            Phase::Lingering(verdict, _, remaining) => {
                *remaining = remaining.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
                if *remaining == 0 {
                    self.phase = Phase::Done(*verdict);
                }
                return;
            }
            Phase::Stopping(..) | Phase::HalfClosed(_) | Phase::Closing(..) | Phase::Logging(_) | Phase::Done(_) => {
                return;
            }
        }
        self.totals.bytes_in += count as u64;
        self.last_activity = now;
        let end = Scratch::INPUT_START + count;
        let (Scratch { input, output }, range) = (scratch, Scratch::INPUT_START..end);
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

    /// The peer has ended its stream: no more input will come.
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
            // Bytes that might have begun the delimiter did not.
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
        self.cancel_delay();
        self.phase = Phase::HalfClosed(verdict);
        self.update_phase(now);
    }

    /// There may be room again, for output or in the log: sends what is owed, then goes on with the message that waits for
    /// the log and with the input that is held, until `outlet` takes less than it is given, or there were 64 KiB of further
    /// replies, or a pause begins.
    pub fn process_buffers(&mut self, now: Instant, scratch: &mut Scratch, outlet: &mut impl Outlet) {
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

    /// Something that is no part of the conversation was heard of the peer: the idle deadline runs from here on.
    pub fn note_activity(&mut self, now: Instant) {
        self.last_activity = now;
    }
}

// --- In between ------------------------------------------------------------------------------------------------------

impl Session {
    /// What is kept, made if nothing is.
    fn buffers_mut(&mut self, now: Instant) -> &mut Buffers {
        self.buffers.get_or_insert_with(|| Box::new(Buffers::new(now)))
    }

    /// The message in progress, if there is one: what it consists of, and its reply as far as it is known.
    #[inline]
    fn take_message(&mut self) -> Option<(MessageState, Vec<u8>)> {
        self.buffers.as_mut()?.take_message()
    }

    /// What we wait for now is something else.
    fn cancel_delay(&mut self) {
        if let Some(buffers) = &mut self.buffers {
            buffers.cancel_delay();
        }
    }

    /// Something is owed, where nothing was.
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

    /// After every input.
    #[inline]
    fn update_phase(&mut self, now: Instant) {
        // Mostly there is nothing to do.
        if self.buffers.is_some() || self.phase != Phase::Open {
            self.update_buffers_and_phase(now);
        }
    }

    /// What is finished gives its memory back, and may end the phase. The read deadline runs only while we read.
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
