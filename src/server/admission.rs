//! Limits on connections, and on the memory of their buffers. Everything that is counted here is released by a drop.

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

/// How many connections that were refused or reclaimed may wait at once for their final reply to arrive. They do not count against
/// `limits.connections`; beyond that number, they are closed without a final reply.
const MAX_REFUSED: usize = 64;

/// How many connections may wait at once for a decision on their source, and then for a permit, before accepting waits for it.
/// They do not count against `limits.connections` either. A decision takes as long as the workers need to process their events.
const MAX_PENDING: usize = 32;

const _: () = assert!(MAX_REFUSED + MAX_PENDING == MAX_UNPERMITTED);

/// The part of `limits.connections` that may await their PROXY header at once.
const AWAITING_HEADER_PART: usize = 4;

/// The counts of all connections of a server, against its limits.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The limits, which a reload may change at any time. Connections that are served already stay.
    max_connections: AtomicUsize,
    max_buffer_memory: AtomicUsize,
    /// Connections being served, those that await their PROXY header among them.
    open: AtomicUsize,
    /// Connections that await their PROXY header.
    awaiting_header: AtomicUsize,
    /// Connections that were accepted and have no permit: they have given it back, since their source is at its limit, or there
    /// was none.
    pending: AtomicUsize,
    /// Those of them whose source has room. The next permits are theirs.
    reserved: AtomicUsize,
    /// How many [`WaitingAcceptor`] there are.
    waiting_acceptors: AtomicUsize,
    /// Whether the next permit is theirs, since another acceptor got the last one.
    waiting_come_first: AtomicBool,
    /// Refused connections that are not closed yet.
    refused: AtomicUsize,
    /// Connections among `open` that have ended, and whose sockets wait to be closed ([`ClosingPermit`]).
    closing: AtomicUsize,
    sources: SourceLimits,
    /// Bytes that connections keep in their buffers.
    buffer_memory: AtomicUsize,
    /// Notified whenever there may be a permit, or one connection less: one has ended, a claim is pending or decided, the limits
    /// are others.
    connection_ended: Ends,
    started: Instant,
    /// When a connection last ended or a datagram last came, in milliseconds since `started`.
    last_use: AtomicU64,
    /// Whether it was reported that the connection limit is reached. Reset when an eighth of the connections has ended,
    /// so that it is not reported again each time a connection ends and the next one comes.
    limit_reported: AtomicBool,
    /// The same for connections that await their PROXY header.
    header_limit_reported: AtomicBool,
}

/// The acceptors and tasks that wait for connections to end. Without any, an end costs nothing.
#[derive(Debug)]
struct Ends {
    /// Whether acceptors pause for that, and what runs them.
    acceptors_wait: AtomicBool,
    acceptors: Waker,
    /// How many tasks wait, and what they wait for.
    tasks: AtomicUsize,
    notify: Notify,
}

impl Ends {
    fn new(acceptors: Waker) -> Self {
        Self { acceptors_wait: AtomicBool::new(false), acceptors, tasks: AtomicUsize::new(0), notify: Notify::new() }
    }

    /// Notifies the acceptors and tasks that wait. To be called after the count has changed, sequentially consistent with that.
    fn notify(&self) {
        if self.acceptors_wait.load(Ordering::SeqCst) && self.acceptors_wait.swap(false, Ordering::SeqCst) {
            self.acceptors.wake_by_ref();
        }
        if self.tasks.load(Ordering::SeqCst) > 0 {
            self.notify.notify_waiters();
        }
    }
}

/// [`Admission::watch_ends`].
pub(crate) struct EndWatch<'a>(&'a Ends);

impl EndWatch<'_> {
    /// Waits until a connection ends. It has to be enabled before looking at what is waited for.
    pub(crate) fn next(&self) -> Notified<'_> {
        self.0.notify.notified()
    }
}

impl Drop for EndWatch<'_> {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::SeqCst);
    }
}

/// [`Admission::wait_with_client`].
pub(crate) struct WaitingAcceptor(Arc<Admission>);

impl Drop for WaitingAcceptor {
    fn drop(&mut self) {
        // When there is none, others may go on.
        if self.0.waiting_acceptors.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.waiting_come_first.store(false, Ordering::SeqCst);
            self.0.connection_ended.notify();
        }
    }
}

/// Why no connection can be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// There are as many connections as the limit allows.
    Connections,
    /// There are as many connections that await their PROXY header as may.
    AwaitingHeader,
    /// As many connections as may wait for a decision on their source.
    Pending,
    /// The next permit is that of an acceptor whose client waits for it ([`Admission::wait_with_client`]).
    Turn,
}

impl Admission {
    /// Creates the counts of a server that has no connections. `acceptors` runs the acceptors that pause.
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
            sources: SourceLimits::new(limits.connections_per_source),
            buffer_memory: AtomicUsize::new(0),
            connection_ended: Ends::new(acceptors),
            started: clock(),
            last_use: AtomicU64::new(0),
            limit_reported: AtomicBool::new(false),
            header_limit_reported: AtomicBool::new(false),
        })
    }

    /// Sets new limits. Connections that are served already stay.
    pub(crate) fn set_limits(&self, limits: &Limits) {
        self.max_connections.store(limits.connections, Ordering::SeqCst);
        self.sources.set_limit(limits.connections_per_source);
        self.max_buffer_memory.store(limits.buffer_memory, Ordering::Relaxed);
        self.limit_reported.store(false, Ordering::Relaxed);
        self.header_limit_reported.store(false, Ordering::Relaxed);
        // Acceptors that wait for a permit check again.
        self.connection_ended.notify();
    }

    /// Returns how many connections are served at once at most.
    pub(crate) fn limit(&self) -> usize {
        self.max_connections.load(Ordering::Relaxed)
    }

    /// Returns how many connections may await their PROXY header at once.
    fn header_limit(&self) -> usize {
        (self.limit() / AWAITING_HEADER_PART).max(1)
    }

    /// Returns why no connection can be accepted, if so.
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

    /// Acquires a permit for one more connection, before that is accepted; `None` if no further one may be accepted
    /// now. `awaits_header` says whether the connection has to begin with a PROXY header.
    pub(crate) fn try_acquire(self: &Arc<Self>, awaits_header: bool) -> Option<Permit> {
        // Only acceptors, which are all on one thread, acquire permits without a reservation. Others may take a permit
        // in between, so both counts are checked again.
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

    /// Returns a permit to be, for a connection that is accepted while all permits are taken: so its source is known before
    /// another connection is closed for it. It is one once it was claimed, decided and reacquired. `None` if another connection
    /// waits for the next permit, or as many as may for a decision.
    pub(crate) fn try_accept_undecided(self: &Arc<Self>) -> Option<Permit> {
        let accepted = self.may_accept_undecided() && increment_below(&self.pending, MAX_PENDING);
        accepted.then(|| Permit { admission: Arc::clone(self), state: PermitState::Undecided, memory: 0 })
    }

    /// Returns whether [`Admission::try_accept_undecided`] would return one.
    pub(crate) fn may_accept_undecided(&self) -> bool {
        self.waiting_acceptors.load(Ordering::SeqCst) == 0
            && self.reserved.load(Ordering::SeqCst) == 0
            && self.pending.load(Ordering::SeqCst) < MAX_PENDING
    }

    /// Notes until it is dropped that a client waits for whom an acceptor needs a permit before it accepts: one of a listener
    /// that demands a PROXY header. Meanwhile no connection is accepted undecided: these would get every permit that is
    /// released, since they wait already. And other acceptors get only every other permit.
    pub(crate) fn wait_with_client(self: &Arc<Self>) -> WaitingAcceptor {
        self.waiting_acceptors.fetch_add(1, Ordering::SeqCst);
        WaitingAcceptor(Arc::clone(self))
    }

    /// Acquires a permit for a connection that the previous process accepted. It counts, but no limit is checked.
    pub(crate) fn acquire_unchecked(self: &Arc<Self>, source: Option<Source>) -> Permit {
        self.open.fetch_add(1, Ordering::Relaxed);
        let slot = source.map(|source| self.sources.claim_unchecked(source));
        Permit { admission: Arc::clone(self), state: PermitState::Serving(slot), memory: 0 }
    }

    /// The same for one that was refused there, and waits for its final reply to arrive.
    pub(crate) fn acquire_refused_unchecked(self: &Arc<Self>) -> Permit {
        self.refused.fetch_add(1, Ordering::SeqCst);
        Permit { admission: Arc::clone(self), state: PermitState::Refused, memory: 0 }
    }

    /// Calls `report` for a limit that is reached, but not again and again while connections come and go.
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

    /// Has acceptors run once a connection has ended from now on. To be called before a last look at whether they must wait.
    pub(crate) fn wake_acceptors_at_end(&self) {
        self.connection_ended.acceptors_wait.store(true, Ordering::SeqCst);
    }

    /// Watches for connections that end, until this is dropped. To be called before looking at what is waited for.
    pub(crate) fn watch_ends(&self) -> EndWatch<'_> {
        self.connection_ended.tasks.fetch_add(1, Ordering::SeqCst);
        EndWatch(&self.connection_ended)
    }

    /// Connections being served.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Returns how many bytes the buffers of all connections keep.
    #[cfg(test)]
    pub(crate) fn buffer_memory(&self) -> usize {
        self.buffer_memory.load(Ordering::SeqCst)
    }

    /// Returns for how long there has been no connection at all; `None` while there is one.
    pub(crate) fn idle_for(&self) -> Option<Duration> {
        let last_use = self.started + Duration::from_millis(self.last_use.load(Ordering::SeqCst));
        self.is_idle().then(|| clock().saturating_duration_since(last_use))
    }

    /// Notes that the server is in use now: a connection has ended, or a datagram has come.
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

    /// Returns how many connections are served, without those that only wait to be closed.
    pub(crate) fn serving(&self) -> usize {
        self.open().saturating_sub(self.closing.load(Ordering::SeqCst))
    }

    fn is_idle(&self) -> bool {
        let others = || self.pending.load(Ordering::SeqCst) + self.refused.load(Ordering::SeqCst);
        let closing = self.closing.load(Ordering::SeqCst);
        // Once more, since one that was pending may have got its permit in between.
        let unchanged = || self.closing.load(Ordering::SeqCst) == closing;
        self.open() + others() == closing && self.open() + others() == closing && unchanged()
    }

    /// Waits until there is no connection at all.
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

/// Decrements a count. Returns whether so many are gone that reaching the limit again is news: an eighth.
fn decrement_from(count: &AtomicUsize, limit: usize) -> bool {
    count.fetch_sub(1, Ordering::SeqCst) <= limit.saturating_sub((limit / 8).max(1))
}
