//! Serving: from listening sockets to connections that ended. It is given its sockets and told when to stop; it
//! neither binds, nor reads signals or files, nor logs.
//!
//! ```text
//! accept (first worker) ── place ──► connection (on the worker with the fewest)
//!                            │         socket → scratch → session → socket
//!                            └─ PROXY header ─┘ where the listener demands one
//! datagram (first worker) ── rate ──► socket → room → socket
//! ```

mod accept;
mod admission;
mod alarms;
mod carry;
mod connection;
mod datagram;
pub mod event;
mod floor;
mod packets;
pub mod proxy;
pub mod socket;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use crate::config::{self, Settings};
use accept::{CurrentDesk, Desk, Reception};
use admission::Admission;
use datagram::Datagrams;
use event::{Event, Events, Messages};
use packets::rates::Rates;
use socket::Kind;
use worker::{Outside, Worker, WorkerThread};

pub use carry::{Freeze, Frozen, Thawed, part_from};
pub use worker::Counts;

/// A running server. Dropping it ends everything at once.
pub struct Server {
    reception: Arc<Reception>,
    /// What each listener receives its connections with.
    desks: Mutex<Vec<Arc<CurrentDesk>>>,
    acceptors: Arc<watch::Sender<Acceptors>>,
    door: watch::Sender<Door>,
    threads: Vec<WorkerThread>,
}

/// What the acceptors are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Accept.
    Open,
    /// Look whether anybody is waiting; then accept nobody until it is open again.
    LastLook,
    /// End.
    Closed,
}

/// The acceptors, as far as others want to know.
#[derive(Debug, Default)]
struct Acceptors {
    /// Listeners being served.
    serving: usize,
    /// Those of them that have had their last look.
    looked: usize,
    /// Whether one of them saw anybody.
    somebody: bool,
}

impl Acceptors {
    /// One of them has had its last look, and saw somebody or nobody.
    fn has_looked(&mut self, somebody: bool) {
        self.looked += 1;
        self.somebody |= somebody;
    }
}

impl Server {
    /// Starts the workers. They do nothing until there is something to serve.
    ///
    /// # Errors
    /// A thread or its reactor cannot be made.
    pub fn start(settings: &Settings, events: Events, messages: Arc<dyn Messages>) -> io::Result<Self> {
        let admission = Admission::new(&settings.limits);
        let outside = Outside { events: Arc::clone(&events), messages };
        let start = |number| WorkerThread::start(number, &outside);
        let threads = (0..settings.service.worker_threads()).map(start).collect::<io::Result<Vec<_>>>()?;
        let workers = threads.iter().map(|thread| Arc::clone(&thread.worker)).collect();
        let rates = Rates::new(settings.limits.datagrams_per_source);
        let (connections, waiting) = (AtomicU64::new(0), watch::Sender::new(false));
        let reception = Reception { admission, workers, events, connections, rates, waiting };
        Ok(Self {
            reception: Arc::new(reception),
            desks: Mutex::default(),
            acceptors: Arc::default(),
            door: watch::Sender::new(Door::Open),
            threads,
        })
    }

    /// Serves a listening socket, or one of datagrams, under a name, by these settings. When this returns, connections are
    /// accepted, or datagrams received.
    ///
    /// # Errors
    /// The socket cannot be prepared or registered.
    pub fn listen(&self, socket: OwnedFd, name: &str, settings: &config::Listener) -> io::Result<()> {
        socket::prepare_listener(&socket, settings)?;
        let kind = Kind::of(&socket)?;
        let desk = Arc::new(CurrentDesk::new(desk(name, kind, settings)));
        let acceptor = self.threads.first().map(|thread| &thread.worker).ok_or(io::ErrorKind::NotFound)?;
        let mut served = Served::new(socket, kind, acceptor)?;
        self.desks().push(Arc::clone(&desk));
        let (reception, acceptors) = (Arc::clone(&self.reception), Arc::clone(&self.acceptors));
        let mut door = self.door.subscribe();
        acceptors.send_modify(|acceptors| acceptors.serving += 1);
        acceptor.spawn(async move {
            let ended = match &mut served {
                Served::Listener(listener) => attend(listener, &desk, &reception, &acceptors, &mut door).await,
                Served::Datagrams(datagrams) => datagrams.attend(&desk, &reception, &acceptors, &mut door).await,
            };
            drop(served);
            // Not before: whoever drains waits for this.
            drop(door);
            if let Err(error) = ended {
                (reception.events)(Event::Broken { listener: Arc::clone(&desk.now().name), error });
            }
            acceptors.send_modify(|acceptors| acceptors.serving -= 1);
        });
        Ok(())
    }

    /// Serves a connection that was accepted by somebody else.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn adopt(&self, socket: OwnedFd, name: &str, settings: &config::Listener) -> io::Result<()> {
        let full = || io::Error::new(io::ErrorKind::QuotaExceeded, "there is no place for a connection");
        let place = self.reception.admission.place().ok_or_else(full)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        let kind = Kind::of(&socket)?;
        self.reception.receive(socket, None, &Arc::new(desk(name, kind, settings)), place);
        Ok(())
    }

    /// From now on, new connections obey these settings, and all connections these limits. The number of workers and
    /// what is listened on stay.
    pub fn reload(&self, settings: &Settings) {
        self.reception.admission.set_limits(&settings.limits);
        self.reception.rates.set_limit(settings.limits.datagrams_per_source);
        for desk in &*self.desks() {
            desk.change(settings.listener(&desk.now().name));
        }
    }

    /// Returns when the last listener broke. Never, as long as one is well or none was there.
    pub async fn broken(&self) {
        if self.desks().is_empty() {
            std::future::pending::<()>().await;
        }
        // The sender is here, so there is no error.
        let _ = self.acceptors.subscribe().wait_for(|acceptors| acceptors.serving == 0).await;
    }

    /// Returns when there is no connection, served or refused.
    pub async fn idle(&self) {
        self.reception.admission.wait_for_none().await;
    }

    /// For how long there has been no connection, served or refused; `None` while there is one.
    #[must_use]
    pub fn idle_for(&self) -> Option<Duration> {
        self.reception.admission.idle_for()
    }

    /// Stops accepting, unless somebody is waiting, or was here in the last `unused`. Returns whether it did: then who comes
    /// later waits in the backlog, for the next process.
    pub async fn last_look(&self, unused: Duration) -> bool {
        self.acceptors.send_modify(|acceptors| (acceptors.looked, acceptors.somebody) = (0, false));
        self.door.send_replace(Door::LastLook);
        let mut acceptors = self.acceptors.subscribe();
        let all_looked = acceptors.wait_for(|acceptors| acceptors.looked >= acceptors.serving).await;
        let nobody = all_looked.is_ok_and(|acceptors| !acceptors.somebody);
        // Who came before the look may have been received without it, and may be gone again.
        let nobody = nobody && self.idle_for().is_some_and(|idle| idle >= unused);
        if !nobody {
            self.door.send_replace(Door::Open);
        }
        nobody
    }

    /// Stops accepting, then has every connection end as soon as it has got what it is owed. Returns when nothing is
    /// accepted any more; [`Server::idle`] tells when the connections have ended.
    pub async fn drain(&self) {
        self.door.send_replace(Door::Closed);
        // Every acceptor listens until it has dropped its socket.
        self.door.closed().await;
        self.reception.stop_waiting().await;
        for thread in &self.threads {
            thread.worker.drain();
        }
    }

    /// Returns when every worker has answered, which it does between the turns of its connections.
    pub async fn answer(&self) {
        for thread in &self.threads {
            let (answer, answered) = oneshot::channel();
            thread.worker.spawn(async move {
                // Who asked may have stopped to wait.
                let _ = answer.send(());
            });
            // An error means that the worker is gone, with everything else.
            let _ = answered.await;
        }
    }

    /// Has the first worker do nothing any more, for tests of what watches over it.
    pub fn hang_worker(&self) {
        if let Some(thread) = self.threads.first() {
            thread.worker.spawn(async {
                loop {
                    std::thread::park();
                }
            });
        }
    }

    /// Listeners being served.
    #[must_use]
    pub fn listeners(&self) -> usize {
        self.acceptors.borrow().serving
    }

    /// How many connections are served at once at most.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.reception.admission.limit()
    }

    fn desks(&self) -> MutexGuard<'_, Vec<Arc<CurrentDesk>>> {
        self.desks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections being served.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.reception.admission.open()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for thread in &self.threads {
            thread.worker.counters.add_to(&mut counts);
        }
        counts
    }
}

fn desk(name: &str, kind: Kind, settings: &config::Listener) -> Desk {
    Desk { name: name.into(), kind, settings: settings.clone() }
}

/// A socket that is being served.
enum Served {
    /// Connections are accepted on it.
    Listener(UnixStream),
    Datagrams(Box<Datagrams>),
}

impl Served {
    fn new(socket: OwnedFd, kind: Kind, worker: &Arc<Worker>) -> io::Result<Self> {
        Ok(match kind {
            Kind::Stream | Kind::Seqpacket => Self::Listener(worker.register(socket)?),
            Kind::Datagram => Self::Datagrams(Box::new(Datagrams::open(socket, worker)?)),
        })
    }
}

/// Attends to a listener as the door says, until it is closed.
///
/// # Errors
/// The listener broke.
async fn attend(
    listener: &UnixStream,
    desk: &CurrentDesk,
    reception: &Arc<Reception>,
    acceptors: &watch::Sender<Acceptors>,
    door: &mut watch::Receiver<Door>,
) -> io::Result<()> {
    loop {
        let now = *door.borrow_and_update();
        match now {
            Door::Open => {}
            Door::LastLook => {
                let somebody = accept::last_look(listener, desk, reception);
                acceptors.send_modify(|acceptors| acceptors.has_looked(somebody));
            }
            Door::Closed => return Ok(()),
        }
        tokio::select! {
            changed = door.changed() => {
                if changed.is_err() {
                    // The server is gone.
                    return Ok(());
                }
            }
            error = accept::accept(listener, desk, reception), if now == Door::Open => return Err(error),
        }
    }
}
