//! When connections of a worker have to be looked at though their sockets have no news. Each has one alarm at most, so
//! this is as large as there are connections.

use std::collections::BTreeSet;
use std::time::Instant;

/// Alarms, each with the key of its connection.
#[derive(Debug, Default)]
pub(crate) struct TimerQueue(BTreeSet<(Instant, usize)>);

impl TimerQueue {
    /// Sets the alarm of a connection anew; it was set for `before`.
    pub(crate) fn set(&mut self, key: usize, previous: Option<Instant>, at: Instant) {
        self.cancel(key, previous);
        self.0.insert((at, key));
    }

    /// Forgets the alarm of a connection, which was set for `before`.
    pub(crate) fn cancel(&mut self, key: usize, previous: Option<Instant>) {
        if let Some(previous) = previous {
            self.0.remove(&(previous, key));
        }
    }

    /// When the next one goes off.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes out one that goes off now or should have before.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<usize> {
        self.0.first().is_some_and(|(at, _)| *at <= now).then(|| self.0.pop_first()).flatten().map(|(_, key)| key)
    }
}
