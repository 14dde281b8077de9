//! Widens the receive window of a TCP connection while the daemon waits for its peer to take replies.
//!
//! A receive buffer of a fixed size bounds the memory that a peer makes the kernel hold. But when a packet does not fit into
//! it, a newer kernel (seen with Linux 6.18) takes back the window that it has promised. What the peer has sent is beyond the
//! window then, and the kernel ignores all of it: also the acknowledgments. A daemon that waits for these before it reads would
//! wait for ever. With a larger buffer the kernel opens the window again.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use rustix::io::retry_on_intr;
use rustix::net::sockopt;

use super::socket_options::{has_fixed_receive_buffer, is_tcp};

/// The largest size that is widened, in bytes: the usual net.core.rmem_max. A larger one may have been forced by the service
/// manager (`ReceiveBuffer=`), and setting it anew would shrink it.
const MAX_WIDENED: usize = 208 * 1024;

/// Doubles the receive buffer of a TCP connection if its size is fixed, up to net.core.rmem_max. Returns the size for
/// [`restore`].
pub(crate) fn widen(socket: impl AsFd) -> Option<NonZeroUsize> {
    if !is_tcp(&socket).ok()? || !has_fixed_receive_buffer(&socket) {
        return None;
    }
    // The kernel reports twice what was set (socket(7)).
    let doubled = retry_on_intr(|| sockopt::socket_recv_buffer_size(&socket)).ok()?;
    if doubled / 2 > MAX_WIDENED {
        return None;
    }
    retry_on_intr(|| sockopt::set_socket_recv_buffer_size(&socket, doubled)).ok()?;
    NonZeroUsize::new(doubled / 2)
}

/// Gives the receive buffer back the size that it had before [`widen`].
pub(crate) fn restore(socket: impl AsFd, size: NonZeroUsize) {
    // It only fails for what is no socket.
    let _ = retry_on_intr(|| sockopt::set_socket_recv_buffer_size(&socket, size.get()));
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_fixed_buffer_of_tcp_is_doubled_and_restored() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        sockopt::set_socket_recv_buffer_size(&socket, 30_000).unwrap();
        let before = widen(&socket).unwrap();
        assert_eq!(sockopt::socket_recv_buffer_size(&socket).unwrap(), 120_000);
        restore(&socket, before);
        assert_eq!(sockopt::socket_recv_buffer_size(&socket).unwrap(), 60_000);
    }

    #[test]
    fn what_the_kernel_adapts_and_unix_sockets_stay_as_they_are() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(widen(TcpStream::connect(listener.local_addr().unwrap()).unwrap()), None);
        let forced = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        if sockopt::set_socket_recv_buffer_size_force(&forced, 300_000).is_ok() {
            assert_eq!(widen(&forced), None);
        }
        let (unix, _peer) = UnixStream::pair().unwrap();
        sockopt::set_socket_recv_buffer_size(&unix, 30_000).unwrap();
        assert_eq!(widen(&unix), None);
    }
}
