//! Dispatching: what becomes of a connection that was accepted.
//!
//! ```text
//! accepted ─► PROXY header, where the listener demands one ─► source: room? ─► the worker with the fewest connections
//!                (a task of the services)                       └ none, or not certain: a task decides, or refuses it
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use rustix::net::SocketAddrAny;
use tokio::sync::watch;
use tokio::time;

use super::accepted_socket::AcceptedSocket;
use super::admission::{Admission, Permit};
use super::clock::clock;
use super::connection::Connection;
use super::event::{Event, EventSink};
use super::listener::{ConnectionInfo, Listener};
use super::packet_socket;
use super::packets::rate_limit::RateLimiter;
use super::peer::Peer;
use super::proxy::PendingHeader;
use super::receive_buffer::ReceiveBuffer;
use super::reclaim::{self, Reclaimer};
use super::services::Services;
use super::socket::SocketKind;
use super::socket_options;
use super::unserved;
use super::worker::{HANG_TIMEOUT, Worker};
use super::worker_state::WorkerState;
use crate::protocol::{Session, Verdict};

/// Assigns connections to workers. The acceptors of all listeners share it.
pub(crate) struct Dispatcher {
    pub(crate) admission: Arc<Admission>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) services: Arc<Services>,
    pub(crate) sink: EventSink,
    pub(crate) last_id: AtomicU64,
    pub(crate) rate_limiter: RateLimiter,
    pub(crate) reclaimer: Reclaimer,
    /// Runs acceptors that pause.
    pub(crate) acceptors: Waker,
    pub(crate) reclaim: Mutex<ReclaimTask>,
    /// Whether connections that wait for a PROXY header are to stop waiting. They and those with a pending slot have a
    /// receiver each.
    pub(crate) pending_cancelled: watch::Sender<bool>,
}

/// The task that closes an idle connection for a client whose acceptor pauses.
#[derive(Debug, Default)]
pub(crate) struct ReclaimTask {
    runs: bool,
    /// Whether another one was asked for meanwhile.
    is_wanted: bool,
}

/// A connection that a worker is to serve.
pub(crate) struct Assigned<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) connection: Box<Connection>,
}

impl Assigned<'_> {
    /// Has the worker serve the connection.
    pub(crate) fn deliver(self) {
        self.worker.serve(self.connection);
    }
}

impl Dispatcher {
    /// Returns the worker with the fewest connections.
    pub(crate) fn least_loaded_worker(&self) -> Option<&Worker> {
        self.workers.iter().min_by_key(|worker| worker.state.connection_count())
    }

    /// Dispatches an accepted connection: it is served, or refused if its source has too many. If it has to begin with
    /// a PROXY header, its source is not known before that has come. `inherited` is the receive buffer of its
    /// listener, if it has connected after the options of the listener were set. `state` is that of the thread that runs this.
    #[expect(clippy::too_many_arguments, reason = "what is known about it")]
    pub(crate) fn admit(
        self: &Arc<Self>,
        socket: OwnedFd,
        from: Option<SocketAddrAny>,
        listener: &Arc<Listener>,
        inherited: Option<ReceiveBuffer>,
        mut permit: Permit,
        state: &WorkerState,
        now: Instant,
    ) -> Option<Assigned<'_>> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let peer = Peer::of(&socket, from);
        let socket = AcceptedSocket::new(socket, listener, inherited);
        if self.sink.handler.wants_opened() {
            self.sink.report(Event::Opened { id, listener: Arc::clone(&listener.name), peer });
        }
        let info = ConnectionInfo { id, listener: Arc::clone(listener), peer };
        if inherited.is_none() {
            let prepared = socket_options::set(&socket, &listener.settings).and_then(|()| match listener.kind {
                SocketKind::Seqpacket => packet_socket::prepare(&socket).map_err(io::Error::from),
                SocketKind::Stream | SocketKind::Datagram => Ok(()),
            });
            if let Err(error) = prepared {
                unserved::close_failed(state, &info, now, error, Some(socket), permit);
                return None;
            }
        }
        if listener.awaits_header() {
            let session = Session::new(Arc::clone(&listener.settings.rules), now);
            self.await_header(PendingHeader { socket, session, info, permit }, state);
            return None;
        }
        if permit.claim(peer.source()) {
            return self.assign(socket, info, permit, None, now);
        }
        self.decide(socket, info, permit, state, now);
        None
    }

    /// Serves or refuses a connection in a task, since its source may be at its limit, or there was no permit for it.
    fn decide(
        self: &Arc<Self>,
        socket: AcceptedSocket,
        info: ConnectionInfo,
        mut permit: Permit,
        state: &WorkerState,
        now: Instant,
    ) {
        let runtime = match self.services.start() {
            Ok(runtime) => runtime,
            Err(error) => return unserved::close_failed(state, &info, now, error, Some(socket), permit),
        };
        let (mut cancelled, dispatcher) = (self.pending_cancelled.subscribe(), Arc::clone(self));
        runtime.spawn(async move {
            let state = &*dispatcher.services.state;
            let assigned = match dispatcher.claim_or_refuse(&mut permit, &mut cancelled).await {
                Ok(()) => dispatcher.assign(socket, info, permit, None, clock()),
                Err(verdict) if permit.refuse() => dispatcher.assign(socket, info, permit, Some(verdict), clock()),
                // There are many of them: it is closed at once.
                Err(verdict) => {
                    unserved::report(state, &info, clock(), verdict, None);
                    socket.close(&state.disposal, permit);
                    None
                }
            };
            assigned.into_iter().for_each(Assigned::deliver);
            // Not earlier: `cancel_pending` waits until this receiver is dropped.
            drop(cancelled);
        });
    }

    /// Waits for the header of a connection in a task. Then the connection is served, or refused. `state` is that of the thread
    /// that runs this.
    pub(crate) fn await_header(self: &Arc<Self>, pending: PendingHeader, state: &WorkerState) {
        let runtime = match self.services.start() {
            Ok(runtime) => runtime,
            Err(error) => {
                let PendingHeader { socket, session, info, permit } = pending;
                return unserved::close_failed(state, &info, session.opened(), error, Some(socket), permit);
            }
        };
        let (mut cancelled, dispatcher) = (self.pending_cancelled.subscribe(), Arc::clone(self));
        runtime.spawn(async move {
            dispatcher.serve_presented(pending, &mut cancelled).await;
            // Not earlier: `cancel_pending` waits until this receiver is dropped.
            drop(cancelled);
        });
    }

    async fn serve_presented(&self, pending: PendingHeader, cancelled: &mut watch::Receiver<bool>) {
        let state = &*self.services.state;
        let Some(mut connection) = pending.read_header(cancelled, state).await else { return };
        if let Some(permit) = connection.undecided() {
            let decision = self.claim_or_refuse(permit, cancelled).await;
            let Some(decided) = connection.decide(decision, state) else { return };
            connection = decided;
        }
        let Some((socket, session, info, permit)) = connection.into_parts(state) else { return };
        let Some(worker) = self.least_loaded_worker() else { return };
        worker.serve(Box::new(Connection::new(socket, session, info, &worker.state, permit)));
    }

    /// Assigns a connection to the worker with the fewest connections: to be served, or to be refused.
    fn assign(
        &self,
        socket: AcceptedSocket,
        info: ConnectionInfo,
        permit: Permit,
        refused: Option<Verdict>,
        now: Instant,
    ) -> Option<Assigned<'_>> {
        let worker = self.least_loaded_worker()?;
        let mut session = Session::new(Arc::clone(&info.listener.settings.rules), now);
        if let Some(verdict) = refused {
            session.refuse(verdict, now);
        }
        let connection = Box::new(Connection::new(socket, session, info, &worker.state, permit));
        Some(Assigned { worker, connection })
    }

    /// Returns a permit for one more connection of this listener, or one to be if an idle connection may be closed for it.
    pub(crate) fn try_acquire(&self, listener: &Listener) -> Option<Permit> {
        let undecided =
            || self.decides_before_reclaim(listener).then(|| self.admission.try_accept_undecided()).flatten();
        self.admission.try_acquire(listener.awaits_header()).or_else(undecided)
    }

    /// Returns whether connections are accepted without a permit, so that no other is closed for one that is refused. One that
    /// has to begin with a PROXY header may take its time until its source is known, so it needs a permit before.
    pub(crate) fn decides_before_reclaim(&self, listener: &Listener) -> bool {
        self.reclaimer.is_on() && !listener.awaits_header()
    }

    /// Returns whether one more connection may be accepted in which descriptors may be queued. If not, acceptors are run when
    /// that may have changed.
    pub(crate) fn has_disposal_room(&self) -> bool {
        self.services.state.disposal.has_room(&self.acceptors)
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

    /// Waits for a barrier on every thread.
    pub(crate) async fn barrier(&self) {
        for worker in &self.workers {
            worker.barrier().await;
        }
        self.services.barrier().await;
    }

    /// Waits until there is a permit for a connection whose source has room. While there is none, closes idle connections.
    async fn reacquire(&self, permit: &mut Permit) {
        let ends = self.admission.watch_ends();
        loop {
            let mut ended = pin!(ends.next());
            ended.as_mut().enable();
            if permit.try_reacquire() {
                return;
            }
            self.reclaim_one().await;
            let _ = time::timeout(reclaim::RETRY, ended).await;
        }
    }

    /// Has an idle connection closed for a client whose acceptor pauses. It runs again when a permit is free.
    pub(crate) fn start_reclaim(self: &Arc<Self>) {
        let mut task = self.lock_reclaim();
        if task.runs {
            task.is_wanted = true;
            return;
        }
        let dispatcher = Arc::clone(self);
        let reclaim = async move {
            let has_closed = dispatcher.reclaim_one().await;
            let ReclaimTask { is_wanted, .. } = std::mem::take(&mut *dispatcher.lock_reclaim());
            // Otherwise there is none to be closed: acceptors try it again after a while.
            if is_wanted && has_closed {
                dispatcher.acceptors.wake_by_ref();
            }
        };
        // Without the thread, it is tried again when the acceptor is run next.
        task.runs = self.services.spawn(reclaim).is_ok();
    }

    /// Closes one idle connection, if one may be closed. Returns whether one was. Waits for no worker that hangs.
    async fn reclaim_one(&self) -> bool {
        if !self.reclaimer.is_on() {
            return false;
        }
        let reclaim = async {
            // A closed connection has its permit until its worker has processed the close.
            self.barrier().await;
            // If the limit was lowered, no connection is closed for that.
            let limit = self.admission.limit();
            self.admission.open() == limit && self.reclaimer.reclaim_one(&self.workers, limit).await
        };
        time::timeout(HANG_TIMEOUT, reclaim).await.unwrap_or(false)
    }

    /// Stops the waiting for PROXY headers, and waits until pending slots are decided. When this returns, the workers have
    /// the connections that waited, so that a command to drain or to detach reaches them.
    pub(crate) async fn cancel_pending(&self) {
        self.pending_cancelled.send_replace(true);
        self.pending_cancelled.closed().await;
    }

    fn lock_reclaim(&self) -> MutexGuard<'_, ReclaimTask> {
        self.reclaim.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
