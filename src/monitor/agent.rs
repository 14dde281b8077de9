//! The agent-check of HAProxy: on connect one line and the end of the stream.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time;

use crate::config::{ListenerSettings, Weight};
use crate::server::{ConnectionControl, ConnectionService, Readiness, ServerHandle, ServiceFuture, ServiceStream};

/// How long a connection may take in all. The line fits into every send buffer; the rest is for its client to close.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How many bytes of a client are dropped at most (`agent-send`), so that closing sends no reset.
const MAX_INPUT: u64 = 64 * 1024;

/// Answers agent-checks.
pub struct Agent {
    server: ServerHandle,
    /// Whether the answer is how many places are free.
    is_weight_free: AtomicBool,
}

impl Agent {
    /// Creates the agent of a server, with the settings of its listener.
    #[must_use]
    pub fn new(server: ServerHandle, settings: &ListenerSettings) -> Self {
        let agent = Self { server, is_weight_free: AtomicBool::default() };
        agent.reload(settings);
        agent
    }

    fn line(&self) -> String {
        let weight = if self.is_weight_free.load(Ordering::Relaxed) { Weight::Free } else { Weight::Constant };
        let (open, limit) = (self.server.connection_count(), self.server.connection_limit());
        line(self.server.readiness(), weight, open, limit)
    }
}

/// Returns the answer. `ready`, `drain` and `maint` are never in it: they would override what the operator of the load balancer has
/// set.
fn line(readiness: Readiness, weight: Weight, open: usize, limit: usize) -> String {
    match (readiness, weight) {
        (Readiness::Ready, Weight::Constant) => "up 100%\n".to_owned(),
        (Readiness::Ready, Weight::Free) => {
            let percent = limit.saturating_sub(open) * 100 / limit.max(1);
            format!("up {}%\n", percent.max(1))
        }
        (Readiness::LameDuck, _) => "up 0%\n".to_owned(),
        (reason, _) => format!("down #{}\n", reason.as_str()),
    }
}

impl ConnectionService for Agent {
    fn serve(&self, mut stream: ServiceStream, mut control: ConnectionControl) -> ServiceFuture {
        let line = self.line();
        Box::pin(async move {
            let answer = async {
                stream.write_all(line.as_bytes()).await?;
                stream.shutdown().await?;
                // Closing with unread input would reset the connection, and destroy the line.
                tokio::io::copy(&mut stream.take(MAX_INPUT), &mut tokio::io::sink()).await
            };
            tokio::select! {
                // A client that is gone does not mind.
                _ = time::timeout(TIMEOUT, answer) => {}
                () = control.stopped() => {}
            }
        })
    }

    fn reload(&self, settings: &ListenerSettings) {
        self.is_weight_free.store(settings.weight == Weight::Free, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_one_that_leaves_the_operator_of_the_balancer_alone() {
        let ready = |weight, open, limit| line(Readiness::Ready, weight, open, limit);
        for (open, limit, expected) in
            [(0, 4096, 100), (1, 4096, 99), (2048, 4096, 50), (4096, 4096, 1), (5000, 4096, 1), (0, 1, 100), (1, 1, 1)]
        {
            assert_eq!(ready(Weight::Free, open, limit), format!("up {expected}%\n"));
            assert_eq!(ready(Weight::Constant, open, limit), "up 100%\n");
        }
        for weight in Weight::ALL {
            assert_eq!(line(Readiness::LameDuck, weight, 0, 9), "up 0%\n");
            assert_eq!(line(Readiness::Stopping, weight, 0, 9), "down #stopping\n");
            assert_eq!(line(Readiness::ListenerFailed, weight, 0, 9), "down #listener failed\n");
        }
    }
}
