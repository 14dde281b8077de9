//! How much the kernel receives for a TCP connection whose receive buffer has the default size.
//!
//! While the daemon reads, the buffer has a fixed size. Otherwise the kernel would enlarge it the more the faster a client
//! sends, up to net.ipv4.tcp_rmem (6 to 32 MiB), and would promise all of that as the receive window: a client that then
//! stops reading its replies, so that the daemon stops reading, fills it.
//!
//! While the daemon does not read, the kernel may enlarge the buffer again. Then it has room for what the window promises,
//! and promises no more, since the window grows only with what is read. A buffer of a fixed size has no such room when packets
//! are small, for each takes several times its length: the kernel drops what does not fit and, since Linux 6.18, ignores all
//! else that was sent by then. The client's kernel sends it again, ever less often; a client that waited for the daemon would be
//! cut off by the read deadline.

use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, setsockopt};
use rustix::io::retry_on_intr;
use rustix::net::ipproto;
use rustix::net::sockopt::{set_socket_recv_buffer_size, socket_protocol};

use super::socket_options::{BufferLock, RECEIVE_BUFFER_LOCK};
use crate::config::BufferSize;

/// The size while the daemon reads, in bytes. The kernel doubles it, and promises half of that as the receive window at first.
const SIZE: usize = 64 * 1024;

/// What the receive buffer of a connection is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReceiveBuffer {
    /// The kernel may enlarge it.
    Adapted,
    /// It has the fixed size of this module.
    Limited,
    /// It stays as it is: the settings or the socket unit have chosen its size, it is not TCP, or the kernel cannot do it.
    Untouched,
}

impl ReceiveBuffer {
    /// Returns what the receive buffer of a connection is, with this setting.
    pub(crate) fn of(connection: impl AsFd, setting: BufferSize) -> Self {
        // Before Linux 5.14 a limit could not be undone, nor on MPTCP.
        let is_ours = || getsockopt(&connection, BufferLock).is_ok_and(|locks| locks & RECEIVE_BUFFER_LOCK == 0);
        let is_tcp = || socket_protocol(&connection) == Ok(Some(ipproto::TCP));
        if setting == BufferSize::Default && is_tcp() && is_ours() { Self::Adapted } else { Self::Untouched }
    }

    /// Returns what that of a connection is which has inherited it from this listener. `None` if each connection has to be asked:
    /// on a listener of MPTCP, those of clients without MPTCP are plain TCP.
    pub(crate) fn inherited_from(listener: impl AsFd, setting: BufferSize) -> Option<Self> {
        let is_mptcp = socket_protocol(&listener) == Ok(Some(ipproto::MPTCP));
        (setting != BufferSize::Default || !is_mptcp).then(|| Self::of(listener, setting))
    }

    /// Limits the buffer: the daemon is going to read.
    #[inline]
    pub(crate) fn limit(&mut self, socket: impl AsFd) {
        if *self == Self::Adapted {
            *self = limit(socket);
        }
    }

    /// Lets the kernel adapt the buffer: the daemon does not read for a while.
    #[inline]
    pub(crate) fn adapt(&mut self, socket: impl AsFd) {
        if *self == Self::Limited {
            *self = adapt(socket);
        }
    }
}

#[cold]
fn limit(socket: impl AsFd) -> ReceiveBuffer {
    let limited = retry_on_intr(|| set_socket_recv_buffer_size(&socket, SIZE));
    if limited.is_ok() { ReceiveBuffer::Limited } else { ReceiveBuffer::Untouched }
}

#[cold]
fn adapt(socket: impl AsFd) -> ReceiveBuffer {
    let locks = getsockopt(&socket, BufferLock);
    let unlocked = locks.and_then(|locks| setsockopt(&socket, BufferLock, &(locks & !RECEIVE_BUFFER_LOCK)));
    if unlocked.is_ok() { ReceiveBuffer::Adapted } else { ReceiveBuffer::Untouched }
}
