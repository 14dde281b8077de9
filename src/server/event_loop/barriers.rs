//! Barriers: another thread waits until the event loop has driven every connection that was ready when the barrier was
//! added.

use std::convert::Infallible;

use tokio::sync::oneshot;

use super::BATCH;

/// The barriers that have not been passed yet.
#[derive(Default)]
pub(super) struct Barriers {
    waiting: Vec<oneshot::Sender<Infallible>>,
    /// How many more epoll_wait(2) calls are needed until epoll has reported every descriptor that was ready.
    waits: usize,
}

impl Barriers {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds barriers. `watched` is the number of descriptors in the epoll set.
    pub(super) fn add(&mut self, waiting: Vec<oneshot::Sender<Infallible>>, watched: usize) {
        if !waiting.is_empty() {
            self.waiting.extend(waiting);
            self.waits = watched / BATCH + 1;
        }
    }

    /// Notes that one epoll_wait(2) call reported `reported` events, and that their connections were driven.
    pub(super) fn note_wait(&mut self, reported: usize) {
        if !self.waiting.is_empty() {
            self.waits = if reported < BATCH { 0 } else { self.waits.saturating_sub(1) };
            if self.waits == 0 {
                self.waiting.clear();
            }
        }
    }
}
