//! Clients of the daemon that send packets: over a connection ([`PacketPeer`]), or as datagrams ([`DatagramPeer`]).

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    shutdown, socket_with,
};

use super::{TEST_TIMEOUT, now};

/// The address of a Unix socket from how the daemon writes it.
pub fn unix_address(address: &str) -> SocketAddrUnix {
    let (_, name) = address.split_once(':').expect("it has a scheme");
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
        None => SocketAddrUnix::new(name),
    };
    address.expect("it is short")
}

/// How many were dropped for a cause, as the log says in the end.
pub fn count_dropped(log: &[String], cause: &str) -> u64 {
    let of_cause = log.iter().filter(|line| line.contains(&format!(" dropped on echo: {cause}; ")));
    let count = |line: &String| {
        let (before, _) = line.split_once(" datagram")?;
        before.split_whitespace().last()?.parse::<u64>().ok()
    };
    of_cause.map(|line| count(line).unwrap_or_else(|| panic!("{line}"))).sum()
}

/// How many datagrams and packets were messages, as the log says in the end.
pub fn count_messages(log: &[String]) -> u64 {
    let count = |line: &String| line.split_once(" messages, ")?.0.rsplit(' ').next()?.parse().ok();
    log.iter().find_map(count).unwrap_or_else(|| panic!("{log:#?}"))
}

/// A connection of packets.
pub struct PacketPeer(OwnedFd);

impl PacketPeer {
    /// Connects to an address as the daemon writes it: `seqpacket:/PATH`, `seqpacket:@NAME`.
    pub fn connect(address: &str) -> Self {
        let peer = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("there are such sockets");
        connect(&peer, &unix_address(address)).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        Self::from_fd(peer)
    }

    /// Takes a connected socket.
    pub fn from_fd(socket: OwnedFd) -> Self {
        set_socket_timeout(&socket, Timeout::Recv, Some(TEST_TIMEOUT)).expect("a timeout can be set");
        set_socket_timeout(&socket, Timeout::Send, Some(TEST_TIMEOUT)).expect("a timeout can be set");
        Self(socket)
    }

    /// Returns the socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Sends one packet.
    pub fn send(&self, packet: impl AsRef<[u8]>) {
        let packet = packet.as_ref();
        let sent = send(&self.0, packet, SendFlags::NOSIGNAL).expect("it can be sent");
        assert_eq!(sent, packet.len());
    }

    /// Sends packets as long as there is room for more; returns how many.
    pub fn send_what_fits(&self, packet: &[u8]) -> usize {
        (0..).find(|_| !self.try_send(packet)).expect("it ends")
    }

    /// Sends one packet if there is room for it. Returns whether there was.
    pub fn try_send(&self, packet: &[u8]) -> bool {
        send(&self.0, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
    }

    /// The next packet; at the end of the stream an empty one.
    pub fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 300_000];
        let (_, len) = retry_on_intr(|| recv(&self.0, &mut buffer[..], RecvFlags::TRUNC)).expect("a packet comes");
        assert!(len <= buffer.len(), "{len}");
        buffer.truncate(len);
        buffer
    }

    /// Receives a packet; panics unless it is this one.
    pub fn expect(&self, packet: impl AsRef<[u8]>) {
        let (packet, received) = (packet.as_ref(), self.receive());
        let shown = |bytes: &[u8]| format!("{} bytes: {}", bytes.len(), bytes[..bytes.len().min(100)].escape_ascii());
        assert!(received == packet, "received {}, expected {}", shown(&received), shown(packet));
    }

    /// Sends a message and waits for its reply.
    pub fn exchange(&self, message: &str) {
        self.send(message);
        self.expect(format!("server got:{message}"));
    }

    /// Waits for the end of the stream. (The daemon sends no empty packets but where the prefix is empty.)
    pub fn expect_close(&self) {
        self.expect("");
    }

    /// Closes it for good, as [`Peer::close`](super::Peer::close) does.
    pub fn close(self) {
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    /// Ends our stream.
    pub fn shutdown(&self) {
        shutdown(&self.0, Shutdown::Write).expect("it can be shut down");
    }
}

/// A datagram socket with one destination.
pub struct DatagramPeer {
    socket: Socket,
    to: String,
}

enum Socket {
    Udp(UdpSocket),
    Unix(unix::UnixDatagram),
}

impl DatagramPeer {
    /// From 127.0.0.1, [::1] or a name of its own to an address as the daemon writes it: `udp:127.0.0.1:40123`,
    /// `unixgram:/PATH`, `unixgram:@NAME`.
    pub fn to(address: &str) -> Self {
        let Some(ip) = address.strip_prefix("udp:") else {
            // An empty name is one that the kernel picks (autobind of unix(7)).
            let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .expect("there are such sockets");
            rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed()).expect("it gets a name");
            return Self { socket: Socket::Unix(socket.into()), to: address.to_owned() }.with_timeouts();
        };
        let ip: SocketAddr = ip.parse().expect("an address");
        Self::bind(if ip.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }, address)
    }

    /// From an address of IP.
    pub fn bind(from: &str, address: &str) -> Self {
        let socket = UdpSocket::bind(from).unwrap_or_else(|error| panic!("cannot bind {from}: {error}"));
        Self { socket: Socket::Udp(socket), to: address.to_owned() }.with_timeouts()
    }

    /// From a Unix socket without a name.
    pub fn unnamed(address: &str) -> Self {
        let socket = unix::UnixDatagram::unbound().expect("there are such sockets");
        Self { socket: Socket::Unix(socket), to: address.to_owned() }.with_timeouts()
    }

    fn with_timeouts(self) -> Self {
        set_socket_timeout(self.fd(), Timeout::Recv, Some(TEST_TIMEOUT)).expect("a timeout can be set");
        set_socket_timeout(self.fd(), Timeout::Send, Some(TEST_TIMEOUT)).expect("a timeout can be set");
        self
    }

    /// Returns the socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Udp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }

    /// Sends a datagram.
    pub fn send(&self, datagram: impl AsRef<[u8]>) {
        let datagram = datagram.as_ref();
        let sent = match &self.socket {
            Socket::Udp(socket) => socket.send_to(datagram, self.to.strip_prefix("udp:").expect("it is UDP")),
            Socket::Unix(socket) => match self.to.strip_prefix("unixgram:@") {
                Some(name) => {
                    socket.send_to_addr(datagram, &unix::SocketAddr::from_abstract_name(name).expect("it is short"))
                }
                None => socket.send_to(datagram, self.to.strip_prefix("unixgram:").expect("it is Unix")),
            },
        };
        assert_eq!(sent.unwrap_or_else(|error| panic!("cannot send to {}: {error}", self.to)), datagram.len());
    }

    /// Receives a datagram.
    pub fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 300_000];
        let (_, len) = retry_on_intr(|| recv(self.fd(), &mut buffer[..], RecvFlags::TRUNC)).expect("a datagram comes");
        buffer.truncate(len);
        buffer
    }

    /// Receives a datagram; panics unless it is this one.
    pub fn expect(&self, datagram: impl AsRef<[u8]>) {
        let (datagram, received) = (datagram.as_ref(), self.receive());
        let shown = |bytes: &[u8]| format!("{} bytes: {}", bytes.len(), bytes[..bytes.len().min(100)].escape_ascii());
        assert!(received == datagram, "received {}, expected {}", shown(&received), shown(datagram));
    }

    /// Sends a message and expects its reply.
    pub fn exchange(&self, message: &str) {
        self.send(message);
        self.expect(format!("server got:{message}"));
    }

    /// How many come until none does for this long.
    pub fn count_until_silent(&self, time: Duration) -> usize {
        set_socket_timeout(self.fd(), Timeout::Recv, Some(time)).expect("a timeout can be set");
        let (mut count, until) = (0, now() + TEST_TIMEOUT);
        loop {
            match retry_on_intr(|| recv(self.fd(), &mut [0; 1][..], RecvFlags::empty())) {
                Ok(_) => count += 1,
                Err(error) if std::io::Error::from(error).kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
            assert!(now() < until, "they do not end");
        }
        set_socket_timeout(self.fd(), Timeout::Recv, Some(TEST_TIMEOUT)).expect("a timeout can be set");
        count
    }
}
