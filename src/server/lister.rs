//! Lists and closes connections, wherever they are: with a worker, or awaiting their PROXY header.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::clock::clock;
use super::dispatch::Dispatcher;
use super::listing::{CloseOutcome, ConnectionStatus, Slice};

/// Held while an event loop looks at a slice: so each looks at one slice in a pass, however many clients ask.
pub(crate) type OneSlice = Arc<Mutex<()>>;

/// Lists the open connections, slice by slice. A connection that is there all the time is listed once.
pub struct ConnectionLister {
    dispatcher: Arc<Dispatcher>,
    one_slice: OneSlice,
    next: Position,
}

/// Where the next slice begins.
#[derive(Debug, Clone, Copy)]
enum Position {
    /// With the first connection that awaits its header and has this id, or a later one.
    AwaitingHeaders(u64),
    /// With this key in the event loop of the worker with this number.
    Worker(usize, usize),
}

impl ConnectionLister {
    pub(crate) fn new(dispatcher: Arc<Dispatcher>, one_slice: OneSlice) -> Self {
        Self { dispatcher, one_slice, next: Position::AwaitingHeaders(0) }
    }

    /// Returns the next slice, which may be empty; `None` after the last one. Waits for a worker that hangs.
    pub async fn next(&mut self) -> Option<Vec<ConnectionStatus>> {
        match self.next {
            Position::AwaitingHeaders(from) => {
                let (connections, next) = self.dispatcher.awaiting_headers.list(from, clock());
                self.next = next.map_or(Position::Worker(0, 0), Position::AwaitingHeaders);
                Some(connections)
            }
            Position::Worker(number, from) => {
                let worker = self.dispatcher.workers.get(number)?;
                let turn = self.one_slice.lock().await;
                let Slice { connections, next } = worker.list(from).await;
                drop(turn);
                self.next = next.map_or(Position::Worker(number + 1, 0), |from| Position::Worker(number, from));
                Some(connections)
            }
        }
    }
}

/// Closes a connection. Returns whether there was one with this id.
pub(crate) async fn close(dispatcher: &Dispatcher, one_slice: &OneSlice, id: u64) -> bool {
    if dispatcher.awaiting_headers.close(id) {
        return true;
    }
    for worker in &dispatcher.workers {
        let mut from = 0;
        loop {
            let turn = one_slice.lock().await;
            let outcome = worker.close_connection(id, from).await;
            drop(turn);
            match outcome {
                CloseOutcome::Closed => return true,
                CloseOutcome::Continue(next) => from = next,
                CloseOutcome::NotFound => break,
            }
        }
    }
    false
}
