//! One conversation.
//!
//! A [`Session`] is a value: input, the end of input, room for output and time go in; replies, the next deadline, what
//! it wants next ([`Want`]) and at last its [`Verdict`] come out. It does no I/O. Replies leave through a closure that
//! takes bytes and says how many of them the peer's side has room for, so that they can be sent from the thread's
//! [`Scratch`] without passing through the session. Whatever is not taken, the session keeps: between any two calls
//! everything unfinished is inside it, and it could be put away and go on elsewhere.
//!
//! What it may have to keep are three buffers, each empty (and not allocated) most of the time:
//!
//! ```text
//! partial   the reply to the message in progress, as far as it is known:  "server got:aa"
//! owed      replies that the peer has not taken yet
//! held      input that was read, but not looked at, since enough was owed
//! ```
//!
//! While anything is owed, nothing is read. So `owed` is at most 64 KiB and one reply, `held` what is left of one
//! read, `partial` one reply.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::framer::{Frame, Framer};
use super::reply::{ENOUGH, Output, Scratch};
use super::rules::{Rules, Span, Unterminated};
use super::verdict::Verdict;

/// A reply that is complete but was begun in an earlier call is copied together with those after it up to this size,
/// in bytes; a larger one is sent by itself.
const SMALL: usize = 4096;

/// How long the last words may take where `deadlines.write` is off.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// After the end of our stream, how long input is still taken and dropped, so that closing sends no reset which would
/// destroy what is on its way to the peer.
const LINGER: Duration = Duration::from_secs(1);

/// How much is taken and dropped then, in bytes.
const LINGER_BYTES: usize = 1024 * 1024;

/// One conversation. See the module's head.
#[derive(Debug)]
pub struct Session {
    rules: Arc<Rules>,
    framer: Framer,
    partial: Vec<u8>,
    owed: Rest,
    held: Rest,
    phase: Phase,
    /// What the message in progress consists of so far.
    content: Content,
    /// Whether the peer has ended its stream.
    input_ended: bool,
    clock: Clock,
    opened: Instant,
    last_byte: Instant,
    /// When the peer last took a byte, or when something became owed to it.
    last_taken: Instant,
    totals: Totals,
}

/// What a session wants to happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Input: [`Session::receive`], or [`Session::end_of_input`].
    Read,
    /// Room for output: [`Session::resume`].
    Write,
    /// The end of our stream to be sent: shut down the sending side, then [`Session::sent_end`].
    Shutdown,
    /// Nothing any more; close the connection.
    Close,
}

/// What went through a session.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Bytes received, those dropped at the end not counted.
    pub bytes_in: u64,
    /// Bytes that the peer's side took.
    pub bytes_out: u64,
    /// Messages answered.
    pub messages: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// No input is taken any more; what was read gets its replies, then we end the stream.
    Draining,
    /// The peer has ended its stream; what was read gets its replies.
    Finishing(Verdict),
    /// The last words are on their way; they have until then.
    Ending(Verdict, Instant),
    /// Our stream has ended; input is dropped until then, this many more bytes of it.
    Lingering(Verdict, Instant, usize),
    Done(Verdict),
}

/// What the message in progress consists of: a person at a terminal types TAB, Enter, and the line feed is then no
/// message begun, but what ends the line before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Nothing, or whole line ends (LF or CR LF).
    LineEnds,
    /// Line ends and a CR.
    LineEndsCr,
    Other,
}

/// The read deadline. It stands still while it is we who do not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    Stopped,
    Running { until: Instant },
    Paused { left: Duration },
}

// --- Outputs ---------------------------------------------------------------------------------------------------------

impl Session {
    /// What it wants next. Each is to be done before asking again; [`Session::tick`] may come at any time.
    #[must_use]
    #[inline]
    pub fn wants(&self) -> Want {
        if matches!(self.phase, Phase::Done(_)) {
            Want::Close
        } else if !self.owed.is_empty() || !self.held.is_empty() {
            Want::Write
        } else if matches!(self.phase, Phase::Ending(..)) {
            Want::Shutdown
        } else {
            Want::Read
        }
    }

    /// When [`Session::tick`] has something to do, should nothing else happen before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Ending(_, until) | Phase::Lingering(_, until, _) => Some(until),
            Phase::Done(_) => None,
            Phase::Open | Phase::Draining | Phase::Finishing(_) => self.next_deadline().map(|(until, _)| until),
        }
    }

    /// Why it ended, once that is certain.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        match self.phase {
            Phase::Open | Phase::Draining => None,
            Phase::Finishing(verdict)
            | Phase::Ending(verdict, _)
            | Phase::Lingering(verdict, ..)
            | Phase::Done(verdict) => Some(verdict),
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
        self.partial.capacity() + self.owed.bytes.capacity() + self.held.bytes.capacity()
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

    /// The deadline that runs, and what it would come to.
    fn next_deadline(&self) -> Option<(Instant, Verdict)> {
        let deadlines = &self.rules.deadlines;
        let after = |since: Instant, span: &Option<Span>| span.as_ref().map(|span| since + span.length());
        let waiting = if !self.owed.is_empty() {
            after(self.last_taken, &deadlines.write).map(|until| (until, Verdict::WriteDeadline))
        } else if let Clock::Running { until } = self.clock {
            Some((until, Verdict::ReadDeadline))
        } else if self.content == Content::LineEnds {
            after(self.last_byte, &deadlines.idle).map(|until| (until, Verdict::IdleDeadline))
        } else {
            None
        };
        let lifetime = after(self.opened, &deadlines.lifetime).map(|until| (until, Verdict::Lifetime));
        match (waiting, lifetime) {
            (Some(waiting), Some(lifetime)) => Some(if lifetime.0 < waiting.0 { lifetime } else { waiting }),
            (waiting, lifetime) => waiting.or(lifetime),
        }
    }
}

// --- Inputs ----------------------------------------------------------------------------------------------------------

impl Session {
    /// A conversation that begins at `now`.
    #[must_use]
    pub fn new(rules: Arc<Rules>, now: Instant) -> Self {
        Self {
            rules,
            framer: Framer::default(),
            partial: Vec::new(),
            owed: Rest::default(),
            held: Rest::default(),
            phase: Phase::Open,
            content: Content::LineEnds,
            input_ended: false,
            clock: Clock::Stopped,
            opened: now,
            last_byte: now,
            last_taken: now,
            totals: Totals::default(),
        }
    }

    /// `count` bytes came, and lie in `scratch`. Their replies go to `send`, as far as it takes them: it is given bytes
    /// and says how many of them it took. When it takes fewer than it was given, it is not asked again in this call.
    #[inline]
    pub fn receive(
        &mut self,
        now: Instant,
        scratch: &mut Scratch,
        count: usize,
        send: impl FnMut(&[u8]) -> usize,
    ) {
        match &mut self.phase {
            Phase::Open => {}
            Phase::Lingering(verdict, _, room) => {
                match room.checked_sub(count) {
                    Some(left) => *room = left,
                    None => self.phase = Phase::Done(*verdict),
                }
                return;
            }
            Phase::Draining | Phase::Finishing(_) | Phase::Ending(..) | Phase::Done(_) => return,
        }
        self.totals.bytes_in += count as u64;
        self.last_byte = now;
        let end = Scratch::START + count;
        let at = self.answer(now, &mut scratch.input, Scratch::START..end, &mut scratch.output, send);
        self.held = Rest::of(&scratch.input[at..end]);
        self.settle(now);
    }

    /// The peer has ended its stream: no more input will come.
    pub fn end_of_input(&mut self, now: Instant) {
        self.input_ended = true;
        match self.phase {
            Phase::Open => {}
            Phase::Lingering(verdict, ..) => {
                self.phase = Phase::Done(verdict);
                return;
            }
            Phase::Draining | Phase::Finishing(_) | Phase::Ending(..) | Phase::Done(_) => return,
        }
        let bytes = self.framer.taken();
        if bytes > self.rules.max_message {
            // Bytes that might have begun the delimiter did not.
            return self.end(Verdict::TooLong, now);
        }
        let mut verdict = Verdict::PeerClosed;
        if bytes > 0 {
            match self.rules.unterminated {
                Unterminated::Discard if self.content == Content::LineEnds => {}
                Unterminated::Discard => verdict = Verdict::Unterminated { bytes },
                Unterminated::Accept => {
                    let mut reply = mem::take(&mut self.partial);
                    reply.extend_from_slice(self.rules.delimiter.as_bytes());
                    self.totals.messages += 1;
                    self.owe(now, Rest { bytes: reply, at: 0 });
                }
            }
        }
        self.forget_message();
        self.phase = Phase::Finishing(verdict);
        self.settle(now);
    }

    /// There may be room for output again: sends what is owed, then goes on with the input that is held, until `send`
    /// (see [`Session::receive`]) takes less than it is given, or 64 KiB more were sent.
    pub fn resume(&mut self, now: Instant, scratch: &mut Scratch, mut send: impl FnMut(&[u8]) -> usize) {
        if !self.owed.is_empty() {
            let taken = send(self.owed.as_slice());
            if taken > 0 {
                self.count_sent(now, taken);
                self.owed.advance(taken);
            }
        }
        if self.owed.is_empty() && !self.held.is_empty() {
            let Rest { mut bytes, at } = mem::take(&mut self.held);
            let end = bytes.len();
            let at = self.answer(now, &mut bytes, at..end, &mut scratch.output, send);
            if at < end {
                self.held = Rest { bytes, at };
            }
        }
        self.settle(now);
    }

    /// Our end of the stream was sent, as [`Want::Shutdown`] asked.
    pub fn sent_end(&mut self, now: Instant) {
        if let Phase::Ending(verdict, _) = self.phase {
            self.phase = if self.input_ended {
                Phase::Done(verdict)
            } else {
                Phase::Lingering(verdict, now + LINGER, LINGER_BYTES)
            };
        }
    }

    /// The connection broke: nothing can be sent or received any more.
    pub fn reset(&mut self) {
        self.finish(match self.phase {
            Phase::Open | Phase::Draining | Phase::Finishing(_) => Verdict::PeerReset,
            Phase::Ending(verdict, _) | Phase::Lingering(verdict, ..) | Phase::Done(verdict) => verdict,
        });
    }

    /// Time has passed: acts on the deadlines that are over.
    pub fn tick(&mut self, now: Instant) {
        match self.phase {
            Phase::Ending(verdict, until) | Phase::Lingering(verdict, until, _) if until <= now => self.finish(verdict),
            Phase::Ending(..) | Phase::Lingering(..) | Phase::Done(_) => {}
            Phase::Open | Phase::Draining | Phase::Finishing(_) => match self.next_deadline() {
                Some((until, Verdict::WriteDeadline)) if until <= now => self.finish(Verdict::WriteDeadline),
                Some((until, verdict)) if until <= now => self.end(verdict, now),
                _ => {}
            },
        }
    }

    /// We want to stop: nothing more is read, what was read is answered, then the stream ends.
    pub fn drain(&mut self, now: Instant) {
        if self.phase == Phase::Open {
            self.phase = Phase::Draining;
            self.settle(now);
        }
    }

    /// We cannot serve this peer (any further): `verdict` says why.
    pub fn refuse(&mut self, verdict: Verdict, now: Instant) {
        if matches!(self.phase, Phase::Open | Phase::Draining | Phase::Finishing(_)) {
            self.end(verdict, now);
        }
    }

    /// There is no memory for what it would have to keep: gives everything back. A peer that has not taken the replies
    /// it is owed loses them, and with them the words that would have told it why.
    pub fn out_of_memory(&mut self, now: Instant) {
        if self.owed.is_empty() {
            self.refuse(Verdict::Busy, now);
        } else {
            self.finish(Verdict::Busy);
        }
    }
}

// --- In between ------------------------------------------------------------------------------------------------------

impl Session {
    /// Answers the messages in `input[range]`, and returns up to where it came: everything, or as far as enough was
    /// owed. Nothing is owed when it is called. `input` before the range may be overwritten.
    #[inline]
    fn answer(
        &mut self,
        now: Instant,
        input: &mut [u8],
        range: std::ops::Range<usize>,
        output: &mut Output,
        mut send: impl FnMut(&[u8]) -> usize,
    ) -> usize {
        let (mut at, end) = (range.start, range.end);
        output.clear();
        while at < end {
            if output.len() >= ENOUGH && !self.send_now(now, output, &mut send) {
                return at;
            }
            let rules = &*self.rules;
            match self.framer.next(&rules.delimiter, rules.max_message, &input[at..end]) {
                Frame::Complete(taken) => {
                    self.totals.messages += 1;
                    let from = at;
                    at += taken;
                    if !self.partial.is_empty() {
                        self.partial.extend_from_slice(&input[from..at]);
                        let reply = mem::take(&mut self.partial);
                        self.forget_message();
                        // It is the first of this input, so output is empty.
                        if reply.len() <= SMALL {
                            output.push(&reply);
                        } else {
                            let taken = send(&reply);
                            self.count_sent(now, taken);
                            if taken < reply.len() {
                                self.owe(now, Rest { bytes: reply, at: taken });
                                return at;
                            }
                        }
                    } else if at == end && output.len() == 0 && from >= rules.prefix.len() {
                        // Answered where it lies. What is overwritten was answered before.
                        let start = from - rules.prefix.len();
                        input[start..from].copy_from_slice(rules.prefix.as_bytes());
                        let reply = &input[start..end];
                        let taken = send(reply);
                        self.count_sent(now, taken);
                        if taken < reply.len() {
                            self.owe(now, Rest::of(&reply[taken..]));
                        }
                        return end;
                    } else {
                        output.push_reply(&rules.prefix, input, from, at);
                    }
                }
                Frame::Unfinished => {
                    self.keep_partial(now, &input[at..end]);
                    at = end;
                }
                Frame::TooLong => {
                    self.send_now(now, output, &mut send);
                    self.end(Verdict::TooLong, now);
                    return end;
                }
            }
        }
        self.send_now(now, output, &mut send);
        end
    }

    /// Sends `output` and empties it; what is not taken becomes owed. Returns whether everything was taken.
    #[inline]
    fn send_now(&mut self, now: Instant, output: &mut Output, send: &mut impl FnMut(&[u8]) -> usize) -> bool {
        if output.len() == 0 {
            return true;
        }
        let taken = send(output.as_bytes());
        self.count_sent(now, taken);
        let rest = &output.as_bytes()[taken..];
        let all = rest.is_empty();
        if !all {
            self.owe(now, Rest::of(rest));
        }
        output.clear();
        all
    }

    /// Keeps the bytes of a message that goes on in the next input.
    fn keep_partial(&mut self, now: Instant, bytes: &[u8]) {
        let most = self.rules.prefix.len() + self.rules.max_message + self.rules.delimiter.len();
        if self.partial.is_empty() {
            self.partial.reserve_exact(self.rules.prefix.len() + bytes.len());
            self.partial.extend_from_slice(self.rules.prefix.as_bytes());
        } else if self.partial.capacity() - self.partial.len() < bytes.len() {
            // Grows by doubling, but not past the longest message.
            let wanted = (2 * self.partial.len()).max(self.partial.len() + bytes.len()).min(most);
            self.partial.reserve_exact(wanted.saturating_sub(self.partial.len()).max(bytes.len()));
        }
        self.partial.extend_from_slice(bytes);
        self.content = self.content.and(bytes);
        if self.clock == Clock::Stopped && self.content != Content::LineEnds {
            if let Some(read) = &self.rules.deadlines.read {
                self.clock = Clock::Running { until: now + read.length() };
            }
        }
    }

    fn forget_message(&mut self) {
        self.partial = Vec::new();
        self.framer = Framer::default();
        self.content = Content::LineEnds;
        self.clock = Clock::Stopped;
    }

    /// Something is owed, where nothing was.
    fn owe(&mut self, now: Instant, rest: Rest) {
        self.owed = rest;
        self.last_taken = now;
    }

    fn count_sent(&mut self, now: Instant, taken: usize) {
        if taken > 0 {
            self.totals.bytes_out += taken as u64;
            self.last_byte = now;
            self.last_taken = now;
        }
    }

    /// After every input: where nothing is owed any more, the next phase; and the read deadline runs only while we read.
    #[inline]
    fn settle(&mut self, now: Instant) {
        let reading = self.owed.is_empty() && self.held.is_empty();
        match self.clock {
            Clock::Running { until } if !reading => {
                self.clock = Clock::Paused { left: until.saturating_duration_since(now) };
            }
            Clock::Paused { left } if reading => self.clock = Clock::Running { until: now + left },
            _ => {}
        }
        if reading {
            match self.phase {
                Phase::Draining => self.end(Verdict::Shutdown, now),
                Phase::Finishing(verdict) => self.finish(verdict),
                _ => {}
            }
        }
    }

    /// Ends the conversation from our side: drops input, adds the last words, and gives them a time.
    fn end(&mut self, verdict: Verdict, now: Instant) {
        self.forget_message();
        self.held = Rest::default();
        if self.rules.error_replies {
            if let Some(text) = verdict.text(&self.rules) {
                let mut words = [b"server error:", text.as_bytes()].concat();
                if !self.rules.delimiter.is_in(&words) {
                    words.extend_from_slice(self.rules.delimiter.as_bytes());
                    self.owed.push(&words);
                }
            }
        }
        let limit = self.rules.deadlines.write.as_ref().map_or(LAST_WORDS, Span::length);
        self.phase = Phase::Ending(verdict, now + limit);
    }

    /// Ends it for good; nothing is kept.
    fn finish(&mut self, verdict: Verdict) {
        self.forget_message();
        self.owed = Rest::default();
        self.held = Rest::default();
        self.phase = Phase::Done(verdict);
    }
}

impl Content {
    /// What it is after `bytes` more. Looks no further than the first byte that is no line end.
    fn and(self, bytes: &[u8]) -> Self {
        let mut content = self;
        for byte in bytes {
            content = match (content, byte) {
                (Self::LineEnds | Self::LineEndsCr, b'\n') => Self::LineEnds,
                (Self::LineEnds, b'\r') => Self::LineEndsCr,
                _ => return Self::Other,
            };
        }
        content
    }
}

/// Bytes of which the first ones are done with. When all are, its memory is given back.
#[derive(Debug, Default)]
struct Rest {
    bytes: Vec<u8>,
    at: usize,
}

impl Rest {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), at: 0 }
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.reserve_exact(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    fn advance(&mut self, count: usize) {
        self.at += count;
        if self.at >= self.bytes.len() {
            *self = Self::default();
        }
    }
}
