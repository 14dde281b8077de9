//! Who gets in, and how much all of them may keep. Everything that is counted here is given back by a drop.

mod sources;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

pub(crate) use self::sources::Source;
use self::sources::{Claim, Sources};
use super::connection::clock;
use crate::config::Limits;
use crate::protocol::Verdict;

/// How many refused connections may wait at once for their refusal to arrive. They take no place of a connection that
/// is served; beyond that number they are closed without a word.
const REFUSED: usize = 64;

/// The counts of all connections of a server, against its limits.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The limits, which a reload may change at any time; those who are served already stay.
    max_connections: AtomicUsize,
    max_buffers: AtomicUsize,
    /// Connections being served.
    open: AtomicUsize,
    /// Refused connections that are not closed yet.
    refused: AtomicUsize,
    sources: Sources,
    /// Bytes that connections keep.
    buffers: AtomicUsize,
    /// Told whenever a connection, served or refused, has ended and its descriptor is closed.
    ended: Notify,
    began: Instant,
    /// When the last one ended, in milliseconds since it began.
    last_end: AtomicU64,
    /// Whether it was said that the limit on connections is reached. Forgotten when an eighth of them has ended, so
    /// that coming and going at the limit does not say it every time.
    full: AtomicBool,
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            max_connections: AtomicUsize::new(limits.connections),
            max_buffers: AtomicUsize::new(limits.buffer_memory),
            open: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            sources: Sources::new(limits.connections_per_source),
            buffers: AtomicUsize::new(0),
            ended: Notify::new(),
            began: clock(),
            last_end: AtomicU64::new(0),
            full: AtomicBool::new(false),
        })
    }

    /// From now on, these limits hold. Nobody who is served already is sent away.
    pub(crate) fn set_limits(&self, limits: &Limits) {
        self.max_connections.store(limits.connections, Ordering::Relaxed);
        self.sources.set_limit(limits.connections_per_source);
        self.max_buffers.store(limits.buffer_memory, Ordering::Relaxed);
        self.full.store(false, Ordering::Relaxed);
        // Who waits for a place looks again.
        self.ended.notify_waiters();
    }

    /// How many connections are served at once at most.
    pub(crate) fn limit(&self) -> usize {
        self.max_connections.load(Ordering::Relaxed)
    }

    /// A place for one more connection, to be had before it is accepted; `None` when there are as many as the limit
    /// allows.
    pub(crate) fn place(self: &Arc<Self>) -> Option<Place> {
        let below = |open| (open < self.limit()).then_some(open + 1);
        let taken = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below);
        taken.ok().map(|_| Place { admission: Arc::clone(self), kind: Kind::Open(None), kept: 0 })
    }

    /// A place for a connection that was let in by a process before. It counts, but nobody is sent away for it now.
    pub(crate) fn place_again(self: &Arc<Self>, source: Option<Source>) -> Place {
        self.open.fetch_add(1, Ordering::Relaxed);
        let claim = source.map(|source| self.sources.count(source));
        Place { admission: Arc::clone(self), kind: Kind::Open(claim), kept: 0 }
    }

    /// The same for one that was refused there, and waits for its refusal to arrive.
    pub(crate) fn refused_again(self: &Arc<Self>) -> Place {
        self.refused.fetch_add(1, Ordering::Relaxed);
        Place { admission: Arc::clone(self), kind: Kind::Refused, kept: 0 }
    }

    /// Waits until there is a place; `on_full` is told the limit when it has to wait, but not again and
    /// again while connections come and go.
    pub(crate) async fn wait_for_place(&self, on_full: impl Fn(usize)) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            let limit = self.limit();
            if self.open() < limit {
                return;
            }
            if !self.full.swap(true, Ordering::Relaxed) {
                on_full(limit);
            }
            ended.await;
        }
    }

    /// Told whenever a connection has ended.
    pub(crate) fn ended(&self) -> &Notify {
        &self.ended
    }

    /// Connections being served.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// For how long there has been no connection at all; `None` while there is one.
    pub(crate) fn idle_for(&self) -> Option<Duration> {
        let last_end = self.began + Duration::from_millis(self.last_end.load(Ordering::SeqCst));
        self.is_idle().then(|| clock().saturating_duration_since(last_end))
    }

    /// Something came that is no connection: as if one had ended now.
    pub(crate) fn touch(&self) {
        let since = clock().saturating_duration_since(self.began).as_millis();
        self.last_end.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    fn is_idle(&self) -> bool {
        self.open() == 0 && self.refused.load(Ordering::SeqCst) == 0
    }

    /// Waits until there is no connection at all.
    pub(crate) async fn wait_for_none(&self) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.is_idle() {
                return;
            }
            ended.await;
        }
    }
}

/// The place of one connection among all, and its share of the buffer memory. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    kind: Kind,
    /// Bytes that the connection keeps.
    kept: usize,
}

#[derive(Debug)]
enum Kind {
    /// With what it is to its source, if it has one.
    Open(Option<Claim>),
    Refused,
    GivenBack,
}

impl Place {
    /// Counts the connection for this source, and for none that it had before. Returns whether that has room; otherwise it
    /// waits for its [`Place::last_claim`], and so does whoever comes from there after it.
    pub(crate) fn claim(&mut self, source: Option<Source>) -> bool {
        self.disclaim();
        let claim = source.map(|source| self.admission.sources.claim(source));
        self.kind = Kind::Open(claim);
        !matches!(claim, Some(Claim::Waiting(_)))
    }

    /// Counts the connection for the source it waits for.
    ///
    /// # Errors
    /// The source has as many connections as it may have; the place stays without a source.
    pub(crate) fn last_claim(&mut self) -> Result<(), Verdict> {
        let Kind::Open(Some(Claim::Waiting(source))) = self.kind else { return Ok(()) };
        let claim = self.admission.sources.last_claim(source);
        self.kind = Kind::Open(claim.ok());
        claim.map(drop)
    }

    /// Is of no source any more.
    fn disclaim(&mut self) {
        if let Kind::Open(claim) = &mut self.kind {
            if let Some(claim) = claim.take() {
                self.admission.sources.forget(claim);
            }
        }
    }

    /// Exchanges the place for one among the refused; `None` when there are enough of those.
    pub(crate) fn refuse(mut self) -> Option<Self> {
        let below = |refused| (refused < REFUSED).then_some(refused + 1);
        self.admission.refused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        self.give_back();
        self.kind = Kind::Refused;
        Some(self)
    }

    /// The connection now keeps this many bytes. Returns whether that fits into the budget of all; it counts in any case.
    #[inline]
    pub(crate) fn keeps(&mut self, bytes: usize) -> bool {
        let before = std::mem::replace(&mut self.kept, bytes);
        if bytes <= before {
            if bytes < before {
                self.admission.buffers.fetch_sub(before - bytes, Ordering::Relaxed);
            }
            return true;
        }
        let more = bytes - before;
        let budget = self.admission.max_buffers.load(Ordering::Relaxed);
        self.admission.buffers.fetch_add(more, Ordering::Relaxed) + more <= budget
    }

    /// Gives it back unused. Nobody is told, since no connection has ended: least of all the acceptor that gives it back,
    /// and would take it for a reason to try again.
    pub(crate) fn put_back(mut self) {
        self.kind = Kind::GivenBack;
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
    }

    fn give_back(&mut self) {
        match std::mem::replace(&mut self.kind, Kind::GivenBack) {
            Kind::Open(claim) => {
                self.admission.touch();
                if let Some(claim) = claim {
                    self.admission.sources.forget(claim);
                }
                let limit = self.admission.limit();
                if self.admission.open.fetch_sub(1, Ordering::Relaxed) <= limit.saturating_sub((limit / 8).max(1)) {
                    self.admission.full.store(false, Ordering::Relaxed);
                }
            }
            Kind::Refused => {
                self.admission.touch();
                self.admission.refused.fetch_sub(1, Ordering::Relaxed);
            }
            Kind::GivenBack => return,
        }
        self.admission.ended.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.keeps(0);
        self.give_back();
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

    fn claimed(admission: &Arc<Admission>, source: Source) -> Result<Place, Verdict> {
        let mut place = admission.place().unwrap();
        place.claim(Some(source));
        place.last_claim().map(|()| place)
    }

    fn v4(last: u8) -> Source {
        Source::of_ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))).unwrap()
    }

    #[test]
    fn exactly_as_many_places_as_the_limit_says() {
        let admission = admission(2, 0);
        let first = admission.place().unwrap();
        let _second = admission.place().unwrap();
        assert!(admission.place().is_none());
        drop(first);
        assert!(admission.place().is_some());
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
    fn a_connection_counts_for_the_source_that_it_turns_out_to_have() {
        let admission = admission(100, 2);
        let claimed = |source| claimed(&admission, source);
        let mut first = claimed(v4(1)).unwrap();
        let mut second = claimed(v4(1)).unwrap();
        assert!(first.claim(Some(v4(2))));
        assert!(second.claim(None));
        let _others = [claimed(v4(1)).unwrap(), claimed(v4(1)).unwrap(), claimed(v4(2)).unwrap()];
        assert!(!second.claim(Some(v4(2))));
        assert_eq!(second.last_claim(), Err(Verdict::TooMany { limit: 2 }));
        drop((first, second));
        assert!(claimed(v4(2)).is_ok() && claimed(v4(1)).is_err());
    }

    #[test]
    fn nobody_overtakes_who_waits_for_room() {
        let admission = admission(100, 2);
        let places = || admission.place().unwrap();
        let [mut first, mut second, mut third, mut fourth] = [places(), places(), places(), places()];
        assert!(first.claim(Some(v4(1))) && second.claim(Some(v4(1))) && !third.claim(Some(v4(1))));
        drop(first);
        assert!(!fourth.claim(Some(v4(1))), "the third was here before");
        assert!(places().claim(Some(v4(2))), "others do not have to wait");
        assert_eq!(third.last_claim(), Ok(()));
        assert_eq!(fourth.last_claim(), Err(Verdict::TooMany { limit: 2 }));
        drop(second);
        assert!(fourth.claim(Some(v4(1))), "nobody waits any more");
        assert!(!places().claim(Some(v4(1))), "and it went while it waited");
        drop((third, fourth));
        assert!(admission.sources.len() == 0);
    }

    #[test]
    fn new_limits_hold_for_all_that_comes_and_nobody_is_sent_away() {
        let admission = admission(3, 0);
        let claimed = || claimed(&admission, v4(1));
        let mut served = vec![claimed().unwrap(), claimed().unwrap(), claimed().unwrap()];
        admission.set_limits(&Limits { connections: 2, connections_per_source: 2, ..limits(10) });
        assert_eq!((admission.open(), admission.limit()), (3, 2));
        assert!(!served[0].keeps(11) && served[0].keeps(10));
        served.pop();
        assert!(admission.place().is_none(), "as many as the limit allows are there");
        served.pop();
        served.push(claimed().expect("it is the second"));
        admission.set_limits(&Limits { connections: 9, connections_per_source: 2, ..limits(10) });
        assert_eq!(claimed().unwrap_err(), Verdict::TooMany { limit: 2 }, "those from before the limit count");
    }

    #[test]
    fn who_was_let_in_before_stays_and_counts() {
        let admission = admission(2, 2);
        let carried: Vec<_> = (0..3).map(|_| admission.place_again(Some(v4(1)))).collect();
        let refused = admission.refused_again();
        assert_eq!((admission.open(), admission.refused.load(Ordering::Relaxed)), (3, 1));
        assert!(admission.place().is_none());
        drop(refused);
        let mut carried = carried.into_iter();
        drop((carried.next(), carried.next()));
        let place = claimed(&admission, v4(1)).expect("it is the second");
        drop(carried);
        assert!(claimed(&admission, v4(1)).is_ok());
        drop(place);
        assert!(admission.is_idle() && admission.sources.len() == 0);
    }

    #[test]
    fn the_refused_take_no_place_and_are_few() {
        let admission = admission(1, 1);
        let refused: Vec<_> = (0..REFUSED).map(|_| admission.place().unwrap().refuse().unwrap()).collect();
        assert!(admission.place().unwrap().refuse().is_none());
        let _served = admission.place().unwrap();
        drop(refused);
        assert_eq!(admission.refused.load(Ordering::Relaxed), 0);
        assert_eq!(admission.open(), 1);
    }

    #[test]
    fn the_buffer_budget_is_kept_and_given_back() {
        let admission = admission(2, 1);
        let mut one = admission.place().unwrap();
        let mut other = admission.place().unwrap();
        assert!(one.keeps(1000));
        assert!(!other.keeps(1));
        assert!(one.keeps(999));
        assert!(other.keeps(0) && other.keeps(1));
        drop(one);
        drop(other);
        assert_eq!(admission.buffers.load(Ordering::Relaxed), 0);
    }
}
