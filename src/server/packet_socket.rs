//! The packets of a connection (SOCK_SEQPACKET of unix(7)). A packet is received and sent whole or not at all.
//!
//! recvmsg(2) returns 0 both for an empty packet and at the end of the stream. The credentials of the sender
//! distinguish them: once SO_PASSCRED is set, the kernel adds credentials to each packet, but not to the end of the
//! stream. If there is no space for them, the kernel sets MSG_CTRUNC.

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

/// The most packets that are discarded before a socket is closed. No more are queued unless the socket has a huge
/// buffer.
const MAX_DISCARDED: u32 = 1024;

/// The flags for receiving: without blocking, returning the packet's full length.
const RECEIVE: MsgFlags = MsgFlags::MSG_TRUNC.union(MsgFlags::MSG_DONTWAIT);

/// The flags for peeking at the next packet.
const PEEK: MsgFlags = RECEIVE.union(MsgFlags::MSG_PEEK);

/// The flags for sending: without blocking and without SIGPIPE.
const SEND: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// Enables SO_PASSCRED, so that an empty packet can be distinguished from the end of the stream. Sockets that connect
/// to a listener afterwards inherit it.
///
/// # Errors
/// Returns the errors of setsockopt(2).
pub(crate) fn prepare(socket: impl AsFd) -> Result<(), Errno> {
    retry(|| setsockopt(&socket, sockopt::PassCred, &true))
}

/// The next packet in a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextPacket {
    pub(crate) len: usize,
    /// Whether descriptors are attached to it.
    pub(crate) has_descriptors: bool,
}

/// Returns the next packet without removing it; `None` at the end of the stream.
///
/// # Errors
/// Returns the errors of recvmsg(2).
pub(crate) fn peek(socket: impl AsFd) -> Result<Option<NextPacket>, Errno> {
    // With space for credentials only, the kernel installs no descriptors in this process, so closing them stays with
    // the socket.
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

/// Receives a packet without descriptors. Returns its length in bytes, which may exceed `room`; `None` at the end of
/// the stream.
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

/// Receives a packet without descriptors that is known to be queued. Returns its length in bytes, which may exceed
/// `room`. Costs less than [`receive`], because it need not detect the end of the stream.
///
/// # Errors
/// Returns the errors of recv(2).
pub(crate) fn receive_waiting(socket: impl AsFd, room: &mut [u8]) -> Result<usize, Errno> {
    let (_, len) = retry_on_intr(|| recv(&socket, &mut *room, RecvFlags::TRUNC | RecvFlags::DONTWAIT))?;
    Ok(len)
}

/// Receives one packet into each room with one call, and calls `received` with the result of each, as of [`receive`].
/// If there are fewer packets than rooms, no more were queued.
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

/// Returns whether a packet was received, rather than the end of the stream.
fn is_packet(bytes: usize, flags: MsgFlags) -> bool {
    bytes > 0 || flags.contains(MsgFlags::MSG_CTRUNC)
}

/// Receives the packet that [`peek`] returned, with its descriptors ([`peer_input::receive`]).
///
/// # Errors
/// Returns an error if a call fails, or if the process has no room for the descriptors.
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

/// Sends packets with one call. Returns how many were sent, from the first on.
///
/// # Errors
/// Returns the errors of sendmmsg(2), if no packet was sent.
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

/// Returns whether a packet or the end of the stream is queued.
pub(crate) fn has_unread(socket: impl AsFd) -> bool {
    let descriptor = socket.as_fd().as_raw_fd();
    !matches!(retry(|| recvmsg::<()>(descriptor, &mut [], None, PEEK).map(drop)), Err(Errno::AGAIN))
}

/// Discards the unread packets of a connection that was shut down. If they stayed in the socket, closing it would make
/// the peer's next read fail before the peer has read its replies. Stops at a packet with descriptors.
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

/// Repeats a call while signals interrupt it.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> Result<T, Errno> {
    retry_on_intr(|| call().map_err(errno))
}

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(error as i32)
}
