//! Lists and closes connections, wherever they are: with a worker, or awaiting their PROXY header.

use std::sync::Arc;

use super::clock::clock;
use super::dispatch::Dispatcher;
use super::listing::{ConnectionStatus, Slice};

/// Lists the open connections, slice by slice. A connection that is there all the time is listed once.
pub struct ConnectionLister {
    dispatcher: Arc<Dispatcher>,
    /// The number of the worker, and the key in its event loop, where the next slice begins. `None`: with the connections that
    /// await their header.
    next: Option<(usize, usize)>,
}

impl ConnectionLister {
    pub(crate) fn new(dispatcher: Arc<Dispatcher>) -> Self {
        Self { dispatcher, next: None }
    }

    /// Returns the next slice, which may be empty; `None` after the last one. Waits for a worker that hangs.
    pub async fn next(&mut self) -> Option<Vec<ConnectionStatus>> {
        let Some((number, from)) = self.next else {
            self.next = Some((0, 0));
            return Some(self.dispatcher.awaiting_headers.list(clock()));
        };
        let worker = self.dispatcher.workers.get(number)?;
        let Slice { connections, next } = worker.list(from).await;
        self.next = Some(next.map_or((number + 1, 0), |from| (number, from)));
        Some(connections)
    }
}

/// Closes a connection. Returns whether there was one with this id.
pub(crate) async fn close(dispatcher: &Dispatcher, id: u64) -> bool {
    if dispatcher.awaiting_headers.close(id) {
        return true;
    }
    for worker in &dispatcher.workers {
        if worker.close_connection(id).await {
            return true;
        }
    }
    false
}
