//! The state that a thread shares with the connections that it serves, and with other threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::counters::Counters;
use super::disposal::Disposal;
use super::event::EventSink;

/// The shared state of one thread that serves connections: a worker, the services thread, or a datagram server.
#[derive(Debug)]
pub(crate) struct WorkerState {
    pub(crate) sink: EventSink,
    pub(crate) counters: Counters,
    pub(crate) disposal: Disposal,
    /// The number of connections that the thread serves.
    open: AtomicUsize,
    /// Whether the connections have to drain.
    draining: AtomicBool,
}

impl WorkerState {
    /// Creates the state of a thread without connections.
    pub(crate) fn new(sink: EventSink, disposal: Disposal) -> Self {
        let (open, draining) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { sink, counters: Counters::default(), disposal, open, draining }
    }

    /// Counts one more connection.
    pub(crate) fn add_connection(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one connection less, after it has ended.
    pub(crate) fn remove_connection(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of connections that the thread serves.
    pub(crate) fn connection_count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Makes all connections drain from their next drive on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
