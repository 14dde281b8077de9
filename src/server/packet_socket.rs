//! The packets of a connection (SOCK_SEQPACKET of unix(7)): received and sent whole or not at all.
//!
//! recvmsg(2) returns 0 for an empty packet as well as for the end of the stream. What tells them apart are the
//! credentials of the sender, which the kernel puts beside each packet once SO_PASSCRED is set, and beside nothing
//! else. Where there is no space for them, it says that something is missing (MSG_CTRUNC).

use std::array;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::task::Waker;

use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, UnixCredentials, recvmmsg, recvmsg, sendmmsg, sendmsg, setsockopt, sockopt,
};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, recv};

use super::disposal::Disposal;
use super::peer_descriptors::{Credentials, PeerDescriptors};
use super::peer_input::{self, Input};
use crate::protocol::packet::Reply;
use crate::protocol::session::MAX_PACKETS;

/// How many packets are dropped at most before a socket is closed: more than wait, unless the socket has an enormous buffer.
const MAX_DISCARDED: u32 = 1024;

/// Receive a packet, whose whole length is told.
const RECEIVE: MsgFlags = MsgFlags::MSG_TRUNC.union(MsgFlags::MSG_DONTWAIT);

/// Look at the next packet, whose whole length is told.
const PEEK: MsgFlags = RECEIVE.union(MsgFlags::MSG_PEEK);

/// Send without waiting for room.
const SEND: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// Prepares a socket, so that an empty packet is told from the end of the stream. Sockets that connect to a listener afterwards
/// inherit that.
///
/// # Errors
/// Returns the errors of setsockopt(2).
pub(crate) fn prepare(socket: impl AsFd) -> Result<(), Errno> {
    retry(|| setsockopt(&socket, sockopt::PassCred, &true))
}

/// A packet that waits in the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextPacket {
    pub(crate) len: usize,
    /// Whether descriptors come with it.
    pub(crate) has_descriptors: bool,
}

/// Returns the next packet, which stays in the socket; `None` at the end of the stream.
///
/// # Errors
/// Returns the errors of recvmsg(2).
pub(crate) fn peek(socket: impl AsFd) -> Result<Option<NextPacket>, Errno> {
    // With space for credentials only: no descriptor becomes ours, and the last reference stays in the socket.
    let mut ancillary = nix::cmsg_space!(UnixCredentials);
    let descriptor = socket.as_fd().as_raw_fd();
    let received = retry(|| {
        let received = recvmsg::<()>(descriptor, &mut [], Some(&mut ancillary), PEEK)?;
        let has_descriptors = received.flags.contains(MsgFlags::MSG_CTRUNC);
        let is_packet = received.bytes > 0 || has_descriptors || received.cmsgs()?.next().is_some();
        Ok((is_packet, NextPacket { len: received.bytes, has_descriptors }))
    });
    received.map(|(is_packet, next)| is_packet.then_some(next))
}

/// Receives a packet, of which no descriptors can be part. Returns how long it is, which may be more than the room; `None` at the
/// end of the stream.
///
/// # Errors
/// Returns the errors of recvmsg(2).
pub(crate) fn receive(socket: impl AsFd, room: &mut [u8]) -> Result<Option<usize>, Errno> {
    let descriptor = socket.as_fd().as_raw_fd();
    retry(|| {
        let mut parts = [IoSliceMut::new(room)];
        let received = recvmsg::<()>(descriptor, &mut parts, None, RECEIVE)?;
        Ok(is_packet(received.bytes, received.flags).then_some(received.bytes))
    })
}

/// Receives a packet that is known to wait, so that it is not the end of the stream; with it, no descriptors can come. Returns how
/// long it is, which may be more than the room. This costs less than [`receive`].
///
/// # Errors
/// Returns the errors of recv(2).
pub(crate) fn receive_waiting(socket: impl AsFd, room: &mut [u8]) -> Result<usize, Errno> {
    let (_, len) = retry_on_intr(|| recv(&socket, &mut *room, RecvFlags::TRUNC | RecvFlags::DONTWAIT))?;
    Ok(len)
}

/// Receives packets with one call, unless a signal interrupts it, one into each room, and calls `received` for each with what [`receive`] returns. After
/// fewer packets than there is room for, none waits.
///
/// # Errors
/// Returns the errors of recvmmsg(2).
pub(crate) fn receive_many<'a>(
    socket: impl AsFd,
    mut rooms: impl ExactSizeIterator<Item = &'a mut [u8]>,
    mut received: impl FnMut(Option<usize>),
) -> Result<(), Errno> {
    let count = rooms.len().min(MAX_PACKETS);
    let mut headers = MultiHeaders::<()>::preallocate(count, None);
    let mut slots: [[IoSliceMut<'_>; 1]; MAX_PACKETS] =
        array::from_fn(|_| [IoSliceMut::new(rooms.next().unwrap_or_default())]);
    let packets = recvmmsg(socket.as_fd().as_raw_fd(), &mut headers, &mut slots[..count], RECEIVE, None);
    let packets = packets.map_err(errno)?;
    packets.for_each(|packet| received(is_packet(packet.bytes, packet.flags).then_some(packet.bytes)));
    Ok(())
}

/// Returns whether a packet came, and not the end of the stream.
fn is_packet(bytes: usize, flags: MsgFlags) -> bool {
    bytes > 0 || flags.contains(MsgFlags::MSG_CTRUNC)
}

/// Receives the packet that [`peek`] returned, with its descriptors: [`peer_input::receive`].
///
/// # Errors
/// Returns an error if a call fails, or if the process cannot have the descriptors.
pub(crate) fn receive_with_descriptors(
    socket: impl AsFd,
    room: &mut [u8],
    disposal: &Disposal,
    make_waker: impl Fn() -> Waker,
) -> Result<Input, Errno> {
    peer_input::receive(socket, room, Credentials::Included, disposal, make_waker)
}

/// Sends a packet.
///
/// # Errors
/// Returns the errors of sendmsg(2).
pub(crate) fn send(socket: impl AsFd, reply: &Reply<'_>) -> Result<(), Errno> {
    let descriptor = socket.as_fd().as_raw_fd();
    retry(|| match reply {
        [packet, []] => nix::sys::socket::send(descriptor, packet, SEND).map(drop),
        _ => sendmsg::<()>(descriptor, &reply.map(IoSlice::new), &[], SEND, None).map(drop),
    })
}

/// Sends packets with one call, unless a signal interrupts it. Returns how many of the first were sent; there is an error only if none was.
///
/// # Errors
/// Returns the errors of sendmmsg(2).
pub(crate) fn send_many(socket: impl AsFd, replies: &[Reply<'_>]) -> Result<usize, Errno> {
    let replies = &replies[..replies.len().min(MAX_PACKETS)];
    let mut headers = MultiHeaders::<()>::preallocate(replies.len(), None);
    let parts: [[IoSlice<'_>; 2]; MAX_PACKETS] =
        array::from_fn(|at| replies.get(at).map_or([&[][..]; 2], |reply| *reply).map(IoSlice::new));
    let (addresses, ancillary): (_, &[ControlMessage<'_>]) = ([None::<()>; MAX_PACKETS], &[]);
    let descriptor = socket.as_fd().as_raw_fd();
    sendmmsg(descriptor, &mut headers, &parts[..replies.len()], addresses, ancillary, SEND)
        .map(Iterator::count)
        .map_err(errno)
}

/// Returns whether a packet waits, or the end of the stream.
pub(crate) fn has_unread(socket: impl AsFd) -> bool {
    let descriptor = socket.as_fd().as_raw_fd();
    !matches!(retry(|| recvmsg::<()>(descriptor, &mut [], None, PEEK).map(drop)), Err(Errno::AGAIN))
}

/// Drops what was not read of a connection that was shut down: closing it with an unread packet would be reported to the peer as an
/// error, before it could read what it was sent. But packets with descriptors stay, of those that may be queued.
pub(crate) fn discard_unread(socket: impl AsFd, descriptors: PeerDescriptors) {
    for _ in 0..MAX_DISCARDED {
        if descriptors != PeerDescriptors::None {
            match peek(&socket) {
                Ok(Some(NextPacket { has_descriptors: false, .. })) => {}
                _ => return,
            }
        }
        if !matches!(receive(&socket, &mut []), Ok(Some(_))) {
            return;
        }
    }
}

/// Makes a call again as long as a signal interrupts it.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> Result<T, Errno> {
    retry_on_intr(|| call().map_err(errno))
}

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(error as i32)
}
