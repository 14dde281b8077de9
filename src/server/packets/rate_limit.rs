//! Limits the rate of datagrams of each source (`limits.datagrams_per_source`).
//!
//! Each source has a token bucket for one second of datagrams. The state of a bucket is the time at which it will be full (the
//! generic cell rate algorithm, ITU-T I.371). A source with a full bucket is treated like an unknown source, so its entry can
//! be removed.
//!
//! Source addresses can be forged, so the size of the table is bounded. If it is full, the entry whose bucket will be full next
//! is removed. That source has used the least of its rate, so it gains the least, and no source is ever refused because of
//! other sources. To evade the limit this way, a client has to send at the limit from more sources than the table holds.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::server::peer::Source;

/// The maximum number of sources in all tables. Full tables occupy about 2 MiB.
const MAX_SOURCES: usize = 16_384;

/// The number of tables. With several, threads that serve sockets of one port seldom wait for each other.
const TABLES: u8 = 16;

/// The capacity of a bucket, as the time in which it fills.
const BURST: Duration = Duration::from_secs(1);

/// The buckets of all sources. A keyed hash, which clients cannot predict, assigns each source to a table.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// The time in which a bucket regains one datagram, in nanoseconds; 0 means no limit.
    interval: AtomicU64,
    tables: [Mutex<BucketTable>; TABLES as usize],
    /// The maximum number of sources in each table.
    max_sources: usize,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct BucketTable {
    /// The time at which the bucket of each source will be full.
    full_at: HashMap<Source, Instant>,
    /// The same entries, ordered by time.
    by_full_at: BTreeSet<(Instant, Source)>,
}

impl RateLimiter {
    /// Creates a limiter that admits `limit` datagrams of each source per second; `None` means no limit.
    pub(crate) fn new(limit: Option<u32>) -> Self {
        Self::with_max_sources(limit, MAX_SOURCES)
    }

    fn with_max_sources(limit: Option<u32>, max_sources: usize) -> Self {
        let (interval, tables) = (AtomicU64::new(interval(limit)), Default::default());
        Self { interval, tables, max_sources: max_sources / usize::from(TABLES), hasher: RandomState::new() }
    }

    /// Sets a new limit.
    pub(crate) fn set_limit(&self, limit: Option<u32>) {
        self.interval.store(interval(limit), Ordering::Relaxed);
    }

    /// Takes one datagram from the bucket of this source. Returns `false` if the bucket is empty.
    pub(crate) fn admit(&self, source: Source, now: Instant) -> bool {
        let interval = Duration::from_nanos(self.interval.load(Ordering::Relaxed));
        if interval.is_zero() {
            return true;
        }
        let table = usize::from(self.hasher.hash_one(source).to_le_bytes()[0] % TABLES);
        // After a panic, a source may be in one half of its table only, and is removed from there in time.
        let mut table = self.tables[table].lock().unwrap_or_else(PoisonError::into_inner);
        table.admit(source, now, interval, self.max_sources)
    }
}

/// Returns the time in which a bucket regains one datagram, in nanoseconds; 0 without a limit.
fn interval(per_second: Option<u32>) -> u64 {
    const SECOND: u64 = BURST.as_secs() * 1_000_000_000;
    per_second.map_or(0, |per_second| SECOND / u64::from(per_second.max(1)))
}

impl BucketTable {
    fn admit(&mut self, source: Source, now: Instant, interval: Duration, max_sources: usize) -> bool {
        // Two for each new entry, so that the table shrinks when fewer sources send.
        for _ in 0..2 {
            if self.by_full_at.first().is_some_and(|(at, _)| *at <= now) {
                self.evict_next();
            }
        }
        let previous = self.full_at.get(&source).copied();
        let full_at = previous.filter(|at| *at > now).unwrap_or(now) + interval;
        if full_at > now + BURST {
            return false;
        }
        match previous {
            Some(at) => {
                self.by_full_at.remove(&(at, source));
            }
            None if self.full_at.len() >= max_sources => self.evict_next(),
            None => {}
        }
        self.full_at.insert(source, full_at);
        self.by_full_at.insert((full_at, source));
        true
    }

    fn evict_next(&mut self) {
        if let Some((_, source)) = self.by_full_at.pop_first() {
            self.full_at.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::server::clock::clock;

    fn source(number: u32) -> Source {
        Source::V4(Ipv4Addr::from(number))
    }

    /// Returns how many of `count` simultaneous datagrams are admitted.
    fn admitted(limiter: &RateLimiter, source: Source, now: Instant, count: usize) -> usize {
        (0..count).filter(|_| limiter.admit(source, now)).count()
    }

    fn known(limiter: &RateLimiter) -> usize {
        let known = |table: &Mutex<BucketTable>| {
            let table = table.lock().unwrap();
            assert_eq!(table.full_at.len(), table.by_full_at.len());
            table.by_full_at.len()
        };
        limiter.tables.iter().map(known).sum()
    }

    #[test]
    fn a_source_has_a_burst_of_one_second_and_then_its_rate() {
        for limit in [1, 3, 100, 1_000_000] {
            let (limiter, start) = (RateLimiter::new(Some(limit)), clock());
            let most = usize::try_from(limit).unwrap();
            let burst = admitted(&limiter, source(1), start, most + 10);
            assert_eq!(burst, most, "{limit}");
            assert_eq!(
                admitted(&limiter, source(1), start + Duration::from_nanos(interval(Some(limit))), 2),
                1,
                "{limit}"
            );
            assert_eq!(admitted(&limiter, source(1), start + Duration::from_secs(60), most + 10), burst, "{limit}");
        }
    }

    #[test]
    fn sources_have_independent_rates() {
        let (limiter, start) = (RateLimiter::new(Some(5)), clock());
        assert_eq!(admitted(&limiter, source(1), start, 1000), 5);
        assert_eq!(admitted(&limiter, source(2), start, 5), 5);
        assert_eq!(admitted(&limiter, Source::Uid(1), start, 5), 5);
    }

    #[test]
    fn without_a_limit_all_are_admitted_and_no_source_is_stored() {
        let (limiter, start) = (RateLimiter::new(None), clock());
        assert_eq!(admitted(&limiter, source(1), start, 10_000), 10_000);
        assert_eq!(known(&limiter), 0);
    }

    #[test]
    fn a_new_limit_holds_at_once() {
        let (limiter, start) = (RateLimiter::new(Some(10)), clock());
        assert_eq!(admitted(&limiter, source(1), start, 100), 10);
        limiter.set_limit(None);
        assert_eq!(admitted(&limiter, source(1), start, 100), 100);
        limiter.set_limit(Some(2));
        assert_eq!(admitted(&limiter, source(2), start, 100), 2);
    }

    #[test]
    fn sources_that_are_quiet_are_forgotten() {
        let (limiter, start) = (RateLimiter::new(Some(100)), clock());
        for number in 0..1000 {
            assert!(limiter.admit(source(number), start));
        }
        assert_eq!(known(&limiter), 1000);
        // Each new source removes old entries from its own table.
        for number in 5000..6000 {
            limiter.admit(source(number), start + Duration::from_secs(1));
        }
        assert_eq!(known(&limiter), 1000);
    }

    #[test]
    fn a_flood_of_forged_sources_neither_frees_the_one_that_sends_most_nor_locks_others_out() {
        let (limiter, start) = (RateLimiter::with_max_sources(Some(10), 160), clock());
        assert_eq!(admitted(&limiter, source(1), start, 100), 10);
        assert_eq!(admitted(&limiter, source(2), start, 9), 9);
        for number in 1000..11_000 {
            assert!(limiter.admit(source(number), start), "a newcomer is admitted, however many there are");
            assert!(!limiter.admit(source(1), start), "it has used up its rate, and is not forgotten");
        }
        assert_eq!(admitted(&limiter, source(2), start, 9), 1, "nor is what others have used");
        assert_eq!(known(&limiter), 160);
    }
}
