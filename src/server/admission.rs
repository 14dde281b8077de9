//! Limits on connections, and on the memory of their buffers. Everything that is counted here is released by a drop.

mod sources;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

pub(crate) use self::sources::Source;
use self::sources::{SourceLimits, SourceSlot};
use super::connection::clock;
use crate::config::Limits;
use crate::protocol::Verdict;

/// How many refused connections may wait at once for their final reply to arrive. They do not count against
/// `limits.connections`; beyond that number, they are closed without a final reply.
const MAX_REFUSED: usize = 64;

/// The counts of all connections of a server, against its limits.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The limits, which a reload may change at any time. Connections that are served already stay.
    max_connections: AtomicUsize,
    max_buffer_memory: AtomicUsize,
    /// Connections being served.
    open: AtomicUsize,
    /// Refused connections that are not closed yet.
    refused: AtomicUsize,
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
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            max_connections: AtomicUsize::new(limits.connections),
            max_buffer_memory: AtomicUsize::new(limits.buffer_memory),
            open: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            sources: SourceLimits::new(limits.connections_per_source),
            buffer_memory: AtomicUsize::new(0),
            connection_ended: Notify::new(),
            started: clock(),
            last_use: AtomicU64::new(0),
            limit_reported: AtomicBool::new(false),
        })
    }

    /// Sets new limits. Connections that are served already stay.
    pub(crate) fn set_limits(&self, limits: &Limits) {
        self.max_connections.store(limits.connections, Ordering::Relaxed);
        self.sources.set_limit(limits.connections_per_source);
        self.max_buffer_memory.store(limits.buffer_memory, Ordering::Relaxed);
        self.limit_reported.store(false, Ordering::Relaxed);
        // Acceptors that wait for a permit check again.
        self.connection_ended.notify_waiters();
    }

    /// Returns how many connections are served at once at most.
    pub(crate) fn limit(&self) -> usize {
        self.max_connections.load(Ordering::Relaxed)
    }

    /// Acquires a permit for one more connection, before that is accepted; `None` when there are as many as the limit
    /// allows.
    pub(crate) fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let below = |open| (open < self.limit()).then_some(open + 1);
        let taken = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below);
        taken.ok().map(|_| Permit { admission: Arc::clone(self), state: PermitState::Serving(None), memory: 0 })
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

    /// Waits until a permit is available. Calls `on_limit` with the limit if it has to wait, but not again and again
    /// while connections come and go.
    pub(crate) async fn wait_for_permit(&self, on_limit: impl Fn(usize)) {
        loop {
            let mut ended = std::pin::pin!(self.connection_ended.notified());
            ended.as_mut().enable();
            let limit = self.limit();
            if self.open() < limit {
                return;
            }
            if !self.limit_reported.swap(true, Ordering::Relaxed) {
                on_limit(limit);
            }
            ended.await;
        }
    }

    /// Returns what is notified whenever a connection has ended.
    pub(crate) fn connection_ended(&self) -> &Notify {
        &self.connection_ended
    }

    /// Connections being served.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
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

    fn is_idle(&self) -> bool {
        self.open() == 0 && self.refused.load(Ordering::SeqCst) == 0
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

/// The right to have one more connection, and its share of the buffer memory. Released when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    state: PermitState,
    /// Bytes that the connection keeps in its buffers.
    memory: usize,
}

#[derive(Debug)]
enum PermitState {
    /// With its slot, if it has a source.
    Serving(Option<SourceSlot>),
    Refused,
    Released,
}

impl Permit {
    /// Claims a slot of this source, and releases the slot that it had before. Returns `false` if the slot is pending:
    /// until [`Permit::claim_or_refuse`] decides, later connections of that source are pending as well.
    pub(crate) fn claim(&mut self, source: Option<Source>) -> bool {
        self.release_source();
        let slot = source.map(|source| self.admission.sources.claim(source));
        self.state = PermitState::Serving(slot);
        !matches!(slot, Some(SourceSlot::Pending(_)))
    }

    /// Claims the slot that is pending.
    ///
    /// # Errors
    /// Returns an error if the source has as many connections as it may have. The permit has no slot then.
    pub(crate) fn claim_or_refuse(&mut self) -> Result<(), Verdict> {
        let PermitState::Serving(Some(SourceSlot::Pending(source))) = self.state else { return Ok(()) };
        let slot = self.admission.sources.claim_or_refuse(source);
        self.state = PermitState::Serving(slot.ok());
        slot.map(drop)
    }

    /// Releases the slot, if it has one.
    fn release_source(&mut self) {
        if let PermitState::Serving(slot) = &mut self.state {
            if let Some(slot) = slot.take() {
                self.admission.sources.release(slot);
            }
        }
    }

    /// Turns this into the permit of a refused connection; `None` if there are [`MAX_REFUSED`] of those.
    pub(crate) fn refuse(mut self) -> Option<Self> {
        let below = |refused| (refused < MAX_REFUSED).then_some(refused + 1);
        self.admission.refused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        self.release();
        self.state = PermitState::Refused;
        Some(self)
    }

    /// Sets how many bytes the connection keeps in its buffers. Returns whether that fits into the budget of all
    /// connections; it counts in any case.
    #[inline]
    pub(crate) fn set_memory(&mut self, bytes: usize) -> bool {
        let before = std::mem::replace(&mut self.memory, bytes);
        if bytes <= before {
            if bytes < before {
                self.admission.buffer_memory.fetch_sub(before - bytes, Ordering::Relaxed);
            }
            return true;
        }
        let more = bytes - before;
        let budget = self.admission.max_buffer_memory.load(Ordering::Relaxed);
        self.admission.buffer_memory.fetch_add(more, Ordering::Relaxed) + more <= budget
    }

    /// Releases the permit unused. Notifies no waiter, since no connection has ended: the acceptor that releases it
    /// would take that for a reason to try again.
    pub(crate) fn release_unused(mut self) {
        self.state = PermitState::Released;
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
    }

    fn release(&mut self) {
        match std::mem::replace(&mut self.state, PermitState::Released) {
            PermitState::Serving(slot) => {
                self.admission.note_use();
                if let Some(slot) = slot {
                    self.admission.sources.release(slot);
                }
                let limit = self.admission.limit();
                if self.admission.open.fetch_sub(1, Ordering::Relaxed) <= limit.saturating_sub((limit / 8).max(1)) {
                    self.admission.limit_reported.store(false, Ordering::Relaxed);
                }
            }
            PermitState::Refused => {
                self.admission.note_use();
                self.admission.refused.fetch_sub(1, Ordering::Relaxed);
            }
            PermitState::Released => return,
        }
        self.admission.connection_ended.notify_waiters();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.set_memory(0);
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::config::Settings;

    fn admission(connections: usize, connections_per_source: u32) -> Arc<Admission> {
        Admission::new(&Limits { connections, connections_per_source, ..limits(1000) })
    }

    fn limits(buffer_memory: usize) -> Limits {
        Limits { buffer_memory, ..Settings::default().limits }
    }

    fn claimed(admission: &Arc<Admission>, source: Source) -> Result<Permit, Verdict> {
        let mut permit = admission.try_acquire().unwrap();
        permit.claim(Some(source));
        permit.claim_or_refuse().map(|()| permit)
    }

    fn v4(last: u8) -> Source {
        Source::of_ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))).unwrap()
    }

    #[test]
    fn the_number_of_permits_is_exactly_the_limit() {
        let admission = admission(2, 0);
        let first = admission.try_acquire().unwrap();
        let _second = admission.try_acquire().unwrap();
        assert!(admission.try_acquire().is_none());
        drop(first);
        assert!(admission.try_acquire().is_some());
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
        assert_eq!(second.claim_or_refuse(), Err(Verdict::TooMany { limit: 2 }));
        drop((first, second));
        assert!(claimed(v4(2)).is_ok() && claimed(v4(1)).is_err());
    }

    #[test]
    fn new_connections_do_not_overtake_pending_ones_of_their_source() {
        let admission = admission(100, 2);
        let acquire = || admission.try_acquire().unwrap();
        let [mut first, mut second, mut third, mut fourth] = [acquire(), acquire(), acquire(), acquire()];
        assert!(first.claim(Some(v4(1))) && second.claim(Some(v4(1))) && !third.claim(Some(v4(1))));
        drop(first);
        assert!(!fourth.claim(Some(v4(1))), "the third was here before");
        assert!(acquire().claim(Some(v4(2))), "others do not have to wait");
        assert_eq!(third.claim_or_refuse(), Ok(()));
        assert_eq!(fourth.claim_or_refuse(), Err(Verdict::TooMany { limit: 2 }));
        drop(second);
        assert!(fourth.claim(Some(v4(1))), "no slot is pending any more");
        assert!(!acquire().claim(Some(v4(1))), "and it ended while its slot was pending");
        drop((third, fourth));
        assert!(admission.sources.len() == 0);
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
        assert!(admission.try_acquire().is_none(), "as many as the limit allows are there");
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
        assert!(admission.try_acquire().is_none());
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
        let refused: Vec<_> = (0..MAX_REFUSED).map(|_| admission.try_acquire().unwrap().refuse().unwrap()).collect();
        assert!(admission.try_acquire().unwrap().refuse().is_none());
        let _served = admission.try_acquire().unwrap();
        drop(refused);
        assert_eq!(admission.refused.load(Ordering::Relaxed), 0);
        assert_eq!(admission.open(), 1);
    }

    #[test]
    fn the_buffer_budget_is_enforced_and_released() {
        let admission = admission(2, 1);
        let mut one = admission.try_acquire().unwrap();
        let mut other = admission.try_acquire().unwrap();
        assert!(one.set_memory(1000));
        assert!(!other.set_memory(1));
        assert!(one.set_memory(999));
        assert!(other.set_memory(0) && other.set_memory(1));
        drop(one);
        drop(other);
        assert_eq!(admission.buffer_memory.load(Ordering::Relaxed), 0);
    }
}
