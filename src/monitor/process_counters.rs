//! What the process counts besides its listeners.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// What the process counts besides its listeners.
#[derive(Debug, Default)]
pub struct ProcessCounters {
    reloads: ResultCounters,
    handovers: ResultCounters,
    /// What previous processes have counted.
    log_entries_suppressed_before: AtomicU64,
}

#[derive(Debug, Default)]
struct ResultCounters {
    ok: AtomicU64,
    failed: AtomicU64,
}

/// What this process and those before it have counted besides their listeners.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessCounts {
    /// Reloads of the settings.
    pub reloads: ResultCounts,
    /// Handovers of connections from one process to the next.
    pub handovers: ResultCounts,
    /// Log entries that were suppressed.
    pub log_entries_suppressed: u64,
}

/// How often something was done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResultCounts {
    /// With success.
    pub ok: u64,
    /// In vain, or not for all.
    pub failed: u64,
}

impl ResultCounters {
    fn count(&self, is_ok: bool) {
        let counter = if is_ok { &self.ok } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn add(&self, counts: ResultCounts) {
        self.ok.fetch_add(counts.ok, Ordering::Relaxed);
        self.failed.fetch_add(counts.failed, Ordering::Relaxed);
    }

    fn counts(&self) -> ResultCounts {
        ResultCounts { ok: self.ok.load(Ordering::Relaxed), failed: self.failed.load(Ordering::Relaxed) }
    }
}

impl ProcessCounters {
    /// Counts a reload.
    pub fn count_reload(&self, is_ok: bool) {
        self.reloads.count(is_ok);
    }

    /// Counts a handover from the previous process.
    pub fn count_handover(&self, is_ok: bool) {
        self.handovers.count(is_ok);
    }

    /// Adds what the previous process has counted.
    pub fn inherit(&self, counts: ProcessCounts) {
        self.reloads.add(counts.reloads);
        self.handovers.add(counts.handovers);
        self.log_entries_suppressed_before.fetch_add(counts.log_entries_suppressed, Ordering::Relaxed);
    }

    /// Returns all counts. This process has suppressed so many log entries.
    #[must_use]
    pub fn counts(&self, log_entries_suppressed: u64) -> ProcessCounts {
        let before = self.log_entries_suppressed_before.load(Ordering::Relaxed);
        ProcessCounts {
            reloads: self.reloads.counts(),
            handovers: self.handovers.counts(),
            log_entries_suppressed: before + log_entries_suppressed,
        }
    }
}
