//! The state that a serving thread shares with its connections, and with other threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::disposal::Disposal;
use super::event::EventSink;

/// The state of one serving thread: a worker, the services thread, or the thread of a datagram socket.
#[derive(Debug)]
pub(crate) struct WorkerState {
    /// The number of the thread among those that serve connections.
    pub(crate) number: usize,
    pub(crate) sink: EventSink,
    pub(crate) disposal: Disposal,
    /// The number of connections that the thread serves.
    open: AtomicUsize,
    /// Whether its connections have to drain.
    draining: AtomicBool,
}

impl WorkerState {
    /// Creates the state of the thread with this number, without connections.
    pub(crate) fn new(number: usize, sink: EventSink, disposal: Disposal) -> Self {
        let (open, draining) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { number, sink, disposal, open, draining }
    }

    /// Counts a connection that is assigned to the thread.
    pub(crate) fn add_connection(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Stops counting a connection, which has ended.
    pub(crate) fn remove_connection(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of connections that the thread serves.
    pub(crate) fn connection_count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Makes connections drain from their next drive on. Wakes no connection.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
