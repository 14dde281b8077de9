//! Serving: from listening sockets to connections that ended. It is given its sockets and told when to stop; it
//! neither binds, nor reads signals or files, nor logs.
//!
//! ```text
//! accept (first worker) ── place ──► connection (on the worker with the fewest)
//!                                      socket → scratch → session → socket
//! ```

mod accept;
mod admission;
mod connection;
pub mod event;
pub mod socket;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

use crate::config::{self, Settings};
use accept::{Desk, Reception};
use admission::Admission;
use event::{Event, Events, Messages};
use worker::{Outside, WorkerThread};

pub use worker::Counts;

/// A running server. Dropping it ends everything at once.
pub struct Server {
    reception: Arc<Reception>,
    /// Listeners being served, and what is told when one of them breaks.
    listeners: Arc<Listeners>,
    /// Becomes `true` when no new connection is to be accepted.
    closed: watch::Sender<bool>,
    threads: Vec<WorkerThread>,
}

#[derive(Debug, Default)]
struct Listeners {
    served: AtomicUsize,
    broke: Notify,
}

impl Server {
    /// Starts the workers. They do nothing until there is something to serve.
    ///
    /// # Errors
    /// A thread or its reactor cannot be made.
    pub fn start(settings: &Settings, events: Events, messages: Arc<dyn Messages>) -> io::Result<Self> {
        let admission = Admission::new(settings.limits.clone());
        let outside = Outside { events: Arc::clone(&events), messages };
        let start = |number| WorkerThread::start(number, &outside);
        let threads = (0..settings.service.worker_threads()).map(start).collect::<io::Result<Vec<_>>>()?;
        let workers = threads.iter().map(|thread| Arc::clone(&thread.worker)).collect();
        let reception = Reception { admission, workers, events, connections: AtomicU64::new(0) };
        Ok(Self {
            reception: Arc::new(reception),
            listeners: Arc::default(),
            closed: watch::Sender::new(false),
            threads,
        })
    }

    /// Serves a listening stream socket, under a name, by these settings. When this returns, connections are accepted.
    ///
    /// # Errors
    /// The socket cannot be prepared or registered.
    pub fn listen(&self, socket: OwnedFd, name: &str, settings: &config::Listener) -> io::Result<()> {
        socket::prepare_listener(&socket, settings)?;
        let desk = desk(name, settings);
        let acceptor = self.threads.first().map(|thread| &thread.worker).ok_or(io::ErrorKind::NotFound)?;
        let listener = acceptor.register(socket)?;
        let (reception, listeners) = (Arc::clone(&self.reception), Arc::clone(&self.listeners));
        let mut closed = self.closed.subscribe();
        listeners.served.fetch_add(1, Ordering::Relaxed);
        acceptor.spawn(async move {
            let broken = tokio::select! {
                // An error means that the server is gone, which says the same.
                _ = closed.wait_for(|closed| *closed) => None,
                error = accept::accept(&listener, &desk, &reception) => Some(error),
            };
            drop(listener);
            listeners.served.fetch_sub(1, Ordering::Relaxed);
            if let Some(error) = broken {
                (reception.events)(Event::Broken { listener: Arc::clone(&desk.name), error });
                listeners.broke.notify_one();
            }
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
        self.reception.receive(socket, None, &desk(name, settings), place);
        Ok(())
    }

    /// Returns when the last listener broke. Never, as long as one is well or none was there.
    pub async fn broken(&self) {
        loop {
            self.listeners.broke.notified().await;
            if self.listeners.served.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }

    /// Returns when there is no connection, served or refused.
    pub async fn idle(&self) {
        self.reception.admission.wait_for_none().await;
    }

    /// Stops accepting, then has every connection end as soon as it has got what it is owed. Returns when nothing is
    /// accepted any more; [`Server::idle`] tells when the connections have ended.
    pub async fn drain(&self) {
        self.closed.send_replace(true);
        // Every acceptor listens until it has dropped its socket.
        self.closed.closed().await;
        for thread in &self.threads {
            thread.worker.drain();
        }
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

fn desk(name: &str, settings: &config::Listener) -> Arc<Desk> {
    Arc::new(Desk { name: name.into(), settings: settings.clone() })
}
