//! The steps of a connection of packets. They correspond to those of a stream in `connection.rs`, but packets are
//! received and sent whole, several with one call.
//!
//! While packets are read, the socket is watched level-triggered. An edge-triggered socket would have to be read until
//! it is empty, which costs one more call for every lone packet. If a drive leaves packets in the socket, epoll reports
//! them again after other connections have run; after a drive with much input, the connection waits in the run queue.
//!
//! All replies to packets received with one call may have to be kept. To bound them, the kernel is asked first how many
//! bytes are queued ([`may_receive_many`]) if the last packets were long or many. Long packets that arrive suddenly can still
//! exceed that, so packets are received one at a time while memory is scarce.

use std::os::fd::OwnedFd;
use std::task::Waker;
use std::time::Instant;

use rustix::io::{Errno, ioctl_fionread};
use rustix::net::Shutdown;

use super::{Connection, ConnectionWakers, Progress, Readiness, account_memory};
use crate::protocol::session::{HEADROOM, MAX_PACKETS, ReceivedPacket};
use crate::protocol::{Outlet, Session, Verdict, Want};
use crate::server::disposal::Disposal;
use crate::server::input_kind::InputKind;
use crate::server::outlet::{LoggingOutlet, SocketOutlet};
use crate::server::packet_scratch::PacketScratch;
use crate::server::packet_socket;
use crate::server::peer_descriptors::PeerDescriptors;
use crate::server::peer_input::Input;
use crate::server::socket_error;
use crate::server::worker_state::WorkerState;

/// After this many bytes, a drive receives no more.
const MAX_BYTES: usize = 64 * 1024;

impl Connection {
    /// Does what [`Connection::run_steps`] does, for packets. One drive receives at most [`MAX_PACKETS`].
    pub(super) fn run_packet_steps(
        &mut self,
        key: usize,
        readiness: Readiness,
        now: Instant,
        scratch: &mut PacketScratch,
        state: &WorkerState,
        wakers: &impl ConnectionWakers,
    ) -> Progress {
        let Self { socket, session, permit, info, waker, input, awaits_log, is_bulk, .. } = self;
        let InputKind::Packets { descriptors, parked, pace } = input else { return Progress::Pending };
        let (socket, log): (&OwnedFd, _) = (socket, session.rules().log_messages);
        let mut socket_outlet = SocketOutlet { socket, blocked: false, broken: None };
        let make_waker = || wakers.drive_waker(key);
        let mut outlet =
            LoggingOutlet { inner: &mut socket_outlet, sink: &state.sink, make_waker, info, waker, awaits_log, log };
        let mut has_received = readiness == Readiness::None;
        // Whether to receive single packets although more are queued.
        let mut one_by_one = false;
        let mut budget = Budget { packets: MAX_PACKETS, bytes: MAX_BYTES };
        loop {
            match session.wants() {
                Want::Close => return Progress::Closed,
                Want::Delay => return Progress::Pending,
                Want::Read if has_received || *parked => return Progress::Pending,
                Want::Read => {
                    let until_blocked = readiness.is_until_blocked() || *descriptors == PeerDescriptors::Queued;
                    let wanted = if until_blocked { MAX_PACKETS } else { pace.next() }.min(budget.packets);
                    // Asking the kernel costs as much as receiving some short packets.
                    let may_be_long = || *is_bulk && !may_receive_many(socket);
                    one_by_one |= wanted > 1 && (permit.is_memory_scarce() || may_be_long());
                    let wanted = if one_by_one { 1 } else { wanted };
                    let until_blocked = until_blocked || one_by_one;
                    let before = session.totals().bytes_in;
                    let received = if *descriptors == PeerDescriptors::None {
                        // epoll has reported input, and not the end of the stream.
                        let is_packet = readiness == Readiness::Ready && !until_blocked;
                        receive(socket, session, now, scratch, (wanted, is_packet), &mut outlet)
                    } else {
                        let make_waker = || wakers.unpark_waker(key, info.id);
                        let with = DescriptorInput { descriptors, parked, disposal: &state.disposal, make_waker };
                        with.receive(socket, session, now, scratch, &mut outlet)
                    };
                    match received {
                        Ok(count) => {
                            if !until_blocked {
                                pace.note(count);
                            }
                            budget.spend(count, session.totals().bytes_in - before);
                            has_received = !until_blocked || budget.is_spent();
                        }
                        Err(Errno::INTR) => {}
                        Err(Errno::AGAIN) => has_received = true,
                        Err(error) => outlet.inner.broken = Some(error),
                    }
                }
                Want::Write | Want::Log => session.process_packets(now, &mut outlet),
                Want::Shutdown => {
                    // Closing a connection with unread packets would break it.
                    if packet_socket::has_unread(socket) {
                        session.note_activity(now);
                    }
                    // If the peer has gone, the next read reports it.
                    let _ = rustix::net::shutdown(socket, Shutdown::Write);
                    session.handle_shutdown_sent(now);
                }
            }
            outlet.end_wait(session);
            match outlet.inner.broken.take() {
                // The packet is longer than the send buffer.
                Some(Errno::MSGSIZE) => session.handle_unsendable_reply(now),
                Some(error) => {
                    session.handle_reset();
                    socket_error::report(error.into(), info, &state.sink);
                }
                None => {}
            }
            if !account_memory(session, permit, outlet.waker.as_deref(), info, &state.sink, now) {
                // The session no longer wants to do what was blocked.
                outlet.inner.blocked = false;
            }
            if outlet.inner.blocked {
                return Progress::Pending;
            }
        }
    }

    /// Shuts the connection down, even if another process holds the socket too, and discards unread packets.
    #[cold]
    pub(super) fn discard_packets(&self) {
        // Fails only if the peer has gone.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        if self.session.verdict() != Some(Verdict::PeerClosed) {
            packet_socket::discard_unread(&self.socket, self.input.descriptors());
        }
    }
}

/// The packets and bytes that one drive may still receive.
struct Budget {
    packets: usize,
    bytes: usize,
}

impl Budget {
    /// Deducts received packets and bytes.
    fn spend(&mut self, packets: usize, bytes: u64) {
        self.packets = self.packets.saturating_sub(packets);
        self.bytes = self.bytes.saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    fn is_spent(&self) -> bool {
        self.packets == 0 || self.bytes == 0
    }
}

/// Returns whether the queued packets are short enough to receive several with one call.
#[inline]
fn may_receive_many(socket: &OwnedFd) -> bool {
    ioctl_fionread(socket).is_ok_and(|unread| unread <= MAX_BYTES as u64)
}

/// Receives up to `wanted` packets without descriptors, and passes them to the session. `is_packet` says that one is
/// known to be queued. Returns how many were received. At the end of the stream, tells the session.
///
/// # Errors
/// Returns an error if nothing was received; [`Errno::AGAIN`] if nothing is queued.
#[inline]
fn receive(
    socket: &OwnedFd,
    session: &mut Session,
    now: Instant,
    scratch: &mut PacketScratch,
    (wanted, is_packet): (usize, bool),
    outlet: &mut impl Outlet,
) -> Result<usize, Errno> {
    let mut rooms = scratch.rooms(session.rules().max_message);
    let wanted = wanted.min(session.max_packets()).min(rooms.len());
    if let (0..=1, Some(room)) = (wanted, rooms.next()) {
        let place = &mut room[HEADROOM..];
        let len = if is_packet {
            Some(packet_socket::receive_waiting(socket, place)?)
        } else {
            packet_socket::receive(socket, place)?
        };
        match len {
            Some(len) => session.receive_packet(now, ReceivedPacket { room, len }, outlet),
            None => session.handle_end_of_input(now),
        }
        return Ok(len.is_some().into());
    }
    let (mut lengths, mut count, mut has_ended) = ([0; MAX_PACKETS], 0, false);
    let rooms = scratch.rooms(session.rules().max_message);
    let places = rooms.take(wanted).map(|room| &mut room[HEADROOM..]);
    packet_socket::receive_many(socket, places, |packet| match packet {
        Some(len) => {
            lengths[count] = len;
            count += 1;
        }
        // All later results are the end of the stream, too.
        None => has_ended = true,
    })?;
    let rooms = scratch.rooms(session.rules().max_message);
    let packets = rooms.zip(&lengths[..count]).map(|(room, &len)| ReceivedPacket { room, len });
    session.receive_packets(now, packets, outlet);
    if has_ended {
        session.handle_end_of_input(now);
    }
    Ok(count)
}

/// The input of a connection whose peer may send descriptors.
struct DescriptorInput<'a, W> {
    descriptors: &'a mut PeerDescriptors,
    parked: &'a mut bool,
    disposal: &'a Disposal,
    /// Creates the waker that is woken when descriptors are closed.
    make_waker: W,
}

impl<W: Fn() -> Waker> DescriptorInput<'_, W> {
    /// Does what [`receive`] does for one packet, and passes its descriptors to the disposal thread. The connection is
    /// parked until they are closed, or, if too many are waiting, until there is room for the next ones.
    ///
    /// # Errors
    /// Returns the errors of [`receive`].
    #[cold]
    fn receive(
        self,
        socket: &OwnedFd,
        session: &mut Session,
        now: Instant,
        scratch: &mut PacketScratch,
        outlet: &mut impl Outlet,
    ) -> Result<usize, Errno> {
        let Some(room) = scratch.rooms(session.rules().max_message).next() else { return Ok(0) };
        let next = packet_socket::peek(socket);
        // No packet that was queued before is left.
        if matches!(next, Ok(None)) || next == Err(Errno::AGAIN) && *self.descriptors == PeerDescriptors::Queued {
            *self.descriptors = PeerDescriptors::None;
        }
        let Some(next) = next? else {
            session.handle_end_of_input(now);
            return Ok(0);
        };
        let place = &mut room[HEADROOM..];
        let received = if next.has_descriptors {
            match packet_socket::receive_with_descriptors(socket, place, self.disposal, self.make_waker)? {
                Input::Bytes(len) => Some(len),
                Input::WithDescriptors(len) => {
                    *self.parked = true;
                    Some(len)
                }
                Input::Parked => {
                    *self.parked = true;
                    return Ok(0);
                }
            }
        } else {
            packet_socket::receive(socket, place)?
        };
        // Another process that holds the socket may have taken the packet that was peeked at.
        let Some(len) = received else {
            session.handle_end_of_input(now);
            return Ok(0);
        };
        session.receive_packet(now, ReceivedPacket { room, len }, outlet);
        Ok(1)
    }
}
