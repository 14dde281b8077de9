//! What a session keeps, put away and taken up again: without what the rules add to it, since other rules may hold then.

use std::borrow::Cow;
use std::time::Instant;

use super::super::framer::{Frame, Framer};
use super::super::moment::Moment;
use super::super::rules::{Framing, Rules};
use super::{Clock, Content, Rest, Unfinished};

/// What is kept, in values that hold on any clock and under any rules.
#[derive(Debug)]
pub(in super::super) struct Kept<'a> {
    pub(in super::super) message: Begun<'a>,
    /// [`Unfinished::waits_since`]
    pub(in super::super) waits_since: Moment,
    /// When the pause ends.
    pub(in super::super) pause: Moment,
    pub(in super::super) owed: Cow<'a, [u8]>,
    pub(in super::super) held: Cow<'a, [u8]>,
}

/// The message that is kept.
#[derive(Debug)]
pub(in super::super) enum Begun<'a> {
    Nothing,
    /// As far as it came, and when the read deadline would pass if we read from now on.
    InProgress(Moment, Cow<'a, [u8]>),
    /// Without its delimiter.
    Unlogged(Cow<'a, [u8]>),
}

impl Kept<'_> {
    pub(in super::super) const NOTHING: Self = Kept {
        message: Begun::Nothing,
        waits_since: Moment::FREEZE,
        pause: Moment::NEVER,
        owed: Cow::Borrowed(&[]),
        held: Cow::Borrowed(&[]),
    };

    /// What goes on under `rules`; `framer` is to be new, and follows. If they find an end in the message in progress, it
    /// is looked at again, as input.
    pub(in super::super) fn thaw(self, rules: &Rules, frozen_at: Instant, framer: &mut Framer) -> Unfinished {
        let waits_since = self.waits_since.before(frozen_at);
        let mut unfinished = Unfinished::new(waits_since);
        let mut held = self.held;
        match self.message {
            Begun::Nothing => {
                let delay = Moment::after(rules.reply_delay.length());
                if self.pause != Moment::NEVER && delay > Moment::FREEZE {
                    unfinished.pause(self.pause.min(delay).on(frozen_at));
                    if self.pause <= Moment::FREEZE {
                        unfinished.pause_is_over();
                    }
                }
            }
            Begun::InProgress(until, bytes) => {
                if rules.framing == Framing::Delimited
                    && framer.next(&rules.delimiter, rules.max_message, &bytes) == Frame::Unfinished
                {
                    unfinished.keep(frozen_at, rules, &bytes);
                    unfinished.clock = unfinished.clock.but_not_after(until.on(frozen_at));
                } else {
                    *framer = Framer::default();
                    held = [bytes, held].concat().into();
                }
            }
            Begun::Unlogged(message) => {
                let reply = [rules.prefix.as_bytes(), &message, rules.ending()].concat();
                unfinished.await_log(waits_since, reply);
            }
        }
        unfinished.owed = Rest::from(self.owed.into_owned(), 0);
        unfinished.held = Rest::from(held.into_owned(), 0);
        unfinished
    }
}

impl Unfinished {
    /// What is kept under `rules`, to be put away at `now`.
    pub(in super::super) fn freeze(&self, rules: &Rules, now: Instant) -> Kept<'_> {
        let message = self.partial.get(rules.prefix.len()..).unwrap_or_default();
        let message = match self.content {
            Content::Nothing | Content::Pause => Begun::Nothing,
            Content::Unlogged => {
                let length = message.len() - rules.ending().len();
                Begun::Unlogged(message[..length].into())
            }
            Content::LineEnds | Content::LineEndsCr | Content::Other => {
                let until = match self.clock {
                    Clock::Stopped | Clock::Pause { .. } => Moment::NEVER,
                    Clock::Running { until } => Moment::of(until, now),
                    Clock::Paused { left } => Moment::after(left),
                };
                Begun::InProgress(until, message.into())
            }
        };
        Kept {
            message,
            waits_since: Moment::of(self.waits_since, now),
            pause: match (self.content, self.clock) {
                (Content::Pause, Clock::Pause { until }) => Moment::after(until.saturating_duration_since(now)),
                (Content::Pause, _) => Moment::FREEZE,
                _ => Moment::NEVER,
            },
            owed: self.owed.as_slice().into(),
            held: self.held.as_slice().into(),
        }
    }
}

impl Clock {
    /// Should it run, then no longer than until `time`.
    fn but_not_after(self, time: Instant) -> Self {
        match self {
            Self::Running { until } => Self::Running { until: until.min(time) },
            clock => clock,
        }
    }
}
