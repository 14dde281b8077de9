//! Everything that the starter of this process handed over, taken once, checked one by one, and named: by systemd in
//! `LISTEN_FDS` (sd_listen_fds(3)), or by inetd and its like as stdin.
//!
//! To be called before there is a second thread: what is taken is removed from the environment, so that it is not taken
//! twice, and stdin, stdout and stderr are replaced. `environment` interprets the variables; listenfd then takes
//! ownership, and removes them.

mod environment;
mod error;
mod socket;
mod stdin;

use std::os::fd::OwnedFd;
use std::process;

use listenfd::ListenFd;
use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, getsockname};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::fdstore;
use environment::{Passed, Variables};
use socket::Role;

pub use error::Error;
pub use socket::Problem;
pub use stdin::StdinSocket;

/// The types of sockets that may be handed over, the most usual first.
const SOCKET_TYPES: [SocketType; 4] = [SocketType::STREAM, SocketType::DGRAM, SocketType::SEQPACKET, SocketType::RAW];

/// The numbers of address families are smaller (AF_MAX of linux/socket.h), with room for new ones.
const MAX_FAMILY: i32 = 64;

/// The name of a socket on stdin, unless another one is given.
const STDIN_NAME: &str = "echo";

/// The sockets to listen on if systemd passed none.
#[derive(Debug, Default)]
pub struct Fallback<'a> {
    /// The socket on stdin, if there is one. If it is not served, it is given back.
    pub stdin: Option<&'a mut StdinSocket>,
    /// The name for that socket.
    pub stdin_name: Option<&'a str>,
    /// Whether the process has addresses of its own to listen on. Then stdin is left alone.
    pub has_addresses: bool,
}

/// The descriptors that were passed to this process.
#[derive(Debug)]
pub struct ActivationFds {
    /// The sockets to serve.
    pub sockets: Sockets,
    /// Bundles that the previous process stored, in any order.
    pub bundles: Vec<OwnedFd>,
    /// Descriptors that have the name of a bundle and are not one, each in one line. What was stored must not prevent
    /// the start.
    pub problems: Vec<String>,
}

/// The sockets to serve.
#[derive(Debug)]
pub enum Sockets {
    /// Nothing was handed over.
    Nothing,
    /// Listening sockets, and those of datagrams; at least one.
    Listeners(Vec<NamedSocket>),
    /// One listening socket, or one of datagrams, on stdin (inetd's `wait`).
    StdinListener(NamedSocket),
    /// One connection: what systemd accepted (`Accept=yes`), or a connected socket on stdin (inetd's `nowait`).
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

/// Takes what was handed over to this process. Sockets for another process (`LISTEN_PID`) are left alone.
///
/// # Errors
/// Returns an error if something was handed over that cannot be served, or if sockets were handed over to another
/// process, and this one has nothing to listen on.
pub fn take(fallback: Fallback<'_>) -> Result<ActivationFds, Error> {
    let Fallback { stdin, stdin_name, has_addresses } = fallback;
    let own_pid = process::id();
    let passed = Variables::of_this_process().interpret(own_pid).map_err(Error::Environment)?;
    let is_stdin_served = !has_addresses && !matches!(passed, Passed::ToUs { .. });
    let sockets = match stdin {
        Some(stdin) if is_stdin_served => take_stdin(stdin, stdin_name.unwrap_or(STDIN_NAME))?,
        stdin => {
            if let Some(stdin) = stdin {
                stdin.give_back();
            }
            Sockets::Nothing
        }
    };
    let fds = match passed {
        Passed::ToUs { first, count, names } => take_fds(first, count, names)?,
        Passed::ToAnother { pid, count } if matches!(sockets, Sockets::Nothing) && !has_addresses => {
            return Err(Error::OtherProcess { count, pid, own_pid });
        }
        Passed::ToAnother { .. } | Passed::Nothing => {
            return Ok(ActivationFds { sockets, bundles: Vec::new(), problems: Vec::new() });
        }
    };
    if matches!(fds.sockets, Sockets::Nothing) && !has_addresses {
        return Err(Error::NoListener);
    }
    Ok(fds)
}

/// Takes the socket on stdin.
fn take_stdin(stdin: &StdinSocket, name: &str) -> Result<Sockets, Error> {
    let socket = stdin.take().map_err(Error::TakeStdin)?;
    let role = socket::inspect(&socket).map_err(Error::Stdin)?;
    let named = NamedSocket { name: name.to_owned(), socket };
    Ok(match role {
        Role::Listener => Sockets::StdinListener(named),
        Role::Connection => Sockets::Connection(named),
    })
}

/// Takes `count` descriptors from `first` on.
fn take_fds(first: i32, count: u32, names: Option<Vec<String>>) -> Result<ActivationFds, Error> {
    let fds = first..first.saturating_add_unsigned(count);
    if fds.clone().any(|fd| !is_open(fd)) {
        return Err(Error::MissingFd { count, first });
    }
    let mut descriptors = ListenFd::from_env();
    let mut bundles = Vec::new();
    let mut problems = Vec::new();
    let mut listeners = Vec::new();
    let mut connections = Vec::new();
    for ((index, fd), name) in (0..).zip(fds).zip(environment::name_all(count, names)) {
        let taken = take_fd(&mut descriptors, index);
        let role = taken.as_ref().map(socket::inspect);
        let is_listener = matches!(role, Some(Ok(Role::Listener)));
        if is_listener && fdstore::is_stored_name(&name) {
            return Err(Error::ReservedName { fd, name });
        }
        if fdstore::is_stored_name(&name) {
            match taken.filter(is_unix_seqpacket) {
                Some(bundle) => bundles.push(bundle),
                None => problems.push(format!(
                    "descriptor {fd} ({name}) from systemd is not a Unix seqpacket socket, so there are no connections in it"
                )),
            }
            continue;
        }
        let (Some(socket), Some(role)) = (taken, role) else {
            return Err(Error::Fd { fd, name, problem: Problem::NotASocket });
        };
        match role {
            Ok(Role::Listener) => listeners.push(NamedSocket { name, socket }),
            Ok(Role::Connection) => connections.push((fd, NamedSocket { name, socket })),
            Err(problem) => return Err(Error::Fd { fd, name, problem }),
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

/// Returns whether a descriptor is open, whatever it is.
fn is_open(fd: i32) -> bool {
    !matches!(getsockname::<SockaddrStorage>(fd), Err(Errno::EBADF))
}

fn is_unix_seqpacket(socket: &OwnedFd) -> bool {
    sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(socket) == Ok(SocketType::SEQPACKET)
}

/// Takes the descriptor at this index, if it is a socket, whatever its family and its type are.
fn take_fd(descriptors: &mut ListenFd, index: usize) -> Option<OwnedFd> {
    let types =
        SOCKET_TYPES.into_iter().flat_map(|socket_type| (1..MAX_FAMILY).map(move |family| (family, socket_type)));
    for (family, socket_type) in types {
        let number = i32::try_from(socket_type.as_raw()).ok()?;
        if let Ok(Some(socket)) = descriptors.take_custom::<OwnedFd>(index, family, number, "socket") {
            return Some(socket);
        }
    }
    None
}
