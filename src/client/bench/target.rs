//! The address that connections go to, and non-blocking attempts to connect.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_nodelay, socket_error, socket_send_buffer_size};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, connect, getpeername, getsockname,
    socket_with,
};

use crate::address::Address;
use crate::client::connect::{open_unix_socket, unix_socket_address};
use crate::client::packets::{open_udp_socket, open_unixgram_socket};

/// The target of connections: one address, looked up once.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Tcp(SocketAddr),
    Unix(SocketAddrUnix),
    Udp(SocketAddr),
    Unixgram(SocketAddrUnix),
    Seqpacket(SocketAddrUnix),
}

/// The outcome of an attempt to connect.
pub(super) enum ConnectAttempt {
    /// It is connected.
    Connected(OwnedFd),
    /// The socket will be writable when the attempt has ended: see [`Target::finish_connect`].
    InProgress(OwnedFd),
    /// A Unix socket's backlog is full; no event says when there is room.
    BacklogFull,
    /// It failed.
    Failed(io::Error),
}

impl Target {
    /// Returns the address to which `connected`, a connection to `address`, has led.
    pub(super) fn from_connected(address: &Address, connected: &UnixStream) -> io::Result<Self> {
        Ok(match address {
            Address::Unix(name) => Self::Unix(unix_socket_address(name)?),
            _ => {
                let peer: Option<SocketAddrAny> = getpeername(connected)?;
                Self::Tcp(peer.ok_or(Errno::NOTCONN)?.try_into()?)
            }
        })
    }

    /// Returns whether it is connections of packets that the server can end.
    pub(super) fn is_connection_oriented(&self) -> bool {
        matches!(self, Self::Seqpacket(_))
    }

    /// Returns whether the network tells of datagrams that have not arrived. The socket is as good as before then.
    pub(super) fn reports_network_errors(&self) -> bool {
        matches!(self, Self::Udp(_))
    }

    /// Returns whether nothing has come from this socket since the server has ended the connection, rather than an empty
    /// packet.
    pub(super) fn has_ended(&self, socket: &OwnedFd) -> bool {
        let mut sockets = [PollFd::new(socket, PollFlags::RDHUP)];
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.is_connection_oriented() && poll(&mut sockets, Some(&no_wait)).is_ok_and(|ready| ready > 0)
    }

    /// Returns the size of the longest packet that `socket`, if there is one, can send there, in bytes.
    pub(super) fn max_packet(&self, socket: Option<&OwnedFd>) -> Option<usize> {
        match (self, socket) {
            // 65,535 bytes less the headers of IPv4 (20) and UDP (8). IPv6 does not count its own.
            (Self::Udp(address), _) => Some(if address.is_ipv4() { 65_507 } else { 65_527 }),
            (Self::Unixgram(_) | Self::Seqpacket(_), Some(socket)) => {
                // The kernel keeps so many bytes for itself (unix_dgram_sendmsg of af_unix.c).
                socket_send_buffer_size(socket).ok().map(|size| size.saturating_sub(32))
            }
            _ => None,
        }
    }

    /// Starts to connect.
    pub(super) fn start_connect(&self) -> ConnectAttempt {
        match self.open_and_connect() {
            Ok((socket, Ok(()))) => match self.is_self_connected(&socket) {
                Ok(false) => ConnectAttempt::Connected(socket),
                Ok(true) => ConnectAttempt::Failed(Errno::CONNREFUSED.into()),
                Err(error) => ConnectAttempt::Failed(error),
            },
            Ok((socket, Err(Errno::INPROGRESS))) => ConnectAttempt::InProgress(socket),
            Ok((_, Err(Errno::AGAIN))) if matches!(self, Self::Udp(_)) => ConnectAttempt::Failed(io::Error::other(
                "each source needs a local port, and none is free (net.ipv4.ip_local_port_range)",
            )),
            Ok((_, Err(Errno::AGAIN))) => ConnectAttempt::BacklogFull,
            Ok((_, Err(error))) | Err(error) => ConnectAttempt::Failed(error.into()),
        }
    }

    fn open_and_connect(&self) -> rustix::io::Result<(OwnedFd, rustix::io::Result<()>)> {
        match self {
            Self::Tcp(address) => {
                let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = socket_with(family, SocketType::STREAM, flags, None)?;
                set_tcp_nodelay(&socket, true)?;
                let connected = connect(&socket, address);
                Ok((socket, connected))
            }
            Self::Udp(address) => {
                let socket = open_udp_socket(address)?;
                let connected = connect(&socket, address);
                Ok((socket, connected))
            }
            Self::Unix(address) | Self::Seqpacket(address) => {
                let kind = if matches!(self, Self::Unix(_)) { SocketType::STREAM } else { SocketType::SEQPACKET };
                let socket = open_unix_socket(kind)?;
                let connected = connect(&socket, address);
                Ok((socket, connected))
            }
            Self::Unixgram(address) => {
                let socket = open_unixgram_socket()?;
                let connected = connect(&socket, address);
                Ok((socket, connected))
            }
        }
    }

    /// Returns the outcome of an attempt that was in progress.
    pub(super) fn finish_connect(&self, socket: &OwnedFd) -> io::Result<()> {
        socket_error(socket)??;
        if self.is_self_connected(socket)? { Err(Errno::CONNREFUSED.into()) } else { Ok(()) }
    }

    /// Returns whether the socket is connected to itself: if no socket listens on the port and the kernel gave this very
    /// port to ours, TCP does so (RFC 9293, 3.5), and a datagram comes back to its sender.
    fn is_self_connected(&self, socket: &OwnedFd) -> io::Result<bool> {
        match self {
            Self::Tcp(address) | Self::Udp(address) => Ok(SocketAddr::try_from(getsockname(socket)?)? == *address),
            Self::Unix(_) | Self::Unixgram(_) | Self::Seqpacket(_) => Ok(false),
        }
    }
}
