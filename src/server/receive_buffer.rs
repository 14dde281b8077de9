//! The receive buffer of TCP connections whose buffer has the default size.
//!
//! While the daemon reads, the buffer has a fixed size. Otherwise, the faster a client sends, the more the kernel would
//! enlarge the buffer, up to net.ipv4.tcp_rmem (6 to 32 MiB), and advertise all of it as the receive window. A client
//! that stops reading its replies, so that the daemon stops reading too, could then fill all of it.
//!
//! While the daemon does not read, the kernel may enlarge the buffer again. Then the buffer can hold what the
//! advertised window promises; the window itself does not grow, because it grows only with what is read. A buffer of a
//! fixed size cannot hold that when packets are small, because each packet occupies several times its length: the
//! kernel drops what does not fit and, since Linux 6.18, ignores everything else that was sent by then. The client's
//! kernel retransmits ever less often, until the read deadline closes the connection of a client that only waited for
//! the daemon.

use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, setsockopt};
use rustix::io::retry_on_intr;
use rustix::net::ipproto;
use rustix::net::sockopt::{set_socket_recv_buffer_size, socket_protocol};

use super::socket_options::{BufferLock, RECEIVE_BUFFER_LOCK};
use crate::config::BufferSize;

/// The size while the daemon reads, in bytes. The kernel doubles it, and advertises half of that as the initial receive
/// window.
const SIZE: usize = 64 * 1024;

/// The state of a connection's receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReceiveBuffer {
    /// The kernel adapts the size.
    Adapted,
    /// The size is [`SIZE`].
    Limited,
    /// The daemon never changes it: the settings or the socket unit have set a size, the socket is not TCP, or the
    /// kernel does not support it.
    Untouched,
}

impl ReceiveBuffer {
    /// Returns the state of a connection's receive buffer under this setting.
    pub(crate) fn of(connection: impl AsFd, setting: BufferSize) -> Self {
        // Before Linux 5.14, and on MPTCP, a limit could not be removed again.
        let is_ours = || getsockopt(&connection, BufferLock).is_ok_and(|locks| locks & RECEIVE_BUFFER_LOCK == 0);
        let is_tcp = || socket_protocol(&connection) == Ok(Some(ipproto::TCP));
        if setting == BufferSize::Default && is_tcp() && is_ours() { Self::Adapted } else { Self::Untouched }
    }

    /// Returns the state that connections inherit from this listener. `None` if each connection has to be queried: an
    /// MPTCP listener accepts plain TCP connections from clients without MPTCP.
    pub(crate) fn inherited_from(listener: impl AsFd, setting: BufferSize) -> Option<Self> {
        let is_mptcp = socket_protocol(&listener) == Ok(Some(ipproto::MPTCP));
        (setting != BufferSize::Default || !is_mptcp).then(|| Self::of(listener, setting))
    }

    /// Limits the buffer before the daemon reads.
    #[inline]
    pub(crate) fn limit(&mut self, socket: impl AsFd) {
        if *self == Self::Adapted {
            *self = limit(socket);
        }
    }

    /// Lets the kernel adapt the buffer while the daemon does not read.
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
