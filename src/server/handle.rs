//! What others may know of a running server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::accept_mode::AcceptorStatus;
use super::clock::clock;
use super::counters::ListenerCounts;
use super::dispatch::Dispatcher;
use super::event::{Event, LameDuckCause};
use super::health::{Health, Phase, Readiness};
use super::lister::{self, ConnectionLister, OneSlice};
use super::packets::datagram_thread::ThreadControl;
use super::peer::Peer;

/// What others may know of a running server. Cheap to clone.
#[derive(Clone)]
pub struct ServerHandle {
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) acceptor_status: Arc<watch::Sender<AcceptorStatus>>,
    pub(super) health: Health,
    pub(super) datagram_threads: Arc<Mutex<Vec<Arc<ThreadControl>>>>,
    pub(super) one_slice: OneSlice,
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

    /// Records that the server is to stop soon: until then it is in lame duck, which cannot be ended.
    pub fn set_leaving(&self) {
        self.health.set_phase(Phase::Leaving);
    }

    /// Records that the server stops. It changes nothing but what monitors and agents answer.
    pub fn set_stopping(&self) {
        self.health.set_phase(Phase::Stopping);
    }

    /// Begins lame duck, and reports it: load balancers are told to send new clients elsewhere. Everything is served as before.
    pub fn begin_lame_duck(&self, cause: LameDuckCause) {
        self.health.set_lame_duck(true);
        self.dispatcher.sink.report(Event::LameDuckBegan { cause });
    }

    /// Ends lame duck, unless the server is to stop, and reports it. Returns whether it has ended.
    pub fn end_lame_duck(&self, cause: LameDuckCause) -> bool {
        self.health.set_lame_duck(false);
        let has_ended = self.phase() == Phase::Serving;
        self.dispatcher.sink.report(Event::LameDuckEnded { cause, has_ended });
        has_ended
    }

    /// Goes on with the lame duck of the previous process.
    pub fn inherit_lame_duck(&self) {
        self.health.set_lame_duck(true);
    }

    /// Returns for how long it has been lame duck; `None` if it is not.
    #[must_use]
    pub fn lame_duck_for(&self) -> Option<Duration> {
        self.health.lame_duck_since().map(|since| clock().saturating_duration_since(since))
    }

    /// Waits until the phase is another one than `phase`.
    pub async fn phase_changed(&self, phase: Phase) {
        self.health.changed(phase).await;
    }

    /// Returns whether there is a listener of messages with this name.
    #[must_use]
    pub fn has_listener(&self, name: &str) -> bool {
        self.dispatcher.counters.has_listener(name)
    }

    /// Returns a list of the open connections.
    #[must_use]
    pub fn list_connections(&self) -> ConnectionLister {
        ConnectionLister::new(Arc::clone(&self.dispatcher), Arc::clone(&self.one_slice))
    }

    /// Closes a connection for `caller`, and reports who it is: after the messages that were read are answered, with a final
    /// reply. Returns whether there was a connection with this id.
    pub async fn close_connection(&self, id: u64, caller: Peer) -> bool {
        // Before it is closed: also if the caller is gone meanwhile, the log says who it was.
        self.dispatcher.sink.report(Event::CloseRequested { id, caller });
        lister::close(&self.dispatcher, &self.one_slice, id).await
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
