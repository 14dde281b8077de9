//! The native protocol of journald.
//!
//! A datagram is an entry (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>). A field that may have any bytes is
//!
//! ```text
//! 4d 45 53 53 41 47 45 0a   MESSAGE<LF>
//! 02 00 00 00 00 00 00 00   the length of the value, 64 bits, little endian
//! 61 0a 0a                  the value, and a line feed after it
//! ```
//!
//! An entry that is too large for a datagram is sent as a descriptor of sealed memory with the same bytes.
//!
//! tracing-journald, which writes the daemon's own entries, drops errors and waits without a limit. Messages of peers
//! must not be lost, and their senders must not wait: here a call returns the error, and never waits. When the kernel
//! has queued the datagram at journald's socket, the entry is journald's.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::systemd::poll::wait_until_ready;
use crate::systemd::sealed_memory;
use crate::systemd::send_fds::send_with_fds;

/// Where journald listens: the path that tracing-journald uses. The shipped unit has the directory of the machine's
/// journal there, so that sockets that are made anew are seen, or that of its `LogNamespace=`.
pub const JOURNAL_PATH: &str = "/run/systemd/journal/socket";

/// Returns whether there is a journald to write to.
pub(super) fn is_reachable() -> bool {
    connect(Path::new(JOURNAL_PATH)).is_ok()
}

/// Asks whether journald takes an entry, for a sender that would not say that it does not.
///
/// The answer is a guess. It holds for the moment of the question, for a datagram (an entry that is sent as memory also needs a
/// descriptor and memory), and while the kernel has memory. If it turns out wrong, the sender waits only where the room is taken
/// by then; in all other cases its entry is lost, and not counted.
#[derive(Debug)]
pub(super) struct Probe {
    /// Kept, since there may be no descriptor for another one when there is something to log about that.
    socket: Option<UnixDatagram>,
}

impl Probe {
    /// Creates a probe, with its socket if there is a descriptor for it.
    pub(super) fn new() -> Self {
        Self { socket: unconnected_socket().ok() }
    }

    /// Waits until an entry can be sent to journald, for `timeout` at most.
    ///
    /// # Errors
    /// Returns an error if no entry can be sent: [`ErrorKind::WouldBlock`] if journald's socket has no room.
    pub(super) fn wait_until_writable(&mut self, timeout: Duration) -> io::Result<()> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(unconnected_socket()?),
        };
        // Each time anew: the connection of before does not tell whether journald's socket was made anew.
        socket.connect(JOURNAL_PATH)?;
        if has_room(socket, timeout)? { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
    }
}

/// Adds a field to an entry. `name` must be one of ours.
pub(super) fn put_field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    put_field_start(entry, name, value.len());
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// Adds the beginning of a field, whose value of `len` bytes and a line feed come next.
pub(super) fn put_field_start(entry: &mut Vec<u8>, name: &str, len: usize) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(len as u64).to_le_bytes());
}

/// A socket that is connected to journald when it is needed, and again when journald's socket was made anew. Any thread may
/// send. The socket is created at once and kept: later, clients may have taken all descriptors, and their messages would wait
/// for the log.
#[derive(Debug)]
pub(super) struct JournalSocket {
    path: PathBuf,
    connection: Mutex<Connection>,
}

#[derive(Debug)]
struct Connection {
    /// `None` if there was no descriptor for it.
    socket: Option<Arc<UnixDatagram>>,
    is_connected: bool,
}

impl JournalSocket {
    /// Returns the journal whose socket is at this path.
    pub(super) fn at(path: impl Into<PathBuf>) -> Self {
        let socket = unconnected_socket().ok().map(Arc::new);
        Self { path: path.into(), connection: Mutex::new(Connection { socket, is_connected: false }) }
    }

    /// Returns the path of journald's socket.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends an entry, which consists of these parts. Never waits.
    ///
    /// # Errors
    /// Returns an error if the entry was not sent: [`ErrorKind::WouldBlock`] if journald's socket has no room. The next
    /// call begins anew.
    pub(super) fn try_send(&self, entry: &[IoSlice<'_>]) -> io::Result<()> {
        let connected = self.lock().connected();
        if let Some(socket) = connected {
            match send(&socket, entry) {
                Ok(()) => return Ok(()),
                Err(error @ (Errno::AGAIN | Errno::NOBUFS)) => return Err(blocked(error)),
                // A journald that was started anew may have a new socket.
                Err(error) if is_broken(error) => self.lock().is_connected = false,
                // The entry's memory, say: other entries can be sent.
                Err(error) => return Err(error.into()),
            }
        }
        let socket = self.connect()?;
        send(&socket, entry).map_err(|error| match error {
            Errno::AGAIN | Errno::NOBUFS => blocked(error),
            error => {
                if is_broken(error) {
                    self.lock().is_connected = false;
                }
                error.into()
            }
        })
    }

    /// Waits until journald's socket has room, for `timeout` at most. Returns whether it has.
    ///
    /// # Errors
    /// Returns an error if there is no connection to journald.
    pub(super) fn wait_for_room(&self, timeout: Duration) -> io::Result<bool> {
        let socket = self.connect()?;
        has_room(&socket, timeout)
    }

    /// Returns the connected socket; connects it if it is not.
    ///
    /// # Errors
    /// Returns an error if there is no descriptor for a socket, or no journald.
    pub(super) fn connect(&self) -> io::Result<Arc<UnixDatagram>> {
        let mut connection = self.lock();
        if let Some(socket) = connection.connected() {
            return Ok(socket);
        }
        let socket = match &connection.socket {
            Some(socket) => Arc::clone(socket),
            None => Arc::new(unconnected_socket()?),
        };
        connection.socket = Some(Arc::clone(&socket));
        socket.connect(&self.path)?;
        connection.is_connected = true;
        Ok(socket)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn connected(&self) -> Option<Arc<UnixDatagram>> {
        self.socket.clone().filter(|_| self.is_connected)
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = unconnected_socket()?;
    socket.connect(path)?;
    Ok(socket)
}

fn unconnected_socket() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Returns whether an error says that nothing can be sent by this connection any longer. One that can be used must not be given
/// up: there may be no descriptor for another.
fn is_broken(error: Errno) -> bool {
    use Errno as E;
    matches!(error, E::CONNREFUSED | E::CONNRESET | E::NOTCONN | E::DESTADDRREQ | E::PIPE | E::NOENT)
}

/// Returns the one error for both that mean that journald has to read first.
fn blocked(error: Errno) -> io::Error {
    io::Error::new(ErrorKind::WouldBlock, io::Error::from(error))
}

fn send(socket: &UnixDatagram, entry: &[IoSlice<'_>]) -> Result<(), Errno> {
    match send_with_fds(socket, entry, &[], SendFlags::empty()) {
        Err(Errno::MSGSIZE) => send_in_memory(socket, entry),
        result => result,
    }
}

/// Sends an entry that is too large for a datagram. Its memory is only made if there is room at this moment.
fn send_in_memory(socket: &UnixDatagram, entry: &[IoSlice<'_>]) -> Result<(), Errno> {
    if !has_room(socket, Duration::ZERO).unwrap_or(true) {
        return Err(Errno::AGAIN);
    }
    // Not with NOEXEC_SEAL, if that can be had: journald drops memory with that seal, without a word (systemd 252).
    let memory = sealed_memory::create("echoed-message", MemfdFlags::EXEC, |writer| {
        entry.iter().try_for_each(|part| writer.write_all(part))
    });
    let memory = memory.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    send_with_fds(socket, &[], &[memory.as_fd()], SendFlags::empty())
}

fn has_room(socket: &UnixDatagram, timeout: Duration) -> io::Result<bool> {
    wait_until_ready(socket, PollFlags::OUT, timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_breaks_the_connection_gives_it_up() {
        for error in [Errno::CONNREFUSED, Errno::NOTCONN, Errno::PIPE] {
            assert!(is_broken(error), "{error}");
        }
        // Of the memory for a large entry, and of the descriptor that is sent.
        for error in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::PERM, Errno::TOOMANYREFS, Errno::NOSPC] {
            assert!(!is_broken(error), "{error}");
        }
    }
}
