//! The packets of a connection (SOCK_SEQPACKET of unix(7)): received and sent whole or not at all.
//!
//! recvmsg(2) returns 0 for an empty packet as well as for the end of the stream. What tells them apart are the
//! credentials of the sender, which the kernel puts beside each packet once SO_PASSCRED is set, and beside nothing
//! else.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::task::Waker;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, UnixCredentials, recvmsg, sendmsg, setsockopt, sockopt};

use crate::protocol::packet::Reply;
use crate::server::disposal::Disposal;
use crate::server::peer_input::{self, Input};

/// Prepares a socket. To be called before any other of these functions.
///
/// # Errors
/// What setsockopt(2) says.
pub(crate) fn prepare(socket: impl AsFd) -> io::Result<()> {
    loop {
        match setsockopt(&socket, sockopt::PassCred, &true) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
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
/// What recvmsg(2) says.
pub(crate) fn peek(socket: impl AsFd) -> io::Result<Option<NextPacket>> {
    // With space for credentials only: no descriptor becomes ours, and the last reference stays in the socket.
    let mut ancillary = nix::cmsg_space!(UnixCredentials);
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
    let received = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut [], Some(&mut ancillary), flags)?;
    // An error says that there was more beside it than room.
    let is_packet = received.bytes > 0 || received.cmsgs().map_or(true, |mut all| all.next().is_some());
    let has_descriptors = received.flags.contains(MsgFlags::MSG_CTRUNC);
    Ok(is_packet.then_some(NextPacket { len: received.bytes, has_descriptors }))
}

/// Receives the packet that [`peek`] returned, into `packet`. Only its connection reads this socket.
///
/// # Errors
/// Returns an error if recvmsg(2) fails.
pub(crate) fn receive(socket: impl AsFd, packet: &mut [u8]) -> io::Result<usize> {
    let mut parts = [IoSliceMut::new(packet)];
    Ok(recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, None, MsgFlags::MSG_DONTWAIT)?.bytes)
}

/// The same for a packet that has descriptors: [`peer_input::receive`].
///
/// # Errors
/// Returns an error if recvmsg(2) fails, or if the process cannot have the descriptors.
pub(crate) fn receive_with_descriptors(
    socket: impl AsFd,
    packet: &mut [u8],
    disposal: &Disposal,
    make_waker: impl Fn() -> Waker,
) -> io::Result<Input> {
    // Without the credentials, which rustix cannot represent for a process of another PID namespace.
    setsockopt(&socket, sockopt::PassCred, &false)?;
    let received = peer_input::receive(&socket, packet, disposal, make_waker);
    setsockopt(&socket, sockopt::PassCred, &true)?;
    Ok(received?)
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
