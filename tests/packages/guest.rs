//! A guest: a machine with its own kernel, for features that not every kernel has. `guest.sh` describes it.
//!
//! It is emulated, and takes minutes for what a machine in a container does in seconds.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use common::machines::machine::CommandResult;
use common::machines::rootfs::Debian;

/// How long anything may take there.
const GUEST_TIMEOUT: Duration = Duration::from_secs(900);

/// What its shell says when it is there, and after each script.
const READY_MARKER: &str = "here it is";
const EXIT_MARKER: &str = "and so it ended: ";

/// A guest that is up. It is gone when it is dropped.
pub struct Guest {
    /// `guest.sh`, and then the emulator.
    emulator: Child,
    lines: Receiver<String>,
    /// Its disk, and what its console said.
    directory: TempDir,
}

impl Guest {
    /// Boots it, with what is put on this Debian's machines, and waits until it is up.
    pub fn boot(debian: &Debian) -> Self {
        let installed = debian.installed();
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory can be made");
        let mut emulator = Command::new("sh")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packages/guest.sh"))
            .args([&*installed.root, &*installed.layer, directory.path()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh can be started");
        let output = BufReader::new(emulator.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        thread::spawn(move || output.split(b'\n').map_while(Result::ok).try_for_each(|line| sender.send(text(&line))));
        let guest = Self { emulator, lines, directory };
        while guest.line() != READY_MARKER {}
        guest
    }

    /// Runs a shell script on it, whatever comes of it.
    pub fn run(&mut self, script: &str) -> CommandResult {
        let mut input = self.emulator.stdin.as_ref().expect("it is piped");
        // In a shell of its own, which the script may end.
        let written = writeln!(input, "(\n{script}\n) </dev/null 2>&1; echo \"{EXIT_MARKER}$?\"");
        assert!(written.is_ok(), "the guest is gone: {}", self.report());
        let mut output = String::new();
        loop {
            let line = self.line();
            // What was said before it may not have ended its last line.
            if let Some((rest, code)) = line.split_once(EXIT_MARKER) {
                output.push_str(rest);
                return CommandResult { code: code.parse().ok(), output };
            }
            output.push_str(&line);
            output.push('\n');
        }
    }

    /// Runs a shell script on it that must succeed. Returns what it said.
    pub fn sh(&mut self, script: &str) -> String {
        let CommandResult { code, output } = self.run(script);
        assert!(code == Some(0), "{script}\nended with {code:?}:\n{output}\n{}", self.report());
        output
    }

    /// The next line of its shell.
    fn line(&self) -> String {
        self.lines
            .recv_timeout(GUEST_TIMEOUT)
            .unwrap_or_else(|error| panic!("the guest is silent ({error}): {}", self.report()))
    }

    /// The last things that its kernel and its systemd said.
    fn report(&self) -> String {
        let console = fs::read(self.directory.path().join("console.log")).unwrap_or_default();
        let mut last: Vec<_> = console.rsplit(|byte| *byte == b'\n').take(50).map(text).collect();
        last.reverse();
        last.join("\n")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches('\r').to_owned()
}
