//! Sockets of packets: what is sent with one call is one message, and so is what comes with one.
//!
//! With datagrams, connecting only sets the destination. The client learns that no socket listens there after a send,
//! if at all: then, until a reply has come, it sends the last packet to the next address of the host.

use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net as unix;
use std::time::Duration;
use std::vec;

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags,
    SocketType, bind, connect, recvmsg, send, shutdown, socket_with,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, sleep, timeout_at};

use super::connect::{ConnectError, RETRY_INTERVAL, look_up, open_unix_socket, unix_socket_address};
use crate::address::{Address, Family, UnixName};

/// The longest packet that is taken, in bytes. UDP has less, and so has a Unix socket unless the system is told
/// otherwise.
pub(super) const MAX_PACKET: usize = 1024 * 1024;

/// A socket that packets are sent to, and come from, one other.
#[derive(Debug)]
pub struct PacketSocket {
    address: Address,
    /// UDP and seqpacket, too: it is waited for, written and read by the same calls.
    socket: UnixDatagram,
    /// Whether the socket is a seqpacket connection, which the other side can end; datagrams have no end.
    connection_oriented: bool,
    /// The address that it is connected to, if the host has several.
    current_address: Option<SocketAddr>,
    /// Further addresses of the host.
    untried: vec::IntoIter<SocketAddr>,
    /// Addresses that refused, with their errors.
    refused: Vec<(SocketAddr, io::Error)>,
    /// The last packet that was sent, as long as it may have to be sent to another address.
    last_packet: Option<Vec<u8>>,
    /// Whether any packet was received.
    received_any: bool,
}

impl PacketSocket {
    /// Connects to `address` within `limit`.
    ///
    /// # Errors
    /// Returns an error if the server cannot be reached; see [`ConnectError`]. Returns
    /// [`ConnectError::PacketsRequired`] if `address` is not one of packets.
    pub async fn connect(address: &Address, limit: Duration) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + limit;
        let unix_error = |error: io::Error| ConnectError::Unix { address: address.clone(), error };
        match address {
            Address::Udp { host, port } => {
                let resolved = look_up(address, Family::Any, host, *port, deadline, limit).await?;
                Self::connect_udp(address, resolved)
            }
            Address::Unixgram(name) => {
                let socket = open_unixgram_socket().map_err(|error| unix_error(error.into()))?;
                unix_socket_address(name)
                    .and_then(|destination| Ok(connect(&socket, &destination)?))
                    .map_err(unix_error)?;
                Self::new(address, socket, false).map_err(unix_error)
            }
            Address::Seqpacket(name) => {
                let connected = timeout_at(deadline, connect_seqpacket(name)).await;
                let connected = connected.map_err(|_| ConnectError::TimedOut { address: address.clone(), limit })?;
                connected.and_then(|socket| Self::new(address, socket, true)).map_err(unix_error)
            }
            Address::Tcp { .. } | Address::Unix(_) => Err(ConnectError::PacketsRequired { address: address.clone() }),
        }
    }

    fn new(address: &Address, socket: OwnedFd, connection_oriented: bool) -> io::Result<Self> {
        Ok(Self {
            address: address.clone(),
            socket: register_socket(socket)?,
            connection_oriented,
            current_address: None,
            untried: Vec::new().into_iter(),
            refused: Vec::new(),
            last_packet: None,
            received_any: false,
        })
    }

    fn connect_udp(address: &Address, resolved: Vec<SocketAddr>) -> Result<Self, ConnectError> {
        let mut untried = resolved.into_iter();
        let mut refused = Vec::new();
        for candidate in untried.by_ref() {
            let socket = connect_udp_socket(candidate).and_then(|socket| Self::new(address, socket, false));
            match socket {
                Ok(packets) => return Ok(Self { current_address: Some(candidate), untried, refused, ..packets }),
                Err(error) => refused.push((candidate, error)),
            }
        }
        let address = address.clone();
        Err(if refused.is_empty() {
            ConnectError::NoAddress { address }
        } else {
            ConnectError::Refused { address, attempts: refused }
        })
    }

    /// Returns whether the other side can end it: a seqpacket connection, not datagrams.
    pub(super) fn is_connection_oriented(&self) -> bool {
        self.connection_oriented
    }

    /// Waits until something can be done.
    pub(super) async fn ready(&self, interest: Interest) {
        // Errors come again when it is read.
        let _ = self.socket.ready(interest).await;
    }

    /// Sends one packet, whole.
    ///
    /// # Errors
    /// Returns an error of send(2): it would block, or no socket listens, as far as the kernel reports that.
    pub(super) fn try_send(&mut self, packet: &[u8]) -> io::Result<()> {
        let sent = try_ignoring_readiness(&self.socket, Interest::WRITABLE, |socket| {
            Ok(send(socket, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
        });
        match sent {
            Ok(_) => {
                self.last_packet = (!self.received_any && self.untried.len() > 0).then(|| packet.to_vec());
                Ok(())
            }
            // The error belongs to the packet before.
            Err(error) if self.try_next_address(&error) => Err(ErrorKind::WouldBlock.into()),
            Err(error) => Err(error),
        }
    }

    /// Receives the next packet. Returns its length; `None` if the peer has ended the connection.
    ///
    /// # Errors
    /// Returns an error of recv(2): it would block, or no socket listens, as far as the kernel reports that; or if the packet
    /// is longer than `buffer`.
    pub(super) fn try_receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let received = try_ignoring_readiness(&self.socket, Interest::READABLE, |socket| {
                let mut no_ancillary = RecvAncillaryBuffer::default();
                let mut buffers = [IoSliceMut::new(buffer)];
                Ok(recvmsg(socket, &mut buffers, &mut no_ancillary, RecvFlags::DONTWAIT)?)
            });
            match received {
                Ok(message) => {
                    self.received_any = true;
                    self.last_packet = None;
                    if message.flags.contains(ReturnFlags::TRUNC) {
                        let text = format!("a packet has come that exceeds {} bytes", buffer.len());
                        return Err(io::Error::new(ErrorKind::InvalidData, text));
                    }
                    // An empty packet comes with credentials, for which there was no room; the end comes without.
                    let ended =
                        self.connection_oriented && message.bytes == 0 && !message.flags.contains(ReturnFlags::CTRUNC);
                    return Ok((!ended).then_some(message.bytes));
                }
                Err(error) if self.try_next_address(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Connects to the next address and sends the last packet there, if `error` says that no socket listens at the
    /// current one. Returns whether it did.
    fn try_next_address(&mut self, error: &io::Error) -> bool {
        if self.received_any || error.kind() != ErrorKind::ConnectionRefused {
            return false;
        }
        let Some(previous) = self.current_address else { return false };
        self.refused.push((previous, Errno::CONNREFUSED.into()));
        for candidate in self.untried.by_ref() {
            let socket = connect_udp_socket(candidate).and_then(register_socket);
            match socket {
                Ok(socket) => {
                    (self.current_address, self.socket) = (Some(candidate), socket);
                    if let Some(last) = &self.last_packet {
                        // The next read reports an error.
                        let _ = send(&self.socket, last, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
                    }
                    return true;
                }
                Err(error) => self.refused.push((candidate, error)),
            }
        }
        false
    }

    /// Returns the connect error if `error` says that no socket listens and no reply has come: there was no connection.
    /// Or else returns `error` itself.
    pub(super) fn take_connect_error(&mut self, error: io::Error) -> Result<ConnectError, io::Error> {
        let is_refused =
            !self.connection_oriented && !self.received_any && error.kind() == ErrorKind::ConnectionRefused;
        if !is_refused {
            return Err(error);
        }
        let address = self.address.clone();
        Ok(if self.refused.is_empty() {
            ConnectError::Unix { address, error }
        } else {
            ConnectError::Refused { address, attempts: std::mem::take(&mut self.refused) }
        })
    }

    /// Ends our side of a seqpacket connection: no more will be sent.
    pub(super) fn shut_down_writes(&self) {
        if self.connection_oriented {
            // An error shows in what is read.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
    }
}

/// Tries the operation whether or not the reactor considers the socket ready. If it would block, clears the readiness.
fn try_ignoring_readiness<T>(
    socket: &UnixDatagram,
    interest: Interest,
    mut call: impl FnMut(&UnixDatagram) -> io::Result<T>,
) -> io::Result<T> {
    match call(socket) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => socket.try_io(interest, || call(socket)),
        result => result,
    }
}

fn register_socket(socket: OwnedFd) -> io::Result<UnixDatagram> {
    UnixDatagram::from_std(unix::UnixDatagram::from(socket))
}

fn connect_udp_socket(candidate: SocketAddr) -> io::Result<OwnedFd> {
    let socket = open_udp_socket(&candidate)?;
    connect(&socket, &candidate)?;
    Ok(socket)
}

/// Opens a socket for datagrams to this address.
pub(super) fn open_udp_socket(destination: &SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if destination.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Opens a Unix socket for datagrams. It has a name of its own, which the kernel picks (unix(7)): without one it cannot be
/// answered.
pub(super) fn open_unixgram_socket() -> rustix::io::Result<OwnedFd> {
    let socket = open_unix_socket(SocketType::DGRAM)?;
    bind(&socket, &SocketAddrUnix::new_unnamed())?;
    Ok(socket)
}

async fn connect_seqpacket(name: &UnixName) -> io::Result<OwnedFd> {
    let socket = open_unix_socket(SocketType::SEQPACKET)?;
    let destination = unix_socket_address(name)?;
    loop {
        match connect(&socket, &destination) {
            // A full backlog, as with Unix streams.
            Err(Errno::AGAIN) => sleep(RETRY_INTERVAL).await,
            result => {
                result?;
                // Has every packet, and only a packet, come with something besides its bytes.
                set_socket_passcred(&socket, true)?;
                return Ok(socket);
            }
        }
    }
}
