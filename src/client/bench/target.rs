//! The address that connections go to, and non-blocking attempts to connect.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_nodelay, socket_error};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, connect, getpeername, getsockname,
    socket_with,
};

use crate::address::Address;
use crate::client::connect::{open_unix_socket, unix_socket_address};

/// Where connections go to: one address, looked up once.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Tcp(SocketAddr),
    Unix(SocketAddrUnix),
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

    /// Starts to connect.
    pub(super) fn start_connect(&self) -> ConnectAttempt {
        match self.open_and_connect() {
            Ok((socket, Ok(()))) => match self.is_self_connected(&socket) {
                Ok(false) => ConnectAttempt::Connected(socket),
                Ok(true) => ConnectAttempt::Failed(Errno::CONNREFUSED.into()),
                Err(error) => ConnectAttempt::Failed(error),
            },
            Ok((socket, Err(Errno::INPROGRESS))) => ConnectAttempt::InProgress(socket),
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
            Self::Unix(address) => {
                let socket = open_unix_socket(SocketType::STREAM)?;
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

    /// Returns whether TCP has connected the socket to itself: if no socket listens on the port and the kernel gave
    /// this very port to ours, it does so (RFC 9293, 3.5).
    fn is_self_connected(&self, socket: &OwnedFd) -> io::Result<bool> {
        match self {
            Self::Tcp(address) => Ok(SocketAddr::try_from(getsockname(socket)?)? == *address),
            Self::Unix(_) => Ok(false),
        }
    }
}
