//! The packets of a connection (SOCK_SEQPACKET of unix(7)): received and sent whole or not at all.
//!
//! recvmsg(2) returns 0 for an empty packet as well as for the end of the stream. What tells them apart are the
//! credentials of the sender, which the kernel puts beside each packet once SO_PASSCRED is set, and beside nothing
//! else.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{MsgFlags, UnixCredentials, recvmsg, sendmsg, setsockopt, sockopt};

use crate::protocol::packet::Reply;

/// Prepares a socket. To be called before any other of these functions.
///
/// # Errors
/// What setsockopt(2) says.
pub(crate) fn prepare(socket: impl AsFd) -> io::Result<()> {
    Ok(setsockopt(&socket, sockopt::PassCred, &true)?)
}

/// Returns how long the next packet is, which stays in the socket; `None` at the end of the stream.
///
/// # Errors
/// What recvmsg(2) says.
pub(crate) fn next_len(socket: impl AsFd) -> io::Result<Option<usize>> {
    // With room for credentials only: no descriptor that is sent along becomes ours.
    let mut ancillary = nix::cmsg_space!(UnixCredentials);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    let received = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut [], Some(&mut ancillary), flags)?;
    // An error says that there was more beside it than room.
    let is_packet = received.bytes > 0 || received.cmsgs().map_or(true, |mut all| all.next().is_some());
    Ok(is_packet.then_some(received.bytes))
}

/// Receives the next packet, up to `len` bytes, which is what [`next_len`] returned. Only its connection reads this
/// socket.
///
/// # Errors
/// What recvmsg(2) says.
pub(crate) fn receive(socket: impl AsFd, len: usize) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; len];
    let mut parts = [IoSliceMut::new(&mut packet)];
    let len = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, None, MsgFlags::MSG_DONTWAIT)?.bytes;
    packet.truncate(len);
    Ok(packet)
}

/// Discards the next packet, and returns how long it was; `None` at the end of the stream.
///
/// # Errors
/// What recvmsg(2) says.
pub(crate) fn discard_next(socket: impl AsFd) -> io::Result<Option<usize>> {
    let len = next_len(&socket)?;
    if len.is_some() {
        receive(&socket, 0)?;
    }
    Ok(len)
}

/// Sends a packet.
///
/// # Errors
/// What sendmsg(2) says.
pub(crate) fn send(socket: impl AsFd, reply: &Reply<'_>) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &reply.map(IoSlice::new), &[], flags, None)?;
    Ok(())
}
