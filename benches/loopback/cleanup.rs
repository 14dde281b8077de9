//! What cleans up behind the bench: the servers end and their directory goes, however the bench ended.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::{Context as _, Result};

/// A shell that cleans up when this program is gone, however it went: it then reads the end of its input.
pub(crate) struct CleanupShell {
    shell: Child,
    stdin: Option<ChildStdin>,
}

impl CleanupShell {
    /// Keeps a list of processes, by lines `+ PID` and `- PID`. At the end kills them and removes `$0`.
    const SCRIPT: &str = r#"
        trap '' HUP INT TERM
        pids=' '
        while read -r order pid; do
            case $order in
                +) pids="$pids$pid " ;;
                -) pids="${pids%% $pid *} ${pids#* $pid }" ;;
            esac
        done
        for pid in $pids; do kill -KILL "$pid"; done
        rm -rf -- "$0"
    "#;

    /// Starts the shell.
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", Self::SCRIPT]).arg(directory).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut shell = command.spawn().context("starting sh")?;
        let stdin = shell.stdin.take();
        Ok(Self { shell, stdin })
    }

    /// From now on it ends this process too.
    pub(crate) fn register(&self, pid: u32) -> Result<()> {
        self.write_command(format_args!("+ {pid}"))
    }

    /// From now on the process may go, and its ID may become another's.
    pub(crate) fn unregister(&self, pid: u32) -> Result<()> {
        self.write_command(format_args!("- {pid}"))
    }

    fn write_command(&self, command: fmt::Arguments<'_>) -> Result<()> {
        let mut stdin = self.stdin.as_ref().expect("they are open until the guard is dropped");
        // One write, so that an order is never cut off.
        stdin.write_all(format!("{command}\n").as_bytes()).context("telling sh which servers there are")
    }
}

impl Drop for CleanupShell {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if let Err(error) = self.shell.wait() {
            eprintln!("waiting for sh: {error}");
        }
    }
}
