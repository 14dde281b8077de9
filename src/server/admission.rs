//! Limits on connections, and on the memory of their buffers. Everything that is counted here is released by a drop.

mod permit;
mod sources;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::permit::PermitState;
pub(crate) use self::permit::{ClosingPermit, Permit};
pub(crate) use self::sources::Source;
use self::sources::SourceLimits;
use super::connection::clock;
use super::event::Event;
use crate::config::Limits;

/// How many connections that were refused or reclaimed may wait at once for their final reply to arrive. They do not count against
/// `limits.connections`; beyond that number, they are closed without a final reply.
const MAX_REFUSED: usize = 64;

/// How many connections may wait at once for a decision on their source before accepting waits for it. They do not
/// count against `limits.connections` either. A decision takes as long as the workers need to process their events.
const MAX_PENDING: usize = 32;

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
    /// Connections that were accepted and have given their permit back, since their source is at its limit.
    pending: AtomicUsize,
    /// Those of them whose source turned out to have room. The next permits are theirs.
    reserved: AtomicUsize,
    /// Refused connections that are not closed yet.
    refused: AtomicUsize,
    /// Connections among both that have ended, and whose sockets wait to be closed ([`ClosingPermit`]).
    closing: AtomicUsize,
    /// Those of them that count among `open`.
    closing_open: AtomicUsize,
    sources: SourceLimits,
    /// Bytes that connections keep in their buffers.
    buffer_memory: AtomicUsize,
    /// Notified whenever a connection, served or refused, has ended and its descriptor is closed.
    connection_ended: Notify,
    started: Instant,
    /// When a connection last ended or a datagram last came, in milliseconds since `started`.
    last_use: AtomicU64,
    /// Whether it was reported that the connection limit is reached. Reset when an eighth of the connections has ended,
    /// so that it is not reported again each time a connection ends and the next one comes.
    limit_reported: AtomicBool,
    /// The same for connections that await their PROXY header.
    header_limit_reported: AtomicBool,
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
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            max_connections: AtomicUsize::new(limits.connections),
            max_buffer_memory: AtomicUsize::new(limits.buffer_memory),
            open: AtomicUsize::new(0),
            awaiting_header: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            reserved: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
            closing_open: AtomicUsize::new(0),
            sources: SourceLimits::new(limits.connections_per_source),
            buffer_memory: AtomicUsize::new(0),
            connection_ended: Notify::new(),
            started: clock(),
            last_use: AtomicU64::new(0),
            limit_reported: AtomicBool::new(false),
            header_limit_reported: AtomicBool::new(false),
        })
    }

    /// Sets new limits. Connections that are served already stay.
    pub(crate) fn set_limits(&self, limits: &Limits) {
        self.max_connections.store(limits.connections, Ordering::Relaxed);
        self.sources.set_limit(limits.connections_per_source);
        self.max_buffer_memory.store(limits.buffer_memory, Ordering::Relaxed);
        self.limit_reported.store(false, Ordering::Relaxed);
        self.header_limit_reported.store(false, Ordering::Relaxed);
        // Acceptors that wait for a permit check again.
        self.connection_ended.notify_waiters();
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
        Some(Permit { admission: Arc::clone(self), state, memory: 0 })
    }

    /// Acquires a permit for a connection that the previous process accepted. It counts, but no limit is checked.
    pub(crate) fn acquire_unchecked(self: &Arc<Self>, source: Option<Source>) -> Permit {
        self.open.fetch_add(1, Ordering::Relaxed);
        let slot = source.map(|source| self.sources.claim_unchecked(source));
        Permit { admission: Arc::clone(self), state: PermitState::Serving(slot), memory: 0 }
    }

    /// The same for one that was refused there, and waits for its final reply to arrive.
    pub(crate) fn acquire_refused_unchecked(self: &Arc<Self>) -> Permit {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Permit { admission: Arc::clone(self), state: PermitState::Refused, memory: 0 }
    }

    /// Calls `report` for a limit that is reached, but not again and again while connections come and go.
    pub(crate) fn report_shortage(&self, shortage: Shortage, report: impl Fn(Event)) {
        let limit = self.limit();
        let (reported, awaiting_header) = match shortage {
            Shortage::Connections => (&self.limit_reported, None),
            Shortage::AwaitingHeader => (&self.header_limit_reported, Some(self.header_limit())),
            Shortage::Pending => return,
        };
        if !reported.swap(true, Ordering::Relaxed) {
            report(Event::LimitReached { limit, awaiting_header });
        }
    }

    /// Returns what is notified whenever a connection has ended.
    pub(crate) fn connection_ended(&self) -> &Notify {
        &self.connection_ended
    }

    /// Connections being served.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
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
        self.open().saturating_sub(self.closing_open.load(Ordering::SeqCst))
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
        loop {
            let mut ended = std::pin::pin!(self.connection_ended.notified());
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::config::Settings;
    use crate::protocol::Verdict;

    fn admission(connections: usize, connections_per_source: u32) -> Arc<Admission> {
        Admission::new(&Limits { connections, connections_per_source, ..limits(1000) })
    }

    fn limits(buffer_memory: usize) -> Limits {
        Limits { buffer_memory, ..Settings::default().limits }
    }

    fn claimed(admission: &Arc<Admission>, source: Source) -> Result<Permit, Verdict> {
        let mut permit = admission.try_acquire(false).unwrap();
        permit.claim(Some(source));
        permit.decide().map(|()| {
            assert!(permit.try_reacquire());
            permit
        })
    }

    fn v4(last: u8) -> Source {
        Source::of_ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))).unwrap()
    }

    #[test]
    fn the_number_of_permits_is_exactly_the_limit() {
        let admission = admission(2, 0);
        let first = admission.try_acquire(false).unwrap();
        let _second = admission.try_acquire(false).unwrap();
        assert!(admission.try_acquire(false).is_none());
        drop(first);
        assert!(admission.try_acquire(false).is_some());
        assert_eq!(admission.open(), 1);
    }

    #[test]
    fn a_source_has_its_own_limit() {
        let admission = admission(100, 2);
        let claimed = |source| claimed(&admission, source);
        let first = claimed(v4(1)).unwrap();
        let _second = claimed(v4(1)).unwrap();
        assert_eq!(claimed(v4(1)).unwrap_err(), Verdict::TooMany { limit: 2 });
        let other = claimed(v4(2)).unwrap();
        drop(first);
        let _third = claimed(v4(1)).unwrap();
        drop(other);
        assert_eq!(admission.sources.len(), 1, "nothing is remembered of sources without connections");
    }

    #[test]
    fn a_connection_counts_for_the_client_that_its_proxy_header_names() {
        let admission = admission(100, 2);
        let claimed = |source| claimed(&admission, source);
        let mut first = claimed(v4(1)).unwrap();
        let mut second = claimed(v4(1)).unwrap();
        assert!(first.claim(Some(v4(2))));
        assert!(second.claim(None));
        let _others = [claimed(v4(1)).unwrap(), claimed(v4(1)).unwrap(), claimed(v4(2)).unwrap()];
        assert!(!second.claim(Some(v4(2))));
        assert_eq!(second.decide(), Err(Verdict::TooMany { limit: 2 }));
        drop((first, second));
        assert!(claimed(v4(2)).is_ok() && claimed(v4(1)).is_err());
    }

    #[test]
    fn new_connections_do_not_overtake_pending_ones_of_their_source() {
        let admission = admission(100, 2);
        let acquire = || admission.try_acquire(false).unwrap();
        let [mut first, mut second, mut third, mut fourth] = [acquire(), acquire(), acquire(), acquire()];
        assert!(first.claim(Some(v4(1))) && second.claim(Some(v4(1))) && !third.claim(Some(v4(1))));
        drop(first);
        assert!(!fourth.claim(Some(v4(1))), "the third was here before");
        assert!(acquire().claim(Some(v4(2))), "others do not have to wait");
        assert_eq!(third.decide(), Ok(()));
        assert!(third.try_reacquire());
        assert_eq!(fourth.decide(), Err(Verdict::TooMany { limit: 2 }));
        drop(second);
        assert!(fourth.claim(Some(v4(1))), "no slot is pending any more");
        assert!(!acquire().claim(Some(v4(1))), "and it ended while its slot was pending");
        drop((third, fourth));
        assert!(admission.sources.len() == 0);
    }

    /// Acquires a permit for a connection of a source that is at its limit.
    fn pending(admission: &Arc<Admission>, source: Source) -> Permit {
        let mut permit = admission.try_acquire(false).unwrap();
        assert!(!permit.claim(Some(source)));
        permit
    }

    #[test]
    fn a_connection_whose_source_is_at_its_limit_holds_no_permit_that_another_source_needs() {
        let admission = admission(2, 1);
        let _first = claimed(&admission, v4(1)).unwrap();
        let refused: Vec<_> = (0..10).map(|_| pending(&admission, v4(1))).collect();
        assert_eq!(admission.open(), 1);
        let other = claimed(&admission, v4(2)).unwrap();
        assert!(admission.try_acquire(false).is_none());
        drop(other);
        for mut permit in refused {
            assert_eq!(permit.decide(), Err(Verdict::TooMany { limit: 1 }));
            assert!(permit.refuse());
        }
        assert_eq!((admission.open(), admission.pending.load(Ordering::Relaxed)), (1, 0));
    }

    #[test]
    fn pending_connections_are_limited_and_keep_the_server_from_being_idle() {
        let admission = admission(1, 1);
        let first = claimed(&admission, v4(1)).unwrap();
        assert_eq!(admission.shortage(false), Some(Shortage::Connections));
        admission.set_limits(&Limits { connections: 2, connections_per_source: 1, ..limits(10) });
        let mut all: Vec<_> = (0..MAX_PENDING).map(|_| pending(&admission, v4(1))).collect();
        assert_eq!(admission.shortage(false), Some(Shortage::Pending));
        assert!(admission.try_acquire(false).is_none());
        all.pop();
        assert!(admission.try_acquire(false).is_some());
        drop(first);
        assert!(admission.open() == 0 && !admission.is_idle());
        drop(all);
        assert!(admission.is_idle() && admission.sources.len() == 0);
    }

    #[test]
    fn the_next_permit_belongs_to_the_connection_whose_source_turned_out_to_have_room() {
        let admission = admission(2, 1);
        let first = claimed(&admission, v4(1)).unwrap();
        let mut second = pending(&admission, v4(1));
        let other = admission.try_acquire(false).unwrap();
        drop(first);
        let another = admission.try_acquire(false).unwrap();
        assert_eq!(second.decide(), Ok(()));
        assert!(!second.try_reacquire(), "two are served");
        drop(other);
        assert!(admission.try_acquire(false).is_none(), "it would overtake the one that was accepted before");
        assert!(second.try_reacquire());
        assert!(admission.try_acquire(false).is_none());
        drop(another);
        assert!(admission.try_acquire(false).is_some());
        // One that ends meanwhile leaves nothing behind.
        let mut third = pending(&admission, v4(1));
        drop(second);
        assert_eq!(third.decide(), Ok(()));
        drop(third);
        assert!(admission.is_idle() && admission.sources.len() == 0);
        assert_eq!(admission.reserved.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_quarter_of_all_connections_may_await_their_header_but_always_one() {
        for (connections, expected) in [(1, 1), (3, 1), (8, 2), (4096, 1024)] {
            let admission = admission(connections, 1);
            let mut waiting: Vec<_> = (0..expected).map(|_| admission.try_acquire(true).unwrap()).collect();
            assert!(admission.try_acquire(true).is_none());
            assert_eq!(admission.try_acquire(false).is_some(), connections > 1, "others are accepted");
            // What frees a place: the header, whatever it says, and the end.
            assert!(waiting[0].claim(Some(v4(1))));
            let next = if connections > 1 { admission.try_acquire(true) } else { None };
            assert_eq!(next.is_some(), connections > 1);
            drop((waiting, next));
            assert_eq!((admission.open(), admission.awaiting_header.load(Ordering::Relaxed)), (0, 0));
        }
    }

    #[test]
    fn connections_that_await_their_header_count_for_no_source() {
        let admission = admission(100, 1);
        let mut waiting: Vec<_> = (0..25).map(|_| admission.try_acquire(true).unwrap()).collect();
        for (permit, last) in waiting.iter_mut().zip(1..) {
            assert!(permit.claim(Some(v4(last))));
        }
        assert_eq!(admission.sources.len(), 25);
    }

    #[test]
    fn new_limits_apply_to_new_connections_and_close_none() {
        let admission = admission(3, 0);
        let claimed = || claimed(&admission, v4(1));
        let mut served = vec![claimed().unwrap(), claimed().unwrap(), claimed().unwrap()];
        admission.set_limits(&Limits { connections: 2, connections_per_source: 2, ..limits(10) });
        assert_eq!((admission.open(), admission.limit()), (3, 2));
        assert!(!served[0].set_memory(11) && served[0].set_memory(10));
        served.pop();
        assert!(admission.try_acquire(false).is_none(), "as many as the limit allows are there");
        served.pop();
        served.push(claimed().expect("it is the second"));
        admission.set_limits(&Limits { connections: 9, connections_per_source: 2, ..limits(10) });
        assert_eq!(claimed().unwrap_err(), Verdict::TooMany { limit: 2 }, "those from before the limit count");
    }

    #[test]
    fn restored_connections_count_but_are_never_refused() {
        let admission = admission(2, 2);
        let restored: Vec<_> = (0..3).map(|_| admission.acquire_unchecked(Some(v4(1)))).collect();
        let refused = admission.acquire_refused_unchecked();
        assert_eq!((admission.open(), admission.refused.load(Ordering::Relaxed)), (3, 1));
        assert!(admission.try_acquire(false).is_none());
        drop(refused);
        let mut restored = restored.into_iter();
        drop((restored.next(), restored.next()));
        let permit = claimed(&admission, v4(1)).expect("it is the second");
        drop(restored);
        assert!(claimed(&admission, v4(1)).is_ok());
        drop(permit);
        assert!(admission.is_idle() && admission.sources.len() == 0);
    }

    #[test]
    fn refused_connections_do_not_count_against_the_limit_and_are_few() {
        let admission = admission(1, 1);
        let mut refused: Vec<_> = Vec::new();
        for _ in 0..MAX_REFUSED {
            let mut permit = admission.try_acquire(false).unwrap();
            assert!(permit.refuse());
            refused.push(permit);
        }
        assert!(!admission.try_acquire(false).unwrap().refuse());
        let _served = admission.try_acquire(false).unwrap();
        drop(refused);
        assert_eq!(admission.refused.load(Ordering::Relaxed), 0);
        assert_eq!(admission.open(), 1);
    }

    #[test]
    fn a_refused_connection_whose_socket_waits_to_be_closed_is_not_pending() {
        let admission = admission(10, 1);
        let first = claimed(&admission, v4(1)).unwrap();
        let mut permit = pending(&admission, v4(1));
        assert!(permit.decide().is_err());
        let closing = permit.into_closing();
        assert_eq!((admission.open(), admission.serving()), (2, 1));
        assert_eq!(admission.pending.load(Ordering::Relaxed), 0);
        drop(first);
        assert!(admission.is_idle());
        drop(closing);
        assert!(admission.is_idle() && admission.open() == 0);
    }

    #[test]
    fn the_buffer_budget_is_enforced_and_released() {
        let admission = admission(2, 1);
        let mut one = admission.try_acquire(false).unwrap();
        let mut other = admission.try_acquire(false).unwrap();
        assert!(one.set_memory(1000));
        assert!(!other.set_memory(1));
        assert!(one.set_memory(999));
        assert!(other.set_memory(0) && other.set_memory(1));
        drop(one);
        drop(other);
        assert_eq!(admission.buffer_memory.load(Ordering::Relaxed), 0);
    }
}
