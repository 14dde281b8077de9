//! The connections that await their PROXY header, which no event loop has yet: they are listed and closed here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::listing::ConnectionStatus;
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
    close: Arc<Notify>,
}

/// A connection in the list of those that await their header, until this is dropped.
pub(crate) struct ListedConnection<'a> {
    list: &'a AwaitingHeaders,
    id: u64,
    /// Notified when the connection is to be closed.
    pub(crate) close: Arc<Notify>,
}

impl AwaitingHeaders {
    pub(crate) fn add(&self, id: u64, listener: &Arc<str>, peer: Peer, opened: Instant) -> ListedConnection<'_> {
        let close = Arc::<Notify>::default();
        let connection = AwaitingHeader { listener: Arc::clone(listener), peer, opened, close: Arc::clone(&close) };
        self.lock().insert(id, connection);
        ListedConnection { list: self, id, close }
    }

    pub(crate) fn list(&self, now: Instant) -> Vec<ConnectionStatus> {
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
        self.lock().iter().map(status).collect()
    }

    /// Has a connection closed. Returns whether there is one with this id.
    pub(crate) fn close(&self, id: u64) -> bool {
        self.lock().get(&id).map(|connection| connection.close.notify_one()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, AwaitingHeader>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ListedConnection<'_> {
    fn drop(&mut self) {
        self.list.lock().remove(&self.id);
    }
}
