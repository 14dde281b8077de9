//! The timers of a worker's connections: when each must be driven even if its socket is not ready. A connection has one
//! timer at most, so there are no more timers than connections.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::io::retry_on_intr;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

/// How much later than the first timer the kernel's expires. The deadline of a message counts from when a pass of the event loop
/// began, which may be a little before the message came: so no deadline passes early.
const SLACK: Duration = Duration::from_millis(1);

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

/// What ends the wait for epoll when the first timer expires: a timer of the kernel (timerfd_create(2)). A timeout of
/// epoll_wait(2) would have to be computed and set by the kernel for each message.
#[derive(Debug)]
pub(crate) struct WakeupTimer {
    descriptor: OwnedFd,
    /// When it expires, unless it has.
    set_for: Option<Instant>,
    /// Whether it could not be set.
    has_failed: bool,
}

impl WakeupTimer {
    /// Creates a timer that never expires. Its descriptor is watched edge-triggered, so it is never read.
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

    /// Notes that it has expired, or that the timers have to be looked at without it.
    pub(crate) fn note_expired(&mut self) {
        (self.set_for, self.has_failed) = (None, false);
    }

    /// Returns whether it could not be set. Then the timers have to be looked at without it.
    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Has it expire at this time, or up to [`SLACK`] later, if it would not do so before.
    pub(crate) fn set(&mut self, at: Instant, now: Instant) {
        if self.set_for.is_some_and(|set_for| set_for <= at) {
            return;
        }
        // (A time of 0 would stop it. A time that is too long for the kernel never comes.)
        let left = at.saturating_duration_since(now).saturating_add(SLACK);
        let it_value = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        let set = retry_on_intr(|| timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &once));
        // One that failed before may have been for an earlier time.
        (self.set_for, self.has_failed) = (set.is_ok().then_some(at), self.has_failed || set.is_err());
    }
}
