//! The mailbox of an event loop, with the commands of other threads.

use std::convert::Infallible;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::retry_on_intr;
use tokio::sync::oneshot;

use super::connection::{Connection, ConnectionWakers, DetachedConnection};
use super::idleness::IdleReport;
use super::listener::Listener;
use super::listing::{CloseRequest, SliceRequest};

/// Commands of other threads to an event loop.
#[derive(Default)]
pub(crate) struct Commands {
    /// Connections to serve.
    #[expect(clippy::vec_box, reason = "where they are now is where they stay")]
    pub(crate) accepted: Vec<Box<Connection>>,
    /// Connections to serve that were restored from the previous process.
    #[expect(clippy::vec_box, reason = "where they are now is where they stay")]
    pub(crate) restored: Vec<Box<Connection>>,
    /// New acceptors to be run.
    pub(crate) acceptors: Vec<Box<dyn Acceptor>>,
    /// Whether all acceptors are to run, because the accept mode has changed.
    pub(crate) run_acceptors: bool,
    /// Whether paused acceptors are to run, because the reason for their pause may be gone.
    pub(crate) resume_acceptors: bool,
    /// Keys of connections to drive.
    pub(crate) woken: Vec<usize>,
    /// Keys and ids of connections to read again, because descriptors from their peers have been closed.
    pub(crate) unparked: Vec<(usize, u64)>,
    /// Senders for reports of idle connections.
    pub(crate) idle_reports: Vec<oneshot::Sender<IdleReport>>,
    /// Connections to close if they are still idle.
    pub(crate) reclaims: Vec<Reclaim>,
    /// Slices of the list of connections that an administrator wants.
    pub(crate) slices: Vec<SliceRequest>,
    /// Connections that an administrator wants closed.
    pub(crate) closes: Vec<CloseRequest>,
    /// Whether to drive all connections, because they have to drain.
    pub(crate) drain: bool,
    /// Whether to give up the connections with unlogged messages whose peers do not read.
    pub(crate) give_up_blocked: bool,
    /// Listeners whose connections end at once.
    pub(crate) close_listeners: Vec<Arc<Listener>>,
    /// Where to send all connections when they are detached.
    pub(crate) detach: Option<oneshot::Sender<Vec<DetachedConnection>>>,
    /// Dropped when all connections that are ready now have been driven.
    pub(crate) barriers: Vec<oneshot::Sender<Infallible>>,
    /// Dropped when the event loop runs these commands.
    pub(crate) pings: Vec<oneshot::Sender<Infallible>>,
    /// Whether the event loop ends.
    pub(crate) stop: bool,
}

/// A request to close a connection if it is still idle.
pub(crate) struct Reclaim {
    pub(crate) key: usize,
    pub(crate) id: u64,
    /// The start of its idle time when it was chosen.
    pub(crate) since: Instant,
    /// Receives whether the connection is closed.
    pub(crate) answer: oneshot::Sender<bool>,
}

/// Accepts connections on the thread of an event loop.
pub(crate) trait Acceptor: Send {
    /// Returns the socket to watch.
    fn socket(&self) -> BorrowedFd<'_>;

    /// Accepts waiting connections, but only a batch of them, because established connections wait meanwhile. `flags` is the
    /// readiness of the socket; empty if it is unknown. Passes connections that this event loop is to serve to `serve`.
    fn run(&mut self, flags: EventFlags, now: Instant, serve: &mut dyn FnMut(Box<Connection>)) -> NextRun;

    /// Handles a failure to add the socket to the epoll set. Returns when to try again.
    fn watch_failed(&mut self, error: io::Error, now: Instant) -> Instant;
}

/// When to run an acceptor again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextRun {
    /// When its socket is ready.
    Ready,
    /// When a command runs paused acceptors, or at this time at the latest.
    Paused(Option<Instant>),
    /// Never: the acceptor has ended.
    Never,
}

/// The mailbox of one event loop.
pub(crate) struct Mailbox {
    commands: Mutex<Commands>,
    /// Whether `commands` is not empty.
    has_commands: AtomicBool,
    /// Wakes the event loop. It is watched edge-triggered, so it need not be read.
    eventfd: OwnedFd,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

impl Mailbox {
    /// Creates an empty mailbox.
    ///
    /// # Errors
    /// Returns the errors of eventfd(2).
    pub(crate) fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { commands: Mutex::default(), has_commands: AtomicBool::new(false), eventfd })
    }

    /// Returns the descriptor that becomes ready with the first command in an empty mailbox.
    pub(crate) fn eventfd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// Adds commands, and wakes the event loop if the mailbox was empty.
    pub(crate) fn post(&self, put: impl FnOnce(&mut Commands)) {
        let mut commands = self.lock();
        put(&mut commands);
        let is_known = self.has_commands.swap(true, Ordering::AcqRel);
        drop(commands);
        if !is_known {
            // It fails only after 2^64 - 2 writes.
            let _ = retry_on_intr(|| rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes()));
        }
    }

    #[inline]
    pub(crate) fn has_commands(&self) -> bool {
        self.has_commands.load(Ordering::Acquire)
    }

    /// Takes all commands.
    pub(crate) fn take(&self) -> Commands {
        let mut commands = self.lock();
        self.has_commands.store(false, Ordering::Release);
        mem::take(&mut *commands)
    }

    fn lock(&self) -> MutexGuard<'_, Commands> {
        // A command is added in one step, so the mailbox is valid even if a thread panicked.
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes connections from any thread. If the key of one has been reused, the new connection gets one spurious wakeup.
impl ConnectionWakers for Arc<Mailbox> {
    fn drive_waker(&self, key: usize) -> Waker {
        Waker::from(Arc::new(DriveWaker { mailbox: Self::clone(self), key }))
    }

    fn unpark_waker(&self, key: usize, id: u64) -> Waker {
        Waker::from(Arc::new(UnparkWaker { mailbox: Self::clone(self), key, id }))
    }
}

struct DriveWaker {
    mailbox: Arc<Mailbox>,
    key: usize,
}

impl Wake for DriveWaker {
    fn wake(self: Arc<Self>) {
        self.mailbox.post(|commands| commands.woken.push(self.key));
    }
}

struct UnparkWaker {
    mailbox: Arc<Mailbox>,
    key: usize,
    id: u64,
}

impl Wake for UnparkWaker {
    fn wake(self: Arc<Self>) {
        self.mailbox.post(|commands| commands.unparked.push((self.key, self.id)));
    }
}

/// Runs the paused acceptors of an event loop when it is woken.
pub(crate) struct AcceptorWaker(pub(crate) Arc<Mailbox>);

impl Wake for AcceptorWaker {
    fn wake(self: Arc<Self>) {
        self.0.post(|commands| commands.resume_acceptors = true);
    }
}
