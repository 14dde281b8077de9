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

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

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

/// A connection to journald, made when it is needed, and again when journald's socket was made anew. Any thread may
/// send.
#[derive(Debug)]
pub(super) struct JournalSocket {
    path: PathBuf,
    socket: Mutex<Option<Arc<UnixDatagram>>>,
}

impl JournalSocket {
    /// Returns the journal whose socket is at this path.
    pub(super) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), socket: Mutex::default() }
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
        let cached = self.lock().clone();
        if let Some(socket) = cached {
            match send(&socket, entry) {
                Ok(()) => return Ok(()),
                Err(error @ (Errno::AGAIN | Errno::NOBUFS)) => return Err(blocked(error)),
                // A journald that was started anew may have a new socket.
                Err(error) if is_broken(error) => self.forget(&socket),
                // The entry's memory, say: other entries can be sent.
                Err(error) => return Err(error.into()),
            }
        }
        let socket = self.connect()?;
        send(&socket, entry).map_err(|error| match error {
            Errno::AGAIN | Errno::NOBUFS => blocked(error),
            error => {
                if is_broken(error) {
                    self.forget(&socket);
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

    /// Returns the connection; makes it if there is none.
    pub(super) fn connect(&self) -> io::Result<Arc<UnixDatagram>> {
        let mut cached = self.lock();
        if let Some(socket) = &*cached {
            return Ok(Arc::clone(socket));
        }
        Ok(Arc::clone(cached.insert(Arc::new(connect(&self.path)?))))
    }

    /// Has the next call make a new connection, unless there is one already.
    fn forget(&self, broken: &Arc<UnixDatagram>) {
        let mut cached = self.lock();
        if cached.as_ref().is_some_and(|socket| Arc::ptr_eq(socket, broken)) {
            mem::take(&mut *cached);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<UnixDatagram>>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
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
    let mut none = SendAncillaryBuffer::default();
    match retry_on_intr(|| sendmsg(socket, entry, &mut none, SendFlags::NOSIGNAL)) {
        Err(Errno::MSGSIZE) => send_in_memory(socket, entry),
        result => result.map(drop),
    }
}

/// Sends an entry that is too large for a datagram. Its memory is only made if there is room at this moment.
fn send_in_memory(socket: &UnixDatagram, entry: &[IoSlice<'_>]) -> Result<(), Errno> {
    if !has_room(socket, Duration::ZERO).unwrap_or(true) {
        return Err(Errno::AGAIN);
    }
    let memory = create_sealed_memfd(entry)?;
    let descriptors = [memory.as_fd()];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    retry_on_intr(|| sendmsg(socket, &[], &mut control, SendFlags::NOSIGNAL)).map(drop)
}

fn has_room(socket: &UnixDatagram, timeout: Duration) -> io::Result<bool> {
    let until = super::now() + timeout;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(super::now())).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Creates sealed memory with these bytes, so that journald may read it where it is.
fn create_sealed_memfd(entry: &[IoSlice<'_>]) -> Result<OwnedFd, Errno> {
    let new = |flags| memfd_create("echoed-message", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags);
    // Not with NOEXEC_SEAL, if that can be had: journald drops memory that has one more seal than those below, without
    // a word (systemd 252).
    let memory = match new(MemfdFlags::EXEC) {
        // Linux before 6.3 does not know this flag.
        Err(Errno::INVAL) => new(MemfdFlags::empty()),
        // vm.memfd_noexec=2
        Err(Errno::ACCESS) => new(MemfdFlags::NOEXEC_SEAL),
        result => result,
    }?;
    let mut file = File::from(memory);
    for part in entry {
        file.write_all(part).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(file.into())
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
