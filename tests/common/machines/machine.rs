//! A booted machine: what a test does on it, and what is reported when the test fails.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::machines::rootfs::Debian;
use crate::{Peer, TEST_TIMEOUT, now, wait_until};

/// What echoed.socket listens on.
pub const TCP: &str = "tcp:127.0.0.1:8085";
/// The other address that echoed.socket listens on.
pub const UNIX: &str = "unix:/run/echoed.sock";

/// A machine with echoed on it, and systemd up. It is gone with its last reference, without a trace.
pub struct Machine {
    debian: &'static Debian,
    name: String,
    /// `machine.sh`, which runs as long as its input does not end.
    script: Child,
    /// Its systemd, as this side sees it.
    systemd: u32,
}

/// How a command ended.
#[derive(Debug)]
pub struct CommandResult {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to stdout and stderr.
    pub output: String,
}

impl Machine {
    /// Boots it, and waits until it is up. Moves the calling thread, and those that it starts, into its network.
    pub fn boot(debian: &'static Debian) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let installed = debian.installed();
        // No name is a part of another.
        let name = format!("echoed-test-{}-{:03}", id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let script = Command::new("sh")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("machines/machine.sh"))
            .arg(&name)
            .args([&installed.root, &installed.layer])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            // A Ctrl-C is for the tests; it cleans up after them.
            .process_group(0)
            .spawn()
            .expect("sh can be started");
        let mut machine = Self { debian, name, script, systemd: 0 };
        machine.systemd = machine.find_systemd();
        wait_until("the machine is up", || {
            let state = machine.run("systemctl is-system-running --wait").output;
            matches!(state.trim(), "running" | "degraded")
        });
        let network = File::open(format!("/proc/{}/ns/net", machine.systemd)).expect("its network can be opened");
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("its network can be entered");
        machine
    }

    /// keeper → unshare → systemd-nspawn → systemd.
    fn find_systemd(&mut self) -> u32 {
        let mut found = self.script.id();
        for name in ["unshare", "systemd-nspawn", "systemd"] {
            let until = now() + TEST_TIMEOUT;
            found = loop {
                if let Some(child) = child_pids(found).into_iter().find(|child| comm(*child) == name) {
                    break child;
                }
                let ended = self.script.try_wait().expect("it is our child");
                assert!(ended.is_none() && now() < until, "the machine did not boot: there is no {name} ({ended:?})");
                thread::sleep(Duration::from_millis(2));
            };
        }
        found
    }

    /// What is booted.
    pub fn debian(&self) -> &'static Debian {
        self.debian
    }

    /// The version of its systemd.
    pub fn version(&self) -> u32 {
        self.debian.installed().systemd
    }

    /// The name of its control groups, which its keeper has on its command line.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The keeper, which sees to it that nothing is left of it.
    pub fn script(&self) -> &Child {
        &self.script
    }

    /// Runs a shell script on it, whatever comes of it.
    pub fn run(&self, script: &str) -> CommandResult {
        let mut child = self.command(script).stdin(Stdio::null()).spawn().expect("nsenter can be started");
        let mut output = Vec::new();
        child.stdout.take().expect("it is piped").read_to_end(&mut output).expect("a pipe can be read");
        let status = child.wait().expect("it is our child");
        CommandResult { code: status.code(), output: String::from_utf8_lossy(&output).into_owned() }
    }

    /// Runs a shell script on it that must succeed. Returns what it said.
    pub fn sh(&self, script: &str) -> String {
        let CommandResult { code, output } = self.run(script);
        assert!(code == Some(0), "{script}\nended with {code:?}:\n{output}");
        output
    }

    /// A shell script to be run on it; stderr goes where stdout goes, into a pipe.
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.systemd.to_string(), "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"])
            .args(["sh", "-c", &format!("exec 2>&1; {script}")])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("SYSTEMD_PAGER", "")
            .env("SYSTEMD_COLORS", "0")
            .current_dir("/")
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        command
    }

    /// Where a file of it is for this side.
    pub fn path(&self, file: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.systemd)).join(file.trim_start_matches('/'))
    }

    /// Writes a file on it, and the directories above it.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("directories can be made");
        fs::write(path, text).expect("files can be written");
    }

    /// Adds to the settings of echoed. They are read with the next start or reload.
    pub fn configure(&self, settings: &str) {
        self.write("/etc/echoed/echoed.toml.d/50-test.toml", settings);
    }

    /// Adds to a unit, as `systemctl edit` does.
    pub fn edit(&self, unit: &str, text: &str) {
        self.write(&format!("/etc/systemd/system/{unit}.d/50-test.conf"), text);
        self.sh("systemctl daemon-reload");
    }

    /// Connects to an address of it: `tcp:127.0.0.1:8085`, `unix:/run/echoed.sock`.
    pub fn connect(&self, address: &str) -> Peer {
        Peer::connect(&self.address(address))
    }

    /// An address of it as this side has to write it.
    pub fn address(&self, address: &str) -> String {
        match address.split_once(":/") {
            Some((scheme, path)) => format!("{scheme}:{}", self.path(path).display()),
            None => address.to_owned(),
        }
    }

    /// A property of a unit, as `systemctl show` says it.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.sh(&format!("systemctl show --value --property={name} '{unit}'")).trim_end().to_owned()
    }

    /// Waits until a property of a unit has this value.
    pub fn wait_for_property(&self, unit: &str, name: &str, value: &str) {
        wait_until(&format!("{name} of {unit} is {value}"), || self.property(unit, name) == value);
    }

    /// Waits until the journal has entries for these arguments of journalctl(1), and returns them.
    pub fn wait_for_journal(&self, arguments: &str) -> String {
        let mut found = String::new();
        wait_until(&format!("the journal has {arguments}"), || {
            let CommandResult { code, output } = self.run(&format!("journalctl --quiet --no-pager {arguments}"));
            found = output;
            code == Some(0) && !found.is_empty()
        });
        found
    }

    /// The process of the service as this side sees it; none while it is not running.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.find_process("echoed")
    }

    /// A process that its systemd started, by its name (which the kernel cuts after 15 bytes), as this side sees it.
    pub fn find_process(&self, name: &str) -> Option<u32> {
        child_pids(self.systemd).into_iter().find(|child| comm(*child) == name)
    }

    /// Has a process that its systemd started do nothing until the result is dropped.
    pub fn suspend(&self, name: &str) -> SuspendedProcess {
        let process = self.find_process(name).unwrap_or_else(|| panic!("{name} is not running"));
        let suspended = SuspendedProcess(Pid::from_raw(process.try_into().expect("it is small")).expect("it is not 0"));
        kill_process(suspended.0, Signal::STOP).expect("we are root");
        wait_until("each of its threads has stopped", || {
            thread_states(process).iter().all(|state| state.starts_with('T'))
        });
        suspended
    }

    /// Its systemd as this side sees it.
    pub fn systemd_pid(&self) -> u32 {
        self.systemd
    }

    /// A process as the machine itself sees it.
    pub fn pid_inside(&self, process: u32) -> u32 {
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("the kernel knows namespaces");
        numbers.split_whitespace().next_back().and_then(|number| number.parse().ok()).expect("a number")
    }

    /// Kills the process of the service, and waits until it is gone.
    pub fn kill_daemon(&self) {
        let process = self.daemon_pid();
        assert!(process.is_some(), "the service is not running");
        self.sh("systemctl kill --kill-whom=main --signal=KILL echoed.service");
        wait_until("the process is gone", || self.daemon_pid() != process);
    }

    /// What helps to find out why a test failed.
    pub fn report(&self) -> String {
        let mut report = String::new();
        for script in [
            "systemctl status --full --lines=0 'echoed*'",
            "systemctl --failed --no-legend",
            "journalctl --no-pager --output=short-precise --lines=300 _COMM=echoed + _PID=1",
            "ps -e -o pid,stat,args",
        ] {
            let _ = writeln!(report, "--- {script}\n{}", self.run(script).output);
        }
        report
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

/// A process that does nothing until this is dropped.
pub struct SuspendedProcess(Pid);

impl Drop for SuspendedProcess {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// The states of a process's threads, as proc_pid_status(5) has them.
fn thread_states(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let statuses = tasks.map(|task| fs::read_to_string(task.expect("it runs").path().join("status")).expect("it runs"));
    let state = |status: String| status.lines().find_map(|line| line.strip_prefix("State:\t").map(str::to_owned));
    statuses.map(|status| state(status).expect("each has one")).collect()
}

fn child_pids(process: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

fn comm(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim_end().to_owned()
}
