//! The candidates to compare, and how they are started.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use crate::address::{Address, Transport};
use crate::candidates::{Candidate, OtherServer, installed};
use crate::cleanup::CleanupShell;
use crate::cpus::{Cpus, pin};
use crate::server::Server;
use crate::{Context as _, Result};

/// Limits that are large enough for every case; the daemon's defaults are for production, not for a bench.
const CONFIG: &str = r#"
[limits]
connections = 16000
connections_per_source = 0
datagrams_per_source = "off"
buffer_memory = "256MiB"

[service]
"#;

/// The program that is compared with the reference first.
pub(crate) enum Subject {
    /// A program that takes the daemon's command line.
    Daemon(PathBuf),
    /// The reference itself: what then differs from 1.00 is noise.
    Reference,
}

/// The programs to compare, and a directory for their sockets and logs that goes when this goes.
pub(crate) struct Programs {
    /// The reference first.
    candidates: Vec<Candidate>,
    /// How many of them are measured in all sections. The daemon that is linked statically comes after them: it differs at its
    /// start and at rest.
    common: usize,
    /// Why others are missing, a sentence each.
    pub(crate) missing: Vec<String>,
    directory: PathBuf,
    cleanup: Rc<CleanupShell>,
    /// Which CPU does what.
    pub(crate) cpus: Cpus,
}

impl Programs {
    /// Makes the directory and builds all that is to be compared.
    pub(crate) fn prepare(
        subject: Subject,
        static_daemon: Option<PathBuf>,
        others: &[&(&str, OtherServer)],
        cpus: Cpus,
    ) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("echoed-bench-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&directory).context(format_args!("making {}", directory.display()))?;
        let cleanup = Rc::new(CleanupShell::start(&directory)?);
        let reference = Candidate::reference(&directory)?;
        let subject = match subject {
            Subject::Daemon(program) => Candidate::daemon(program),
            Subject::Reference => reference.duplicate(),
        };
        let mut candidates = vec![reference, subject];
        let mut missing = Vec::new();
        for &&(name, other) in others {
            match Candidate::other(other, &directory) {
                Ok(candidate) => candidates.push(candidate),
                Err(why) => missing.push(format!("{name}: {why}")),
            }
        }
        let common = candidates.len();
        match static_daemon {
            Some(program) if program.exists() => candidates.push(Candidate::static_daemon(program)),
            Some(program) => missing.push(format!("echoed, static: there is no {}", program.display())),
            None => {}
        }
        Ok(Self { candidates, common, missing, directory, cleanup, cpus })
    }

    /// Returns how many candidates are measured in all sections; they are identified by their index, and 0 is the reference.
    pub(crate) fn count(&self) -> usize {
        self.common
    }

    /// Returns how many there are at the start and at rest: the first are those of all sections.
    pub(crate) fn count_at_start(&self) -> usize {
        self.candidates.len()
    }

    /// Returns the name of a candidate in the results.
    pub(crate) fn name(&self, candidate: usize) -> &str {
        &self.candidates[candidate].name
    }

    /// Returns the names of those that are measured in all sections.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.candidates[..self.common].iter().map(|candidate| &*candidate.name).collect()
    }

    /// Returns the daemon, unless the reference is compared with itself.
    pub(crate) fn daemon(&self) -> Option<&Candidate> {
        self.candidates.get(1).filter(|candidate| candidate.is_daemon())
    }

    /// Returns the directory for the files of a benchmark.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the command line of a candidate. `listen` is `None` if it inherits the listener.
    fn command(&self, candidate: &Candidate, listen: Option<&str>, threads: usize) -> Result<Vec<PathBuf>> {
        let config = self.directory.join(format!("config-{threads}.toml"));
        let settings = format!("{CONFIG}workers = {threads}\n");
        fs::write(&config, settings).context(format_args!("writing {}", config.display()))?;
        Ok(candidate.command(listen, threads, &config))
    }

    /// Starts a server of its own on a free port or path, and waits until it listens.
    pub(crate) fn start(&self, candidate: usize, transport: Transport) -> Result<Server> {
        self.start_on(candidate, transport, &[self.cpus.server])
    }

    /// Starts a server as [`Self::start`] does, with a worker for each of these CPUs.
    pub(crate) fn start_on(&self, candidate: usize, transport: Transport, cpus: &[usize]) -> Result<Server> {
        self.start_candidate(&self.candidates[candidate], transport, cpus)
    }

    /// Starts a server as [`Self::start_on`] does.
    pub(crate) fn start_candidate(
        &self,
        candidate: &Candidate,
        transport: Transport,
        cpus: &[usize],
    ) -> Result<Server> {
        let (kind, path) = match transport {
            Transport::Tcp => ("tcp", None),
            Transport::Udp => ("udp", None),
            Transport::Unix => ("unix", Some(self.unused_path("socket"))),
            Transport::Unixgram | Transport::UnixgramPath => ("unixgram", Some(self.unused_path("socket"))),
            Transport::Seqpacket => ("seqpacket", Some(self.unused_path("socket"))),
        };
        let place = path.map_or_else(|| "127.0.0.1:0".to_owned(), |path| path.display().to_string());
        let listen = format!("{kind}:{place}");
        let words = self.command(candidate, Some(&listen), cpus.len())?;
        let mut server = self.spawn_on(&words, candidate.name.clone(), cpus)?;
        server.wait_for_address()?;
        Ok(server)
    }

    /// Starts a server that takes over one socket or two at `address`, as from a service manager, and has workers for as many as
    /// these CPUs.
    pub(crate) fn start_with_sockets(
        &self,
        candidate: &Candidate,
        first: OwnedFd,
        second: Option<OwnedFd>,
        address: Address,
        cpus: &[usize],
    ) -> Result<Server> {
        // The sockets come as stdin and stdout, and go where sd_listen_fds(3) has them.
        const SCRIPT: &str = r#"exec 3<&0 4<&1 </dev/null >/dev/null
            export LISTEN_PID=$$
            exec "$0" "$@""#;
        let names = if second.is_some() { "echo:echo" } else { "echo" };
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT]).args(self.command(candidate, None, cpus.len())?);
        command.env("LISTEN_FDS", names.split(':').count().to_string()).env("LISTEN_FDNAMES", names);
        // Without the second one, descriptor 4 is /dev/null, which is not passed.
        command.stdin(first).stdout(second.map_or_else(Stdio::null, Stdio::from));
        let mut server = self.spawn_command(command, candidate.name.clone(), cpus)?;
        server.wait_until_listening(address, |server| server.log().contains("listening on"))?;
        Ok(server)
    }

    /// Has `systemd-socket-activate` listen on a Unix socket; it becomes the server at the first connection.
    /// `None` when there is no such program.
    pub(crate) fn activate(&self, candidate: usize) -> Result<Option<Server>> {
        let socket = self.unused_path("socket");
        let mut words = ["systemd-socket-activate", "--fdname=echo", "-l"].map(PathBuf::from).to_vec();
        words.push(socket.clone());
        words.extend(self.command(&self.candidates[candidate], None, 1)?);
        if !installed("systemd-socket-activate") {
            return Ok(None);
        }
        let mut server = self.spawn(&words, "systemd-socket-activate".to_owned())?;
        server.wait_until_listening(Address::Unix(socket), |server| server.log().contains("Listening on"))?;
        server.wait_until_idle()?;
        Ok(Some(server))
    }

    /// Starts any program on the CPU of the servers.
    pub(crate) fn spawn(&self, words: &[PathBuf], what: String) -> Result<Server> {
        self.spawn_on(words, what, &[self.cpus.server])
    }

    fn spawn_on(&self, words: &[PathBuf], what: String, cpus: &[usize]) -> Result<Server> {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        self.spawn_command(command, what, cpus)
    }

    fn spawn_command(&self, mut command: Command, what: String, cpus: &[usize]) -> Result<Server> {
        let log = self.unused_path("log");
        command.stderr(File::create(&log).context(format_args!("making {}", log.display()))?);
        pin(cpus)?;
        let child = command.spawn();
        pin(&[self.cpus.load])?;
        let child = child.context(format_args!("starting {}", command.get_program().to_string_lossy()))?;
        Server::new(child, &self.cleanup, what, log)
    }

    /// Returns a path in the directory that is not used yet.
    pub(crate) fn unused_path(&self, name: &str) -> PathBuf {
        (0_u64..)
            .map(|number| self.directory.join(format!("{name}-{number}")))
            .find(|path| !path.exists())
            .expect("there are more numbers than files")
    }
}
