//! Serves listening sockets and their connections. The embedder passes the sockets and says when to stop; this module
//! neither binds sockets, nor reads signals or files, nor logs.
//!
//! ```text
//! accept (first worker) ── permit ──► connection (on the worker with the fewest)
//!                            │          socket → scratch → session → socket
//!                            └─ PROXY header ─┘ where the listener demands one
//! datagram (first worker) ── rate limit ──► socket → buffer → socket
//! ```

mod accept;
mod admission;
mod connection;
mod disposal;
pub mod event;
mod event_loop;
mod handover;
mod listener_error;
mod outlet;
mod packets;
mod peer_descriptors;
mod peer_input;
mod peer_progress;
pub mod proxy;
mod receive_buffer;
mod receive_window;
mod reclaim;
pub mod socket;
mod socket_error;
mod socket_memory;
mod socket_options;
mod timers;
mod unserved;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use crate::address::UnixName;
use crate::config::{self, Settings};
use crate::protocol::rules::TimeSpan;
use accept::{Dispatcher, Listener, ListenerHandle};
use admission::Admission;
use disposal::Disposal;
use event::{Event, EventHandler, MessageLog, UnloggedMessages};
use listener_error::Backoff;
use packets::datagram_server::DatagramServer;
use packets::rate_limit::RateLimiter;
use packets::sender_socket::ReservedSockets;
use packets::user_threads::UserThreads;
use peer_descriptors::PeerDescriptors;
use reclaim::Reclaimer;
use socket::SocketKind;
use worker::{EventSink, Worker, WorkerThread};

pub use handover::{Detached, DetachedConnection, Restored};
pub use worker::Counts;

/// A running server. Dropping it ends everything at once.
pub struct Server {
    dispatcher: Arc<Dispatcher>,
    /// The listeners that are served. A reload replaces their settings.
    listeners: Mutex<Vec<Arc<ListenerHandle>>>,
    acceptor_status: Arc<watch::Sender<AcceptorStatus>>,
    accept_mode: watch::Sender<AcceptMode>,
    reserved: Mutex<ReservedSockets>,
    /// Send replies to paths, for all listeners.
    user_threads: UserThreads,
    unlogged: Arc<UnloggedMessages>,
    threads: Vec<WorkerThread>,
}

/// What the acceptors are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AcceptMode {
    /// Accept.
    Accept,
    /// Probe the backlog once; then accept nothing until the mode is [`AcceptMode::Accept`] again.
    Probe,
    /// Close the socket and end.
    Stop,
}

/// The state of all acceptors together.
#[derive(Debug, Default)]
struct AcceptorStatus {
    /// Listeners being served.
    serving: usize,
    /// Acceptors that have probed their backlog.
    probed: usize,
    /// Whether one of them found a client.
    found_client: bool,
}

impl AcceptorStatus {
    /// Records that an acceptor has probed its backlog, and whether it found a client.
    fn record_probe(&mut self, found_client: bool) {
        self.probed += 1;
        self.found_client |= found_client;
    }
}

impl Server {
    /// Starts the workers. They do nothing until there is something to serve.
    ///
    /// # Errors
    /// A thread or its reactor cannot be made.
    pub fn start(
        settings: &Settings,
        handle_event: EventHandler,
        message_log: Arc<dyn MessageLog>,
    ) -> io::Result<Self> {
        let admission = Admission::new(&settings.limits);
        let unlogged = Arc::<UnloggedMessages>::default();
        let sink = EventSink { handle_event: Arc::clone(&handle_event), message_log, unlogged: Arc::clone(&unlogged) };
        let disposal = Disposal::default();
        let start = |number| WorkerThread::start(number, &sink, &disposal);
        let threads = (0..settings.service.worker_threads()).map(start).collect::<io::Result<Vec<_>>>()?;
        let workers = threads.iter().map(|thread| Arc::clone(&thread.worker)).collect();
        let rate_limiter = RateLimiter::new(settings.limits.datagrams_per_source);
        let (last_id, pending_cancelled) = (AtomicU64::new(0), watch::Sender::new(false));
        let reclaimer = Reclaimer::new(reclaim_idle(settings));
        let dispatcher = Dispatcher {
            admission,
            workers,
            disposal,
            handle_event,
            last_id,
            rate_limiter,
            reclaimer,
            pending_cancelled,
        };
        Ok(Self {
            dispatcher: Arc::new(dispatcher),
            listeners: Mutex::default(),
            acceptor_status: Arc::default(),
            accept_mode: watch::Sender::new(AcceptMode::Accept),
            reserved: Mutex::default(),
            user_threads: UserThreads::default(),
            unlogged,
            threads,
        })
    }

    /// Reserves Unix sockets: listeners of datagrams that are served from now on send no reply to them, whatever sender
    /// a datagram claims. To be used for sockets whose owners trust this process.
    pub fn reserve_sockets(&self, sockets: impl IntoIterator<Item = UnixName>) {
        *self.reserved.lock().unwrap_or_else(PoisonError::into_inner) = sockets.into_iter().collect();
    }

    /// Sets how many descriptors that peers sent over Unix sockets may wait to be closed. At first it is
    /// [`MAX_PEER_FDS`](crate::rlimit::MAX_PEER_FDS).
    pub fn limit_peer_descriptors(&self, max_waiting: usize) {
        self.dispatcher.disposal.set_max_waiting(max_waiting);
    }

    /// Serves a listening socket, or one of datagrams, under a name, by these settings. When this returns, connections
    /// are accepted, or datagrams received.
    ///
    /// # Errors
    /// The socket cannot be prepared or registered.
    pub fn listen(&self, socket: OwnedFd, name: &str, settings: &config::ListenerSettings) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        socket_options::set(&socket, settings)?;
        let kind = SocketKind::of(&socket)?;
        let descriptors = PeerDescriptors::refuse(&socket);
        if descriptors != PeerDescriptors::None && kind == SocketKind::Stream {
            peer_descriptors::merge_writers(&socket);
        }
        let listener = Arc::new(ListenerHandle::new(new_listener(name, kind, descriptors, settings)));
        let acceptor = self.threads.first().map(|thread| &thread.worker).ok_or(io::ErrorKind::NotFound)?;
        let reserved = Arc::clone(&self.reserved.lock().unwrap_or_else(PoisonError::into_inner));
        let mut served = ServedSocket::new(socket, kind, acceptor, &self.user_threads, reserved)?;
        self.listeners().push(Arc::clone(&listener));
        let (dispatcher, status) = (Arc::clone(&self.dispatcher), Arc::clone(&self.acceptor_status));
        let mut mode = self.accept_mode.subscribe();
        status.send_modify(|status| status.serving += 1);
        acceptor.spawn(async move {
            let ended = match &mut served {
                ServedSocket::Connections(socket) => {
                    run_acceptor(socket, &listener, &dispatcher, &status, &mut mode).await
                }
                ServedSocket::Datagrams(server) => server.run(&listener, &dispatcher, &status, &mut mode).await,
            };
            served.close(&listener.load(), &dispatcher);
            // Not earlier: `drain` waits until this receiver is dropped.
            drop(mode);
            if let Err(error) = ended {
                (dispatcher.handle_event)(Event::ListenerFailed { listener: Arc::clone(&listener.load().name), error });
            }
            status.send_modify(|status| status.serving -= 1);
        });
        Ok(())
    }

    /// Serves a connection that another process accepted.
    ///
    /// # Errors
    /// Returns an error if no permit is available, or if the socket cannot be prepared.
    pub fn adopt(&self, socket: OwnedFd, name: &str, settings: &config::ListenerSettings) -> io::Result<()> {
        let full = || io::Error::new(io::ErrorKind::QuotaExceeded, "limits.connections is reached");
        rustix::io::ioctl_fionbio(&socket, true)?;
        let descriptors = PeerDescriptors::refuse(&socket);
        let listener = Arc::new(new_listener(name, SocketKind::of(&socket)?, descriptors, settings));
        let permit = self.dispatcher.admission.try_acquire(listener.awaits_header()).ok_or_else(full)?;
        self.dispatcher.dispatch(socket, None, &listener, false, permit);
        Ok(())
    }

    /// From now on, new connections obey these settings, and all connections these limits. The number of workers and
    /// what is listened on stay.
    pub fn reload(&self, settings: &Settings) {
        self.dispatcher.rate_limiter.set_limit(settings.limits.datagrams_per_source);
        self.dispatcher.reclaimer.set_min_idle(reclaim_idle(settings));
        for listener in &*self.listeners() {
            listener.store(settings.listener_settings(&listener.load().name));
        }
        // Last: it wakes acceptors that wait for a permit.
        self.dispatcher.admission.set_limits(&settings.limits);
    }

    /// Waits until the last listener has failed. Never returns while one is served, or if there was none.
    pub async fn all_listeners_failed(&self) {
        if self.listeners().is_empty() {
            std::future::pending::<()>().await;
        }
        // The sender is here, so there is no error.
        let _ = self.acceptor_status.subscribe().wait_for(|status| status.serving == 0).await;
    }

    /// Waits until there is no connection, served or refused.
    pub async fn wait_until_idle(&self) {
        self.dispatcher.admission.wait_until_idle().await;
    }

    /// Returns for how long there has been no connection, served or refused; `None` while there is one.
    #[must_use]
    pub fn idle_for(&self) -> Option<Duration> {
        self.dispatcher.admission.idle_for()
    }

    /// Stops accepting, unless a client is waiting in a backlog, or the server was in use within the last `unused`.
    /// Returns whether it stopped; later clients then wait in the backlog for the next process.
    pub async fn stop_if_idle(&self, unused: Duration) -> bool {
        self.acceptor_status.send_modify(|status| (status.probed, status.found_client) = (0, false));
        self.accept_mode.send_replace(AcceptMode::Probe);
        let mut status = self.acceptor_status.subscribe();
        let all_probed = status.wait_for(|status| status.probed >= status.serving).await;
        let idle = all_probed.is_ok_and(|status| !status.found_client);
        if !idle {
            // Also if it is not known whether a client waits: the next attempt is as far away as this one was.
            self.dispatcher.admission.note_use();
        }
        // A client that came before the probe may have been accepted without it, and may have gone again.
        let idle = idle && self.idle_for().is_some_and(|idle| idle >= unused);
        if !idle {
            self.accept_mode.send_replace(AcceptMode::Accept);
        }
        idle
    }

    /// Stops accepting, and drains every connection. Returns when all acceptors have ended, those of datagrams when their
    /// message is logged; [`Server::wait_until_idle`] waits until the connections have ended.
    pub async fn drain(&self) {
        self.accept_mode.send_replace(AcceptMode::Stop);
        // Also the connections drain that are accepted meanwhile, or waited for something.
        for thread in &self.threads {
            thread.worker.drain();
        }
        // Every acceptor keeps its receiver until it has dropped its socket.
        self.accept_mode.closed().await;
        self.dispatcher.cancel_pending().await;
    }

    /// Gives up the connections whose peers do not take replies: their messages that have to be logged whole are logged, and not
    /// answered. Returns when each worker has begun with that; [`UnloggedMessages::waiting`] says what waits for the log.
    pub async fn log_blocked(&self) {
        for thread in &self.threads {
            thread.worker.give_up_blocked();
        }
        self.dispatcher.barrier().await;
    }

    /// Waits until every worker has run a task for this, which it does between two passes of its event loop.
    pub async fn ping_workers(&self) {
        for thread in &self.threads {
            let (pong, ponged) = oneshot::channel();
            thread.worker.spawn(async move {
                // The caller may have stopped waiting.
                let _ = pong.send(());
            });
            // An error means that the worker is gone, with everything else.
            let _ = ponged.await;
        }
    }

    /// Returns the counts of messages that the log has not accepted. They can be read after the server has ended.
    #[must_use]
    pub fn unlogged_messages(&self) -> Arc<UnloggedMessages> {
        Arc::clone(&self.unlogged)
    }

    /// Listeners being served.
    #[must_use]
    pub fn listener_count(&self) -> usize {
        self.acceptor_status.borrow().serving
    }

    /// How many connections are served at once at most.
    #[must_use]
    pub fn connection_limit(&self) -> usize {
        self.dispatcher.admission.limit()
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Arc<ListenerHandle>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections being served.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.dispatcher.admission.serving()
    }

    /// Returns the counters of all workers, added up.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for thread in &self.threads {
            thread.worker.counters.add_to(&mut counts);
        }
        counts
    }
}

fn reclaim_idle(settings: &Settings) -> Option<Duration> {
    settings.limits.reclaim_idle.as_ref().map(TimeSpan::duration)
}

fn new_listener(
    name: &str,
    kind: SocketKind,
    descriptors: PeerDescriptors,
    settings: &config::ListenerSettings,
) -> Listener {
    Listener { name: name.into(), kind, descriptors, settings: settings.clone() }
}

/// A socket that is being served.
enum ServedSocket {
    /// Connections are accepted on it.
    Connections(UnixStream),
    Datagrams(Box<DatagramServer>),
}

impl ServedSocket {
    /// Closes the socket. Connections in its backlog may have descriptors queued, if no other process holds it.
    fn close(self, listener: &Listener, dispatcher: &Dispatcher) {
        match self {
            Self::Connections(socket) if listener.descriptors != PeerDescriptors::None => {
                if let Ok(socket) = socket.into_std() {
                    dispatcher.disposal.close(socket.into(), None);
                }
            }
            Self::Connections(socket) => drop(socket),
            Self::Datagrams(server) => server.close(),
        }
    }

    fn new(
        socket: OwnedFd,
        kind: SocketKind,
        worker: &Arc<Worker>,
        threads: &UserThreads,
        reserved: ReservedSockets,
    ) -> io::Result<Self> {
        Ok(match kind {
            SocketKind::Stream | SocketKind::Seqpacket => Self::Connections(worker.register(socket)?),
            SocketKind::Datagram => {
                Self::Datagrams(Box::new(DatagramServer::open(socket, worker, threads.clone(), reserved)?))
            }
        })
    }
}

/// Runs the acceptor of a listener as the mode says, until it is [`AcceptMode::Stop`].
///
/// # Errors
/// Returns an error if the listener failed.
async fn run_acceptor(
    socket: &UnixStream,
    listener: &ListenerHandle,
    dispatcher: &Arc<Dispatcher>,
    status: &watch::Sender<AcceptorStatus>,
    mode: &mut watch::Receiver<AcceptMode>,
) -> io::Result<()> {
    let mut backoff = Backoff::default();
    loop {
        let now = *mode.borrow_and_update();
        match now {
            AcceptMode::Accept => {}
            AcceptMode::Probe => {
                let found_client = accept::probe_backlog(socket, listener, dispatcher);
                status.send_modify(|status| status.record_probe(found_client));
            }
            AcceptMode::Stop => return Ok(()),
        }
        tokio::select! {
            changed = mode.changed() => {
                if changed.is_err() {
                    // The server is gone.
                    return Ok(());
                }
            }
            error = accept::accept(socket, listener, dispatcher, &mut backoff), if now == AcceptMode::Accept => {
                return Err(error);
            }
        }
    }
}
