//! Measures for how long a peer has taken nothing of its replies.
//!
//! A full send buffer does not tell: the kernel reports room only when a good part of the buffer is free again, and a slow
//! reader may need longer for that than the write deadline. So the peer's progress is checked at intervals, and the deadline
//! does not pass while the peer's kernel takes data.

use std::time::{Duration, Instant};

/// The fractions of the write deadline between checks: the first one, and later ones. A connection whose peer takes nothing is
/// closed late by one such fraction at most.
const FIRST_CHECK: u32 = 64;
const NEXT_CHECK: u32 = 8;

/// The maximum times between checks. They also hold without a write deadline, because the daemon may have to read input before
/// the peer can continue.
const MAX_FIRST_CHECK: Duration = Duration::from_millis(100);
const MAX_NEXT_CHECK: Duration = Duration::from_secs(1);

/// The minimum time between checks.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// The wait for a peer that takes nothing of its replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerWait {
    since: Instant,
    /// When the peer's progress was last checked, or when the wait began or was restored.
    checked: Instant,
    /// Whether the progress was checked.
    was_checked: bool,
    /// The last mark of [`PeerWait::record_progress`].
    mark: Option<u64>,
}

impl PeerWait {
    /// Creates a wait that begins at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, checked: now, was_checked: false, mark: None }
    }

    /// Restores a wait that began at `since` and continues at `now`.
    pub(crate) fn restored(since: Instant, now: Instant) -> Self {
        Self { since, checked: now, was_checked: false, mark: None }
    }

    /// Returns the time since which the peer has taken nothing.
    pub(crate) fn since(self) -> Instant {
        self.since
    }

    /// Returns the time of the next check under this write deadline; `None` if the clock cannot represent it.
    pub(crate) fn next_check(self, write: Option<Duration>) -> Option<Instant> {
        let (part, most) = if self.was_checked { (NEXT_CHECK, MAX_NEXT_CHECK) } else { (FIRST_CHECK, MAX_FIRST_CHECK) };
        let interval = write.map_or(most, |write| (write / part).min(most));
        self.checked.checked_add(interval.max(MIN_CHECK_INTERVAL))
    }

    /// Records the peer's progress. `mark` changes whenever the peer takes data, as long as nothing is sent.
    pub(crate) fn record_progress(&mut self, now: Instant, mark: u64) {
        let took = match self.mark.replace(mark) {
            Some(before) => mark != before,
            // The peer may have taken data since the wait began. But a handover does not count as progress.
            None => self.checked == self.since,
        };
        if took {
            self.since = now;
        }
    }

    /// Records that the peer's progress was checked, also if the kernel did not tell.
    pub(crate) fn record_check(&mut self, now: Instant) {
        self.checked = now;
        self.was_checked = true;
    }
}
