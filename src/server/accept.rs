//! Accepting: one task for each listener, all on the first worker, for all workers. (A listener that every worker
//! polls wakes all of them for each connection.) A place is taken before a connection is accepted, so that the ones
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

use super::admission::{Admission, Place};
use super::connection::{Caller, Connection, clock};
use super::event::{Event, Events};
use super::packets::conversation::Conversation;
use super::packets::rates::Rates;
use super::proxy::Arrival;
use super::socket::{Kind, Peer, prepare_connection};
use super::worker::Worker;
use crate::config;
use crate::protocol::{Session, Verdict};

/// How many connections are accepted before the first worker's connections have a turn.
const BATCH: usize = 32;

/// When descriptors or memory have run out, and no connection of ours ends, how long until the next try.
const RETRY: Duration = Duration::from_secs(1);

/// What the acceptors of all listeners share.
pub(crate) struct Reception {
    pub(crate) admission: Arc<Admission>,
    pub(crate) workers: Vec<Arc<Worker>>,
    pub(crate) events: Events,
    pub(crate) connections: AtomicU64,
    pub(crate) rates: Rates,
    /// Heard by connections that wait to be served: whether they are to stop.
    pub(crate) waiting: watch::Sender<bool>,
}

/// What connections of one listener are received with.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) name: Arc<str>,
    /// What its connections are.
    pub(crate) kind: Kind,
    pub(crate) settings: config::Listener,
}

/// What new connections of one listener are received with: it changes with a reload.
#[derive(Debug)]
pub(crate) struct CurrentDesk(Mutex<Arc<Desk>>);

impl CurrentDesk {
    pub(crate) fn new(desk: Desk) -> Self {
        Self(Mutex::new(Arc::new(desk)))
    }

    pub(crate) fn now(&self) -> Arc<Desk> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the connections to come obey these settings.
    pub(crate) fn change(&self, settings: &config::Listener) {
        let mut desk = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *desk = Arc::new(Desk { name: Arc::clone(&desk.name), kind: desk.kind, settings: settings.clone() });
    }
}

/// What an error of accept(2) asks for.
#[derive(Debug, PartialEq, Eq)]
enum Cause {
    /// The connection died while it was waiting; the next may be well.
    Connection,
    /// Something has run out that will be there again.
    Shortage,
    /// The listener itself.
    Listener,
}

impl Cause {
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
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Self::Shortage,
            _ => Self::Listener,
        }
    }
}

/// Accepts until the listener breaks, which is said in the error; otherwise it goes on until it is dropped.
pub(crate) async fn accept(listener: &UnixStream, desk: &CurrentDesk, reception: &Arc<Reception>) -> io::Error {
    let mut short = false;
    loop {
        reception.admission.wait_for_place(|limit| (reception.events)(Event::Full { limit })).await;
        // Listens from before the try on, so that no descriptor becomes free unnoticed.
        let mut ended = pin!(reception.admission.ended().notified());
        ended.as_mut().enable();
        if let Err(error) = listener.readable().await {
            return error;
        }
        let desk = desk.now();
        let (mut accepted, mut works) = (0, false);
        let error = loop {
            if accepted == BATCH {
                break None;
            }
            let Some(place) = reception.admission.place() else { break None };
            match listener.try_io(Interest::READABLE, || accept_one(listener)) {
                Ok((socket, from)) => {
                    accepted += 1;
                    works = true;
                    reception.receive(socket, from, &desk, place);
                }
                Err(error) => {
                    place.put_back();
                    if error.kind() == io::ErrorKind::WouldBlock {
                        // Linux makes room for a connection before it looks whether there is one.
                        works = true;
                        break None;
                    }
                    match Cause::of(&error) {
                        Cause::Connection => {}
                        Cause::Shortage => break Some(error),
                        Cause::Listener => return error,
                    }
                }
            }
        };
        if short && works && error.is_none() {
            short = false;
            (reception.events)(Event::Recovered { listener: Arc::clone(&desk.name) });
        }
        match error {
            Some(error) => {
                if !short {
                    short = true;
                    (reception.events)(Event::Short { listener: Arc::clone(&desk.name), error });
                }
                // An elapsed second is as good a reason to try again as an ended connection.
                let _ = time::timeout(RETRY, ended).await;
            }
            None => task::yield_now().await,
        }
    }
}

/// Looks whether anybody is waiting, and accepts the first one. Asks the kernel and not the reactor, which may not have
/// heard yet. Returns whether the listener has to be served further: also when it could not be found out.
pub(crate) fn last_look(listener: &UnixStream, desk: &CurrentDesk, reception: &Arc<Reception>) -> bool {
    let Some(place) = reception.admission.place() else { return true };
    match accept_one(listener) {
        Ok((socket, from)) => {
            reception.receive(socket, from, &desk.now(), place);
            true
        }
        Err(error) => {
            place.put_back();
            error.kind() != io::ErrorKind::WouldBlock
        }
    }
}

fn accept_one(listener: impl AsFd) -> io::Result<(OwnedFd, Option<SocketAddrAny>)> {
    Ok(acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?)
}

impl Reception {
    /// The worker with the fewest connections.
    pub(crate) fn worker(&self) -> Option<&Arc<Worker>> {
        self.workers.iter().min_by_key(|worker| worker.open.load(Ordering::Relaxed))
    }

    /// Has a connection served, or refused where its source has enough.
    pub(crate) fn receive(
        self: &Arc<Self>,
        socket: OwnedFd,
        from: Option<SocketAddrAny>,
        desk: &Arc<Desk>,
        mut place: Place,
    ) {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(worker) = self.worker() else { return };
        let listener = || Arc::clone(&desk.name);
        let peer = Peer::of(&socket, from);
        if let Err(error) = prepare_connection(&socket, &desk.settings) {
            return (self.events)(Event::Dropped { listener: listener(), peer, error });
        }
        (self.events)(Event::Opened { connection, listener: listener(), peer });
        let caller = Caller { connection, desk: Arc::clone(desk), peer };
        if place.claim(peer.source()) {
            return self.seat(socket, caller, place, None);
        }
        let (waiting, reception) = (self.waiting.subscribe(), Arc::clone(self));
        worker.spawn(async move {
            let refused = reception.last_claim(&mut place).await.err();
            reception.seat(socket, caller, place, refused);
            // Not before: whoever stops waits for this.
            drop(waiting);
        });
    }

    /// Counts a connection for the source it waits for. Who has left counts until a worker hears of it, so nobody is refused
    /// before all workers have heard what there is.
    ///
    /// # Errors
    /// As with [`Place::last_claim`].
    pub(crate) async fn last_claim(&self, place: &mut Place) -> Result<(), Verdict> {
        for worker in &self.workers {
            worker.catch_up().await;
        }
        place.last_claim()
    }

    /// Has a connection served by the worker with the fewest, once its PROXY header is there where it needs one; or refused.
    fn seat(self: &Arc<Self>, socket: OwnedFd, caller: Caller, mut place: Place, refused: Option<Verdict>) {
        if refused.is_some() {
            let Some(refused) = place.refuse() else { return };
            place = refused;
        }
        let Some(worker) = self.worker() else { return };
        let (peer, desk) = (caller.peer, Arc::clone(&caller.desk));
        if desk.kind == Kind::Seqpacket {
            return match Conversation::new(socket, caller, Arc::clone(worker), place) {
                Ok(conversation) => worker.spawn(conversation.hold(refused)),
                Err(error) => (self.events)(Event::Dropped { listener: Arc::clone(&desk.name), peer, error }),
            };
        }
        let mut session = Session::new(Arc::clone(&desk.settings.rules), clock());
        if let Some(verdict) = refused {
            session.refuse(verdict, clock());
        } else if desk.settings.proxy_protocol {
            return Arrival { socket, session, caller, place }.wait(self);
        }
        worker.serve(Box::new(Connection::new(socket, session, caller, worker, place)));
    }

    /// Has nobody wait any more, for a PROXY header or for those who leave. When this returns, those who did are served by
    /// the workers, which are told to close them.
    pub(crate) async fn stop_waiting(&self) {
        self.waiting.send_replace(true);
        self.waiting.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_accept_are_sorted_by_cause() {
        let cause = |errno: Errno| Cause::of(&errno.into());
        assert_eq!(cause(Errno::CONNABORTED), Cause::Connection);
        assert_eq!(cause(Errno::PERM), Cause::Connection);
        for shortage in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(cause(shortage), Cause::Shortage);
        }
        for broken in [Errno::BADF, Errno::INVAL, Errno::NOTSOCK] {
            assert_eq!(cause(broken), Cause::Listener);
        }
    }
}
