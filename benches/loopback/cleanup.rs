//! The cleanup after the bench: ends the servers and removes their directory, however the bench ended.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::{Context as _, Result};

/// A shell that cleans up when this program has ended, however it ended: it then reads the end of its input.
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

    /// Registers a process that the shell is to kill at the end.
    pub(crate) fn register(&self, pid: u32) -> Result<()> {
        self.write_command(format_args!("+ {pid}"))
    }

    /// Unregisters a process before it ends, after which its ID may be reused.
    pub(crate) fn unregister(&self, pid: u32) -> Result<()> {
        self.write_command(format_args!("- {pid}"))
    }

    fn write_command(&self, command: fmt::Arguments<'_>) -> Result<()> {
        let mut stdin = self.stdin.as_ref().expect("stdin is open until the shell is dropped");
        // One write, so that a command is never truncated.
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
