//! Notifications to systemd (sd_notify(3)). Without a manager to notify, `NOTIFY_SOCKET` is not set, and nothing is
//! sent. Nothing is sent either if it names a socket of another kind than a Unix one ([`unsupported_address`]).
//!
//! Each call may block, so it must not be made on a thread that serves.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::retry_on_intr;
use rustix::net::SendFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use sd_notify::NotifyState;

use super::poll::wait_until_ready;
use super::send_fds::send_with_fds;
use crate::escape::{Controls, escape_unsafe};

/// The socket to the manager, kept from the first call on. When descriptors have run out, there would be none for a new
/// one; a manager that gets no WATCHDOG=1, or no READY=1 at the end of a reload, ends the process.
static MANAGER: Mutex<Option<UnixDatagram>> = Mutex::new(None);

/// How long the manager may take to process all notifications. The same as in systemd-notify(1).
const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest status, in bytes; the rest is cut. More than `systemctl status` shows in a line, and far below
/// what fits into a datagram.
const MAX_STATUS_BYTES: usize = 1000;

/// Returns whether there is a manager to notify.
#[must_use]
pub fn is_enabled() -> bool {
    manager_address().is_some()
}

/// Returns the address of the manager's socket: a path, or `@` and a name in the abstract namespace.
#[must_use]
pub fn manager_address() -> Option<OsString> {
    env::var_os("NOTIFY_SOCKET").filter(|address| is_supported(address))
}

/// Returns what `NOTIFY_SOCKET` is set to, if no notification can be sent there: `vsock:` and its kin, which the manager of a
/// virtual machine sets for the first process in it, or a relative path.
#[must_use]
pub fn unsupported_address() -> Option<OsString> {
    env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty() && !is_supported(address))
}

fn is_supported(address: &OsStr) -> bool {
    matches!(address.as_bytes(), [b'/' | b'@', _, ..])
}

/// Sends READY=1: everything is being served. `status` says in one line what that is.
///
/// # Errors
/// Returns an error if there is a manager, but it cannot be notified.
pub fn ready(status: &str) -> io::Result<()> {
    notify_states(&[NotifyState::Ready, NotifyState::Status(&one_line(status))])
}

/// Sends RELOADING=1: settings are being read anew. To be followed by [`ready`] in any case.
///
/// # Errors
/// Returns an error if there is a manager, but it cannot be notified.
pub fn reloading() -> io::Result<()> {
    notify_states(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
}

/// Sends STOPPING=1: the end has begun, and nothing new is accepted.
///
/// # Errors
/// Returns an error if there is a manager, but it cannot be notified.
pub fn stopping(status: &str) -> io::Result<()> {
    notify_states(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))])
}

/// Sends STATUS=, in one line. A line feed would begin another assignment, so it is shown as an escape.
///
/// # Errors
/// Returns an error if there is a manager, but it cannot be notified.
pub fn status(text: &str) -> io::Result<()> {
    notify_states(&[NotifyState::Status(&one_line(text))])
}

/// Sends WATCHDOG=1: the process is well.
///
/// # Errors
/// Returns an error if there is a manager, but it cannot be notified.
pub fn watchdog() -> io::Result<()> {
    notify_states(&[NotifyState::Watchdog])
}

/// Returns how often [`watchdog`] must be called at least; `None` if the manager has no watchdog for this process
/// (sd_watchdog_enabled(3)).
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero())
}

/// Sends EXTEND_TIMEOUT_USEC=: the start, the stop or the reload in progress may take so much longer, counted from now.
///
/// # Errors
/// Returns an error if there is a manager, but it cannot be notified.
pub fn extend_timeout(by: Duration) -> io::Result<()> {
    notify_states(&[NotifyState::ExtendTimeoutUsec(u32::try_from(by.as_micros()).unwrap_or(u32::MAX))])
}

/// Waits until the manager has processed all notifications sent before, or for 5 s. Without it, what a process sends
/// just before it ends may come too late to be matched with its unit.
///
/// # Errors
/// Returns an error if there is a manager, but it cannot be notified, or does not answer.
pub fn barrier() -> io::Result<()> {
    if !is_enabled() {
        return Ok(());
    }
    // The manager closes its end of the pipe when it comes to it; that is the answer.
    let (ours, theirs) = retry_on_intr(|| pipe_with(PipeFlags::CLOEXEC))?;
    notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    if wait_until_ready(&ours, PollFlags::empty(), BARRIER_TIMEOUT)? {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s"))
    }
}

/// Sends FDSTORE=1: the manager keeps this socket under this name, whatever becomes of its other end, and passes it to
/// the next process. The manager does not answer whether it keeps it. (`FDPOLL=` is of systemd 246.)
///
/// # Errors
/// Returns an error if there is a manager, but it cannot be notified.
pub fn store(name: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
    notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")], &[socket])
}

/// Sends FDSTOREREMOVE=1: the manager removes what it keeps under this name.
///
/// # Errors
/// Returns an error if there is a manager, but it cannot be notified.
pub fn remove_stored(name: &str) -> io::Result<()> {
    notify_states(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}

fn notify_states(states: &[NotifyState<'_>]) -> io::Result<()> {
    notify_with_fds(states, &[])
}

/// Sends a notification with descriptors: one at most.
fn notify_with_fds(states: &[NotifyState<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some(name) = manager_address() else { return Ok(()) };
    let text: String = states.iter().map(|state| format!("{state}\n")).collect();
    let mut manager = MANAGER.lock().unwrap_or_else(PoisonError::into_inner);
    if manager.as_ref().is_some_and(|cached| send(cached, &text, fds).is_ok()) {
        return Ok(());
    }
    let socket = connect(&name)?;
    send(&socket, &text, fds)?;
    *manager = Some(socket);
    Ok(())
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(name)?,
    }
    Ok(socket)
}

fn send(socket: &UnixDatagram, text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    Ok(send_with_fds(socket, &[IoSlice::new(text.as_bytes())], fds, SendFlags::empty())?)
}

/// Returns `text` in one line, without invisible characters, and cut if it is too long.
fn one_line(text: &str) -> String {
    let mut line = escape_unsafe(text, Controls::Unicode, |_| false).into_owned();
    if let Some(end) = (MAX_STATUS_BYTES..line.len()).find(|at| line.is_char_boundary(*at)) {
        line.truncate(end);
        line.push('…');
    }
    line
}
