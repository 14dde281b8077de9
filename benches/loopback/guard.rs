//! What cleans up behind the bench: the servers end and their directory goes, however the bench ended.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::{Doing as _, Result};

/// A shell that cleans up when this program is gone, however it went: it then reads the end of its input.
pub(crate) struct Guard {
    shell: Child,
    orders: Option<ChildStdin>,
}

impl Guard {
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
    pub(crate) fn of(directory: &Path) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", Self::SCRIPT]).arg(directory).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut shell = command.spawn().doing("starting sh")?;
        let orders = shell.stdin.take();
        Ok(Self { shell, orders })
    }

    /// From now on it ends this process too.
    pub(crate) fn take_on(&self, pid: u32) -> Result<()> {
        self.order(format_args!("+ {pid}"))
    }

    /// From now on the process may go, and its ID may become another's.
    pub(crate) fn let_go(&self, pid: u32) -> Result<()> {
        self.order(format_args!("- {pid}"))
    }

    fn order(&self, order: fmt::Arguments<'_>) -> Result<()> {
        let mut orders = self.orders.as_ref().expect("they are open until the guard is dropped");
        // One write, so that an order is never cut off.
        orders.write_all(format!("{order}\n").as_bytes()).doing("telling sh which servers there are")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Err(error) = self.shell.wait() {
            eprintln!("waiting for sh: {error}");
        }
    }
}
