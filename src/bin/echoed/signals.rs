//! The signals that the daemon reacts to.

use std::env;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Where this is set, SIGUSR1 makes a worker hang: for tests of the watchdog.
const HANG_VARIABLE: &str = "ECHOED_TEST_HANG_ON_SIGUSR1";

/// The signal that asks to end, and to hand connections over to the next process.
pub(crate) const TERMINATE: &str = "SIGTERM";

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalRequest {
    /// To end; the name of the signal.
    Stop(&'static str),
    /// To read the settings anew.
    Reload,
    /// To have a worker hang.
    HangWorker,
}

/// Those signals, caught from when this is made.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: Option<Signal>,
}

impl Signals {
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: env::var_os(HANG_VARIABLE).map(|_| signal(SignalKind::user_defined1())).transpose()?,
        })
    }

    /// Waits for the next signal, and returns what it asks for.
    pub(crate) async fn next(&mut self) -> SignalRequest {
        let user = async {
            match &mut self.user {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => SignalRequest::Stop(TERMINATE),
            _ = self.interrupt.recv() => SignalRequest::Stop("SIGINT"),
            _ = self.hangup.recv() => SignalRequest::Reload,
            _ = user => SignalRequest::HangWorker,
        }
    }

    /// Waits for the next signal that asks to end, and returns its name.
    pub(crate) async fn stop(&mut self) -> &'static str {
        loop {
            if let SignalRequest::Stop(name) = self.next().await {
                return name;
            }
        }
    }
}
