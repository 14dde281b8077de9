//! What a session keeps from one call to the next, while there is something: a message in progress or one that waits for
//! the log, replies that were not taken, input that was not looked at. And since when, as the deadlines of these things
//! are.

mod kept;

use std::mem;
use std::time::{Duration, Instant};

use super::rules::Rules;

pub(super) use kept::{Begun, Kept};

/// How much room a message in progress has at least, in bytes: a short one does not have to be moved when its rest comes.
const SHORT: usize = 64;

/// What is kept. At least one of the three buffers is not empty between calls of the session, or there is a pause.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// The reply to the message in progress, as far as it is known: the prefix and the bytes that came. Or all of the
    /// reply to a message that waits for the log.
    partial: Vec<u8>,
    content: Content,
    clock: Clock,
    /// Replies that the peer has not taken.
    pub(super) owed: Rest,
    /// When the peer last took a byte, or when something became owed to it; or when a message began to wait for the log.
    waits_since: Instant,
    /// Input that was not looked at.
    pub(super) held: Rest,
}

/// What the peer is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// To begin a message.
    Beginning,
    /// To finish the one that it has begun; until then, if there is a deadline.
    RestOfMessage(Option<Instant>),
    /// To take what it is owed; it has not taken anything since then.
    Taking(Instant),
    /// Nothing: it is the log that is to take a message.
    Log,
    /// Nothing: it is we who pause, until then.
    Pause(Instant),
    /// Nothing: the pause is over, and it is our turn.
    Turn,
}

/// What the message in progress consists of: a person at a terminal types TAB, Enter, and the line feed is then no
/// message begun, but what ends the line before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// There is no message in progress.
    Nothing,
    /// Whole line ends (LF or CR LF).
    LineEnds,
    /// Line ends and a CR.
    LineEndsCr,
    /// Anything else.
    Other,
    /// All of it came, its delimiter too; it waits for the log.
    Unlogged,
    /// There is none, and none is taken: there is a pause after a reply, or it is over and was not noticed yet.
    Pause,
}

/// The read deadline, which stands still while it is we who do not read; or the end of a pause, which does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    Stopped,
    Running { until: Instant },
    Paused { left: Duration },
    Pause { until: Instant },
}

impl Unfinished {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            partial: Vec::new(),
            content: Content::Nothing,
            clock: Clock::Stopped,
            owed: Rest::default(),
            waits_since: now,
            held: Rest::default(),
        }
    }

    /// Whether nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.content == Content::Nothing && !self.is_behind()
    }

    /// Whether replies are owed, input is held, a message waits for the log, or we pause: then nothing is read.
    #[inline]
    pub(super) fn is_behind(&self) -> bool {
        !self.owed.is_empty() || !self.held.is_empty() || matches!(self.content, Content::Unlogged | Content::Pause)
    }

    /// Bytes that the buffers occupy.
    pub(super) fn memory(&self) -> usize {
        self.partial.capacity() + self.owed.bytes.capacity() + self.held.bytes.capacity()
    }

    /// What the peer is to do next.
    #[inline]
    pub(super) fn awaited(&self) -> Awaited {
        if !self.owed.is_empty() {
            return Awaited::Taking(self.waits_since);
        }
        match (self.clock, self.content) {
            (_, Content::Unlogged) => Awaited::Log,
            (Clock::Pause { until }, _) => Awaited::Pause(until),
            (_, Content::Pause) => Awaited::Turn,
            (_, Content::Nothing | Content::LineEnds) => Awaited::Beginning,
            (Clock::Running { until }, _) => Awaited::RestOfMessage(Some(until)),
            (Clock::Stopped | Clock::Paused { .. }, _) => Awaited::RestOfMessage(None),
        }
    }

    /// Takes no message until then. There is none in progress.
    pub(super) fn pause(&mut self, until: Instant) {
        self.content = Content::Pause;
        self.clock = Clock::Pause { until };
    }

    /// Whether we pause, and the pause has not come to its end.
    pub(super) fn is_paused(&self, now: Instant) -> bool {
        matches!(self.clock, Clock::Pause { until } if until > now)
    }

    /// The pause has come to its end, if there is one.
    pub(super) fn pause_is_over(&mut self) {
        if let Clock::Pause { .. } = self.clock {
            self.clock = Clock::Stopped;
        }
    }

    /// There is no pause any more.
    pub(super) fn forget_pause(&mut self) {
        if self.content == Content::Pause {
            self.content = Content::Nothing;
            self.clock = Clock::Stopped;
        }
    }

    /// Keeps the bytes of a message that goes on in the next input.
    pub(super) fn keep(&mut self, now: Instant, rules: &Rules, bytes: &[u8]) {
        let partial = &mut self.partial;
        if matches!(self.content, Content::Nothing | Content::Unlogged | Content::Pause) {
            partial.clear();
            (self.content, self.clock) = (Content::LineEnds, Clock::Stopped);
            make_room(partial, rules.prefix.len() + bytes.len(), rules);
            partial.extend_from_slice(rules.prefix.as_bytes());
        } else {
            make_room(partial, bytes.len(), rules);
        }
        partial.extend_from_slice(bytes);
        self.content = self.content.and(bytes);
        self.clock = match (self.clock, &rules.deadlines.read) {
            // A person's line end is no message begun.
            _ if self.content == Content::LineEnds => Clock::Stopped,
            (Clock::Stopped, Some(read)) => Clock::until(now.checked_add(read.length())),
            (clock, _) => clock,
        };
    }

    /// The message in progress, if there is one: what it consists of, and its reply as far as it is known.
    #[inline]
    pub(super) fn take_message(&mut self) -> Option<(Content, Vec<u8>)> {
        match self.content {
            Content::Nothing | Content::Unlogged | Content::Pause => None,
            content => {
                (self.content, self.clock) = (Content::Nothing, Clock::Stopped);
                Some((content, mem::take(&mut self.partial)))
            }
        }
    }

    /// Keeps the whole reply to a message that the log has not taken, since then.
    pub(super) fn await_log(&mut self, since: Instant, reply: Vec<u8>) {
        self.clock = Clock::Stopped;
        self.partial = reply;
        self.content = Content::Unlogged;
        self.waits_since = since;
    }

    /// The whole reply to the message that waits for the log, if nothing is owed any more.
    pub(super) fn unlogged(&self) -> Option<&[u8]> {
        (self.content == Content::Unlogged && self.owed.is_empty()).then_some(&self.partial)
    }

    /// The same, which waits no longer, and since when it has.
    pub(super) fn take_unlogged(&mut self) -> Option<(Instant, Vec<u8>)> {
        self.unlogged()?;
        self.content = Content::Nothing;
        Some((self.waits_since, mem::take(&mut self.partial)))
    }

    /// Nobody will take replies any more, nor finish a message.
    pub(super) fn drop_replies(&mut self) {
        self.owed = Rest::default();
        self.forget_pause();
        self.take_message();
    }

    /// Something is owed, where nothing was.
    pub(super) fn owe(&mut self, now: Instant, rest: Rest) {
        self.owed = rest;
        self.waits_since = now;
    }

    /// The peer took so many bytes of what it is owed.
    pub(super) fn taken(&mut self, now: Instant, count: usize) {
        if count > 0 {
            self.owed.advance(count);
            self.waits_since = now;
        }
    }

    /// The input that is held, if nothing is owed any more, and where to go on in it.
    pub(super) fn take_held(&mut self) -> Option<(Vec<u8>, usize)> {
        if !self.owed.is_empty() || self.held.is_empty() {
            return None;
        }
        let Rest { bytes, at } = mem::take(&mut self.held);
        Some((bytes, at))
    }

    /// Has the read deadline run while we read, and stand still otherwise.
    pub(super) fn run_clock(&mut self, now: Instant, reading: bool) {
        self.clock = match self.clock {
            Clock::Running { until } if !reading => Clock::Paused { left: until.saturating_duration_since(now) },
            Clock::Paused { left } if reading => Clock::until(now.checked_add(left)),
            clock => clock,
        };
    }
}

/// Makes room for so many bytes more of a message: by doubling, but not past the longest one.
#[inline]
fn make_room(partial: &mut Vec<u8>, more: usize, rules: &Rules) {
    if partial.capacity() - partial.len() < more {
        let most = rules.prefix.len() + rules.max_message + rules.delimiter.len();
        let wanted = (2 * partial.len()).max(SHORT).min(most).max(partial.len() + more);
        partial.reserve_exact(wanted - partial.len());
    }
}

impl Clock {
    /// A time beyond all times never comes.
    fn until(time: Option<Instant>) -> Self {
        time.map_or(Self::Stopped, |until| Self::Running { until })
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
pub(super) struct Rest {
    bytes: Vec<u8>,
    at: usize,
}

impl Rest {
    /// These bytes, of which the first ones are done with already.
    pub(super) fn from(bytes: Vec<u8>, at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), at: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.reserve_exact(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn advance(&mut self, count: usize) {
        self.at += count;
        if self.at >= self.bytes.len() {
            *self = Self::default();
        }
    }
}
