//! A forger of bundles: this program, which runs on the machine instead of the daemon. It takes the connections out of
//! the fd store, and stores what the test asks for. So all of it comes from the right process, and the connections are
//! real ones.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use echoed::systemd::activation::{self, ActivationFds, Fallback, Sockets};
use echoed::systemd::fdstore::{self, StoredConnection};
use echoed::systemd::notify;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::sockopt;
use rustix::time::{ClockId, clock_gettime};

use crate::common::service_manager::bundle_of;
use crate::machine::Machine;

/// Set for the program on the machine: what it is to do.
const FORGE: &str = "ECHOED_TEST_FORGE";

/// Where it is, which is seen from within the sandbox.
const PROGRAM_PATH: &str = "/usr/lib/forger";

const DROP_IN: &str = "/etc/systemd/system/echoed.service.d/90-forger.conf";

/// Restarts the service with the forger instead of the daemon, and then with the daemon again.
pub fn tamper(machine: &Machine, forgery: &str) {
    let program = env::current_exe().expect("we know what we are");
    if !machine.path(PROGRAM_PATH).exists() {
        fs::copy(program, machine.path(PROGRAM_PATH)).expect("it can be copied");
    }
    let unit = format!(
        "[Service]\nType=notify\nExecStart=\nExecStart={PROGRAM_PATH}\nEnvironment={FORGE}={forgery}\nWatchdogSec=0\n"
    );
    machine.write(DROP_IN, &unit);
    machine.sh("systemctl daemon-reload; systemctl restart echoed.service");
    machine.sh(&format!("rm {DROP_IN}; systemctl daemon-reload; systemctl restart echoed.service"));
}

/// The snapshot of a connection in the middle of a message, as the first version of echoed writes it (version 1 of
/// src/protocol/snapshot.rs, line by line). It must never change, whatever later versions write.
const FIRST_SNAPSHOT: &[u8] = b"\
    \x00\x01\
    \x00\x00\x00\x00\x00\x00\x00\x07\
    \x00\x00\x00\x00\x00\x00\x00\x04echo\
    \x00\
    \x00\
    \x00\
    \xff\xff\xff\xff\xc4\x65\x36\x00\
    \xff\xff\xff\xff\xe2\x32\x9b\x00\
    \x00\x00\x00\x00\x00\x00\x00\x12\
    \x00\x00\x00\x00\x00\x00\x00\x16\
    \x00\x00\x00\x00\x00\x00\x00\x01\
    \x01\
    \x00\x00\x00\x45\xd9\x64\xb8\x00\
    \x00\x00\x00\x00\x00\x00\x00\x07second \
    \xff\xff\xff\xff\xe2\x32\x9b\x00\
    \x00\x00\x00\x00\x00\x00\x00\x00\
    \x00\x00\x00\x00\x00\x00\x00\x00\
    \x7f\xff\xff\xff\xff\xff\xff\xff\
    \x00";

/// Whether this is the program on the machine.
pub fn is_requested() -> bool {
    env::var_os(FORGE).is_some()
}

/// Tampers, and waits for its end.
pub fn run() -> ! {
    let ActivationFds { sockets, bundles, .. } =
        activation::take(Fallback::default()).expect("the sockets are in order");
    let Sockets::Listeners(listeners) = sockets else { panic!("there are listening sockets") };
    let connections = fdstore::unpack(bundles).connections;
    fdstore::remove().expect("systemd listens");
    let forgery = env::var(FORGE).expect("it is text");
    for (name, descriptor) in forge(&forgery, connections, listeners[0].socket.as_fd()) {
        notify::store(name, descriptor.as_fd()).expect("systemd listens");
    }
    notify::barrier().expect("systemd listens");
    notify::ready(&forgery).expect("systemd listens");
    loop {
        thread::park();
    }
}

/// What is put into the store: names and descriptors.
fn forge(forgery: &str, connections: Vec<StoredConnection>, listener: BorrowedFd<'_>) -> Vec<(&'static str, OwnedFd)> {
    let mut manifest = Manifest::of(&connections);
    let mut sockets: Vec<_> = connections.iter().map(|connection| connection.socket.as_fd()).collect();
    let last = manifest.entries.len().saturating_sub(1);
    match forgery {
        "none" => {}
        "truncated" => manifest.missing_bytes = 3,
        "damaged" => {
            let half = manifest.entries[last - 1].snapshot.len() / 2;
            manifest.entries[last - 1].snapshot.truncate(half);
            manifest.entries[last].snapshot.fill(0xff);
        }
        "later-manifest" => manifest.version = 99,
        "first-snapshot" => manifest.entries.iter_mut().for_each(|entry| entry.snapshot = FIRST_SNAPSHOT.to_vec()),
        // Its first two bytes are its version.
        "later-snapshot" => manifest.entries[last].snapshot[..2].copy_from_slice(&[0, 99]),
        "forged" => {
            // A socket that is not a connection, an entry without a socket, and one connection twice.
            manifest.entries[last].cookie = sockopt::socket_cookie(listener).expect("it is a socket");
            sockets[last] = listener;
            manifest.entries[last - 1].cookie = u64::MAX;
            sockets.push(sockets[0]);
        }
        "holes" => manifest.sparse = true,
        "empty" => return vec![("handover", bundle_of(&[]))],
        "foreign" => {
            let text = sealed(b"this is not a manifest of connections, but something else", 0);
            let stream = || OwnedFd::from(UnixStream::pair().expect("it can be made").0);
            let file = File::open("/proc/self/stat").expect("it can be read");
            return vec![
                ("handover", bundle_of(&[&[text.as_fd()], &sockets])),
                ("handover", stream()),
                ("handover", file.into()),
                // systemd's name for descriptors without one.
                ("stored", stream()),
            ];
        }
        other => panic!("what is {other}?"),
    }
    let manifest = manifest.sealed();
    vec![("handover", bundle_of(&[&[manifest.as_fd()], &sockets]))]
}

/// A manifest, as in src/systemd/fdstore/manifest.rs.
struct Manifest {
    version: u32,
    entries: Vec<Entry>,
    /// How many bytes are missing at its end.
    missing_bytes: usize,
    /// Whether it is much longer than there is memory.
    sparse: bool,
}

struct Entry {
    cookie: u64,
    snapshot: Vec<u8>,
}

impl Manifest {
    fn of(connections: &[StoredConnection]) -> Self {
        let cookie =
            |connection: &StoredConnection| sockopt::socket_cookie(&connection.socket).expect("it is a socket");
        let entries = connections
            .iter()
            .map(|connection| Entry { cookie: cookie(connection), snapshot: connection.snapshot.clone() });
        Self { version: 1, entries: entries.collect(), missing_bytes: 0, sparse: false }
    }

    fn sealed(self) -> OwnedFd {
        let mut bytes = b"echoed bundle\n\x1a\0".to_vec();
        bytes.extend(self.version.to_be_bytes());
        bytes.extend(u32::try_from(self.entries.len()).expect("they are few").to_be_bytes());
        let time = clock_gettime(ClockId::Boottime);
        let nanoseconds = time.tv_sec * 1_000_000_000 + time.tv_nsec;
        bytes.extend(nanoseconds.to_be_bytes());
        for Entry { cookie, snapshot } in self.entries {
            bytes.extend(cookie.to_be_bytes());
            bytes.extend((snapshot.len() as u64).to_be_bytes());
            bytes.extend(snapshot);
        }
        bytes.truncate(bytes.len() - self.missing_bytes);
        sealed(&bytes, if self.sparse { 1 << 40 } else { 0 })
    }
}

/// Memory with these bytes, at least so long.
fn sealed(bytes: &[u8], length: u64) -> OwnedFd {
    let memory = memfd_create("forged", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).expect("it can be made");
    let mut file = File::from(memory);
    file.write_all(bytes).expect("there is room");
    file.set_len(length.max(bytes.len() as u64)).expect("it can be longer");
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK).expect("it can be sealed");
    file.into()
}
