//! Accepting: one task for each listener, all on the first worker, for all workers. (A listener that every worker polls
//! wakes all of them for each connection.) A permit is acquired before a connection is accepted, so that connections
//! that do not fit wait in the kernel's backlog: but one, if an idle connection may be closed for it (`reclaim.rs`). That
//! depends on its source, which accept(2) tells.

use std::future::pending;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task;
use tokio::time;

use super::admission::{Admission, Permit, Shortage};
use super::connection::{Connection, ConnectionInfo, clock};
use super::disposal::Disposal;
use super::event::{Event, EventHandler, Retry};
use super::listener_error::{self, Backoff, ListenerErrorKind, MAX_PAUSE};
use super::packets::rate_limit::RateLimiter;
use super::packets::seqpacket;
use super::peer_descriptors::PeerDescriptors;
use super::proxy::PendingHeader;
use super::reclaim::{self, Reclaimer};
use super::socket::{AcceptedSocket, Peer, SocketKind};
use super::socket_options;
use super::unserved;
use super::worker::{HANG_TIMEOUT, Worker};
use crate::config;
use crate::protocol::{Session, Verdict};

/// How many connections are accepted before the first worker's connections run.
const BATCH: usize = 32;

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Assigns connections to workers. The acceptors of all listeners share it.
pub(crate) struct Dispatcher {
    pub(crate) admission: Arc<Admission>,
    pub(crate) workers: Vec<Arc<Worker>>,
    pub(crate) disposal: Disposal,
    pub(crate) handle_event: EventHandler,
    pub(crate) last_id: AtomicU64,
    pub(crate) rate_limiter: RateLimiter,
    pub(crate) reclaimer: Reclaimer,
    /// Whether connections that wait for a PROXY header are to stop waiting. They and those with a pending slot have a
    /// receiver each.
    pub(crate) pending_cancelled: watch::Sender<bool>,
}

/// A listener, as a connection gets it when it is accepted: its name and its settings.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) name: Arc<str>,
    /// The kind of its socket.
    pub(crate) kind: SocketKind,
    /// Which descriptors peers may send: [`PeerDescriptors::refuse`].
    pub(crate) descriptors: PeerDescriptors,
    pub(crate) settings: config::ListenerSettings,
}

impl Listener {
    /// Returns whether its connections have to begin with a PROXY header. Packets have none.
    pub(crate) fn awaits_header(&self) -> bool {
        self.settings.proxy_protocol && self.kind == SocketKind::Stream
    }
}

/// The current [`Listener`], which new connections get. A reload replaces it.
#[derive(Debug)]
pub(crate) struct ListenerHandle(Mutex<Arc<Listener>>);

impl ListenerHandle {
    pub(crate) fn new(listener: Listener) -> Self {
        Self(Mutex::new(Arc::new(listener)))
    }

    pub(crate) fn load(&self) -> Arc<Listener> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the settings, for new connections.
    pub(crate) fn store(&self, settings: &config::ListenerSettings) {
        let mut listener = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *listener = Arc::new(Listener {
            name: Arc::clone(&listener.name),
            kind: listener.kind,
            descriptors: listener.descriptors,
            settings: settings.clone(),
        });
    }
}

/// Accepts connections until the listener fails, and returns the error. Otherwise runs until it is dropped. `backoff`
/// has the errors of earlier runs.
pub(crate) async fn accept(
    socket: &UnixStream,
    listener: &ListenerHandle,
    dispatcher: &Arc<Dispatcher>,
    backoff: &mut Backoff,
) -> io::Error {
    // The settings whose options the socket has.
    let mut applied: Option<Arc<Listener>> = None;
    // Whether the next connection has inherited them: not those that were in the backlog by then, which come first.
    let mut inherits = false;
    loop {
        if listener.load().descriptors != PeerDescriptors::None {
            dispatcher.disposal.wait_for_room().await;
        }
        dispatcher.wait_for_permit(socket, listener).await;
        // Enabled before the attempt, so that no descriptor becomes free unnoticed.
        let mut ended = pin!(dispatcher.admission.connection_ended().notified());
        ended.as_mut().enable();
        let ready = match socket.ready(Interest::READABLE).await {
            Ok(ready) => ready,
            Err(error) => return error,
        };
        let listener = listener.load();
        if !applied.as_ref().is_some_and(|applied| Arc::ptr_eq(applied, &listener)) {
            inherits = false;
            // Otherwise each connection gets them, and says what fails.
            applied = socket_options::set(socket, &listener.settings).is_ok().then(|| Arc::clone(&listener));
        }
        let (mut accepting, mut failure) = (false, None);
        for _ in 0..BATCH {
            let Some(permit) = dispatcher.try_acquire(&listener) else { break };
            let error = match socket.try_io(Interest::READABLE, || accept_one(socket)) {
                Ok((socket, from)) => {
                    backoff.record_success();
                    accepting = true;
                    dispatcher.dispatch(socket, from, &listener, inherits, permit);
                    continue;
                }
                Err(error) => error,
            };
            permit.release_unused();
            if error.kind() == ErrorKind::WouldBlock {
                inherits = applied.is_some();
                if listener_error::is_shut_down(ready) {
                    return listener_error::shut_down_error();
                }
                backoff.record_success();
                // Linux makes room for a connection before it looks whether there is one.
                accepting = true;
                break;
            }
            match ListenerErrorKind::of(&error) {
                ListenerErrorKind::Fatal => return listener_error::explain(error, socket),
                ListenerErrorKind::ResourcesExhausted => failure = Some((error, Retry::ConnectionEnded)),
                ListenerErrorKind::Transient => match backoff.record_error() {
                    Some(pause) => failure = Some((error, Retry::After(pause))),
                    None => continue,
                },
            }
            break;
        }
        let (name, kind) = (|| Arc::clone(&listener.name), listener.kind);
        if accepting && failure.is_none() && backoff.report_end() {
            (dispatcher.handle_event)(Event::AcceptResumed { listener: name(), kind });
        }
        let Some((error, retry)) = failure else {
            task::yield_now().await;
            continue;
        };
        if backoff.report_pause() {
            (dispatcher.handle_event)(Event::AcceptPaused { listener: name(), kind, error, retry });
        }
        // Also if what it waits for has happened already.
        task::yield_now().await;
        match retry {
            // An elapsed second is as good a reason to try again as an ended connection.
            Retry::ConnectionEnded => drop(time::timeout(MAX_PAUSE, ended).await),
            Retry::After(pause) => time::sleep(pause).await,
        }
    }
}

/// Probes the backlog, and accepts the first connection in it. Asks the kernel and not the reactor, which may not know
/// of it yet. Returns whether the listener must be served further: also when that could not be determined.
pub(crate) fn probe_backlog(socket: &UnixStream, listener: &ListenerHandle, dispatcher: &Arc<Dispatcher>) -> bool {
    let listener = listener.load();
    let Some(permit) = dispatcher.admission.try_acquire(listener.awaits_header()) else { return true };
    match accept_one(socket) {
        Ok((socket, from)) => {
            dispatcher.dispatch(socket, from, &listener, false, permit);
            true
        }
        Err(error) => {
            permit.release_unused();
            error.kind() != ErrorKind::WouldBlock
        }
    }
}

/// Waits until there is a client in the backlog. On a socket that was shut down there is none.
async fn client_waits(socket: &UnixStream) {
    loop {
        match socket.ready(Interest::READABLE).await {
            Ok(ready) if !listener_error::is_shut_down(ready) => {}
            _ => pending().await,
        }
        let mut polled = [PollFd::new(socket, PollFlags::IN)];
        // If that is unknown, there may be one.
        let is_there = !matches!(poll(&mut polled, Some(&NO_WAIT)), Ok(0));
        // The reactor does not know that the last one was accepted, unless it is told.
        let told =
            socket.try_io(Interest::READABLE, || if is_there { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) });
        if told.is_ok() {
            return;
        }
    }
}

fn accept_one(socket: impl AsFd) -> io::Result<(OwnedFd, Option<SocketAddrAny>)> {
    Ok(acceptfrom_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?)
}

impl Dispatcher {
    /// Returns the worker with the fewest connections.
    pub(crate) fn least_loaded_worker(&self) -> Option<&Arc<Worker>> {
        self.workers.iter().min_by_key(|worker| worker.open.load(Ordering::Relaxed))
    }

    /// Dispatches an accepted connection: it is served, or refused if its source has too many. If it has to begin with
    /// a PROXY header, its source is not known before that has come. `inherits` says that it has connected after the
    /// options of its listener were set.
    pub(crate) fn dispatch(
        self: &Arc<Self>,
        socket: OwnedFd,
        from: Option<SocketAddrAny>,
        listener: &Arc<Listener>,
        inherits: bool,
        mut permit: Permit,
    ) {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(worker) = self.least_loaded_worker() else { return };
        let peer = Peer::of(&socket, from);
        let socket = AcceptedSocket::new(socket, listener, inherits);
        (self.handle_event)(Event::Opened { id, listener: Arc::clone(&listener.name), peer });
        let info = ConnectionInfo { id, listener: Arc::clone(listener), peer };
        if !inherits {
            if let Err(error) = socket_options::set(&socket, &listener.settings) {
                return unserved::end_failed(worker, info, error, Some(socket), permit);
            }
        }
        if listener.awaits_header() {
            let session = Session::new(Arc::clone(&listener.settings.rules), clock());
            return PendingHeader { socket, session, info, permit }.spawn(self);
        }
        if permit.claim(peer.source()) {
            return self.assign(socket, info, permit, None);
        }
        let (mut cancelled, dispatcher) = (self.pending_cancelled.subscribe(), Arc::clone(self));
        let task = Arc::clone(worker);
        worker.spawn(async move {
            match dispatcher.claim_or_refuse(&mut permit, &mut cancelled).await {
                Ok(()) => dispatcher.assign(socket, info, permit, None),
                Err(verdict) if permit.refuse() => dispatcher.assign(socket, info, permit, Some(verdict)),
                // There are many of them: it is closed at once.
                Err(verdict) => {
                    unserved::report(&task, &info, clock(), verdict, None);
                    socket.close(&dispatcher.disposal, permit);
                }
            }
            // Not earlier: `cancel_pending` waits until this receiver is dropped.
            drop(cancelled);
        });
    }

    /// Returns a permit for one more connection of this listener, or one to be if an idle connection may be closed for it.
    fn try_acquire(&self, listener: &Listener) -> Option<Permit> {
        let undecided =
            || self.decides_before_reclaim(listener).then(|| self.admission.try_accept_undecided()).flatten();
        self.admission.try_acquire(listener.awaits_header()).or_else(undecided)
    }

    /// Returns whether connections are accepted without a permit, so that no other is closed for one that is refused. One that
    /// has to begin with a PROXY header may take its time until its source is known, so it needs a permit before.
    fn decides_before_reclaim(&self, listener: &Listener) -> bool {
        self.reclaimer.is_on() && !listener.awaits_header()
    }

    /// Claims the slot that is pending, and then acquires a permit again. A closed connection counts against its source
    /// until its worker has processed the close, so this first waits for a barrier on every worker.
    ///
    /// # Errors
    /// Returns the errors of [`Permit::decide`].
    pub(crate) async fn claim_or_refuse(
        &self,
        permit: &mut Permit,
        cancelled: &mut watch::Receiver<bool>,
    ) -> Result<(), Verdict> {
        self.barrier().await;
        permit.decide()?;
        tokio::select! {
            biased;
            () = self.reacquire(permit) => return Ok(()),
            // An error means that the server is gone.
            _ = cancelled.wait_for(|cancelled| *cancelled) => {}
        }
        permit.reacquire_unchecked();
        Ok(())
    }

    /// Waits for a barrier on every worker.
    pub(crate) async fn barrier(&self) {
        for worker in &self.workers {
            worker.barrier().await;
        }
    }

    /// Waits until there is a permit for a connection whose source has room. While there is none, closes idle connections.
    async fn reacquire(&self, permit: &mut Permit) {
        loop {
            let mut ended = pin!(self.admission.connection_ended().notified());
            ended.as_mut().enable();
            if permit.try_reacquire() {
                return;
            }
            self.reclaim_one().await;
            let _ = time::timeout(reclaim::RETRY, ended).await;
        }
    }

    /// Waits until [`Dispatcher::try_acquire`] returns something for a connection that `socket` accepts: while all permits are
    /// taken, not before a client waits.
    async fn wait_for_permit(&self, socket: &UnixStream, listener: &ListenerHandle) {
        loop {
            let mut ended = pin!(self.admission.connection_ended().notified());
            ended.as_mut().enable();
            let listener = listener.load();
            let Some(shortage) = self.admission.shortage(listener.awaits_header()) else { return };
            self.admission.report_shortage(shortage, |event| (self.handle_event)(event));
            if shortage != Shortage::Connections || !self.reclaimer.is_on() {
                ended.await;
                continue;
            }
            tokio::select! {
                () = &mut ended => continue,
                () = client_waits(socket) => {}
            }
            if !self.decides_before_reclaim(&listener) {
                let _waiting = self.admission.wait_with_client();
                // It notifies this as well, as soon as its permit is free.
                self.reclaim_one().await;
                let _ = time::timeout(reclaim::RETRY, ended).await;
            } else if self.admission.may_accept_undecided() {
                return;
            } else {
                ended.await;
            }
        }
    }

    /// Closes one idle connection, if one may be closed. Waits for no worker that hangs.
    async fn reclaim_one(&self) {
        if !self.reclaimer.is_on() {
            return;
        }
        let reclaim = async {
            // A closed connection has its permit until its worker has processed the close.
            self.barrier().await;
            // If the limit was lowered, no connection is closed for that.
            if self.admission.open() == self.admission.limit() {
                self.reclaimer.reclaim_one(&self.workers, self.admission.limit()).await;
            }
        };
        let _ = time::timeout(HANG_TIMEOUT, reclaim).await;
    }

    /// Assigns a connection to the worker with the fewest connections: to be served, or to be refused.
    fn assign(
        self: &Arc<Self>,
        socket: AcceptedSocket,
        info: ConnectionInfo,
        permit: Permit,
        refused: Option<Verdict>,
    ) {
        let Some(worker) = self.least_loaded_worker() else { return };
        if info.listener.kind == SocketKind::Seqpacket {
            return seqpacket::spawn(socket, info, worker, permit, refused);
        }
        let mut session = Session::new(Arc::clone(&info.listener.settings.rules), clock());
        if let Some(verdict) = refused {
            session.refuse(verdict, clock());
        }
        worker.serve(Box::new(Connection::new(socket, session, info, worker, permit)));
    }

    /// Stops the waiting for PROXY headers, and waits until pending slots are decided. When this returns, the workers have
    /// the connections that waited, so that a command to drain or to detach reaches them.
    pub(crate) async fn cancel_pending(&self) {
        self.pending_cancelled.send_replace(true);
        self.pending_cancelled.closed().await;
    }
}
