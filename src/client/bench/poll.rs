//! The epoll set of a thread: its sockets, its timer, and its waker.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, write};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

/// How many events are taken at once.
const MAX_EVENTS: usize = 512;

/// The key of the timer and of the [`Waker`]; sockets have the numbers below.
const TICK_KEY: u64 = u64::MAX;

/// A clock that returns nanoseconds since the load began, the same in all of its threads.
///
/// Not `std::time::Instant`: the difference of two of those costs more than everything else that is counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock(u64);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Self(0).now())
    }

    #[inline]
    pub(super) fn now(self) -> u64 {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
        // Neither is ever negative.
        (tv_sec * 1_000_000_000 + tv_nsec) as u64 - self.0
    }
}

/// The events that a socket is watched for. All events are edge-triggered, so that unread input costs nothing until it is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Interest {
    /// Something to read, or the end.
    Read,
    /// The same, or room to write. (This also reports when an attempt to connect has ended.)
    ReadWrite,
}

impl Interest {
    fn flags(self) -> EventFlags {
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        match self {
            Self::Read => flags,
            Self::ReadWrite => flags | EventFlags::OUT,
        }
    }
}

/// An event of an epoll set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    /// The timer has fired, or another thread has used the waker.
    Tick,
    /// A socket is ready.
    Socket {
        /// The number that it was added with.
        key: usize,
        /// There is room to write, or the connection is made or is not.
        writable: bool,
        /// The server has ended its stream, or the connection is broken.
        ended: bool,
    },
}

/// Wakes another thread from its wait.
#[derive(Debug)]
pub(super) struct Waker(OwnedFd);

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn wake(&self) {
        // It can only fail when it was used 2^64 times.
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// An epoll set with its timer.
pub(super) struct Poll {
    set: OwnedFd,
    timer: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    /// Creates a set that has only a waker in it.
    pub(super) fn new(waker: &Waker) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let flags = EventFlags::IN | EventFlags::ET;
        for fd in [timer.as_fd(), waker.0.as_fd()] {
            epoll::add(&set, fd, EventData::new_u64(TICK_KEY), flags)?;
        }
        Ok(Self { set, timer, events: Vec::with_capacity(MAX_EVENTS) })
    }

    /// Sets the timer to fire after this many nanoseconds.
    ///
    /// The timer is separate, instead of a timeout for each wait: those cost more, and are too coarse to send by.
    pub(super) fn set_timer(&self, after: u64) {
        // A time of 0 would disarm it.
        let after = i64::try_from(after).unwrap_or(i64::MAX).max(1);
        let it_value = Timespec { tv_sec: after / 1_000_000_000, tv_nsec: after % 1_000_000_000 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        // Nothing in this can be wrong (timerfd_create(2)).
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    pub(super) fn add(&self, socket: &OwnedFd, key: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.set, socket, EventData::new_u64(key as u64), interest.flags())?)
    }

    pub(super) fn modify(&self, socket: &OwnedFd, key: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.set, socket, EventData::new_u64(key as u64), interest.flags())?)
    }

    /// Waits until something happens, and returns how many events there are.
    pub(super) fn wait(&mut self) -> io::Result<usize> {
        self.events.clear();
        match epoll::wait(&self.set, rustix::buffer::spare_capacity(&mut self.events), None) {
            Err(Errno::INTR) => Ok(0),
            waited => Ok(waited?),
        }
    }

    /// Returns an event of the last wait.
    #[inline]
    pub(super) fn event(&self, index: usize) -> Event {
        let epoll::Event { flags, data } = self.events[index];
        match data.u64() {
            TICK_KEY => Event::Tick,
            key => Event::Socket {
                // It was a usize when the socket was added.
                key: usize::try_from(key).unwrap_or(usize::MAX),
                writable: flags.contains(EventFlags::OUT),
                ended: flags.intersects(EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP),
            },
        }
    }
}
