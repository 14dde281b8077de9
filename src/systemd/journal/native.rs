//! The native protocol of journald, for what must not be lost: tracing-journald throws errors away, this returns them.
//!
//! A datagram is an entry (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>). A field that may have any bytes is
//!
//! ```text
//! 4d 45 53 53 41 47 45 0a   MESSAGE<LF>
//! 02 00 00 00 00 00 00 00   the length of the value, 64 bits, little endian
//! 61 0a 0a                  the value, and a line feed after it
//! ```
//!
//! What is too large for a datagram is sent as a descriptor of sealed memory that has the same bytes in it.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Where journald listens.
pub const JOURNAL_PATH: &str = "/run/systemd/journal/socket";

/// Returns whether there is a journald to write to.
pub(super) fn is_reachable() -> bool {
    UnixDatagram::unbound().is_ok_and(|socket| socket.connect(JOURNAL_PATH).is_ok())
}

/// How long journald may take before it is an error that it takes nothing.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Adds a field to an entry. `name` must be one of ours.
pub(super) fn put_field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// A connection to journald, made when it is needed.
#[derive(Debug)]
pub(super) struct JournalSocket {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl JournalSocket {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, socket: None }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends an entry; waits for journald up to [`SEND_TIMEOUT`].
    ///
    /// # Errors
    /// It was not sent. Everything is in order for the next try.
    pub(super) fn send(&mut self, entry: &[u8]) -> io::Result<()> {
        let cached = self.socket.is_some();
        match self.try_send(entry) {
            // A journald that was started anew may have a new socket.
            Err(error) if cached && error.kind() != ErrorKind::WouldBlock => self.try_send(entry),
            result => result,
        }
    }

    fn try_send(&mut self, entry: &[u8]) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => connect(&self.path)?,
        };
        let result = match rustix::net::send(&socket, entry, SendFlags::NOSIGNAL) {
            Err(Errno::MSGSIZE) => create_sealed_memfd(entry).and_then(|memory| send_fd(&socket, &memory)),
            result => result.map(drop),
        };
        // After any other error, the next try begins with a new socket.
        if matches!(result, Ok(()) | Err(Errno::AGAIN)) {
            self.socket = Some(socket);
        }
        Ok(result?)
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    Ok(socket)
}

/// Creates sealed memory with these bytes, so that journald may read it where it is.
fn create_sealed_memfd(bytes: &[u8]) -> Result<OwnedFd, Errno> {
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
    file.write_all(bytes).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(file.into())
}

fn send_fd(socket: &UnixDatagram, descriptor: &OwnedFd) -> Result<(), Errno> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[], &mut control, SendFlags::NOSIGNAL).map(drop)
}
