//! File descriptors that peers send over Unix sockets (SCM_RIGHTS, unix(7)). The protocol does not use them.
//!
//! recv(2) closes them in the calling thread, and close(2) may block for as long as their sender likes. So the daemon
//! asks the kernel to refuse them (SO_PASSRIGHTS, Linux 6.16): sendmsg(2) of the peer then fails with EPERM.
//! Descriptors that were queued before that, and all of them on older kernels, are received and closed on the disposal
//! thread.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::PassCred;
use rustix::io::{Errno, IoSliceMut, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, Shutdown, recv, recvmsg,
    shutdown, sockopt,
};

use crate::pass_rights::refuse_descriptors;

/// The most descriptors that one message can carry (SCM_MAX_FD, unix(7)).
const MAX_PER_MESSAGE: usize = 253;

/// Space for the sender's credentials, security label and pidfd, which the kernel adds before the descriptors if
/// another holder of the socket has enabled them.
const OTHER_MESSAGES: usize = 1024;

/// Space for all ancillary data of one message.
pub(crate) const ANCILLARY_SIZE: usize = OTHER_MESSAGES + rustix::cmsg_space!(ScmRights(MAX_PER_MESSAGE));

/// SO_PASSPIDFD of asm-generic/socket.h (Linux 6.5), which no library defines.
const SO_PASSPIDFD: libc::c_int = 76;

sockopt_impl!(
    /// Whether the kernel adds a pidfd of the sender to each message.
    PassPidfd,
    SetOnly,
    libc::SOL_SOCKET,
    SO_PASSPIDFD,
    bool
);

sockopt_impl!(
    /// Whether the kernel adds the sender's security label to each message.
    PassSec,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_PASSSEC,
    bool
);

/// Which file descriptors may arrive with the input of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerDescriptors {
    /// None: recv(2) is safe.
    None,
    /// Only descriptors that were queued before the kernel refused them; none once the socket has been empty.
    Queued,
    /// Any, at any time: the kernel cannot refuse them.
    Any,
}

impl PeerDescriptors {
    /// Makes the kernel refuse descriptors that peers send over `socket`, if it is a Unix socket. Sockets that connect
    /// to a listener afterwards inherit this; those already in its backlog do not.
    ///
    /// Also disables the pidfd and the security label, which the socket unit or another holder may have enabled.
    pub(crate) fn refuse(socket: impl AsFd) -> Self {
        // Each call fails if the kernel does not support the option; then the option is not set either.
        let _ = setsockopt(&socket, PassPidfd, &false);
        let _ = setsockopt(&socket, PassSec, &false);
        match sockopt::socket_domain(&socket) {
            Ok(AddressFamily::UNIX) if refuse_descriptors(&socket) => Self::Queued,
            Ok(AddressFamily::UNIX) | Err(_) => Self::Any,
            Ok(_) => Self::None,
        }
    }
}

/// Makes one recv(2) return the bytes of several writers, as on any other stream. With SO_PASSCRED, which the socket
/// unit or another holder may have set, the kernel adds the sender's credentials and stops at each change of sender
/// (unix(7)). Sockets that connect to a listener afterwards inherit the setting.
pub(crate) fn merge_writers(stream: impl AsFd) {
    let _ = setsockopt(&stream, PassCred, &false);
}

/// Makes the kernel deliver urgent data of a connected Unix stream in line. Otherwise recv(2) discards urgent data
/// together with its descriptors, and peeking does not reveal them.
pub(crate) fn include_urgent_data(stream: impl AsFd) {
    // The call fails on kernels without urgent data on Unix sockets.
    let _ = retry_on_intr(|| sockopt::set_socket_oobinline(&stream, true));
}

/// Shuts down both directions of a connected Unix socket. Returns whether no descriptors are queued in it: then none
/// can arrive any longer, and closing the socket never blocks.
pub(crate) fn shut_down_empty(socket: impl AsFd) -> bool {
    let _ = retry_on_intr(|| shutdown(&socket, Shutdown::Both));
    // Distinguishes an empty packet from the end of the stream: its credentials do not fit into the empty space.
    if setsockopt(&socket, PassCred, &true).is_err() {
        return false;
    }
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    let mut byte = [0];
    let peek = || recvmsg(&socket, &mut [IoSliceMut::new(&mut byte)], &mut RecvAncillaryBuffer::default(), flags);
    match retry_on_intr(peek) {
        Ok(next) => next.bytes == 0 && !next.flags.contains(ReturnFlags::CTRUNC),
        Err(error) => error == Errno::AGAIN,
    }
}

/// The result of [`receive`].
#[derive(Debug)]
pub(crate) enum Received {
    /// This many bytes, and the descriptors that came with them.
    Complete(usize, Vec<OwnedFd>),
    /// Nothing: the next bytes carry more descriptors than there is room for, and stay in the socket. The descriptors
    /// are copies of some of them, and must be closed like all others.
    NoRoom(Vec<OwnedFd>),
    /// Receiving failed. The descriptors are copies of those that are still in the socket.
    Failed(Errno, Vec<OwnedFd>),
}

/// Receives bytes of a stream or a packet with their descriptors, if there is `room` for all of these.
///
/// The kernel closes descriptors in the calling thread if the buffer or the process (`RLIMIT_NOFILE`) has no room for
/// them, or if a security module denies them. So this first peeks, which copies the descriptors. Once the process has
/// all copies, it receives the bytes and drops the originals: closing these does not block, since they are not the last
/// reference.
///
/// # Errors
/// Returns an error if recvmsg(2) fails.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8], room: usize) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_SIZE];
    let size = match room {
        0 => 0,
        MAX_PER_MESSAGE.. => ANCILLARY_SIZE,
        room => rustix::cmsg_space!(ScmRights(room)),
    };
    let mut ancillary = RecvAncillaryBuffer::new(&mut space[..size]);
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    let peeked = retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags))?;
    let descriptors = take_descriptors(&mut ancillary);
    if peeked.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Received::NoRoom(descriptors));
    }
    match retry_on_intr(|| recv(&socket, &mut buffer[..peeked.bytes], RecvFlags::DONTWAIT)) {
        Ok((count, _)) => Ok(Received::Complete(count, descriptors)),
        Err(error) => Ok(Received::Failed(error, descriptors)),
    }
}

fn take_descriptors(ancillary: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    descriptors
}
