//! A file system in user space (FUSE) that answers until it is told not to. This process serves it, without a library.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::getuid;
use tempfile::TempDir;

use common::{TEST_TIMEOUT, skip_test, wait_until};

// Requests of the kernel (linux/fuse.h).
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const MKNOD: u32 = 8;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// The number of the root directory.
const ROOT: u64 = 1;

const DIRECTORY: u32 = 0o040_755;

/// For how many seconds the kernel may believe what it was told of a name or a directory.
const LONG: u64 = 3600;

/// A mounted file system. While it is silent, only this process's own calls are sure to return: those that ask it nothing.
/// It is aborted when it is dropped, so that nothing waits for it any longer. That must be before its users are waited for.
pub(crate) struct SilentFs {
    directory: TempDir,
    is_silent: Arc<AtomicBool>,
    unanswered: Arc<AtomicUsize>,
    server: Option<JoinHandle<()>>,
}

impl SilentFs {
    /// Mounts one whose files all belong to this user, and may be written to by every user. If that is not possible here,
    /// reports that the calling test is skipped.
    pub(crate) fn mount(owner: u32) -> Option<Self> {
        if !getuid().is_root() {
            skip_test("only root can mount a file system for other users");
            return None;
        }
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            skip_test("/dev/fuse cannot be opened");
            return None;
        };
        let directory = tempfile::tempdir().expect("a directory can be made");
        let fd = device.as_raw_fd();
        // The kernel checks permissions by what it knows of a file, and asks for that.
        let options = format!("fd={fd},rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions");
        let options = CString::new(options).expect("there is no NUL");
        match mount("silent", directory.path(), "fuse", MountFlags::NOSUID | MountFlags::NODEV, &*options) {
            Ok(()) => {}
            Err(error @ (Errno::PERM | Errno::NODEV)) => {
                skip_test(&format!("a file system in user space cannot be mounted: {error}"));
                return None;
            }
            Err(error) => panic!("{error}"),
        }
        let (is_silent, unanswered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let server = Server {
            device,
            owner,
            modes: HashMap::from([(ROOT, DIRECTORY)]),
            names: HashMap::new(),
            is_silent: Arc::clone(&is_silent),
            unanswered: Arc::clone(&unanswered),
        };
        let server = Some(thread::spawn(move || server.run()));
        Some(Self { directory, is_silent, unanswered, server })
    }

    /// The path of a file in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Answers no more requests.
    pub(crate) fn fall_silent(&self) {
        self.is_silent.store(true, Ordering::SeqCst);
    }

    /// Waits until it has left so many requests without an answer.
    pub(crate) fn wait_until_asked(&self, times: usize) {
        wait_until("the file system is asked", || self.unanswered.load(Ordering::SeqCst) >= times);
    }
}

impl Drop for SilentFs {
    fn drop(&mut self) {
        // FORCE has all requests fail, those that wait, too.
        let unmounted = unmount(self.directory.path(), UnmountFlags::FORCE | UnmountFlags::DETACH);
        let served = self.server.take().map(JoinHandle::join);
        if !thread::panicking() {
            unmounted.expect("it is mounted");
            assert!(matches!(served, Some(Ok(()))), "its server has panicked");
        }
    }
}

/// Binds a socket that waits for what comes.
pub(crate) fn bind(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    socket.set_read_timeout(Some(TEST_TIMEOUT)).expect("a timeout can be set");
    socket
}

struct Server {
    device: File,
    owner: u32,
    /// The mode of each file, by its number.
    modes: HashMap<u64, u32>,
    /// The files in the root directory.
    names: HashMap<Vec<u8>, u64>,
    is_silent: Arc<AtomicBool>,
    unanswered: Arc<AtomicUsize>,
}

impl Server {
    /// Answers until the file system is no longer mounted.
    fn run(mut self) {
        let mut buffer = vec![0; 1 << 17];
        loop {
            let len = match self.device.read(&mut buffer) {
                Ok(len) => len,
                // A request that was taken back.
                Err(error)
                    if [Errno::INTR, Errno::NOENT, Errno::AGAIN]
                        .map(Errno::raw_os_error)
                        .contains(&error_number(&error)) =>
                {
                    continue;
                }
                Err(_) => return,
            };
            let request = &buffer[..len];
            let number = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().expect("8 bytes"));
            let operation = u32::from_le_bytes(request[4..8].try_into().expect("4 bytes"));
            let (unique, node, body) = (number(8), number(16), &request[40..]);
            if matches!(operation, FORGET | BATCH_FORGET | INTERRUPT) {
                continue;
            }
            if self.is_silent.load(Ordering::SeqCst) {
                self.unanswered.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let (error, answer) = match self.answer(operation, node, body) {
                Ok(answer) => (0, answer),
                Err(error) => (-error.raw_os_error(), Vec::new()),
            };
            let len = u32::try_from(16 + answer.len()).expect("it is short");
            let header = [&len.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes()].concat();
            // There is an error if the request was taken back.
            let _ = self.device.write(&[header, answer].concat());
        }
    }

    fn answer(&mut self, operation: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        let name = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_owned();
        match operation {
            // Version 7.31, without any option; requests of up to 64 KiB.
            INIT => Ok(words(&[7, 31, 0, 0, 0, 1 << 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
            LOOKUP => Ok(self.entry(*self.names.get(&name(body)).ok_or(Errno::NOENT)?)),
            GETATTR => {
                let valid = if node == ROOT { LONG } else { 0 };
                Ok([&valid.to_le_bytes()[..], &[0; 8], &self.attributes(node)].concat())
            }
            MKNOD => {
                let mode = u32::from_le_bytes(body[..4].try_into().expect("4 bytes"));
                let node = ROOT + self.modes.len() as u64;
                self.modes.insert(node, mode | 0o666);
                self.names.insert(name(&body[16..]), node);
                Ok(self.entry(node))
            }
            _ => Err(Errno::NOSYS),
        }
    }

    /// What is told of a name (`fuse_entry_out`): the kernel may believe the name, but has to ask for the attributes.
    fn entry(&self, node: u64) -> Vec<u8> {
        [&node.to_le_bytes()[..], &[0; 8], &LONG.to_le_bytes(), &[0; 16], &self.attributes(node)].concat()
    }

    /// `fuse_attr`.
    fn attributes(&self, node: u64) -> Vec<u8> {
        let mode = self.modes.get(&node).copied().unwrap_or_default();
        let numbers = words(&[0, 0, 0, mode, 1, self.owner, self.owner, 0, 4096, 0]);
        [&node.to_le_bytes()[..], &[0; 40], &numbers].concat()
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn error_number(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or_default()
}
