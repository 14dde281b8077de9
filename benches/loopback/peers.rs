//! Who is compared with whom, and how each of them is built and started.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{Doing as _, Failure, Result};

/// A kind of server that speaks the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The yardstick.
    Epoll,
    /// A program that takes the daemon's command line.
    Daemon,
}

/// A server to measure.
pub(crate) struct Peer {
    /// As it is called in the results.
    pub(crate) name: String,
    kind: Kind,
    program: PathBuf,
}

impl Peer {
    /// The reference, compiled into this directory.
    pub(crate) fn reference(directory: &Path) -> Result<Self> {
        Ok(Self { name: "C epoll".to_owned(), kind: Kind::Epoll, program: compile("epoll", directory)? })
    }

    /// The reference once more: what then differs from 1.00 is noise.
    pub(crate) fn again(&self) -> Self {
        Self { name: "C again".to_owned(), kind: self.kind, program: self.program.clone() }
    }

    /// A program that takes the daemon's command line.
    pub(crate) fn daemon(program: PathBuf) -> Self {
        let name = program.file_name().map_or_else(|| "?".into(), |name| name.to_string_lossy().into_owned());
        Self { name, kind: Kind::Daemon, program }
    }

    /// Its command line. Without `listen` it inherits the listener. `config` is for a daemon with so many workers.
    pub(crate) fn command(&self, listen: Option<&str>, threads: usize, config: &Path) -> Vec<PathBuf> {
        let mut words = vec![self.program.clone()];
        match self.kind {
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
fn compile(name: &str, directory: &Path) -> Result<PathBuf> {
    let source = source(&format!("{name}.c"));
    let program = directory.join(name);
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(&compiler)
        .args(["-O2", "-Wall", "-Wextra", "-std=gnu11", "-pthread", "-o"])
        .args([&program, &source])
        .output()
        .doing(format_args!("starting the C compiler {compiler:?} (CC=)"))?;
    succeeded(&output, format_args!("compiling {}", source.display()))?;
    Ok(program)
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/reference").join(name)
}

fn succeeded(output: &Output, what: impl fmt::Display) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format_args!("{what}: {}", errors.trim())))
}

/// Whether the search path has a program of this name.
pub(crate) fn installed(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(program).exists())
}
