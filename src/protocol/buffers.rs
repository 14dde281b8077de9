//! The buffers that a session keeps between calls: a message that is in progress or waits for the log, replies that the peer
//! has not taken (`outbound`), input that was not processed (`inbound`), and the times from which their deadlines count.

mod checkpoint;

use std::mem;
use std::time::{Duration, Instant};

use super::peer_wait::PeerWait;
use super::rules::Rules;

pub(super) use checkpoint::{BuffersCheckpoint, MessageCheckpoint};

/// The minimum capacity for a message in progress, in bytes, so that a short message is not reallocated when its rest comes.
const MIN_CAPACITY: usize = 64;

/// The buffers of one session. Between calls, at least one of the three is not empty, or there is a delay.
#[derive(Debug)]
pub(super) struct Buffers {
    /// The beginning of the reply to the message in progress: the prefix and the bytes that have come. Or the whole reply to a
    /// message that waits for the log.
    pending_reply: Vec<u8>,
    message_state: MessageState,
    read_timer: ReadTimer,
    /// When the delay after a reply ends; `None` if there is none, or if it is over.
    delay_until: Option<Instant>,
    /// Replies that the peer has not taken.
    pub(super) outbound: ByteQueue,
    /// The wait since the peer last took a byte, since replies were first stored in `outbound`, or since a message began to
    /// wait for the log.
    pub(super) wait: PeerWait,
    /// Input that was not processed.
    pub(super) inbound: ByteQueue,
}

/// The event that a session waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The peer begins a message.
    MessageStart,
    /// The peer finishes the message in progress. With its deadline, if there is one.
    MessageEnd(Option<Instant>),
    /// The peer takes the replies that it is owed.
    PeerRead(PeerWait),
    /// The log accepts a message.
    Log,
    /// The delay ends, at this time. No message is taken until then.
    Delay(Instant),
    /// Nothing: the delay is over, and the session can continue.
    DelayOver,
}

/// The state of the message in progress. Line ends are distinguished, because a person at a terminal types TAB and Enter: the
/// line feed then ends a line, and does not begin a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageState {
    /// There is no message in progress.
    None,
    /// Only whole line ends (LF or CR LF).
    LineEnds,
    /// Line ends, then a CR.
    LineEndsCr,
    /// Anything else.
    Other,
    /// The message is complete, and waits for the log.
    Unlogged,
    /// There is no message in progress, and none is taken, because of a delay after a reply. The delay may be over, but was not
    /// processed yet.
    Delayed,
}

/// The timer of the read deadline, which is suspended while the session reads no input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadTimer {
    Off,
    Running { until: Instant },
    Suspended { remaining: Duration },
}

impl Buffers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pending_reply: Vec::new(),
            message_state: MessageState::None,
            read_timer: ReadTimer::Off,
            delay_until: None,
            outbound: ByteQueue::default(),
            wait: PeerWait::new(now),
            inbound: ByteQueue::default(),
        }
    }

    /// Returns whether the buffers can be freed: they are empty, and there is no delay.
    pub(super) fn is_empty(&self) -> bool {
        self.message_state == MessageState::None && !self.is_reading_blocked()
    }

    /// Returns whether no input is read: replies are owed, `inbound` is not empty, a message waits for the log, or
    /// there is a delay.
    #[inline]
    pub(super) fn is_reading_blocked(&self) -> bool {
        !self.outbound.is_empty()
            || !self.inbound.is_empty()
            || matches!(self.message_state, MessageState::Unlogged | MessageState::Delayed)
    }

    /// Returns the memory of the buffers, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.pending_reply.capacity() + self.outbound.bytes.capacity() + self.inbound.bytes.capacity()
    }

    /// Returns the event that the session waits for.
    #[inline]
    pub(super) fn awaited(&self) -> Awaited {
        if !self.outbound.is_empty() {
            return Awaited::PeerRead(self.wait);
        }
        match (self.message_state, self.read_timer) {
            (MessageState::Unlogged, _) => Awaited::Log,
            (MessageState::Delayed, _) => self.delay_until.map_or(Awaited::DelayOver, Awaited::Delay),
            (MessageState::None | MessageState::LineEnds, _) => Awaited::MessageStart,
            (_, ReadTimer::Running { until }) => Awaited::MessageEnd(Some(until)),
            (_, ReadTimer::Off | ReadTimer::Suspended { .. }) => Awaited::MessageEnd(None),
        }
    }

    /// Starts a delay, in which no message is taken. No message may be in progress.
    pub(super) fn start_delay(&mut self, until: Instant) {
        self.message_state = MessageState::Delayed;
        self.read_timer = ReadTimer::Off;
        self.delay_until = Some(until);
    }

    /// Returns whether there is a delay that is not over.
    pub(super) fn is_delayed(&self, now: Instant) -> bool {
        self.delay_until.is_some_and(|until| until > now)
    }

    /// Marks the delay as over. Messages are taken again after [`Buffers::leave_delay`].
    pub(super) fn mark_delay_over(&mut self) {
        self.delay_until = None;
    }

    /// Takes messages again, whether or not the delay is over.
    pub(super) fn leave_delay(&mut self) {
        if self.message_state == MessageState::Delayed {
            self.message_state = MessageState::None;
            self.delay_until = None;
        }
    }

    /// Stores bytes of a message that continues in the next input.
    pub(super) fn buffer_message(&mut self, now: Instant, rules: &Rules, bytes: &[u8]) {
        let pending_reply = &mut self.pending_reply;
        if matches!(self.message_state, MessageState::None | MessageState::Unlogged | MessageState::Delayed) {
            pending_reply.clear();
            (self.message_state, self.read_timer, self.delay_until) = (MessageState::LineEnds, ReadTimer::Off, None);
            reserve_message(pending_reply, rules.prefix.len() + bytes.len(), rules);
            pending_reply.extend_from_slice(rules.prefix.as_bytes());
        } else {
            reserve_message(pending_reply, bytes.len(), rules);
        }
        pending_reply.extend_from_slice(bytes);
        self.message_state = self.message_state.extended_by(bytes);
        self.read_timer = match (self.read_timer, &rules.deadlines.read) {
            // Line ends alone do not begin a message.
            _ if self.message_state == MessageState::LineEnds => ReadTimer::Off,
            (ReadTimer::Off, Some(read)) => ReadTimer::running_until(now.checked_add(read.duration())),
            (timer, _) => timer,
        };
    }

    /// Takes the message in progress, if there is one: its state, and the beginning of its reply.
    #[inline]
    pub(super) fn take_message(&mut self) -> Option<(MessageState, Vec<u8>)> {
        match self.message_state {
            MessageState::None | MessageState::Unlogged | MessageState::Delayed => None,
            state => {
                (self.message_state, self.read_timer) = (MessageState::None, ReadTimer::Off);
                Some((state, mem::take(&mut self.pending_reply)))
            }
        }
    }

    /// Stores the whole reply to a message that has been waiting for the log since `since`.
    pub(super) fn await_log(&mut self, since: Instant, reply: Vec<u8>) {
        (self.read_timer, self.delay_until) = (ReadTimer::Off, None);
        self.pending_reply = reply;
        self.message_state = MessageState::Unlogged;
        self.wait = PeerWait::new(since);
    }

    /// Returns whether a message waits for the log.
    pub(super) fn has_unlogged(&self) -> bool {
        self.message_state == MessageState::Unlogged
    }

    /// Returns the whole reply to the message that waits for the log.
    pub(super) fn unlogged(&self) -> Option<&[u8]> {
        self.has_unlogged().then_some(&self.pending_reply)
    }

    /// Takes the whole reply to the message that waited for the log, with the time when the wait began.
    pub(super) fn take_unlogged(&mut self) -> Option<(Instant, Vec<u8>)> {
        self.unlogged()?;
        self.message_state = MessageState::None;
        Some((self.wait.since(), mem::take(&mut self.pending_reply)))
    }

    /// Drops the replies and the message in progress, because the peer is gone.
    pub(super) fn drop_replies(&mut self) {
        self.outbound = ByteQueue::default();
        self.leave_delay();
        self.take_message();
    }

    /// Stores replies that the peer has not taken. `outbound` must be empty.
    pub(super) fn set_outbound(&mut self, now: Instant, queue: ByteQueue) {
        self.outbound = queue;
        self.wait = PeerWait::new(now);
    }

    /// Removes `count` bytes that the peer took from `outbound`.
    pub(super) fn advance_outbound(&mut self, now: Instant, count: usize) {
        if count > 0 {
            self.outbound.advance(count);
            self.wait = PeerWait::new(now);
        }
    }

    /// Takes the inbound buffer and the index of its first unprocessed byte, if `outbound` is empty.
    pub(super) fn take_inbound(&mut self) -> Option<(Vec<u8>, usize)> {
        if !self.outbound.is_empty() || self.inbound.is_empty() {
            return None;
        }
        let ByteQueue { bytes, at } = mem::take(&mut self.inbound);
        Some((bytes, at))
    }

    /// Runs the read timer while the session reads input, and suspends it otherwise.
    pub(super) fn update_read_timer(&mut self, now: Instant, is_reading: bool) {
        self.read_timer = match self.read_timer {
            ReadTimer::Running { until } if !is_reading => {
                ReadTimer::Suspended { remaining: until.saturating_duration_since(now) }
            }
            ReadTimer::Suspended { remaining } if is_reading => ReadTimer::running_until(now.checked_add(remaining)),
            timer => timer,
        };
    }
}

/// Reserves room for `more` bytes of a message. The capacity doubles, but does not exceed that of the longest message.
#[inline]
fn reserve_message(pending_reply: &mut Vec<u8>, more: usize, rules: &Rules) {
    if pending_reply.capacity() - pending_reply.len() < more {
        let most = rules.prefix.len() + rules.max_message + rules.delimiter.len();
        let wanted = (2 * pending_reply.len()).max(MIN_CAPACITY).min(most).max(pending_reply.len() + more);
        pending_reply.reserve_exact(wanted - pending_reply.len());
    }
}

impl ReadTimer {
    /// Returns a running timer, or one that is off if the clock cannot represent the time.
    fn running_until(time: Option<Instant>) -> Self {
        time.map_or(Self::Off, |until| Self::Running { until })
    }
}

impl MessageState {
    /// Returns the state after further bytes. Stops at the first byte that is not part of a line end.
    fn extended_by(self, bytes: &[u8]) -> Self {
        let mut state = self;
        for byte in bytes {
            state = match (state, byte) {
                (Self::LineEnds | Self::LineEndsCr, b'\n') => Self::LineEnds,
                (Self::LineEnds, b'\r') => Self::LineEndsCr,
                _ => return Self::Other,
            };
        }
        state
    }
}

/// A queue of bytes. Its memory is freed when all of them have been consumed.
#[derive(Debug, Default)]
pub(super) struct ByteQueue {
    bytes: Vec<u8>,
    at: usize,
}

impl ByteQueue {
    /// Creates a queue of these bytes, of which the first `at` have been consumed.
    pub(super) fn from_vec(bytes: Vec<u8>, at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn from_slice(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), at: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
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
