//! A socket on stdin, as inetd(8) and its like pass it, and systemd with `StandardInput=socket`.
//!
//! Such a starter often makes the same socket stdout and stderr. What is written there would be sent to the client, so
//! nothing is: from the first moment on, stderr leads nowhere, and the log goes to the journal or nowhere.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::net::{getsockname, sockopt};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::socket::is_unnamed_unix;

/// The socket on stdin, to be served or [given back](StdinSocket::give_back).
#[derive(Debug)]
#[must_use]
pub struct StdinSocket {
    /// Whether stderr was the same socket, and leads nowhere.
    withholds_stderr: bool,
    /// A duplicate of the earlier stderr, if there could be one.
    stderr: Option<OwnedFd>,
}

impl StdinSocket {
    /// Returns the socket on stdin, if there is one that may be served. If it is stderr as well, stderr leads nowhere
    /// from now on. To be called before there is a second thread, and before anything is written.
    ///
    /// A Unix socket without a name counts only if `counts_unnamed`: runtimes such as Node give their children an end
    /// of such a pair as stdin.
    ///
    /// # Errors
    /// Returns an error if stderr is the same socket and cannot lead nowhere: there are not enough descriptors. Nothing may be
    /// written to stderr then.
    pub fn find(counts_unnamed: bool) -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if sockopt::socket_type(&stdin).is_err() {
            return Ok(None);
        }
        if !counts_unnamed && getsockname(&stdin).is_ok_and(|name| is_unnamed_unix(&name)) {
            return Ok(None);
        }
        let withholds_stderr = is_same_file(&stdin, io::stderr());
        let stderr = if withholds_stderr { withhold_stderr()? } else { None };
        Ok(Some(Self { withholds_stderr, stderr }))
    }

    /// Returns whether stderr was the same socket, and leads nowhere.
    #[must_use]
    pub fn withholds_stderr(&self) -> bool {
        self.withholds_stderr
    }

    /// Leaves the socket on stdin alone, which is not to be served. stderr is what it was.
    pub fn give_back(&mut self) {
        if self.stderr.take().is_some_and(|stderr| dup2_stderr(stderr).is_ok()) {
            self.withholds_stderr = false;
        }
    }

    /// Takes the socket. Afterwards neither stdin nor stdout is this socket, so that it is closed when the one that is
    /// returned is.
    ///
    /// # Errors
    /// Returns an error if there are not enough descriptors.
    pub(super) fn take(&self) -> io::Result<OwnedFd> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let nowhere = open_nowhere()?;
        if is_same_file(&socket, io::stdout()) {
            dup2_stdout(&nowhere)?;
        }
        dup2_stdin(&nowhere)?;
        Ok(socket)
    }
}

/// Makes stderr lead nowhere. Returns what it was, if that can be kept.
fn withhold_stderr() -> io::Result<Option<OwnedFd>> {
    let nowhere = open_nowhere()?;
    let kept = io::stderr().as_fd().try_clone_to_owned().ok();
    dup2_stderr(nowhere)?;
    Ok(kept)
}

/// Returns /dev/null, or where there is none, a pipe that no process reads.
fn open_nowhere() -> io::Result<OwnedFd> {
    match open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(null) => Ok(null),
        Err(_) => Ok(pipe_with(PipeFlags::CLOEXEC)?.1),
    }
}

fn is_same_file(one: impl AsFd, other: impl AsFd) -> bool {
    let identity = |file: rustix::fs::Stat| (file.st_dev, file.st_ino);
    matches!((fstat(one), fstat(other)), (Ok(one), Ok(other)) if identity(one) == identity(other))
}
