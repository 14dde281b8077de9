//! Parking: a datagram server on a Unix socket may have to wait before it receives the next datagram, because of file
//! descriptors that peers sent.
//!
//! The disposal thread wakes it for two reasons, and each has a waker of its own. So a late wakeup for one reason does not end
//! the wait for the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use crate::server::packets::datagram_thread::ThreadControl;

/// The event that a datagram server awaits, if it is parked.
#[derive(Debug)]
pub(crate) struct Parking {
    awaited: Awaited,
    /// Set when there is room for further descriptors from peers.
    room: Arc<Flag>,
    /// Set when the disposal thread has dropped a datagram with descriptors that the process cannot have.
    dropped: Arc<Flag>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Nothing,
    Room,
    Dropped,
}

/// A flag that other threads set for the thread of a datagram socket. Setting it wakes the thread.
#[derive(Debug)]
struct Flag {
    control: Arc<ThreadControl>,
    is_set: AtomicBool,
}

impl Parking {
    /// Creates the parking of a thread that is not parked.
    pub(crate) fn new(control: &Arc<ThreadControl>) -> Self {
        let flag = || Arc::new(Flag { control: Arc::clone(control), is_set: AtomicBool::new(false) });
        Self { awaited: Awaited::Nothing, room: flag(), dropped: flag() }
    }

    /// Returns whether no datagram may be received now.
    pub(crate) fn is_parked(&self) -> bool {
        self.awaited != Awaited::Nothing
    }

    /// Returns the waker for the time when there is room for further descriptors from peers.
    pub(crate) fn room_waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.room))
    }

    /// Parks the thread until the waker of [`Parking::room_waker`] is woken.
    pub(crate) fn await_room(&mut self) {
        self.awaited = Awaited::Room;
    }

    /// Parks the thread until the disposal thread has dropped a datagram. Returns the waker for that.
    pub(crate) fn await_drop(&mut self) -> Waker {
        self.awaited = Awaited::Dropped;
        Waker::from(Arc::clone(&self.dropped))
    }

    /// Ends the parking if the awaited event has occurred. Call it whenever the thread was woken.
    /// Returns whether a datagram was dropped.
    pub(crate) fn update(&mut self) -> bool {
        // Both flags are reset, so that an event that was not awaited is forgotten.
        let (has_room, is_dropped) = (self.room.take(), self.dropped.take());
        match self.awaited {
            Awaited::Room if has_room => self.awaited = Awaited::Nothing,
            Awaited::Dropped if is_dropped => self.awaited = Awaited::Nothing,
            Awaited::Nothing | Awaited::Room | Awaited::Dropped => {}
        }
        is_dropped
    }
}

impl Flag {
    fn take(&self) -> bool {
        self.is_set.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.is_set.store(true, Ordering::Release);
        self.control.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parking() -> (Parking, Arc<ThreadControl>) {
        let control = Arc::new(ThreadControl::new().unwrap());
        (Parking::new(&control), control)
    }

    #[test]
    fn room_for_descriptors_does_not_end_the_wait_for_a_datagram_that_is_dropped() {
        let (mut parking, control) = parking();
        let dropped = parking.await_drop();
        // For descriptors of an earlier datagram.
        parking.room_waker().wake();
        assert!(control.take_wakeup());
        assert!(!parking.update());
        assert!(parking.is_parked());
        dropped.wake();
        assert!(control.take_wakeup());
        assert!(parking.update());
        assert!(!parking.is_parked());
    }

    #[test]
    fn room_that_was_awaited_and_comes_is_used_once() {
        let (mut parking, _control) = parking();
        for _ in 0..2 {
            parking.await_room();
            assert!(!parking.update());
            assert!(parking.is_parked());
            parking.room_waker().wake();
            assert!(!parking.update());
            assert!(!parking.is_parked());
            // A wakeup while the thread is not parked is not remembered.
            parking.room_waker().wake();
            assert!(!parking.update());
        }
    }
}
