//! Everything that systemd handed over (`LISTEN_FDS`, sd_listen_fds(3)), taken once, checked one by one, and named.
//!
//! To be called before there is a second thread: what is taken is removed from the environment, so that it is not taken
//! twice. Two libraries do it together, and their order matters: sd-notify checks the count and the PID and reads the
//! names; listenfd then takes ownership, and removes the variables without which the names could not be read.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use listenfd::ListenFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, getpeername, getsockname, sockopt};

use super::fdstore;

/// The first descriptor that is handed over (SD_LISTEN_FDS_START).
const LISTEN_FDS_START: i32 = 3;

/// The types of sockets that may be handed over, the most usual first.
const SOCKET_TYPES: [SocketType; 4] = [SocketType::STREAM, SocketType::DGRAM, SocketType::SEQPACKET, SocketType::RAW];

/// The numbers of address families are smaller (AF_MAX of linux/socket.h), with room for new ones.
const MAX_FAMILY: i32 = 64;

/// What to do about a socket that was shut down: systemd holds it as well, and would hand over the same one again.
const SHUT_DOWN_ADVICE: &str = "stop the service and its socket unit, then start the socket unit";

/// The name of the socket for metrics.
const METRICS: &str = "metrics";

/// The descriptors that systemd passed to this process.
#[derive(Debug)]
pub struct ActivationFds {
    /// What there is to serve.
    pub sockets: Sockets,
    /// Bundles that the previous process stored, in any order.
    pub bundles: Vec<OwnedFd>,
    /// Descriptors that have the name of a bundle and are not one, each in one line. What was stored must not prevent
    /// the start.
    pub problems: Vec<String>,
}

/// What there is to serve.
#[derive(Debug)]
pub enum Sockets {
    /// Nothing was handed over.
    Nothing,
    /// Listening sockets, and those of datagrams; at least one.
    Listeners(Vec<NamedSocket>),
    /// One connection that systemd accepted (`Accept=yes`).
    Connection(NamedSocket),
}

/// A socket and its `FileDescriptorName=`.
#[derive(Debug)]
pub struct NamedSocket {
    /// Its name: under systemd that of the socket unit, when none is set; `unknown` where there are no names at all.
    pub name: String,
    /// The socket.
    pub socket: OwnedFd,
}

/// Why something that was handed over cannot be served.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The variables do not make sense, or do not fit the descriptors.
    Environment(io::Error),
    /// Of so many descriptors one does not exist.
    MissingFd {
        /// `LISTEN_FDS`.
        count: String,
    },
    /// A descriptor is not what it should be.
    Socket {
        /// Its number.
        fd: i32,
        /// Its name.
        name: String,
        /// What it is, and what to do.
        problem: String,
    },
    /// `Accept=yes`, but not exactly one socket.
    MixedConnection {
        /// The connected one's number.
        fd: i32,
        /// Its name.
        name: String,
        /// How many there are.
        count: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(error) => write!(
                f,
                "cannot take over the sockets from systemd: {error}; LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES do not fit together"
            ),
            Self::MissingFd { count: socket_count } => write!(
                f,
                "cannot take over the sockets from systemd: LISTEN_FDS={socket_count}, but not all of the descriptors from 3 on are open"
            ),
            Self::Socket { fd, name, problem } => {
                write!(f, "descriptor {fd} ({}) from systemd: {problem}", name.escape_debug())
            }
            Self::MixedConnection { fd, name, count: socket_count } => write!(
                f,
                "descriptor {fd} ({}) from systemd is a connection, but one of {socket_count}; with Accept=yes there is one, else only listening sockets",
                name.escape_debug()
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Environment(error) => Some(error),
            _ => None,
        }
    }
}

/// Takes what was handed over to this process. Sockets for another process (`LISTEN_PID`) are left alone.
///
/// # Errors
/// Something was handed over that cannot be served.
pub fn take() -> Result<ActivationFds, Error> {
    let socket_count = std::env::var("LISTEN_FDS").unwrap_or_default();
    let names: Vec<String> = match sd_notify::listen_fds_with_names() {
        Ok(named) => named.map(|(_, name)| name).collect(),
        Err(error) if error.raw_os_error() == Some(Errno::BADF.raw_os_error()) => {
            return Err(Error::MissingFd { count: socket_count });
        }
        Err(error) => return Err(Error::Environment(error)),
    };
    if names.is_empty() {
        return Ok(ActivationFds { sockets: Sockets::Nothing, bundles: Vec::new(), problems: Vec::new() });
    }
    let mut descriptors = ListenFd::from_env();
    let mut bundles = Vec::new();
    let mut problems = Vec::new();
    let mut listeners = Vec::new();
    let mut connections = Vec::new();
    for ((index, fd), name) in (0..).zip(LISTEN_FDS_START..).zip(names) {
        if fdstore::is_stored_name(&name) {
            match take_bundle(&mut descriptors, index) {
                Some(bundle) => bundles.push(bundle),
                None => problems.push(format!(
                    "descriptor {fd} ({name}) from systemd is no Unix seqpacket socket, so there are no connections in it"
                )),
            }
            continue;
        }
        let result = take_socket(&mut descriptors, index, &name);
        let (socket, is_listening) = result.map_err(|problem| Error::Socket { fd, name: name.clone(), problem })?;
        let named = NamedSocket { name, socket };
        if is_listening {
            listeners.push(named);
        } else {
            connections.push((fd, named));
        }
    }
    let socket_count = listeners.len() + connections.len();
    let sockets = match connections.pop() {
        None if listeners.is_empty() => Sockets::Nothing,
        None => Sockets::Listeners(listeners),
        Some((_, connection)) if socket_count == 1 => Sockets::Connection(connection),
        Some((fd, connection)) => {
            return Err(Error::MixedConnection { fd, name: connection.name, count: socket_count });
        }
    };
    Ok(ActivationFds { sockets, bundles, problems })
}

/// Takes the bundle at this index. A socket that is not a bundle is closed.
fn take_bundle(descriptors: &mut ListenFd, index: usize) -> Option<OwnedFd> {
    let (socket, family, socket_type) = take_fd(descriptors, index)?;
    ((family, socket_type) == (AddressFamily::UNIX, SocketType::SEQPACKET)).then_some(socket)
}

/// Takes the socket at this index. Returns it, and whether it listens: a bound datagram socket does.
fn take_socket(descriptors: &mut ListenFd, index: usize, name: &str) -> Result<(OwnedFd, bool), String> {
    if name == METRICS {
        return Err("metrics are not built yet in this version of echoed; stop and disable that socket unit".to_owned());
    }
    let Some((socket, family, socket_type)) = take_fd(descriptors, index) else {
        return Err("it is no socket of a kind that is known; check the Listen…= lines of the socket unit".to_owned());
    };
    let what = describe_type(family, socket_type);
    let inspect_error = |error| format!("cannot look at it: {error}");
    match (family, socket_type) {
        (_, SocketType::STREAM) | (AddressFamily::UNIX, SocketType::SEQPACKET) => {
            let is_listening = sockopt::socket_acceptconn(&socket).map_err(inspect_error)?;
            // A connection that was reset while it waited has no peer any more, but an error that says so.
            let has_error = || matches!(sockopt::socket_error(&socket), Ok(Err(_)));
            if !is_listening && getpeername(&socket).is_err() && !has_error() {
                // A TCP socket that listened and was shut down is the same.
                return Err(format!(
                    "it is {what} that neither listens nor is connected; if it was shut down, {SHUT_DOWN_ADVICE}"
                ));
            }
            if is_listening {
                check_not_shut_down(&socket, &what)?;
            }
            Ok((socket, is_listening))
        }
        (AddressFamily::INET | AddressFamily::INET6 | AddressFamily::UNIX, SocketType::DGRAM) => {
            let bound = getsockname(&socket).map_err(inspect_error)?;
            let is_bound = match SocketAddr::try_from(bound.clone()) {
                Ok(ip) => ip.port() != 0,
                Err(_) => SocketAddrUnix::try_from(bound).is_ok_and(|name| {
                    let name = name.abstract_name().or_else(|| name.path_bytes());
                    name.is_some_and(|name| !name.is_empty())
                }),
            };
            if !is_bound {
                return Err(format!("it is {what} that is not bound"));
            }
            check_not_shut_down(&socket, &what)?;
            Ok((socket, true))
        }
        _ => Err(format!(
            "it is {what}; echoed serves ListenStream=, and on Unix and UDP sockets ListenSequentialPacket= and ListenDatagram="
        )),
    }
}

/// Checks that no process has shut down this listening or bound socket: it would be ready for ever, with nothing in it.
///
/// # Errors
/// Returns what is wrong with the socket, and what to do.
fn check_not_shut_down(socket: &OwnedFd, what: &str) -> Result<(), String> {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    retry_on_intr(|| poll(&mut polled, Some(&no_wait))).map_err(|error| format!("cannot look at it: {error}"))?;
    if polled[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP) {
        return Err(format!("it is {what} that another process shut down; {SHUT_DOWN_ADVICE}"));
    }
    Ok(())
}

/// Takes the descriptor at this index, if it is a socket, whatever its family and its type are.
fn take_fd(descriptors: &mut ListenFd, index: usize) -> Option<(OwnedFd, AddressFamily, SocketType)> {
    let types =
        SOCKET_TYPES.into_iter().flat_map(|socket_type| (1..MAX_FAMILY).map(move |family| (family, socket_type)));
    for (family, socket_type) in types {
        let number = i32::try_from(socket_type.as_raw()).ok()?;
        if let Ok(Some(socket)) = descriptors.take_custom::<OwnedFd>(index, family, number, "socket") {
            let family = sockopt::socket_domain(&socket).ok()?;
            return Some((socket, family, socket_type));
        }
    }
    None
}

/// What a socket is, for people.
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
