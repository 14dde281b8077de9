//! strace(1): makes calls of a program fail, and writes down which calls the program makes.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::{program_or_skip, skip_test};

/// A command that runs a program under strace, and the file with a line for each traced call.
pub struct Strace {
    command: Vec<OsString>,
    trace: PathBuf,
    _directory: TempDir,
}

/// A call that a thread of the program made.
#[derive(Debug, Clone)]
pub struct Call {
    /// The thread that made it.
    pub thread: String,
    /// The name of the system call.
    pub name: String,
    /// How many calls of this name the same thread had made when it began this one, this one included: what strace's
    /// `when=` counts.
    pub number: usize,
    /// The arguments and the result, as strace writes them.
    pub text: String,
}

impl Strace {
    /// Traces the calls in `trace`, and makes some fail as `inject` says; both in the notation of strace(1). `None` if
    /// nothing can be traced here.
    pub fn new(trace: &str, inject: &[String]) -> Option<Self> {
        let strace = program_or_skip("strace")?;
        let works = Command::new(&strace).args(["-f", "-o", "/dev/null", "true"]).status();
        if !works.is_ok_and(|status| status.success()) {
            skip_test("strace cannot trace a program here");
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory can be made");
        let file = directory.path().join("trace");
        // The program is our child, not strace. -y: with what a descriptor is.
        let mut command = vec![strace.into_os_string()];
        command.extend(["--daemonize=grandchild", "-f", "-y", "-e"].map(OsString::from));
        command.push(format!("trace={trace}").into());
        for inject in inject {
            command.extend(["-e".into(), format!("inject={inject}").into()]);
        }
        command.extend(["-o".into(), file.clone().into_os_string()]);
        Some(Self { command, trace: file, _directory: directory })
    }

    /// Returns the command that runs `program` under strace; arguments for the program can be added.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg(program);
        command
    }

    /// Returns what `TEST_WRAPPER` of [`activated_command`](super::service_manager::activated_command) is to be.
    pub fn wrapper(&self) -> String {
        let words: Vec<_> = self.command.iter().map(|word| word.to_str().expect("it is text")).collect();
        words.join(" ")
    }

    /// Returns how many calls have been made to fail so far.
    pub fn injected_count(&self) -> usize {
        self.text().matches("(INJECTED)").count()
    }

    /// Returns all calls so far, in the order in which they began.
    pub fn calls(&self) -> Vec<Call> {
        let (mut counts, mut unfinished) = (HashMap::new(), HashMap::new());
        let text = self.text();
        let mut calls: Vec<Call> = Vec::new();
        for line in text.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            if let Some((_, end)) = rest.trim_start().split_once(" resumed>").filter(|_| rest.contains("<... ")) {
                if let Some(at) = unfinished.remove(thread) {
                    let call: &mut Call = &mut calls[at];
                    call.text = format!("{}{end}", call.text.trim_end_matches(" <unfinished ...>"));
                }
                continue;
            }
            // Not signals and ends of threads.
            let Some((name, arguments)) = rest.trim_start().split_once('(') else { continue };
            if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
                continue;
            }
            let number = counts.entry((thread.to_owned(), name.to_owned())).or_insert(0);
            *number += 1;
            if rest.ends_with("<unfinished ...>") {
                unfinished.insert(thread.to_owned(), calls.len());
            }
            let thread = thread.to_owned();
            calls.push(Call { thread, name: name.to_owned(), number: *number, text: arguments.to_owned() });
        }
        calls
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.trace).unwrap_or_default()
    }
}
