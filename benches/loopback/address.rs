//! The address and the transport of a server.

use std::net::SocketAddrV4;
use std::path::PathBuf;

/// The kind of socket a case runs over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transport {
    /// TCP over the loopback interface.
    Tcp,
    /// A Unix stream socket.
    Unix,
    /// UDP over the loopback interface.
    Udp,
    /// A Unix datagram socket. Its clients have names in the abstract namespace.
    Unixgram,
    /// A Unix datagram socket, whose clients are bound to paths.
    UnixgramPath,
    /// A Unix seqpacket socket.
    Seqpacket,
}

impl Transport {
    /// The transports that carry streams.
    pub(crate) const STREAMS: [Self; 2] = [Self::Tcp, Self::Unix];

    /// The transports that carry packets.
    pub(crate) const PACKETS: [Self; 4] = [Self::Udp, Self::Unixgram, Self::UnixgramPath, Self::Seqpacket];

    /// Returns its name in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Udp => "udp",
            Self::Unixgram => "unixgram",
            Self::UnixgramPath => "unixgram-path",
            Self::Seqpacket => "seqpacket",
        }
    }

    /// Returns whether it carries packets instead of a stream.
    pub(crate) fn is_packets(self) -> bool {
        Self::PACKETS.contains(&self)
    }
}

/// The address of a server.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// An address of the loopback interface.
    Tcp(SocketAddrV4),
    /// The path of a socket.
    Unix(PathBuf),
    /// An address of the loopback interface, for datagrams.
    Udp(SocketAddrV4),
    /// The path of a socket, for datagrams.
    Unixgram(PathBuf),
    /// The path of a socket, for connections of packets.
    Seqpacket(PathBuf),
}

impl Address {
    /// Takes the address out of a ready line: `… listening on tcp:127.0.0.1:40123 …`.
    pub(crate) fn in_log(log: &str) -> Option<Self> {
        let (_, rest) = log.split_once("listening on ")?;
        let (line, _) = rest.split_once('\n')?;
        let word = line.split_whitespace().next()?.trim_end_matches([',', ';', '"']);
        match word.split_once(':')? {
            ("tcp", address) => address.parse().ok().map(Self::Tcp),
            ("unix", path) => Some(Self::Unix(path.into())),
            ("udp", address) => address.parse().ok().map(Self::Udp),
            ("unixgram", path) => Some(Self::Unixgram(path.into())),
            ("seqpacket", path) => Some(Self::Seqpacket(path.into())),
            _ => None,
        }
    }
}
