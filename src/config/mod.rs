//! The settings of the daemon: [`Settings`], checked and complete. Nothing in here is optional that has a default, and
//! no value can be nonsense once it is here.
//!
//! They come from [`Sources`]: files, variables of the environment, options. Each of these is a layer (`layers`), which
//! is a `tree` of values with their spans. It is checked by itself (`read`), so that a problem is shown where it is
//! (`diagnose`); then all are merged (`merge`), and what is wrong only with all of them together is looked for
//! (`conflicts`). Every problem is reported, not only the first; `advice` warns about what may be one. `print` is the
//! way back, from settings to a document. What a key takes is in `keys`.

mod advice;
mod conflicts;
mod diagnose;
mod keys;
mod layers;
mod level;
mod merge;
mod notation;
mod print;
mod read;
mod role;
mod section;
mod sources;
mod tree;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::protocol::Rules;
use crate::protocol::rules::TimeSpan;

pub use diagnose::Error;
pub use level::Level;
pub use role::{Role, Weight};
pub use sources::{Loaded, Sources};

/// All settings of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How much is logged.
    pub log_level: Level,
    /// The process.
    pub service: Service,
    /// The limits on all connections together.
    pub limits: Limits,
    /// The settings of listeners without a section of their own.
    pub defaults: ListenerSettings,
    /// The sections `[listener.NAME]`, complete.
    pub listeners: BTreeMap<String, ListenerSettings>,
}

/// Settings of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Threads that serve connections; 0: one per CPU this process may use, 8 at most.
    pub workers: usize,
    /// How long the daemon stays without a connection, where systemd holds its sockets and starts it again; `None`: as
    /// long as it is not stopped.
    pub idle_exit: Option<TimeSpan>,
    /// How long the daemon goes on serving before a stop that drains, while load balancers are told to send new clients
    /// elsewhere.
    pub lame_duck: TimeSpan,
    /// How long connections are drained when the daemon stops.
    pub drain_timeout: TimeSpan,
    /// Whether live connections are handed over to the next process at a restart, if the service manager can store them
    /// meanwhile.
    pub handover: bool,
}

/// The limits on all connections together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. When reached, the rest waits in the kernel's backlog.
    pub connections: usize,
    /// Connections of one source at once: one IPv4 address, one IPv6 /64, one UID on a Unix socket; 0: no limit.
    /// Loopback addresses are exempt.
    pub connections_per_source: u32,
    /// How long a connection has to be idle before it may be closed for a client that waits while `connections` is
    /// reached, unless one source holds more than half of all connections; `None`: none is closed for that.
    pub reclaim_idle: Option<TimeSpan>,
    /// Bytes of partial messages and unsent replies of all connections together.
    pub buffer_memory: usize,
    /// Datagrams of one source that are answered in a second: one IPv4 address, one IPv6 /64, one UID on a Unix socket;
    /// `None`: no limit.
    pub datagrams_per_source: Option<u32>,
}

/// The settings of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSettings {
    /// The addresses to listen on if the service manager passes no socket.
    pub listen: Vec<Address>,
    /// What its connections are for. The settings below are those of messages.
    pub role: Role,
    /// What the agent answers.
    pub weight: Weight,
    /// The rules of its sessions.
    pub rules: Arc<Rules>,
    /// Whether a PROXY header, version 1 or 2, starts every connection.
    pub proxy_protocol: bool,
    /// TCP_NODELAY: replies are not held back for more of them.
    pub nodelay: bool,
    /// SO_RCVBUF.
    pub receive_buffer: BufferSize,
    /// SO_SNDBUF.
    pub send_buffer: BufferSize,
}

/// The size of a buffer that the kernel has for each socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferSize {
    /// What the kernel gives the socket, and of TCP adapts; but the send buffer of a TCP socket is small, unless the socket
    /// came with a size of its own.
    Default,
    /// What the kernel adapts it to, up to net.ipv4.tcp_rmem and net.ipv4.tcp_wmem (tcp(7)).
    Auto,
    /// So many bytes, which the kernel doubles for what it keeps beside them (socket(7)).
    Bytes(usize),
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            log_level: Level::Info,
            service: Service {
                workers: 0,
                idle_exit: Some(TimeSpan::new(Duration::from_secs(300), "5min")),
                lame_duck: TimeSpan::new(Duration::ZERO, "0s"),
                drain_timeout: TimeSpan::new(Duration::from_secs(5), "5s"),
                handover: true,
            },
            limits: Limits {
                connections: 4096,
                connections_per_source: 256,
                reclaim_idle: Some(TimeSpan::new(Duration::from_secs(60), "1min")),
                buffer_memory: 64 * 1024 * 1024,
                datagrams_per_source: Some(100),
            },
            defaults: ListenerSettings {
                listen: Vec::new(),
                role: Role::Messages,
                weight: Weight::Constant,
                rules: Arc::default(),
                proxy_protocol: false,
                nodelay: true,
                receive_buffer: BufferSize::Default,
                send_buffer: BufferSize::Default,
            },
            listeners: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// Reads the settings of one document, which is called `name` in problems.
    ///
    /// # Errors
    /// Returns all problems of the document, if it is not TOML or has invalid settings.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, Error> {
        Loaded::from_layers(vec![layers::Layer::from_document(0, name, text)], Vec::new()).map(|loaded| loaded.settings)
    }

    /// Returns a document with every key, from which they can be loaded again.
    #[must_use]
    pub fn to_toml(&self) -> String {
        print::document(self.clone(), |_, _| String::new())
    }

    /// Returns the defaults as a document that explains each key.
    #[must_use]
    pub fn print_default() -> String {
        print::defaults()
    }

    /// Returns the keys in which `new` differs and which apply only after a restart: `service.workers`,
    /// `listener.NAME.listen`, `listener.NAME.role`.
    #[must_use]
    pub fn keys_needing_restart(&self, new: &Self) -> Vec<String> {
        let mut keys = Vec::new();
        if self.service.workers != new.service.workers {
            keys.push("service.workers".to_owned());
        }
        let addresses = |settings: &Self, name: &str| {
            settings.listeners.get(name).map(|listener| listener.listen.clone()).unwrap_or_default()
        };
        let names: BTreeSet<_> = self.listeners.keys().chain(new.listeners.keys()).collect();
        for name in names {
            if addresses(self, name) != addresses(new, name) {
                keys.push(format!("listener.{}.listen", notation::toml_key(name)));
            }
            if self.listener_settings(name).role != new.listener_settings(name).role {
                keys.push(format!("listener.{}.role", notation::toml_key(name)));
            }
        }
        keys
    }

    /// Returns the settings of the listener with this name: those of its section, else the defaults.
    #[must_use]
    pub fn listener_settings(&self, name: &str) -> &ListenerSettings {
        self.listeners.get(name).unwrap_or(&self.defaults)
    }
}

impl Service {
    /// Returns how many threads serve connections: at least 1.
    #[must_use]
    pub fn worker_threads(&self) -> usize {
        if self.workers > 0 {
            return self.workers;
        }
        // std::thread::available_parallelism would also read the quotas of all control groups that the process is in:
        // seventeen files, at each start.
        let cpus = rustix::thread::sched_getaffinity(None).map(|cpus| cpus.count() as usize);
        // More CPUs than the mask has room for.
        cpus.unwrap_or(8).clamp(1, 8)
    }
}

/// Names that no listener can have: those of what is in the fd store.
pub const RESERVED_NAMES: [&str; 2] = ["handover", "stored"];

/// Returns whether `name` is a valid listener name: letters, digits and `_ . @ -`, at least one.
#[must_use]
pub fn is_listener_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.@-".contains(&byte))
}
