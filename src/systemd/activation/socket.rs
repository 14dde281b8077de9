//! Whether a socket can be served, and as what.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketType, getpeername, getsockname, sockopt};

/// The advice about a socket that was shut down: its starter holds it as well, and would pass the same one again.
const SHUT_DOWN_ADVICE: &str = "stop the service and its socket unit, then start the socket unit";

/// The role of a socket in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It listens, or is a bound datagram socket.
    Listener,
    /// It is connected.
    Connection,
}

/// Why a descriptor cannot be served.
#[derive(Debug)]
#[non_exhaustive]
pub enum Problem {
    /// It is not a socket (a FIFO, a file), or one of an unknown family.
    NotASocket,
    /// It is a socket of a type that is not served.
    UnsupportedType(String),
    /// It is a datagram socket without an address.
    Unbound(String),
    /// It is a stream or seqpacket socket that neither listens nor is connected.
    Unconnected(String),
    /// Another process shut it down.
    ShutDown(String),
    /// Its type cannot be read.
    Unreadable(Errno),
}

impl Problem {
    /// Returns whether the mistake is in how the process was started; otherwise it is in the state of the socket.
    pub(super) fn is_configuration(&self) -> bool {
        matches!(self, Self::NotASocket | Self::UnsupportedType(_))
    }
}

impl From<Errno> for Problem {
    fn from(error: Errno) -> Self {
        Self::Unreadable(error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASocket => f.write_str(
                "unsupported socket type; check the Listen*= settings of the socket unit (ListenFIFO= and the like \
                 are not supported)",
            ),
            Self::UnsupportedType(what) => write!(
                f,
                "it is {what}; echoed serves ListenStream=, and on Unix and UDP sockets ListenSequentialPacket= and ListenDatagram="
            ),
            Self::Unbound(what) => write!(f, "it is {what} that is not bound"),
            Self::Unconnected(what) => {
                write!(f, "it is {what} that neither listens nor is connected; if it was shut down, {SHUT_DOWN_ADVICE}")
            }
            Self::ShutDown(what) => write!(f, "it is {what} that another process shut down; {SHUT_DOWN_ADVICE}"),
            Self::Unreadable(error) => write!(f, "cannot look at it: {error}"),
        }
    }
}

/// Returns what a socket is to this process.
///
/// # Errors
/// Returns an error if it cannot be served.
pub(super) fn inspect(socket: impl AsFd) -> Result<Role, Problem> {
    let (family, socket_type) = (sockopt::socket_domain(&socket)?, sockopt::socket_type(&socket)?);
    let what = describe_type(family, socket_type);
    match (family, socket_type) {
        (_, SocketType::STREAM) | (AddressFamily::UNIX, SocketType::SEQPACKET) => {
            if sockopt::socket_acceptconn(&socket)? {
                check_not_shut_down(&socket, what)?;
                return Ok(Role::Listener);
            }
            // A connection that was reset while it waited no longer has a peer, but an error that says so.
            let has_error = || matches!(sockopt::socket_error(&socket), Ok(Err(_)));
            if getpeername(&socket).is_err() && !has_error() {
                // A TCP socket that listened and was shut down is the same.
                return Err(Problem::Unconnected(what));
            }
            Ok(Role::Connection)
        }
        (AddressFamily::INET | AddressFamily::INET6 | AddressFamily::UNIX, SocketType::DGRAM) => {
            if !has_name(&getsockname(&socket)?) {
                return Err(Problem::Unbound(what));
            }
            check_not_shut_down(&socket, what)?;
            Ok(Role::Listener)
        }
        _ => Err(Problem::UnsupportedType(what)),
    }
}

/// Returns whether an address can be sent to: it is a name of a Unix socket, or has a port.
pub(super) fn has_name(address: &SocketAddrAny) -> bool {
    match SocketAddr::try_from(address.clone()) {
        Ok(ip) => ip.port() != 0,
        Err(_) => !is_unnamed_unix(address),
    }
}

/// Returns whether an address is that of a Unix socket without a name.
pub(super) fn is_unnamed_unix(address: &SocketAddrAny) -> bool {
    SocketAddrUnix::try_from(address.clone()).is_ok_and(|name| {
        let name = name.abstract_name().or_else(|| name.path_bytes());
        name.is_none_or(<[u8]>::is_empty)
    })
}

/// Checks that no process has shut down this listening or bound socket: it would be ready for ever, with nothing in it.
fn check_not_shut_down(socket: impl AsFd, what: String) -> Result<(), Problem> {
    let mut polled = [PollFd::new(&socket, PollFlags::RDHUP)];
    let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    retry_on_intr(|| poll(&mut polled, Some(&no_wait)))?;
    if polled[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP) {
        return Err(Problem::ShutDown(what));
    }
    Ok(())
}

/// Returns what a socket is, for people.
fn describe_type(family: AddressFamily, socket_type: SocketType) -> String {
    let known = match (family, socket_type) {
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM) => "TCP",
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM) => "UDP",
        (AddressFamily::UNIX, SocketType::STREAM) => "Unix stream",
        (AddressFamily::UNIX, SocketType::DGRAM) => "Unix datagram",
        (AddressFamily::UNIX, SocketType::SEQPACKET) => "Unix seqpacket",
        (AddressFamily::NETLINK, _) => "netlink",
        _ => return format!("a socket of type {} and family {}", socket_type.as_raw(), family.as_raw()),
    };
    format!("a {known} socket")
}
