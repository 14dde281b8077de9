//! A session put away and taken up again, in another process and perhaps under other rules.
//!
//! Every time in it goes on to run meanwhile. What the rules of its listener say by then holds from then on; they may cut
//! its deadlines short, and never let it have more time than they would give.

use std::sync::Arc;
use std::time::Instant;

use super::super::framer::Framer;
use super::super::moment::Moment;
use super::super::rules::Rules;
use super::super::unfinished::Kept;
use super::{LINGER, LINGER_BYTES, Phase, Session, Totals};

/// All of a session between two calls, in values that hold on any clock and under any rules.
#[derive(Debug)]
pub(in super::super) struct State<'a> {
    pub(in super::super) phase: Phase<Moment>,
    pub(in super::super) input_ended: bool,
    pub(in super::super) opened: Moment,
    pub(in super::super) last_byte: Moment,
    pub(in super::super) totals: Totals,
    pub(in super::super) kept: Kept<'a>,
}

impl State<'_> {
    /// The session that it is under `rules`.
    pub(in super::super) fn thaw(self, rules: Arc<Rules>, frozen_at: Instant) -> Session {
        let mut framer = Framer::default();
        let unfinished = self.kept.thaw(&rules, frozen_at, &mut framer);
        let mut session = Session {
            is_plain: rules.is_plain(),
            rules,
            framer,
            phase: self.phase.map(|until| until.on(frozen_at)),
            input_ended: self.input_ended,
            opened: self.opened.before(frozen_at),
            last_byte: self.last_byte.before(frozen_at),
            totals: self.totals,
            unfinished: Some(Box::new(unfinished)),
        };
        let last_words_until = session.last_words_until(frozen_at);
        match &mut session.phase {
            Phase::Stopping(_, until) | Phase::Ending(_, until) => *until = (*until).min(last_words_until),
            Phase::Lingering(_, until, room) => {
                *until = (*until).min(frozen_at + LINGER);
                *room = (*room).min(LINGER_BYTES);
            }
            Phase::Open | Phase::Finishing(_) | Phase::Logging(_) | Phase::Done(_) => {}
        }
        session.settle(frozen_at);
        session
    }
}

impl Session {
    /// All of it, to be put away at `now`.
    pub(in super::super) fn freeze(&self, now: Instant) -> State<'_> {
        State {
            phase: self.phase.map(|until| Moment::of(until, now)),
            input_ended: self.input_ended,
            opened: Moment::of(self.opened, now),
            last_byte: Moment::of(self.last_byte, now),
            totals: self.totals,
            kept: self.unfinished.as_ref().map_or(Kept::NOTHING, |unfinished| unfinished.freeze(&self.rules, now)),
        }
    }
}

impl<T> Phase<T> {
    /// The same phase, in other times.
    fn map<U>(self, time: impl FnOnce(T) -> U) -> Phase<U> {
        match self {
            Self::Open => Phase::Open,
            Self::Stopping(verdict, until) => Phase::Stopping(verdict, time(until)),
            Self::Finishing(verdict) => Phase::Finishing(verdict),
            Self::Ending(verdict, until) => Phase::Ending(verdict, time(until)),
            Self::Lingering(verdict, until, room) => Phase::Lingering(verdict, time(until), room),
            Self::Logging(verdict) => Phase::Logging(verdict),
            Self::Done(verdict) => Phase::Done(verdict),
        }
    }
}
