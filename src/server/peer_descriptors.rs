//! File descriptors that peers send over Unix sockets (SCM_RIGHTS, unix(7)). The protocol has no use for them.
//!
//! recv(2) would close them in the calling thread, and closing them may block for as long as their sender likes. Linux 6.16 and
//! newer can refuse them (SO_PASSRIGHTS): sendmsg(2) of the peer then fails with EPERM. Descriptors that were queued before
//! that, and all descriptors on older kernels, are received, and closed by the disposal thread.

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

use crate::pass_rights::{MAX_FDS_PER_MESSAGE, refuse_descriptors};

/// Space for ancillary messages that come before the descriptors, if another holder of the socket has enabled them: the
/// sender's credentials, security label and pidfd. In bytes.
const OTHER_MESSAGES: usize = 1024;

/// Space for when a datagram was received (SO_TIMESTAMP, SO_TIMESTAMPNS, socket(7)), which comes before the descriptors.
const TIMESTAMP: usize = size_of::<libc::cmsghdr>() + size_of::<libc::timespec>();

/// Space for all ancillary data that may come with a message, in bytes.
pub(crate) const ANCILLARY_SIZE: usize = OTHER_MESSAGES + rustix::cmsg_space!(ScmRights(MAX_FDS_PER_MESSAGE));

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

/// The file descriptors that may come with the input of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerDescriptors {
    /// None: recv(2) can be used.
    None,
    /// Only descriptors that were queued before the kernel refused them. Once the socket has been empty, there are none.
    Queued,
    /// Any, at any time, because the kernel cannot refuse them.
    Any,
}

impl PeerDescriptors {
    /// Makes the kernel refuse descriptors that peers send over `socket`, if it is a Unix socket. Connections that a listener
    /// gets afterwards inherit this; those in its backlog do not.
    ///
    /// Also resets options of the socket unit or another holder that make the kernel itself add descriptors or labels.
    pub(crate) fn refuse(socket: impl AsFd) -> Self {
        // A call fails only if the kernel does not know the option. Then the option is not set.
        let _ = setsockopt(&socket, PassPidfd, &false);
        let _ = setsockopt(&socket, PassSec, &false);
        match sockopt::socket_domain(&socket) {
            Ok(AddressFamily::UNIX) if refuse_descriptors(&socket) => Self::Queued,
            Ok(AddressFamily::UNIX) | Err(_) => Self::Any,
            Ok(_) => Self::None,
        }
    }
}

/// Lets one recv(2) return the bytes of several writers, as on any other stream. With SO_PASSCRED, which the socket unit or
/// another holder may have set, recv(2) stops at each change of writer (unix(7)). Connections that a listener gets afterwards
/// inherit this.
pub(crate) fn merge_writers(stream: impl AsFd) {
    let _ = setsockopt(&stream, PassCred, &false);
}

/// Makes the kernel leave urgent data in a connected Unix stream. Otherwise recv(2) discards it together with its descriptors,
/// and peeking does not show them.
pub(crate) fn include_urgent_data(stream: impl AsFd) {
    // It fails only if the kernel does not support urgent data on Unix sockets.
    let _ = retry_on_intr(|| sockopt::set_socket_oobinline(&stream, true));
}

/// Shuts down both directions of a connected Unix socket. Returns whether no descriptors are queued in it; closing it cannot
/// block then.
pub(crate) fn shut_down_empty(socket: impl AsFd) -> bool {
    let _ = retry_on_intr(|| shutdown(&socket, Shutdown::Both));
    // To tell an empty packet from the end: the credentials of its sender are truncated, because they do not fit.
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

/// The result of [`receive`].
#[derive(Debug)]
pub(crate) enum Received {
    /// This number of bytes, and the descriptors that came along.
    Complete(usize, Vec<OwnedFd>),
    /// Nothing: the next bytes come with more descriptors than there is room for, and stay in the socket with them. These are
    /// copies of some of them, which the caller must pass to the disposal thread.
    NoRoom(Vec<OwnedFd>),
    /// An error after peeking. These are copies of the descriptors that come with the next bytes.
    Failed(Errno, Vec<OwnedFd>),
}

/// Receives bytes of a stream, or a packet, together with their descriptors, if there is `room` for that many.
///
/// The kernel closes descriptors in the calling thread if they do not fit into the buffer or into the process
/// (`RLIMIT_NOFILE`), or if a security module denies them. So this function first peeks, which copies them. Only when it has
/// copies of all, it receives the bytes with recv(2), which drops the originals: these are not the last references then.
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
        MAX_FDS_PER_MESSAGE.. => ANCILLARY_SIZE,
        // Without a time, a few more than there is room for may fit.
        room => TIMESTAMP + rustix::cmsg_space!(ScmRights(room)),
    };
    let mut ancillary = RecvAncillaryBuffer::new(&mut space[..size]);
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    let set_pass_cred = |pass_cred| match credentials {
        Credentials::None => Ok(()),
        Credentials::Included => retry_on_intr(|| sockopt::set_socket_passcred(&socket, pass_cred)),
    };
    // Without the credentials, which rustix cannot represent for a process of another PID namespace. Before Linux 6.16,
    // a packet sent while the option is off never gets credentials. So the option is off for this call only, which does
    // not make room: if the socket is full, no packet can be sent during it.
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS_PER_MESSAGE))];
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
            let received = receive_with(MAX_FDS_PER_MESSAGE, set);
            assert!(matches!(&received, Received::NoRoom(some) if some.len() >= ROOM), "{received:?}");
        }
    }
}
