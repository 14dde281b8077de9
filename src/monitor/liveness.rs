//! Whether all threads that serve messages respond.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{self, Instant};

use crate::server::ServerHandle;

/// How long they may take. A client that waits for a second gets an answer.
const TIMEOUT: Duration = Duration::from_millis(900);

/// Asks the threads that serve messages, once at a time for all requests.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    /// When they were asked for the last answer.
    last_answered: Mutex<Option<Instant>>,
}

impl Liveness {
    /// Returns whether all threads that serve messages respond: each is asked after this is called.
    pub(super) async fn check(&self, server: &ServerHandle) -> bool {
        let called = Instant::now();
        let check = async {
            let mut last_answered = self.last_answered.lock().await;
            if last_answered.is_none_or(|asked| asked < called) {
                let asked = Instant::now();
                server.ping_workers().await;
                *last_answered = Some(asked);
            }
        };
        time::timeout(TIMEOUT, check).await.is_ok()
    }
}
