//! The test bed itself: nothing is left of a machine, however it ends.
//!
//! Who looks must not be who ends, so tests run this program again: the same test of it, which then does nothing but have a
//! machine until it is ended.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::common::wait_until;
use crate::machine::Machine;

tests![
    nothing_is_left_of_a_machine,
    only_control_groups_are_left_when_its_keeper_is_killed,
    nothing_is_left_when_the_tests_are_killed,
    nothing_is_left_when_the_tests_are_interrupted,
];

/// Set for the program that is run again.
const INNER: &str = "ECHOED_TEST_INNER";

/// What the inner program says before the name of its machine.
const HERE: &str = "here is ";

/// Whether this is the program that was run again. It must leave alone what the machines of the outer one run on.
pub fn is_inner() -> bool {
    env::var_os(INNER).is_some()
}

fn nothing_is_left_of_a_machine(machine: &Machine) {
    let Some(mut inner) = inner(machine, "nothing_is_left_of_a_machine") else { return };
    drop(inner.program.stdin.take());
    let status = inner.program.wait().expect("it is our child");
    assert!(status.success(), "{status}");
    // It waits for the end of its machine, so there is nothing to wait for here.
    assert_eq!(inner.traces(), Traces::default());
}

fn only_control_groups_are_left_when_its_keeper_is_killed(machine: &Machine) {
    let before = Traces::of(machine.name());
    assert!(!before.processes.is_empty() && !before.groups.is_empty(), "{before:#?}");
    kill_process(Pid::from_child(machine.keeper()), Signal::KILL).expect("it can be killed");
    wait_until("its processes and mounts are gone", || {
        let Traces { processes, mounts, groups: _ } = Traces::of(machine.name());
        // Whom we started, we have to bury: its keeper.
        processes.iter().all(|process| process.starts_with(&format!("{} ", machine.keeper().id()))) && mounts.is_empty()
    });
    // So that nothing is left by this test either.
    for group in control_groups(machine.name()) {
        remove(&group);
    }
}

fn nothing_is_left_when_the_tests_are_killed(machine: &Machine) {
    let Some(inner) = inner(machine, "nothing_is_left_when_the_tests_are_killed") else { return };
    kill_process(Pid::from_child(&inner.program), Signal::KILL).expect("it can be killed");
    inner.expect_no_traces();
}

/// As with Ctrl-C at a terminal.
fn nothing_is_left_when_the_tests_are_interrupted(machine: &Machine) {
    let Some(inner) = inner(machine, "nothing_is_left_when_the_tests_are_interrupted") else { return };
    kill_process_group(Pid::from_child(&inner.program), Signal::INT).expect("it can be interrupted");
    inner.expect_no_traces();
}

// --- The inner program -----------------------------------------------------------------------------------------------

/// This program, run again.
struct Inner {
    program: Child,
    /// The name of its machine.
    name: String,
}

/// Runs this program again, for this test alone, and waits until it has a machine. There, this has a machine until there
/// is no more input, and returns nothing.
fn inner(machine: &Machine, test: &str) -> Option<Inner> {
    if is_inner() {
        println!("{HERE}{}", machine.name());
        let _ = io::stdin().read_to_end(&mut Vec::new());
        return None;
    }
    let mut program = Command::new(env::current_exe().expect("we know what we are"))
        .args(["--exact", &format!("{}::bed::{test}", machine.debian().name)])
        .env(INNER, "1")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be started again");
    let mut said = BufReader::new(program.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    let name = said.find_map(|line| line.split_once(HERE).map(|(_, name)| name.to_owned())).expect("it has a machine");
    // Until it ends.
    std::thread::spawn(move || said.for_each(drop));
    let inner = Inner { program, name };
    let traces = inner.traces();
    assert!(!traces.processes.is_empty() && !traces.groups.is_empty(), "{traces:#?}");
    Some(inner)
}

impl Inner {
    fn traces(&self) -> Traces {
        Traces::of(&self.name)
    }

    fn expect_no_traces(mut self) {
        let _ = self.program.wait();
        wait_until("nothing is left", || self.traces() == Traces::default());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

// --- What is left ----------------------------------------------------------------------------------------------------

/// What can be seen of a machine from outside.
#[derive(Debug, Default, PartialEq, Eq)]
struct Traces {
    /// Their numbers and command lines.
    processes: Vec<String>,
    /// Those that everybody sees. What a machine mounts for itself goes with its last process.
    mounts: Vec<String>,
    groups: Vec<PathBuf>,
}

impl Traces {
    fn of(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        // proc_pid_mountinfo(5): the fifth field is the place. The first two that it makes are these.
        let place = |line: &&str| line.split(' ').nth(4).is_some_and(|at| at == "/mnt" || at == "/mnt/root");
        let mounts = mounts.lines().filter(place).map(str::to_owned).collect();
        Self { processes: processes(name), mounts, groups: control_groups(name) }
    }
}

/// Those that are in its control groups, or were told its name.
fn processes(name: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").expect("/proc is mounted").filter_map(Result::ok);
    let ours = all.filter_map(|process| {
        let read = |file| fs::read(process.path().join(file)).map(|text| String::from_utf8_lossy(&text).into_owned());
        let (line, groups) = (read("cmdline").ok()?, read("cgroup").ok()?);
        let number = process.file_name();
        let is_ours = line.contains(name) || groups.contains(name);
        is_ours.then(|| format!("{} {}", number.to_string_lossy(), line.replace('\0', " ")))
    });
    ours.collect()
}

/// In all hierarchies, below whatever group the tests run in.
fn control_groups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut unseen = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = unseen.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            if entry.file_name() == name { found.push(entry.path()) } else { unseen.push(entry.path()) }
        }
    }
    found
}

/// A control group and those below it. Its files are not files.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    fs::remove_dir(group).expect("a control group without processes can be removed");
}
