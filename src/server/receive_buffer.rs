//! Limits the receive buffer of a TCP connection whose settings do not choose its size.
//!
//! While the daemon reads, the buffer has a fixed size. Otherwise the kernel would enlarge it for a fast client, up to
//! net.ipv4.tcp_rmem (6 to 32 MiB), and would advertise all of it as the receive window. A client that then stops reading its
//! replies, so that the daemon stops reading, would fill it.
//!
//! While the daemon does not read, the kernel may enlarge the buffer again. It then has room for the advertised window, and
//! does not advertise more, because the window grows only when data is read. A buffer of a fixed size has no such room if
//! packets are small, because each takes several times its length. The kernel drops packets that do not fit and, since Linux
//! 6.18, ignores all others that were sent by then. The client's kernel retransmits them at growing intervals, so the read
//! deadline could close the connection of a client that only waited for the daemon.

use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, setsockopt};
use rustix::io::retry_on_intr;
use rustix::net::ipproto;
use rustix::net::sockopt::{set_socket_recv_buffer_size, socket_protocol};

use super::socket_options::{BufferLock, RECEIVE_BUFFER_LOCK};
use crate::config::BufferSize;

/// The size while the daemon reads, in bytes. The kernel doubles it, and at first advertises half of the result as the receive
/// window.
const SIZE: usize = 64 * 1024;

/// The state of a connection's receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReceiveBuffer {
    /// The kernel adapts its size.
    Adapted,
    /// It has the fixed size of this module.
    Limited,
    /// The daemon does not change it: the settings or the socket unit have chosen its size, the connection is not TCP, or the
    /// kernel cannot undo a limit.
    Untouched,
}

impl ReceiveBuffer {
    /// Returns the state of the receive buffer of a connection under this setting.
    pub(crate) fn of(connection: impl AsFd, setting: BufferSize) -> Self {
        // Before Linux 5.14, and on MPTCP, a limit cannot be undone.
        let is_ours = || getsockopt(&connection, BufferLock).is_ok_and(|locks| locks & RECEIVE_BUFFER_LOCK == 0);
        let is_tcp = || socket_protocol(&connection) == Ok(Some(ipproto::TCP));
        if setting == BufferSize::Default && is_tcp() && is_ours() { Self::Adapted } else { Self::Untouched }
    }

    /// Returns the state that connections inherit from this listener. `None` if each connection has to be asked: on an MPTCP
    /// listener, the connections of clients without MPTCP are plain TCP.
    pub(crate) fn inherited_from(listener: impl AsFd, setting: BufferSize) -> Option<Self> {
        let is_mptcp = socket_protocol(&listener) == Ok(Some(ipproto::MPTCP));
        (setting != BufferSize::Default || !is_mptcp).then(|| Self::of(listener, setting))
    }

    /// Limits the buffer. Called before the daemon reads.
    #[inline]
    pub(crate) fn limit(&mut self, socket: impl AsFd) {
        if *self == Self::Adapted {
            *self = limit(socket);
        }
    }

    /// Lets the kernel adapt the buffer. Called when the daemon stops reading for a while.
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
