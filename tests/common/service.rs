//! A service as systemd runs it: its sockets and its store stay while its processes come and go.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::service_manager::{activated_command, activated_command_with_many};
use crate::{Daemon, Peer, ServiceManager};

/// What the unit says about the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdStore {
    /// `FileDescriptorStoreMax=0`.
    Disabled,
    /// `FileDescriptorStoreMax=8`.
    Enabled,
}

/// A service with one of its processes.
pub struct Service {
    /// The service manager, which has the store.
    pub manager: ServiceManager,
    /// The process that runs now.
    pub daemon: Daemon,
    /// Each with the name of its listener.
    sockets: Vec<(String, OwnedFd)>,
    /// Of the sockets, in their order.
    addresses: Vec<String>,
    store: FdStore,
    starts: usize,
    _directory: TempDir,
}

impl Service {
    /// One on a TCP socket named `echo`.
    pub fn start(configuration: &str) -> Self {
        Self::start_on(&["tcp:echo"], FdStore::Enabled, configuration)
    }

    /// One on `tcp:NAME`, `unix:NAME`, `seqpacket:NAME` and `unixgram:NAME`; two at most.
    pub fn start_on(sockets: &[&str], store: FdStore, configuration: &str) -> Self {
        Self::start_on_with(sockets, store, configuration, |_| {})
    }

    /// The same, with something more for its command.
    pub fn start_on_with(
        sockets: &[&str],
        store: FdStore,
        configuration: &str,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let (mut bound, mut addresses) = (Vec::new(), Vec::new());
        for (number, wanted) in sockets.iter().enumerate() {
            let (kind, name) = wanted.split_once(':').expect("it says what");
            let socket: OwnedFd = if kind == "tcp" {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
                addresses.push(format!("tcp:{}", listener.local_addr().expect("it has one")));
                listener.into()
            } else {
                let path = directory.path().join(number.to_string());
                addresses.push(format!("{kind}:{}", path.display()));
                match kind {
                    "seqpacket" => listen_seqpacket(&path),
                    "unixgram" => UnixDatagram::bind(path).expect("the path is free").into(),
                    _ => UnixListener::bind(path).expect("the path is free").into(),
                }
            };
            bound.push((name.to_owned(), socket));
        }
        let manager = ServiceManager::start();
        let daemon = spawn_process(&manager, &bound, store, configuration, change);
        Self { manager, daemon, sockets: bound, addresses, store, starts: 1, _directory: directory }.wait_until_ready()
    }

    /// Waits until the process is ready.
    fn wait_until_ready(self) -> Self {
        self.manager.expect_times("READY=1", self.starts);
        self
    }

    /// The address of one of its sockets.
    pub fn address(&self, number: usize) -> &str {
        &self.addresses[number]
    }

    /// A connection to the first of its sockets.
    pub fn connect(&self) -> Peer {
        self.connect_to(0)
    }

    /// A connection to one of its sockets.
    pub fn connect_to(&self, number: usize) -> Peer {
        Peer::connect(&self.addresses[number])
    }

    /// The socket of this name is no more.
    pub fn remove_socket(&mut self, name: &str) {
        self.sockets.retain(|(socket, _)| socket != name);
    }

    /// As `systemctl restart` does it. Returns the log of the process that ended.
    pub fn restart(&mut self, configuration: &str) -> Vec<String> {
        let log = self.stop(Signal::TERM);
        self.start_next(configuration);
        log
    }

    /// Ends the process, and returns its log.
    pub fn stop(&mut self, signal: Signal) -> Vec<String> {
        self.daemon.signal(signal);
        let status = self.daemon.wait();
        assert!(status.success(), "{status}; its log: {:#?}", self.daemon.log());
        self.daemon.log()
    }

    /// Starts the next process, and waits until it is ready.
    pub fn start_next(&mut self, configuration: &str) {
        self.start_next_with(configuration, |_| {});
    }

    /// The same, with something more for its command.
    pub fn start_next_with(&mut self, configuration: &str, change: impl FnOnce(&mut Command)) {
        self.spawn_next_with(configuration, change);
        self.starts += 1;
        self.manager.expect_times("READY=1", self.starts);
    }

    /// Starts the next process, which is not to become ready.
    pub fn spawn_next_with(&mut self, configuration: &str, change: impl FnOnce(&mut Command)) {
        self.daemon = spawn_process(&self.manager, &self.sockets, self.store, configuration, change);
    }
}

fn listen_seqpacket(path: &Path) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("there are such sockets");
    bind(&socket, &SocketAddrUnix::new(path).expect("it is short")).expect("the path is free");
    listen(&socket, 10).expect("it can listen");
    socket
}

fn spawn_process(
    manager: &ServiceManager,
    sockets: &[(String, OwnedFd)],
    store: FdStore,
    configuration: &str,
    change: impl FnOnce(&mut Command),
) -> Daemon {
    let sockets =
        sockets.iter().map(|(name, socket)| (name.clone(), socket.try_clone().expect("it can be duplicated")));
    let (names, descriptors): (Vec<_>, Vec<_>) = sockets.chain(manager.stored_descriptors()).unzip();
    let names = names.join(":");
    let mut command = match descriptors.len() {
        0..=2 => activated_command("3<&0 4<&1", descriptors, &names),
        _ => activated_command_with_many(&descriptors, &names),
    };
    if store == FdStore::Enabled {
        manager.set_fd_store(&mut command, 8);
    } else {
        manager.set_notify_socket(&mut command);
    }
    change(&mut command);
    Daemon::spawn_with_stdio(&mut command, configuration, &[])
}
