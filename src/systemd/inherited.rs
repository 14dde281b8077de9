//! Everything that systemd handed over (`LISTEN_FDS`, sd_listen_fds(3)), taken once, checked one by one, and named.
//!
//! To be called before there is a second thread: what is taken is removed from the environment, so that nobody takes it
//! twice. Two libraries do it together, and their order matters: sd-notify checks the count and the PID and reads the
//! names; listenfd then takes ownership, and removes the variables without which the names could not be read.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use listenfd::ListenFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::parcel;

/// The first descriptor that is handed over (SD_LISTEN_FDS_START).
const START: i32 = 3;

/// A kind of sockets, and what it is called.
type Kind = (AddressFamily, SocketType, &'static str);

/// What a parcel is.
const SEQPACKET: Kind = (AddressFamily::UNIX, SocketType::SEQPACKET, "Unix seqpacket");

/// The kinds of sockets that may be asked for, the ones that are served first.
const KINDS: [Kind; 8] = [
    // listenfd takes IPv6 sockets for IPv4 as well.
    (AddressFamily::INET, SocketType::STREAM, "TCP"),
    (AddressFamily::UNIX, SocketType::STREAM, "Unix stream"),
    (AddressFamily::VSOCK, SocketType::STREAM, "vsock stream"),
    (AddressFamily::INET, SocketType::DGRAM, "UDP"),
    (AddressFamily::UNIX, SocketType::DGRAM, "Unix datagram"),
    SEQPACKET,
    (AddressFamily::NETLINK, SocketType::RAW, "netlink"),
    (AddressFamily::NETLINK, SocketType::DGRAM, "netlink"),
];

/// How many of [`KINDS`] are served.
const SERVED: usize = 3;

/// The name of the socket for metrics.
const METRICS: &str = "metrics";

/// What was handed over.
#[derive(Debug)]
pub struct Inherited {
    /// What there is to serve.
    pub sockets: Sockets,
    /// Connections that an earlier process stored, in any order.
    pub parcels: Vec<OwnedFd>,
    /// What looked like a parcel and is none, each in one line. What was stored must not keep us from starting.
    pub problems: Vec<String>,
}

/// What there is to serve.
#[derive(Debug)]
pub enum Sockets {
    /// Nothing was handed over.
    Nothing,
    /// Listening sockets; at least one.
    Listeners(Vec<Listener>),
    /// One connection that systemd accepted (`Accept=yes`).
    Connection(Listener),
}

/// A socket and its `FileDescriptorName=`.
#[derive(Debug)]
pub struct Listener {
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
    Missing {
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
    NotAlone {
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
            Self::Missing { count } => write!(
                f,
                "cannot take over the sockets from systemd: LISTEN_FDS={count}, but not all of the descriptors from 3 on are open"
            ),
            Self::Socket { fd, name, problem } => {
                write!(f, "descriptor {fd} ({}) from systemd: {problem}", name.escape_debug())
            }
            Self::NotAlone { fd, name, count } => write!(
                f,
                "descriptor {fd} ({}) from systemd is a connection, but one of {count}; with Accept=yes there is one, else only listening sockets",
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
pub fn take() -> Result<Inherited, Error> {
    let count = std::env::var("LISTEN_FDS").unwrap_or_default();
    let names: Vec<String> = match sd_notify::listen_fds_with_names() {
        Ok(named) => named.map(|(_, name)| name).collect(),
        Err(error) if error.raw_os_error() == Some(Errno::BADF.raw_os_error()) => {
            return Err(Error::Missing { count });
        }
        Err(error) => return Err(Error::Environment(error)),
    };
    if names.is_empty() {
        return Ok(Inherited { sockets: Sockets::Nothing, parcels: Vec::new(), problems: Vec::new() });
    }
    let mut descriptors = ListenFd::from_env();
    let mut parcels = Vec::new();
    let mut problems = Vec::new();
    let mut listeners = Vec::new();
    let mut connections = Vec::new();
    for ((index, fd), name) in (0..).zip(START..).zip(names) {
        if name == parcel::NAME {
            match take_parcel(&mut descriptors, index) {
                Some(parcel) => parcels.push(parcel),
                None => problems.push(format!(
                    "descriptor {fd} ({name}) from systemd is no Unix seqpacket socket, so there are no connections in it"
                )),
            }
            continue;
        }
        let taken = take_socket(&mut descriptors, index, &name);
        let (socket, listening) = taken.map_err(|problem| Error::Socket { fd, name: name.clone(), problem })?;
        let found = Listener { name, socket };
        if listening {
            listeners.push(found);
        } else {
            connections.push((fd, found));
        }
    }
    let count = listeners.len() + connections.len();
    let sockets = match connections.pop() {
        None if listeners.is_empty() => Sockets::Nothing,
        None => Sockets::Listeners(listeners),
        Some((_, connection)) if count == 1 => Sockets::Connection(connection),
        Some((fd, connection)) => return Err(Error::NotAlone { fd, name: connection.name, count }),
    };
    Ok(Inherited { sockets, parcels, problems })
}

/// The parcel at this place. What is none is closed, if it is a socket of a kind that is known.
fn take_parcel(descriptors: &mut ListenFd, index: usize) -> Option<OwnedFd> {
    let mut take = |kind| take_kind(descriptors, index, kind);
    let taken = take(SEQPACKET);
    if taken.is_none() {
        // Dropped.
        KINDS.into_iter().find_map(take);
    }
    taken
}

/// The descriptor at this place, and whether it listens.
fn take_socket(descriptors: &mut ListenFd, index: usize, name: &str) -> Result<(OwnedFd, bool), String> {
    if name == METRICS {
        return Err("metrics are not built yet in this version of echoed; stop and disable that socket unit".to_owned());
    }
    for (at, (family, kind, what)) in KINDS.into_iter().enumerate() {
        let Some(socket) = take_kind(descriptors, index, (family, kind, what)) else { continue };
        if at >= SERVED {
            let wanted = "echoed serves stream sockets; write ListenStream= in the socket unit";
            return Err(format!("it is a {what} socket; {wanted}"));
        }
        let listening = sockopt::socket_acceptconn(&socket).map_err(|error| format!("cannot look at it: {error}"))?;
        // A connection that was reset while it waited has no peer any more, but an error that says so.
        let reset = || matches!(sockopt::socket_error(&socket), Ok(Err(_)));
        if !listening && rustix::net::getpeername(&socket).is_err() && !reset() {
            return Err(format!("it is a {what} socket that neither listens nor is connected"));
        }
        return Ok((socket, listening));
    }
    Err("it is no socket of a kind that is known; check the Listen…= lines of the socket unit".to_owned())
}

/// The descriptor at this place, if it is of this kind.
fn take_kind(descriptors: &mut ListenFd, index: usize, (family, kind, what): Kind) -> Option<OwnedFd> {
    let (family, kind) = (i32::from(family.as_raw()), i32::try_from(kind.as_raw()).unwrap_or_default());
    descriptors.take_custom(index, family, kind, what).ok().flatten()
}
