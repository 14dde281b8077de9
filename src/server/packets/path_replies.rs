//! Replies to senders on Unix sockets that are bound to a path, for one listener.
//!
//! Opening a path and sending to it can take long: the kernel asks the file system for each directory and for the mode of
//! the socket, and the file system may be one of another machine or of another program (NFS, FUSE). A sender can name any
//! path. So the thread of the listener touches none: other threads do ([`UserThreads`]). They wake it when a reply could not be sent.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use nix::sys::socket::{MsgFlags, UnixAddr};

use crate::protocol::packet::{DropCause, Reply};
use crate::server::packets::datagram_socket;
use crate::server::packets::sender_socket::{self, OwnerRules, ReservedSockets};
use crate::server::packets::user_threads::UserThreads;
use crate::server::peer::Peer;

/// What a reply takes besides its bytes while it waits.
const OVERHEAD: usize = 1024;

/// Sends the replies of a listener to paths.
#[derive(Debug)]
pub(crate) struct PathReplies {
    threads: UserThreads,
    /// A copy of the listener's socket, until the listener ends. Threads use it only while it is here.
    socket: Option<Arc<OwnedFd>>,
    rules: Arc<OwnerRules>,
    /// Counts the bytes that were sent.
    bytes_out: Arc<AtomicU64>,
    progress: Arc<Progress>,
}

#[derive(Debug)]
struct Progress {
    state: Mutex<ProgressState>,
    /// Woken when a reply could not be sent, and when none waits any longer if that is awaited.
    waker: Waker,
}

#[derive(Debug, Default)]
struct ProgressState {
    /// How many replies are neither sent nor failed.
    waiting: usize,
    /// Replies that could not be sent.
    failed: Vec<FailedReply>,
    /// Whether the listener waits until no reply waits.
    is_finishing: bool,
    /// Whether the listener has ended: those that waited then are counted.
    has_ended: bool,
}

/// A reply that could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FailedReply {
    /// The address of the datagram's sender.
    pub(crate) to: UnixAddr,
    pub(crate) peer: Peer,
    pub(crate) cause: DropCause,
}

impl PathReplies {
    /// Creates one for the listener with this socket. It refuses all `reserved` sockets, and counts what it sends in
    /// `bytes_out`. It wakes the listener by `waker`.
    pub(crate) fn new(
        socket: OwnedFd,
        threads: UserThreads,
        reserved: ReservedSockets,
        bytes_out: Arc<AtomicU64>,
        waker: Waker,
    ) -> Self {
        let (socket, rules) = (Some(Arc::new(socket)), Arc::new(OwnerRules::new(reserved)));
        let progress = Arc::new(Progress { state: Mutex::default(), waker });
        Self { threads, socket, rules, bytes_out, progress }
    }

    /// Returns whether a reply to `peer` may go to its address, as far as both say by themselves.
    pub(crate) fn is_allowed(&self, address: &UnixAddr, peer: Peer) -> bool {
        self.rules.is_allowed(address, peer)
    }

    /// Has a reply sent to the path of a sender, after earlier ones to the same user. If that fails,
    /// [`PathReplies::take_failures`] returns it.
    ///
    /// # Errors
    /// Returns an error if it cannot be sent: too many replies wait, or the sender's user is not known.
    pub(crate) fn send(&self, to: UnixAddr, peer: Peer, reply: &Reply<'_>) -> Result<(), DropCause> {
        let uid = self.rules.known_uid(peer).ok_or(DropCause::UnsafeAddress)?;
        let reply = reply.concat();
        let socket = self.socket.as_ref().map(Arc::downgrade).unwrap_or_default();
        let rules = Arc::clone(&self.rules);
        let (bytes_out, progress) = (Arc::clone(&self.bytes_out), Arc::clone(&self.progress));
        let size = OVERHEAD + reply.len();
        // First, since the thread may be faster.
        self.progress.lock().waiting += 1;
        let waits = self.threads.run(uid, size, move || {
            let sent = send(&socket, &to, uid, &rules, &reply);
            progress.finish_one(|failed| match sent {
                Ok(()) => _ = bytes_out.fetch_add(reply.len() as u64, Ordering::Relaxed),
                Err(cause) => failed.push(FailedReply { to, peer, cause }),
            });
        });
        if waits.is_err() {
            self.progress.finish_one(|_| ());
        }
        waits
    }

    /// Has the listener woken when no reply waits. Returns whether none does now.
    pub(crate) fn finish(&self) -> bool {
        let mut state = self.progress.lock();
        state.is_finishing = true;
        state.waiting == 0
    }

    /// Ends: replies that still wait are not sent. Returns how many there are. One that is being sent at this moment counts
    /// as well.
    pub(crate) fn end(&mut self) -> usize {
        self.socket = None;
        let mut state = self.progress.lock();
        state.has_ended = true;
        state.waiting
    }

    /// Returns the replies that could not be sent since the last call.
    pub(crate) fn take_failures(&mut self) -> Vec<FailedReply> {
        std::mem::take(&mut self.progress.lock().failed)
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, ProgressState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finishes one reply: counts it with `count`, which adds it to those that failed if it did, unless it was counted when the
    /// listener ended.
    fn finish_one(&self, count: impl FnOnce(&mut Vec<FailedReply>)) {
        let mut state = self.lock();
        state.waiting -= 1;
        if !state.has_ended {
            count(&mut state.failed);
        }
        // What was sent wakes nothing.
        let wakes = !state.failed.is_empty() || state.is_finishing && state.waiting == 0;
        drop(state);
        if wakes {
            self.waker.wake_by_ref();
        }
    }
}

/// Sends a reply to the socket of a user at a path. May block for good. What it opened is closed here, too: that may also ask
/// the file system.
fn send(socket: &Weak<OwnedFd>, to: &UnixAddr, uid: u32, rules: &OwnerRules, reply: &[u8]) -> Result<(), DropCause> {
    // Without the socket, the listener has ended, and has counted this reply.
    if socket.strong_count() == 0 {
        return Err(DropCause::NoRoom);
    }
    let path = to.path().ok_or(DropCause::UnsafeAddress)?;
    let to = sender_socket::open(path, uid, rules)?;
    let socket = socket.upgrade().ok_or(DropCause::NoRoom)?;
    let sent = to.address().and_then(|to| {
        datagram_socket::send_message(socket.as_fd(), &[IoSlice::new(reply)], &[], MsgFlags::empty(), &to)
    });
    sent.map_err(datagram_socket::drop_cause)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net::UnixDatagram;
    use std::sync::mpsc as channel;
    use std::task::Wake;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn path_replies(threads: &UserThreads) -> PathReplies {
        let (socket, waker) =
            (UnixDatagram::unbound().unwrap().into(), Waker::from(Arc::new(TestThread(thread::current()))));
        PathReplies::new(socket, threads.clone(), Arc::default(), Arc::default(), waker)
    }

    /// The thread of a test.
    struct TestThread(thread::Thread);

    impl Wake for TestThread {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn own_uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn each_reply_is_sent_and_counted_or_reported_as_failed() {
        const COUNT: usize = 16;
        let directory = tempfile::tempdir().unwrap();
        let path = |number: usize| directory.path().join(number.to_string());
        let address = |number: usize| UnixAddr::new(&path(number)).unwrap();
        // Every other one is there.
        let bound: Vec<_> = (0..COUNT).step_by(2).map(|at| UnixDatagram::bind(path(at)).unwrap()).collect();
        let (mut replies, peer) = (path_replies(&UserThreads::default()), Peer::process(own_uid(), 1));
        for number in 0..COUNT {
            replies.send(address(number), peer, &[b"prefix", &vec![b'x'; number]]).unwrap();
        }
        while !replies.finish() {
            thread::park();
        }
        let failed = |number: usize| FailedReply { to: address(number), peer, cause: DropCause::UnsafeAddress };
        assert_eq!(replies.take_failures(), (1..COUNT).step_by(2).map(failed).collect::<Vec<_>>());
        let mut bytes_out = 0;
        for (at, client) in bound.iter().enumerate() {
            let len = client.recv(&mut [0; 100]).unwrap();
            assert_eq!(len, 6 + 2 * at);
            bytes_out += len as u64;
        }
        assert_eq!(replies.bytes_out.load(Ordering::Relaxed), bytes_out);
        assert_eq!(replies.send(address(0), Peer::Unknown, &[b"", b""]), Err(DropCause::UnsafeAddress));
        assert!(replies.finish());
    }

    #[test]
    fn replies_that_wait_when_their_listener_ends_are_not_sent() {
        let (threads, directory) = (UserThreads::default(), tempfile::tempdir().unwrap());
        let path = directory.path().join("client");
        let client = UnixDatagram::bind(&path).unwrap();
        let replies = path_replies(&threads);
        let (release, released) = channel::channel::<()>();
        threads
            .run(own_uid(), 1, move || {
                let _ = released.recv();
            })
            .unwrap();
        replies.send(UnixAddr::new(&path).unwrap(), Peer::process(own_uid(), 1), &[b"a", b"b"]).unwrap();
        drop(replies);
        drop(release);
        // What comes after it has run, so it has, too.
        let (last, ran) = channel::channel();
        threads
            .run(own_uid(), 1, move || {
                let _ = last.send(());
            })
            .unwrap();
        ran.recv_timeout(Duration::from_secs(30)).unwrap();
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
