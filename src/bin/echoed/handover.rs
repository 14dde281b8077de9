//! The handover of live connections: from the server into the manager's fd store, and in the next process from there
//! into the server.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use echoed::config::Settings;
use echoed::monitor::ProcessCounters;
use echoed::server::{Counts, Detached, DetachedConnection, Phase, Restored, Server};
use echoed::systemd::fdstore::{self, StoreResult, StoredConnection, Unpacked};
use echoed::systemd::notify;
use tokio::time::Instant;

use crate::log::{LeveledLog, Note, plural};
use crate::process_state::ProcessState;

/// How long closing connections that could not be stored may take: a peer may have sent descriptors that take longer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Stores all connections for the next process, with the state of this one, and ends the server. Returns how many messages wait
/// for the log with them. Without connections, the state is stored only if `keeps_state` or if it is in lame duck.
pub(crate) async fn store_connections(
    server: Server,
    process: &ProcessCounters,
    phase: Phase,
    keeps_state: bool,
    log: &LeveledLog,
) -> usize {
    let (began, ended_before) = (Instant::now(), ended_count(&server));
    // Nothing is counted, and no figure is shown, after the state was taken.
    let (detached, ()) = tokio::join!(server.detach(|| log.freeze_messages()), server.stop_services());
    let Detached { connections, unresponsive } = detached;
    let detached = connections.len();
    let finished = ended_count(&server).saturating_sub(ended_before + detached as u64);
    if unresponsive > 0 {
        let s = plural(unresponsive);
        log.note(Note::StoreFailed, &format!("cut {unresponsive} connection{s}: the worker thread is not responding"));
    }
    let unlogged: Vec<_> = connections.iter().map(|connection| connection.unlogged).collect();
    let mut state = ProcessState::of(&server.handle(), process, log, phase);
    state.handover = Some(unresponsive == 0);
    let is_stored = keeps_state || state.is_draining() || !connections.is_empty();
    let (stored, remaining) = store_in_fdstore(connections, is_stored.then_some(&state), log);
    let took = milliseconds(began.elapsed());
    // These are closed without waiting for their end.
    let cut = unresponsive + detached - stored;
    // Connections are stored in their order, so those that remain are the last ones.
    let (waiting, lost) = unlogged.split_at(stored);
    server.unlogged_messages().add_lost(lost.iter().sum());
    for connection in remaining {
        server.close_gracefully(connection.socket);
    }
    server.flush_closed(CLOSE_TIMEOUT);
    let Counts { accepted, totals, .. } = server.counts();
    drop(server);
    let messages = totals.messages;
    log.note(
        Note::Stopped,
        &format!(
            "stopped: {stored} connections handed over in {took} ms, {finished} finished, {cut} cut; \
             {messages} messages, {accepted} connections in all"
        ),
    );
    waiting.iter().sum()
}

/// Returns how many connections have ended.
fn ended_count(server: &Server) -> u64 {
    server.counts().ended.iter().sum()
}

/// Stores the state of this process for the next one, which gets no connections.
pub(crate) fn store_state(state: &ProcessState, log: &LeveledLog) {
    store_in_fdstore(Vec::new(), Some(state), log);
}

/// Stores connections and the state of the process in the fd store, and waits until the manager has them. Returns how many
/// connections were stored, and the others.
fn store_in_fdstore(
    connections: Vec<DetachedConnection>,
    state: Option<&ProcessState>,
    log: &LeveledLog,
) -> (usize, Vec<StoredConnection>) {
    let count = connections.len();
    if count == 0 && state.is_none() {
        log.check_notified(notify::barrier());
        return (0, Vec::new());
    }
    let connections = connections
        .into_iter()
        .map(|DetachedConnection { socket, snapshot, .. }| StoredConnection { socket, snapshot })
        .collect();
    let StoreResult { stored, remaining, problem, unconfirmed } =
        fdstore::store(connections, state.map(ProcessState::to_bytes).as_deref());
    if let Some(problem) = problem {
        let text = match remaining.len() {
            0 => format!("failed to store the counters, the next process counts from 0: {problem}"),
            cut => format!("failed to store {cut} of {count} connections, cutting them: {problem}"),
        };
        log.note(Note::StoreFailed, &text);
    }
    if let Some(error) = unconfirmed {
        let what = if count == 0 { "the counters".to_owned() } else { format!("{stored} of {count} connections") };
        let text = format!("the service manager did not confirm that it stored {what}: {error}");
        log.note(Note::StoreFailed, &text);
    }
    (stored, remaining)
}

/// Restores the connections of the previous process; `serving` has the names of the listeners that will be served. `problems`
/// are about descriptors that looked like bundles. The workers have to be started.
pub(crate) async fn restore_connections(
    server: &Server,
    bundles: Vec<OwnedFd>,
    mut problems: Vec<String>,
    settings: &Settings,
    serving: &[&str],
    process: &Arc<ProcessCounters>,
    log: &LeveledLog,
) {
    // Before the bundles are used: one that crashes the process is tried only once.
    log.check_notified(fdstore::remove());
    let began = Instant::now();
    let Unpacked { connections, state, age, problems: bundle_problems } = fdstore::unpack(bundles);
    problems.extend(bundle_problems);
    let state = match state.as_deref().map(ProcessState::from_bytes).transpose() {
        Ok(state) => state.unwrap_or_default(),
        Err(error) => {
            problems.push(format!("the state of the process is invalid, counting from 0: {error}"));
            ProcessState::default()
        }
    };
    let handover = state.handover;
    state.inherit(&server.handle(), process);
    let detached: Vec<_> = connections
        .into_iter()
        .map(|StoredConnection { socket, snapshot }| DetachedConnection { socket, snapshot, unlogged: 0 })
        .collect();
    let count = detached.len();
    let Restored { resumed, orphaned, rejected } = server.restore(detached, age, settings, serving);
    // Then all of them have been driven once.
    server.ping_workers().await;
    let closed = rejected.len();
    // Without a word about it, there were connections.
    if handover.is_some() || count > 0 || !problems.is_empty() {
        process.count_handover(handover.unwrap_or(true) && problems.is_empty() && closed == 0);
    }
    let rejected = rejected.into_iter().map(|problem| format!("closed a connection: {problem}"));
    for problem in problems.into_iter().chain(rejected) {
        let text = format!("failed to restore some connections from the previous process: {problem}");
        log.note(Note::RestoreFailed, &text);
    }
    if count > 0 {
        let (s, stored_ago) = (plural(resumed), milliseconds(age + began.elapsed()));
        log.note(
            Note::ConnectionsRestored,
            &format!(
                "restored {resumed} connection{s} from the previous process, stored {stored_ago} ms ago; \
                 {closed} rejected, {orphaned} orphaned"
            ),
        );
    }
}

fn milliseconds(time: Duration) -> u128 {
    time.as_millis()
}
