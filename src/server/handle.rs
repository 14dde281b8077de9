//! What others may know of a running server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::accept_mode::AcceptorStatus;
use super::counters::ListenerCounts;
use super::dispatch::Dispatcher;
use super::health::{Health, Phase, Readiness};
use super::packets::datagram_thread::ThreadControl;

/// What others may know of a running server. Cheap to clone.
#[derive(Clone)]
pub struct ServerHandle {
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) acceptor_status: Arc<watch::Sender<AcceptorStatus>>,
    pub(super) health: Health,
    pub(super) datagram_threads: Arc<Mutex<Vec<Arc<ThreadControl>>>>,
}

impl ServerHandle {
    /// Returns what was counted for each listener of messages, in this process and in those before it.
    #[must_use]
    pub fn counts_by_listener(&self) -> BTreeMap<String, ListenerCounts> {
        self.dispatcher.counters.counts_by_listener()
    }

    /// Adds what the previous process has counted.
    pub fn inherit_counts(&self, counts: BTreeMap<String, ListenerCounts>) {
        self.dispatcher.counters.inherit(counts);
    }

    /// Returns whether new clients are welcome.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.health.readiness()
    }

    /// Returns what the server is about to do.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.health.phase()
    }

    /// Sets what the server is about to do. It changes nothing but what monitors and agents answer.
    pub fn set_phase(&self, phase: Phase) {
        self.health.set_phase(phase);
    }

    /// Listeners of messages being served.
    #[must_use]
    pub fn listener_count(&self) -> usize {
        self.acceptor_status.borrow().serving
    }

    /// Connections of messages being served.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.dispatcher.admission.serving()
    }

    /// How many of them are served at once at most.
    #[must_use]
    pub fn connection_limit(&self) -> usize {
        self.dispatcher.admission.limit()
    }

    /// Bytes of partial messages and unsent replies of all connections together.
    #[must_use]
    pub fn buffer_memory(&self) -> usize {
        self.dispatcher.admission.buffer_memory()
    }

    /// How many bytes these may be.
    #[must_use]
    pub fn buffer_memory_limit(&self) -> usize {
        self.dispatcher.admission.buffer_memory_limit()
    }

    /// Threads that serve connections.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        self.dispatcher.workers.len()
    }

    /// Waits until every thread that serves messages has responded: each event loop and each server of datagrams between two
    /// passes.
    pub async fn ping_workers(&self) {
        for worker in &self.dispatcher.workers {
            worker.ping().await;
        }
        let controls = self.datagram_threads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for control in controls {
            control.ping().await;
        }
    }
}
