//! What the daemon is told to do: [`Settings`], checked and complete. Nothing in here is optional that has a default,
//! and no value can be nonsense once it is here.
//!
//! They come from a TOML document, which [`read`](mod@read) checks as a whole: every problem in it is reported, each
//! with its place ([`diagnose`]).

pub mod diagnose;
pub mod read;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::protocol::Rules;
use diagnose::Report;

/// All settings of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How much is logged.
    pub log_level: Level,
    /// The process.
    pub service: Service,
    /// What all connections together may use.
    pub limits: Limits,
    /// What listeners without a section of their own obey.
    pub defaults: Listener,
    /// The sections `[listener.NAME]`, complete.
    pub listeners: BTreeMap<String, Listener>,
}

/// Settings of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Threads that serve connections; 0: one per CPU this process may use, 8 at most.
    pub workers: usize,
    /// How long owed replies may take when the daemon stops.
    pub drain: Duration,
    /// After how long without a connection the daemon ends.
    pub idle_exit: Option<crate::protocol::rules::Span>,
}

/// What all connections together may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. When reached, the rest waits in the kernel's backlog.
    pub connections: usize,
    /// Connections of one source at once: one IPv4 address, one IPv6 /64, one UID on a Unix socket; 0: no limit.
    /// Loopback addresses are exempt.
    pub connections_per_source: u32,
    /// Bytes of unfinished messages and unsent replies of all connections together.
    pub buffer_memory: usize,
}

/// The settings of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where to listen when no socket is handed over.
    pub listen: Vec<Address>,
    /// The rules of its conversations.
    pub rules: Arc<Rules>,
    /// TCP_NODELAY: replies are not held back for more of them.
    pub nodelay: bool,
    /// SO_RCVBUF in bytes; `None`: the kernel's default, which adapts.
    pub receive_buffer: Option<usize>,
    /// SO_SNDBUF in bytes; `None`: the kernel's default, which adapts.
    pub send_buffer: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            log_level: Level::Info,
            service: Service {
                workers: 0,
                drain: Duration::from_secs(5),
                idle_exit: Some(crate::protocol::rules::Span::new(Duration::from_secs(300), "5min")),
            },
            limits: Limits { connections: 4096, connections_per_source: 256, buffer_memory: 64 * 1024 * 1024 },
            defaults: Listener {
                listen: Vec::new(),
                rules: Arc::default(),
                nodelay: true,
                receive_buffer: None,
                send_buffer: None,
            },
            listeners: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// The settings in a file.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong: then all of it is reported.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.into(), source })?;
        read::settings(&text).map_err(|problems| Error::Wrong(Report::new(path, &text, &problems)))
    }

    /// Refuses settings in the environment (`ECHOED_SECTION__KEY`), which are not read yet and must not seem to be.
    ///
    /// # Errors
    /// There is one among `names`.
    pub fn refuse_environment(names: impl Iterator<Item = OsString>) -> Result<(), Error> {
        for name in names {
            let name = name.to_string_lossy();
            if name.starts_with("ECHOED_") && name.contains("__") {
                return Err(Error::Environment(name.into_owned()));
            }
        }
        Ok(())
    }

    /// Keys that differ and hold only after a restart.
    #[must_use]
    pub fn needs_restart(&self, _new: &Self) -> Vec<String> {
        Vec::new()
    }

    /// The settings of the listener of this name: those of its section, else the defaults.
    #[must_use]
    pub fn listener(&self, name: &str) -> &Listener {
        self.listeners.get(name).unwrap_or(&self.defaults)
    }
}

impl Service {
    /// How many threads serve connections: at least 1.
    #[must_use]
    pub fn worker_threads(&self) -> usize {
        if self.workers > 0 {
            return self.workers;
        }
        std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(8))
    }
}

/// Names of sockets that are not echo listeners.
pub const RESERVED_NAMES: [&str; 2] = ["metrics", "parcel"];

/// Whether `name` can name a listener: letters, digits and `_ . @ -`, at least one.
#[must_use]
pub fn is_listener_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.@-".contains(&byte))
}

/// How much is logged: what is as urgent as the level, or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something failed that somebody has to see to.
    Error,
    /// Something is not as it should be; the message says what is done instead.
    Warn,
    /// What happens to the daemon, and peers that broke a rule.
    Info,
    /// Every connection.
    Debug,
    /// Everything.
    Trace,
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let levels = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];
        let found = levels.into_iter().find(|level| level.to_string() == text);
        found.ok_or_else(|| "write one of error, warn, info, debug, trace".to_owned())
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

/// Why there are no settings.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    Unreadable {
        /// Which file.
        path: Box<Path>,
        /// Why.
        source: std::io::Error,
    },
    /// Something in the file is wrong.
    Wrong(Report),
    /// A setting in the environment, which is not read yet.
    Environment(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, source } => {
                write!(f, "cannot read the configuration {}: {source}", path.display())
            }
            Self::Wrong(report) => report.fmt(f),
            Self::Environment(name) => write!(
                f,
                "{}: settings from the environment are not built yet in this version of echoed; unset it",
                name.escape_debug()
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Wrong(_) | Self::Environment(_) => None,
        }
    }
}
