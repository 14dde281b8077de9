//! The signals that the daemon reacts to.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use nix::sys::signal::{SigSet, Signal as SignalNumber};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signal that asks to end, and to hand connections over to the next process.
pub(crate) const TERMINATE: &str = "SIGTERM";

/// SIGHUP that asks to end.
const HANGUP: &str = "SIGHUP, the terminal has hung up";

/// The request of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalRequest {
    /// To end; the name of the signal.
    Stop(&'static str),
    /// To read the settings anew.
    Reload,
    /// To begin lame duck.
    Drain,
    /// To end lame duck.
    Resume,
}

/// SIGHUP, SIGUSR1 and SIGUSR2, blocked, and the terminal that may cause the first.
#[derive(Debug)]
pub(crate) struct BlockedSignals {
    terminal: Terminal,
}

/// Blocks SIGHUP, SIGUSR1 and SIGUSR2 until [`Signals::catch`]: they would end the process. One that comes meanwhile is obeyed
/// then. To be called first of all, since threads inherit what is blocked.
///
/// (SIGINT and SIGTERM end the process as they are: nothing has begun.)
pub(crate) fn block() -> BlockedSignals {
    // There is no error for what is blocked here.
    let _ = blocked_set().thread_block();
    // Now, since it may hang up before the signals are caught.
    BlockedSignals { terminal: Terminal::of_this_process() }
}

impl BlockedSignals {
    /// Unblocks them: they end a process that does not serve.
    pub(crate) fn unblock(&self) {
        let _ = blocked_set().thread_unblock();
    }
}

fn blocked_set() -> SigSet {
    let mut set = SigSet::empty();
    [SignalNumber::SIGHUP, SignalNumber::SIGUSR1, SignalNumber::SIGUSR2].into_iter().for_each(|signal| set.add(signal));
    set
}

/// The signals of the daemon, caught while this exists.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    drain: Signal,
    resume: Signal,
    terminal: Terminal,
}

impl Signals {
    pub(crate) fn catch(BlockedSignals { terminal }: BlockedSignals) -> io::Result<Self> {
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            drain: signal(SignalKind::user_defined1())?,
            resume: signal(SignalKind::user_defined2())?,
            terminal,
        };
        blocked_set().thread_unblock()?;
        Ok(signals)
    }

    /// Waits for the next signal, and returns what it asks for.
    pub(crate) async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            _ = self.terminate.recv() => SignalRequest::Stop(TERMINATE),
            _ = self.interrupt.recv() => SignalRequest::Stop("SIGINT"),
            _ = self.hangup.recv() => self.hangup_request(),
            _ = self.drain.recv() => SignalRequest::Drain,
            _ = self.resume.recv() => SignalRequest::Resume,
        }
    }

    /// Returns what SIGHUP asks for: to end, if the terminal has hung up that the daemon was started from. Otherwise Ctrl-C
    /// could no longer stop the daemon, and its addresses would stay in use.
    pub(crate) fn hangup_request(&self) -> SignalRequest {
        if self.terminal.has_hung_up() { SignalRequest::Stop(HANGUP) } else { SignalRequest::Reload }
    }

    /// Waits for the next SIGINT or SIGTERM, and returns its name. (A terminal that hangs up causes SIGHUP more than once.)
    pub(crate) async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => TERMINATE,
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The controlling terminal (credentials(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Terminal {
    /// There was none, or SIGHUP was ignored (nohup(1)).
    Irrelevant,
    /// The process was started from one.
    Present,
}

impl Terminal {
    fn of_this_process() -> Self {
        let ignores_hangup = || fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status));
        if open_terminal().is_ok() && !ignores_hangup() { Self::Present } else { Self::Irrelevant }
    }

    fn has_hung_up(self) -> bool {
        self == Self::Present && matches!(open_terminal(), Err(Errno::NXIO | Errno::IO))
    }
}

/// Opens the controlling terminal. There is none any longer when it has hung up (ENXIO).
fn open_terminal() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    retry_on_intr(|| rustix::fs::open("/dev/tty", flags, Mode::empty()))
}

/// Returns whether SIGHUP is ignored, by the text of /proc/PID/status (proc_pid_status(5)).
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // The first signal is SIGHUP.
    mask & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_hangup_is_found_in_the_status_of_the_process() {
        assert!(ignores_hangup("Name:\techoed\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n"));
        for status in ["", "SigIgn:\t0000000000001000\n", "SigIgn:\tx\n", "SigBlk:\t0000000000000001\n"] {
            assert!(!ignores_hangup(status), "{status}");
        }
    }
}
