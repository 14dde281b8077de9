//! What the server of a datagram socket waits for before it receives the next datagram, where peers can send descriptors.
//!
//! The disposal thread wakes it for two reasons, each with a waker of its own: a wakeup for the one that comes late does not
//! end the wait for the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use crate::server::packets::datagram_thread::ThreadControl;

/// Whether datagrams are received now, and if not, what is awaited.
#[derive(Debug)]
pub(crate) struct Parking {
    awaited: Awaited,
    /// Set when there is room for descriptors that peers sent.
    room: Arc<Flag>,
    /// Set when a datagram is dropped whose descriptors the process cannot have.
    dropped: Arc<Flag>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Nothing,
    Room,
    Dropped,
}

/// A flag that other threads set for the thread of a datagram socket, which they wake.
#[derive(Debug)]
struct Flag {
    control: Arc<ThreadControl>,
    is_set: AtomicBool,
}

impl Parking {
    /// Creates one for a thread, which waits for nothing.
    pub(crate) fn new(control: &Arc<ThreadControl>) -> Self {
        let flag = || Arc::new(Flag { control: Arc::clone(control), is_set: AtomicBool::new(false) });
        Self { awaited: Awaited::Nothing, room: flag(), dropped: flag() }
    }

    /// Returns whether nothing is to be received now.
    pub(crate) fn is_parked(&self) -> bool {
        self.awaited != Awaited::Nothing
    }

    /// Returns what is to be woken when there is room for descriptors that peers sent.
    pub(crate) fn room_waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.room))
    }

    /// Waits until there is room for descriptors that peers sent: until the waker of that is woken.
    pub(crate) fn await_room(&mut self) {
        self.awaited = Awaited::Room;
    }

    /// Waits until a datagram is dropped. Returns what is to be woken then.
    pub(crate) fn await_drop(&mut self) -> Waker {
        self.awaited = Awaited::Dropped;
        Waker::from(Arc::clone(&self.dropped))
    }

    /// Looks whether what is awaited has happened. To be called when the thread was woken. Returns whether a datagram was dropped.
    pub(crate) fn update(&mut self) -> bool {
        // Both are taken: what was not awaited is not remembered.
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
        // Of descriptors that came with an earlier datagram.
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
            // It was for this time only.
            parking.room_waker().wake();
            assert!(!parking.update());
        }
    }
}
