//! Listeners, and the identity of their connections.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::counters::{Counters, ListenerCounters};
use super::peer::Peer;
use super::peer_descriptors::PeerDescriptors;
use super::socket::SocketKind;
use super::worker_state::WorkerState;
use crate::config;

/// The part of a listener that its connections share: its name and its settings, as they were when the connection was accepted.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) name: Arc<str>,
    /// The kind of the listening socket.
    pub(crate) kind: SocketKind,
    /// The file descriptors that peers may send ([`PeerDescriptors::refuse`]).
    pub(crate) descriptors: PeerDescriptors,
    pub(crate) settings: config::ListenerSettings,
    /// Those of the threads, by their numbers: nearer than in `counters`.
    thread_counters: Arc<[Counters]>,
    counters: Arc<ListenerCounters>,
}

impl Listener {
    /// Creates a listener with this name and these settings.
    pub(crate) fn new(
        name: &str,
        kind: SocketKind,
        descriptors: PeerDescriptors,
        settings: &config::ListenerSettings,
        counters: Arc<ListenerCounters>,
    ) -> Self {
        counters.note_kind(kind);
        let (settings, thread_counters) = (settings_of(kind, settings), Arc::clone(counters.of_threads()));
        Self { name: name.into(), kind, descriptors, settings, thread_counters, counters }
    }

    /// Returns the counters of the thread with this state.
    #[inline]
    pub(crate) fn counters(&self, state: &WorkerState) -> &Counters {
        &self.thread_counters[state.number]
    }

    /// Counts an error of accept(2) or recvmmsg(2).
    pub(crate) fn count_accept_error(&self, error: &io::Error) {
        self.counters.count_accept_error(error);
    }

    /// Returns whether its connections have to begin with a PROXY header. Only streams have headers.
    pub(crate) fn awaits_header(&self) -> bool {
        self.settings.proxy_protocol && self.kind == SocketKind::Stream
    }
}

/// Returns the settings, adjusted to the kind of socket.
fn settings_of(kind: SocketKind, settings: &config::ListenerSettings) -> config::ListenerSettings {
    let mut settings = settings.clone();
    if kind == SocketKind::Seqpacket {
        Arc::make_mut(&mut settings.rules).packets = true;
    }
    settings
}

/// The current [`Listener`], for new connections. A reload replaces it.
#[derive(Debug)]
pub(crate) struct ListenerHandle(Mutex<Arc<Listener>>);

impl ListenerHandle {
    pub(crate) fn new(listener: Listener) -> Self {
        Self(Mutex::new(Arc::new(listener)))
    }

    pub(crate) fn load(&self) -> Arc<Listener> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the settings for new connections.
    pub(crate) fn store(&self, settings: &config::ListenerSettings) {
        let mut listener = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *listener = Arc::new(Listener {
            name: Arc::clone(&listener.name),
            kind: listener.kind,
            descriptors: listener.descriptors,
            settings: settings_of(listener.kind, settings),
            thread_counters: Arc::clone(&listener.thread_counters),
            counters: Arc::clone(&listener.counters),
        });
    }
}

/// The identity of a connection: its id, its listener and its peer.
pub(crate) struct ConnectionInfo {
    /// Counted from 1 across all listeners.
    pub(crate) id: u64,
    pub(crate) listener: Arc<Listener>,
    pub(crate) peer: Peer,
}
