//! The handover of connections to another process: they are detached here ([`Server::detach`]) and restored there
//! ([`Server::restore`]). This module does not know how they get there; socket and snapshot must stay together.
//!
//! ```text
//! detach    acceptors close ─► each event loop, at once: last drive ─► out of its epoll set ─► socket + snapshot
//! restore   snapshot ─► session, under the current settings ─► permit (counted, not checked) ─► least loaded worker
//! ```
//!
//! No message is torn by it. What was read is in the snapshot, what was not read is in the kernel still, and the socket
//! with its buffers and options is the same.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::retry_on_intr;
use tokio::time;

use super::Server;
use super::accept_mode::AcceptMode;
use super::accepted_socket::AcceptedSocket;
use super::clock::clock;
use super::connection::{Connection, DetachedConnection, report_lost};
use super::disposal::close_gracefully;
use super::event::Event;
use super::listener::{ConnectionInfo, Listener};
use super::packet_socket;
use super::peer::Peer;
use super::peer_descriptors::PeerDescriptors;
use super::receive_buffer::ReceiveBuffer;
use super::socket::SocketKind;
use super::worker::HANG_TIMEOUT;
use crate::config::Settings;
use crate::protocol::snapshot::Snapshot;

/// The highest id that is accepted from a snapshot. Counting on from there takes longer than any machine runs.
const MAX_ID: u64 = 1 << 62;

/// The result of [`Server::detach`].
#[derive(Debug)]
pub struct Detached {
    /// The connections.
    pub connections: Vec<DetachedConnection>,
    /// How many connections could not be detached, since their worker did not respond.
    pub unresponsive: usize,
}

/// The result of [`Server::restore`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Restored {
    /// How many connections resume.
    pub resumed: usize,
    /// How many connections are orphaned: their listener is no longer served, so they are drained.
    pub orphaned: usize,
    /// Why connections were rejected, one reason for each. They were closed.
    pub rejected: Vec<String>,
}

impl Server {
    /// Stops accepting, and detaches every connection. Datagrams wait for the log half a second
    /// longer, and are then lost: they cannot be handed over. After that, `freeze_log` is called; what the log has not written
    /// by then is for the next process to log. The event loops try once more to send what is owed, and wait for no peer. A
    /// worker that does not respond for some seconds is skipped.
    pub async fn detach(&self, freeze_log: impl FnOnce()) -> Detached {
        self.set_accept_mode(AcceptMode::Stop);
        self.datagram_threads().iter().for_each(|thread| thread.control.end_log_wait());
        // Every acceptor keeps its receiver until it has dropped its socket; one whose worker hangs keeps it for ever.
        let closed = async {
            self.accept_mode.closed().await;
            self.dispatcher.cancel_pending().await;
        };
        let _ = time::timeout(HANG_TIMEOUT, closed).await;
        freeze_log();
        let requested: Vec<_> = self.threads.iter().map(|thread| thread.worker.detach()).collect();
        let until = time::Instant::now() + HANG_TIMEOUT;
        let mut connections = Vec::new();
        for answer in requested {
            if let Ok(Ok(detached)) = time::timeout_at(until, answer).await {
                connections.extend(detached);
            }
        }
        Detached { connections, unresponsive: self.connection_count() }
    }

    /// Restores connections that another process detached `age` ago. To be called before the first listener is served,
    /// so that no new connection takes their permits. All of them are let in, whatever the limits, and count against
    /// the limits. Each connection resumes under the settings of its listener in `settings`; `serving` has the names of
    /// the listeners that will be served.
    ///
    /// It never fails: a connection that cannot be restored is closed.
    pub fn restore(
        &self,
        detached: Vec<DetachedConnection>,
        age: Duration,
        settings: &Settings,
        serving: &[&str],
    ) -> Restored {
        let now = clock();
        let detached_at = now.checked_sub(age).unwrap_or(now);
        let mut restored = Restored::default();
        let mut listeners = HashMap::new();
        let mut per_worker: Vec<_> = self.threads.iter().map(|_| Vec::new()).collect();
        for DetachedConnection { socket, snapshot, .. } in detached {
            let snapshot = match read_snapshot(&snapshot, &socket) {
                Ok(snapshot) => snapshot,
                Err(problem) => {
                    restored.rejected.push(problem);
                    self.close_gracefully(socket);
                    continue;
                }
            };
            let name = snapshot.listener_name();
            let kind = if snapshot.has_packets() { SocketKind::Seqpacket } else { SocketKind::Stream };
            let (listener, serving) = listeners.entry((name.to_owned(), kind)).or_insert_with(|| {
                let listener = {
                    let (settings, counters) =
                        (settings.listener_settings(name), self.dispatcher.counters.of_listener(name));
                    Listener::new(name, kind, PeerDescriptors::None, settings, counters)
                };
                (Arc::new(listener), serving.contains(&name))
            });
            let peer = snapshot.client().map_or_else(|| Peer::of(&socket, None), Peer::Proxied);
            let id = snapshot.connection_id();
            let mut session = snapshot.restore(Arc::clone(&listener.settings.rules), detached_at);
            if *serving {
                restored.resumed += 1;
            } else {
                restored.orphaned += 1;
                session.drain(now);
            }
            let admission = &self.dispatcher.admission;
            let mut permit = if session.is_outside_limit() {
                admission.acquire_refused_unchecked()
            } else {
                admission.acquire_unchecked(peer.source())
            };
            let unlogged = session.unlogged_messages();
            if !permit.set_memory(session.memory()) {
                session.handle_out_of_memory(now);
                permit.set_memory(session.memory());
            }
            self.dispatcher.last_id.fetch_max(id, Ordering::Relaxed);
            self.dispatcher.sink.report(Event::Resumed { id, listener: Arc::clone(&listener.name), peer });
            let least_loaded = self.threads.iter().zip(&mut per_worker);
            let least_loaded = least_loaded.min_by_key(|(thread, _)| thread.worker.state.connection_count());
            let Some((thread, worker_connections)) = least_loaded else { continue };
            let info = ConnectionInfo { id, listener: Arc::clone(listener), peer };
            report_lost(unlogged.saturating_sub(session.unlogged_messages()), None, &info, &thread.worker.state.sink);
            let descriptors =
                if let Peer::Ip(_) = peer { PeerDescriptors::None } else { PeerDescriptors::refuse(&socket) };
            let receive_buffer = ReceiveBuffer::of(&socket, listener.settings.receive_buffer);
            let socket = AcceptedSocket { socket, descriptors, receive_buffer };
            worker_connections.push(Box::new(Connection::new(socket, session, info, &thread.worker.state, permit)));
        }
        for (thread, connections) in self.threads.iter().zip(per_worker) {
            thread.worker.restore(connections);
        }
        let orphaned = listeners.into_values().filter(|(_, serving)| !serving).map(|(listener, _)| listener).collect();
        self.close_listeners_after(settings.service.drain_timeout.duration(), orphaned);
        restored
    }

    /// Closes a connection with the end of the stream, and without a reset for input that was not read. It does not wait
    /// for what the peer may have sent with that ([`Server::flush_closed`]).
    pub fn close_gracefully(&self, socket: OwnedFd) {
        if PeerDescriptors::refuse(&socket) == PeerDescriptors::None {
            close_gracefully(socket);
        } else {
            self.dispatcher.services.state.disposal.close_gracefully(socket);
        }
    }

    /// Waits until all connections are closed that have ended, for so long at most. Blocks its thread.
    pub fn flush_closed(&self, timeout: Duration) {
        self.dispatcher.services.state.disposal.flush(timeout);
    }

    /// Ends the connections of these listeners when so much time has passed.
    fn close_listeners_after(&self, time: Duration, listeners: Vec<Arc<Listener>>) {
        if listeners.is_empty() {
            return;
        }
        let (dispatcher, closed) = (Arc::clone(&self.dispatcher), listeners.clone());
        let close = async move {
            time::sleep(time).await;
            dispatcher.workers.iter().for_each(|worker| worker.close_listeners(&closed));
        };
        // Without the thread, at once: their clients have been told to go.
        if self.dispatcher.services.spawn(close).is_err() {
            self.threads.iter().for_each(|thread| thread.worker.close_listeners(&listeners));
        }
    }
}

/// Decodes the snapshot in `bytes`, and checks whether it can be used.
fn read_snapshot(bytes: &[u8], socket: &OwnedFd) -> Result<Snapshot, String> {
    let snapshot = Snapshot::decode(bytes).map_err(|error| error.to_string())?;
    let id = snapshot.connection_id();
    if id > MAX_ID {
        return Err(format!("{id} is not the number of a connection"));
    }
    match (SocketKind::of(socket), snapshot.has_packets()) {
        (Ok(SocketKind::Stream), false) | (Ok(SocketKind::Seqpacket), true) => {}
        (Ok(_), true) => return Err("its socket carries no packets".to_owned()),
        (Ok(_), false) => return Err("its socket carries no stream".to_owned()),
        (Err(error), _) => return Err(format!("its socket cannot be used: {error}")),
    }
    // A socket that echoed stored is non-blocking already.
    if snapshot.has_packets() {
        // A socket that echoed stored is prepared already.
        let prepared = packet_socket::prepare(socket);
        prepared.map_err(|error| format!("its socket cannot be prepared: {error}"))?;
    }
    let set = retry_on_intr(|| rustix::io::ioctl_fionbio(socket, true));
    set.map_err(|error| format!("its socket cannot be made non-blocking: {error}"))?;
    Ok(snapshot)
}
