//! Dispatches accepted connections: assigns each to a worker, or refuses it.
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
use super::awaiting_headers::{AwaitingHeaders, ListedConnection};
use super::clock::clock;
use super::connection::Connection;
use super::counters::CounterRegistry;
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

/// Assigns connections to workers. Shared by the acceptors of all listeners.
pub(crate) struct Dispatcher {
    pub(crate) admission: Arc<Admission>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) services: Arc<Services>,
    pub(crate) sink: EventSink,
    pub(crate) counters: CounterRegistry,
    pub(crate) last_id: AtomicU64,
    pub(crate) rate_limiter: RateLimiter,
    pub(crate) reclaimer: Reclaimer,
    /// Runs paused acceptors.
    pub(crate) acceptors: Waker,
    pub(crate) reclaim: Mutex<ReclaimTask>,
    /// Whether tasks have to stop waiting for PROXY headers and permits. Each connection in such a task has a receiver.
    pub(crate) pending_cancelled: watch::Sender<bool>,
    pub(crate) awaiting_headers: AwaitingHeaders,
}

/// The state of the task that closes an idle connection for the client of a paused acceptor.
#[derive(Debug, Default)]
pub(crate) struct ReclaimTask {
    runs: bool,
    /// Whether another run was requested meanwhile.
    is_wanted: bool,
}

/// A connection, and the worker that is to serve it.
pub(crate) struct Assigned<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) connection: Box<Connection>,
}

impl Assigned<'_> {
    /// Passes the connection to the worker.
    pub(crate) fn deliver(self) {
        self.worker.serve(self.connection);
    }
}

impl Dispatcher {
    /// Returns the worker with the fewest connections.
    pub(crate) fn least_loaded_worker(&self) -> Option<&Worker> {
        self.workers.iter().min_by_key(|worker| worker.state.connection_count())
    }

    /// Dispatches an accepted connection. Returns it if a worker can serve it at once; otherwise a task takes it. A connection
    /// is refused if its source has too many connections. If it has to begin with a PROXY header, its source is unknown until
    /// the header has come. `inherited` is the state of its receive buffer, if it was established after the options of the
    /// listener were set. `state` is that of the calling thread.
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
        listener.counters(state).count_accepted();
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

    /// Serves or refuses a connection in a task, because its source may be at its limit, or because it has no permit yet.
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
                // Too many refused connections are open, so this one is closed at once.
                Err(verdict) => {
                    unserved::report(state, &info, clock(), verdict, None);
                    socket.close(&state.disposal, permit);
                    None
                }
            };
            assigned.into_iter().for_each(Assigned::deliver);
            // Last, because `cancel_pending` waits until this receiver is dropped.
            drop(cancelled);
        });
    }

    /// Waits in a task for the header of a connection, which is then served or refused. `state` is that of the calling thread.
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
            let PendingHeader { session, info, .. } = &pending;
            let listed = dispatcher.awaiting_headers.add(info.id, &info.listener.name, info.peer, session.opened());
            dispatcher.serve_presented(pending, listed, &mut cancelled).await;
            // Last, because `cancel_pending` waits until this receiver is dropped.
            drop(cancelled);
        });
    }

    async fn serve_presented(
        &self,
        pending: PendingHeader,
        listed: ListedConnection<'_>,
        cancelled: &mut watch::Receiver<bool>,
    ) {
        let state = &*self.services.state;
        let Some(mut connection) = pending.read_header(&listed.close, cancelled, state).await else { return };
        if let Some(permit) = connection.undecided() {
            let decision = self.claim_or_refuse(permit, cancelled).await;
            let Some(decided) = connection.decide(decision, state) else { return };
            connection = decided;
        }
        let Some((socket, mut session, info, permit)) = connection.into_parts(state) else { return };
        if listed.leave() {
            session.refuse(Verdict::ClosedByAdmin, clock());
        }
        let Some(worker) = self.least_loaded_worker() else { return };
        worker.serve(Box::new(Connection::new(socket, session, info, &worker.state, permit)));
    }

    /// Assigns a connection to the worker with the fewest connections. If it is refused, the worker sends the final reply.
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

    /// Returns a permit for one more connection of this listener, or an undecided one if an idle connection may be closed for
    /// it ([`Admission::try_accept_undecided`]).
    pub(crate) fn try_acquire(&self, listener: &Listener) -> Option<Permit> {
        let undecided =
            || self.decides_before_reclaim(listener).then(|| self.admission.try_accept_undecided()).flatten();
        self.admission.try_acquire(listener.awaits_header()).or_else(undecided)
    }

    /// Returns whether connections of this listener may be accepted without a permit. Their source is then known before an idle
    /// connection is closed for them, so none is closed for a connection that is refused. A connection with a PROXY header may
    /// take long until its source is known, so it needs a permit first.
    pub(crate) fn decides_before_reclaim(&self, listener: &Listener) -> bool {
        self.reclaimer.is_on() && !listener.awaits_header()
    }

    /// Returns whether the disposal thread has room for one more socket with queued descriptors. If not, wakes the acceptors
    /// when that may have changed.
    pub(crate) fn has_disposal_room(&self) -> bool {
        self.services.state.disposal.has_room(&self.acceptors)
    }

    /// Decides about the pending slot, and then acquires the permit again. A closed connection counts against its source until
    /// its worker has processed the close, so this first waits for a barrier on every worker.
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
            // An error means that the server has been dropped.
            _ = cancelled.wait_for(|cancelled| *cancelled) => {}
        }
        permit.reacquire_unchecked();
        Ok(())
    }

    /// Waits for a barrier on every worker and on the services.
    pub(crate) async fn barrier(&self) {
        for worker in &self.workers {
            worker.barrier().await;
        }
        self.services.barrier().await;
    }

    /// Waits for the permit of a connection whose source has room, and closes idle connections for it.
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

    /// Starts a task that closes an idle connection for the client of a paused acceptor. The acceptor runs again when the
    /// permit is released.
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
            // If none could be closed, the acceptors try again after [`reclaim::RETRY`].
            if is_wanted && has_closed {
                dispatcher.acceptors.wake_by_ref();
            }
        };
        // If the services thread cannot be started, the next run of the acceptor tries again.
        task.runs = self.services.spawn(reclaim).is_ok();
    }

    /// Closes one idle connection, if one may be closed. Returns whether it did. Waits for a worker that hangs for
    /// [`HANG_TIMEOUT`] at most.
    async fn reclaim_one(&self) -> bool {
        if !self.reclaimer.is_on() {
            return false;
        }
        let reclaim = async {
            // A closed connection holds its permit until its worker has processed the close.
            self.barrier().await;
            // If a reload has lowered the limit, no connection is closed for that.
            let limit = self.admission.limit();
            self.admission.open() == limit && self.reclaimer.reclaim_one(&self.workers, limit).await
        };
        time::timeout(HANG_TIMEOUT, reclaim).await.unwrap_or(false)
    }

    /// Ends the waits for PROXY headers and permits. When this returns, the workers have all connections that were waiting, so
    /// later commands to drain or detach reach them.
    pub(crate) async fn cancel_pending(&self) {
        self.pending_cancelled.send_replace(true);
        self.pending_cancelled.closed().await;
    }

    fn lock_reclaim(&self) -> MutexGuard<'_, ReclaimTask> {
        self.reclaim.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
