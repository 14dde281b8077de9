//! What a thread that serves connections shares with them, and with other threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::counters::Counters;
use super::disposal::Disposal;
use super::event::EventSink;

/// The state of one thread that serves connections: a worker, or the thread of services.
#[derive(Debug)]
pub(crate) struct WorkerState {
    pub(crate) sink: EventSink,
    pub(crate) counters: Counters,
    pub(crate) disposal: Disposal,
    /// How many connections the thread serves.
    open: AtomicUsize,
    /// Whether its connections are to drain.
    draining: AtomicBool,
}

impl WorkerState {
    /// Creates the state of a thread that serves nothing yet.
    pub(crate) fn new(sink: EventSink, disposal: Disposal) -> Self {
        let (open, draining) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { sink, counters: Counters::default(), disposal, open, draining }
    }

    /// Counts a connection that the thread is to serve.
    pub(crate) fn add_connection(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// No longer counts a connection, which has ended.
    pub(crate) fn remove_connection(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns how many connections the thread serves.
    pub(crate) fn connection_count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Has connections drain from their next drive on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
