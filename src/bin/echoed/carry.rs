//! Live connections over a restart: from the server into the manager's store, and out of it into the server.

use std::os::fd::OwnedFd;
use std::time::Duration;

use echoed::config::Settings;
use echoed::server::{Counts, Freeze, Frozen, Server, Thawed, part_from};
use echoed::systemd::notify;
use echoed::systemd::parcel::{self, Item, Opened, Stored};
use tokio::time::Instant;

use crate::log::{LeveledLog, Note};

/// Ends, and hands over all connections to the next process.
pub(crate) async fn hand_over(server: Server, log: &LeveledLog) {
    let (began, before) = (Instant::now(), ended(&server));
    let Freeze { connections, missing } = server.freeze().await;
    let frozen = connections.len();
    let finished = ended(&server).saturating_sub(before + frozen as u64);
    if missing > 0 {
        log.note(Note::NotStored, &format!("{missing} connections are cut: their worker does not answer"));
    }
    let (carried, left) = store(connections, log);
    let took = milliseconds(began.elapsed());
    // Nobody waits for the end of these.
    let cut = missing + frozen - carried;
    for item in left {
        part_from(item.socket);
    }
    let Counts { connections, totals, .. } = server.counts();
    drop(server);
    let messages = totals.messages;
    log.note(
        Note::Stopped,
        &format!(
            "stopped: {carried} connections handed over in {took} ms, {finished} finished, {cut} cut; \
             {messages} messages on {connections} connections in all"
        ),
    );
}

/// How many connections have ended.
fn ended(server: &Server) -> u64 {
    server.counts().ended.iter().sum()
}

/// Has the manager keep connections. Returns how many it has, and the others; when it has them for certain.
fn store(connections: Vec<Frozen>, log: &LeveledLog) -> (usize, Vec<Item>) {
    let count = connections.len();
    if count == 0 {
        log.told(notify::barrier());
        return (0, Vec::new());
    }
    let items = connections.into_iter().map(|Frozen { socket, state }| Item { socket, state }).collect();
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
    let frozen: Vec<_> = items.into_iter().map(|Item { socket, state }| Frozen { socket, state }).collect();
    let count = frozen.len();
    let Thawed { resumed, homeless, refused } = server.thaw(frozen, age, settings, served);
    // Then all of them have had their first turn.
    server.answer().await;
    let closed = refused.len();
    let refused = refused.into_iter().map(|problem| format!("closed a connection: {problem}"));
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
                 {homeless} of listeners that are no more"
            ),
        );
    }
}

fn milliseconds(time: Duration) -> u128 {
    time.as_millis()
}
