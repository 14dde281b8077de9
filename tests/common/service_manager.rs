//! A fake service manager: it passes sockets to the daemon ([`activated_command`]), receives its notifications, and
//! stores its descriptors ([`ServiceManager`]).

use std::io::{ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::process::{Command, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use tempfile::TempDir;

use super::descriptors::send_descriptors;
use super::{TEST_TIMEOUT, now, program};

/// The shell that runs this becomes the daemon, or the program that is to run the daemon (`TEST_WRAPPER`), if there is
/// one; the process number stays. The sockets are its stdin and stdout.
const SCRIPT: &str = r#"exec REDIRECTIONS
exec </dev/null >&2
export LISTEN_PID="${LISTEN_PID-$$}"
exec $TEST_WRAPPER "$0" "$@""#;

/// A command that becomes the daemon, with descriptors handed over as by systemd (sd_listen_fds(3)): as many as there
/// are `names`, parted by colons. Where they come from is said in `redirections`, as a shell writes them: `3<&0 4<&1`;
/// descriptors 0 and 1 are the first two of `sockets`. What is in the environment can be changed afterwards, also
/// `LISTEN_PID`.
pub fn activated_command(redirections: &str, sockets: Vec<OwnedFd>, names: &str) -> Command {
    assert!(sockets.len() <= 2, "there are only two places");
    let mut sockets = sockets.into_iter().map(Stdio::from);
    let mut command = Command::new("sh");
    command.arg("-c").arg(SCRIPT.replace("REDIRECTIONS", redirections)).arg(program("echoed"));
    command.stdin(sockets.next().unwrap_or_else(Stdio::null)).stdout(sockets.next().unwrap_or_else(Stdio::null));
    command.env_remove("LISTEN_PID").env("LISTEN_FDS", names.split(':').count().to_string());
    command.env("LISTEN_FDNAMES", names).env_remove("NOTIFY_SOCKET").env_remove("FDSTORE").env_remove("TEST_WRAPPER");
    command
}

/// Receives descriptors over stdin, and becomes the program that is its first argument.
const RECEIVER: &str = "\
import os, socket, sys
channel = socket.socket(fileno=0)
_, descriptors, _, _ = socket.recv_fds(channel, 1, 64)
names = os.environ['LISTEN_FDNAMES'].split(':')
assert len(descriptors) == len(names), descriptors
# Away from where they are to be.
descriptors = [os.dup(descriptor) for descriptor in [*descriptors, *descriptors]][-len(names):]
for number, descriptor in enumerate(descriptors):
    os.dup2(descriptor, 3 + number)
os.closerange(3 + len(names), 256)
os.dup2(os.open('/dev/null', os.O_RDONLY), 0)
os.closerange(3 + len(names), 256)
os.environ['LISTEN_PID'] = str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
";

/// The same as [`activated_command`] for any number of sockets, from descriptor 3 on; takes python3.
pub fn activated_command_with_many(sockets: &[OwnedFd], names: &str) -> Command {
    let (ours, theirs) = UnixStream::pair().expect("a pair can be made");
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    send_descriptors(OwnedFd::from(ours), b"x", &sockets, SendFlags::empty()).expect("there is room");
    let mut command = Command::new("python3");
    command.args(["-c", RECEIVER]).arg(program("echoed")).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
    command.env("LISTEN_FDS", names.split(':').count().to_string()).env("LISTEN_FDNAMES", names);
    command.env_remove("NOTIFY_SOCKET").env_remove("FDSTORE");
    command
}

/// Creates a bundle, as the daemon stores them, of messages with these descriptors.
pub fn bundle_of(messages: &[&[BorrowedFd<'_>]]) -> OwnedFd {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (sending, bundle) = pair.expect("a pair can be made");
    for descriptors in messages {
        send_descriptors(&sending, b"\n", descriptors, SendFlags::empty()).expect("there is room");
    }
    bundle
}

/// A service manager at `NOTIFY_SOCKET`. It receives notifications on a thread of its own until it is dropped.
pub struct ServiceManager {
    /// What `NOTIFY_SOCKET` is set to.
    address: String,
    socket: Arc<UnixDatagram>,
    shared: Arc<Shared>,
    _directory: TempDir,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What came in one datagram, and when: its assignments.
    notifications: Vec<(Instant, Vec<String>)>,
    /// How many descriptors came along. They are closed at once, which is the answer to a barrier, but for those that are
    /// to be stored.
    received_descriptors: usize,
    /// What is stored, each with its name.
    stored: Vec<(String, OwnedFd)>,
    reading: Reading,
    /// How long a barrier waits for its answer.
    barrier_delay: Duration,
    stopped: bool,
}

#[derive(Default, PartialEq)]
enum Reading {
    #[default]
    Active,
    /// With the next datagram.
    SuspendRequested,
    Suspended,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `find` finds something in the received notifications.
    fn wait_for<T>(&self, what: &str, mut find: impl FnMut(&State) -> Option<T>) -> T {
        let until = now() + TEST_TIMEOUT;
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&state) {
                return found;
            }
            let left = until.saturating_duration_since(now());
            assert!(!left.is_zero(), "was not told {what}, only {:#?}", state.notifications);
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl ServiceManager {
    /// One with a path.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("the path is free");
        Self::from_socket(socket, path.to_str().expect("it is text").to_owned(), directory)
    }

    /// One with a name in the abstract namespace.
    pub fn start_abstract() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("echoed-test-{}-{}", id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(&name).expect("it is short");
        let socket = UnixDatagram::bind_addr(&address).expect("the name is free");
        Self::from_socket(socket, format!("@{name}"), tempfile::tempdir().expect("a directory can be made"))
    }

    fn from_socket(socket: UnixDatagram, address: String, directory: TempDir) -> Self {
        let (socket, shared) = (Arc::new(socket), Arc::new(Shared::default()));
        let (at, on) = (Arc::clone(&socket), Arc::clone(&shared));
        thread::spawn(move || receive_notifications(&at, &on));
        Self { address, socket, shared, _directory: directory }
    }

    /// Sets `NOTIFY_SOCKET` for a command.
    pub fn set_notify_socket<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("NOTIFY_SOCKET", &self.address).env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID")
    }

    /// Waits until it has received this assignment.
    pub fn expect(&self, assignment: &str) {
        self.expect_times(assignment, 1);
    }

    /// Waits until it has received this assignment so many times in all, and returns when it came.
    pub fn expect_times(&self, assignment: &str, times: usize) -> Vec<Instant> {
        self.resume_reading();
        self.shared.wait_for(&format!("{assignment} {times} times"), |state| {
            let matches = |message: &&(Instant, Vec<String>)| message.1.iter().any(|state| state == assignment);
            let found: Vec<_> = state.notifications.iter().filter(matches).map(|(at, _)| *at).collect();
            (found.len() >= times).then_some(found)
        })
    }

    /// Waits for an assignment that begins with `prefix` and whose rest `matches`. Returns the rest; of several, the newest.
    pub fn expect_matching(&self, prefix: &str, matches: impl Fn(&str) -> bool) -> String {
        self.resume_reading();
        self.shared.wait_for(&format!("the right {prefix}"), |state| {
            let all = state.notifications.iter().rev().flat_map(|(_, message)| message);
            let rest = all.filter_map(|state| state.strip_prefix(prefix)).find(|rest| matches(rest));
            rest.map(str::to_owned)
        })
    }

    /// The notifications so far: a list of assignments for each datagram, with the time when it came.
    pub fn notifications(&self) -> Vec<(Instant, Vec<String>)> {
        self.shared.lock().notifications.clone()
    }

    /// How many descriptors it has received so far.
    pub fn received_descriptors(&self) -> usize {
        self.shared.lock().received_descriptors
    }

    /// Sets `NOTIFY_SOCKET` for a command, and allows it to store up to `max` descriptors.
    pub fn set_fd_store<'a>(&self, command: &'a mut Command, max: usize) -> &'a mut Command {
        self.set_notify_socket(command).env("FDSTORE", max.to_string())
    }

    /// Stores a descriptor, as if it had come from an earlier process.
    pub fn store(&self, name: &str, descriptor: OwnedFd) {
        self.shared.lock().stored.push((name.to_owned(), descriptor));
    }

    /// What is stored, each with its name. As with systemd it stays stored until a notification removes it.
    pub fn stored_descriptors(&self) -> Vec<(String, OwnedFd)> {
        let state = self.shared.lock();
        let copy = |(name, descriptor): &(String, OwnedFd)| {
            (name.clone(), descriptor.try_clone().expect("a descriptor can be duplicated"))
        };
        state.stored.iter().map(copy).collect()
    }

    /// Answers barriers only after this time.
    pub fn delay_barriers(&self, delay: Duration) {
        self.shared.lock().barrier_delay = delay;
    }

    /// Stops reading with a full queue, until the next call that waits for a notification: nothing can be sent to it.
    pub fn suspend_reading(&self) {
        let filler = UnixDatagram::unbound().expect("a socket can be made");
        filler.set_nonblocking(true).expect("it can be");
        filler.connect_addr(&self.socket.local_addr().expect("it has one")).expect("it can be reached");
        self.shared.lock().reading = Reading::SuspendRequested;
        filler.send(b"FILLED=1\n").expect("there is room");
        self.shared.wait_for("to be away", |state| (state.reading == Reading::Suspended).then_some(()));
        let full = loop {
            if let Err(error) = filler.send(b"FILLED=1\n") {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
    }

    fn resume_reading(&self) {
        self.shared.lock().reading = Reading::Active;
        self.shared.changed.notify_all();
    }

    /// All state notifications of a daemon that has ended.
    pub fn state_changes(&self) -> Vec<String> {
        self.resume_reading();
        // After everything that was sent before.
        let end = UnixDatagram::unbound().expect("a socket can be made");
        end.connect_addr(&self.socket.local_addr().expect("it has one")).expect("it can be reached");
        end.send(b"END=1\n").expect("there is room");
        self.expect("END=1");
        let names = ["READY=", "RELOADING=", "STOPPING="];
        let is_state_change = |state: &&String| names.iter().any(|name| state.starts_with(name));
        self.shared
            .lock()
            .notifications
            .iter()
            .flat_map(|(_, message)| message)
            .filter(is_state_change)
            .cloned()
            .collect()
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.resume_reading();
        // The thread ends with the next datagram; there is one if there is no room for ours.
        if let (Ok(socket), Ok(address)) = (UnixDatagram::unbound(), self.socket.local_addr()) {
            let _ = socket.set_nonblocking(true).and_then(|()| socket.send_to_addr(b"", &address));
        }
    }
}

fn receive_notifications(socket: &UnixDatagram, shared: &Shared) {
    let mut buffer = vec![0; 65_536];
    loop {
        {
            let mut state = shared.lock();
            while state.reading != Reading::Active {
                state.reading = Reading::Suspended;
                shared.changed.notify_all();
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stopped {
                return;
            }
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut buffer)];
        let received = retry_on_intr(|| recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC));
        let Ok(message) = received else { return };
        let count = message.bytes;
        let mut fds = Vec::new();
        for item in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = item {
                fds.extend(more);
            }
        }
        let text = String::from_utf8_lossy(&buffer[..count]);
        let assignments: Vec<_> = text.lines().map(str::to_owned).collect();
        let mut state = shared.lock();
        state.received_descriptors += fds.len();
        let has_assignment = |what: &str| assignments.iter().any(|assignment| assignment == what);
        let name = assignments.iter().find_map(|assignment| assignment.strip_prefix("FDNAME="));
        if has_assignment("FDSTORE=1") {
            // Without FDPOLL=0, systemd drops what has hung up.
            assert!(has_assignment("FDPOLL=0"), "{assignments:?}");
            let name = name.expect("it has a name");
            state.stored.extend(fds.drain(..).map(|descriptor| (name.to_owned(), descriptor)));
        }
        if has_assignment("FDSTOREREMOVE=1") {
            state.stored.retain(|(stored, _)| Some(&**stored) != name);
        }
        let barrier_delay = if has_assignment("BARRIER=1") { state.barrier_delay } else { Duration::ZERO };
        state.notifications.push((now(), assignments));
        shared.changed.notify_all();
        drop(state);
        // Its descriptors are closed after that.
        thread::sleep(barrier_delay);
    }
}
