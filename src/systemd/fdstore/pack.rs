//! Packs connections into a bundle.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair, sockopt};

use super::manifest::{self, Entry, STATE_COOKIE};
use super::{StoredConnection, socket_cookie};
use crate::pass_rights::MAX_FDS_PER_MESSAGE;
use crate::systemd::sealed_memory;
use crate::systemd::send_fds::send_with_fds;

/// The advice about too many descriptors in flight.
pub(super) const TOO_MANY_IN_FLIGHT: &str =
    "more would be in flight than LimitNOFILE= of the unit allows; it should be twice limits.connections";

/// How much fits into a bundle.
#[derive(Debug)]
pub(super) struct BundleLimits {
    /// How many connections go into a message.
    pub(super) fds_per_message: usize,
    /// SO_SNDBUF of the socketpair; that of the machine if it is not said (some 70,000 connections).
    pub(super) send_buffer: Option<usize>,
}

impl Default for BundleLimits {
    fn default() -> Self {
        Self { fds_per_message: MAX_FDS_PER_MESSAGE, send_buffer: None }
    }
}

/// Packs the state of the process, if there is one, and the first of these connections, as many as fit, but one at least. Returns
/// the bundle, and how many connections are in it. They stay unchanged.
///
/// # Errors
/// Returns an error if not a single connection can be packed.
pub(super) fn pack(
    connections: &[StoredConnection],
    state: Option<&[u8]>,
    time: Duration,
    limits: &BundleLimits,
) -> io::Result<(OwnedFd, usize)> {
    let mut count = connections.len();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = retry_on_intr(|| socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None));
        let (sender, bundle) = pair?;
        if let Some(size) = limits.send_buffer {
            sockopt::set_socket_send_buffer_size(&sender, size)?;
        }
        match send_all(&sender, &connections[..count], state, time, limits.fds_per_message)? {
            (_, None) => return Ok((bundle, count)),
            (0, Some(Errno::TOOMANYREFS)) => return Err(io::Error::other(TOO_MANY_IN_FLIGHT)),
            (0, Some(error)) => return Err(error.into()),
            // The manifest lists more than was sent. The next one lists those that fit.
            (fitting, Some(_)) => count = fitting,
        }
    }
}

/// Sends a manifest and connections into a bundle. Returns how many connections are in it, and why not all of them.
///
/// # Errors
/// Returns an error if the manifest cannot be made.
fn send_all(
    sender: &OwnedFd,
    connections: &[StoredConnection],
    state: Option<&[u8]>,
    time: Duration,
    fds_per_message: usize,
) -> io::Result<(usize, Option<Errno>)> {
    let manifest = create_manifest(connections, state, time)?;
    let mut sent = 0;
    let mut send = || {
        send_fds(sender, &[manifest.as_fd()])?;
        for chunk in connections.chunks(fds_per_message) {
            let sockets: Vec<_> = chunk.iter().map(|connection| connection.socket.as_fd()).collect();
            send_fds(sender, &sockets)?;
            sent += chunk.len();
        }
        Ok(())
    };
    let error = send().err();
    Ok((sent, error))
}

/// Sends descriptors, [`MAX_FDS_PER_MESSAGE`] at most, and does not wait.
pub(super) fn send_fds(sender: &OwnedFd, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    // An empty message would look like the end.
    send_with_fds(sender, &[IoSlice::new(b"\n")], descriptors, SendFlags::DONTWAIT)
}

/// Creates the manifest of these connections and of this state, in sealed memory.
fn create_manifest(connections: &[StoredConnection], state: Option<&[u8]>, time: Duration) -> io::Result<OwnedFd> {
    let cookies = connections.iter().map(|connection| socket_cookie(&connection.socket));
    let cookies = cookies.collect::<io::Result<Vec<_>>>()?;
    let state = state.map(|state| Entry { cookie: STATE_COOKIE, snapshot: state });
    let entries =
        connections.iter().zip(cookies).map(|(connection, cookie)| Entry { cookie, snapshot: &*connection.snapshot });
    let entries: Vec<_> = state.into_iter().chain(entries).collect();
    sealed_memory::create("echoed-handover", MemfdFlags::NOEXEC_SEAL, |writer| {
        manifest::write(writer, time, entries.into_iter())
    })
}
