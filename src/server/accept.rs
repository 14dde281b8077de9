//! Accepting: one task for each listener, all on the first worker, for all workers. (A listener that every worker polls
//! wakes all of them for each connection.) A permit is acquired before a connection is accepted, so that connections
//! that do not fit wait in the kernel's backlog.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task;
use tokio::time;

use super::admission::{Admission, Permit};
use super::connection::{Connection, ConnectionInfo, clock};
use super::event::{Event, EventHandler};
use super::packets::rate_limit::RateLimiter;
use super::packets::seqpacket::SeqpacketConnection;
use super::proxy::PendingHeader;
use super::socket::{Peer, SocketKind, prepare_connection};
use super::worker::Worker;
use crate::config;
use crate::protocol::{Session, Verdict};

/// How many connections are accepted before the first worker's connections run.
const BATCH: usize = 32;

/// How long accepting pauses when descriptors or memory have run out, if no connection ends before.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Assigns connections to workers. The acceptors of all listeners share it.
pub(crate) struct Dispatcher {
    pub(crate) admission: Arc<Admission>,
    pub(crate) workers: Vec<Arc<Worker>>,
    pub(crate) handle_event: EventHandler,
    pub(crate) last_id: AtomicU64,
    pub(crate) rate_limiter: RateLimiter,
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
    pub(crate) settings: config::ListenerSettings,
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
        *listener =
            Arc::new(Listener { name: Arc::clone(&listener.name), kind: listener.kind, settings: settings.clone() });
    }
}

/// What an error of accept(2) asks for.
#[derive(Debug, PartialEq, Eq)]
enum AcceptErrorKind {
    /// The connection died while it was waiting; the next may be well.
    Connection,
    /// Something has run out that will be there again.
    ResourcesExhausted,
    /// The listener itself.
    Listener,
}

impl AcceptErrorKind {
    fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error).unwrap_or(Errno::INVAL) {
            Errno::CONNABORTED
            | Errno::INTR
            | Errno::PERM
            // Linux passes pending errors of the new connection on (accept(2), "Error handling").
            | Errno::NETDOWN
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH => Self::Connection,
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Self::ResourcesExhausted,
            _ => Self::Listener,
        }
    }
}

/// Accepts connections until the listener fails, and returns the error. Otherwise runs until it is dropped.
pub(crate) async fn accept(socket: &UnixStream, listener: &ListenerHandle, dispatcher: &Arc<Dispatcher>) -> io::Error {
    let mut paused = false;
    loop {
        dispatcher.admission.wait_for_permit(|limit| (dispatcher.handle_event)(Event::LimitReached { limit })).await;
        // Enabled before the attempt, so that no descriptor becomes free unnoticed.
        let mut ended = pin!(dispatcher.admission.connection_ended().notified());
        ended.as_mut().enable();
        if let Err(error) = socket.readable().await {
            return error;
        }
        let listener = listener.load();
        let (mut accepted, mut accepting) = (0, false);
        let error = loop {
            if accepted == BATCH {
                break None;
            }
            let Some(permit) = dispatcher.admission.try_acquire() else { break None };
            match socket.try_io(Interest::READABLE, || accept_one(socket)) {
                Ok((socket, from)) => {
                    accepted += 1;
                    accepting = true;
                    dispatcher.dispatch(socket, from, &listener, permit);
                }
                Err(error) => {
                    permit.release_unused();
                    if error.kind() == io::ErrorKind::WouldBlock {
                        // Linux makes room for a connection before it looks whether there is one.
                        accepting = true;
                        break None;
                    }
                    match AcceptErrorKind::of(&error) {
                        AcceptErrorKind::Connection => {}
                        AcceptErrorKind::ResourcesExhausted => break Some(error),
                        AcceptErrorKind::Listener => return error,
                    }
                }
            }
        };
        if paused && accepting && error.is_none() {
            paused = false;
            (dispatcher.handle_event)(Event::AcceptResumed { listener: Arc::clone(&listener.name) });
        }
        match error {
            Some(error) => {
                if !paused {
                    paused = true;
                    (dispatcher.handle_event)(Event::AcceptPaused { listener: Arc::clone(&listener.name), error });
                }
                // An elapsed second is as good a reason to try again as an ended connection.
                let _ = time::timeout(RETRY_INTERVAL, ended).await;
            }
            None => task::yield_now().await,
        }
    }
}

/// Probes the backlog, and accepts the first connection in it. Asks the kernel and not the reactor, which may not know
/// of it yet. Returns whether the listener must be served further: also when that could not be determined.
pub(crate) fn probe_backlog(socket: &UnixStream, listener: &ListenerHandle, dispatcher: &Arc<Dispatcher>) -> bool {
    let Some(permit) = dispatcher.admission.try_acquire() else { return true };
    match accept_one(socket) {
        Ok((socket, from)) => {
            dispatcher.dispatch(socket, from, &listener.load(), permit);
            true
        }
        Err(error) => {
            permit.release_unused();
            error.kind() != io::ErrorKind::WouldBlock
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

    /// Dispatches an accepted connection: it is served, or refused if its source has too many.
    pub(crate) fn dispatch(
        self: &Arc<Self>,
        socket: OwnedFd,
        from: Option<SocketAddrAny>,
        listener: &Arc<Listener>,
        mut permit: Permit,
    ) {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(worker) = self.least_loaded_worker() else { return };
        let name = || Arc::clone(&listener.name);
        let peer = Peer::of(&socket, from);
        if let Err(error) = prepare_connection(&socket, &listener.settings) {
            return (self.handle_event)(Event::SetupFailed { listener: name(), peer, error });
        }
        (self.handle_event)(Event::Opened { id, listener: name(), peer });
        let info = ConnectionInfo { id, listener: Arc::clone(listener), peer };
        if permit.claim(peer.source()) {
            return self.assign(socket, info, permit, None);
        }
        let (guard, dispatcher) = (self.pending_cancelled.subscribe(), Arc::clone(self));
        worker.spawn(async move {
            let refused = dispatcher.claim_or_refuse(&mut permit).await.err();
            dispatcher.assign(socket, info, permit, refused);
            // Not earlier: `cancel_pending` waits until this receiver is dropped.
            drop(guard);
        });
    }

    /// Claims the slot that is pending. A closed connection counts against its source until its worker has processed
    /// the close, so this first waits for a barrier on every worker.
    ///
    /// # Errors
    /// Returns the errors of [`Permit::claim_or_refuse`].
    pub(crate) async fn claim_or_refuse(&self, permit: &mut Permit) -> Result<(), Verdict> {
        for worker in &self.workers {
            worker.barrier().await;
        }
        permit.claim_or_refuse()
    }

    /// Assigns a connection to the worker with the fewest connections: to be served, after its PROXY header has come if
    /// it needs one, or to be refused.
    fn assign(self: &Arc<Self>, socket: OwnedFd, info: ConnectionInfo, mut permit: Permit, refused: Option<Verdict>) {
        if refused.is_some() {
            let Some(refused) = permit.refuse() else { return };
            permit = refused;
        }
        let Some(worker) = self.least_loaded_worker() else { return };
        let (peer, listener) = (info.peer, Arc::clone(&info.listener));
        if listener.kind == SocketKind::Seqpacket {
            return match SeqpacketConnection::new(socket, info, Arc::clone(worker), permit) {
                Ok(connection) => worker.spawn(connection.run(refused)),
                Err(error) => {
                    (self.handle_event)(Event::SetupFailed { listener: Arc::clone(&listener.name), peer, error })
                }
            };
        }
        let mut session = Session::new(Arc::clone(&listener.settings.rules), clock());
        if let Some(verdict) = refused {
            session.refuse(verdict, clock());
        } else if listener.settings.proxy_protocol {
            return PendingHeader { socket, session, info, permit }.spawn(self);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_accept_are_sorted_by_cause() {
        let kind = |errno: Errno| AcceptErrorKind::of(&errno.into());
        assert_eq!(kind(Errno::CONNABORTED), AcceptErrorKind::Connection);
        assert_eq!(kind(Errno::PERM), AcceptErrorKind::Connection);
        for exhausted in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(kind(exhausted), AcceptErrorKind::ResourcesExhausted);
        }
        for fatal in [Errno::BADF, Errno::INVAL, Errno::NOTSOCK] {
            assert_eq!(kind(fatal), AcceptErrorKind::Listener);
        }
    }
}
