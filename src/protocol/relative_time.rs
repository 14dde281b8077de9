//! Times that outlive the process: counted from the moment at which a session was frozen, so that they hold on any clock.

use std::time::{Duration, Instant};

/// A time in nanoseconds after the freeze, or before it where negative. It reaches 292 years either way; what is farther
/// off is as good as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RelativeTime(pub(super) i64);

impl RelativeTime {
    /// The moment of the freeze.
    pub(super) const ZERO: Self = Self(0);

    /// A time that does not come.
    pub(super) const NEVER: Self = Self(i64::MAX);

    /// `time`, of a session that is frozen at `now`.
    pub(super) fn from_instant(time: Instant, now: Instant) -> Self {
        match time.checked_duration_since(now) {
            Some(after) => Self::after(after),
            None => Self(-nanoseconds(now.saturating_duration_since(time))),
        }
    }

    /// So long after the freeze.
    pub(super) fn after(duration: Duration) -> Self {
        Self(nanoseconds(duration))
    }

    /// The time that it is on a clock on which the session was frozen at `frozen_at`; that one, if the clock does not
    /// reach so far.
    pub(super) fn to_instant(self, stored_at: Instant) -> Instant {
        let duration = Duration::from_nanos(self.0.unsigned_abs());
        let time = if self.0 < 0 { stored_at.checked_sub(duration) } else { stored_at.checked_add(duration) };
        time.unwrap_or(stored_at)
    }

    /// The same, for something that had happened: never later than the freeze.
    pub(super) fn to_past_instant(self, stored_at: Instant) -> Instant {
        self.to_instant(stored_at).min(stored_at)
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
