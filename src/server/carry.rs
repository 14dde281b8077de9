//! Connections that go on in another process: out of service here ([`Server::freeze`]), into service there
//! ([`Server::thaw`]). What lies between is not our business, as long as socket and state stay together.
//!
//! ```text
//! freeze   acceptors close ─► each floor, at once: last turn ─► out of its epoll set ─► socket + snapshot of the session
//! thaw     snapshot ─► session, by the settings of now ─► place (counted, not asked for) ─► the worker with the fewest
//! ```
//!
//! Nothing is torn by it. What was read is in the snapshot, what was not read is in the kernel still, and the socket with
//! its buffers and options is the same.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use tokio::time;

use super::accept::Desk;
use super::connection::{Caller, Connection, clock};
use super::event::Event;
use super::socket::{Kind, Peer};
use super::worker::HANGS;
use super::{Door, Server, desk};
use crate::config::Settings;
use crate::protocol::snapshot::Snapshot;

/// The highest number that is believed to be that of a connection. Counting from there on takes longer than anything lasts.
const LAST_NUMBER: u64 = 1 << 62;

/// How many bytes are taken and dropped at most before a socket is closed.
const UNREAD: usize = 1024 * 1024;

/// A connection that was taken out of service, to go on in another process.
#[derive(Debug)]
pub struct Frozen {
    /// Its socket, with everything in the kernel that belongs to it.
    pub socket: OwnedFd,
    /// What we know of it: [`crate::protocol::snapshot`].
    pub state: Vec<u8>,
}

/// What was taken out of service.
#[derive(Debug)]
pub struct Freeze {
    /// The connections.
    pub connections: Vec<Frozen>,
    /// How many could not be had, since their worker did not answer.
    pub missing: usize,
}

/// What became of connections that another process had taken out of service.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Thawed {
    /// They go on.
    pub resumed: usize,
    /// Nobody serves their listener any more; they get what they are owed, and end.
    pub homeless: usize,
    /// What was known of them is of no use, each for this reason; they were closed.
    pub refused: Vec<String>,
}

impl Server {
    /// Stops accepting, and takes every connection out of service; those of packets end here. It is tried once more to send
    /// what is owed, and nobody is waited for. A worker that does not answer for some seconds is left out.
    pub async fn freeze(&self) -> Freeze {
        self.door.send_replace(Door::Closed);
        // Every acceptor listens until it has dropped its socket; one whose worker hangs does not.
        let closed = async {
            self.door.closed().await;
            self.reception.stop_waiting().await;
        };
        let _ = time::timeout(HANGS, closed).await;
        let asked: Vec<_> = self.threads.iter().map(|thread| thread.worker.freeze()).collect();
        self.threads.iter().for_each(|thread| thread.worker.leave());
        let until = time::Instant::now() + HANGS;
        let mut connections = Vec::new();
        for answer in asked {
            if let Ok(Ok(frozen)) = time::timeout_at(until, answer).await {
                connections.extend(frozen);
            }
        }
        // Those of packets, which end.
        let _ = time::timeout_at(until, self.idle()).await;
        Freeze { connections, missing: self.connections() }
    }

    /// Takes connections into service that another process took out of it, `age` ago. To be called before the first
    /// listener is served: they have their places before anybody new. All of them are let in, whatever the limits, and
    /// count. They go on by these settings, each by those of its listener; `served` are the names of the listeners that
    /// there will be.
    ///
    /// It never fails: a connection of which nothing can be made is closed.
    pub fn thaw(&self, frozen: Vec<Frozen>, age: Duration, settings: &Settings, served: &[&str]) -> Thawed {
        let now = clock();
        let frozen_at = now.checked_sub(age).unwrap_or(now);
        let mut thawed = Thawed::default();
        let mut desks = HashMap::new();
        let mut arrivals: Vec<_> = self.threads.iter().map(|_| Vec::new()).collect();
        let events = &self.reception.events;
        for Frozen { socket, state } in frozen {
            let snapshot = match read(&state, &socket) {
                Ok(snapshot) => snapshot,
                Err(problem) => {
                    thawed.refused.push(problem);
                    part_from(socket);
                    continue;
                }
            };
            let name = snapshot.listener();
            let (desk, served) = desks.entry(name.to_owned()).or_insert_with(|| {
                let desk: Arc<Desk> = Arc::new(desk(name, Kind::Stream, settings.listener(name)));
                (desk, served.contains(&name))
            });
            let peer = snapshot.client().map_or_else(|| Peer::of(&socket, None), Peer::Proxied);
            let connection = snapshot.connection();
            let mut session = snapshot.thaw(Arc::clone(&desk.settings.rules), frozen_at);
            if *served {
                thawed.resumed += 1;
            } else {
                thawed.homeless += 1;
                session.drain(now);
            }
            let admission = &self.reception.admission;
            let mut place =
                if session.refused() { admission.refused_again() } else { admission.place_again(peer.source()) };
            if !place.keeps(session.memory()) {
                session.out_of_memory(now);
                place.keeps(session.memory());
            }
            self.reception.connections.fetch_max(connection, Ordering::Relaxed);
            events(Event::Resumed { connection, listener: Arc::clone(&desk.name), peer });
            let fewest = self.threads.iter().zip(&mut arrivals);
            let fewest = fewest.min_by_key(|(thread, _)| thread.worker.open.load(Ordering::Relaxed));
            let Some((thread, arrivals)) = fewest else { continue };
            let caller = Caller { connection, desk: Arc::clone(desk), peer };
            arrivals.push(Box::new(Connection::new(socket, session, caller, &thread.worker, place)));
        }
        for (thread, arrivals) in self.threads.iter().zip(arrivals) {
            thread.worker.resume(arrivals);
        }
        let homeless = desks.into_values().filter(|(_, served)| !served).map(|(desk, _)| desk).collect();
        self.cut_after(settings.service.drain.length(), homeless);
        thawed
    }

    /// Ends the connections of these desks when so much time has passed.
    fn cut_after(&self, time: Duration, desks: Vec<Arc<Desk>>) {
        if desks.is_empty() {
            return;
        }
        for thread in &self.threads {
            let (worker, desks) = (Arc::clone(&thread.worker), desks.clone());
            thread.worker.spawn(async move {
                time::sleep(time).await;
                worker.cut(&desks);
            });
        }
    }
}

/// What is in `state`, if it can be believed.
fn read(state: &[u8], socket: &OwnedFd) -> Result<Snapshot, String> {
    let snapshot = Snapshot::read(state).map_err(|error| error.to_string())?;
    let number = snapshot.connection();
    if number > LAST_NUMBER {
        return Err(format!("{number} is not the number of a connection"));
    }
    // It was, if it was ours.
    rustix::io::ioctl_fionbio(socket, true).map_err(|error| format!("its socket is of no use: {error}"))?;
    Ok(snapshot)
}

/// Closes a connection as politely as can be done at once: with the end of the stream, and not with a reset for input that
/// nobody read.
pub fn part_from(socket: OwnedFd) {
    // A peer that is gone does not mind.
    let _ = rustix::net::shutdown(&socket, Shutdown::Write);
    let (mut room, mut left) = ([0; 16 * 1024], UNREAD);
    while left > 0 {
        match rustix::net::recv(&socket, &mut room, RecvFlags::DONTWAIT) {
            Ok((0, _)) => break,
            Ok((count, _)) => left = left.saturating_sub(count),
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
}
