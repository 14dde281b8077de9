//! Live connections over a restart: from the server into the manager's store, and out of it into the server.

use std::os::fd::OwnedFd;
use std::time::Duration;

use echoed::config::Settings;
use echoed::server::{Counts, Detached, DetachedConnection, Restored, Server, close_gracefully};
use echoed::systemd::notify;
use echoed::systemd::parcel::{self, Item, Opened, Stored};
use tokio::time::Instant;

use crate::log::{LeveledLog, Note};

/// Ends, and hands over all connections to the next process.
pub(crate) async fn hand_over(server: Server, log: &LeveledLog) {
    let (began, before) = (Instant::now(), ended(&server));
    let Detached { connections, unresponsive } = server.detach().await;
    let frozen = connections.len();
    let finished = ended(&server).saturating_sub(before + frozen as u64);
    if unresponsive > 0 {
        log.note(Note::NotStored, &format!("{unresponsive} connections are cut: their worker does not answer"));
    }
    let (carried, left) = store(connections, log);
    let took = milliseconds(began.elapsed());
    // Nobody waits for the end of these.
    let cut = unresponsive + frozen - carried;
    for item in left {
        close_gracefully(item.socket);
    }
    let Counts { accepted, totals, .. } = server.counts();
    drop(server);
    let messages = totals.messages;
    log.note(
        Note::Stopped,
        &format!(
            "stopped: {carried} connections handed over in {took} ms, {finished} finished, {cut} cut; \
             {messages} messages on {accepted} connections in all"
        ),
    );
}

/// How many connections have ended.
fn ended(server: &Server) -> u64 {
    server.counts().ended.iter().sum()
}

/// Has the manager keep connections. Returns how many it has, and the others; when it has them for certain.
fn store(connections: Vec<DetachedConnection>, log: &LeveledLog) -> (usize, Vec<Item>) {
    let count = connections.len();
    if count == 0 {
        log.told(notify::barrier());
        return (0, Vec::new());
    }
    let items = connections
        .into_iter()
        .map(|DetachedConnection { socket, snapshot }| Item { socket, state: snapshot })
        .collect();
    match parcel::store(items) {
        Ok(Stored { carried, left, problem }) => {
            if let Some(problem) = problem {
                log.note(Note::NotStored, &format!("{} of {count} connections are cut: {problem}", left.len()));
            }
            (carried, left)
        }
        Err(error) => {
            let text = format!("all {count} connections are cut: the service manager cannot be told of them: {error}");
            log.note(Note::NotStored, &text);
            (0, Vec::new())
        }
    }
}

/// Goes on with the connections of the process before, if there are any; `served` are the names of the listeners that
/// there will be. `problems` are about what looked like them.
pub(crate) async fn take_over(
    server: &Server,
    parcels: Vec<OwnedFd>,
    mut problems: Vec<String>,
    settings: &Settings,
    served: &[&str],
    log: &LeveledLog,
) {
    if parcels.is_empty() && problems.is_empty() {
        return;
    }
    // Whatever becomes of them, it does so only once.
    log.told(parcel::forget());
    let began = Instant::now();
    let Opened { items, age, problems: in_parcels } = parcel::open(parcels);
    problems.extend(in_parcels);
    let frozen: Vec<_> =
        items.into_iter().map(|Item { socket, state: snapshot }| DetachedConnection { socket, snapshot }).collect();
    let count = frozen.len();
    let Restored { resumed, orphaned, rejected } = server.restore(frozen, age, settings, served);
    // Then all of them have had their first turn.
    server.ping_workers().await;
    let closed = rejected.len();
    let refused = rejected.into_iter().map(|problem| format!("closed a connection: {problem}"));
    for problem in problems.into_iter().chain(refused) {
        let text = format!("cannot go on with all that the process before has stored: {problem}");
        log.note(Note::NotRestored, &text);
    }
    if count > 0 {
        let took = milliseconds(age + began.elapsed());
        log.note(
            Note::TakenOver,
            &format!(
                "{resumed} connections of the process before go on, {took} ms after it stored them; {closed} refused, \
                 {orphaned} of listeners that are no more"
            ),
        );
    }
}

fn milliseconds(time: Duration) -> u128 {
    time.as_millis()
}
