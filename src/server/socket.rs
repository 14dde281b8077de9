//! The kinds of sockets that the server can serve.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use rustix::io::retry_on_intr;
use rustix::net::SocketType;
use rustix::net::sockopt;

/// The kind of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SocketKind {
    /// Connections, each a stream of bytes: SOCK_STREAM of any family.
    Stream,
    /// Connections of packets: SOCK_SEQPACKET.
    Seqpacket,
    /// Datagrams of any sender: SOCK_DGRAM.
    Datagram,
}

impl SocketKind {
    /// Returns the kind of a socket.
    ///
    /// # Errors
    /// Returns the error of getsockopt(2), or an error if the socket is of another kind.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        match retry_on_intr(|| sockopt::socket_type(&socket))? {
            SocketType::STREAM => Ok(Self::Stream),
            SocketType::SEQPACKET => Ok(Self::Seqpacket),
            SocketType::DGRAM => Ok(Self::Datagram),
            _ => Err(io::Error::new(ErrorKind::Unsupported, "it carries neither streams, nor packets, nor datagrams")),
        }
    }
}
