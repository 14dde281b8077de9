//! Stores and restores the buffers of a session, without prefixes and delimiters, because other rules may apply after a
//! restart.

use std::borrow::Cow;
use std::time::Instant;

use super::{Buffers, ByteQueue, MessageState, ReadTimer};
use crate::protocol::framer::{Frame, Framer};
use crate::protocol::peer_wait::PeerWait;
use crate::protocol::relative_time::RelativeTime;
use crate::protocol::rules::{Framing, Rules};

/// The buffers of a session, in values that are valid on any clock and under any rules.
#[derive(Debug)]
pub(in crate::protocol) struct BuffersCheckpoint<'a> {
    pub(in crate::protocol) message: MessageCheckpoint<'a>,
    /// When the wait of [`Buffers::wait`] began.
    pub(in crate::protocol) waiting_since: RelativeTime,
    /// When the delay after a reply ends.
    pub(in crate::protocol) delay_until: RelativeTime,
    pub(in crate::protocol) outbound: Cow<'a, [u8]>,
    pub(in crate::protocol) inbound: Cow<'a, [u8]>,
}

/// The message in progress, or the one that waits for the log.
#[derive(Debug)]
pub(in crate::protocol) enum MessageCheckpoint<'a> {
    None,
    /// The bytes that have come, and the read deadline if the session reads from now on.
    InProgress(RelativeTime, Cow<'a, [u8]>),
    /// The message without its delimiter.
    Unlogged(Cow<'a, [u8]>),
}

impl BuffersCheckpoint<'_> {
    pub(in crate::protocol) const EMPTY: Self = BuffersCheckpoint {
        message: MessageCheckpoint::None,
        waiting_since: RelativeTime::ZERO,
        delay_until: RelativeTime::NEVER,
        outbound: Cow::Borrowed(&[]),
        inbound: Cow::Borrowed(&[]),
    };

    /// Restores the buffers under `rules`. `framer` must be new, and gets the state that belongs to the buffers. If the message
    /// in progress is complete under these rules, it is processed again as input.
    pub(in crate::protocol) fn restore(self, rules: &Rules, stored_at: Instant, framer: &mut Framer) -> Buffers {
        let waiting_since = self.waiting_since.to_past_instant(stored_at);
        let mut buffers = Buffers::new(waiting_since);
        let mut inbound = self.inbound;
        match self.message {
            MessageCheckpoint::None => {
                let delay = RelativeTime::after(rules.reply_delay.duration());
                if self.delay_until != RelativeTime::NEVER && delay > RelativeTime::ZERO {
                    buffers.start_delay(self.delay_until.min(delay).to_instant(stored_at));
                    if self.delay_until <= RelativeTime::ZERO {
                        buffers.mark_delay_over();
                    }
                }
            }
            MessageCheckpoint::InProgress(until, bytes) => {
                if rules.framing == Framing::Delimited
                    && framer.next(&rules.delimiter, rules.max_message, &bytes) == Frame::Incomplete
                {
                    buffers.buffer_message(stored_at, rules, &bytes);
                    buffers.read_timer = buffers.read_timer.capped_at(until.to_instant(stored_at));
                } else {
                    *framer = Framer::default();
                    inbound = [bytes, inbound].concat().into();
                }
            }
            MessageCheckpoint::Unlogged(message) => {
                let reply = [rules.prefix.as_bytes(), &message, rules.terminator()].concat();
                buffers.await_log(waiting_since, reply);
            }
        }
        buffers.wait = PeerWait::restored(waiting_since, stored_at);
        buffers.outbound = ByteQueue::from_vec(self.outbound.into_owned(), 0);
        buffers.inbound = ByteQueue::from_vec(inbound.into_owned(), 0);
        buffers
    }
}

impl Buffers {
    /// Returns a checkpoint of the buffers, kept under `rules`, at the time `now`.
    pub(in crate::protocol) fn checkpoint(&self, rules: &Rules, now: Instant) -> BuffersCheckpoint<'_> {
        let message = self.pending_reply.get(rules.prefix.len()..).unwrap_or_default();
        let message = match self.message_state {
            MessageState::None | MessageState::Delayed => MessageCheckpoint::None,
            MessageState::Unlogged => {
                let length = message.len() - rules.terminator().len();
                MessageCheckpoint::Unlogged(message[..length].into())
            }
            MessageState::LineEnds | MessageState::LineEndsCr | MessageState::Other => {
                let until = match self.read_timer {
                    ReadTimer::Off => RelativeTime::NEVER,
                    ReadTimer::Running { until } => RelativeTime::from_instant(until, now),
                    ReadTimer::Suspended { remaining } => RelativeTime::after(remaining),
                };
                MessageCheckpoint::InProgress(until, message.into())
            }
        };
        BuffersCheckpoint {
            message,
            waiting_since: RelativeTime::from_instant(self.wait.since(), now),
            delay_until: match (self.message_state, self.delay_until) {
                (MessageState::Delayed, Some(until)) => RelativeTime::after(until.saturating_duration_since(now)),
                (MessageState::Delayed, None) => RelativeTime::ZERO,
                _ => RelativeTime::NEVER,
            },
            outbound: self.outbound.as_slice().into(),
            inbound: self.inbound.as_slice().into(),
        }
    }
}

impl ReadTimer {
    /// Caps a running timer at `time`.
    fn capped_at(self, time: Instant) -> Self {
        match self {
            Self::Running { until } => Self::Running { until: until.min(time) },
            timer => timer,
        }
    }
}
