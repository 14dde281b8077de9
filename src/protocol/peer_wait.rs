//! The wait for a peer that takes no replies.
//!
//! A full send buffer does not prove that the peer takes nothing: the kernel reports room only when a good part of its
//! buffer is free, and a slow reader may need longer than the write deadline for that. So the peer's progress is
//! checked from time to time, and the deadline does not pass while there is progress.

use std::time::{Duration, Instant};

/// The fractions of the write deadline after which the peer's progress is checked, for the first time and afterwards. A
/// peer that stops is cut off late by at most one such interval.
const FIRST_CHECK: u32 = 64;
const NEXT_CHECK: u32 = 8;

/// The longest intervals between checks, also without a write deadline: the session may have to read ahead before the
/// peer can continue.
const MAX_FIRST_CHECK: Duration = Duration::from_millis(100);
const MAX_NEXT_CHECK: Duration = Duration::from_secs(1);

/// The shortest interval between checks.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// The wait for a peer that takes no replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerWait {
    since: Instant,
    /// When the peer's progress was last checked, or when the wait began in this process.
    checked: Instant,
    /// Whether it was checked in this process.
    was_checked: bool,
    /// The mark of the last check ([`PeerWait::record_progress`]).
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

    /// Returns since when the peer has not taken anything.
    pub(crate) fn since(self) -> Instant {
        self.since
    }

    /// Returns when to check the peer's progress next, with this write deadline; `None` if the time is out of range.
    pub(crate) fn next_check(self, write: Option<Duration>) -> Option<Instant> {
        let (part, most) = if self.was_checked { (NEXT_CHECK, MAX_NEXT_CHECK) } else { (FIRST_CHECK, MAX_FIRST_CHECK) };
        let interval = write.map_or(most, |write| (write / part).min(most));
        self.checked.checked_add(interval.max(MIN_CHECK_INTERVAL))
    }

    /// Records the peer's progress as a mark: a number that changes whenever the peer takes something, as long as
    /// nothing is sent.
    pub(crate) fn record_progress(&mut self, now: Instant, mark: u64) {
        let took = match self.mark.replace(mark) {
            Some(before) => mark != before,
            // Without an earlier mark, the peer may have taken something just after the send buffer became full. After
            // a handover, however, a missing mark is not progress.
            None => self.checked == self.since,
        };
        if took {
            self.since = now;
        }
    }

    /// Records that the peer's progress was checked, with or without a result.
    pub(crate) fn record_check(&mut self, now: Instant) {
        self.checked = now;
        self.was_checked = true;
    }
}
