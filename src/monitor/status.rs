//! The status as JSON, for monitors and control. Every local user may read it, so it names no peer.

use std::collections::BTreeMap;

use serde::Serialize;

use super::process_counters::ResultCounts;
use super::source::Source;
use crate::server::{ListenerCounts, Readiness};

/// The figures of a daemon.
#[derive(Serialize)]
pub(crate) struct Status {
    version: &'static str,
    ready: bool,
    /// Why it is ready or not.
    state: &'static str,
    uptime_seconds: u64,
    workers: usize,
    connections: usize,
    limit_connections: usize,
    buffer_bytes: usize,
    limit_buffer_bytes: usize,
    log_entries_suppressed: u64,
    log_entries_waiting: u64,
    reloads: ResultCounts,
    handovers: ResultCounts,
    listeners: BTreeMap<String, ListenerStatus>,
}

#[derive(Serialize)]
struct ListenerStatus {
    connections: u64,
    accepted: u64,
    resumed: u64,
    /// Only those that there were.
    ended: BTreeMap<String, u64>,
    messages: u64,
    received_bytes: u64,
    sent_bytes: u64,
    datagrams_received: u64,
    datagrams_answered: u64,
    datagrams_dropped: BTreeMap<String, u64>,
    accept_errors: BTreeMap<String, u64>,
}

impl From<ListenerCounts> for ListenerStatus {
    fn from(counts: ListenerCounts) -> Self {
        let without_zeros = |counts: BTreeMap<_, _>| counts.into_iter().filter(|(_, count)| *count > 0).collect();
        Self {
            connections: counts.connections(),
            datagrams_received: counts.datagrams_received(),
            accepted: counts.accepted,
            resumed: counts.resumed,
            ended: without_zeros(counts.ended),
            messages: counts.messages,
            received_bytes: counts.received_bytes,
            sent_bytes: counts.sent_bytes,
            datagrams_answered: counts.datagrams_answered,
            datagrams_dropped: without_zeros(counts.datagrams_dropped),
            accept_errors: counts.accept_errors,
        }
    }
}

impl Status {
    /// Returns the figures as they are now.
    pub(crate) fn of(source: &Source) -> Self {
        let (server, log) = (&source.server, (source.log)());
        let process = source.process_counts(log);
        let readiness = server.readiness();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            ready: readiness == Readiness::Ready,
            state: readiness.as_str(),
            uptime_seconds: source.started.elapsed().unwrap_or_default().as_secs(),
            workers: server.worker_count(),
            connections: server.connection_count(),
            limit_connections: server.connection_limit(),
            buffer_bytes: server.buffer_memory(),
            limit_buffer_bytes: server.buffer_memory_limit(),
            log_entries_suppressed: process.log_entries_suppressed,
            log_entries_waiting: log.waiting,
            reloads: process.reloads,
            handovers: process.handovers,
            listeners: server.counts_by_listener().into_iter().map(|(name, counts)| (name, counts.into())).collect(),
        }
    }
}

/// Writes the status as it is now.
pub(super) fn write(source: &Source) -> String {
    // There is nothing in it that JSON could not have.
    let mut text = serde_json::to_string_pretty(&Status::of(source)).unwrap_or_default();
    text.push('\n');
    text
}
