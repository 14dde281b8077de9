//! Limits on connections and on the memory of their buffers. Dropping a [`Permit`] releases everything that is counted for its
//! connection.

mod permit;
mod sources;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use self::permit::PermitState;
pub(crate) use self::permit::{ClosingPermit, Permit};
use self::sources::SourceLimits;
use super::clock::clock;
use super::event::Event;
use super::peer::Source;
use crate::config::Limits;
use crate::rlimit::MAX_UNPERMITTED;

/// The maximum number of refused or reclaimed connections whose final reply is being delivered. They do not count against
/// `limits.connections`. Further ones are closed without a final reply.
const MAX_REFUSED: usize = 64;

/// The maximum number of connections that wait for a decision on their source, and then for a permit. They do not count against
/// `limits.connections`. At the maximum, acceptors pause. A decision takes as long as the workers need to process their events.
const MAX_PENDING: usize = 32;

const _: () = assert!(MAX_REFUSED + MAX_PENDING == MAX_UNPERMITTED);

/// The divisor of `limits.connections` that gives the limit of connections that await their PROXY header.
const AWAITING_HEADER_PART: usize = 4;

/// The counts of a server's connections, and their limits.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The limits, which a reload may change at any time. Existing connections stay.
    max_connections: AtomicUsize,
    max_buffer_memory: AtomicUsize,
    /// Connections with a permit, including those that await their PROXY header.
    open: AtomicUsize,
    /// Connections that await their PROXY header.
    awaiting_header: AtomicUsize,
    /// Accepted connections without a permit. Either they have released it, because their source may be at its limit, or none
    /// was available.
    pending: AtomicUsize,
    /// Pending connections whose source has room. They get the next permits.
    reserved: AtomicUsize,
    /// The number of [`WaitingAcceptor`] values.
    waiting_acceptors: AtomicUsize,
    /// Whether a waiting acceptor gets the next permit, because another acceptor got the last one.
    waiting_come_first: AtomicBool,
    /// Refused or reclaimed connections that are not closed yet.
    refused: AtomicUsize,
    /// Connections among `open` that have ended, but whose sockets are not closed yet ([`ClosingPermit`]).
    closing: AtomicUsize,
    /// Connections to listeners that workers do not serve. They have no permits of this kind, but are a use of the server.
    services: AtomicUsize,
    sources: SourceLimits,
    /// The memory of the buffers of all connections, in bytes.
    buffer_memory: AtomicUsize,
    /// Notified whenever a permit may be available, or the number of connections may have changed: a connection has ended, a
    /// slot is pending or decided, or the limits have changed.
    connection_ended: Ends,
    started: Instant,
    /// When a connection last ended or a datagram last arrived, in milliseconds since `started`.
    last_use: AtomicU64,
    /// Whether it was reported that the connection limit is reached. Reset when an eighth of the connections has ended, so that
    /// a server near its limit does not report it again and again.
    limit_reported: AtomicBool,
    /// The same for the limit of connections that await their PROXY header.
    header_limit_reported: AtomicBool,
}

/// The acceptors and tasks that wait for connections to end. If there are none, the end of a connection costs nothing.
#[derive(Debug)]
struct Ends {
    /// Whether acceptors pause until a connection ends.
    acceptors_wait: AtomicBool,
    acceptors: Waker,
    /// The number of tasks that wait for `notify`.
    tasks: AtomicUsize,
    notify: Notify,
}

impl Ends {
    fn new(acceptors: Waker) -> Self {
        Self { acceptors_wait: AtomicBool::new(false), acceptors, tasks: AtomicUsize::new(0), notify: Notify::new() }
    }

    /// Notifies the waiting acceptors and tasks. Call it after a count has changed; the change must be sequentially consistent.
    fn notify(&self) {
        if self.acceptors_wait.load(Ordering::SeqCst) && self.acceptors_wait.swap(false, Ordering::SeqCst) {
            self.acceptors.wake_by_ref();
        }
        if self.tasks.load(Ordering::SeqCst) > 0 {
            self.notify.notify_waiters();
        }
    }
}

/// A watch for the ends of connections ([`Admission::watch_ends`]).
pub(crate) struct EndWatch<'a>(&'a Ends);

impl EndWatch<'_> {
    /// Returns a future that waits until a connection ends. Enable it before checking the condition.
    pub(crate) fn next(&self) -> Notified<'_> {
        self.0.notify.notified()
    }
}

impl Drop for EndWatch<'_> {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An acceptor whose client waits for a permit ([`Admission::wait_with_client`]).
pub(crate) struct WaitingAcceptor(Arc<Admission>);

impl Drop for WaitingAcceptor {
    fn drop(&mut self) {
        // Without a waiting acceptor, the others may accept again.
        if self.0.waiting_acceptors.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.waiting_come_first.store(false, Ordering::SeqCst);
            self.0.connection_ended.notify();
        }
    }
}

/// [`Admission::use_by_service`].
pub(crate) struct ServiceUse(Arc<Admission>);

impl Drop for ServiceUse {
    fn drop(&mut self) {
        self.0.note_use();
        self.0.services.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The reason why no connection can be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The number of connections is at `limits.connections`.
    Connections,
    /// The number of connections that await their PROXY header is at its limit.
    AwaitingHeader,
    /// The number of pending connections is at [`MAX_PENDING`].
    Pending,
    /// The next permit is for another acceptor, whose client waits for it ([`Admission::wait_with_client`]).
    Turn,
}

impl Admission {
    /// Creates the counts of a server without connections. `acceptors` runs paused acceptors.
    pub(crate) fn new(limits: &Limits, acceptors: Waker) -> Arc<Self> {
        Arc::new(Self {
            max_connections: AtomicUsize::new(limits.connections),
            max_buffer_memory: AtomicUsize::new(limits.buffer_memory),
            open: AtomicUsize::new(0),
            awaiting_header: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            reserved: AtomicUsize::new(0),
            waiting_acceptors: AtomicUsize::new(0),
            waiting_come_first: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
            services: AtomicUsize::new(0),
            sources: SourceLimits::new(limits.connections_per_source),
            buffer_memory: AtomicUsize::new(0),
            connection_ended: Ends::new(acceptors),
            started: clock(),
            last_use: AtomicU64::new(0),
            limit_reported: AtomicBool::new(false),
            header_limit_reported: AtomicBool::new(false),
        })
    }

    /// Sets new limits. Existing connections stay.
    pub(crate) fn set_limits(&self, limits: &Limits) {
        self.max_connections.store(limits.connections, Ordering::SeqCst);
        self.sources.set_limit(limits.connections_per_source);
        self.max_buffer_memory.store(limits.buffer_memory, Ordering::Relaxed);
        self.limit_reported.store(false, Ordering::Relaxed);
        self.header_limit_reported.store(false, Ordering::Relaxed);
        // Acceptors that wait for a permit check again now.
        self.connection_ended.notify();
    }

    /// Returns the maximum number of connections that are served at the same time.
    pub(crate) fn limit(&self) -> usize {
        self.max_connections.load(Ordering::Relaxed)
    }

    /// Returns the maximum number of connections that await their PROXY header.
    fn header_limit(&self) -> usize {
        (self.limit() / AWAITING_HEADER_PART).max(1)
    }

    /// Returns the reason why no connection can be accepted; `None` if one can.
    pub(crate) fn shortage(&self, awaits_header: bool) -> Option<Shortage> {
        if self.open() + self.reserved.load(Ordering::Relaxed) >= self.limit() {
            Some(Shortage::Connections)
        } else if awaits_header && self.awaiting_header.load(Ordering::Relaxed) >= self.header_limit() {
            Some(Shortage::AwaitingHeader)
        } else if self.pending.load(Ordering::Relaxed) >= MAX_PENDING {
            Some(Shortage::Pending)
        } else if !awaits_header && self.waiting_come_first.load(Ordering::SeqCst) {
            Some(Shortage::Turn)
        } else {
            None
        }
    }

    /// Acquires a permit for a connection before it is accepted. Returns `None` if no connection may be accepted now.
    /// `awaits_header`: the connection has to begin with a PROXY header.
    pub(crate) fn try_acquire(self: &Arc<Self>, awaits_header: bool) -> Option<Permit> {
        // Acceptors are all on one thread, but a pending connection may acquire its reserved permit in between, so both counts
        // are checked again.
        if self.shortage(awaits_header).is_some() || !increment_below(&self.open, self.limit()) {
            return None;
        }
        let state = if awaits_header { PermitState::AwaitingHeader } else { PermitState::Serving(None) };
        if awaits_header && !increment_below(&self.awaiting_header, self.header_limit()) {
            self.open.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        let others_wait = self.waiting_acceptors.load(Ordering::SeqCst) > 0;
        self.waiting_come_first.store(others_wait && !awaits_header, Ordering::SeqCst);
        Some(Permit { admission: Arc::clone(self), state, memory: 0 })
    }

    /// Returns an undecided permit, with which a connection is accepted while all permits are taken. So its source is known
    /// before an idle connection is closed for it. It becomes a permit by [`Permit::claim`], [`Permit::decide`] and
    /// [`Permit::try_reacquire`]. Returns `None` if another connection waits for the next permit, or if the number of pending
    /// connections is at [`MAX_PENDING`].
    pub(crate) fn try_accept_undecided(self: &Arc<Self>) -> Option<Permit> {
        let accepted = self.may_accept_undecided() && increment_below(&self.pending, MAX_PENDING);
        accepted.then(|| Permit { admission: Arc::clone(self), state: PermitState::Undecided, memory: 0 })
    }

    /// Returns whether [`Admission::try_accept_undecided`] would return a permit.
    pub(crate) fn may_accept_undecided(&self) -> bool {
        self.waiting_acceptors.load(Ordering::SeqCst) == 0
            && self.reserved.load(Ordering::SeqCst) == 0
            && self.pending.load(Ordering::SeqCst) < MAX_PENDING
    }

    /// Registers an acceptor whose client waits for a permit, until the result is dropped. Its listener demands a PROXY header,
    /// so it needs the permit before it accepts. Meanwhile, no connection is accepted undecided: undecided connections are
    /// already waiting, and would get every released permit. Other acceptors get only every other permit.
    pub(crate) fn wait_with_client(self: &Arc<Self>) -> WaitingAcceptor {
        self.waiting_acceptors.fetch_add(1, Ordering::SeqCst);
        WaitingAcceptor(Arc::clone(self))
    }

    /// Acquires a permit for a restored connection. It counts, but no limit is checked.
    pub(crate) fn acquire_unchecked(self: &Arc<Self>, source: Option<Source>) -> Permit {
        self.open.fetch_add(1, Ordering::Relaxed);
        let slot = source.map(|source| self.sources.claim_unchecked(source));
        Permit { admission: Arc::clone(self), state: PermitState::Serving(slot), memory: 0 }
    }

    /// Acquires a permit for a restored connection that the previous process has refused, and whose final reply is being
    /// delivered.
    pub(crate) fn acquire_refused_unchecked(self: &Arc<Self>) -> Permit {
        self.refused.fetch_add(1, Ordering::SeqCst);
        Permit { admission: Arc::clone(self), state: PermitState::Refused, memory: 0 }
    }

    /// Calls `report` for a limit that is reached, unless it was reported and the number of connections has stayed near it.
    pub(crate) fn report_shortage(&self, shortage: Shortage, report: impl Fn(Event)) {
        let limit = self.limit();
        let (reported, awaiting_header) = match shortage {
            Shortage::Connections => (&self.limit_reported, None),
            Shortage::AwaitingHeader => (&self.header_limit_reported, Some(self.header_limit())),
            Shortage::Pending | Shortage::Turn => return,
        };
        if !reported.swap(true, Ordering::Relaxed) {
            report(Event::LimitReached { limit, awaiting_header });
        }
    }

    /// Requests that paused acceptors run when the next connection ends. Call it before the last check whether an acceptor must
    /// pause.
    pub(crate) fn wake_acceptors_at_end(&self) {
        self.connection_ended.acceptors_wait.store(true, Ordering::SeqCst);
    }

    /// Watches for ends of connections, until the result is dropped. Call it before checking the condition.
    pub(crate) fn watch_ends(&self) -> EndWatch<'_> {
        self.connection_ended.tasks.fetch_add(1, Ordering::SeqCst);
        EndWatch(&self.connection_ended)
    }

    /// Returns the number of connections with a permit.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Returns the memory of the buffers of all connections, in bytes.
    pub(crate) fn buffer_memory(&self) -> usize {
        self.buffer_memory.load(Ordering::SeqCst)
    }

    /// Returns for how long there has been no connection, served or refused; `None` while there is one.
    pub(crate) fn idle_for(&self) -> Option<Duration> {
        let last_use = self.started + Duration::from_millis(self.last_use.load(Ordering::SeqCst));
        let is_idle = self.is_idle() && self.services.load(Ordering::SeqCst) == 0;
        is_idle.then(|| clock().saturating_duration_since(last_use))
    }

    /// Notes, until it is dropped, that a connection is served that needs no permit.
    pub(crate) fn use_by_service(self: &Arc<Self>) -> ServiceUse {
        self.services.fetch_add(1, Ordering::SeqCst);
        ServiceUse(Arc::clone(self))
    }

    /// Returns how many bytes they may keep.
    pub(crate) fn buffer_memory_limit(&self) -> usize {
        self.max_buffer_memory.load(Ordering::Relaxed)
    }

    /// Records that the server is in use now: a connection has ended, or a datagram has come.
    pub(crate) fn note_use(&self) {
        let since = clock().saturating_duration_since(self.started).as_millis();
        self.last_use.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    fn release_open(&self) {
        if decrement_from(&self.open, self.limit()) {
            self.limit_reported.store(false, Ordering::Relaxed);
        }
    }

    fn release_awaiting_header(&self) {
        if decrement_from(&self.awaiting_header, self.header_limit()) {
            self.header_limit_reported.store(false, Ordering::Relaxed);
        }
    }

    /// Returns the number of connections being served, without those that only wait to be closed.
    pub(crate) fn serving(&self) -> usize {
        self.open().saturating_sub(self.closing.load(Ordering::SeqCst))
    }

    fn is_idle(&self) -> bool {
        let others = || self.pending.load(Ordering::SeqCst) + self.refused.load(Ordering::SeqCst);
        let closing = self.closing.load(Ordering::SeqCst);
        // Checked twice, because a pending connection may have acquired its permit in between.
        let unchanged = || self.closing.load(Ordering::SeqCst) == closing;
        self.open() + others() == closing && self.open() + others() == closing && unchanged()
    }

    /// Waits until there is no connection, served or refused.
    pub(crate) async fn wait_until_idle(&self) {
        let ends = self.watch_ends();
        loop {
            let mut ended = std::pin::pin!(ends.next());
            ended.as_mut().enable();
            if self.is_idle() {
                return;
            }
            ended.await;
        }
    }
}

/// Increments a count if it is below the limit. Returns whether it was.
fn increment_below(count: &AtomicUsize, limit: usize) -> bool {
    let below = |count| (count < limit).then_some(count + 1);
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, below).is_ok()
}

/// Decrements a count. Returns whether it was at least an eighth below the limit, so that reaching the limit again is worth a
/// report.
fn decrement_from(count: &AtomicUsize, limit: usize) -> bool {
    count.fetch_sub(1, Ordering::SeqCst) <= limit.saturating_sub((limit / 8).max(1))
}
