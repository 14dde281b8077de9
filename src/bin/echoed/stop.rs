//! The end of the process: connections go to the next process, or are drained; and what of the log is lost.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use echoed::bind::SocketFile;
use echoed::config::Service;
use echoed::monitor::ProcessCounters;
use echoed::server::{Counts, Server};
use echoed::systemd::{fdstore, notify};
use tokio::time;

use crate::handover;
use crate::log::{LeveledLog, Note, plural};
use crate::process_state::ProcessState;
use crate::signals::{Signals, TERMINATE};
use crate::start_error::EX_OSERR;
use crate::supervisor::{ExitReason, RunMode};

/// How long messages may wait for the lossless log after the drain.
const UNLOGGED_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the connections that had such messages may take to send what they owe then.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the drain checks whether messages still wait.
const UNLOGGED_INTERVAL: Duration = Duration::from_millis(20);

/// How often the stop timeout is extended while the server drains.
const EXTEND_INTERVAL: Duration = Duration::from_secs(10);

/// How the process ends.
pub(crate) struct Ended {
    pub(crate) code: ExitCode,
    /// Messages that should have been logged whole, and were not.
    pub(crate) lost_messages: usize,
    /// Messages that the next process has to log.
    pub(crate) waiting_messages: usize,
}

/// What was served, and is to be stopped.
pub(crate) struct Served<'a> {
    pub(crate) server: Server,
    pub(crate) process: &'a ProcessCounters,
    pub(crate) mode: RunMode,
    pub(crate) files: Vec<SocketFile>,
    /// Whether a monitor shows what was counted: the next process goes on counting from there.
    pub(crate) keeps_state: bool,
}

/// Stops the server for this reason: as `service` says, its connections are handed over or drained.
pub(crate) async fn stop(
    Served { server, process, mode, files, keeps_state }: Served<'_>,
    reason: ExitReason,
    service: &Service,
    signals: &mut Signals,
    log: &LeveledLog,
) -> Ended {
    let handle = server.handle();
    let phase = handle.phase();
    let unlogged = server.unlogged_messages();
    if let ExitReason::ConnectionEnded = reason {
        return Ended { code: ExitCode::SUCCESS, lost_messages: unlogged.lost(), waiting_messages: 0 };
    }
    // It may be a restart.
    let has_successor = mode == RunMode::Activated && matches!(reason, ExitReason::Signal(TERMINATE));
    let can_store = has_successor && fdstore::is_available();
    let hands_over = service.handover && can_store;
    let lame_duck = match reason {
        ExitReason::Signal(_) if !hands_over => {
            service.lame_duck.duration().saturating_sub(handle.lame_duck_for().unwrap_or_default())
        }
        _ => Duration::ZERO,
    };
    let suffix = if hands_over {
        "; handing connections over to the next process".to_owned()
    } else if lame_duck > Duration::ZERO {
        format!("; draining, and serving as before for {} (service.lame_duck)", service.lame_duck)
    } else {
        String::new()
    };
    if lame_duck > Duration::ZERO {
        handle.set_leaving();
    } else {
        handle.set_stopping();
    }
    log.check_notified(notify::stopping(&format!("stopping: {reason}{suffix}")));
    log.note(Note::Stopping, &format!("stopping: {reason}{suffix}"));
    if lame_duck > Duration::ZERO {
        tokio::select! {
            () = time::sleep(lame_duck) => {}
            never = extend_stop_timeout(log) => match never {},
            signal = signals.stop() => log.note(Note::DrainAborted, &format!("lame duck ends: {signal}")),
        }
        handle.set_stopping();
    }
    let mut waiting_messages = 0;
    if hands_over {
        waiting_messages = handover::store_connections(server, process, phase, keeps_state, log).await;
    } else {
        drain(server, service.drain_timeout.duration(), signals, log).await;
        drop(files);
        let state = ProcessState::of(&handle, process, log, phase);
        if can_store && (keeps_state || state.is_draining()) {
            handover::store_state(&state, log);
        } else {
            log.check_notified(notify::barrier());
        }
    }
    // Messages of a hung worker are lost, too: at most one of each of its connections.
    let lost_messages = unlogged.lost() + unlogged.waiting();
    if lost_messages > 0 {
        let s = plural(lost_messages);
        let text = format!("{lost_messages} message{s} could not be logged, and got no reply");
        log.note(Note::MessagesLost, &text);
    }
    let code = match reason {
        ExitReason::ListenersFailed => ExitCode::from(EX_OSERR),
        ExitReason::Signal(_) | ExitReason::ConnectionEnded | ExitReason::Idle(_) => ExitCode::SUCCESS,
    };
    Ended { code, lost_messages, waiting_messages }
}

/// Drains: replies that are owed may take as long as `service.drain_timeout` says, messages that wait for the log a
/// while longer; a second signal ends both. The rest is cut.
async fn drain(server: Server, timeout: Duration, signals: &mut Signals, log: &LeveledLog) {
    let open = server.connection_count();
    let done = async {
        server.drain().await;
        server.wait_until_idle().await;
    };
    let unlogged = server.unlogged_messages();
    let drained = async {
        if time::timeout(timeout, done).await.is_err() {
            let logged = async {
                server.log_blocked().await;
                if unlogged.waiting() == 0 {
                    return;
                }
                let give_up_at = time::Instant::now() + FINISH_TIMEOUT;
                while unlogged.waiting() > 0 {
                    time::sleep(UNLOGGED_INTERVAL).await;
                    if time::Instant::now() >= give_up_at {
                        // Connections whose clients have stopped reading since then.
                        server.log_blocked().await;
                    }
                }
                let _ = time::timeout(FINISH_TIMEOUT, server.wait_until_idle()).await;
            };
            let _ = time::timeout(UNLOGGED_TIMEOUT, logged).await;
        }
    };
    tokio::select! {
        () = drained => {}
        never = extend_stop_timeout(log) => match never {},
        signal = signals.stop() => log.note(Note::DrainAborted, &format!("drain aborted: {signal}")),
    }
    server.stop_services().await;
    let cut = server.connection_count();
    let Counts { accepted, totals, .. } = server.counts();
    // From here on, the log writes no message that is counted as lost.
    log.freeze_messages();
    // Ends the workers, and with them the connections that are left.
    drop(server);
    let (finished, messages) = (open.saturating_sub(cut), totals.messages);
    log.note(
        Note::Stopped,
        &format!(
            "stopped: {finished} connections finished, {cut} cut; {messages} messages, {accepted} connections in all"
        ),
    );
}

/// Extends the stop timeout again and again, so that the manager waits for the end of the drain.
async fn extend_stop_timeout(log: &LeveledLog) -> Infallible {
    loop {
        log.check_notified(notify::extend_timeout(2 * EXTEND_INTERVAL));
        time::sleep(EXTEND_INTERVAL).await;
    }
}

/// Ends the server of a start that fails. Its connections are cut: those of the previous process, which are no longer in the fd
/// store, and those of clients that were served before a thread could not be made.
pub(crate) fn end_failed_start(server: Server, log: &LeveledLog) {
    let (cut, unlogged) = (server.connection_count(), server.unlogged_messages());
    log.freeze_messages();
    drop(server);
    if cut > 0 {
        let lost = match unlogged.lost() {
            0 => String::new(),
            lost => format!("; {lost} message{} could not be logged", plural(lost)),
        };
        let text = format!("cut {cut} connection{}, because the start failed{lost}", plural(cut));
        log.note(Note::StartFailed, &text);
    }
}

/// Tells the manager what is not in the log: the log itself cannot say it.
pub(crate) fn report_unlogged(lost_messages: usize, waiting_messages: usize, lost_entries: usize) {
    let some = |count: usize, one: &str, many: &str| {
        (count > 0).then(|| if count == 1 { format!("1 {one}") } else { format!("{count} {many}") })
    };
    let messages =
        some(lost_messages, "message of a peer, which was not answered", "messages of peers, which were not answered");
    let lost: Vec<_> = messages.into_iter().chain(some(lost_entries, "entry", "entries")).collect();
    let lost = (!lost.is_empty()).then(|| format!("could not be logged: {}", lost.join("; ")));
    let wait = "wait for the log with their connections";
    let waiting = some(waiting_messages, "message", "messages").map(|messages| format!("{messages} {wait}"));
    let status: Vec<_> = lost.into_iter().chain(waiting).collect();
    if !status.is_empty() {
        // If this fails, there is no other place to report it.
        let _ = notify::status(&format!("stopped; {}", status.join("; "))).and_then(|()| notify::barrier());
    }
}
