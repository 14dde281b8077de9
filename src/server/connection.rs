//! One connection: the path of a message from the socket through its session and back to the socket.
//!
//! THE HOT PATH. In one drive, a connection reads once or twice into the scratch of its thread, replies directly from
//! there, and waits for readiness. It owns buffers only while something is unfinished. Per message, this module does
//! only the session's work: no lock, no log, no shared counter, no timer. [`Connection::exchange`] is the short form of a
//! drive, for a connection with nothing unfinished.
//!
//! Connections of packets have separate steps: `connection/packets.rs`.

mod end;
mod packets;
mod stream;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use rustix::event::epoll::EventFlags;

use super::accepted_socket::AcceptedSocket;
use super::admission::Permit;
use super::event::EventSink;
use super::input_kind::{InputKind, Pace};
use super::listener::{ConnectionInfo, Listener};
use super::listing::ConnectionStatus;
use super::packet_scratch::PacketScratch;
use super::peer::Source;
use super::peer_descriptors::PeerDescriptors;
use super::peer_progress;
use super::receive_window;
use super::socket::SocketKind;
use super::worker_state::WorkerState;
use crate::protocol::session::MAX_PACKETS;
use crate::protocol::{Scratch, Session, Verdict, Want};

pub(crate) use end::report_lost;

/// If the last read of a connection returned at least this many bytes, its drives are queued behind those of
/// connections with less input: they take about ten times as long. Receiving [`MAX_PACKETS`] short packets takes as
/// long.
const BULK: usize = 32 * 1024;

/// A connection, from its first drive until it ends.
pub(crate) struct Connection {
    // Fields drop from top to bottom: the socket is closed before the permit is released.
    socket: OwnedFd,
    /// The events that are registered with epoll.
    interest: Interest,
    /// The readiness for its next drive from the run queue; `None` if it is not in the queue.
    pub(crate) queued: Option<Readiness>,
    /// Whether its last read, or the last drive that received packets, brought at least [`BULK`] bytes or [`MAX_PACKETS`].
    is_bulk: bool,
    input: InputKind,
    /// Whether a message waits for the lossless log and is counted as waiting.
    awaits_log: bool,
    /// When its timer fires: at the session's deadline or earlier.
    pub(crate) timer: Option<Instant>,
    session: Session,
    permit: Permit,
    info: ConnectionInfo,
    /// Woken when the log has room. Created with the first message that is logged whole.
    waker: Option<Box<Waker>>,
}

/// A connection that was detached in order to be restored in another process.
#[derive(Debug)]
pub struct DetachedConnection {
    /// The socket, with all its state in the kernel.
    pub socket: OwnedFd,
    /// The encoded session ([`crate::protocol::snapshot`]).
    pub snapshot: Vec<u8>,
    /// How many messages in the snapshot still have to be logged. They are lost if the snapshot is not restored.
    pub unlogged: usize,
}

/// The buffers of a thread. Its connections use them in turn.
#[derive(Debug, Default)]
pub(crate) struct ThreadScratch {
    pub(crate) bytes: Scratch,
    packets: PacketScratch,
}

/// The events that epoll reports for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interest {
    /// Input, edge-triggered.
    Read,
    /// Input, level-triggered.
    ReadPackets,
    /// Room for output, but not input.
    Write,
    /// Only the end of the peer's stream, while a connection of packets waits in the run queue: epoll would report its
    /// input in every pass.
    Queued,
    /// Only errors and hang-ups, which epoll always reports.
    Nothing,
}

/// Creates wakers that wake connections from any thread.
pub(crate) trait ConnectionWakers {
    /// Returns a waker that makes the event loop drive the connection with this key.
    fn drive_waker(&self, key: usize) -> Waker;

    /// Returns a waker that makes the event loop read the connection with this key again, if it still has this id.
    fn unpark_waker(&self, key: usize, id: u64) -> Waker;
}

/// The known readiness of a socket when its connection is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    /// Unknown: a deadline or a command caused the drive. If the socket is ready, epoll reports that separately.
    None,
    /// There is input that one read returns, or room for output.
    Ready,
    /// There may be input that the last drive did not read, so one read may not be enough.
    ReadUntilBlocked,
    /// As [`Readiness::ReadUntilBlocked`]; also, the peer has ended its stream, or the connection is broken.
    Ended,
}

impl Readiness {
    /// Converts the events that epoll_wait(2) reported.
    pub(crate) fn from_epoll(flags: EventFlags) -> Self {
        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            Self::Ended
        } else if flags.contains(EventFlags::PRI) {
            // One recv(2) stops at urgent data.
            Self::ReadUntilBlocked
        } else {
            Self::Ready
        }
    }

    /// Returns whether to read the socket until it has no more input.
    fn is_until_blocked(self) -> bool {
        self >= Self::ReadUntilBlocked
    }
}

/// The result of a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing to do until the socket is ready, the timer fires, or the connection is woken.
    Pending,
    /// More to do, after other connections have run.
    Yield,
    /// The connection has ended.
    Closed,
}

impl Connection {
    /// Creates a connection on `socket`, and counts it for the worker that will serve it. `state` is that of the
    /// worker.
    pub(crate) fn new(
        socket: AcceptedSocket,
        session: Session,
        info: ConnectionInfo,
        state: &WorkerState,
        permit: Permit,
    ) -> Self {
        state.add_connection();
        let AcceptedSocket { socket, descriptors, receive_buffer } = socket;
        let input = match (info.listener.kind, descriptors) {
            (SocketKind::Seqpacket, _) => InputKind::Packets { descriptors, parked: false, pace: Pace::START },
            (_, PeerDescriptors::None) => InputKind::Bytes(receive_buffer),
            _ => InputKind::WithDescriptors { descriptors, parked: false },
        };
        Self {
            socket,
            interest: if input.is_packets() { Interest::ReadPackets } else { Interest::Read },
            queued: None,
            is_bulk: false,
            input,
            awaits_log: false,
            timer: None,
            session,
            permit,
            info,
            waker: None,
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns whether the session has nothing to do before input arrives, so that a drive may be skipped.
    #[inline]
    pub(crate) fn is_new(&self) -> bool {
        self.session.wants() == Want::Read && self.session.memory() == 0 && !self.input.is_parked()
    }

    /// Prepares the socket for reading when input arrives.
    pub(crate) fn prepare_to_read(&mut self) {
        self.input.prepare(true, &self.socket);
    }

    /// Returns the time by which the connection must be driven.
    #[inline]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.session.deadline()
    }

    /// Returns the epoll flags to register.
    pub(crate) fn interest(&self) -> EventFlags {
        match self.interest {
            Interest::Read => EventFlags::IN | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET,
            Interest::ReadPackets => EventFlags::IN | EventFlags::RDHUP,
            Interest::Write => EventFlags::OUT | EventFlags::ET,
            Interest::Queued => EventFlags::RDHUP | EventFlags::ET,
            Interest::Nothing => EventFlags::ET,
        }
    }

    /// Returns the epoll flags if they have to be registered anew.
    #[inline]
    pub(crate) fn changed_interest(&mut self) -> Option<EventFlags> {
        let wants = self.session.wants();
        let interest = if wants == Want::Write {
            Interest::Write
        } else if !self.input.is_packets() {
            Interest::Read
        } else if self.queued.is_some() {
            Interest::Queued
        } else if wants == Want::Read && !self.input.is_parked() {
            Interest::ReadPackets
        } else {
            Interest::Nothing
        };
        (interest != self.interest).then(|| {
            self.interest = interest;
            self.interest()
        })
    }

    /// Returns whether to drive the connection from the run queue, behind connections with little input.
    #[inline]
    pub(crate) fn waits_its_turn(&self) -> bool {
        self.is_bulk || self.queued.is_some()
    }

    /// Returns whether [`Connection::exchange`] can replace a drive: nothing is unfinished, and the timer has not
    /// expired.
    #[inline]
    pub(crate) fn is_quiet(&self, now: Instant) -> bool {
        self.session.is_quiet() && self.input.is_settled() && self.timer.is_none_or(|at| now < at)
    }

    /// Does what the session wants and the socket allows, up to the limit for one drive. `key` is the key of the
    /// connection in the event loop.
    #[inline]
    pub(crate) fn drive(
        &mut self,
        key: usize,
        readiness: Readiness,
        now: Instant,
        scratch: &mut ThreadScratch,
        state: &WorkerState,
        wakers: &impl ConnectionWakers,
    ) -> Progress {
        let before = self.session.totals();
        let (mut readiness, reads) = (readiness, self.session.wants() == Want::Read);
        if state.is_draining() {
            self.session.drain(now);
        }
        if reads && self.session.deadline().is_some_and(|deadline| deadline <= now) {
            // Input that arrived in time is answered: this process may be the one that is late.
            readiness = Readiness::ReadUntilBlocked;
        } else if readiness == Readiness::None || self.timer.is_some_and(|at| at <= now) {
            self.handle_timeout(now, &mut scratch.bytes, state);
        }
        if !reads {
            // The session did not read, so input that epoll has already reported may still be queued.
            readiness = Readiness::ReadUntilBlocked;
        }
        let has_packets = self.input.is_packets();
        let progress = loop {
            let progress = if has_packets {
                self.run_packet_steps(key, readiness, now, &mut scratch.packets, state, wakers)
            } else {
                self.run_steps(key, readiness, now, &mut scratch.bytes, state, wakers)
            };
            if progress == Progress::Closed || self.session.deadline().is_none_or(|deadline| now < deadline) {
                break progress;
            }
            self.handle_timeout(now, &mut scratch.bytes, state);
        };
        if progress == Progress::Pending {
            self.input.prepare(self.session.wants() == Want::Read, &self.socket);
        }
        let totals = self.session.totals();
        if has_packets && totals.messages > before.messages {
            let (packets, bytes) = (totals.messages - before.messages, totals.bytes_in - before.bytes_in);
            self.is_bulk = bytes >= BULK as u64 || packets >= MAX_PACKETS as u64;
        }
        self.info.listener.counters(state).count_totals(before, totals);
        progress
    }

    fn handle_timeout(&mut self, now: Instant, scratch: &mut Scratch, state: &WorkerState) {
        if self.session.needs_peer_progress(now) {
            if receive_window::is_closed(&self.socket) {
                self.read_ahead(now, scratch, state);
            }
            if let Some(mark) = peer_progress::mark(&self.socket) {
                self.session.record_peer_progress(now, mark);
            }
        }
        self.session.handle_timeout(now);
    }

    /// Counts the connection as restored from the previous process. `state` is that of the worker that serves it.
    pub(crate) fn count_resumed(&self, state: &WorkerState) {
        self.info.listener.counters(state).count_resumed();
    }

    /// Returns whether it is a connection of packets.
    pub(crate) fn is_packets(&self) -> bool {
        self.input.is_packets()
    }

    pub(crate) fn id(&self) -> u64 {
        self.info.id
    }

    /// Returns its source for the choice of idle connections to close ([`Source::of_holder`]).
    pub(crate) fn holder(&self) -> Source {
        Source::of_holder(self.info.peer)
    }

    /// Returns whether it counts against the limit on connections.
    pub(crate) fn counts(&self) -> bool {
        self.permit.counts()
    }

    /// Returns since when it is idle ([`Session::idle_since`]). A connection with input that may be unread is not idle.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        if self.queued.is_some() || self.input.is_parked() { None } else { self.session.idle_since() }
    }

    /// Ends the connection for a waiting client, and frees its permit. Returns `false` if it must be closed at once,
    /// because too many connections are waiting for their final replies to arrive.
    pub(crate) fn reclaim(&mut self, now: Instant) -> bool {
        self.session.refuse(Verdict::Reclaimed, now);
        self.permit.refuse()
    }

    /// Ends the connection, because an administrator wants that.
    pub(crate) fn close_for_admin(&mut self, now: Instant) {
        self.session.refuse(Verdict::ClosedByAdmin, now);
    }

    /// Returns what an administrator may know of it.
    pub(crate) fn status(&self, now: Instant) -> ConnectionStatus {
        ConnectionStatus {
            id: self.info.id,
            listener: Arc::clone(&self.info.listener.name),
            peer: self.info.peer,
            age: now.saturating_duration_since(self.session.opened()),
            idle: now.saturating_duration_since(self.session.last_activity()),
            totals: self.session.totals(),
            state: self.session.activity().as_str(),
        }
    }

    /// Returns whether it is waiting for its peer to take replies.
    pub(crate) fn is_blocked_by_peer(&self) -> bool {
        self.session.wants() == Want::Write
    }

    /// Returns whether it has messages that must be logged and have not been.
    pub(crate) fn has_unlogged(&self) -> bool {
        self.session.has_unlogged_messages()
    }

    /// Ends the session if it has messages that must be logged and have not been. Returns whether it has; the next
    /// drive logs as many of them as the log accepts.
    pub(crate) fn abandon_unlogged(&mut self) -> bool {
        let is_unlogged = self.has_unlogged();
        if is_unlogged {
            self.session.abandon();
        }
        is_unlogged
    }

    /// Returns whether it belongs to this listener.
    pub(crate) fn belongs_to(&self, listener: &Arc<Listener>) -> bool {
        Arc::ptr_eq(&self.info.listener, listener)
    }

    /// Allows reading again after descriptors were closed. Returns whether the connection has this id and was waiting
    /// for that.
    pub(crate) fn unpark(&mut self, id: u64) -> bool {
        self.info.id == id && self.input.unpark()
    }
}

/// Counts the memory of a session against the budget. If the budget is exceeded, ends the session and returns `false`.
#[inline]
fn account_memory(
    session: &mut Session,
    permit: &mut Permit,
    waker: Option<&Waker>,
    info: &ConnectionInfo,
    sink: &EventSink,
    now: Instant,
) -> bool {
    if session.memory() == permit.memory() || permit.set_memory(session.memory()) {
        return true;
    }
    let unlogged = session.unlogged_messages();
    session.handle_out_of_memory(now);
    permit.set_memory(session.memory());
    let lost = unlogged.saturating_sub(session.unlogged_messages());
    report_lost(lost, waker, info, sink);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that an idle connection fits into a block of 256 bytes, of which the allocator uses 8. One byte more
    /// would cost every idle connection 16 bytes.
    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Connection>() <= 248, "{} bytes", size_of::<Connection>());
    }
}
