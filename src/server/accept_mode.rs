//! What acceptors and servers of datagrams are to do, and what they report.

use tokio::sync::watch;

/// What acceptors and servers of datagrams are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcceptMode {
    /// Accept.
    Accept,
    /// Probe the backlog once; then accept nothing until the mode is [`AcceptMode::Accept`] again.
    Probe,
    /// Close the socket and end.
    Stop,
}

/// The state of all acceptors together.
#[derive(Debug, Default)]
pub(crate) struct AcceptorStatus {
    /// Listeners being served.
    pub(crate) serving: usize,
    /// Acceptors that have probed their backlog.
    pub(crate) probed: usize,
    /// Whether one of them found a client.
    pub(crate) found_client: bool,
}

impl AcceptorStatus {
    /// Records that an acceptor has probed its backlog, and whether it found a client.
    pub(crate) fn record_probe(&mut self, found_client: bool) {
        self.probed += 1;
        self.found_client |= found_client;
    }
}

/// What an acceptor is told, and where it reports.
pub(crate) struct AcceptControl {
    /// The server waits until all of these are dropped.
    pub(crate) mode: watch::Receiver<AcceptMode>,
    pub(crate) status: std::sync::Arc<watch::Sender<AcceptorStatus>>,
}
