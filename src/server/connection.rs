//! One connection: the way of a message from the socket through its session back to the socket.
//!
//! THE HOT PATH. In one drive, a connection reads once or twice into the scratch of its thread, answers at once from
//! where the input lies, and waits for readiness; it owns no buffers unless something is unfinished. Per message
//! nothing happens here but the session's work: no lock, no log, no shared counter, no timer.
//!
//! Connections of packets have steps of their own: `connection/packets.rs`.

mod packets;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::{Errno, ioctl_fionread, retry_on_intr};
use rustix::net::{RecvFlags, Shutdown};

use super::accepted_socket::{self, AcceptedSocket};
use super::admission::Permit;
use super::clock::clock;
use super::event::{Event, EventSink};
use super::input_kind::{InputKind, Pace};
use super::listener::{ConnectionInfo, Listener};
use super::outlet::{LoggingOutlet, SocketOutlet};
use super::packet_scratch::PacketScratch;
use super::peer::{Peer, Source};
use super::peer_descriptors::PeerDescriptors;
use super::peer_progress;
use super::receive_window;
use super::socket::SocketKind;
use super::socket_error;
use super::worker_state::WorkerState;
use crate::protocol::rules::LogMessages;
use crate::protocol::session::MAX_PACKETS;
use crate::protocol::snapshot;
use crate::protocol::{Scratch, Session, Verdict, Want};

/// How many steps one drive may take: one that answers, and one that finds the end of the stream, or no more input.
/// Then other connections run.
const MAX_STEPS: u32 = 2;

/// A connection whose last read brought this many bytes waits for its turn behind those that send little: a drive of it takes
/// some ten times as long as theirs. [`MAX_PACKETS`] short packets take as long.
const BULK: usize = 32 * 1024;

/// A connection that is served until it ends.
pub(crate) struct Connection {
    // Dropped from top to bottom: the descriptor is closed before the permit is released.
    socket: OwnedFd,
    /// What is registered with epoll.
    interest: Interest,
    /// What it is driven with when its turn in the run queue comes; `None` if it is not in it.
    pub(crate) queued: Option<Readiness>,
    /// Whether its last read, or the last drive that received packets, brought at least [`BULK`] bytes or [`MAX_PACKETS`].
    is_bulk: bool,
    input: InputKind,
    /// Whether a message waits for the lossless log, and is counted for that.
    awaits_log: bool,
    /// When its timer fires: no later than its session's deadline.
    pub(crate) timer: Option<Instant>,
    session: Session,
    permit: Permit,
    info: ConnectionInfo,
    /// Woken when the log has room. Made with the first message that is logged whole.
    waker: Option<Box<Waker>>,
}

/// A connection that was detached, to be restored in another process.
#[derive(Debug)]
pub struct DetachedConnection {
    /// Its socket, with everything in the kernel that belongs to it.
    pub socket: OwnedFd,
    /// Its session as bytes: [`crate::protocol::snapshot`].
    pub snapshot: Vec<u8>,
    /// How many messages in the snapshot have to be logged yet. They are lost if it is not restored.
    pub unlogged: usize,
}

/// The buffers of a thread, which all its connections use one after the other.
#[derive(Debug, Default)]
pub(crate) struct ThreadScratch {
    pub(crate) bytes: Scratch,
    packets: PacketScratch,
}

/// What epoll is to report of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interest {
    /// Input.
    Read,
    /// Input, as long as there is any.
    ReadPackets,
    /// Room for output, and no input.
    Write,
    /// Only that the connection breaks.
    Nothing,
}

/// Makes what wakes a connection from any thread.
pub(crate) trait ConnectionWakers {
    /// Returns a waker that has the connection with this key driven.
    fn drive_waker(&self, key: usize) -> Waker;

    /// Returns a waker that has the connection with this key read again, if it has this id.
    fn unpark_waker(&self, key: usize, id: u64) -> Waker;
}

/// What is known about the readiness of a socket when its connection is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    /// Nothing: a deadline or a command is the reason for the drive. If the socket is ready, epoll reports it
    /// separately.
    None,
    /// Input that one read finds, or room for output.
    Ready,
    /// There may be more behind that: input that the last drive did not read.
    ReadUntilBlocked,
    /// The same, and the peer has ended its stream, or the connection is broken.
    Ended,
}

impl Readiness {
    /// Returns the readiness that epoll_wait(2) reports.
    pub(crate) fn from_epoll(flags: EventFlags) -> Self {
        if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            Self::Ended
        } else if flags.contains(EventFlags::PRI) {
            // One recv(2) does not go beyond urgent data.
            Self::ReadUntilBlocked
        } else {
            Self::Ready
        }
    }

    /// Returns whether the socket is to be read until it has no more input.
    fn is_until_blocked(self) -> bool {
        self >= Self::ReadUntilBlocked
    }
}

/// How a drive ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There is nothing to do until the socket is ready, the timer fires or the connection is woken.
    Pending,
    /// There is more to do, after other connections have run.
    Yield,
    /// The connection has ended.
    Closed,
}

impl Connection {
    /// Creates a connection on `socket`, and counts it for the worker that is to serve it, of which this is the state.
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

    /// Returns whether it has just begun: a drive would do nothing.
    #[inline]
    pub(crate) fn is_new(&self) -> bool {
        self.session.wants() == Want::Read && self.session.memory() == 0 && !self.input.is_parked()
    }

    /// Prepares the socket for being read when something comes.
    pub(crate) fn prepare_to_read(&mut self) {
        self.input.prepare(true, &self.socket);
    }

    /// Returns when it must be driven at the latest.
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
            Interest::Nothing => EventFlags::ET,
        }
    }

    /// Returns the epoll flags to register from now on, if they differ from those before.
    #[inline]
    pub(crate) fn changed_interest(&mut self) -> Option<EventFlags> {
        let wants = self.session.wants();
        let interest = if wants == Want::Write {
            Interest::Write
        } else if !self.input.is_packets() {
            Interest::Read
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

    /// Returns whether it is to be driven from the run queue, after connections that send little.
    #[inline]
    pub(crate) fn waits_its_turn(&self) -> bool {
        self.is_bulk || self.queued.is_some()
    }

    /// Returns whether [`Connection::exchange`] does all that a drive does, as long as nothing unusual comes: nothing is
    /// unfinished, and its timer has not expired.
    #[inline]
    pub(crate) fn is_quiet(&self, now: Instant) -> bool {
        self.session.is_quiet() && self.input.is_settled() && self.timer.is_none_or(|at| now < at)
    }

    /// Reads once, and answers. Returns how it is to be driven besides, if it is.
    #[inline]
    pub(crate) fn exchange(&mut self, now: Instant, scratch: &mut Scratch, state: &WorkerState) -> Option<Readiness> {
        let Self { socket, session, info, is_bulk, .. } = self;
        let mut outlet = SocketOutlet { socket, blocked: false, broken: None };
        let buffer = scratch.input_room();
        let size = buffer.len();
        let next = match outlet.read(buffer) {
            Some(0) => {
                session.handle_end_of_input(now);
                Some(Readiness::None)
            }
            Some(count) => {
                *is_bulk = count >= BULK;
                let before = session.totals();
                session.receive(now, scratch, count, &mut outlet);
                info.listener.counters(state).count_totals(before, session.totals());
                if count == size {
                    Some(Readiness::ReadUntilBlocked)
                } else {
                    // Quiet as before: epoll reports what comes next.
                    (!session.is_quiet()).then_some(Readiness::None)
                }
            }
            None => None,
        };
        let Some(error) = outlet.broken else { return next };
        session.handle_reset();
        socket_error::report(error.into(), info, &state.sink);
        Some(Readiness::None)
    }

    /// Does everything that the session wants and the socket allows, once. `key` is its key in the event loop.
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
            // What came in time is answered: it may be this process that is late.
            readiness = Readiness::ReadUntilBlocked;
        } else if readiness == Readiness::None || self.timer.is_some_and(|at| at <= now) {
            self.handle_timeout(now, &mut scratch.bytes, state);
        }
        if !reads {
            // What epoll has reported meanwhile was not read.
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

    /// Reads input though replies are owed: the kernel has closed the receive window, and takes no acknowledgment of the peer
    /// until something is read. Without memory for it, nothing is read.
    #[cold]
    fn read_ahead(&mut self, now: Instant, scratch: &mut Scratch, state: &WorkerState) {
        let buffer = scratch.input_room();
        let (memory, size) = (self.session.memory(), self.session.read_ahead_room().min(buffer.len()));
        if size == 0 || !self.permit.set_memory(memory + size) {
            self.permit.set_memory(memory);
            return;
        }
        match retry_on_intr(|| rustix::net::recv(&self.socket, &mut buffer[..size], RecvFlags::empty())) {
            // The end of the stream is found again later.
            Ok((count, _)) => self.session.read_ahead(now, &buffer[..count]),
            Err(Errno::AGAIN) => {}
            Err(error) => {
                self.session.handle_reset();
                socket_error::report(error.into(), &self.info, &state.sink);
            }
        }
        self.permit.set_memory(self.session.memory());
    }

    /// Does what the session wants, until the socket or the log has no room, or [`MAX_STEPS`] are done.
    #[inline]
    fn run_steps(
        &mut self,
        key: usize,
        readiness: Readiness,
        now: Instant,
        scratch: &mut Scratch,
        state: &WorkerState,
        wakers: &impl ConnectionWakers,
    ) -> Progress {
        let Self { socket, session, permit, info, waker, input: kind, awaits_log, is_bulk, .. } = self;
        let mut outlet = SocketOutlet { socket, blocked: false, broken: None };
        let log = session.rules().log_messages;
        // Whether another read would find nothing, or epoll will report what it would find.
        let mut input_exhausted = readiness == Readiness::None;
        let mut steps = 0;
        // An exchange before this may have left something unfinished.
        account_memory(session, permit, waker.as_deref(), info, &state.sink, now);
        loop {
            match session.wants() {
                Want::Close => return Progress::Closed,
                Want::Delay => return Progress::Pending,
                Want::Read if input_exhausted || kind.is_parked() => return Progress::Pending,
                Want::Read if steps == MAX_STEPS => return Progress::Yield,
                // One drive answers 64 KiB and one reply at most.
                Want::Write | Want::Log if steps > 0 => return Progress::Yield,
                Want::Read => {
                    let buffer = scratch.input_room();
                    let size = buffer.len();
                    let until_blocked = readiness.is_until_blocked() || kind.descriptors() == PeerDescriptors::Queued;
                    let input = match kind {
                        InputKind::Packets { .. } => unreachable!("they have steps of their own"),
                        InputKind::Bytes(receive_buffer) => {
                            receive_buffer.limit(outlet.socket);
                            outlet.read(buffer)
                        }
                        InputKind::WithDescriptors { descriptors: PeerDescriptors::None, .. } => outlet.read(buffer),
                        InputKind::WithDescriptors { descriptors, parked } => {
                            let wake = || wakers.unpark_waker(key, info.id);
                            outlet.read_with_descriptors(buffer, descriptors, parked, &state.disposal, wake)
                        }
                    };
                    match input {
                        Some(0) => session.handle_end_of_input(now),
                        Some(count) => {
                            *is_bulk = count >= BULK;
                            input_exhausted = count < size && !until_blocked;
                            if count == size {
                                steps = MAX_STEPS - 1;
                            }
                            if log == LogMessages::Off {
                                session.receive(now, scratch, count, &mut outlet);
                            } else {
                                let outlet = LoggingOutlet {
                                    inner: &mut outlet,
                                    sink: &state.sink,
                                    make_waker: || wakers.drive_waker(key),
                                    info,
                                    waker,
                                    awaits_log,
                                    log,
                                };
                                outlet.receive(session, now, scratch, count);
                            }
                        }
                        None => input_exhausted = true,
                    }
                }
                Want::Write | Want::Log => {
                    // While output is pending, only EPOLLOUT is registered: there may be input that epoll has not
                    // reported.
                    input_exhausted = false;
                    if log == LogMessages::Off {
                        session.process_buffers(now, scratch, &mut outlet);
                    } else {
                        let outlet = LoggingOutlet {
                            inner: &mut outlet,
                            sink: &state.sink,
                            make_waker: || wakers.drive_waker(key),
                            info,
                            waker,
                            awaits_log,
                            log,
                        };
                        outlet.process_buffers(session, now, scratch);
                    }
                }
                Want::Shutdown => {
                    // To close a connection with input that was not read is to reset it.
                    if ioctl_fionread(outlet.socket).is_ok_and(|unread| unread > 0) {
                        session.note_activity(now);
                    }
                    // A peer that is gone does not mind; the next read says so.
                    let _ = rustix::net::shutdown(outlet.socket, Shutdown::Write);
                    session.handle_shutdown_sent(now);
                }
            }
            steps += 1;
            if let Some(error) = outlet.broken.take() {
                session.handle_reset();
                socket_error::report(error.into(), info, &state.sink);
            }
            if !account_memory(session, permit, waker.as_deref(), info, &state.sink, now) {
                // What had no room, for output or in the log, is not what it wants now.
                outlet.blocked = false;
            }
            if outlet.blocked {
                return Progress::Pending;
            }
        }
    }

    /// Counts it as restored from the previous process, for the worker with this state.
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

    /// Returns the source that holds it: [`Source::of_holder`].
    pub(crate) fn holder(&self) -> Source {
        Source::of_holder(self.info.peer)
    }

    /// Returns whether it counts against the limit on connections.
    pub(crate) fn counts(&self) -> bool {
        self.permit.counts()
    }

    /// Returns since when it is idle: [`Session::idle_since`]. What may have come and was not read is activity.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        if self.queued.is_some() || self.input.is_parked() { None } else { self.session.idle_since() }
    }

    /// Ends the connection for a client that waits, and frees its permit. Returns `false` if it is to be closed at once, since many
    /// wait for their final reply to arrive.
    pub(crate) fn reclaim(&mut self, now: Instant) -> bool {
        self.session.refuse(Verdict::Reclaimed, now);
        self.permit.refuse()
    }

    /// Returns whether it waits for its peer to take replies.
    pub(crate) fn is_blocked_by_peer(&self) -> bool {
        self.session.wants() == Want::Write
    }

    /// Returns whether messages of it are not logged yet that have to be.
    pub(crate) fn has_unlogged(&self) -> bool {
        self.session.has_unlogged_messages()
    }

    /// Ends its session, if messages of it are not logged yet that have to be. Returns whether there are such messages: the next
    /// drive logs them, as far as the log takes them.
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

    /// Ends the connection, and reports why. The descriptor is closed, and the permit is released: on another thread, if
    /// the peer may have sent descriptors that were not received.
    pub(crate) fn close(self: Box<Self>, state: &WorkerState) {
        let is_written = abandon_message(self.waker.as_deref(), &state.sink);
        state.sink.unlogged.add_lost(self.session.unlogged_messages().saturating_sub(is_written.into()));
        self.end(state);
    }

    /// Ends the connection, of which no message waits for the log any longer.
    fn end(self: Box<Self>, state: &WorkerState) {
        // Without a verdict, it is we who stop before it was done.
        let verdict = self.session.verdict().unwrap_or(Verdict::Shutdown);
        self.report_closed(state, verdict);
        if self.input.is_packets() {
            self.discard_packets();
        }
        let Self { socket, input, permit, .. } = *self;
        let descriptors = input.descriptors();
        accepted_socket::close(socket, descriptors, &state.disposal, permit);
    }

    /// Reads again, after descriptors were closed. Returns whether the connection with this id waited for that.
    pub(crate) fn unpark(&mut self, id: u64) -> bool {
        self.info.id == id && self.input.unpark()
    }

    /// Detaches the connection: encodes its session, and returns the snapshot with the socket.
    pub(crate) fn detach(mut self: Box<Self>, state: &WorkerState, now: Instant) -> DetachedConnection {
        let ConnectionInfo { id, ref listener, peer } = self.info;
        // The next process reads it, some time from now.
        self.input.prepare(false, &self.socket);
        let client = if let Peer::Proxied(client) = peer { Some(client) } else { None };
        let snapshot = snapshot::encode(&self.session, &listener.name, id, client, now);
        let unlogged = self.session.unlogged_messages();
        // From now on it is up to the next process to have it logged.
        abandon_message(self.waker.as_deref(), &state.sink);
        self.report_closed(state, Verdict::HandedOver);
        let Self { socket, .. } = *self;
        DetachedConnection { socket, snapshot, unlogged }
    }

    fn report_closed(&self, state: &WorkerState, verdict: Verdict) {
        state.remove_connection();
        self.info.listener.counters(state).count_ended(verdict);
        if self.awaits_log {
            state.sink.unlogged.end_wait();
        }
        if !state.sink.handler.wants_closed(verdict) {
            return;
        }
        state.sink.report(Event::Closed {
            id: self.info.id,
            listener: Arc::clone(&self.info.listener.name),
            peer: self.info.peer,
            verdict,
            totals: self.session.totals(),
            age: clock().saturating_duration_since(self.session.opened()),
            bad_header: None,
        });
    }

    /// Ends a connection that cannot be served, and reports the error.
    pub(crate) fn fail(mut self: Box<Self>, state: &WorkerState, error: io::Error) {
        socket_error::report_failure(error, &self.info, &state.sink);
        self.session.handle_reset();
        report_lost(self.session.unlogged_messages(), self.waker.as_deref(), &self.info, &state.sink);
        self.end(state);
    }
}

/// Counts the memory of a session in its permit. If there is too much, the session ends; returns `false` then.
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

/// Tells the log that the message that waits for it is not asked about any longer. Returns whether it was written already.
fn abandon_message(waker: Option<&Waker>, sink: &EventSink) -> bool {
    waker.is_some_and(|waker| sink.message_log.abandon(waker))
}

/// Counts messages of a connection that have to be logged, and will not be, and reports them. Those that are lost when the
/// server ends are reported by the embedder, as one number.
#[cold]
pub(crate) fn report_lost(count: usize, waker: Option<&Waker>, info: &ConnectionInfo, sink: &EventSink) {
    if count == 0 {
        return;
    }
    let count = count.saturating_sub(abandon_message(waker, sink).into());
    if count > 0 {
        sink.unlogged.add_lost(count);
        let (listener, peer) = (Arc::clone(&info.listener.name), info.peer);
        sink.report(Event::MessagesLost { id: info.id, listener, peer, count });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With 8 bytes of the allocator's it fills a block of 256; with one byte more, every idle connection would cost 16
    /// more.
    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Connection>() <= 248, "{} bytes", size_of::<Connection>());
    }
}
