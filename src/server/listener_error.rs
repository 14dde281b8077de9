//! What errors of accept(2) and recvmmsg(2) mean for a listener, and how long it pauses after them.
//!
//! Only an error that no later call can be spared from ends a listener. Anything else may pass: a lack of descriptors,
//! the policy of a security module or of a BPF program (EPERM, EACCES, whatever they choose), a pending error of the
//! network. One such error says nothing about the next call, which is made at once. If that fails as well, the listener
//! pauses, so that an error that lasts costs nothing, and the connections of its thread run.
//!
//! The listener reports an error only when it pauses. A single error is mostly the peer's doing (ECONNABORTED: the
//! connection was reset while it waited in the backlog), the listener loses nothing by it, and peers could repeat it at
//! will. An error that has another reason returns with the next call, and is reported then.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;

/// The longest pause, and how long accepting pauses when resources are exhausted, if no connection ends before.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The first pause. Each further one is twice as long, up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(1);

/// What to say about a socket that another process has shut down, such as a service manager that holds it as well. It
/// would hand over the same socket again, so only a new one helps.
const SHUT_DOWN: &str =
    "another process shut the socket down; stop the service and its socket unit, then start the socket unit";

/// What an error of accept(2) or recvmmsg(2) asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenerErrorKind {
    /// The next call may succeed.
    Transient,
    /// Descriptors or memory have run out.
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

/// The errors of a listener since a call last succeeded.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// Transient errors in a row.
    failures: u32,
    /// Whether it was reported that the listener pauses.
    reported: bool,
}

impl Backoff {
    /// Records an error. Returns how long to pause before the next call: not at all after the first error, and then
    /// ever longer.
    pub(crate) fn record_error(&mut self) -> Option<Duration> {
        let doublings = self.failures.checked_sub(1);
        self.failures = self.failures.saturating_add(1);
        let factor = 1_u32.checked_shl(doublings?).unwrap_or(u32::MAX);
        Some(MIN_PAUSE.saturating_mul(factor).min(MAX_PAUSE))
    }

    /// Records a call that did not fail.
    pub(crate) fn record_success(&mut self) {
        self.failures = 0;
    }

    /// Returns whether a pause that begins now is to be reported: once, until it is over.
    pub(crate) fn report_pause(&mut self) -> bool {
        !mem::replace(&mut self.reported, true)
    }

    /// Returns whether the end of the pauses is to be reported.
    pub(crate) fn report_end(&mut self) -> bool {
        mem::replace(&mut self.reported, false)
    }
}

/// Returns whether the readiness of a socket on which nothing waits says that another process has shut it down.
pub(crate) fn is_shut_down(flags: EventFlags) -> bool {
    flags.intersects(EventFlags::RDHUP | EventFlags::HUP)
}

/// The error of a listener whose socket another process has shut down.
pub(crate) fn shut_down_error() -> io::Error {
    io::Error::other(SHUT_DOWN)
}

/// Explains a fatal error of accept(2): a TCP socket that was shut down no longer listens, and says no more than
/// EINVAL.
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
        // All that Linux has, and some more.
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
