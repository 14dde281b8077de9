//! Stores a session as a checkpoint, and restores it, perhaps in another process and under other rules.
//!
//! Its timers run on meanwhile. The restored session follows the current rules of its listener. They may shorten its deadlines,
//! but never extend them.

use std::sync::Arc;
use std::time::Instant;

use super::{LINGER, LINGER_BYTES, Phase, Session, Totals};
use crate::protocol::buffers::BuffersCheckpoint;
use crate::protocol::framer::Framer;
use crate::protocol::relative_time::RelativeTime;
use crate::protocol::rules::Rules;

/// The whole state of a session between two calls, in values that are valid on any clock and under any rules.
#[derive(Debug)]
pub(in crate::protocol) struct Checkpoint<'a> {
    pub(in crate::protocol) phase: Phase<RelativeTime>,
    pub(in crate::protocol) input_ended: bool,
    pub(in crate::protocol) opened: RelativeTime,
    pub(in crate::protocol) last_activity: RelativeTime,
    pub(in crate::protocol) totals: Totals,
    pub(in crate::protocol) buffers: BuffersCheckpoint<'a>,
}

impl Checkpoint<'_> {
    /// Restores the session under `rules`.
    pub(in crate::protocol) fn restore(self, rules: Arc<Rules>, stored_at: Instant) -> Session {
        let mut framer = Framer::default();
        let buffers = self.buffers.restore(&rules, stored_at, &mut framer);
        let mut session = Session {
            uses_fast_path: rules.is_plain_echo(),
            uses_blocks: rules.allows_blocks(),
            rules,
            framer,
            phase: self.phase.map(|until| until.to_instant(stored_at)),
            input_ended: self.input_ended,
            opened: self.opened.to_past_instant(stored_at),
            last_activity: self.last_activity.to_past_instant(stored_at),
            totals: self.totals,
            buffers: Some(Box::new(buffers)),
        };
        let final_reply_deadline = session.final_reply_deadline(stored_at);
        match &mut session.phase {
            Phase::Stopping(_, until) | Phase::Closing(_, until) => *until = (*until).min(final_reply_deadline),
            Phase::Lingering(_, until, remaining) => {
                *until = (*until).min(stored_at + LINGER);
                *remaining = (*remaining).min(LINGER_BYTES);
            }
            Phase::Open | Phase::HalfClosed(_) | Phase::Logging(_) | Phase::Done(_) => {}
        }
        session.update_phase(stored_at);
        session
    }
}

impl Session {
    /// Returns a checkpoint of the session at the time `now`.
    pub(in crate::protocol) fn checkpoint(&self, now: Instant) -> Checkpoint<'_> {
        Checkpoint {
            phase: self.phase.map(|until| RelativeTime::from_instant(until, now)),
            input_ended: self.input_ended,
            opened: RelativeTime::from_instant(self.opened, now),
            last_activity: RelativeTime::from_instant(self.last_activity, now),
            totals: self.totals,
            buffers: self
                .buffers
                .as_ref()
                .map_or(BuffersCheckpoint::EMPTY, |buffers| buffers.checkpoint(&self.rules, now)),
        }
    }
}

impl<T> Phase<T> {
    /// Converts the times of a phase.
    fn map<U>(self, time: impl FnOnce(T) -> U) -> Phase<U> {
        match self {
            Self::Open => Phase::Open,
            Self::Stopping(verdict, until) => Phase::Stopping(verdict, time(until)),
            Self::HalfClosed(verdict) => Phase::HalfClosed(verdict),
            Self::Closing(verdict, until) => Phase::Closing(verdict, time(until)),
            Self::Lingering(verdict, until, remaining) => Phase::Lingering(verdict, time(until), remaining),
            Self::Logging(verdict) => Phase::Logging(verdict),
            Self::Done(verdict) => Phase::Done(verdict),
        }
    }
}
