//! What other threads ask of an event loop: its mailbox's commands.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll::{self, EventFlags};
use slab::Slab;

use super::{EventLoop, WatchedAcceptor};
use crate::server::clock::clock;
use crate::server::connection::{Connection, DetachedConnection, Readiness};
use crate::server::idleness::IdleReport;
use crate::server::listener::Listener;
use crate::server::listing::{CloseOutcome, CloseRequest, SLICE, Slice, SliceRequest};
use crate::server::mailbox::{NextRun, Reclaim};
use crate::server::timers::TimerQueue;

impl EventLoop {
    /// Runs the commands from other threads. Returns whether the event loop continues.
    pub(super) fn run_commands(&mut self, now: Instant) -> bool {
        let commands = self.mailbox.take();
        for connection in commands.accepted {
            self.insert(connection, Readiness::None, now);
        }
        for connection in commands.restored {
            connection.count_resumed(&self.state);
            // Even if a deadline passed during the handover, input that arrived before it is answered.
            self.insert(connection, Readiness::ReadUntilBlocked, now);
        }
        for acceptor in commands.acceptors {
            let key = self.acceptors.insert(WatchedAcceptor { acceptor, next: NextRun::Paused(None), watched: false });
            self.run_acceptor(key, EventFlags::empty(), now);
        }
        if commands.run_acceptors {
            self.run_acceptors(now, |_| true);
        } else if commands.resume_acceptors {
            self.run_acceptors(now, |one| matches!(one.next, NextRun::Paused(_)));
        }
        for key in commands.woken {
            self.drive(key, Readiness::ReadUntilBlocked, now);
        }
        for (key, id) in commands.unparked {
            if self.connections.get_mut(key).is_some_and(|connection| connection.unpark(id)) {
                self.drive(key, Readiness::ReadUntilBlocked, now);
            }
        }
        for answer in commands.idle_reports {
            // Fails if the caller has stopped waiting.
            let _ = answer.send(self.report_idle());
        }
        for Reclaim { key, id, since, answer } in commands.reclaims {
            let _ = answer.send(self.reclaim(key, id, since, now));
        }
        for SliceRequest { from, answer } in commands.slices {
            let _ = answer.send(self.list(from, now));
        }
        for CloseRequest { id, from, answer } in commands.closes {
            let _ = answer.send(self.close_connection(id, from, now));
        }
        if commands.drain {
            let all: Vec<_> = self.connections.iter().map(|(key, _)| key).collect();
            for key in all {
                self.drive(key, Readiness::None, now);
            }
        }
        if commands.give_up_blocked {
            self.log_remaining(Connection::is_blocked_by_peer, now);
        }
        if !commands.close_listeners.is_empty() {
            self.close_listeners(&commands.close_listeners);
        }
        // If the caller no longer waited for the connections, they would be lost.
        if let Some(answer) = commands.detach.filter(|answer| !answer.is_closed()) {
            if let Err(lost) = answer.send(self.detach(now)) {
                // The caller has just stopped waiting.
                self.state.sink.unlogged.add_lost(lost.iter().map(|one| one.unlogged).sum());
            }
        }
        // Includes the mailbox and the kernel timer.
        let watched = self.connections.len() + self.acceptors.len() + 2;
        self.barriers.add(commands.barriers, watched);
        // Dropped last: the commands taken with them have been run.
        drop(commands.pings);
        !commands.stop
    }

    pub(super) fn report_idle(&self) -> IdleReport {
        let mut report = IdleReport::default();
        for (key, connection) in self.connections.iter().filter(|(_, connection)| connection.counts()) {
            let (id, source) = (connection.id(), connection.holder());
            report.add(key, id, source, connection.idle_since());
        }
        report
    }

    /// Closes a connection if it has been idle since `since`. Returns whether it ends or has ended.
    pub(super) fn reclaim(&mut self, key: usize, id: u64, since: Instant, now: Instant) -> bool {
        let exists = |all: &Slab<Box<Connection>>| all.get(key).is_some_and(|one| one.id() == id);
        if exists(&self.connections) {
            // Answers input that has arrived since it was chosen.
            self.drive(key, Readiness::ReadUntilBlocked, now);
        }
        if !exists(&self.connections) {
            return true;
        }
        let connection = &mut self.connections[key];
        if connection.idle_since() != Some(since) {
            return false;
        }
        if connection.reclaim(now) {
            self.drive(key, Readiness::None, now);
        } else {
            self.remove(key);
        }
        true
    }

    /// Lists the connections whose keys are in the slice from `from` on.
    pub(super) fn list(&self, from: usize, now: Instant) -> Slice {
        let (keys, next) = self.slice(from);
        let connections = keys.filter_map(|key| self.connections.get(key)).map(|one| one.status(now)).collect();
        Slice { connections, next }
    }

    /// Returns the keys of the slice from `from` on, and where the next one begins; `None` after the last one.
    fn slice(&self, from: usize) -> (Range<usize>, Option<usize>) {
        let all = self.connections.capacity();
        let end = all.min(from.saturating_add(SLICE));
        (from..end, (end < all).then_some(end))
    }

    /// Closes a connection for an administrator, if its key is in the slice from `from` on: after the messages that were read are
    /// answered, with a final reply.
    pub(super) fn close_connection(&mut self, id: u64, from: usize, now: Instant) -> CloseOutcome {
        let (mut keys, next) = self.slice(from);
        let Some(key) = keys.find(|key| self.connections.get(*key).is_some_and(|one| one.id() == id)) else {
            return next.map_or(CloseOutcome::NotFound, CloseOutcome::Continue);
        };
        self.connections[key].close_for_admin(now);
        self.drive(key, Readiness::None, now);
        CloseOutcome::Closed
    }

    /// Detaches all connections in whatever state they are, after one last drive. Connections that this drive finishes
    /// end here.
    pub(super) fn detach(&mut self, now: Instant) -> Vec<DetachedConnection> {
        let all: Vec<_> = self.connections.iter().map(|(key, _)| key).collect();
        for key in all {
            // Tries once more to send owed replies.
            self.drive(key, Readiness::None, now);
        }
        (self.timers, self.run_queue) = (TimerQueue::default(), VecDeque::new());
        let (epoll, state) = (&self.epoll, &self.state);
        let detach = |connection: Box<Connection>| {
            // The socket stays open, so epoll would continue to report it. Deleting a registered socket cannot fail.
            let _ = epoll::delete(epoll, connection.socket());
            connection.detach(state, now)
        };
        self.connections.drain().map(detach).collect()
    }

    /// Ends the connections of these listeners, even if replies are owed. Connections with messages that wait for the
    /// log end once the log has accepted these.
    pub(super) fn close_listeners(&mut self, listeners: &[Arc<Listener>]) {
        let is_closed = |connection: &Connection| listeners.iter().any(|listener| connection.belongs_to(listener));
        self.log_remaining(is_closed, clock());
        let ends = |connection: &Connection| is_closed(connection) && !connection.has_unlogged();
        let closed: Vec<_> = self.connections.iter().filter(|(_, one)| ends(one)).map(|(key, _)| key).collect();
        for key in closed {
            self.remove(key);
        }
    }

    /// Ends the wanted connections that have messages that must be logged and have not been: the messages are logged
    /// but not answered. If the log has no room, the connections wait for it.
    pub(super) fn log_remaining(&mut self, wanted: impl Fn(&Connection) -> bool, now: Instant) {
        let wanted: Vec<_> = self.connections.iter().filter(|(_, one)| wanted(one)).map(|(key, _)| key).collect();
        for key in wanted {
            if self.connections[key].abandon_unlogged() {
                self.drive(key, Readiness::None, now);
            }
        }
    }
}
