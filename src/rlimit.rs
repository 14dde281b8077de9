//! The limit on the descriptors of a process, and its table of them.

use std::io;
use std::os::fd::RawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of a daemon that are no connections: of listeners, workers, the log and the like.
const RESERVED_FDS: u64 = 64;

/// Raises the limit on descriptors of this process to `needed`, as far as it may. What counts is the soft limit, which
/// many shells set to 1,024, and which can be raised up to the hard limit (getrlimit(2), `RLIMIT_NOFILE`). Returns how
/// many descriptors it can have then, which is fewer if the hard limit is lower, or if the process must not raise it.
pub fn raise_nofile(needed: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (allowed, hard_limit) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    if allowed >= needed {
        return allowed;
    }
    let raised = needed.min(hard_limit);
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) => raised,
        Err(_) => allowed,
    }
}

/// Preallocates the table of descriptors for so many connections of a daemon, which takes 8 bytes for each. Best called
/// while there is only one thread.
///
/// The kernel's table of descriptors grows in powers of two when it is full. A process of several threads waits for a
/// grace period of RCU then, which takes some 10 ms, and each connection that is being accepted or restored waits with
/// it: the 65th connection, the 257th, the 513th, and so on. A process of one thread does not wait, and the table never
/// shrinks.
///
/// # Errors
///
/// Returns an error with how many descriptors there can be, if that is too few for all. The table has room for them
/// then.
pub fn preallocate_fd_table(connections: usize) -> Result<(), u64> {
    let needed = RESERVED_FDS.saturating_add(connections as u64);
    let allowed = raise_nofile(needed);
    let mut highest_fd = RawFd::try_from(needed.min(allowed)).unwrap_or(RawFd::MAX) - 1;
    // It is closed at once. There is an error where so much memory cannot be had.
    while highest_fd > 0 && rustix::io::fcntl_dupfd_cloexec(io::stdin(), highest_fd).is_err() {
        highest_fd /= 2;
    }
    if allowed < needed { Err(allowed) } else { Ok(()) }
}
