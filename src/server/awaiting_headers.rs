//! The connections that await their PROXY header, which no event loop has yet: they are listed and closed here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::listing::{ConnectionStatus, SLICE};
use super::peer::Peer;
use crate::protocol::session::Totals;

/// The word for their state.
const STATE: &str = "header";

/// The connections that await their PROXY header.
#[derive(Debug, Default)]
pub(crate) struct AwaitingHeaders {
    connections: Mutex<BTreeMap<u64, AwaitingHeader>>,
}

#[derive(Debug)]
struct AwaitingHeader {
    listener: Arc<str>,
    peer: Peer,
    opened: Instant,
    /// Whether an administrator closes it.
    is_closed: bool,
    close: Arc<Notify>,
}

/// A connection in the list of those that await their header, until this is dropped.
pub(crate) struct ListedConnection<'a> {
    list: &'a AwaitingHeaders,
    id: u64,
    /// Notified when an administrator closes the connection.
    pub(crate) close: Arc<Notify>,
}

impl AwaitingHeaders {
    /// Adds a connection.
    pub(crate) fn add(&self, id: u64, listener: &Arc<str>, peer: Peer, opened: Instant) -> ListedConnection<'_> {
        let close = Arc::<Notify>::default();
        let (listener, is_closed) = (Arc::clone(listener), false);
        let connection = AwaitingHeader { listener, peer, opened, is_closed, close: Arc::clone(&close) };
        self.lock().insert(id, connection);
        ListedConnection { list: self, id, close }
    }

    /// Lists a slice of the connections: those with ids from `from` on. Returns also where the next slice begins; `None` after the
    /// last one.
    pub(crate) fn list(&self, from: u64, now: Instant) -> (Vec<ConnectionStatus>, Option<u64>) {
        let status = |(id, connection): (&u64, &AwaitingHeader)| {
            let age = now.saturating_duration_since(connection.opened);
            ConnectionStatus {
                id: *id,
                listener: Arc::clone(&connection.listener),
                peer: connection.peer,
                age,
                idle: age,
                totals: Totals::default(),
                state: STATE,
            }
        };
        let connections = self.lock();
        let mut rest = connections.range(from..);
        let slice = rest.by_ref().take(SLICE).map(status).collect();
        (slice, rest.next().map(|(id, _)| *id))
    }

    /// Has a connection closed. Returns whether there is one with this id.
    pub(crate) fn close(&self, id: u64) -> bool {
        let mut connections = self.lock();
        let Some(connection) = connections.get_mut(&id) else { return false };
        connection.is_closed = true;
        connection.close.notify_one();
        true
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, AwaitingHeader>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ListedConnection<'_> {
    /// Takes the connection off the list: a worker gets it. Returns whether an administrator has closed it.
    pub(crate) fn leave(self) -> bool {
        self.list.lock().remove(&self.id).is_some_and(|connection| connection.is_closed)
    }
}

impl Drop for ListedConnection<'_> {
    fn drop(&mut self) {
        self.list.lock().remove(&self.id);
    }
}
