//! Closes what peers sent: descriptors that came over Unix sockets (SCM_RIGHTS, unix(7)), and sockets in which some may
//! still be queued.
//!
//! close(2) of such a descriptor may take as long as its sender likes: a TCP socket with SO_LINGER and unsent data, a file
//! on a file system in user space. So no thread that serves closes one. A thread of its own does, made at first need; it may
//! block for good.
//!
//! ```text
//! connection ── descriptors ──► queue ──► disposal thread: SO_LINGER off ─► close ─► wake the connection
//! connection ── socket, permit ──►  "      close ─► release the permit
//! datagrams ── second descriptor ──►"      drop one datagram ─► wake the server of datagrams
//! ```
//!
//! The queue is bounded by its users: a connection is not read while descriptors of it wait, and no more of them are
//! received than there is room for ([`Disposal::room_beside`]). A socket waits together with its permit. Those without one, of
//! connections that were refused, are as few as descriptors: beyond that, nothing is accepted from Unix sockets.

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

/// How many bytes are taken and dropped at most before a socket is closed.
const MAX_DISCARDED_BYTES: usize = 1024 * 1024;

/// As how many bytes a short packet counts at least there: so at most 1,024 packets are dropped.
const MIN_PACKET_COUNT: usize = 1024;

/// Closes what peers sent, on a thread of its own. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Disposal(Arc<Shared>);

struct Shared {
    /// How many descriptors may wait, and how many sockets without a permit. Threads that receive some at once may
    /// pass it, each by those of one message.
    max_waiting: AtomicUsize,
    /// Descriptors that are not closed yet.
    waiting: AtomicUsize,
    /// Sockets that are not closed yet, and have no permit that counts against the limit on connections.
    unpermitted: AtomicUsize,
    /// Whether the thread could not be made.
    lacks_thread: AtomicBool,
    state: Mutex<State>,
    /// Signalled when the queue has an item.
    more: Condvar,
    /// Signalled when everything is closed.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Item>,
    /// Woken when there is room again.
    parked: Vec<Waker>,
    /// Woken when a socket is closed that has no permit.
    refused: Vec<Waker>,
    /// Whether the thread runs.
    has_thread: bool,
    /// Whether the thread is closing an item.
    is_closing: bool,
    /// How many times the thread cannot be made.
    #[cfg(test)]
    failing_starts: u32,
}

enum Item {
    /// Descriptors of one message, and what to wake when they are closed.
    Descriptors(Vec<OwnedFd>, Waker),
    /// A socket, closed before its permit is released, if it has one.
    Socket(OwnedFd, Option<ClosingPermit>),
    /// A connected socket, whose input is dropped before it is closed.
    Unread(OwnedFd),
    /// A socket whose next packet is dropped, and what to wake then.
    Packet(Arc<OwnedFd>, Waker),
}

impl State {
    /// Returns whether the thread can be made, as far as a test decides that.
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
    /// Sets how many descriptors may wait.
    pub(crate) fn set_max_waiting(&self, max_waiting: usize) {
        self.0.max_waiting.store(max_waiting, Ordering::SeqCst);
        self.0.wake_parked();
        self.0.wake_refused();
    }

    /// Has descriptors closed, and then `waker` woken. Their connection is not to be read until then.
    pub(crate) fn dispose(&self, descriptors: Vec<OwnedFd>, waker: Waker) {
        self.0.waiting.fetch_add(descriptors.len(), Ordering::SeqCst);
        self.push(Item::Descriptors(descriptors, waker));
    }

    /// Has a socket closed in which descriptors may be queued, and then its permit released. A permit that does not count against
    /// the limit on connections is released at once: [`Disposal::has_room`] bounds those sockets.
    pub(crate) fn close(&self, socket: OwnedFd, permit: Option<Permit>) {
        let permit = permit.and_then(Permit::into_closing);
        if permit.is_none() {
            self.0.unpermitted.fetch_add(1, Ordering::SeqCst);
        }
        self.push(Item::Socket(socket, permit));
    }

    /// Has a connected socket closed with the end of the stream, and without a reset for input that was not read.
    pub(crate) fn close_gracefully(&self, socket: OwnedFd) {
        self.push(Item::Unread(socket));
    }

    /// Has the next packet of `socket` dropped, and then `waker` woken. The socket is not to be read until then.
    pub(crate) fn drop_packet(&self, socket: Arc<OwnedFd>, waker: Waker) {
        self.0.waiting.fetch_add(1, Ordering::SeqCst);
        self.push(Item::Packet(socket, waker));
    }

    /// Waits until everything is closed, for so long at most.
    pub(crate) fn flush(&self, timeout: Duration) {
        let state = self.0.lock();
        let is_busy = |state: &mut State| state.is_closing || !state.queue.is_empty() && state.has_thread;
        // A timeout is as good as the end: what is left is closed with the process.
        drop(self.0.idle.wait_timeout_while(state, timeout, is_busy));
    }

    /// Tries again to make the thread, if items wait and it could not be made before. Returns whether there is one now, or no item
    /// waits for it. Each further item and each further connection has it tried again, too.
    pub(crate) fn retry_start(&self) -> bool {
        let mut state = self.0.lock();
        state.queue.is_empty() || self.start(&mut state)
    }

    /// Returns how many descriptors wait.
    pub(crate) fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::SeqCst)
    }

    /// Returns how many more descriptors may be received while `waiting` of them wait.
    pub(crate) fn room_beside(&self, waiting: usize) -> usize {
        self.0.max_waiting.load(Ordering::SeqCst).saturating_sub(waiting)
    }

    /// Has `waker` woken when there is more room than while `waiting` descriptors waited: at once, if there is by now.
    pub(crate) fn park(&self, waiting: usize, waker: Waker) {
        let mut state = self.0.lock();
        if self.waiting() < waiting.max(1) {
            drop(state);
            waker.wake();
        } else {
            state.parked.push(waker);
        }
    }

    /// Returns whether one more socket may wait that does not count against the limit on connections. If not, `waker` is
    /// woken when that may have changed.
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
        // A socket may have been closed in between.
        has_room()
    }

    fn push(&self, item: Item) {
        let mut state = self.0.lock();
        state.queue.push_back(item);
        // Without a thread, everything waits: nothing is ever closed here.
        self.start(&mut state);
        drop(state);
        self.0.more.notify_one();
    }

    /// Makes the thread if there is none. Returns whether there is one now.
    fn start(&self, state: &mut State) -> bool {
        if !state.has_thread {
            let shared = Arc::clone(&self.0);
            let builder = thread::Builder::new().name("disposal".to_owned());
            state.has_thread = state.may_start() && builder.spawn(move || shared.run()).is_ok();
            self.0.lacks_thread.store(!state.has_thread, Ordering::Relaxed);
        }
        state.has_thread
    }

    /// Has the thread fail to be made so many times.
    #[cfg(test)]
    fn fail_starts(&self, count: u32) {
        self.0.lock().failing_starts = count;
    }
}

/// Wakes a task that waits until descriptors are closed, or until there is room for further ones.
#[derive(Debug, Default)]
pub(crate) struct Unparked(Notify);

impl Unparked {
    /// Waits until it is woken, or returns at once if it was.
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
    /// Closes items for ever. The thread ends with the process.
    fn run(&self) {
        loop {
            let item = self.next();
            match item {
                Item::Descriptors(descriptors, waker) => {
                    for descriptor in descriptors {
                        // It fails for what is not a socket.
                        let _ = sockopt::set_socket_linger(descriptor.as_fd(), None);
                        drop(descriptor);
                        self.waiting.fetch_sub(1, Ordering::SeqCst);
                    }
                    waker.wake();
                    self.unpark();
                }
                Item::Packet(socket, waker) => {
                    // Without space for its descriptors, so the kernel closes them here. There is an error if another
                    // process has read it.
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

    /// Wakes the parked connections once half of the room is free.
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

/// Closes a connection without waiting: with the end of the stream, and without a reset for input that was not read.
pub(crate) fn close_gracefully(socket: OwnedFd) {
    // A peer that is gone does not mind.
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
