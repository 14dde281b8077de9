//! The list of open connections, for administrators. Each worker reports its connections in slices between passes of its event
//! loop, so a list delays no client, however many connections there are.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::peer::Peer;
use crate::protocol::session::Totals;

/// The maximum number of places in the table of connections that an event loop looks at in one pass.
pub(crate) const SLICE: usize = 256;

/// An open connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// Unique over all workers, and the same after a restart that handed the connection over.
    pub id: u64,
    /// The listener's name.
    pub listener: Arc<str>,
    /// The peer.
    pub peer: Peer,
    /// The time since it was accepted.
    pub age: Duration,
    /// The time since something was last received or sent.
    pub idle: Duration,
    /// The counts of its bytes and messages.
    pub totals: Totals,
    /// What it is doing: a word of [`Activity`](crate::protocol::session::Activity), or `header` while it awaits its PROXY
    /// header.
    pub state: &'static str,
}

/// A request for a slice of the connections of an event loop.
pub(crate) struct SliceRequest {
    /// The first key to look at.
    pub(crate) from: usize,
    pub(crate) answer: oneshot::Sender<Slice>,
}

/// A slice of the connections of an event loop.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    pub(crate) connections: Vec<ConnectionStatus>,
    /// Where the next slice begins; `None` after the last one.
    pub(crate) next: Option<usize>,
}

/// A request to close a connection, if it is in a slice of the connections of an event loop.
pub(crate) struct CloseRequest {
    pub(crate) id: u64,
    /// The first key to look at.
    pub(crate) from: usize,
    pub(crate) answer: oneshot::Sender<CloseOutcome>,
}

/// The answer to a [`CloseRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseOutcome {
    /// The connection was in the slice, and is closed.
    Closed,
    /// It was not. The next slice begins with this key.
    Continue(usize),
    /// It was not, and this was the last slice.
    NotFound,
}
