//! Why what was passed cannot be served.

use std::fmt;
use std::io;

use super::socket::Problem;

/// Why something that was passed to this process cannot be served.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The variables are invalid, or contradict each other.
    Environment(String),
    /// The sockets are for another process, and this one has nothing else to listen on.
    OtherProcess {
        /// `LISTEN_FDS`.
        count: String,
        /// `LISTEN_PID`.
        pid: u32,
        /// The number of this process.
        own_pid: u32,
    },
    /// Of so many descriptors one does not exist.
    MissingFd {
        /// `LISTEN_FDS`.
        count: u32,
        /// The first descriptor.
        first: i32,
    },
    /// A descriptor is not what it should be.
    Fd {
        /// Its number.
        fd: i32,
        /// Its name.
        name: String,
        /// The problem with it.
        problem: Problem,
    },
    /// A listening socket has a name that is reserved.
    ReservedName {
        /// Its number.
        fd: i32,
        /// Its name.
        name: String,
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
    /// Stored connections were passed, but no socket, and this process has nothing else to listen on.
    NoListener,
    /// The socket on stdin is not what it should be.
    Stdin(Problem),
    /// The socket on stdin cannot be taken.
    TakeStdin(io::Error),
}

impl Error {
    /// Returns whether the mistake is in how the process was started: nothing but a change of that helps.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::OtherProcess { .. } | Self::ReservedName { .. } | Self::NoListener => true,
            Self::Fd { problem, .. } | Self::Stdin(problem) => problem.is_configuration(),
            Self::Environment(_) | Self::MissingFd { .. } | Self::MixedConnection { .. } | Self::TakeStdin(_) => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(problem) => write!(f, "cannot take over the sockets from systemd: {problem}"),
            Self::OtherProcess { count, pid, own_pid } => write!(
                f,
                "the sockets (LISTEN_FDS={}) are for process {pid} (LISTEN_PID), not for this process, {own_pid}: a \
                 wrapper has forked; put `exec` before echoed in it, or say where to listen (--listen, listen keys)",
                count.escape_debug()
            ),
            Self::MissingFd { count, first } => write!(
                f,
                "cannot take over the sockets from systemd: LISTEN_FDS={count}, but not all of the descriptors from {first} on are open"
            ),
            Self::Fd { fd, name, problem } => {
                write!(f, "descriptor {fd} ({}) from systemd: {problem}", name.escape_debug())
            }
            Self::ReservedName { fd, name } => write!(
                f,
                "descriptor {fd} ({name}) from systemd: the name {name} is reserved for connections in the fd store, \
                 but this is a listening socket; choose another FileDescriptorName= in its socket unit (example: echo)"
            ),
            Self::MixedConnection { fd, name, count: socket_count } => write!(
                f,
                "descriptor {fd} ({}) from systemd is a connection, but one of {socket_count}; with Accept=yes there is one, else only listening sockets",
                name.escape_debug()
            ),
            Self::NoListener => f.write_str(
                "systemd passed descriptors from its fd store, but no socket to listen on; start the service by its \
                 socket unit (or name that in Sockets= of the service), or say where to listen (--listen, listen keys)",
            ),
            Self::Stdin(Problem::UnsupportedType(what)) => write!(
                f,
                "the socket on stdin is {what}; echoed serves stream, Unix seqpacket, UDP and Unix datagram sockets"
            ),
            Self::Stdin(problem) => write!(f, "the socket on stdin: {problem}"),
            Self::TakeStdin(error) => write!(f, "cannot take over the socket on stdin: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TakeStdin(error) => Some(error),
            _ => None,
        }
    }
}
