//! A running server, watched from outside, and ended however the bench ends.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::rc::Rc;
use std::thread::sleep;
use std::time::Duration;

use crate::address::Address;
use crate::cleanup::CleanupShell;
use crate::{Context as _, Failure, Result, now};

/// How long a server may take to start or to become idle.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// A running server. Ends with this value, and with this program however that ends.
pub(crate) struct Server {
    child: Child,
    cleanup: Rc<CleanupShell>,
    what: String,
    log: PathBuf,
    address: Option<Address>,
}

impl Server {
    /// Wraps a process that writes its log to `log`, and registers it for cleanup.
    pub(crate) fn new(child: Child, cleanup: &Rc<CleanupShell>, what: String, log: PathBuf) -> Result<Self> {
        let server = Self { child, cleanup: Rc::clone(cleanup), what, log, address: None };
        server.cleanup.register(server.child.id())?;
        Ok(server)
    }

    /// Waits until its log has the address on which it listens.
    pub(crate) fn wait_for_address(&mut self) -> Result<()> {
        self.wait_for("its line `listening on …`", |server| {
            server.address = Address::in_log(&server.log());
            server.address.is_some()
        })
    }

    /// Waits until `ready` returns true, for a server that does not log its address: it listens on `address` then.
    pub(crate) fn wait_until_listening(&mut self, address: Address, ready: impl Fn(&Self) -> bool) -> Result<()> {
        self.address = Some(address);
        self.wait_for("it to listen", |server| ready(server))
    }

    /// Returns the address it listens on.
    pub(crate) fn address(&self) -> &Address {
        self.address.as_ref().expect("a server is handed out when its address is known")
    }

    /// Waits until it is idle, and returns the CPU time of all its threads so far, in nanoseconds.
    ///
    /// The kernel brings the CPU time of a thread up to date when the thread goes to sleep; until then the figure may
    /// be tens of milliseconds old. So it can only be read when the server is idle.
    pub(crate) fn wait_until_idle(&mut self) -> Result<u64> {
        let (mut last, mut unchanged) = (0, 0);
        self.wait_for("it to come to rest", |server| {
            let spent = server.cpu_nanoseconds_if_asleep();
            unchanged = if spent.is_some_and(|spent| spent.abs_diff(last) < 20_000) { unchanged + 1 } else { 0 };
            last = spent.unwrap_or(last);
            unchanged == 3
        })?;
        Ok(last)
    }

    /// Returns the CPU time; `None` while a thread is running, or if it has ended in between.
    fn cpu_nanoseconds_if_asleep(&self) -> Option<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()? {
            let task = task.ok()?.path();
            let stat = fs::read_to_string(task.join("stat")).ok()?;
            // The name before the state is in parentheses, and may have some itself.
            let (_, state) = stat.rsplit_once(") ")?;
            if !state.starts_with('S') {
                return None;
            }
            let schedstat = fs::read_to_string(task.join("schedstat")).ok()?;
            sum += schedstat.split_whitespace().next()?.parse::<u64>().ok()?;
        }
        Some(sum)
    }

    /// Returns its memory as the kernel reports it.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path).context(format_args!("reading {path}"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kibibytes.map(|kib| kib * 1024).ok_or_else(|| Failure::new(format_args!("{path} has no field {name}")))
        };
        Ok(Memory { resident: field("Rss:")?, anonymous: field("Anonymous:")? })
    }

    /// Waits until it has at least so many descriptors open.
    pub(crate) fn wait_for_open_files(&mut self, least: usize) -> Result<()> {
        self.wait_for("its connections", |server| server.open_files().is_ok_and(|open| open >= least))
    }

    /// Returns the number of its open descriptors.
    pub(crate) fn open_files(&self) -> Result<usize> {
        let path = format!("/proc/{}/fd", self.child.id());
        Ok(fs::read_dir(&path).context(format_args!("reading {path}"))?.count())
    }

    /// Returns what it has written to stderr so far.
    pub(crate) fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn wait_for(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) -> Result<()> {
        let start = now();
        while !condition(self) {
            let end = match self.child.try_wait().context("waiting for a child")? {
                Some(status) => format!("ended ({status})"),
                None if now() - start > MAX_WAIT => format!("was not there after {} s", MAX_WAIT.as_secs()),
                None => {
                    sleep(Duration::from_millis(1));
                    continue;
                }
            };
            let log = self.log();
            return Err(Failure::new(format_args!("{}: waiting for {what}: {end}; its log:\n{log}", self.what)));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(failure) = self.cleanup.unregister(self.child.id()) {
            eprintln!("{failure}");
        }
        kill_and_wait(&mut self.child);
    }
}

/// The memory of a process, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// All that is resident.
    pub(crate) resident: u64,
    /// Memory that is not backed by a file: heap, stacks and other private memory.
    pub(crate) anonymous: u64,
}

fn kill_and_wait(child: &mut Child) {
    // Errors are ignored: the process is gone already, or it is not ours.
    drop(child.kill());
    drop(child.wait());
}
