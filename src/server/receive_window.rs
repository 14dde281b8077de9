//! Detects that the kernel has taken back the receive window of a TCP connection.
//!
//! When a packet does not fit into the receive buffer, a newer kernel (seen with Linux 6.18) drops it, and withdraws the window
//! that it has advertised. Packets that the peer has already sent are then outside the window, and the kernel ignores them,
//! including the acknowledgments. A daemon that waited for these acknowledgments before reading would wait forever, so it reads
//! some input first. (Small packets make this likely: the kernel needs several times their length for each.)

use std::os::fd::AsFd;

use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

use super::socket_memory::SocketMemory;

/// Returns whether the receive buffer of a TCP connection is so full that the kernel may have dropped a packet.
pub(crate) fn is_closed(socket: impl AsFd) -> bool {
    socket_domain(&socket).is_ok_and(|domain| domain != AddressFamily::UNIX)
        && SocketMemory::of(&socket).is_some_and(|memory| memory.received > memory.receive_limit)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use rustix::net::sockopt::set_socket_recv_buffer_size;

    use super::*;

    #[test]
    fn a_receive_buffer_that_is_full_closes_the_window() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        client.write_all(&[b'a'; 10_000]).unwrap();
        // Waits until the input is there.
        socket.peek(&mut [0]).unwrap();
        assert!(!is_closed(&socket));
        // The kernel sets its minimum size, which is less than 10,000 bytes.
        set_socket_recv_buffer_size(&socket, 1).unwrap();
        assert!(is_closed(&socket));
    }

    #[test]
    fn a_unix_socket_has_no_window() {
        let (one, other) = UnixStream::pair().unwrap();
        (&other).write_all(&[b'a'; 10_000]).unwrap();
        set_socket_recv_buffer_size(&one, 1).unwrap();
        assert!(!is_closed(&one));
    }
}
