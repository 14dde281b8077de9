//! The disposal thread: closes file descriptors that peers sent over Unix sockets (SCM_RIGHTS, unix(7)), and sockets in
//! which some may still be queued.
//!
//! close(2) of such a descriptor may block for as long as its sender likes: a TCP socket with SO_LINGER and unsent
//! data, or a file of a FUSE file system. So the threads that serve never close one; a separate thread does, started on
//! first use. That thread may block forever.
//!
//! ```text
//! connection ── descriptors ──► queue ──► disposal thread: SO_LINGER off ─► close ─► wake the connection
//! connection ── socket, permit ──►  "      close ─► release the permit
//! datagrams ── second descriptor ──►"      drop one datagram ─► wake the server of datagrams
//! ```
//!
//! The users of the queue bound it. A connection is not read while its descriptors are in the queue, and no more are
//! received than there is room for ([`Disposal::room_beside`]). A queued socket holds its permit. Sockets of refused
//! connections, which have no permit, are limited to the same number as descriptors; beyond that, no connection is
//! accepted from Unix sockets.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread;
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, Shutdown, SocketType, recv, sockopt};
use tokio::sync::Notify;

use super::admission::{ClosingPermit, Permit};
use crate::rlimit::MAX_PEER_FDS;

/// The most bytes of input that are discarded before a socket is closed.
const MAX_DISCARDED_BYTES: usize = 1024 * 1024;

/// The least number of bytes for which a packet counts towards that limit, so that at most 1,024 packets are discarded.
const MIN_PACKET_COUNT: usize = 1024;

/// Closes what peers sent, on a separate thread. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Disposal(Arc<Shared>);

struct Shared {
    /// The limit on queued descriptors, and on queued sockets without a permit. Threads that receive at the same time
    /// may exceed it, each by the descriptors of one message.
    max_waiting: AtomicUsize,
    /// Descriptors that have not been closed yet.
    waiting: AtomicUsize,
    /// Sockets that have not been closed yet and hold no permit that counts against the limit on connections.
    unpermitted: AtomicUsize,
    /// Whether creating the thread has failed.
    lacks_thread: AtomicBool,
    state: Mutex<State>,
    /// Notified when the queue gets an item.
    more: Condvar,
    /// Notified when the queue is empty and nothing is being closed.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Item>,
    /// Woken when there is room for more descriptors.
    parked: Vec<Waker>,
    /// Woken when a socket without a permit is closed.
    refused: Vec<Waker>,
    /// Whether the thread was started.
    has_thread: bool,
    /// Whether the thread is closing an item.
    is_closing: bool,
    /// How many attempts to create the thread fail, in a test.
    #[cfg(test)]
    failing_starts: u32,
}

enum Item {
    /// The descriptors of one message, and the waker for when they are closed.
    Descriptors(Vec<OwnedFd>, Waker),
    /// A socket to close, and the permit to release after that.
    Socket(OwnedFd, Option<ClosingPermit>),
    /// A connected socket whose input is discarded before it is closed.
    Unread(OwnedFd),
    /// A socket whose next packet is discarded, and the waker for after that.
    Packet(Arc<OwnedFd>, Waker),
}

impl State {
    /// Returns whether the thread may be created, unless a test makes it fail.
    fn may_start(&mut self) -> bool {
        #[cfg(test)]
        if self.failing_starts > 0 {
            self.failing_starts -= 1;
            return false;
        }
        true
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disposal").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Default for Disposal {
    fn default() -> Self {
        Self(Arc::new(Shared {
            max_waiting: AtomicUsize::new(MAX_PEER_FDS),
            waiting: AtomicUsize::new(0),
            unpermitted: AtomicUsize::new(0),
            lacks_thread: AtomicBool::new(false),
            state: Mutex::default(),
            more: Condvar::new(),
            idle: Condvar::new(),
        }))
    }
}

impl Disposal {
    /// Sets the limit on queued descriptors.
    pub(crate) fn set_max_waiting(&self, max_waiting: usize) {
        self.0.max_waiting.store(max_waiting, Ordering::SeqCst);
        self.0.wake_parked();
        self.0.wake_refused();
    }

    /// Closes descriptors on the thread, and then wakes `waker`. Their connection must not be read until then.
    pub(crate) fn dispose(&self, descriptors: Vec<OwnedFd>, waker: Waker) {
        self.0.waiting.fetch_add(descriptors.len(), Ordering::SeqCst);
        self.push(Item::Descriptors(descriptors, waker));
    }

    /// Closes a socket in which descriptors may be queued on the thread, and then releases its permit. A permit that
    /// does not count against the limit on connections is released at once; [`Disposal::has_room`] limits these
    /// sockets.
    pub(crate) fn close(&self, socket: OwnedFd, permit: Option<Permit>) {
        let permit = permit.and_then(Permit::into_closing);
        if permit.is_none() {
            self.0.unpermitted.fetch_add(1, Ordering::SeqCst);
        }
        self.push(Item::Socket(socket, permit));
    }

    /// Closes a connected socket on the thread, with an end of stream and discarding unread input so that the kernel
    /// sends no reset.
    pub(crate) fn close_gracefully(&self, socket: OwnedFd) {
        self.push(Item::Unread(socket));
    }

    /// Discards the next packet of `socket` on the thread, and then wakes `waker`. The socket must not be read until
    /// then.
    pub(crate) fn drop_packet(&self, socket: Arc<OwnedFd>, waker: Waker) {
        self.0.waiting.fetch_add(1, Ordering::SeqCst);
        self.push(Item::Packet(socket, waker));
    }

    /// Waits until everything is closed, at most for `timeout`.
    pub(crate) fn flush(&self, timeout: Duration) {
        let state = self.0.lock();
        let is_busy = |state: &mut State| state.is_closing || !state.queue.is_empty() && state.has_thread;
        // After a timeout, the exit of the process closes the rest.
        drop(self.0.idle.wait_timeout_while(state, timeout, is_busy));
    }

    /// Tries again to create the thread, if items are queued without one. Returns whether no item lacks the thread now.
    /// Each new item and each new connection causes another attempt.
    pub(crate) fn retry_start(&self) -> bool {
        let mut state = self.0.lock();
        state.queue.is_empty() || self.start(&mut state)
    }

    /// Returns how many descriptors wait.
    pub(crate) fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::SeqCst)
    }

    /// Returns how many more descriptors may be received while `waiting` are queued.
    pub(crate) fn room_beside(&self, waiting: usize) -> usize {
        self.0.max_waiting.load(Ordering::SeqCst).saturating_sub(waiting)
    }

    /// Wakes `waker` when fewer than `waiting` descriptors are queued, possibly at once.
    pub(crate) fn park(&self, waiting: usize, waker: Waker) {
        let mut state = self.0.lock();
        if self.waiting() < waiting.max(1) {
            drop(state);
            waker.wake();
        } else {
            state.parked.push(waker);
        }
    }

    /// Returns whether one more socket without a counted permit may be queued. If not, `waker` is woken when that may
    /// have changed.
    pub(crate) fn has_room(&self, waker: &Waker) -> bool {
        if self.0.lacks_thread.load(Ordering::Relaxed) {
            self.retry_start();
        }
        let has_room = || self.0.unpermitted.load(Ordering::SeqCst) < self.0.max_waiting.load(Ordering::SeqCst);
        if has_room() {
            return true;
        }
        let mut state = self.0.lock();
        if !state.refused.iter().any(|refused| refused.will_wake(waker)) {
            state.refused.push(waker.clone());
        }
        drop(state);
        // A socket may have been closed between the check and the registration.
        has_room()
    }

    fn push(&self, item: Item) {
        let mut state = self.0.lock();
        state.queue.push_back(item);
        // Without a thread, items stay queued: a thread that serves never closes them itself.
        self.start(&mut state);
        drop(state);
        self.0.more.notify_one();
    }

    /// Creates the thread if there is none. Returns whether there is one now.
    fn start(&self, state: &mut State) -> bool {
        if !state.has_thread {
            let shared = Arc::clone(&self.0);
            let builder = thread::Builder::new().name("disposal".to_owned());
            state.has_thread = state.may_start() && builder.spawn(move || shared.run()).is_ok();
            self.0.lacks_thread.store(!state.has_thread, Ordering::Relaxed);
        }
        state.has_thread
    }

    /// Makes the next `count` attempts to create the thread fail.
    #[cfg(test)]
    fn fail_starts(&self, count: u32) {
        self.0.lock().failing_starts = count;
    }
}

/// Wakes a task that waits until descriptors are closed or there is room for more.
#[derive(Debug, Default)]
pub(crate) struct Unparked(Notify);

impl Unparked {
    /// Waits for a wakeup; returns at once if it has already occurred.
    pub(crate) async fn wait(&self) {
        self.0.notified().await;
    }
}

impl Wake for Unparked {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}

impl Shared {
    /// Processes items until the process ends.
    fn run(&self) {
        loop {
            let item = self.next();
            match item {
                Item::Descriptors(descriptors, waker) => {
                    for descriptor in descriptors {
                        // Fails for descriptors that are not sockets.
                        let _ = sockopt::set_socket_linger(descriptor.as_fd(), None);
                        drop(descriptor);
                        self.waiting.fetch_sub(1, Ordering::SeqCst);
                    }
                    waker.wake();
                    self.unpark();
                }
                Item::Packet(socket, waker) => {
                    // Without space for its descriptors, the kernel closes them during this call. It fails if another
                    // process has taken the packet.
                    let _ = recv(&socket, &mut [0; 0], RecvFlags::DONTWAIT);
                    drop(socket);
                    self.waiting.fetch_sub(1, Ordering::SeqCst);
                    waker.wake();
                    self.unpark();
                }
                Item::Socket(socket, Some(permit)) => {
                    drop(socket);
                    drop(permit);
                }
                Item::Socket(socket, None) => {
                    drop(socket);
                    self.unpermitted.fetch_sub(1, Ordering::SeqCst);
                    self.wake_refused();
                }
                Item::Unread(socket) => close_gracefully(socket),
            }
        }
    }

    fn next(&self) -> Item {
        let mut state = self.lock();
        loop {
            state.is_closing = !state.queue.is_empty();
            if let Some(item) = state.queue.pop_front() {
                return item;
            }
            self.idle.notify_all();
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wakes the parked connections once at least half of the room is free.
    fn unpark(&self) {
        if self.waiting.load(Ordering::SeqCst) > self.max_waiting.load(Ordering::SeqCst) / 2 {
            return;
        }
        self.wake_parked();
    }

    fn wake_parked(&self) {
        let parked = std::mem::take(&mut self.lock().parked);
        parked.into_iter().for_each(Waker::wake);
    }

    fn wake_refused(&self) {
        let refused = std::mem::take(&mut self.lock().refused);
        refused.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes a connection without waiting for the peer: sends the end of the stream, and discards unread input so that the
/// kernel sends no reset.
pub(crate) fn close_gracefully(socket: OwnedFd) {
    // Fails only if the peer has gone.
    let _ = rustix::net::shutdown(&socket, Shutdown::Write);
    // Then nothing tells the end of the stream from an empty packet. After the end, further calls return at once.
    let has_packets = retry_on_intr(|| sockopt::socket_type(&socket)).is_ok_and(|kind| kind == SocketType::SEQPACKET);
    let (mut buffer, mut remaining) = ([0; 16 * 1024], MAX_DISCARDED_BYTES);
    while remaining > 0 {
        match rustix::net::recv(&socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) if !has_packets => break,
            Ok((count, _)) => remaining = remaining.saturating_sub(count.max(MIN_PACKET_COUNT)),
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::mpsc::{self, Sender};

    use super::*;

    struct TestWaker(Sender<()>);

    impl Wake for TestWaker {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn what_waits_for_a_thread_that_could_not_be_made_goes_on_at_the_next_try() {
        let tries: [fn(&Disposal); 2] = [
            |disposal| assert!(disposal.retry_start()),
            // As for each further connection.
            |disposal| assert!(disposal.has_room(Waker::noop())),
        ];
        for try_again in tries {
            let disposal = Disposal::default();
            disposal.fail_starts(2);
            assert!(disposal.retry_start(), "no item waits");
            let (sender, receiver) = UnixDatagram::pair().unwrap();
            sender.send(b"dropped").unwrap();
            let (woken, wakeups) = mpsc::channel();
            disposal
                .drop_packet(Arc::new(receiver.try_clone().unwrap().into()), Waker::from(Arc::new(TestWaker(woken))));
            assert!(!disposal.retry_start());
            assert!(wakeups.try_recv().is_err());
            try_again(&disposal);
            wakeups.recv_timeout(Duration::from_secs(30)).expect("the packet is dropped");
            receiver.set_nonblocking(true).unwrap();
            assert!(receiver.recv(&mut [0; 10]).is_err());
        }
    }
}
