//! The mode of acceptors and datagram servers, and their reports.

use tokio::sync::watch;

/// The mode of all acceptors and datagram servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcceptMode {
    /// Accept.
    Accept,
    /// Probe the backlog once, then accept nothing until the mode changes back to [`AcceptMode::Accept`].
    Probe,
    /// Close the socket and end.
    Stop,
}

/// The combined state of all acceptors.
#[derive(Debug, Default)]
pub(crate) struct AcceptorStatus {
    /// The number of listeners that are served.
    pub(crate) serving: usize,
    /// The number of acceptors that have probed their backlog.
    pub(crate) probed: usize,
    /// Whether any probe found a client.
    pub(crate) found_client: bool,
}

impl AcceptorStatus {
    /// Records that an acceptor has probed its backlog, and whether it found a client.
    pub(crate) fn record_probe(&mut self, found_client: bool) {
        self.probed += 1;
        self.found_client |= found_client;
    }
}

/// The mode of an acceptor, and the status to which it reports.
pub(crate) struct AcceptControl {
    /// The server waits until every receiver is dropped.
    pub(crate) mode: watch::Receiver<AcceptMode>,
    pub(crate) status: std::sync::Arc<watch::Sender<AcceptorStatus>>,
}
