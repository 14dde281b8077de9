//! Room for descriptors.
//!
//! The kernel's table of them grows in powers of two when it is full. A process of several threads waits for a grace
//! period of RCU then, which takes some 10 ms, and everybody who is being accepted or taken over waits with it: the 65th
//! connection, the 257th, the 513th, and so on. A process of one thread does not wait, and the table never shrinks.

use std::io;
use std::os::fd::RawFd;

/// Descriptors that are no connections: of listeners, workers, the log and the like. Who has more of them waits once.
const OTHERS: usize = 64;

/// Makes room for so many connections, which takes 8 bytes for each. To be called while there is only one thread. Where
/// descriptors are limited to fewer, room is made for some.
pub fn make_room_for(connections: usize) {
    let mut last = RawFd::try_from(connections.saturating_add(OTHERS)).unwrap_or(RawFd::MAX);
    // It is closed at once. There is an error where it would be above the limit (EINVAL), or nothing can be had.
    while last > 0 && rustix::io::fcntl_dupfd_cloexec(io::stdin(), last).is_err() {
        last /= 2;
    }
}
