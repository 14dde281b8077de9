//! Whether new clients are welcome.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::accept_mode::AcceptorStatus;
use super::clock::clock;

/// What the server is about to do.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// To serve.
    #[default]
    Serving,
    /// To serve, while load balancers are to send new clients elsewhere.
    LameDuck,
    /// The same, and then to end.
    Leaving,
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
    /// When lame duck began, while it lasts.
    lame_duck_since: Arc<Mutex<Option<Instant>>>,
    listeners: Arc<watch::Sender<AcceptorStatus>>,
}

impl Health {
    /// Creates the health of a server that serves, with these listeners.
    pub(crate) fn new(listeners: Arc<watch::Sender<AcceptorStatus>>) -> Self {
        Self { phase: Arc::default(), lame_duck_since: Arc::default(), listeners }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Begins or ends lame duck; not if the server is to stop.
    pub(crate) fn set_lame_duck(&self, is_lame_duck: bool) {
        self.phase.send_if_modified(|phase| {
            let new = if is_lame_duck { Phase::LameDuck } else { Phase::Serving };
            let is_changed = matches!(phase, Phase::Serving | Phase::LameDuck) && *phase != new;
            if is_changed {
                *phase = new;
                *self.lock() = is_lame_duck.then(clock);
            }
            is_changed
        });
    }

    /// Returns when lame duck began; `None` if it has not, or has ended.
    pub(crate) fn lame_duck_since(&self) -> Option<Instant> {
        *self.lock()
    }

    /// Waits until the phase is another one than `phase`.
    pub(crate) async fn changed(&self, phase: Phase) {
        // The sender is a field of `self`, so this cannot fail.
        let _ = self.phase.subscribe().wait_for(|new| *new != phase).await;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.lame_duck_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Returns whether new clients are welcome.
    pub(crate) fn readiness(&self) -> Readiness {
        match self.phase() {
            Phase::LameDuck | Phase::Leaving => Readiness::LameDuck,
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
        health.set_lame_duck(true);
        assert_eq!(health.readiness(), Readiness::LameDuck);
        health.set_lame_duck(false);
        listeners.send_modify(|listeners| listeners.record_end(false));
        assert_eq!(health.readiness(), Readiness::Ready);
        listeners.send_modify(|listeners| listeners.record_end(true));
        assert_eq!(health.readiness(), Readiness::ListenerFailed);
        health.set_phase(Phase::Stopping);
        health.set_lame_duck(false);
        assert_eq!(health.readiness(), Readiness::Stopping);
    }
}
