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
}

impl Transport {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Tcp, Self::Unix];

    /// As it is written in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// An address of the loopback interface.
    Tcp(SocketAddrV4),
    /// The path of a socket.
    Unix(PathBuf),
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
            _ => None,
        }
    }
}
