//! The candidates that are compared, and how each of them is built and started.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{Context as _, Failure, Result, progress};

/// A kind of server that speaks the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The reference.
    Epoll,
    /// A program that takes the daemon's command line.
    Daemon,
    /// A program that takes only an address, and has one thread.
    Plain,
}

/// The other servers, with their names on the command line.
pub(crate) const OTHERS: [(&str, OtherServer); 4] = [
    ("level", OtherServer::Level),
    ("uring", OtherServer::Uring),
    ("codec", OtherServer::Codec),
    ("go", OtherServer::Go),
];

/// Another server that speaks the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OtherServer {
    /// The reference, level-triggered: where that is cheaper, it is nearer to the limit.
    Level,
    /// `benches/reference/uring.c`.
    Uring,
    /// tokio with tokio-util's codec: this program, started with `--serve codec`.
    Codec,
    /// `benches/reference/echo.go`.
    Go,
}

/// The other servers of packets, with their names on the command line.
pub(crate) const PACKET_SERVERS: [(&str, PacketServer); 2] =
    [("single", PacketServer::Single), ("datagrams", PacketServer::Datagrams)];

/// Another server of packets that speaks the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PacketServer {
    /// `benches/reference/packets.c` with a call for each packet.
    Single,
    /// tokio's sockets of datagrams: this program, started with `--serve datagrams`.
    Datagrams,
}

/// A server to measure.
#[derive(Clone)]
pub(crate) struct Candidate {
    /// Its name in the results.
    pub(crate) name: String,
    kind: Kind,
    program: PathBuf,
    arguments: &'static [&'static str],
}

impl Candidate {
    /// Compiles the reference into this directory.
    pub(crate) fn reference(directory: &Path) -> Result<Self> {
        Ok(Self {
            name: "C epoll".to_owned(),
            kind: Kind::Epoll,
            program: compile("epoll", directory)?,
            arguments: &[],
        })
    }

    /// Returns the reference once more: any difference from 1.00 is noise then.
    pub(crate) fn duplicate(&self) -> Self {
        Self { name: "C again".to_owned(), kind: self.kind, program: self.program.clone(), arguments: &[] }
    }

    /// Returns a program with one thread, which takes these arguments and an address.
    pub(crate) fn plain(name: &str, program: PathBuf, arguments: &'static [&'static str]) -> Self {
        Self { name: name.to_owned(), kind: Kind::Plain, program, arguments }
    }

    /// Returns the path of its program.
    pub(crate) fn program(&self) -> PathBuf {
        self.program.clone()
    }

    /// Returns whether its program takes the daemon's command line.
    pub(crate) fn is_daemon(&self) -> bool {
        self.kind == Kind::Daemon
    }

    /// Returns a program that takes the daemon's command line.
    pub(crate) fn daemon(program: PathBuf) -> Self {
        let name = program.file_name().map_or_else(|| "?".into(), |name| name.to_string_lossy().into_owned());
        Self { name, kind: Kind::Daemon, program, arguments: &[] }
    }

    /// Returns the daemon, linked statically.
    pub(crate) fn static_daemon(program: PathBuf) -> Self {
        Self { name: "echoed, static".to_owned(), kind: Kind::Daemon, program, arguments: &[] }
    }

    /// Builds another server. Fails if this machine lacks something for it.
    pub(crate) fn other(other: OtherServer, directory: &Path) -> Result<Self> {
        let (name, kind, program, arguments): (_, _, _, &[_]) = match other {
            OtherServer::Level => ("C level", Kind::Epoll, compile("epoll", directory)?, &["-l"]),
            OtherServer::Uring => ("C io_uring", Kind::Plain, uring(directory)?, &[]),
            OtherServer::Codec => {
                let program = std::env::current_exe().context("asking for the path of this program")?;
                ("tokio codec", Kind::Plain, program, &["--serve", "codec"])
            }
            OtherServer::Go => ("Go", Kind::Plain, go(directory)?, &[]),
        };
        Ok(Self { name: name.to_owned(), kind, program, arguments })
    }

    /// Returns its command line. Without `listen` it inherits the listener. `config` is for a daemon with this many
    /// workers.
    pub(crate) fn command(&self, listen: Option<&str>, threads: usize, config: &Path) -> Vec<PathBuf> {
        let mut words = vec![self.program.clone()];
        words.extend(self.arguments.iter().map(PathBuf::from));
        match self.kind {
            Kind::Plain => {}
            Kind::Epoll => words.extend(["-t".into(), threads.to_string().into()]),
            Kind::Daemon => {
                words.extend(["--config".into(), config.to_owned()]);
                words.extend(listen.map(|_| "--listen".into()));
            }
        }
        words.extend(listen.map(PathBuf::from));
        words
    }
}

/// Compiles `benches/reference/NAME.c`.
pub(crate) fn compile(name: &str, directory: &Path) -> Result<PathBuf> {
    let source = source(&format!("{name}.c"));
    let program = directory.join(name);
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(&compiler)
        .args(["-O2", "-Wall", "-Wextra", "-std=gnu11", "-pthread", "-o"])
        .args([&program, &source])
        .output()
        .context(format_args!("starting the C compiler {compiler:?} (CC=)"))?;
    succeeded(&output, format_args!("{name}.c does not compile here"))?;
    Ok(program)
}

/// Compiles the server on io_uring, and asks it whether the kernel lets it work.
fn uring(directory: &Path) -> Result<PathBuf> {
    let program = compile("uring", directory)?;
    let output = Command::new(&program).arg("-c").output().context("starting uring")?;
    if output.status.success() {
        return Ok(program);
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format_args!("io_uring is not available here ({})", why.trim())))
}

fn go(directory: &Path) -> Result<PathBuf> {
    if !installed("go") {
        return Err(Failure::new("go is not installed"));
    }
    let program = directory.join("echo-go");
    let output = Command::new("go")
        .args(["build", "-o"])
        .args([&program, &source("echo.go")])
        .env("GO111MODULE", "off")
        .output()
        .context("starting go")?;
    succeeded(&output, "echo.go does not compile here")?;
    Ok(program)
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/reference").join(name)
}

/// Checks the status of a program. Its stderr is shown to the user, and is not part of the results.
fn succeeded(output: &Output, what: impl fmt::Display) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    progress(format_args!("{}", String::from_utf8_lossy(&output.stderr).trim()));
    Err(Failure::new(what))
}

/// Returns whether the search path has a program of this name.
pub(crate) fn installed(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(program).exists())
}
