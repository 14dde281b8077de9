//! Stores live connections in the manager's fd store and takes them out of it, so that the next process restores them.
//! Their snapshots are opaque here.
//!
//! The manager takes as long for each descriptor as it has others, with everything else on the machine waiting. So it
//! is given one, however many connections there are: a bundle, which is an end of a socketpair with everything in
//! flight in it (unix(7)). The other end is closed by then.
//!
//! ```text
//! first message    sealed memory with the manifest: the SO_COOKIE and the snapshot of each connection, the state of the process
//! further ones     the connections, in the order of the manifest, up to 253 in each
//! ```
//!
//! A connection and its entry in the manifest are matched by SO_COOKIE (socket(7)), which is the same in every process.

mod manifest;
mod pack;
mod unpack;

#[cfg(test)]
mod tests;

use std::env;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt;
use rustix::time::{ClockId, clock_gettime};

use super::notify;
use pack::BundleLimits;
use unpack::UnpackedBundle;

/// The name of bundles in the fd store.
const FDNAME: &str = "handover";

/// The name that systemd gives to descriptors in the fd store that were stored without one.
const UNNAMED_FDNAME: &str = "stored";

/// Returns whether a descriptor with this name comes from the fd store.
pub(super) fn is_stored_name(name: &str) -> bool {
    [FDNAME, UNNAMED_FDNAME].contains(&name)
}

/// A connection that is to be stored, or that was stored.
#[derive(Debug)]
pub struct StoredConnection {
    /// The connection itself: a connected socket of a stream or of packets.
    pub socket: OwnedFd,
    /// Its session, as bytes.
    pub snapshot: Vec<u8>,
}

/// The result of [`store`].
#[derive(Debug, Default)]
pub struct StoreResult {
    /// How many were sent to the manager: the first ones.
    pub stored: usize,
    /// The connections that were not stored, as they were, in their order.
    pub remaining: Vec<StoredConnection>,
    /// Why some were not stored, and what to do about it.
    pub problem: Option<String>,
    /// Why it is not known whether the manager has processed the others. They were sent to it.
    pub unconfirmed: Option<io::Error>,
}

/// The content of bundles.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// The connections, in the order in which they were stored.
    pub connections: Vec<StoredConnection>,
    /// The state of the process that stored them, as bytes.
    pub state: Option<Vec<u8>>,
    /// How long ago they were stored, with the time that the machine slept. Zero for what comes from the future.
    pub age: Duration,
    /// The problems, each in one line. The descriptors in question are closed.
    pub problems: Vec<String>,
}

/// Returns whether there is an fd store: systemd says how much it takes (`$FDSTORE`; before 254, the unit does).
#[must_use]
pub fn is_available() -> bool {
    notify::is_enabled() && capacity() > 0
}

/// Returns how many descriptors the fd store takes.
fn capacity() -> usize {
    env::var("FDSTORE").ok().and_then(|capacity| capacity.parse().ok()).unwrap_or(0)
}

/// Stores connections and the state of the process in the fd store, for the next process. Returns when the manager has them, or
/// after 5 s. The result has the connections that were not stored, so that they can be ended in another way.
#[must_use]
pub fn store(connections: Vec<StoredConnection>, state: Option<&[u8]>) -> StoreResult {
    let capacity = if notify::is_enabled() { capacity() } else { 0 };
    let mut has_sent = false;
    let mut result = store_bundles(connections, state, capacity, &BundleLimits::default(), |bundle| {
        notify::store(FDNAME, bundle.as_fd())?;
        has_sent = true;
        Ok(())
    });
    if has_sent {
        result.unconfirmed = notify::barrier().err();
    }
    result
}

/// Packs connections into bundles, `capacity` of them at most, and sends each. The state goes into the first one.
fn store_bundles(
    mut connections: Vec<StoredConnection>,
    mut state: Option<&[u8]>,
    capacity: usize,
    limits: &BundleLimits,
    mut send: impl FnMut(OwnedFd) -> io::Result<()>,
) -> StoreResult {
    let time = now();
    let (mut bundles, mut stored, mut max_per_bundle) = (0, 0, usize::MAX);
    let mut problem = None;
    while bundles < capacity && (!connections.is_empty() || state.is_some()) && problem.is_none() {
        let packed = pack::pack(&connections[..max_per_bundle.min(connections.len())], state, time, limits);
        match packed.map(|(bundle, count)| (send(bundle), count)) {
            Ok((Ok(()), count)) => {
                connections.drain(..count);
                bundles += 1;
                stored += count;
                state = None;
            }
            // On its way to the manager, the bundle is in flight as well.
            Ok((Err(error), count)) if is_too_many_in_flight(&error) => match count / 2 {
                0 => problem = Some(pack::TOO_MANY_IN_FLIGHT.to_owned()),
                half => max_per_bundle = half,
            },
            Ok((Err(error), _)) | Err(error) => problem = Some(error.to_string()),
        }
    }
    if problem.is_none() && !connections.is_empty() {
        let full = || format!("the fd store takes {capacity} descriptors and is full (FileDescriptorStoreMax=)");
        problem = Some(if max_per_bundle < usize::MAX { pack::TOO_MANY_IN_FLIGHT.to_owned() } else { full() });
    }
    StoreResult { stored, remaining: connections, problem, unconfirmed: None }
}

/// Returns the SO_COOKIE of a socket.
fn socket_cookie(socket: &OwnedFd) -> io::Result<u64> {
    retry_on_intr(|| sockopt::socket_cookie(socket)).map_err(|error| match error {
        Errno::NOPROTOOPT => io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel has no SO_COOKIE (socket(7)), and without it connections cannot be handed over; it takes Linux \
             4.12 or newer",
        ),
        error => error.into(),
    })
}

fn is_too_many_in_flight(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error())
}

/// Removes all bundles from the fd store. Those that this process was passed stay open here; without the removal, the
/// manager would pass them to each further process. To be called before the bundles are used, so that a bundle that
/// crashes the process is tried only once.
///
/// # Errors
/// Returns an error if there is a manager, but it cannot be notified.
pub fn remove() -> io::Result<()> {
    notify::remove_stored(FDNAME)?;
    notify::remove_stored(UNNAMED_FDNAME)
}

/// Unpacks bundles. Their content is not trusted: it takes no more memory than it has already, nothing blocks, and what
/// does not fit together is closed.
#[must_use]
pub fn unpack(bundles: Vec<OwnedFd>) -> Unpacked {
    let now = now();
    let mut unpacked = Unpacked::default();
    let count = bundles.len();
    for (number, bundle) in (1..).zip(bundles) {
        let UnpackedBundle { connections, state, stored_at, problems } = unpack::unpack_bundle(&bundle);
        unpacked.state = unpacked.state.or(state);
        unpacked.age = unpacked.age.max(stored_at.map_or(Duration::ZERO, |then| now.saturating_sub(then)));
        unpacked.connections.extend(connections);
        unpacked.problems.extend(problems.into_iter().map(|problem| format!("bundle {number} of {count}: {problem}")));
    }
    unpacked
}

/// Returns the time since the machine was booted, including sleep. It is the same for all processes.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}
