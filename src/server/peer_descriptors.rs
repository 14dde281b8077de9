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
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, Shutdown, recv, recvmsg,
    shutdown, sockopt,
};

use crate::pass_rights::refuse_descriptors;

/// How many descriptors come with one message at most (SCM_MAX_FD, unix(7)).
const MAX_PER_MESSAGE: usize = 253;

/// Space for what another holder of the socket may have asked the kernel to add: the sender's credentials, security label
/// and pidfd come before the descriptors.
const OTHER_MESSAGES: usize = 1024;

/// Space for when a datagram was received (SO_TIMESTAMP, SO_TIMESTAMPNS, socket(7)), which comes before the descriptors.
const TIMESTAMP: usize = size_of::<libc::cmsghdr>() + size_of::<libc::timespec>();

/// Space for everything that may come with a message.
pub(crate) const ANCILLARY_SIZE: usize = OTHER_MESSAGES + rustix::cmsg_space!(ScmRights(MAX_PER_MESSAGE));

/// SO_PASSPIDFD of asm-generic/socket.h (Linux 6.5), which no library names.
const SO_PASSPIDFD: libc::c_int = 76;

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
    ///
    /// Nor does the kernel itself add descriptors then, as the socket unit or another holder may have asked for.
    pub(crate) fn refuse(socket: impl AsFd) -> Self {
        // Each fails where the kernel does not know the option, and then it is not set.
        let _ = setsockopt(&socket, PassPidfd, &false);
        let _ = setsockopt(&socket, PassSec, &false);
        match sockopt::socket_domain(&socket) {
            Ok(AddressFamily::UNIX) if refuse_descriptors(&socket) => Self::Queued,
            Ok(AddressFamily::UNIX) | Err(_) => Self::Any,
            Ok(_) => Self::None,
        }
    }
}

/// Has one recv(2) go on from the bytes of one writer to those of the next, as on any other stream. With SO_PASSCRED, which the
/// socket unit or another holder may have set, the kernel adds who has sent a message, and stops at each change of writer
/// (unix(7)). Sockets that connect to a listener afterwards inherit that.
pub(crate) fn merge_writers(stream: impl AsFd) {
    let _ = setsockopt(&stream, PassCred, &false);
}

/// Has the kernel leave urgent data in a connected Unix stream. Otherwise recv(2) discards it together with the descriptors that
/// it brings, and no look at the next bytes shows them.
pub(crate) fn include_urgent_data(stream: impl AsFd) {
    // It fails where the kernel has no urgent data on such sockets.
    let _ = retry_on_intr(|| sockopt::set_socket_oobinline(&stream, true));
}

/// Returns whether no descriptors are queued in a connected Unix socket, and none can come any more: closing it never blocks
/// then. Ends both directions of it for that.
pub(crate) fn shut_down_empty(socket: impl AsFd) -> bool {
    let _ = retry_on_intr(|| shutdown(&socket, Shutdown::Both));
    // So that a packet of no bytes is told from the end: the credentials of its sender do not fit into the space.
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

/// Whether the kernel adds the credentials of its sender to each message (SO_PASSCRED, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credentials {
    None,
    Included,
}

/// What was received from a peer.
#[derive(Debug)]
pub(crate) enum Received {
    /// So many bytes, with the descriptors that came along.
    Complete(usize, Vec<OwnedFd>),
    /// Nothing: more descriptors come with the next bytes than there is room for, and all of that stays in the socket. These
    /// are copies of some, which are to be closed like all others.
    NoRoom(Vec<OwnedFd>),
    /// The bytes could not be received. These are copies of their descriptors.
    Failed(Errno, Vec<OwnedFd>),
}

/// Receives bytes of a stream or a packet, and the descriptors that come along, if there is `room` for all of them.
///
/// The kernel closes descriptors for which it finds no room in the buffer or in the process (`RLIMIT_NOFILE`), or which a
/// security module denies, in this thread. So they are peeked at first, which copies them. Only once this process has
/// them all, the socket's own are received and dropped: none of those is the last then.
///
/// # Errors
/// Returns an error if recvmsg(2) or setsockopt(2) fails.
pub(crate) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    credentials: Credentials,
    room: usize,
) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_SIZE];
    let size = match room {
        0 => 0,
        MAX_PER_MESSAGE.. => ANCILLARY_SIZE,
        // Without a time, a few more than there is room for may fit.
        room => TIMESTAMP + rustix::cmsg_space!(ScmRights(room)),
    };
    let mut ancillary = RecvAncillaryBuffer::new(&mut space[..size]);
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    let set_pass_cred = |pass_cred| match credentials {
        Credentials::None => Ok(()),
        Credentials::Included => retry_on_intr(|| sockopt::set_socket_passcred(&socket, pass_cred)),
    };
    // Without the credentials, which rustix cannot represent for a process of another PID namespace. What is sent meanwhile never
    // has any before Linux 6.16. So it is for this call only, which makes no room: if the socket is full, nothing is sent.
    set_pass_cred(false)?;
    let peeked = retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags));
    set_pass_cred(true)?;
    let peeked = peeked?;
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

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::unix::net::UnixDatagram;

    use nix::sys::socket::sockopt::{ReceiveTimestamp, ReceiveTimestampns};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    /// The least room of a daemon that may have few descriptors.
    const ROOM: usize = 16;

    fn receive_with(sent: usize, set: impl Fn(&UnixDatagram)) -> Received {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        set(&receiver);
        let descriptors = vec![sender.as_fd(); sent];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PER_MESSAGE))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&sender, &[IoSlice::new(b"a")], &mut ancillary, SendFlags::empty()).unwrap();
        receive(&receiver, &mut [0; 10], Credentials::None, ROOM).unwrap()
    }

    #[test]
    fn descriptors_for_which_there_is_room_are_received_also_with_the_time() {
        for set in [
            (|_| {}) as fn(&UnixDatagram),
            |socket| setsockopt(socket, ReceiveTimestamp, &true).unwrap(),
            |socket| setsockopt(socket, ReceiveTimestampns, &true).unwrap(),
        ] {
            let received = receive_with(ROOM, set);
            assert!(matches!(&received, Received::Complete(1, all) if all.len() == ROOM), "{received:?}");
            let received = receive_with(MAX_PER_MESSAGE, set);
            assert!(matches!(&received, Received::NoRoom(some) if some.len() >= ROOM), "{received:?}");
        }
    }
}
