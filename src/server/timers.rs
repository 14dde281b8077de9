//! The timers of a worker's connections: the times at which a connection must be driven even if its socket is not
//! ready. A connection has at most one timer.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::io::retry_on_intr;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

/// How much later than the earliest deadline the kernel's timer expires. Deadlines count from the start of the pass in
/// which input was found, which may be slightly before the input arrived; the slack ensures that no deadline passes too
/// early.
const SLACK: Duration = Duration::from_millis(1);

/// The timers, each with the key of its connection.
#[derive(Debug, Default)]
pub(crate) struct TimerQueue(BTreeSet<(Instant, usize)>);

impl TimerQueue {
    /// Sets the timer of a connection to `at`, replacing the one at `previous`.
    pub(crate) fn set(&mut self, key: usize, previous: Option<Instant>, at: Instant) {
        self.cancel(key, previous);
        self.0.insert((at, key));
    }

    /// Cancels the timer of a connection that was set to `previous`.
    pub(crate) fn cancel(&mut self, key: usize, previous: Option<Instant>) {
        if let Some(previous) = previous {
            self.0.remove(&(previous, key));
        }
    }

    /// Returns when the next timer fires.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Removes one expired timer, and returns the key of its connection.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<usize> {
        self.0.first().is_some_and(|(at, _)| *at <= now).then(|| self.0.pop_first()).flatten().map(|(_, key)| key)
    }
}

/// The kernel timer (timerfd_create(2)) that wakes the event loop when the first of its timers expires. A timeout of
/// epoll_wait(2) instead would cost a computation and a kernel timer for every message.
#[derive(Debug)]
pub(crate) struct WakeupTimer {
    descriptor: OwnedFd,
    /// When the kernel timer expires; `None` if it is not set.
    set_for: Option<Instant>,
    /// Whether setting the kernel timer failed.
    has_failed: bool,
}

impl WakeupTimer {
    /// Creates a timer that is not set. Its descriptor is watched edge-triggered, so it is never read.
    ///
    /// # Errors
    /// Returns the errors of timerfd_create(2).
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self { descriptor: timerfd_create(TimerfdClockId::Monotonic, flags)?, set_for: None, has_failed: false })
    }

    /// Returns the file descriptor that becomes readable when the timer expires.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Notes that the timer has expired, or that the caller checks the timers without it.
    pub(crate) fn note_expired(&mut self) {
        (self.set_for, self.has_failed) = (None, false);
    }

    /// Returns whether setting the timer failed. The caller must then check its timers itself.
    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Sets the timer to expire at `at` or up to [`SLACK`] later, unless it expires earlier anyway.
    pub(crate) fn set(&mut self, at: Instant, now: Instant) {
        if self.set_for.is_some_and(|set_for| set_for <= at) {
            return;
        }
        // A value of 0 would disarm the timer. If the time is too long for the kernel, the timer never expires.
        let left = at.saturating_duration_since(now).saturating_add(SLACK);
        let it_value = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        let set = retry_on_intr(|| timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &once));
        // A call that failed may have been for an earlier time.
        (self.set_for, self.has_failed) = (set.is_ok().then_some(at), self.has_failed || set.is_err());
    }
}
