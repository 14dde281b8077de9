//! Where a server listens, and over what.

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
    /// Those that carry streams.
    pub(crate) const STREAMS: [Self; 2] = [Self::Tcp, Self::Unix];

    /// Those that carry packets.
    pub(crate) const PACKETS: [Self; 4] = [Self::Udp, Self::Unixgram, Self::UnixgramPath, Self::Seqpacket];

    /// As it is written in the results.
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

    /// Whether it carries packets, and no stream.
    pub(crate) fn is_packets(self) -> bool {
        Self::PACKETS.contains(&self)
    }
}

/// Where a server listens.
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
