//! The test bed itself: nothing is left of a machine, however it ends.
//!
//! The process that checks must not be the one that ends, so tests run this program again: the same test, which then only has a
//! machine until it is ended.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use common::machines::machine::Machine;
use common::wait_until;

tests![
    nothing_is_left_after_a_machine_stops,
    only_control_groups_are_left_when_the_machine_script_is_killed,
    nothing_is_left_when_the_tests_are_killed,
    nothing_is_left_when_the_tests_are_interrupted,
];

/// Set for the program that is run again.
const INNER: &str = "ECHOED_TEST_INNER";

/// What the inner program says before the name of its machine.
const MACHINE_MARKER: &str = "here is ";

/// Whether this is the program that was run again. It must leave alone what the machines of the outer one run on.
pub fn is_inner() -> bool {
    env::var_os(INNER).is_some()
}

fn nothing_is_left_after_a_machine_stops(machine: &Machine) {
    let Some(mut inner) = run_inner(machine, "nothing_is_left_after_a_machine_stops") else { return };
    drop(inner.program.stdin.take());
    let status = inner.program.wait().expect("it is our child");
    assert!(status.success(), "{status}");
    // It waits for the end of its machine, so there is nothing to wait for here.
    assert_eq!(inner.leftovers(), Leftovers::default());
}

fn only_control_groups_are_left_when_the_machine_script_is_killed(machine: &Machine) {
    let before = Leftovers::of_machine(machine.name());
    assert!(!before.processes.is_empty() && !before.control_groups.is_empty(), "{before:#?}");
    kill_process(Pid::from_child(machine.script()), Signal::KILL).expect("it can be killed");
    wait_until("its processes and mounts are gone", || {
        let Leftovers { processes, mounts, control_groups: _ } = Leftovers::of_machine(machine.name());
        // The keeper is our child, so it has to be waited for.
        processes.iter().all(|process| process.starts_with(&format!("{} ", machine.script().id()))) && mounts.is_empty()
    });
    // So that nothing is left by this test either.
    for group in control_groups(machine.name()) {
        remove_control_group(&group);
    }
}

fn nothing_is_left_when_the_tests_are_killed(machine: &Machine) {
    let Some(inner) = run_inner(machine, "nothing_is_left_when_the_tests_are_killed") else { return };
    kill_process(Pid::from_child(&inner.program), Signal::KILL).expect("it can be killed");
    inner.expect_no_leftovers();
}

/// As with Ctrl-C at a terminal.
fn nothing_is_left_when_the_tests_are_interrupted(machine: &Machine) {
    let Some(inner) = run_inner(machine, "nothing_is_left_when_the_tests_are_interrupted") else { return };
    kill_process_group(Pid::from_child(&inner.program), Signal::INT).expect("it can be interrupted");
    inner.expect_no_leftovers();
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
fn run_inner(machine: &Machine, test: &str) -> Option<Inner> {
    if is_inner() {
        println!("{MACHINE_MARKER}{}", machine.name());
        let _ = io::stdin().read_to_end(&mut Vec::new());
        return None;
    }
    let mut program = Command::new(env::current_exe().expect("we know what we are"))
        .args(["--exact", &format!("{}::cleanup::{test}", machine.debian().name)])
        .env(INNER, "1")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be started again");
    let mut lines = BufReader::new(program.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    let name = lines
        .find_map(|line| line.split_once(MACHINE_MARKER).map(|(_, name)| name.to_owned()))
        .expect("it has a machine");
    // Until it ends.
    std::thread::spawn(move || lines.for_each(drop));
    let inner = Inner { program, name };
    let leftovers = inner.leftovers();
    assert!(!leftovers.processes.is_empty() && !leftovers.control_groups.is_empty(), "{leftovers:#?}");
    Some(inner)
}

impl Inner {
    fn leftovers(&self) -> Leftovers {
        Leftovers::of_machine(&self.name)
    }

    fn expect_no_leftovers(mut self) {
        let _ = self.program.wait();
        wait_until("nothing is left", || self.leftovers() == Leftovers::default());
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
struct Leftovers {
    /// Their numbers and command lines.
    processes: Vec<String>,
    /// Mounts of the host. What a machine mounts for itself goes with its last process.
    mounts: Vec<String>,
    control_groups: Vec<PathBuf>,
}

impl Leftovers {
    fn of_machine(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        // proc_pid_mountinfo(5): the fifth field is the place. The first two that it makes are these.
        let is_machine_mount = |line: &&str| line.split(' ').nth(4).is_some_and(|at| at == "/mnt" || at == "/mnt/root");
        let mounts = mounts.lines().filter(is_machine_mount).map(str::to_owned).collect();
        Self { processes: processes(name), mounts, control_groups: control_groups(name) }
    }
}

/// Those that are in its control groups, or have its name on their command line.
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
fn remove_control_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_control_group(&entry.path());
        }
    }
    fs::remove_dir(group).expect("a control group without processes can be removed");
}
