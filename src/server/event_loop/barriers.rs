//! Barriers: other threads wait until an event loop has driven all connections that are ready by then.

use std::convert::Infallible;

use tokio::sync::oneshot;

use super::BATCH;

/// The barriers that wait until all connections that are ready have been driven.
#[derive(Default)]
pub(super) struct Barriers {
    waiting: Vec<oneshot::Sender<Infallible>>,
    /// How many more times epoll is to be asked: so many times that it has reported all that were ready.
    waits: usize,
}

impl Barriers {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds barriers, while so many descriptors are watched.
    pub(super) fn add(&mut self, waiting: Vec<oneshot::Sender<Infallible>>, watched: usize) {
        if !waiting.is_empty() {
            self.waiting.extend(waiting);
            self.waits = watched / BATCH + 1;
        }
    }

    /// Notes that epoll has reported so many events, whose connections have been driven.
    pub(super) fn note_wait(&mut self, reported: usize) {
        if !self.waiting.is_empty() {
            self.waits = if reported < BATCH { 0 } else { self.waits.saturating_sub(1) };
            if self.waits == 0 {
                self.waiting.clear();
            }
        }
    }
}
