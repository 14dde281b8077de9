//! The timers of a worker's connections: when each must be driven even if its socket is not ready. A connection has one
//! timer at most, so there are no more timers than connections.

use std::collections::BTreeSet;
use std::time::Instant;

/// Timers, each with the key of its connection.
#[derive(Debug, Default)]
pub(crate) struct TimerQueue(BTreeSet<(Instant, usize)>);

impl TimerQueue {
    /// Sets the timer of a connection anew; it was set for `previous`.
    pub(crate) fn set(&mut self, key: usize, previous: Option<Instant>, at: Instant) {
        self.cancel(key, previous);
        self.0.insert((at, key));
    }

    /// Cancels the timer of a connection, which was set for `previous`.
    pub(crate) fn cancel(&mut self, key: usize, previous: Option<Instant>) {
        if let Some(previous) = previous {
            self.0.remove(&(previous, key));
        }
    }

    /// Returns when the next timer fires.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Removes a timer that has expired, and returns the key of its connection.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<usize> {
        self.0.first().is_some_and(|(at, _)| *at <= now).then(|| self.0.pop_first()).flatten().map(|(_, key)| key)
    }
}
