//! The timers of a worker's connections. When a timer fires, its connection is driven even if its socket is not ready. A
//! connection has one timer at most.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::io::retry_on_intr;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

/// The delay of the kernel's timer behind the first timer. A message's deadline counts from the beginning of a pass of the
/// event loop, which may be slightly before the message came. With the delay, no deadline fires early.
const SLACK: Duration = Duration::from_millis(1);

/// Timers, each with the key of its connection.
#[derive(Debug, Default)]
pub(crate) struct TimerQueue(BTreeSet<(Instant, usize)>);

impl TimerQueue {
    /// Sets the timer of a connection, which was set for `previous`.
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

    /// Returns the time at which the next timer fires.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Removes an expired timer, and returns the key of its connection; `None` if no timer has expired.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<usize> {
        self.0.first().is_some_and(|(at, _)| *at <= now).then(|| self.0.pop_first()).flatten().map(|(_, key)| key)
    }
}

/// A kernel timer that wakes the event loop when the first timer expires (timerfd_create(2)). With a timeout for epoll_wait(2)
/// instead, the kernel would have to set a timer for each message.
#[derive(Debug)]
pub(crate) struct WakeupTimer {
    descriptor: OwnedFd,
    /// When it expires; `None` if it is not set or has expired.
    set_for: Option<Instant>,
    /// Whether setting it has failed.
    has_failed: bool,
}

impl WakeupTimer {
    /// Creates a timer that is not set. Its descriptor is watched edge-triggered, so it need not be read.
    ///
    /// # Errors
    /// Returns the errors of timerfd_create(2).
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self { descriptor: timerfd_create(TimerfdClockId::Monotonic, flags)?, set_for: None, has_failed: false })
    }

    /// Returns the descriptor that becomes readable when the timer expires.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Records that it has expired, or that the caller checks the timers because it has failed.
    pub(crate) fn note_expired(&mut self) {
        (self.set_for, self.has_failed) = (None, false);
    }

    /// Returns whether setting it has failed. The caller then has to check the timers without it.
    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Sets it to expire at this time plus [`SLACK`], unless it expires earlier anyway.
    pub(crate) fn set(&mut self, at: Instant, now: Instant) {
        if self.set_for.is_some_and(|set_for| set_for <= at) {
            return;
        }
        // Never 0, which would stop the timer. A time that the kernel cannot represent is practically never.
        let left = at.saturating_duration_since(now).saturating_add(SLACK);
        let it_value = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        let set = retry_on_intr(|| timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &once));
        // An earlier failure may have been for an earlier time, so it is kept.
        (self.set_for, self.has_failed) = (set.is_ok().then_some(at), self.has_failed || set.is_err());
    }
}
