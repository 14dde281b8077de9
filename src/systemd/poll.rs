//! Waits for a descriptor, in a thread that has no event loop.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::clock::now;

/// Waits until `events`, an error or the end of the other side is reported for a descriptor, for `timeout` at most.
/// Returns whether one is.
///
/// # Errors
/// Returns an error if poll(2) does.
pub(super) fn wait_until_ready(descriptor: impl AsFd, events: PollFlags, timeout: Duration) -> io::Result<bool> {
    let until = now() + timeout;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(now())).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&descriptor, events)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            // A signal: poll(2) is never restarted, whatever its handler is.
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
