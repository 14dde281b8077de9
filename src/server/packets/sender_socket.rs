//! The socket that a datagram came from, where it is bound to a path.
//!
//! A datagram carries the path that its sender is bound to. That path is meant in the sender's directory, root and
//! mount namespace, and the sender may have made those for the purpose. Sending to the path would send to the socket
//! that this process sees there, which may be another program's. So the path is opened, the opened file must be a
//! socket of the user who sent the datagram, and the reply is sent through the descriptor. Replacing the path meanwhile
//! has no effect.
//!
//! Opening a path can take long (an automount, a server that is down), and a sender can name any path. But the kernel
//! keeps the directories of every bound socket in its cache. So the event loop only opens what is cached
//! (RESOLVE_CACHED, openat2(2)). A thread opens other paths, and the datagram waits for that: where the cache does not
//! say who may enter a directory (it may lack an ACL), and where openat2 is not permitted (systemd forbids it with
//! `RestrictSUIDSGID=`).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, setsockopt, sockopt::PassCred,
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use tokio::sync::mpsc as queue;

use crate::address::UnixName;
use crate::protocol::packet::DropCause;
use crate::server::socket::Peer;

/// How many bytes may wait for the thread.
const MAX_WAITING: usize = 1 << 20;

/// What a datagram takes of that besides its message.
const LOOKUP_SIZE: usize = 1024;

/// What the kernel shows for a user that has no number here, unless `kernel.overflowuid` says otherwise.
const DEFAULT_OVERFLOW_UID: u32 = 65534;

/// The socket of a sender, open as a path.
#[derive(Debug)]
pub(crate) struct SenderSocket(OwnedFd);

impl SenderSocket {
    /// Returns the address that leads to this socket, whatever lies at its path by now.
    ///
    /// # Errors
    /// Returns an error if the address does not fit; it always does.
    pub(crate) fn address(&self) -> Result<UnixAddr, nix::errno::Errno> {
        UnixAddr::new(Path::new(&format!("/proc/self/fd/{}", self.0.as_raw_fd())))
    }
}

/// The sockets of this process itself, to which no reply may go: those of the service manager and of the journal. They
/// believe what comes from this process.
pub(crate) type ReservedSockets = Arc<[UnixName]>;

/// Finds the sockets of senders.
#[derive(Debug)]
pub(crate) struct SenderSockets {
    rules: Arc<OwnerRules>,
    /// The thread for paths that are not cached, started for the first of them.
    thread: Option<mpsc::Sender<Lookup>>,
    results: (queue::UnboundedSender<FoundSender>, queue::UnboundedReceiver<FoundSender>),
    /// How many datagrams wait for the thread.
    waiting: usize,
    /// What they take of [`MAX_WAITING`].
    waiting_bytes: usize,
}

/// Whose sockets may get a reply.
#[derive(Debug)]
struct OwnerRules {
    /// What the kernel shows for every user that has no number here, if that could be found out.
    overflow_uid: Option<u32>,
    reserved: ReservedSockets,
}

/// A datagram whose sender is being looked up.
#[derive(Debug)]
struct Lookup {
    path: PathBuf,
    peer: Peer,
    message: Vec<u8>,
}

/// A datagram whose sender was looked up by the thread.
#[derive(Debug)]
pub(crate) struct FoundSender {
    pub(crate) peer: Peer,
    pub(crate) message: Vec<u8>,
    /// Where its reply goes, or why it gets none.
    pub(crate) socket: Result<SenderSocket, DropCause>,
}

impl SenderSockets {
    /// Creates one that refuses all `reserved` sockets.
    pub(crate) fn new(reserved: ReservedSockets) -> Self {
        let rules = Arc::new(OwnerRules { overflow_uid: overflow_uid().ok(), reserved });
        Self { rules, thread: None, results: queue::unbounded_channel(), waiting: 0, waiting_bytes: 0 }
    }

    /// Returns whether a reply may go to an address, as far as the address itself says. A relative path means a file in
    /// the sender's directory.
    pub(crate) fn is_allowed(&self, address: &UnixAddr) -> bool {
        match (address.path(), address.as_abstract()) {
            (Some(path), _) => path.is_absolute(),
            (None, Some(name)) => {
                let is_name = |one: &UnixName| matches!(one, UnixName::Abstract(one) if one.as_bytes() == name);
                !self.rules.reserved.iter().any(is_name)
            }
            (None, None) => false,
        }
    }

    /// Opens the socket at the path of a sender, if the path is cached. `None`: it is not, see
    /// [`SenderSockets::look_up`].
    ///
    /// # Errors
    /// Returns an error if the reply must not be sent there.
    pub(crate) fn open_cached(&self, path: &Path, peer: Peer) -> Result<Option<SenderSocket>, DropCause> {
        match open(path, ResolveFlags::CACHED) {
            Ok(socket) => self.rules.check(socket, peer, AtFlags::STATX_DONT_SYNC).map(Some),
            // A kernel before 5.12 does not know the flag.
            Err(Errno::AGAIN | Errno::INVAL | Errno::NOSYS | Errno::PERM) => Ok(None),
            Err(error) => Err(cause_of(error)),
        }
    }

    /// Has the thread open the socket at the path of a sender. [`SenderSockets::next`] returns the result.
    ///
    /// # Errors
    /// Returns an error if too many datagrams wait already.
    pub(crate) fn look_up(&mut self, path: &Path, peer: Peer, message: &[u8]) -> Result<(), DropCause> {
        let size = LOOKUP_SIZE + message.len();
        if self.waiting > 0 && self.waiting_bytes + size > MAX_WAITING {
            return Err(DropCause::NoRoom);
        }
        let lookup = Lookup { path: path.to_owned(), peer, message: message.to_vec() };
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => self.start_thread().map_err(|_| DropCause::NoRoom)?,
        };
        thread.send(lookup).map_err(|_| DropCause::NoRoom)?;
        self.thread = Some(thread);
        self.waiting += 1;
        self.waiting_bytes += size;
        Ok(())
    }

    /// Waits for the next result of the thread; forever where there is none.
    pub(crate) async fn next(&mut self) -> FoundSender {
        match self.results.1.recv().await {
            Some(found) => {
                self.waiting -= 1;
                self.waiting_bytes -= LOOKUP_SIZE + found.message.len();
                found
            }
            // This one has a sender itself.
            None => std::future::pending().await,
        }
    }

    /// Returns how many datagrams wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Starts the thread, which ends when this is dropped, or when what it opens is opened.
    fn start_thread(&self) -> io::Result<mpsc::Sender<Lookup>> {
        let (sender, lookups) = mpsc::channel::<Lookup>();
        let (results, rules) = (self.results.0.clone(), Arc::clone(&self.rules));
        thread::Builder::new().name("lookup".to_owned()).spawn(move || {
            for Lookup { path, peer, message } in lookups {
                let opened = match open(&path, ResolveFlags::empty()) {
                    Err(Errno::NOSYS | Errno::PERM) => open_plain(&path),
                    opened => opened,
                };
                let socket = opened.map_err(cause_of);
                let socket = socket.and_then(|socket| rules.check(socket, peer, AtFlags::empty()));
                if results.send(FoundSender { peer, message, socket }).is_err() {
                    break;
                }
            }
        })?;
        Ok(sender)
    }
}

impl OwnerRules {
    /// Returns the socket if it is one of the user who sent the datagram, and not a reserved one.
    fn check(&self, socket: OwnedFd, peer: Peer, flags: AtFlags) -> Result<SenderSocket, DropCause> {
        let (flags, fields) = (AtFlags::EMPTY_PATH | flags, StatxFlags::TYPE | StatxFlags::UID | StatxFlags::INO);
        let found = retry_on_intr(|| statx(&socket, "", flags, fields)).map_err(cause_of)?;
        let is_socket = FileType::from_raw_mode(found.stx_mode.into()) == FileType::Socket;
        if is_socket && self.is_owner(peer, found.stx_uid) && !self.is_reserved_file(&found).map_err(cause_of)? {
            Ok(SenderSocket(socket))
        } else {
            Err(DropCause::UnsafeAddress)
        }
    }

    /// Whether a file of this user belongs to the peer. Where either is not known, it does not.
    fn is_owner(&self, peer: Peer, owner: u32) -> bool {
        // Without the kernel's number, no owner is known.
        let is_known = self.overflow_uid.is_some_and(|uid| owner != uid) && owner != DEFAULT_OVERFLOW_UID;
        is_known && matches!(peer, Peer::Process { uid, .. } if uid == owner)
    }

    /// Asked anew each time: the journal's socket is made anew when its unit is restarted.
    ///
    /// # Errors
    /// Returns an error if a file cannot be compared, so that it may be the same.
    fn is_reserved_file(&self, found: &Statx) -> Result<bool, Errno> {
        for one in &*self.reserved {
            let UnixName::Path(path) = one else { continue };
            match retry_on_intr(|| statx(CWD, path, AtFlags::empty(), StatxFlags::INO)) {
                Ok(reserved) if identity(&reserved) == identity(found) => return Ok(true),
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// The device and the number of a file.
fn identity(file: &Statx) -> (u32, u32, u64) {
    (file.stx_dev_major, file.stx_dev_minor, file.stx_ino)
}

/// How a path is opened: itself, not what it links to, and neither for reading nor for writing.
const OPEN_FLAGS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a path itself and not what it links to. A sender cannot be bound to a link. One of /proc on the way leads to
/// where this process is, and not the sender.
fn open(path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    retry_on_intr(|| openat2(CWD, path, OPEN_FLAGS, Mode::empty(), resolve))
}

/// The same without openat2(2). Links of /proc are followed on the way, but what they lead to has to be the sender's
/// own socket all the same.
fn open_plain(path: &Path) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| rustix::fs::open(path, OPEN_FLAGS, Mode::empty()))
}

/// Why a datagram is dropped whose sender's socket cannot be opened.
fn cause_of(error: Errno) -> DropCause {
    match error {
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => DropCause::NoRoom,
        _ => DropCause::UnsafeAddress,
    }
}

/// Returns the user that the kernel shows for all those that have no number here. /proc/sys, which has it, may be
/// hidden (`ProcSubset=`). But the kernel also shows it for a datagram that was sent without credentials.
fn overflow_uid() -> io::Result<u32> {
    let (from, to) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::send(&from, b"x", SendFlags::NOSIGNAL)?;
    setsockopt(&to, PassCred, &true)?;
    let (mut byte, mut ancillary) = ([0; 1], nix::cmsg_space!(UnixCredentials));
    let mut parts = [IoSliceMut::new(&mut byte)];
    let received = recvmsg::<()>(to.as_raw_fd(), &mut parts, Some(&mut ancillary), MsgFlags::MSG_DONTWAIT)?;
    let uid = received.cmsgs()?.find_map(|message| match message {
        // It says whose it is only where it is nobody's.
        ControlMessageOwned::ScmCredentials(credentials) if credentials.pid() == 0 => Some(credentials.uid()),
        _ => None,
    });
    Ok(uid.unwrap_or(DEFAULT_OVERFLOW_UID))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn senders() -> SenderSockets {
        SenderSockets::new(Arc::default())
    }

    fn ourselves() -> Peer {
        Peer::process(rustix::process::getuid().as_raw(), 1)
    }

    #[test]
    fn the_overflow_uid_is_that_of_the_kernel() {
        let expected = fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap();
        assert_eq!(overflow_uid().unwrap(), expected.trim().parse::<u32>().unwrap());
    }

    #[tokio::test]
    async fn only_so_many_datagrams_wait_for_the_thread_and_each_gets_its_own_result() {
        const COUNT: usize = 16;
        let directory = tempfile::tempdir().unwrap();
        let path = |number: usize| directory.path().join(number.to_string());
        // Every other one is there.
        let _bound: Vec<_> = (0..COUNT).step_by(2).map(|at| UnixDatagram::bind(path(at)).unwrap()).collect();
        let mut senders = senders();
        let message = |number: usize| vec![u8::try_from(number).unwrap(); MAX_WAITING / COUNT - LOOKUP_SIZE];
        for number in 0..COUNT {
            assert_eq!(senders.look_up(&path(number), ourselves(), &message(number)), Ok(()));
        }
        assert_eq!(senders.look_up(&path(0), ourselves(), b""), Err(DropCause::NoRoom));
        assert_eq!(senders.waiting(), COUNT);
        for number in 0..COUNT {
            let found = senders.next().await;
            assert_eq!(found.message, message(number));
            assert_eq!(found.socket.err(), (number % 2 == 1).then_some(DropCause::UnsafeAddress));
        }
        // A single one may be of any length.
        assert_eq!(senders.look_up(&path(0), ourselves(), &vec![0; MAX_WAITING]), Ok(()));
        assert!(senders.next().await.socket.is_ok());
        assert_eq!((senders.waiting(), senders.waiting_bytes), (0, 0));
    }

    #[test]
    fn a_path_behind_a_link_of_proc_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let _bound = UnixDatagram::bind(directory.path().join("socket")).unwrap();
        let path = PathBuf::from(format!("/proc/self/root{}/socket", directory.path().display()));
        assert!(fs::symlink_metadata(&path).is_ok());
        assert_eq!(open(&path, ResolveFlags::empty()).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_peer_without_a_known_user_owns_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _bound = UnixDatagram::bind(&path).unwrap();
        let senders = senders();
        let refused = |peer| {
            let opened = open(&path, ResolveFlags::empty()).unwrap();
            senders.rules.check(opened, peer, AtFlags::empty()).err()
        };
        assert_eq!(refused(ourselves()), None);
        assert_eq!(refused(Peer::Unknown), Some(DropCause::UnsafeAddress));
        assert_eq!(refused(Peer::process(DEFAULT_OVERFLOW_UID, 1)), Some(DropCause::UnsafeAddress));
    }
}
