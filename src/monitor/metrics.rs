//! All metrics, as docs/monitoring.md has them.

use std::time::UNIX_EPOCH;

use super::exposition::{Exposition, Format};
use super::process_counters::ResultCounts;
use super::process_stats::ProcessStats;
use super::source::Source;
use crate::server::{ListenerCounts, Phase, Readiness};

/// Writes all metrics as they are now.
pub(super) fn write(source: &Source, format: Format) -> String {
    let mut text = Exposition::new(format);
    write_listeners(source, &mut text);
    write_server(source, &mut text);
    write_process(source, &mut text);
    text.finish()
}

fn write_listeners(source: &Source, text: &mut Exposition) {
    let all = source.server.counts_by_listener();
    let listeners = || all.iter().map(|(name, counts)| (name.as_str(), counts));
    let of_connections = || listeners().filter(|(_, counts)| counts.has_connections);
    let of_datagrams = || listeners().filter(|(_, counts)| counts.has_datagrams);

    let mut samples = text.gauge("echoed_connections", "Connections that are open.");
    of_connections().for_each(|(name, counts)| samples.add(&[("listener", name)], counts.connections()));
    let mut samples = text.counter("echoed_connections_accepted", "Connections accepted, those refused included.");
    of_connections().for_each(|(name, counts)| samples.add(&[("listener", name)], counts.accepted));
    let mut samples = text.counter("echoed_connections_resumed", "Connections restored from a previous process.");
    of_connections().for_each(|(name, counts)| samples.add(&[("listener", name)], counts.resumed));
    let mut samples = text.counter("echoed_connections_ended", "Connections ended, by the reason.");
    for (name, counts) in of_connections() {
        for (verdict, count) in &counts.ended {
            samples.add(&[("listener", name), ("verdict", verdict)], count);
        }
    }
    let mut each = |name, help, value: fn(&ListenerCounts) -> u64| {
        let mut samples = text.counter(name, help);
        listeners().for_each(|(name, counts)| samples.add(&[("listener", name)], value(counts)));
    };
    each("echoed_messages", "Messages received.", |counts| counts.messages);
    each("echoed_received_bytes", "Bytes received.", |counts| counts.received_bytes);
    each("echoed_sent_bytes", "Bytes sent.", |counts| counts.sent_bytes);
    let mut samples = text.counter("echoed_datagrams_received", "Datagrams received.");
    of_datagrams().for_each(|(name, counts)| samples.add(&[("listener", name)], counts.datagrams_received()));
    let mut samples = text.counter("echoed_datagrams_answered", "Datagrams served, those without a reply included.");
    of_datagrams().for_each(|(name, counts)| samples.add(&[("listener", name)], counts.datagrams_answered));
    let mut samples = text.counter("echoed_datagrams_dropped", "Datagrams dropped, by the cause.");
    for (name, counts) in of_datagrams() {
        for (cause, count) in &counts.datagrams_dropped {
            samples.add(&[("listener", name), ("cause", cause)], count);
        }
    }
    let mut samples = text.counter("echoed_accept_errors", "Failed calls of accept(2) and recvmmsg(2), by the error.");
    for (name, counts) in listeners() {
        for (error, count) in &counts.accept_errors {
            samples.add(&[("listener", name), ("error", error)], count);
        }
    }
}

fn write_server(source: &Source, text: &mut Exposition) {
    let (server, log) = (&source.server, (source.log)());
    let process = source.process_counts(log);
    let (is_ready, is_draining) = (server.readiness() == Readiness::Ready, server.phase() != Phase::Serving);
    let mut gauge = |name, help, value: u64| text.gauge(name, help).add(&[], value);
    gauge("echoed_buffer_bytes", "Unfinished messages and unsent replies.", server.buffer_memory() as u64);
    gauge("echoed_limit_connections", "limits.connections.", server.connection_limit() as u64);
    gauge("echoed_limit_buffer_bytes", "limits.buffer_memory.", server.buffer_memory_limit() as u64);
    gauge("echoed_log_entries_waiting", "Log entries that wait, since the log cannot be written to.", log.waiting);
    gauge("echoed_ready", "Whether /readyz answers 200.", is_ready.into());
    gauge("echoed_draining", "Whether it is in lame duck or stops.", is_draining.into());
    gauge("echoed_workers", "Threads that serve connections.", server.worker_count() as u64);
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    text.gauge("echoed_build_info", "The version of echoed.").add(&version, 1);
    let mut samples = text.counter("echoed_log_entries_suppressed", "Log entries suppressed by the rate limit.");
    samples.add(&[], process.log_entries_suppressed);
    let mut results = |name, help, ResultCounts { ok, failed }: ResultCounts| {
        let mut samples = text.counter(name, help);
        samples.add(&[("result", "ok")], ok);
        samples.add(&[("result", "failed")], failed);
    };
    results("echoed_reloads", "Reloads of the settings.", process.reloads);
    results("echoed_handovers", "Restarts that handed connections over.", process.handovers);
}

/// Writes what the clients of Prometheus write for every process.
fn write_process(source: &Source, text: &mut Exposition) {
    let stats = ProcessStats::read();
    let mut samples = text.counter("process_cpu_seconds", "CPU time, of the user and of the system.");
    samples.add(&[], stats.cpu_seconds);
    let mut gauge = |name, help, value: Option<u64>| {
        if let Some(value) = value {
            text.gauge(name, help).add(&[], value);
        }
    };
    gauge("process_open_fds", "Open descriptors.", stats.open_fds);
    gauge("process_max_fds", "The limit on open descriptors.", stats.max_fds);
    gauge("process_virtual_memory_bytes", "Virtual memory.", stats.virtual_memory_bytes);
    gauge("process_resident_memory_bytes", "Resident memory.", stats.resident_memory_bytes);
    gauge("process_threads", "Threads.", stats.threads);
    let started = source.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    text.gauge("process_start_time_seconds", "When the process started, since 1970.").add(&[], started);
}
