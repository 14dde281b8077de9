//! Times that outlive the process: relative to the time at which a session was stored, so that they are valid on any clock.

use std::time::{Duration, Instant};

/// A time in nanoseconds after the session was stored; negative if before. The range is 292 years in each direction; times
/// beyond it are capped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RelativeTime(pub(super) i64);

impl RelativeTime {
    /// The time at which the session was stored.
    pub(super) const ZERO: Self = Self(0);

    /// A time that never comes.
    pub(super) const NEVER: Self = Self(i64::MAX);

    /// Converts a time of a session that is stored at `now`.
    pub(super) fn from_instant(time: Instant, now: Instant) -> Self {
        match time.checked_duration_since(now) {
            Some(after) => Self::after(after),
            None => Self(-nanoseconds(now.saturating_duration_since(time))),
        }
    }

    /// Returns the time `duration` after the session was stored.
    pub(super) fn after(duration: Duration) -> Self {
        Self(nanoseconds(duration))
    }

    /// Returns the time on a clock on which the session was stored at `stored_at`; `stored_at` itself if the clock cannot
    /// represent the time.
    pub(super) fn to_instant(self, stored_at: Instant) -> Instant {
        let duration = Duration::from_nanos(self.0.unsigned_abs());
        let time = if self.0 < 0 { stored_at.checked_sub(duration) } else { stored_at.checked_add(duration) };
        time.unwrap_or(stored_at)
    }

    /// Returns the time of a past event: as [`Self::to_instant`], but never later than `stored_at`.
    pub(super) fn to_past_instant(self, stored_at: Instant) -> Instant {
        self.to_instant(stored_at).min(stored_at)
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
