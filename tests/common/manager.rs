//! What stands in for systemd: it hands over sockets ([`hand_over`]), and listens to what it is told ([`Manager`]).

use std::cell::RefCell;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Command, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::CEILING;

/// Takes its place and its number from the shell that runs this. The sockets lie in its stdin and stdout.
const SCRIPT: &str = r#"exec REDIRECTIONS
exec </dev/null >&2
export LISTEN_PID="${LISTEN_PID-$$}"
exec "$0" "$@""#;

/// A command that becomes the daemon, with descriptors handed over as by systemd (sd_listen_fds(3)): as many as there
/// are `names`, parted by colons. Where they come from is said in `redirections`, as a shell writes them: `3<&0 4<&1`;
/// descriptors 0 and 1 are the first two of `sockets`. What is in the environment can be changed afterwards, also
/// `LISTEN_PID`.
pub fn hand_over(redirections: &str, sockets: Vec<OwnedFd>, names: &str) -> Command {
    assert!(sockets.len() <= 2, "there are only two places");
    let mut sockets = sockets.into_iter().map(Stdio::from);
    let mut command = Command::new("sh");
    command.arg("-c").arg(SCRIPT.replace("REDIRECTIONS", redirections)).arg(env!("CARGO_BIN_EXE_echoed"));
    command.stdin(sockets.next().unwrap_or_else(Stdio::null)).stdout(sockets.next().unwrap_or_else(Stdio::null));
    command.env_remove("LISTEN_PID").env("LISTEN_FDS", names.split(':').count().to_string());
    command.env("LISTEN_FDNAMES", names).env_remove("NOTIFY_SOCKET");
    command
}

/// Somebody at `NOTIFY_SOCKET`.
pub struct Manager {
    socket: UnixDatagram,
    /// What `NOTIFY_SOCKET` is set to.
    address: String,
    /// Each assignment that it was told.
    told: RefCell<Vec<String>>,
    _directory: TempDir,
}

impl Manager {
    /// One with a path.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("the path is free");
        Self::with(socket, path.to_str().expect("it is text").to_owned(), directory)
    }

    /// One with a name in the abstract namespace.
    pub fn start_abstract() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("echoed-test-{}-{}", id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(&name).expect("it is short");
        let socket = UnixDatagram::bind_addr(&address).expect("the name is free");
        Self::with(socket, format!("@{name}"), tempfile::tempdir().expect("a directory can be made"))
    }

    fn with(socket: UnixDatagram, address: String, directory: TempDir) -> Self {
        socket.set_read_timeout(Some(CEILING)).expect("the timeout can be set");
        Self { socket, address, told: RefCell::default(), _directory: directory }
    }

    /// Has a command tell it.
    pub fn watch<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("NOTIFY_SOCKET", &self.address)
    }

    /// Waits until it is told this.
    pub fn expect(&self, assignment: &str) {
        while !self.told.borrow().iter().any(|told| told == assignment) {
            if let Err(error) = self.listen() {
                panic!("{error}, was not told {assignment}, only {:?}", self.told.borrow());
            }
        }
    }

    /// Fills its queue, so that nobody can tell it anything until it listens again.
    pub fn stop_listening(&self) {
        let filler = UnixDatagram::unbound().expect("a socket can be made");
        filler.set_nonblocking(true).expect("it can be");
        filler.connect_addr(&self.socket.local_addr().expect("it has one")).expect("it can be reached");
        let full = loop {
            if let Err(error) = filler.send(b"FILLED=1\n") {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
    }

    /// Everything about the state that it was told, when there will be no more.
    pub fn states(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).expect("it can be");
        while self.listen().is_ok() {}
        let state = |told: &&String| told.starts_with("READY=") || told.starts_with("STOPPING=");
        self.told.borrow().iter().filter(state).cloned().collect()
    }

    fn listen(&self) -> std::io::Result<()> {
        let mut room = [0; 4096];
        let count = self.socket.recv(&mut room)?;
        let text = String::from_utf8_lossy(&room[..count]);
        self.told.borrow_mut().extend(text.lines().map(str::to_owned));
        Ok(())
    }
}
