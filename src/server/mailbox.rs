//! The mailbox of an event loop, through which other threads send commands to it.

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

/// The commands for an event loop that have not been run yet.
#[derive(Default)]
pub(crate) struct Commands {
    /// Connections to serve.
    #[expect(clippy::vec_box, reason = "where they are now is where they stay")]
    pub(crate) accepted: Vec<Box<Connection>>,
    /// Connections to serve that were restored from the previous process.
    #[expect(clippy::vec_box, reason = "where they are now is where they stay")]
    pub(crate) restored: Vec<Box<Connection>>,
    /// Acceptors to run from now on.
    pub(crate) acceptors: Vec<Box<dyn Acceptor>>,
    /// Whether to run all acceptors, because the accept mode or the settings have changed.
    pub(crate) run_acceptors: bool,
    /// Whether to run the acceptors that pause, because the event for which they wait may have happened.
    pub(crate) resume_acceptors: bool,
    /// Keys of connections to drive.
    pub(crate) woken: Vec<usize>,
    /// Keys and ids of connections to read again, because descriptors that their peers sent were closed.
    pub(crate) unparked: Vec<(usize, u64)>,
    /// Receivers of a report of idle connections.
    pub(crate) idle_reports: Vec<oneshot::Sender<IdleReport>>,
    /// Connections to close if they are still idle.
    pub(crate) reclaims: Vec<Reclaim>,
    /// Whether to drive all connections, because they have to drain.
    pub(crate) drain: bool,
    /// Whether to give up connections whose messages are not logged because their peers do not read.
    pub(crate) give_up_blocked: bool,
    /// Listeners whose connections end at once.
    pub(crate) close_listeners: Vec<Arc<Listener>>,
    /// Receiver of all connections, which are detached.
    pub(crate) detach: Option<oneshot::Sender<Vec<DetachedConnection>>>,
    /// Dropped when all connections that are ready have been driven.
    pub(crate) barriers: Vec<oneshot::Sender<Infallible>>,
    /// Dropped when the commands of the same batch have been run.
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

/// A source of connections that runs on the thread of an event loop.
pub(crate) trait Acceptor: Send {
    /// Returns the socket to watch.
    fn socket(&self) -> BorrowedFd<'_>;

    /// Accepts waiting connections, but only so many at once that other connections are not delayed. `flags` is the
    /// known readiness of the socket. Calls `serve` for each connection that this event loop serves.
    fn run(&mut self, flags: EventFlags, now: Instant, serve: &mut dyn FnMut(Box<Connection>)) -> NextRun;

    /// Notes that the socket could not be watched. Returns when to try again.
    fn watch_failed(&mut self, error: io::Error, now: Instant) -> Instant;
}

/// When to run an acceptor again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextRun {
    /// When its socket is ready.
    Ready,
    /// When the acceptors that pause are run, or at this time if that is earlier.
    Paused(Option<Instant>),
    /// Never: the acceptor has ended.
    Never,
}

/// The mailbox of one event loop.
pub(crate) struct Mailbox {
    commands: Mutex<Commands>,
    /// Whether `commands` is not empty.
    has_commands: AtomicBool,
    /// Wakes the event loop. It is watched edge-triggered, so its counter is never read.
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

    /// Returns the file descriptor that becomes readable when the first command is posted to an empty mailbox.
    pub(crate) fn eventfd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// Posts commands. Wakes the event loop if the mailbox was empty.
    pub(crate) fn post(&self, put: impl FnOnce(&mut Commands)) {
        let mut commands = self.lock();
        put(&mut commands);
        let is_known = self.has_commands.swap(true, Ordering::AcqRel);
        drop(commands);
        if !is_known {
            // Fails only after 2^64 - 2 writes, because the counter is never reset.
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
        // A thread that panics cannot leave half a command behind.
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

/// Makes an event loop run its acceptors that pause.
pub(crate) struct AcceptorWaker(pub(crate) Arc<Mailbox>);

impl Wake for AcceptorWaker {
    fn wake(self: Arc<Self>) {
        self.0.post(|commands| commands.resume_acceptors = true);
    }
}
