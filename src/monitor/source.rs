//! Where the figures come from.

use std::sync::Arc;
use std::time::SystemTime;

use super::process_counters::{ProcessCounters, ProcessCounts};
use crate::server::ServerHandle;

/// Where the figures come from. They are read anew for each request.
pub struct Source {
    /// The server.
    pub server: ServerHandle,
    /// What the process counts besides.
    pub process: Arc<ProcessCounters>,
    /// Returns what the log counts.
    pub log: Box<dyn Fn() -> LogCounts + Send + Sync>,
    /// When the process started.
    pub started: SystemTime,
}

/// What the log counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct LogCounts {
    /// Entries that were suppressed in this process.
    pub suppressed: u64,
    /// Entries that wait since the log cannot be written to.
    pub waiting: u64,
}

impl Source {
    /// Returns what the process counts besides its listeners.
    pub(super) fn process_counts(&self, log: LogCounts) -> ProcessCounts {
        self.process.counts(log.suppressed)
    }
}
