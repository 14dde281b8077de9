//! Descriptors that peers send over Unix sockets (SCM_RIGHTS, unix(7)). The protocol has no use for them.
//!
//! recv(2) closes them itself, in the thread that calls it, and close(2) may block for as long as their sender likes. So
//! the kernel refuses them where it can (SO_PASSRIGHTS, Linux 6.16): sendmsg(2) of the peer then fails with EPERM. Those
//! that were queued before, and all of them on older kernels, are received, and closed by the disposal thread.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::PassCred;
use rustix::io::{Errno, IoSliceMut, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recv, recvmsg, sockopt,
};

/// How many descriptors come with one message at most (SCM_MAX_FD, unix(7)).
const MAX_PER_MESSAGE: usize = 253;

/// Space for what another holder of the socket may have asked the kernel to add: the sender's credentials, security label
/// and pidfd come before the descriptors. What does not fit is closed by the kernel, in this thread.
const OTHER_MESSAGES: usize = 1024;

/// Space for everything that may come with a message.
pub(crate) const ANCILLARY_SIZE: usize = OTHER_MESSAGES + rustix::cmsg_space!(ScmRights(MAX_PER_MESSAGE));

/// SO_PASSRIGHTS of asm-generic/socket.h, which no library names.
const SO_PASSRIGHTS: libc::c_int = 83;

/// SO_PASSPIDFD of asm-generic/socket.h (Linux 6.5), which no library names.
const SO_PASSPIDFD: libc::c_int = 76;

sockopt_impl!(
    /// Whether peers may send descriptors.
    PassRights,
    SetOnly,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool
);

sockopt_impl!(
    /// Whether each message comes with a descriptor of its sender.
    PassPidfd,
    SetOnly,
    libc::SOL_SOCKET,
    SO_PASSPIDFD,
    bool
);

sockopt_impl!(
    /// Whether each message comes with the security label of its sender.
    PassSec,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_PASSSEC,
    bool
);

/// Which descriptors may come with the input of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerDescriptors {
    /// None: recv(2) serves.
    None,
    /// Those that were queued before the kernel refused them. Once the socket has been empty, there are none.
    Queued,
    /// Any, at any time: the kernel cannot refuse them.
    Any,
}

impl PeerDescriptors {
    /// Has the kernel refuse the descriptors that peers send over `socket`, if it is a Unix socket. Sockets that connect
    /// to a listener afterwards inherit that; those in its backlog do not.
    pub(crate) fn refuse(socket: impl AsFd) -> Self {
        match sockopt::socket_domain(&socket) {
            Ok(AddressFamily::UNIX) if setsockopt(&socket, PassRights, &false).is_ok() => Self::Queued,
            Ok(AddressFamily::UNIX) | Err(_) => Self::Any,
            Ok(_) => Self::None,
        }
    }
}

/// Has one recv(2) go on from the bytes of one writer to those of the next, as on any other stream. With SO_PASSCRED,
/// SO_PASSPIDFD or SO_PASSSEC, which the socket unit or another holder may have set, the kernel adds who has sent a
/// message, and stops at each change of writer (unix(7)).
pub(crate) fn merge_writers(socket: impl AsFd) {
    // Each fails where the kernel does not know the option, and then it is not set.
    let _ = setsockopt(&socket, PassCred, &false);
    let _ = setsockopt(&socket, PassPidfd, &false);
    let _ = setsockopt(&socket, PassSec, &false);
}

/// Receives bytes of a stream, and the descriptors that came with them.
///
/// # Errors
/// Returns an error if recvmsg(2) fails.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_SIZE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags))?;
    Ok((received.bytes, take_descriptors(&mut ancillary)))
}

/// Receives bytes of a stream up to the first descriptors, which stay in the socket. Returns `None` if they come first.
///
/// # Errors
/// Returns an error if recvmsg(2) fails.
pub(crate) fn receive_before_descriptors(socket: impl AsFd, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
    // Peeking only borrows them: the last reference stays in the socket, so that the kernel closes nothing here.
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    let peeked =
        retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut RecvAncillaryBuffer::default(), flags))?;
    if peeked.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(None);
    }
    let (count, _) = retry_on_intr(|| recv(&socket, &mut buffer[..peeked.bytes], RecvFlags::DONTWAIT))?;
    Ok(Some(count))
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
