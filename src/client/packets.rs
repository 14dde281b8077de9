//! Sockets of packets: what is sent with one call is one message, and so is what comes with one.
//!
//! With datagrams, connecting only says where to. That nobody listens there is heard after something was sent, if at all:
//! then, as long as nobody has answered, the next address of the host gets what the last one was sent.

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

use super::connect::{ConnectError, RETRY, look_up};
use crate::address::{Address, Family, Name};

/// The longest packet that is taken, in bytes. UDP has less, and so has a Unix socket unless the system is told otherwise.
pub(super) const MAX_PACKET: usize = 1024 * 1024;

/// A socket that packets are sent to, and come from, one other.
#[derive(Debug)]
pub struct Packets {
    address: Address,
    /// UDP and seqpacket, too: it is waited for, written and read by the same calls.
    socket: UnixDatagram,
    /// Whether the other side can end it.
    has_end: bool,
    /// Where it leads to, among several addresses of a host.
    at: Option<SocketAddr>,
    /// What else the host's name stands for.
    untried: vec::IntoIter<SocketAddr>,
    /// Where nobody was.
    refused: Vec<(SocketAddr, io::Error)>,
    /// What was sent last, as long as it may have to be sent elsewhere.
    last: Option<Vec<u8>>,
    /// Whether somebody has answered.
    heard: bool,
}

impl Packets {
    /// Connects to `address` within `limit`.
    ///
    /// # Errors
    /// See [`ConnectError`]. [`ConnectError::Stream`] where `address` is no address of packets.
    pub async fn connect(address: &Address, limit: Duration) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + limit;
        let unix_error = |error: io::Error| ConnectError::Unix { address: address.clone(), error };
        match address {
            Address::Udp { host, port } => {
                let found = look_up(address, Family::Any, host, *port, deadline, limit).await?;
                Self::connect_udp(address, found)
            }
            Address::Unixgram(name) => {
                let socket = unix_socket(SocketType::DGRAM).map_err(unix_error)?;
                // A name of its own, which the kernel picks (unix(7)): without one it cannot be answered.
                bind(&socket, &SocketAddrUnix::new_unnamed()).map_err(|error| unix_error(error.into()))?;
                socket_address(name).and_then(|to| Ok(connect(&socket, &to)?)).map_err(unix_error)?;
                Self::new(address, socket, false).map_err(unix_error)
            }
            Address::Seqpacket(name) => {
                let connected = timeout_at(deadline, connect_seqpacket(name)).await;
                let connected = connected.map_err(|_| ConnectError::TimedOut { address: address.clone(), limit })?;
                connected.and_then(|socket| Self::new(address, socket, true)).map_err(unix_error)
            }
            Address::Tcp { .. } | Address::Unix(_) => Err(ConnectError::Stream { address: address.clone() }),
        }
    }

    fn new(address: &Address, socket: OwnedFd, has_end: bool) -> io::Result<Self> {
        Ok(Self {
            address: address.clone(),
            socket: registered(socket)?,
            has_end,
            at: None,
            untried: Vec::new().into_iter(),
            refused: Vec::new(),
            last: None,
            heard: false,
        })
    }

    fn connect_udp(address: &Address, found: Vec<SocketAddr>) -> Result<Self, ConnectError> {
        let mut untried = found.into_iter();
        let mut refused = Vec::new();
        for at in untried.by_ref() {
            let socket = udp_socket(at).and_then(|socket| Self::new(address, socket, false));
            match socket {
                Ok(packets) => return Ok(Self { at: Some(at), untried, refused, ..packets }),
                Err(error) => refused.push((at, error)),
            }
        }
        let address = address.clone();
        Err(if refused.is_empty() {
            ConnectError::NoAddress { address }
        } else {
            ConnectError::Refused { address, attempts: refused }
        })
    }

    /// Whether the other side can end it: a connection of packets, no datagrams.
    pub(super) fn has_end(&self) -> bool {
        self.has_end
    }

    /// Waits until something can be done.
    pub(super) async fn ready(&self, interest: Interest) {
        // Errors come again when it is read.
        let _ = self.socket.ready(interest).await;
    }

    /// Sends one packet, whole.
    ///
    /// # Errors
    /// As send(2). It would block; or nobody listens, where that can be known.
    pub(super) fn try_send(&mut self, packet: &[u8]) -> io::Result<()> {
        let sent = try_at_once(&self.socket, Interest::WRITABLE, |socket| {
            Ok(send(socket, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
        });
        match sent {
            Ok(_) => {
                self.last = (!self.heard && self.untried.len() > 0).then(|| packet.to_vec());
                Ok(())
            }
            // Of the packet before.
            Err(error) if self.goes_on_after(&error) => Err(ErrorKind::WouldBlock.into()),
            Err(error) => Err(error),
        }
    }

    /// The length of the packet that comes next; `None` if the other side has ended the connection.
    ///
    /// # Errors
    /// As recv(2). It would block; or nobody listens, where that can be known; or the packet is longer than `buffer`.
    pub(super) fn try_receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let received = try_at_once(&self.socket, Interest::READABLE, |socket| {
                let mut no_room = RecvAncillaryBuffer::default();
                let mut buffers = [IoSliceMut::new(buffer)];
                Ok(recvmsg(socket, &mut buffers, &mut no_room, RecvFlags::DONTWAIT)?)
            });
            match received {
                Ok(message) => {
                    self.heard = true;
                    self.last = None;
                    if message.flags.contains(ReturnFlags::TRUNC) {
                        let text = format!("a packet has come that exceeds {} bytes", buffer.len());
                        return Err(io::Error::new(ErrorKind::InvalidData, text));
                    }
                    // An empty packet comes with credentials, for which there was no room; the end comes without.
                    let ended = self.has_end && message.bytes == 0 && !message.flags.contains(ReturnFlags::CTRUNC);
                    return Ok((!ended).then_some(message.bytes));
                }
                Err(error) if self.goes_on_after(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether it goes on at another address, since nobody was at this one.
    fn goes_on_after(&mut self, error: &io::Error) -> bool {
        if self.heard || error.kind() != ErrorKind::ConnectionRefused {
            return false;
        }
        let Some(before) = self.at else { return false };
        self.refused.push((before, Errno::CONNREFUSED.into()));
        for at in self.untried.by_ref() {
            let socket = udp_socket(at).and_then(registered);
            match socket {
                Ok(socket) => {
                    (self.at, self.socket) = (Some(at), socket);
                    if let Some(last) = &self.last {
                        // What goes wrong shows in what is read.
                        let _ = send(&self.socket, last, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
                    }
                    return true;
                }
                Err(error) => self.refused.push((at, error)),
            }
        }
        false
    }

    /// What it means that nobody listens, as long as nobody has answered: there was no connection.
    pub(super) fn refusal(&mut self, error: io::Error) -> Result<ConnectError, io::Error> {
        let nobody = !self.has_end && !self.heard && error.kind() == ErrorKind::ConnectionRefused;
        if !nobody {
            return Err(error);
        }
        let address = self.address.clone();
        Ok(if self.refused.is_empty() {
            ConnectError::Unix { address, error }
        } else {
            ConnectError::Refused { address, attempts: std::mem::take(&mut self.refused) }
        })
    }

    /// No more will be sent.
    pub(super) fn end(&self) {
        if self.has_end {
            // An error shows in what is read.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
    }
}

/// Tries, whatever the reactor believes. Where it would block, the reactor is told so.
fn try_at_once<T>(
    socket: &UnixDatagram,
    interest: Interest,
    mut call: impl FnMut(&UnixDatagram) -> io::Result<T>,
) -> io::Result<T> {
    match call(socket) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => socket.try_io(interest, || call(socket)),
        result => result,
    }
}

fn registered(socket: OwnedFd) -> io::Result<UnixDatagram> {
    UnixDatagram::from_std(unix::UnixDatagram::from(socket))
}

fn udp_socket(at: SocketAddr) -> io::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    connect(&socket, &at)?;
    Ok(socket)
}

fn unix_socket(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

fn socket_address(name: &Name) -> io::Result<SocketAddrUnix> {
    Ok(match name {
        Name::Path(path) => SocketAddrUnix::new(path)?,
        Name::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
    })
}

async fn connect_seqpacket(name: &Name) -> io::Result<OwnedFd> {
    let socket = unix_socket(SocketType::SEQPACKET)?;
    let to = socket_address(name)?;
    loop {
        match connect(&socket, &to) {
            // A full backlog, as with Unix streams.
            Err(Errno::AGAIN) => sleep(RETRY).await,
            result => {
                result?;
                // Has every packet, and only a packet, come with something besides its bytes.
                set_socket_passcred(&socket, true)?;
                return Ok(socket);
            }
        }
    }
}
