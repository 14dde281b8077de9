//! The daemon as a child of the test, ended when it is dropped.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, getpeername, getsockname};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, Signal, getrlimit, kill_process, pidfd_getfd, pidfd_open,
    prlimit,
};
use tempfile::TempDir;

use super::{Peer, TEST_TIMEOUT, now, program, skip_test};

/// A running daemon (or a program that runs it).
pub struct Daemon {
    child: Child,
    command: String,
    log: Arc<Log>,
    status: Option<ExitStatus>,
    /// Its configuration and sockets; goes with it.
    directory: TempDir,
}

#[derive(Default)]
struct Log {
    /// The lines so far, and whether there will be no more.
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Log {
    /// Also after a test has failed while it looked at them.
    fn lines(&self) -> MutexGuard<'_, (Vec<String>, bool)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line of the log without its time: `2026-11-30T08:09:37.123Z `.
pub fn strip_time(line: &str) -> &str {
    let Some((time, rest)) = line.split_once(' ') else { return line };
    let is_time = time.len() == "2026-11-30T08:09:37.123Z".len() && time.ends_with('Z') && time.as_bytes()[10] == b'T';
    if is_time { rest } else { line }
}

impl Daemon {
    /// Starts it with these arguments and waits until it serves on each listener among them.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with("", arguments)
    }

    /// Starts it with this configuration and these arguments, and waits until it serves. `DIR` in either is a directory
    /// of its own.
    pub fn start_with(configuration: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program("echoed"));
        let daemon = Self::spawn_with(&mut command, configuration, arguments);
        let listeners = arguments.iter().filter(|argument| **argument == "--listen").count();
        daemon.wait_for_log_times("listening on", listeners.max(1));
        daemon
    }

    /// Starts a command that runs the daemon, with this configuration and these arguments; does not wait.
    pub fn spawn_with(command: &mut Command, configuration: &str, arguments: &[&str]) -> Self {
        Self::spawn_with_stdio(command.stdin(Stdio::null()).stdout(Stdio::inherit()), configuration, arguments)
    }

    /// The same with a command whose stdin and stdout are set already.
    pub fn spawn_with_stdio(command: &mut Command, configuration: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().to_str().expect("its name is text").to_owned();
        for argument in arguments {
            command.arg(argument.replace("DIR", &path));
        }
        if !configuration.is_empty() {
            let file = directory.path().join("echoed.toml");
            fs::write(&file, configuration.replace("DIR", &path)).expect("the configuration can be written");
            command.arg("--config").arg(file);
        } else if !arguments.contains(&"--config") {
            // Not what this machine has in /etc.
            command.arg("--config").arg("/dev/null");
        }
        command.stderr(Stdio::piped());
        let shown = format!("{command:?}");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::new(Log::default());
        let writer = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let Ok(line) = line else { break };
                writer.lines().0.push(strip_time(&line).to_owned());
                writer.changed.notify_all();
            }
            writer.lines().1 = true;
            writer.changed.notify_all();
        });
        Self { child, command: shown, log, status: None, directory }
    }

    /// Waits until its log has a line with `text`, and returns that line.
    pub fn wait_for_log(&self, text: &str) -> String {
        self.wait_for_log_times(text, 1).pop().expect("there is one")
    }

    /// Waits until its log has `times` lines with `text`, and returns those.
    pub fn wait_for_log_times(&self, text: &str, times: usize) -> Vec<String> {
        let until = now() + TEST_TIMEOUT;
        let mut lines = self.log.lines();
        loop {
            let found: Vec<_> = lines.0.iter().filter(|line| line.contains(text)).cloned().collect();
            if found.len() >= times {
                return found;
            }
            let left = until.saturating_duration_since(now());
            let ended = lines.1;
            assert!(!ended && !left.is_zero(), "no \"{text}\" in the log of {}: {:#?}", self.command, lines.0);
            lines = self.log.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until it listens or ends. Returns whether it listens.
    pub fn starts(&self) -> bool {
        let until = now() + TEST_TIMEOUT;
        let mut lines = self.log.lines();
        loop {
            if lines.0.iter().any(|line| line.contains("listening on")) {
                return true;
            }
            let left = until.saturating_duration_since(now());
            assert!(!left.is_zero(), "{} neither listens nor ends; its log: {:#?}", self.command, lines.0);
            if lines.1 {
                return false;
            }
            lines = self.log.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All lines of its log so far, without their times.
    pub fn log(&self) -> Vec<String> {
        self.log.lines().0.clone()
    }

    /// Where it listens, in the order in which it said so: `tcp:127.0.0.1:40123`.
    pub fn addresses(&self) -> Vec<String> {
        let listening = |line: &String| {
            let (_, rest) = line.split_once("listening on ")?;
            rest.split_whitespace().next().map(str::to_owned)
        };
        self.log().iter().filter_map(listening).collect()
    }

    /// A connection to its first address.
    pub fn connect(&self) -> Peer {
        Peer::connect(&self.addresses()[0])
    }

    /// The directory that `DIR` stands for.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it can be signalled");
    }

    /// Waits for its end, and for the end of its log.
    pub fn wait(&mut self) -> ExitStatus {
        let until = now() + TEST_TIMEOUT;
        let mut lines = self.log.lines();
        while !lines.1 {
            let left = until.saturating_duration_since(now());
            assert!(!left.is_zero(), "{} does not end; its log: {:#?}", self.command, lines.0);
            lines = self.log.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(lines);
        let status = self.child.wait().expect("it can be waited for");
        self.status = Some(status);
        status
    }

    /// Stops it with SIGTERM, and checks that this is how it ends.
    pub fn stop(mut self) -> Vec<String> {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{}: {status}; its log: {:#?}", self.command, self.log());
        self.log()
    }

    /// A number of /proc/PID/status, in its unit (kB for memory).
    pub fn status_number(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()).expect("the field exists");
        number.parse().expect("it is a number")
    }

    /// Leaves it `more` descriptors beyond those that it has.
    pub fn leave_free_descriptors(&self, more: usize) {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs");
        let number = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        let open: Vec<u64> = open.filter_map(number).collect();
        // The limit is not on how many there are, but on the largest number (getrlimit(2)).
        let limit = (0..).filter(|number| !open.contains(number)).nth(more);
        self.set_nofile_limit(limit);
    }

    /// Sets its soft limit on descriptors.
    pub fn set_nofile_limit(&self, current: Option<u64>) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).expect("it is ours");
    }

    /// How many descriptors it has open.
    pub fn descriptor_count(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }

    /// Returns copies of the sockets of its connections: `None` if this process may not have them.
    pub fn connections(&self) -> Option<Vec<OwnedFd>> {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("it is small")).expect("it is not 0");
        let process = pidfd_open(pid, PidfdFlags::empty()).expect("it runs");
        let mut connections = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs") {
            let entry = entry.expect("it can be read");
            // It may have been closed meanwhile.
            if !fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().starts_with("socket:") {
                continue;
            }
            let number = entry.file_name().to_string_lossy().parse().expect("a number");
            let socket = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
                Ok(socket) => socket,
                Err(Errno::PERM) => {
                    skip_test("another process's sockets cannot be looked at here (pidfd_getfd)");
                    return None;
                }
                Err(_) => continue,
            };
            // Not the pairs of sockets that it has for itself: those have no name.
            let name = getsockname(&socket).and_then(SocketAddrUnix::try_from);
            let has_name = name.is_err() || name.is_ok_and(|name| name.path_bytes().is_some());
            if has_name && getpeername(&socket).is_ok_and(|peer| peer.is_some()) {
                connections.push(socket);
            }
        }
        Some(connections)
    }

    /// How much CPU time it has used, in nanoseconds.
    pub fn cpu_nanos(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let nanos = |task: std::io::Result<fs::DirEntry>| {
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        };
        tasks.filter_map(nanos).sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.status.is_none() {
            // It may have ended by itself.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
        if thread::panicking() {
            eprintln!("--- {}", self.command);
            for line in self.log() {
                eprintln!("  | {line}");
            }
            if let Some(status) = self.status {
                let signal = status.signal().map(|signal| format!(" (signal {signal})")).unwrap_or_default();
                eprintln!("--- {status}{signal}");
            }
        }
    }
}
