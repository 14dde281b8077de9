//! Whether new clients are welcome.

use std::sync::Arc;

use tokio::sync::watch;

use super::accept_mode::AcceptorStatus;

/// What the server is about to do.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// To serve.
    #[default]
    Serving,
    /// To serve, while load balancers are to send new clients elsewhere.
    LameDuck,
    /// To end.
    Stopping,
}

/// Whether new clients are welcome, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// They are.
    Ready,
    /// They are served, but better go elsewhere.
    LameDuck,
    /// The server stops.
    Stopping,
    /// A listener has failed.
    ListenerFailed,
}

impl Readiness {
    /// Returns it in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::LameDuck => "draining",
            Self::Stopping => "stopping",
            Self::ListenerFailed => "listener failed",
        }
    }
}

/// The phase of a server, and the state of its listeners. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    phase: Arc<watch::Sender<Phase>>,
    listeners: Arc<watch::Sender<AcceptorStatus>>,
}

impl Health {
    /// Creates the health of a server that serves, with these listeners.
    pub(crate) fn new(listeners: Arc<watch::Sender<AcceptorStatus>>) -> Self {
        Self { phase: Arc::default(), listeners }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Returns whether new clients are welcome.
    pub(crate) fn readiness(&self) -> Readiness {
        match self.phase() {
            Phase::LameDuck => Readiness::LameDuck,
            Phase::Stopping => Readiness::Stopping,
            Phase::Serving if self.listeners.borrow().failed > 0 => Readiness::ListenerFailed,
            Phase::Serving => Readiness::Ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_welcome_until_a_listener_fails_or_the_server_is_to_end() {
        let listeners = Arc::<watch::Sender<AcceptorStatus>>::default();
        listeners.send_modify(|listeners| listeners.serving = 2);
        let health = Health::new(Arc::clone(&listeners));
        assert_eq!(health.readiness(), Readiness::Ready);
        health.set_phase(Phase::LameDuck);
        assert_eq!(health.readiness(), Readiness::LameDuck);
        health.set_phase(Phase::Serving);
        listeners.send_modify(|listeners| listeners.record_end(false));
        assert_eq!(health.readiness(), Readiness::Ready);
        listeners.send_modify(|listeners| listeners.record_end(true));
        assert_eq!(health.readiness(), Readiness::ListenerFailed);
        health.set_phase(Phase::Stopping);
        assert_eq!(health.readiness(), Readiness::Stopping);
    }
}
