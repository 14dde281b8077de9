//! Sends the replies of one listener to Unix sockets that are bound to a path.
//!
//! Opening a path and sending to it can block: the kernel asks the file system for each directory and for the mode of the
//! socket, and the file system may be on another machine or in another program (NFS, FUSE). A sender can choose any path. So
//! the thread of the listener never uses a path, but leaves it to other threads ([`UserThreads`]). They wake it if a reply
//! could not be sent.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use nix::sys::socket::{MsgFlags, UnixAddr};

use crate::protocol::packet::{DropCause, Reply};
use crate::server::counters::PathCounters;
use crate::server::packets::datagram_socket;
use crate::server::packets::sender_socket::{OwnerRules, ReservedSockets, SenderSocket};
use crate::server::packets::user_threads::{UserTask, UserThreads};
use crate::server::peer::Peer;

/// The memory of a waiting reply besides its bytes, in bytes.
const OVERHEAD: usize = 1024;

/// The maximum number of paths that a thread has open at the same time.
const MAX_OPEN: usize = 16;

/// The threads that send the replies of all listeners to paths.
pub(crate) type ReplyThreads = UserThreads<PathReply>;

/// Sends the replies of a listener to paths.
#[derive(Debug)]
pub(crate) struct PathReplies {
    threads: ReplyThreads,
    /// A copy of the listener's socket; `None` when the listener has ended. Threads can use it only while it is here.
    socket: Option<Arc<OwnedFd>>,
    sender: Arc<ReplySender>,
}

/// The state that a listener shares with the threads that send its replies.
#[derive(Debug)]
struct ReplySender {
    socket: Weak<OwnedFd>,
    rules: OwnerRules,
    progress: Progress,
}

/// A reply that is waiting to be sent.
#[derive(Debug)]
pub(crate) struct PathReply {
    sender: Arc<ReplySender>,
    to: UnixAddr,
    peer: Peer,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Progress {
    state: Mutex<ProgressState>,
    /// Counts what was sent.
    sent: Arc<PathCounters>,
    /// Woken when a reply could not be sent, and, after [`PathReplies::finish`], when no reply is waiting.
    waker: Waker,
}

#[derive(Debug, Default)]
struct ProgressState {
    /// The number of replies that are neither sent nor failed.
    waiting: usize,
    /// Replies that could not be sent.
    failed: Vec<FailedReply>,
    /// Whether the listener waits until no reply is waiting.
    is_finishing: bool,
    /// Whether the listener has ended. It has already counted the replies that were waiting then.
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
    /// Creates the sender for the listener with this socket. It sends nothing to `reserved` sockets, counts what it sends in
    /// `sent`, and wakes the listener with `waker`.
    pub(crate) fn new(
        socket: OwnedFd,
        threads: ReplyThreads,
        reserved: ReservedSockets,
        sent: Arc<PathCounters>,
        waker: Waker,
    ) -> Self {
        let socket = Arc::new(socket);
        let progress = Progress { state: Mutex::default(), sent, waker };
        let rules = OwnerRules::new(reserved);
        let sender = Arc::new(ReplySender { socket: Arc::downgrade(&socket), rules, progress });
        Self { threads, socket: Some(socket), sender }
    }

    /// Returns whether a reply to `peer` may go to its address, judged by these two alone.
    pub(crate) fn is_allowed(&self, address: &UnixAddr, peer: Peer) -> bool {
        self.sender.rules.is_allowed(address, peer)
    }

    /// Queues a reply to the path of a sender, behind earlier ones to the same path. If it cannot be sent later,
    /// [`PathReplies::take_failures`] returns it.
    ///
    /// # Errors
    /// Returns an error if too many replies are waiting, or if the sender's UID is unknown.
    pub(crate) fn send(&self, to: UnixAddr, peer: Peer, reply: &Reply<'_>) -> Result<(), DropCause> {
        let uid = self.sender.rules.known_uid(peer).ok_or(DropCause::UnsafeAddress)?;
        let bytes = reply.concat();
        let size = OVERHEAD + bytes.len();
        // Counted first, because the thread may finish before `run` returns.
        self.sender.progress.lock().waiting += 1;
        let waits = self.threads.run(uid, size, PathReply { sender: Arc::clone(&self.sender), to, peer, bytes });
        if waits.is_err() {
            self.sender.progress.finish_one(None);
        }
        waits
    }

    /// Requests a wakeup for the time when no reply is waiting. Returns whether none is waiting now.
    pub(crate) fn finish(&self) -> bool {
        let mut state = self.sender.progress.lock();
        state.is_finishing = true;
        state.waiting == 0
    }

    /// Ends the sending: replies that are still waiting are not sent. Returns their number, which includes replies that are
    /// being sent at this moment.
    pub(crate) fn end(&mut self) -> usize {
        self.socket = None;
        let mut state = self.sender.progress.lock();
        state.has_ended = true;
        state.waiting
    }

    /// Returns the replies that could not be sent since the last call.
    pub(crate) fn take_failures(&mut self) -> Vec<FailedReply> {
        std::mem::take(&mut self.sender.progress.lock().failed)
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, ProgressState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a reply was sent, with its length in bytes, or has failed; `None` if no thread got it. If the listener has
    /// ended, it has already counted the reply.
    fn finish_one(&self, sent: Option<Result<usize, FailedReply>>) {
        let mut state = self.lock();
        state.waiting -= 1;
        if !state.has_ended {
            match sent {
                Some(Ok(bytes)) => self.sent.count_reply(bytes),
                Some(Err(failed)) => state.failed.push(failed),
                None => {}
            }
        }
        // A reply that was sent needs no wakeup.
        let wakes = !state.failed.is_empty() || state.is_finishing && state.waiting == 0;
        drop(state);
        if wakes {
            self.waker.wake_by_ref();
        }
    }
}

impl PathReply {
    /// Returns the key by which replies to the same socket are grouped: listener, then path.
    fn destination(&self) -> (*const ReplySender, Option<&OsStr>) {
        (Arc::as_ptr(&self.sender), self.to.path().map(Path::as_os_str))
    }
}

impl UserTask for PathReply {
    /// Opens each path once for all its replies, which were all queued before.
    fn run_all(uid: u32, replies: &mut Vec<Self>) {
        // The sort is stable: replies to one path keep their order.
        replies.sort_by(|one, other| one.destination().cmp(&other.destination()));
        for of_listener in replies.chunk_by(|one, other| Arc::ptr_eq(&one.sender, &other.sender)) {
            let of_paths: Vec<_> =
                of_listener.chunk_by(|one, other| one.destination() == other.destination()).collect();
            of_paths.chunks(MAX_OPEN).for_each(|of_paths| send(&of_listener[0].sender, uid, of_paths));
        }
    }
}

/// Sends replies of a listener to sockets of a user. The replies of one slice go to the same path. May block forever. The
/// sockets are closed here as well, because close(2) may also ask the file system.
fn send(sender: &ReplySender, uid: u32, of_paths: &[&[PathReply]]) {
    // Without its socket, the listener has ended, and has counted these replies.
    let open = |replies: &&[PathReply]| {
        let path = replies[0].to.path().filter(|_| sender.socket.strong_count() > 0);
        SenderSocket::open(path.ok_or(DropCause::NoRoom)?, uid)
    };
    let sockets: Vec<_> = of_paths.iter().map(open).collect();
    let reserved = sender.rules.reserved_files();
    for (replies, socket) in of_paths.iter().zip(&sockets) {
        let to = socket.as_ref().map_err(|cause| *cause).and_then(|socket| {
            let reserved = reserved.as_ref().map_err(|cause| *cause)?;
            socket.address(reserved)
        });
        for PathReply { to: address, peer, bytes, .. } in *replies {
            let sent = to.and_then(|to| send_one(&sender.socket, &to, bytes));
            let sent = sent.map(|()| bytes.len());
            // Recorded one by one, because the next reply may block.
            sender.progress.finish_one(Some(sent.map_err(|cause| FailedReply { to: *address, peer: *peer, cause })));
        }
    }
}

fn send_one(socket: &Weak<OwnedFd>, to: &UnixAddr, reply: &[u8]) -> Result<(), DropCause> {
    let socket = socket.upgrade().ok_or(DropCause::NoRoom)?;
    let sent = datagram_socket::send_message(socket.as_fd(), &[IoSlice::new(reply)], &[], MsgFlags::empty(), to);
    sent.map_err(|error| datagram_socket::drop_cause(error, socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::task::Wake;
    use std::thread;

    use super::*;

    fn path_replies(threads: &ReplyThreads) -> PathReplies {
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
        // Only every other path has a socket.
        let bound: Vec<_> = (0..COUNT).step_by(2).map(|at| UnixDatagram::bind(path(at)).unwrap()).collect();
        let (mut replies, peer) = (path_replies(&ReplyThreads::default()), Peer::process(own_uid(), 1));
        for number in 0..COUNT {
            replies.send(address(number), peer, &[b"prefix", &vec![b'x'; number]]).unwrap();
        }
        while !replies.finish() {
            thread::park();
        }
        let failed = |number: usize| FailedReply { to: address(number), peer, cause: DropCause::UnsafeAddress };
        let mut failures = replies.take_failures();
        // Replies to different paths may be sent in another order.
        failures.sort_by_key(|failed| {
            failed.to.path().unwrap().file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap()
        });
        assert_eq!(failures, (1..COUNT).step_by(2).map(failed).collect::<Vec<_>>());
        let mut bytes_out = 0;
        for (at, client) in bound.iter().enumerate() {
            let len = client.recv(&mut [0; 100]).unwrap();
            assert_eq!(len, 6 + 2 * at);
            bytes_out += len as u64;
        }
        assert_eq!(replies.sender.progress.sent.bytes(), bytes_out);
        assert_eq!(replies.send(address(0), Peer::Unknown, &[b"", b""]), Err(DropCause::UnsafeAddress));
        assert!(replies.finish());
    }

    /// Returns a waiting reply that no thread has taken.
    fn waiting_reply(replies: &PathReplies, to: &Path, bytes: &[u8]) -> PathReply {
        replies.sender.progress.lock().waiting += 1;
        let (sender, peer) = (Arc::clone(&replies.sender), Peer::process(own_uid(), 1));
        PathReply { sender, to: UnixAddr::new(to).unwrap(), peer, bytes: bytes.to_vec() }
    }

    #[test]
    fn replies_that_are_sent_together_come_to_each_path_in_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = |number: usize| directory.path().join(number.to_string());
        // More paths than a thread has open at the same time.
        let clients: Vec<_> = (0..MAX_OPEN + 2).map(|at| UnixDatagram::bind(path(at)).unwrap()).collect();
        // The replies belong to two listeners.
        let listeners = [(); 2].map(|()| path_replies(&ReplyThreads::default()));
        let mut waiting = Vec::new();
        for number in 0..4_u8 {
            for at in 0..clients.len() {
                waiting.push(waiting_reply(&listeners[usize::from(number % 2)], &path(at), &[number]));
            }
        }
        PathReply::run_all(own_uid(), &mut waiting);
        for client in &clients {
            client.set_nonblocking(true).unwrap();
            let mut received = Vec::new();
            let mut byte = [0];
            while client.recv(&mut byte).is_ok() {
                received.push(byte[0]);
            }
            // The replies of one listener are in order.
            received.sort_by_key(|number| number % 2);
            assert_eq!(received, [0, 2, 1, 3]);
        }
        assert!(listeners.iter().all(PathReplies::finish));
    }

    #[test]
    fn replies_that_wait_when_their_listener_ends_are_not_sent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client");
        let client = UnixDatagram::bind(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        for ends in [false, true] {
            let mut replies = path_replies(&ReplyThreads::default());
            let mut waiting = vec![waiting_reply(&replies, &path, b"a"), waiting_reply(&replies, &path, b"b")];
            if ends {
                assert_eq!(replies.end(), 2);
            }
            PathReply::run_all(own_uid(), &mut waiting);
            let received = (0..3).map_while(|_| client.recv(&mut [0; 10]).ok()).count();
            assert_eq!(received, if ends { 0 } else { 2 });
            // The replies are counted once.
            assert_eq!(replies.take_failures(), []);
        }
    }
}
