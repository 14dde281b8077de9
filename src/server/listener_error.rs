//! Classifies errors of accept(2) and recvmmsg(2), and computes the pauses of a listener after them.
//!
//! Only an error that every later call would return, too, ends a listener. Any other error may be temporary: a lack of file
//! descriptors, the policy of a security module or a BPF program (EPERM, EACCES, or any other code), a pending network error.
//! After the first such error, the listener calls again at once. If that call fails as well, the listener pauses, so that a
//! lasting error uses no CPU time, and its thread serves its connections.
//!
//! The listener reports an error only when it pauses. A peer can cause single errors, and repeat them at will (ECONNABORTED:
//! the connection was reset in the backlog), and they do no harm. An error with another cause occurs again with the next call,
//! and is reported then.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;

/// The longest pause. Also the pause after resources are exhausted, unless a connection ends before.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The first pause. Each further one is twice as long, up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(1);

/// The error text for a socket that another process has shut down. The service manager would pass the same socket again, so
/// only a new socket helps.
const SHUT_DOWN: &str =
    "another process shut the socket down; stop the service and its socket unit, then start the socket unit";

/// The kind of an error of accept(2) or recvmmsg(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenerErrorKind {
    /// The next call may succeed.
    Transient,
    /// File descriptors or memory have run out.
    ResourcesExhausted,
    /// No later call will succeed.
    Fatal,
}

impl ListenerErrorKind {
    pub(crate) fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::BADF | Errno::NOTSOCK | Errno::INVAL | Errno::FAULT | Errno::NOSYS | Errno::OPNOTSUPP) => {
                Self::Fatal
            }
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Self::ResourcesExhausted,
            _ => Self::Transient,
        }
    }
}

/// The state of a listener that has failed calls.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// The number of transient errors since the last success.
    failures: u32,
    /// Whether the pause has been reported.
    reported: bool,
}

impl Backoff {
    /// Records an error. Returns the pause before the next call: `None` after the first error, then pauses of doubling length,
    /// up to [`MAX_PAUSE`].
    pub(crate) fn record_error(&mut self) -> Option<Duration> {
        let doublings = self.failures.checked_sub(1);
        self.failures = self.failures.saturating_add(1);
        let factor = 1_u32.checked_shl(doublings?).unwrap_or(u32::MAX);
        Some(MIN_PAUSE.saturating_mul(factor).min(MAX_PAUSE))
    }

    /// Records a successful call.
    pub(crate) fn record_success(&mut self) {
        self.failures = 0;
    }

    /// Returns whether a pause that begins now has to be reported: only the first one until [`Backoff::report_end`].
    pub(crate) fn report_pause(&mut self) -> bool {
        !mem::replace(&mut self.reported, true)
    }

    /// Returns whether the end of the pauses has to be reported.
    pub(crate) fn report_end(&mut self) -> bool {
        mem::replace(&mut self.reported, false)
    }
}

/// Returns whether this readiness of a socket with an empty backlog means that another process has shut it down.
pub(crate) fn is_shut_down(flags: EventFlags) -> bool {
    flags.intersects(EventFlags::RDHUP | EventFlags::HUP)
}

/// Returns the error of a listener whose socket another process has shut down.
pub(crate) fn shut_down_error() -> io::Error {
    io::Error::other(SHUT_DOWN)
}

/// Replaces the EINVAL that accept(2) returns for a TCP socket that was shut down by an error that explains it.
pub(crate) fn explain(error: io::Error, socket: impl AsFd) -> io::Error {
    let is_listening = socket_acceptconn(socket).unwrap_or(true);
    if Errno::from_io_error(&error) == Some(Errno::INVAL) && !is_listening { shut_down_error() } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FATAL: [Errno; 6] = [Errno::BADF, Errno::NOTSOCK, Errno::INVAL, Errno::FAULT, Errno::NOSYS, Errno::OPNOTSUPP];
    const EXHAUSTED: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];

    #[test]
    fn only_six_errors_end_a_listener() {
        // More than all error numbers of Linux.
        for errno in (1..200).map(Errno::from_raw_os_error) {
            let expected = if FATAL.contains(&errno) {
                ListenerErrorKind::Fatal
            } else if EXHAUSTED.contains(&errno) {
                ListenerErrorKind::ResourcesExhausted
            } else {
                ListenerErrorKind::Transient
            };
            assert_eq!(ListenerErrorKind::of(&errno.into()), expected, "{errno:?}");
        }
    }

    #[test]
    fn one_error_causes_no_pause_and_further_ones_ever_longer_pauses_of_up_to_a_second() {
        let mut backoff = Backoff::default();
        for _ in 0..2 {
            assert_eq!(backoff.record_error(), None);
            for millis in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000, 1000] {
                assert_eq!(backoff.record_error(), Some(Duration::from_millis(millis)));
            }
            backoff.record_success();
        }
        backoff.failures = u32::MAX - 1;
        for _ in 0..3 {
            assert_eq!(backoff.record_error(), Some(MAX_PAUSE));
        }
    }
}
