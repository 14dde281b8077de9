//! Peers, and the sources that limits count their connections for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::net::SocketAddrAny;

/// The other end of a connection, or the sender of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// An address and a port.
    Ip(SocketAddr),
    /// The address and port of a client behind a load balancer, from the PROXY header.
    Proxied(SocketAddr),
    /// A process on this machine.
    Process {
        /// Its UID; 65534 if the user has none in this user namespace.
        uid: u32,
        /// Its PID; `None` if the process is in another PID namespace.
        pid: Option<i32>,
    },
    /// A peer without an address and without credentials.
    Unknown,
}

impl Peer {
    /// Returns the peer of a connected socket: its address from accept(2) or getpeername(2), or its credentials.
    pub(crate) fn of(socket: impl AsFd, accepted_from: Option<SocketAddrAny>) -> Self {
        let address = accepted_from.or_else(|| rustix::net::getpeername(&socket).ok().flatten());
        if let Some(ip) = address.and_then(|address| SocketAddr::try_from(address).ok()) {
            return Self::Ip(SocketAddr::new(ip.ip().to_canonical(), ip.port()));
        }
        // A TCP socket that has lost its peer has no credentials, either.
        let credentials = getsockopt(&socket, PeerCredentials).ok().filter(|cred| cred.uid() != u32::MAX);
        credentials.map_or(Self::Unknown, |cred| Self::process(cred.uid(), cred.pid()))
    }

    /// Creates the peer from the credentials that the kernel reports.
    pub(crate) fn process(uid: u32, pid: i32) -> Self {
        // The kernel reports 0 for a process in another PID namespace.
        Self::Process { uid, pid: Some(pid).filter(|pid| *pid != 0) }
    }

    /// Returns the source that its connections count for; `None` if they are not limited.
    pub(crate) fn source(&self) -> Option<Source> {
        match self {
            Self::Ip(address) | Self::Proxied(address) => Source::of_ip(address.ip()),
            Self::Process { uid, .. } => Source::of_uid(*uid),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) | Self::Proxied(address) => address.fmt(f),
            Self::Process { uid: 65534, .. } | Self::Unknown => f.write_str("unknown"),
            Self::Process { uid, pid: Some(pid) } => write!(f, "uid {uid} pid {pid}"),
            Self::Process { uid, pid: None } => write!(f, "uid {uid}"),
        }
    }
}

/// The unit of per-source limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    V4(Ipv4Addr),
    /// The first 64 bits of the address. A host can choose the rest freely.
    V6([u16; 4]),
    Uid(u32),
}

impl Source {
    /// Returns the source of an address; `None` for loopback addresses, which are not limited.
    pub(crate) fn of_ip(ip: IpAddr) -> Option<Self> {
        (!ip.to_canonical().is_loopback()).then(|| Self::of_any_ip(ip))
    }

    fn of_any_ip(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Self::V6([a, b, c, d])
            }
        }
    }

    /// Returns the source of a UID; `None` for 65534, which stands for all users of other user namespaces.
    pub(crate) fn of_uid(uid: u32) -> Option<Self> {
        (uid != 65534).then_some(Self::Uid(uid))
    }

    /// Returns the source of a connection for the choice of idle connections to close. All loopback addresses are one source,
    /// and so are all unknown users.
    pub(crate) fn of_holder(peer: Peer) -> Self {
        peer.source().unwrap_or(match peer {
            Peer::Ip(_) | Peer::Proxied(_) => Self::V4(Ipv4Addr::LOCALHOST),
            Peer::Process { .. } | Peer::Unknown => Self::Uid(65534),
        })
    }

    /// Returns the source of a datagram. Loopback addresses are not exempt, because a forged datagram can also make two
    /// services of one machine answer each other. All unknown users are one source.
    pub(crate) fn of_datagram(peer: Peer) -> Self {
        match peer {
            Peer::Ip(address) | Peer::Proxied(address) => Self::of_any_ip(address.ip()),
            Peer::Process { uid, .. } => Self::Uid(uid),
            Peer::Unknown => Self::Uid(65534),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_addresses_prefixes_and_users() {
        let ip = |text: &str| Source::of_ip(text.parse().unwrap());
        assert_eq!(ip("127.0.0.1"), None);
        assert_eq!(ip("127.8.0.1"), None);
        assert_eq!(ip("::1"), None);
        assert_eq!(ip("::ffff:127.0.0.1"), None);
        assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
        assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:1"));
        assert_ne!(ip("2001:db8::1"), ip("2001:db8:0:1::1"));
        assert_eq!(Source::of_uid(0), Some(Source::Uid(0)));
        assert_eq!(Source::of_uid(65534), None);
    }
}
