//! The two servers: how they are built, started, watched from outside and, on every way out, ended.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddrV4;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::rc::Rc;
use std::thread::sleep;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::stats::Side;
use crate::{Doing as _, Failure, Result, now};

/// How long a server may take to come up or to come to rest.
const CEILING: Duration = Duration::from_secs(20);

/// Enough for every case; the daemon's defaults are limits for strangers, not for a bench.
const CONFIG: &str = r#"
[service]
workers = 1

[limits]
connections = 16000
connections_per_source = 0
buffer_memory = "256MiB"
"#;

/// The kind of socket a case runs over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transport {
    /// TCP over the loopback interface.
    Tcp,
    /// A Unix stream socket.
    Unix,
}

impl Transport {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Tcp, Self::Unix];

    /// As it is written in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// An address of the loopback interface.
    Tcp(SocketAddrV4),
    /// The path of a socket.
    Unix(PathBuf),
}

impl Address {
    /// Takes the address out of a ready line: `… listening on tcp:127.0.0.1:40123 …`.
    fn in_log(log: &str) -> Option<Self> {
        let (_, rest) = log.split_once("listening on ")?;
        let (line, _) = rest.split_once('\n')?;
        let word = line.split_whitespace().next()?.trim_end_matches([',', ';', '"']);
        match word.split_once(':')? {
            ("tcp", address) => address.parse().ok().map(Self::Tcp),
            ("unix", path) => Some(Self::Unix(path.into())),
            _ => None,
        }
    }
}

/// The CPUs of the server and of the load. They are the same one on a machine that has no other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    /// Where the servers run.
    pub(crate) server: usize,
    /// Where this program runs.
    pub(crate) load: usize,
}

impl Cpus {
    /// The first two that this process may use.
    pub(crate) fn available() -> Result<Self> {
        let allowed = sched_getaffinity(None).doing("asking for the CPUs of this process")?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
        let server = cpus.next().ok_or_else(|| Failure::new("this process may use no CPU"))?;
        Ok(Self { server, load: cpus.next().unwrap_or(server) })
    }
}

/// Pins the calling thread, and with it the children that it starts from now on.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).doing(format_args!("pinning to CPU {cpu}"))
}

/// The programs to compare, and a directory for their sockets and logs that goes when this goes.
pub(crate) struct Programs {
    reference: PathBuf,
    subject: Subject,
    directory: PathBuf,
    guard: Rc<Guard>,
    cpus: Cpus,
}

/// What is compared with the reference.
pub(crate) enum Subject {
    /// A program that takes the daemon's command line.
    Daemon(PathBuf),
    /// The reference itself: what then differs from 1.00 is noise.
    Reference,
}

impl Programs {
    /// Compiles the reference and makes the directory.
    pub(crate) fn prepare(subject: Subject, cpus: Cpus) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("echoed-bench-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&directory).doing(format_args!("making {}", directory.display()))?;
        let reference = directory.join("epoll");
        let guard = Rc::new(Guard::of(&directory)?);
        let programs = Self { reference, subject, directory, guard, cpus };
        programs.compile()?;
        programs.write("config.toml", CONFIG)?;
        Ok(programs)
    }

    fn compile(&self) -> Result<()> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/reference/epoll.c");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let output = Command::new(&compiler)
            .args(["-O2", "-Wall", "-Wextra", "-std=gnu11", "-pthread", "-o"])
            .args([&self.reference, &source])
            .output()
            .doing(format_args!("starting the C compiler {compiler:?} (CC=)"))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(format_args!("{} does not compile: {errors}", source.display())));
        }
        Ok(())
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, content).doing(format_args!("writing {}", path.display()))
    }

    /// The name of a side in the results.
    pub(crate) fn name(&self, side: Side) -> &str {
        match (side, &self.subject) {
            (Side::Reference, _) => "C epoll",
            (Side::Subject, Subject::Reference) => "C again",
            (Side::Subject, Subject::Daemon(path)) => path.file_name().and_then(|name| name.to_str()).unwrap_or("?"),
        }
    }

    /// The command line of a side. `listen` is missing where the listener is inherited.
    fn command(&self, side: Side, listen: Option<&str>) -> Vec<PathBuf> {
        match (side, &self.subject) {
            (Side::Subject, Subject::Daemon(path)) => {
                let mut words = vec![path.clone(), "--config".into(), self.directory.join("config.toml")];
                words.extend(listen.map(|_| "--listen".into()));
                words.extend(listen.map(PathBuf::from));
                words
            }
            _ => [self.reference.clone()].into_iter().chain(listen.map(PathBuf::from)).collect(),
        }
    }

    /// Starts a server of its own on a free port or path, and waits until it listens.
    pub(crate) fn start(&self, side: Side, transport: Transport) -> Result<Server> {
        let listen = match transport {
            Transport::Tcp => "tcp:127.0.0.1:0".to_owned(),
            Transport::Unix => format!("unix:{}", self.fresh("socket").display()),
        };
        let mut server = self.spawn(&self.command(side, Some(&listen)), listen.clone())?;
        server.wait_for("its line `listening on …`", |server| {
            let address = Address::in_log(&server.log());
            server.address = address.or_else(|| server.address.take());
            server.address.is_some()
        })?;
        Ok(server)
    }

    /// Has `systemd-socket-activate` listen on a Unix socket; it becomes the server at the first connection.
    /// `None` when there is no such program.
    pub(crate) fn activate(&self, side: Side) -> Result<Option<Server>> {
        let socket = self.fresh("socket");
        let mut words = ["systemd-socket-activate", "--fdname=echo", "-l"].map(PathBuf::from).to_vec();
        words.push(socket.clone());
        words.extend(self.command(side, None));
        if !std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(&words[0]).exists())
        {
            return Ok(None);
        }
        let mut server = self.spawn(&words, "systemd-socket-activate".to_owned())?;
        server.address = Some(Address::Unix(socket));
        server.wait_for("systemd-socket-activate to listen", |server| server.log().contains("Listening on"))?;
        server.settle()?;
        Ok(Some(server))
    }

    fn spawn(&self, words: &[PathBuf], what: String) -> Result<Server> {
        let log = self.fresh("log");
        let stderr = File::create(&log).doing(format_args!("making {}", log.display()))?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        pin(self.cpus.server)?;
        let child = command.spawn();
        pin(self.cpus.load)?;
        let child = child.doing(format_args!("starting {}", words[0].display()))?;
        let server = Server { child, guard: Rc::clone(&self.guard), what, log, address: None };
        self.guard.take_on(server.child.id())?;
        Ok(server)
    }

    /// A path in the directory that was not used yet.
    fn fresh(&self, name: &str) -> PathBuf {
        (0_u64..)
            .map(|number| self.directory.join(format!("{name}-{number}")))
            .find(|path| !path.exists())
            .expect("there are more numbers than files")
    }
}

/// A running server. Ends with this value, and with this program however that ends.
pub(crate) struct Server {
    child: Child,
    guard: Rc<Guard>,
    what: String,
    log: PathBuf,
    address: Option<Address>,
}

impl Server {
    /// Where it listens.
    pub(crate) fn address(&self) -> &Address {
        self.address.as_ref().expect("a server is handed out when its address is known")
    }

    /// Waits until it has nothing more to do, and returns the CPU time of all its threads so far, in nanoseconds.
    ///
    /// The kernel brings the CPU time of a thread up to date when the thread goes to sleep; until then the figure
    /// may be tens of milliseconds old. So there is no other way to ask for it than after a rest.
    pub(crate) fn settle(&mut self) -> Result<u64> {
        let (mut last, mut unchanged) = (0, 0);
        self.wait_for("it to come to rest", |server| {
            let spent = server.cpu_nanoseconds_if_asleep();
            unchanged = if spent.is_some_and(|spent| spent.abs_diff(last) < 20_000) { unchanged + 1 } else { 0 };
            last = spent.unwrap_or(last);
            unchanged == 3
        })?;
        Ok(last)
    }

    /// `None` while a thread is running, or when it has ended in between.
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

    /// Its memory as the kernel sees it.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path).doing(format_args!("reading {path}"))?;
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

    /// The number of its open descriptors.
    pub(crate) fn open_files(&self) -> Result<usize> {
        let path = format!("/proc/{}/fd", self.child.id());
        Ok(fs::read_dir(&path).doing(format_args!("reading {path}"))?.count())
    }

    fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn wait_for(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) -> Result<()> {
        let start = now();
        while !condition(self) {
            let end = match self.child.try_wait().doing("waiting for a child")? {
                Some(status) => format!("ended ({status})"),
                None if now() - start > CEILING => format!("was not there after {} s", CEILING.as_secs()),
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
        if let Err(failure) = self.guard.let_go(self.child.id()) {
            eprintln!("{failure}");
        }
        end(&mut self.child);
    }
}

/// What a process keeps in memory, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// All that is resident.
    pub(crate) resident: u64,
    /// What is not backed by a file: heap, stacks and whatever else is its own alone.
    pub(crate) anonymous: u64,
}

/// A shell that cleans up when this program is gone, however it went: it then reads the end of its input.
struct Guard {
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

    fn of(directory: &Path) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", Self::SCRIPT]).arg(directory).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut shell = command.spawn().doing("starting sh")?;
        let orders = shell.stdin.take();
        Ok(Self { shell, orders })
    }

    fn take_on(&self, pid: u32) -> Result<()> {
        self.order(format_args!("+ {pid}"))
    }

    /// From now on the process may go, and its ID may become another's.
    fn let_go(&self, pid: u32) -> Result<()> {
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

fn end(child: &mut Child) {
    // There is nobody left to tell: it is gone already, or it is not ours.
    drop(child.kill());
    drop(child.wait());
}
