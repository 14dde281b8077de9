//! Serves listening sockets and their connections. The embedder passes the sockets and decides when to stop. This module does
//! not bind sockets, does not read signals or files, and does not log.
//!
//! ```text
//! accept (first worker) ── permit ──► connection (on the worker with the fewest)
//!                            │          socket → scratch → session → socket
//!                            └─ PROXY header (services) ─┘ where the listener demands one
//! datagram (a thread for each socket) ── rate limit ──► socket → buffer → socket
//! ```

mod accept_mode;
mod accepted_socket;
mod acceptor;
mod admission;
mod awaiting_headers;
mod clock;
mod connection;
mod counters;
mod dispatch;
mod disposal;
pub mod event;
mod event_loop;
mod handle;
mod handover;
mod health;
mod idleness;
mod input_kind;
mod listener;
mod listener_error;
mod lister;
mod listing;
mod mailbox;
mod outlet;
mod packet_scratch;
mod packet_socket;
mod packets;
pub mod peer;
mod peer_descriptors;
mod peer_input;
mod peer_progress;
mod proxy;
pub mod proxy_header;
mod receive_buffer;
mod receive_window;
mod reclaim;
mod service_listener;
mod service_stream;
mod services;
pub mod socket;
mod socket_error;
mod socket_memory;
mod socket_options;
mod timers;
mod unserved;
mod worker;
mod worker_state;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time;

use crate::address::UnixName;
use crate::config::{self, Role, Settings};
use crate::protocol::rules::TimeSpan;
use accept_mode::{AcceptControl, AcceptMode, AcceptorStatus};
use acceptor::{AdoptedConnection, ListenerAcceptor};
use admission::Admission;
use awaiting_headers::AwaitingHeaders;
use counters::CounterRegistry;
use dispatch::Dispatcher;
use disposal::Disposal;
use event::{Event, EventHandler, EventSink, MessageLog, UnloggedMessages};
use health::Health;
use listener::{Listener, ListenerHandle};
use mailbox::AcceptorWaker;
use packets::datagram_server::{DatagramServer, Limits};
use packets::datagram_thread::{DatagramThread, ThreadControl};
use packets::path_replies::ReplyThreads;
use packets::rate_limit::RateLimiter;
use packets::sender_socket::ReservedSockets;
use peer_descriptors::PeerDescriptors;
use reclaim::Reclaimer;
use service_listener::ServiceListener;
use services::Services;
use socket::SocketKind;
use worker::{HANG_TIMEOUT, WorkerThread};
use worker_state::WorkerState;

pub use connection::DetachedConnection;
pub use counters::{Counts, ListenerCounts};
pub use handle::ServerHandle;
pub use handover::{Detached, Restored};
pub use health::{Phase, Readiness};
pub use lister::ConnectionLister;
pub use listing::ConnectionStatus;
pub use service_listener::{ConnectionControl, ConnectionService, ServiceFuture};
pub use service_stream::ServiceStream;

/// How long connections that tasks serve may take to end when the server does.
const STOP_SERVICES_TIMEOUT: Duration = Duration::from_secs(1);

/// The number of event loop passes that serve a waiting client: one begins to watch the listener, one accepts the connection,
/// one reads and replies.
const FIRST_PASSES: usize = 3;

/// A running server. Dropping it ends all connections and threads at once.
pub struct Server {
    dispatcher: Arc<Dispatcher>,
    /// The listeners being served. A reload replaces their settings.
    listeners: Mutex<Vec<Arc<ListenerHandle>>>,
    acceptor_status: Arc<watch::Sender<AcceptorStatus>>,
    accept_mode: watch::Sender<AcceptMode>,
    reserved: Mutex<ReservedSockets>,
    /// The threads that send replies to paths, for all listeners.
    reply_threads: ReplyThreads,
    unlogged: Arc<UnloggedMessages>,
    threads: Vec<WorkerThread>,
    datagram_threads: Mutex<Vec<DatagramThread>>,
    handle: ServerHandle,
    /// How many connections there may be to the listeners of each role that workers do not serve.
    service_permits: Mutex<BTreeMap<Role, Arc<Semaphore>>>,
    /// What serves those listeners, each with the name of its listener.
    services: Mutex<Vec<(String, Arc<dyn ConnectionService>)>>,
    /// Whether those listeners and their connections are to end.
    services_stopped: watch::Sender<bool>,
}

impl Server {
    /// Creates a server, and starts its workers, which are idle until [`Server::listen`] or [`Server::adopt`].
    ///
    /// # Errors
    /// Returns the errors of [`Server::new`] and [`Server::start_workers`].
    pub fn start(
        settings: &Settings,
        handler: Arc<dyn EventHandler>,
        message_log: Arc<dyn MessageLog>,
    ) -> io::Result<Self> {
        let mut server = Self::new(settings, handler, message_log)?;
        server.start_workers()?;
        Ok(server)
    }

    /// Creates a server. [`Server::start_workers`] starts its workers.
    ///
    /// # Errors
    /// Returns an error if the epoll set or the mailbox of a worker cannot be created.
    pub fn new(
        settings: &Settings,
        handler: Arc<dyn EventHandler>,
        message_log: Arc<dyn MessageLog>,
    ) -> io::Result<Self> {
        let unlogged = Arc::<UnloggedMessages>::default();
        let sink = EventSink { handler, message_log, unlogged: Arc::clone(&unlogged) };
        let disposal = Disposal::default();
        let workers = settings.service.worker_threads().max(1);
        let threads = (0..workers).map(|number| WorkerThread::new(number, &sink, &disposal));
        let threads = threads.collect::<io::Result<Vec<_>>>()?;
        let workers: Vec<_> = threads.iter().map(|thread| thread.worker.clone()).collect();
        let acceptors = Waker::from(Arc::new(AcceptorWaker(Arc::clone(&workers[0].mailbox))));
        let dispatcher = Dispatcher {
            admission: Admission::new(&settings.limits, acceptors.clone()),
            workers,
            services: Arc::new(Services::new(WorkerState::new(threads.len(), sink.clone(), disposal))),
            sink,
            // One more than workers: that of the services.
            counters: CounterRegistry::new(threads.len() + 1),
            last_id: AtomicU64::new(0),
            rate_limiter: RateLimiter::new(settings.limits.datagrams_per_source),
            reclaimer: Reclaimer::new(reclaim_idle(settings)),
            acceptors,
            reclaim: Mutex::default(),
            pending_cancelled: watch::Sender::new(false),
            awaiting_headers: AwaitingHeaders::default(),
        };
        let (dispatcher, acceptor_status) = (Arc::new(dispatcher), Arc::<watch::Sender<AcceptorStatus>>::default());
        let handle = ServerHandle {
            dispatcher: Arc::clone(&dispatcher),
            acceptor_status: Arc::clone(&acceptor_status),
            health: Health::new(Arc::clone(&acceptor_status)),
            datagram_threads: Arc::default(),
            one_slice: Arc::default(),
        };
        Ok(Self {
            dispatcher,
            listeners: Mutex::default(),
            acceptor_status,
            accept_mode: watch::Sender::new(AcceptMode::Accept),
            reserved: Mutex::default(),
            reply_threads: ReplyThreads::default(),
            unlogged,
            threads,
            datagram_threads: Mutex::default(),
            handle,
            service_permits: Mutex::default(),
            services: Mutex::default(),
            services_stopped: watch::Sender::new(false),
        })
    }

    /// Serves the clients that are already waiting, on the calling thread, without blocking. Call it before
    /// [`Server::start_workers`]: a client whose connection started this process then gets its reply before threads are
    /// created.
    pub fn serve_waiting_clients(&mut self) {
        for _ in 0..FIRST_PASSES {
            self.threads.iter_mut().for_each(WorkerThread::pass_once);
        }
    }

    /// Starts the workers that are not running.
    ///
    /// # Errors
    /// Returns an error if a thread cannot be created.
    pub fn start_workers(&mut self) -> io::Result<()> {
        self.threads.iter_mut().enumerate().try_for_each(|(number, thread)| thread.start(number))
    }

    /// Reserves Unix sockets: datagram listeners that are added afterwards never reply to them, whatever sender address a
    /// datagram claims. Meant for sockets whose owners trust this process.
    pub fn reserve_sockets(&self, sockets: impl IntoIterator<Item = UnixName>) {
        *self.reserved.lock().unwrap_or_else(PoisonError::into_inner) = sockets.into_iter().collect();
    }

    /// Sets how many file descriptors from peers may wait to be closed. The default is
    /// [`MAX_PEER_FDS`](crate::rlimit::MAX_PEER_FDS).
    pub fn limit_peer_descriptors(&self, max_waiting: usize) {
        self.dispatcher.services.state.disposal.set_max_waiting(max_waiting);
    }

    /// Starts to serve a listening socket, or a datagram socket, under a name and with these settings.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be prepared, or if a thread that it needs cannot be started.
    pub fn listen(&self, socket: OwnedFd, name: &str, settings: &config::ListenerSettings) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        socket_options::set(&socket, settings)?;
        let kind = SocketKind::of(&socket)?;
        let descriptors = PeerDescriptors::refuse(&socket);
        match kind {
            SocketKind::Stream if descriptors != PeerDescriptors::None => peer_descriptors::merge_writers(&socket),
            SocketKind::Seqpacket => packet_socket::prepare(&socket)?,
            SocketKind::Stream | SocketKind::Datagram => {}
        }
        let counters = self.dispatcher.counters.of_listener(name);
        let listener = Arc::new(ListenerHandle::new(Listener::new(name, kind, descriptors, settings, counters)));
        let status = Arc::clone(&self.acceptor_status);
        let control = AcceptControl { mode: self.accept_mode.subscribe(), status };
        match kind {
            SocketKind::Datagram => self.serve_datagrams(socket, Arc::clone(&listener), control)?,
            SocketKind::Stream | SocketKind::Seqpacket => {
                if listener.load().awaits_header() {
                    // Its connections need the services: a failure is reported now, and not with each connection.
                    self.dispatcher.services.start()?;
                }
                let (dispatcher, worker) = (Arc::clone(&self.dispatcher), &self.threads[0].worker);
                let state = Arc::clone(&worker.state);
                self.acceptor_status.send_modify(|status| status.serving += 1);
                let acceptor = ListenerAcceptor::new(socket, Arc::clone(&listener), dispatcher, state, control);
                worker.accept(Box::new(acceptor));
            }
        }
        self.listeners().push(listener);
        Ok(())
    }

    /// Serves a datagram socket on a separate thread.
    fn serve_datagrams(
        &self,
        socket: OwnedFd,
        listener: Arc<ListenerHandle>,
        mut accept: AcceptControl,
    ) -> io::Result<()> {
        let dispatcher = Arc::clone(&self.dispatcher);
        let reserved = Arc::clone(&self.reserved.lock().unwrap_or_else(PoisonError::into_inner));
        let control = Arc::new(ThreadControl::new()?);
        let disposal = dispatcher.services.state.disposal.clone();
        let counters = dispatcher.counters.of_listener(&listener.load().name).add_datagram_socket();
        let (threads, shared) = (self.reply_threads.clone(), (dispatcher.sink.clone(), disposal));
        let mut server = DatagramServer::open(socket, threads, reserved, shared, counters, &control)?;
        let status = Arc::clone(&accept.status);
        status.send_modify(|status| status.serving += 1);
        let serve = move || {
            let limits = Limits { admission: &dispatcher.admission, rate_limiter: &dispatcher.rate_limiter };
            let ended = server.run(&listener, limits, &mut accept);
            server.close();
            let AcceptControl { mode, status } = accept;
            // Dropped only now: `drain` waits for this.
            drop(mode);
            let has_failed = ended.is_err();
            if let Err(error) = ended {
                let listener = Arc::clone(&listener.load().name);
                dispatcher.sink.report(Event::ListenerFailed { listener, error });
            }
            status.send_modify(|status| status.record_end(has_failed));
        };
        let started = DatagramThread::start(control, serve);
        if started.is_err() {
            status.send_modify(|status| status.serving -= 1);
        }
        let thread = started?;
        let mut controls = self.handle.datagram_threads.lock().unwrap_or_else(PoisonError::into_inner);
        controls.push(Arc::clone(&thread.control));
        self.datagram_threads().push(thread);
        Ok(())
    }

    /// Serves a listening socket by tasks, under a name. All listeners with one role share its permits.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be prepared, or if there is no thread for the tasks.
    pub fn listen_service(
        &self,
        socket: OwnedFd,
        name: &str,
        role: Role,
        service: Arc<dyn ConnectionService>,
    ) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let mut permits = self.service_permits.lock().unwrap_or_else(PoisonError::into_inner);
        let permits = permits.entry(role).or_insert_with(|| Arc::new(Semaphore::new(role.permits())));
        let listener = ServiceListener {
            name: name.into(),
            socket,
            service: Arc::clone(&service),
            permits: Arc::clone(permits),
            admission: Arc::clone(&self.dispatcher.admission),
            disposal: self.dispatcher.services.state.disposal.clone(),
            sink: self.dispatcher.sink.clone(),
            mode: self.accept_mode.subscribe(),
            status: Arc::clone(&self.acceptor_status),
            stop: self.services_stopped.subscribe(),
        };
        self.acceptor_status.send_modify(|status| status.services += 1);
        let spawned = self.dispatcher.services.spawn(listener.run());
        match spawned {
            Ok(()) => self.services.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), service)),
            Err(_) => self.acceptor_status.send_modify(|status| status.services -= 1),
        }
        spawned
    }

    /// Stops the listeners that tasks serve, and waits until their connections have ended, for a second at most.
    pub async fn stop_services(&self) {
        self.services_stopped.send_replace(true);
        let _ = time::timeout(STOP_SERVICES_TIMEOUT, self.services_stopped.closed()).await;
    }

    /// Returns what others may know of the server.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Serves one connection that another process accepted.
    ///
    /// # Errors
    /// Returns an error if no permit is available, or if the socket cannot be prepared.
    pub fn adopt(&self, socket: OwnedFd, name: &str, settings: &config::ListenerSettings) -> io::Result<()> {
        let full = || io::Error::new(io::ErrorKind::QuotaExceeded, "limits.connections is reached");
        rustix::io::ioctl_fionbio(&socket, true)?;
        let descriptors = PeerDescriptors::refuse(&socket);
        let counters = self.dispatcher.counters.of_listener(name);
        let listener = Arc::new(Listener::new(name, SocketKind::of(&socket)?, descriptors, settings, counters));
        let permit = self.dispatcher.admission.try_acquire(listener.awaits_header()).ok_or_else(full)?;
        let (dispatcher, worker) = (Arc::clone(&self.dispatcher), &self.threads[0].worker);
        let (accepted, state) = (Some((socket, permit)), Arc::clone(&worker.state));
        worker.accept(Box::new(AdoptedConnection { accepted, listener, dispatcher, state }));
        Ok(())
    }

    /// Applies new settings: the limits at once, the rest to new connections. The number of workers and the set of listeners
    /// stay as they are.
    pub fn reload(&self, settings: &Settings) {
        self.dispatcher.rate_limiter.set_limit(settings.limits.datagrams_per_source);
        self.dispatcher.reclaimer.set_min_idle(reclaim_idle(settings));
        for listener in &*self.listeners() {
            listener.store(settings.listener_settings(&listener.load().name));
        }
        for (name, service) in &*self.services.lock().unwrap_or_else(PoisonError::into_inner) {
            service.reload(settings.listener_settings(name));
        }
        // Last, because it wakes acceptors that wait for a permit.
        self.dispatcher.admission.set_limits(&settings.limits);
    }

    /// Waits until all listeners of messages have failed; if there was none, until all others have. Never returns if there was
    /// no listener.
    pub async fn all_listeners_failed(&self) {
        let serves_messages = !self.listeners().is_empty();
        if !serves_messages && self.acceptor_status.borrow().services == 0 {
            std::future::pending::<()>().await;
        }
        let has_failed = |status: &AcceptorStatus| {
            if serves_messages { status.serving == 0 } else { status.services == 0 }
        };
        // The sender is a field of `self`, so this cannot fail.
        let _ = self.acceptor_status.subscribe().wait_for(has_failed).await;
    }

    /// Waits until there is no connection, including refused ones.
    pub async fn wait_until_idle(&self) {
        self.dispatcher.admission.wait_until_idle().await;
    }

    /// Returns for how long there has been no connection, including refused ones; `None` while there is one.
    #[must_use]
    pub fn idle_for(&self) -> Option<Duration> {
        self.dispatcher.admission.idle_for()
    }

    /// Stops accepting, unless a client is waiting in a backlog, or the server was in use within the last `unused`. Returns
    /// whether it has stopped. Later clients wait in the backlog for the next process.
    pub async fn stop_if_idle(&self, unused: Duration) -> bool {
        self.acceptor_status.send_modify(|status| (status.probed, status.found_client) = (0, false));
        self.set_accept_mode(AcceptMode::Probe);
        let mut status = self.acceptor_status.subscribe();
        let all_probed = status.wait_for(AcceptorStatus::has_probed).await;
        let idle = all_probed.is_ok_and(|status| !status.found_client);
        if !idle {
            // Also if the probe has failed: the next attempt is made after another full idle time.
            self.dispatcher.admission.note_use();
        }
        // A client that connected before the probe may have been served and gone by now.
        let idle = idle && self.idle_for().is_some_and(|idle| idle >= unused);
        // A signal may have come meanwhile. The process that is started for the next client would not be in lame duck.
        let idle = idle && self.handle.phase() == Phase::Serving;
        if !idle {
            self.set_accept_mode(AcceptMode::Accept);
        }
        idle
    }

    /// Stops accepting, and drains every connection. Returns when all acceptors and datagram servers have ended; a datagram
    /// server first logs the message that it has received. [`Server::wait_until_idle`] waits until the connections have ended.
    pub async fn drain(&self) {
        self.set_accept_mode(AcceptMode::Stop);
        let draining = DrainOnDrop(self);
        // After the ping, the acceptors have closed their sockets. Datagram servers may still wait for the log; the connections
        // do not wait for them.
        let _ = time::timeout(HANG_TIMEOUT, self.threads[0].worker.ping()).await;
        drop(draining);
        // Every acceptor keeps its receiver until it has dropped its socket.
        self.accept_mode.closed().await;
        self.dispatcher.cancel_pending().await;
    }

    /// Sets the mode of all acceptors and datagram servers.
    fn set_accept_mode(&self, mode: AcceptMode) {
        self.accept_mode.send_replace(mode);
        self.threads[0].worker.run_acceptors();
        self.wake_datagram_threads();
    }

    /// Gives up the connections whose peers do not read replies: messages for the lossless log are logged, and not answered.
    /// Returns when each worker has begun. [`UnloggedMessages::waiting`] then tells how many messages wait for the log.
    pub async fn log_blocked(&self) {
        for thread in &self.threads {
            thread.worker.give_up_blocked();
        }
        // A worker that hangs would block this forever.
        let _ = time::timeout(HANG_TIMEOUT, self.dispatcher.barrier()).await;
    }

    /// Waits until every serving thread has responded: each event loop and each datagram server between two passes, and the
    /// services with a task.
    pub async fn ping_workers(&self) {
        self.handle.ping_workers().await;
        self.dispatcher.services.ping().await;
    }

    /// Returns the counts of messages that the log has not accepted. They stay readable after the server has ended.
    #[must_use]
    pub fn unlogged_messages(&self) -> Arc<UnloggedMessages> {
        Arc::clone(&self.unlogged)
    }

    fn wake_datagram_threads(&self) {
        self.datagram_threads().iter().for_each(|thread| thread.control.notify());
    }

    fn datagram_threads(&self) -> MutexGuard<'_, Vec<DatagramThread>> {
        self.datagram_threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Arc<ListenerHandle>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of connections being served.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.dispatcher.admission.serving()
    }

    /// Returns the sum of the counters of all threads.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.dispatcher.counters.counts()
    }
}

fn reclaim_idle(settings: &Settings) -> Option<Duration> {
    settings.limits.reclaim_idle.as_ref().map(TimeSpan::duration)
}

/// Drains all connections when it is dropped, also if the future that owns it is cancelled. Connections that are not assigned
/// to a worker yet drain as well.
struct DrainOnDrop<'a>(&'a Server);

impl Drop for DrainOnDrop<'_> {
    fn drop(&mut self) {
        for thread in &self.0.threads {
            thread.worker.drain();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.datagram_threads().clear();
        // The services end before the workers, because their tasks may still assign connections to a worker.
        self.dispatcher.services.end();
    }
}
