//! The mode and the common status of acceptors and datagram servers.

use tokio::sync::watch;

/// The mode of acceptors and datagram servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcceptMode {
    /// Accept.
    Accept,
    /// Probe the backlog once, then accept nothing until the mode is [`AcceptMode::Accept`] again.
    Probe,
    /// Close the socket and end.
    Stop,
}

/// The common status of all acceptors and datagram servers.
#[derive(Debug, Default)]
pub(crate) struct AcceptorStatus {
    /// The number of listeners of messages being served.
    pub(crate) serving: usize,
    /// The number of listeners with other roles being served.
    pub(crate) services: usize,
    /// The number of listeners that have failed.
    pub(crate) failed: usize,
    /// The number of listeners whose backlog has been probed.
    pub(crate) probed: usize,
    /// Whether a probe found a client.
    pub(crate) found_client: bool,
}

impl AcceptorStatus {
    /// Returns whether all backlogs have been probed.
    pub(crate) fn has_probed(&self) -> bool {
        self.probed >= self.serving + self.services
    }

    /// Records that a listener of messages has ended, and whether it has failed.
    pub(crate) fn record_end(&mut self, has_failed: bool) {
        self.serving -= 1;
        self.failed += usize::from(has_failed);
    }

    /// Records the result of a probe.
    pub(crate) fn record_probe(&mut self, found_client: bool) {
        self.probed += 1;
        self.found_client |= found_client;
    }
}

/// The channels between the server and an acceptor.
pub(crate) struct AcceptControl {
    /// The mode. A draining server waits until all receivers are dropped.
    pub(crate) mode: watch::Receiver<AcceptMode>,
    pub(crate) status: std::sync::Arc<watch::Sender<AcceptorStatus>>,
}
