//! A fake journald: it reads entries in the native protocol, as fast as a test lets it.
//!
//! The path of journald's socket is fixed, so the daemon runs in a mount namespace where another socket is there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::cmsg_space;
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use crate::{TEST_TIMEOUT, now, program, skip_test};

/// Puts a socket where journald's is, says that stderr is the journal, and becomes the daemon, or the program that is to run it
/// (`TEST_WRAPPER`), if there is one. A listener may lie in its stdin; then its name is in `LISTEN_FDNAMES`.
const SCRIPT: &str = r#"set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/journal
if [ -n "$TEST_JOURNAL" ]; then ln -s "$TEST_JOURNAL" /run/systemd/journal/socket; fi
JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)
export JOURNAL_STREAM
if [ -n "$LISTEN_FDNAMES" ]; then
    exec 3<&0
    export LISTEN_PID=$$ LISTEN_FDS=1
fi
exec $TEST_WRAPPER "$0" "$@" </dev/null"#;

/// An entry, by the names of its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The values by the names of their fields.
    pub fields: BTreeMap<String, Vec<u8>>,
    /// Whether it came as sealed memory.
    pub in_memory: bool,
}

impl Entry {
    /// A field as text; empty if there is none.
    pub fn text(&self, name: &str) -> String {
        self.fields.get(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    }

    fn parse(mut bytes: &[u8], in_memory: bool) -> Self {
        let mut fields = BTreeMap::new();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n').expect("a field ends");
            let line = &bytes[..end];
            let (name, value);
            if let Some(equals) = line.iter().position(|byte| *byte == b'=') {
                (name, value) = (&line[..equals], &line[equals + 1..]);
                bytes = &bytes[end + 1..];
            } else {
                let (length, rest) = bytes[end + 1..].split_at(8);
                let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
                let length = usize::try_from(length).expect("it fits");
                (name, value) = (line, &rest[..length]);
                assert_eq!(rest[length], b'\n', "a value ends with a line feed");
                bytes = &rest[length + 1..];
            }
            let name = String::from_utf8(name.to_vec()).expect("a name is text");
            let before = fields.insert(name.clone(), value.to_vec());
            assert!(before.is_none(), "there are two fields {name}");
        }
        Self { fields, in_memory }
    }
}

/// A fake journald.
pub struct FakeJournald {
    shared: Arc<Shared>,
    directory: TempDir,
    /// Options of unshare(1) that work here.
    unshare: &'static str,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    suspended: bool,
    ended: bool,
    /// Whether the socket is to be there.
    down: bool,
    /// Whether it is not.
    is_down: bool,
}

impl FakeJournald {
    /// Starts reading. If that is not possible here, reports that the calling test is skipped.
    pub fn start() -> Option<Self> {
        let works = |options: &&str| {
            let mut command = Command::new("unshare");
            command.arg(options).args(["sh", "-c", "mount -t tmpfs none /run"]);
            command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        let Some(unshare) = ["-m", "-rm"].into_iter().find(works) else {
            skip_test("there are no mount namespaces here (unshare -m, unshare -rm)");
            return None;
        };
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("socket");
        let mut socket = Some(UnixDatagram::bind(&path).expect("the path is free"));
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        thread::spawn(move || {
            loop {
                let mut state_guard = state.lock();
                while state_guard.suspended {
                    state_guard = state.changed.wait(state_guard).unwrap_or_else(PoisonError::into_inner);
                }
                if state_guard.down {
                    socket = None;
                    std::fs::remove_file(&path).expect("it is there");
                    state_guard.is_down = true;
                    state.changed.notify_all();
                    let waited = state.changed.wait_while(state_guard, |state| state.down);
                    state_guard = waited.unwrap_or_else(PoisonError::into_inner);
                    state_guard.is_down = false;
                }
                drop(state_guard);
                let socket = socket.get_or_insert_with(|| UnixDatagram::bind(&path).expect("the path is free"));
                let received = receive(socket);
                let mut state_guard = state.lock();
                match received {
                    // tracing-journald's way to see whether journald is there; or there is something else to do.
                    Received::Empty => {}
                    Received::Entry(entry) => state_guard.entries.push(entry),
                    Received::End => {
                        state_guard.ended = true;
                        state.changed.notify_all();
                        break;
                    }
                }
                state.changed.notify_all();
            }
        });
        Some(Self { shared, directory, unshare })
    }

    /// A command that becomes the daemon, with stderr connected to this journal.
    pub fn command(&self) -> Command {
        let mut command = Self::without_journal(self.unshare);
        command.env("TEST_JOURNAL", self.directory.path().join("socket"));
        command
    }

    /// The same, but no process listens where journald should.
    pub fn command_without_journal(&self) -> Command {
        Self::without_journal(self.unshare)
    }

    fn without_journal(unshare: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args([unshare, "sh", "-c", SCRIPT, &program("echoed")]);
        command.env_remove("LISTEN_FDNAMES").env_remove("NOTIFY_SOCKET").env("TEST_JOURNAL", "");
        command.env_remove("TEST_WRAPPER");
        command
    }

    /// Stops reading. (What is being read now is still taken.)
    pub fn suspend(&self) {
        self.shared.lock().suspended = true;
    }

    /// Reads again.
    pub fn resume(&self) {
        self.shared.lock().suspended = false;
        self.shared.changed.notify_all();
    }

    /// Closes the socket, as systemd does when journald's socket units are stopped.
    pub fn take_down(&self) {
        self.shared.lock().down = true;
        let socket = UnixDatagram::unbound().expect("a socket can be made");
        // If an entry has come meanwhile, it is gone already.
        let _ = socket.send_to(b"", self.directory.path().join("socket"));
        let waited = self.shared.changed.wait_while(self.shared.lock(), |state| !state.is_down);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Makes the socket anew, at the same path.
    pub fn bring_up(&self) {
        self.shared.lock().down = false;
        self.shared.changed.notify_all();
    }

    /// All entries so far.
    pub fn entries(&self) -> Vec<Entry> {
        self.shared.lock().entries.clone()
    }

    /// How many entries there are so far.
    pub fn count(&self) -> usize {
        self.shared.lock().entries.len()
    }

    /// Waits for an entry, and returns it.
    pub fn expect(&self, what: &str, matches: impl Fn(&Entry) -> bool) -> Entry {
        self.expect_times(what, 1, matches).remove(0)
    }

    /// Waits for so many entries, and returns all of them.
    pub fn expect_times(&self, what: &str, times: usize, matches: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let until = now() + TEST_TIMEOUT;
        let (mut found, mut seen) = (Vec::new(), 0);
        let mut state = self.shared.lock();
        loop {
            found.extend(state.entries[seen..].iter().filter(|entry| matches(entry)).cloned());
            seen = state.entries.len();
            if found.len() >= times {
                return found;
            }
            let left = until.saturating_duration_since(now());
            let last = &state.entries[seen.saturating_sub(5)..];
            assert!(!left.is_zero(), "{} of {times} entries: {what}; {seen} in all, the last: {last:#?}", found.len());
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the daemon listens, and returns where, in the order in which it said so.
    pub fn addresses(&self, count: usize) -> Vec<String> {
        let listening = |entry: &Entry| entry.text("MESSAGE").starts_with("listening on ");
        let entries = self.expect_times("listening on", count, listening);
        let address = |entry: &Entry| entry.text("MESSAGE").split(' ').nth(2).expect("an address").to_owned();
        entries.iter().map(address).collect()
    }

    /// Everything that was sent, when no more is sent.
    pub fn stop_and_collect(self) -> Vec<Entry> {
        self.resume();
        let socket = UnixDatagram::unbound().expect("a socket can be made");
        socket.send_to(b"END", self.directory.path().join("socket")).expect("it is there");
        let mut state = self.shared.lock();
        while !state.ended {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.entries.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Received {
    Entry(Entry),
    Empty,
    End,
}

fn receive(socket: &UnixDatagram) -> Received {
    let mut buffer = vec![0; 256 * 1024];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC);
    let count = received.expect("it can be received").bytes;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let memory: Option<OwnedFd> = descriptors.flatten().next();
    match (memory, &buffer[..count]) {
        (Some(memory), bytes) => {
            // What journald demands.
            assert!(bytes.is_empty(), "either a payload or a descriptor");
            let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
            assert!(fcntl_get_seals(&memory).expect("it is memory").contains(all), "it is not sealed");
            let (mut file, mut bytes) = (File::from(memory), Vec::new());
            // The offset of the descriptor is at the end, where the writer left it.
            std::io::Seek::rewind(&mut file).expect("it can be rewound");
            file.read_to_end(&mut bytes).expect("it can be read");
            Received::Entry(Entry::parse(&bytes, true))
        }
        (None, b"") => Received::Empty,
        (None, b"END") => Received::End,
        (None, bytes) => Received::Entry(Entry::parse(bytes, false)),
    }
}
