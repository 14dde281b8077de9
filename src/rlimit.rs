//! The limit on the descriptors of a process, and its table of them.

use std::io;
use std::os::fd::RawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::pass_rights::MAX_FDS_PER_MESSAGE;

/// Descriptors of a daemon for anything but connections: listeners, the first workers, the log and the like.
const RESERVED_FDS: u64 = 64;

/// How many connections may be open at once without a permit: those that were refused or reclaimed and wait for their final
/// reply to arrive, and those that wait for a decision on their source. They do not count against `limits.connections`.
pub(crate) const MAX_UNPERMITTED: usize = 96;

/// How many descriptors that peers sent (SCM_RIGHTS, unix(7)) may wait to be closed, and how many sockets of refused
/// connections, if the limit leaves as many.
pub const MAX_PEER_FDS: usize = 1024;

/// How many of each may wait in any case: they come out of [`RESERVED_FDS`].
const MIN_PEER_FDS: usize = 16;

/// Descriptors of peers for each thread that may receive some, a worker, the services or that of a Unix datagram socket: those of
/// one message, by which it may pass [`MAX_PEER_FDS`].
const MESSAGE_FDS: u64 = MAX_FDS_PER_MESSAGE as u64;

/// The own descriptors of each of these threads.
const THREAD_FDS: u64 = 4;

/// Descriptors for each thread of a UDP socket: the socket, and what wakes the thread.
const UDP_THREAD_FDS: u64 = 2;

/// Descriptors for the threads that reply to Unix datagram sockets at paths: there are eight, and each has 16 paths open at most.
const REPLY_THREAD_FDS: u64 = 8 * 16;

/// How many threads of a daemon serve, besides that of the services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServingThreads {
    /// Those of connections.
    pub workers: usize,
    /// Those of UDP sockets.
    pub udp: usize,
    /// Those of Unix datagram sockets.
    pub unixgram: usize,
    /// How many connections the services may serve besides those that have permits of `limits.connections`.
    pub service_connections: usize,
}

impl ServingThreads {
    /// Returns how many descriptors of their own they need, with the thread of the services.
    fn own_fds(self) -> u64 {
        let replies = if self.unixgram > 0 { REPLY_THREAD_FDS } else { 0 };
        let udp = UDP_THREAD_FDS.saturating_mul(self.udp as u64);
        let others = udp.saturating_add(replies).saturating_add(self.service_connections as u64);
        THREAD_FDS.saturating_mul(self.receiving()).saturating_add(others)
    }

    /// Returns how many descriptors of peers they may receive at once.
    fn received_fds(self) -> u64 {
        MESSAGE_FDS.saturating_mul(self.receiving())
    }

    /// Returns how many threads may receive descriptors.
    fn receiving(self) -> u64 {
        (self.workers as u64).saturating_add(self.unixgram as u64).saturating_add(1)
    }
}

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

/// How many descriptors a daemon may have, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdBudget {
    /// How many it may have in all.
    pub allowed: u64,
    /// How many of those are for its connections, and what else it needs to serve them.
    serving: u64,
    /// How many the threads that serve may receive at once from peers.
    received: u64,
    /// How many times [`MAX_PEER_FDS`] may wait to be closed: descriptors of peers, and sockets of refused connections.
    waiting_kinds: u64,
}

impl FdBudget {
    /// Returns the budget of a daemon with so many connections and these threads, under the present limit.
    #[must_use]
    pub fn of(connections: usize, threads: ServingThreads) -> Self {
        let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let serving = (RESERVED_FDS + MAX_UNPERMITTED as u64).saturating_add(connections as u64);
        let serving = serving.saturating_add(threads.own_fds());
        Self { allowed, serving, received: threads.received_fds(), waiting_kinds: 2 }
    }

    /// Returns the budget of a daemon that serves one connection and accepts none.
    #[must_use]
    pub fn of_single_connection(threads: ServingThreads) -> Self {
        Self { serving: RESERVED_FDS + 1 + threads.own_fds(), waiting_kinds: 1, ..Self::of(0, threads) }
    }

    /// Returns whether there are enough for all connections, and for the threads that serve them and the datagram sockets.
    #[must_use]
    pub fn fits_connections(&self) -> bool {
        self.allowed >= self.serving
    }

    /// Returns how many descriptors that peers sent may wait to be closed, and how many sockets of refused connections.
    #[must_use]
    pub fn peer_fds(&self) -> usize {
        let left = self.allowed.saturating_sub(self.serving).saturating_sub(self.received) / self.waiting_kinds;
        usize::try_from(left).unwrap_or(usize::MAX).clamp(MIN_PEER_FDS, MAX_PEER_FDS)
    }

    /// Returns how many descriptors it needs for all of that.
    #[must_use]
    pub fn needed(&self) -> u64 {
        self.serving.saturating_add(self.received).saturating_add(self.waiting_kinds * MAX_PEER_FDS as u64)
    }
}

/// Raises the limit to what a daemon with so many connections and these threads needs, as far as it may, and preallocates the
/// table of descriptors for them, which takes 8 bytes for each. Best called while there is only one thread.
///
/// The kernel's table of descriptors grows in powers of two when it is full. A process of several threads waits for a
/// grace period of RCU then, which takes some 10 ms, and each connection that is being accepted or restored waits with
/// it: the 65th connection, the 257th, the 513th, and so on. A process of one thread does not wait, and the table never
/// shrinks.
#[must_use]
pub fn preallocate_fd_table(connections: usize, threads: ServingThreads) -> FdBudget {
    let budget = FdBudget::of(connections, threads);
    let allowed = raise_nofile(budget.needed());
    let mut highest_fd = RawFd::try_from(budget.needed().min(allowed)).unwrap_or(RawFd::MAX) - 1;
    // It is closed at once. There is an error where so much memory cannot be had.
    while highest_fd > 0 && rustix::io::fcntl_dupfd_cloexec(io::stdin(), highest_fd).is_err() {
        highest_fd /= 2;
    }
    FdBudget { allowed, ..budget }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_WORKERS: ServingThreads = ServingThreads { workers: 2, udp: 0, unixgram: 0, service_connections: 0 };

    #[test]
    fn what_the_limit_leaves_is_for_descriptors_of_peers() {
        let peer_fds = |allowed| FdBudget { allowed, ..FdBudget::of(100, TWO_WORKERS) }.peer_fds();
        // Those of connections without a permit, and their sockets that wait to be closed, are as many in the worst case.
        let others = 64 + 96 + 100 + 3 * 257;
        assert_eq!(FdBudget::of(100, TWO_WORKERS).needed(), others + 2 * 1024);
        for (allowed, expected) in [
            (u64::MAX, 1024),
            (others + 2 * 1024, 1024),
            (others + 2 * 1024 - 1, 1023),
            (others + 2 * 16, 16),
            (others + 2 * 16 - 1, 16),
            (others, 16),
            (0, 16),
        ] {
            assert_eq!(peer_fds(allowed), expected, "{allowed}");
        }
        assert_eq!(FdBudget::of_single_connection(TWO_WORKERS).needed(), 64 + 1 + 3 * 257 + 1024);
    }

    #[test]
    fn threads_of_datagram_sockets_have_descriptors_too() {
        let needed = |udp, unixgram| FdBudget::of(100, ServingThreads { udp, unixgram, ..TWO_WORKERS }).needed();
        let without = needed(0, 0);
        assert_eq!(needed(3, 0), without + 3 * 2);
        assert_eq!(needed(0, 1), without + 257 + 128);
        let services = ServingThreads { service_connections: 80, ..TWO_WORKERS };
        assert_eq!(FdBudget::of(100, services).needed(), without + 80);
        assert_eq!(needed(3, 2), without + 3 * 2 + 2 * 257 + 128);
    }

    #[test]
    fn connections_do_not_fit_if_the_threads_lack_descriptors_of_their_own() {
        let own = 3 * 4 + 5 * 2 + 2 * 4 + 128;
        let budget = FdBudget::of(100, ServingThreads { udp: 5, unixgram: 2, ..TWO_WORKERS });
        for (allowed, expected) in [(64 + 96 + 100 + own, true), (64 + 96 + 100 + own - 1, false)] {
            assert_eq!(FdBudget { allowed, ..budget }.fits_connections(), expected, "{allowed}");
        }
    }
}
