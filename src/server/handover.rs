//! Handover: connections are detached in this process ([`Server::detach`]) and restored in the next
//! ([`Server::restore`]). How they are passed on is not part of this module; a socket and its snapshot must stay
//! together.
//!
//! ```text
//! detach    acceptors close ─► each event loop, at once: last drive ─► out of its epoll set ─► socket + snapshot
//! restore   snapshot ─► session, under the current settings ─► permit (counted against limits, not refused) ─► least loaded worker
//! ```
//!
//! No byte is lost: what was read is in the snapshot, what was not read stays in the kernel, and the socket keeps its
//! buffers and options.

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

/// The highest id that is accepted from a snapshot. No server reaches it by counting.
const MAX_ID: u64 = 1 << 62;

/// The result of [`Server::detach`].
#[derive(Debug)]
pub struct Detached {
    /// The detached connections.
    pub connections: Vec<DetachedConnection>,
    /// How many connections were not detached, because their worker did not respond.
    pub unresponsive: usize,
}

/// The result of [`Server::restore`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Restored {
    /// How many connections resume.
    pub resumed: usize,
    /// How many connections are drained because their listener is no longer served.
    pub orphaned: usize,
    /// One reason for each connection that was rejected and closed.
    pub rejected: Vec<String>,
}

impl Server {
    /// Stops accepting, and detaches every connection.
    ///
    /// When all acceptors have ended, calls `freeze_log`: the next process logs what the log has not written by then.
    /// Then each event loop tries once more to send what is owed, without waiting for peers. Skips a worker that does
    /// not respond within 2 s. Datagrams cannot be handed over; those that wait for the log are lost half a second
    /// after the call.
    pub async fn detach(&self, freeze_log: impl FnOnce()) -> Detached {
        self.set_accept_mode(AcceptMode::Stop);
        self.datagram_threads().iter().for_each(|thread| thread.control.end_log_wait());
        // Every acceptor keeps its receiver until it has dropped its socket. An acceptor on a worker that hangs never
        // drops it.
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

    /// Restores connections that another process detached `age` ago.
    ///
    /// Must be called before the first listener is served, so that no new connection takes a permit from a restored
    /// one. Restored connections count against the limits on connections, which refuse none of them; a session that exceeds
    /// `limits.buffer_memory` ends. Each resumes under the
    /// settings of its listener in `settings`; `serving` has the names of the listeners that will be served.
    ///
    /// A connection that cannot be restored is closed.
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

    /// Closes a connection with an end of stream, discarding unread input so that the kernel sends no reset. If the
    /// peer may have sent file descriptors, another thread closes it ([`Server::flush_closed`]).
    pub fn close_gracefully(&self, socket: OwnedFd) {
        if PeerDescriptors::refuse(&socket) == PeerDescriptors::None {
            close_gracefully(socket);
        } else {
            self.dispatcher.services.state.disposal.close_gracefully(socket);
        }
    }

    /// Blocks the calling thread until every ended connection is closed, at most for `timeout`.
    pub fn flush_closed(&self, timeout: Duration) {
        self.dispatcher.services.state.disposal.flush(timeout);
    }

    /// Closes the connections of these listeners after `time`.
    fn close_listeners_after(&self, time: Duration, listeners: Vec<Arc<Listener>>) {
        if listeners.is_empty() {
            return;
        }
        let (dispatcher, closed) = (Arc::clone(&self.dispatcher), listeners.clone());
        let close = async move {
            time::sleep(time).await;
            dispatcher.workers.iter().for_each(|worker| worker.close_listeners(&closed));
        };
        // Without the services thread, closes them at once: their clients were told that the connection ends.
        if self.dispatcher.services.spawn(close).is_err() {
            self.threads.iter().for_each(|thread| thread.worker.close_listeners(&listeners));
        }
    }
}

/// Decodes the snapshot in `bytes`, and checks that it fits its socket.
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
    if snapshot.has_packets() {
        // A socket from our own fd store is already prepared and non-blocking; other sockets may not be.
        let prepared = packet_socket::prepare(socket);
        prepared.map_err(|error| format!("its socket cannot be prepared: {error}"))?;
    }
    let set = retry_on_intr(|| rustix::io::ioctl_fionbio(socket, true));
    set.map_err(|error| format!("its socket cannot be made non-blocking: {error}"))?;
    Ok(snapshot)
}
