//! Closes what peers sent: descriptors that came over Unix sockets (SCM_RIGHTS, unix(7)), and sockets in which some may
//! still be queued.
//!
//! close(2) of such a descriptor may take as long as its sender likes: a TCP socket with SO_LINGER and unsent data, a file
//! on a file system in user space. So no thread that serves ever closes one. A thread of its own does, made at first need;
//! it may block for good.
//!
//! ```text
//! connection ── descriptors ──► queue ──► disposal thread: SO_LINGER off ─► close ─► wake the connection
//! connection ── socket, permit ──►  "      close ─► release the permit
//! ```
//!
//! The queue is bounded by its users: a connection is not read while descriptors of it wait, and from [`MAX_WAITING`] on a
//! connection that brings more is not read at all ([`Disposal::is_full`]). A socket waits together with its permit, so there
//! are no more of them than `limits.connections` allows.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::sync::Notify;

use super::admission::{ClosingPermit, Permit};
use super::handover::close_gracefully;

/// How many descriptors may wait before connections that bring more are not read. One message brings up to 253 of them
/// (SCM_MAX_FD, unix(7)), so each worker may pass the number by that.
pub(crate) const MAX_WAITING: usize = 1024;

/// Closes what peers sent, on a thread of its own. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disposal(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Descriptors that are not closed yet.
    waiting: AtomicUsize,
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
    /// Whether the thread runs.
    has_thread: bool,
    /// Whether the thread is closing an item.
    is_closing: bool,
}

enum Item {
    /// Descriptors of one message, and what to wake when they are closed.
    Descriptors(Vec<OwnedFd>, Waker),
    /// A socket, closed before its permit is released.
    Socket(OwnedFd, Option<ClosingPermit>),
    /// A connected socket, whose input is dropped before it is closed.
    Unread(OwnedFd),
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disposal").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Disposal {
    /// Has descriptors closed, and then `waker` woken. Their connection is not to be read until then.
    pub(crate) fn dispose(&self, descriptors: Vec<OwnedFd>, waker: Waker) {
        self.0.waiting.fetch_add(descriptors.len(), Ordering::SeqCst);
        self.push(Item::Descriptors(descriptors, waker));
    }

    /// Has a socket closed in which descriptors may be queued, and then its permit released.
    pub(crate) fn close(&self, socket: OwnedFd, permit: Option<Permit>) {
        self.push(Item::Socket(socket, permit.map(Permit::into_closing)));
    }

    /// Has a connected socket closed with the end of the stream, and without a reset for input that was not read.
    pub(crate) fn close_gracefully(&self, socket: OwnedFd) {
        self.push(Item::Unread(socket));
    }

    /// Waits until everything is closed, for so long at most.
    pub(crate) fn flush(&self, timeout: Duration) {
        let state = self.0.lock();
        let is_busy = |state: &mut State| state.is_closing || !state.queue.is_empty() && state.has_thread;
        // A timeout is as good as the end: what is left is closed with the process.
        drop(self.0.idle.wait_timeout_while(state, timeout, is_busy));
    }

    /// Returns whether so many descriptors wait that no more are to be received.
    pub(crate) fn is_full(&self) -> bool {
        self.0.waiting.load(Ordering::SeqCst) >= MAX_WAITING
    }

    /// Has `waker` woken when there is room again: at once, if there is.
    pub(crate) fn park(&self, waker: Waker) {
        let mut state = self.0.lock();
        if self.is_full() {
            state.parked.push(waker);
        } else {
            drop(state);
            waker.wake();
        }
    }

    fn push(&self, item: Item) {
        let mut state = self.0.lock();
        state.queue.push_back(item);
        if !state.has_thread {
            let shared = Arc::clone(&self.0);
            // Without a thread, everything waits for the next item: nothing is ever closed here.
            state.has_thread = thread::Builder::new().name("disposal".to_owned()).spawn(move || shared.run()).is_ok();
        }
        drop(state);
        self.0.more.notify_one();
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
                Item::Socket(socket, permit) => {
                    drop(socket);
                    drop(permit);
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
        if self.waiting.load(Ordering::SeqCst) > MAX_WAITING / 2 {
            return;
        }
        let parked = std::mem::take(&mut self.lock().parked);
        parked.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
