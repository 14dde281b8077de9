//! How long a peer has taken nothing of what it is owed.
//!
//! That there is no room for output says little: a kernel reports room only when a good part of its buffer is free again,
//! and a slow reader may need longer for that than the write deadline. So what the peer's kernel takes meanwhile is looked at
//! now and then, and while it takes something, the deadline does not pass.

use std::time::{Duration, Instant};

/// The parts of the write deadline after which the peer's progress is looked at: for the first time, and from then on. A peer
/// that stops taking is cut off later by such a part at most.
const FIRST_CHECK: u32 = 64;
const NEXT_CHECK: u32 = 8;

/// The longest times until a look, also without a write deadline: input may have to be read before the peer can go on.
const MAX_FIRST_CHECK: Duration = Duration::from_millis(100);
const MAX_NEXT_CHECK: Duration = Duration::from_secs(1);

/// The shortest time between two looks.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// The wait for a peer that takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerWait {
    since: Instant,
    /// When the peer's progress was last looked at, or when the wait began, here.
    checked: Instant,
    /// Whether it was looked at.
    was_checked: bool,
    /// What it was then: [`PeerWait::record_progress`].
    mark: Option<u64>,
}

impl PeerWait {
    /// Creates a wait that begins at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, checked: now, was_checked: false, mark: None }
    }

    /// Restores a wait that began at `since` and goes on at `now`.
    pub(crate) fn restored(since: Instant, now: Instant) -> Self {
        Self { since, checked: now, was_checked: false, mark: None }
    }

    /// Returns since when the peer has taken nothing.
    pub(crate) fn since(self) -> Instant {
        self.since
    }

    /// Returns when to look at the peer's progress next, with this write deadline; `None` if that is beyond all times.
    pub(crate) fn next_check(self, write: Option<Duration>) -> Option<Instant> {
        let (part, most) = if self.was_checked { (NEXT_CHECK, MAX_NEXT_CHECK) } else { (FIRST_CHECK, MAX_FIRST_CHECK) };
        let interval = write.map_or(most, |write| (write / part).min(most));
        self.checked.checked_add(interval.max(MIN_CHECK_INTERVAL))
    }

    /// Records how far the peer has taken what was sent: a number that changes whenever it takes something, as long as
    /// nothing is sent.
    pub(crate) fn record_progress(&mut self, now: Instant, mark: u64) {
        let took = match self.mark.replace(mark) {
            Some(before) => mark != before,
            // It may have taken something just after the socket was full. But a handover is not progress.
            None => self.checked == self.since,
        };
        if took {
            self.since = now;
        }
    }

    /// Records that the peer's progress was looked at, whether or not it could be seen.
    pub(crate) fn record_check(&mut self, now: Instant) {
        self.checked = now;
        self.was_checked = true;
    }
}
