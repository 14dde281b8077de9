//! A thread that hangs, as a bug would have it: ptrace(2) stops it alone, and the others of its process go on.

use std::fs;
use std::sync::mpsc;
use std::thread;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{skip_test, wait_until};

/// Stops the thread of this name of a process, which may not have begun, until the process ends. Returns whether it could; if
/// not, reports that the calling test is skipped.
pub fn hang_thread(process: u32, name: &str) -> bool {
    let tasks = format!("/proc/{process}/task");
    let find_thread = || {
        let entries = fs::read_dir(&tasks).expect("the process runs");
        let mut threads = entries.map(|entry| entry.expect("it runs").file_name().into_string().expect("a number"));
        threads.find(|thread| {
            fs::read_to_string(format!("{tasks}/{thread}/comm")).is_ok_and(|comm| comm.trim_end() == name)
        })
    };
    wait_until(&format!("{process} has a thread {name}"), || find_thread().is_some());
    let thread = find_thread().expect("it does not end");
    let tid = Pid::from_raw(thread.parse().expect("a number"));
    let (sender, stopped) = mpsc::channel();
    // The thread that stops it has to stay, and to wait for its end.
    thread::spawn(move || {
        let stop = || {
            ptrace::seize(tid, ptrace::Options::empty())?;
            ptrace::interrupt(tid)
        };
        let result = stop();
        let _ = sender.send(result);
        let is_over =
            |status| matches!(status, Err(Errno::ECHILD) | Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)));
        while result.is_ok() && !is_over(waitpid(tid, Some(WaitPidFlag::__WALL))) {}
    });
    if let Err(error) = stopped.recv().expect("it says what came of it") {
        skip_test(&format!("a thread of another process cannot be stopped here (ptrace): {error}"));
        return false;
    }
    wait_until("the thread has stopped", || {
        let status = fs::read_to_string(format!("{tasks}/{thread}/status")).expect("the process runs");
        status.lines().any(|line| line.starts_with("State:\tt"))
    });
    true
}
