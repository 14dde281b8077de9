//! Closes idle connections while all permits are taken and a client waits (`limits.reclaim_idle`).
//!
//! ```text
//! a client waits ──► Reclaimer ── asks ──► each worker: how many connections each source has, and which are idle
//!                        │ chooses
//!                        └─ reclaims ──► the connection's worker: still idle, nothing to be read? ─► final reply, permit free
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync;

use super::clock::clock;
use super::idleness::{IdleConnection, IdleReport};
use super::peer::Source;
use super::worker::Worker;

/// The maximum number of connections in one choice.
const MAX_CHOSEN: usize = 64;

/// The time for which a choice is used. Connections come and go meanwhile.
const MAX_AGE: Duration = Duration::from_millis(100);

/// The pause after an attempt that could close no connection.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// A connection that may be closed.
#[derive(Debug)]
struct Candidate {
    /// The number of its worker.
    worker: usize,
    since: Instant,
    key: usize,
    id: u64,
}

/// Returns the connections that may be closed, out of those that the workers have reported. The last one is to be closed first.
///
/// If one source holds more than half of all permits, its longest idle connections are chosen. Otherwise the longest idle
/// connections of all sources that hold more than an equal share are chosen, if they have been idle for at least `min_idle`.
fn choose(reports: Vec<IdleReport>, limit: usize, min_idle: Duration, now: Instant) -> Vec<Candidate> {
    let mut held: HashMap<Source, usize> = HashMap::new();
    let mut idle = Vec::new();
    for (worker, report) in reports.into_iter().enumerate() {
        for (source, count) in report.held {
            *held.entry(source).or_default() += count;
        }
        idle.extend(report.idle.into_iter().map(|one| (worker, one)));
    }
    // Connections that were accepted in one pass have the same time.
    idle.sort_by_key(|(_, one)| (one.since, one.id));
    let take = |spare: &dyn Fn(&IdleConnection) -> usize| {
        let mut taken: HashMap<Source, usize> = HashMap::new();
        let may_close = |(_, one): &&(usize, IdleConnection)| {
            let taken = taken.entry(one.source).or_default();
            *taken += 1;
            *taken <= spare(one)
        };
        let candidate = |(worker, one): &(usize, IdleConnection)| Candidate {
            worker: *worker,
            since: one.since,
            key: one.key,
            id: one.id,
        };
        let mut chosen: Vec<_> = idle.iter().filter(may_close).take(MAX_CHOSEN).map(candidate).collect();
        chosen.reverse();
        chosen
    };
    let half = limit / 2;
    let largest = held.iter().max_by_key(|(_, count)| **count).filter(|(_, count)| **count > half);
    if let Some((largest, count)) = largest {
        let chosen = take(&|one| if one.source == *largest { count - half } else { 0 });
        if !chosen.is_empty() {
            return chosen;
        }
    }
    // The waiting client may belong to a source without connections.
    let share = (limit / (held.len() + 1)).max(1);
    let is_old = |one: &IdleConnection| now.saturating_duration_since(one.since) >= min_idle;
    take(&|one| if is_old(one) { held[&one.source].saturating_sub(share) } else { 0 })
}

/// Closes idle connections for waiting clients.
#[derive(Debug)]
pub(crate) struct Reclaimer {
    /// `limits.reclaim_idle`, which a reload may change at any time.
    min_idle: Mutex<Option<Duration>>,
    choice: sync::Mutex<Choice>,
}

/// The last choice, and what is left of it.
#[derive(Debug, Default)]
struct Choice {
    made_at: Option<Instant>,
    candidates: Vec<Candidate>,
    /// Whether a connection of this choice was closed.
    closed_any: bool,
}

impl Choice {
    /// Closes the next candidate that is still idle. Returns `false` if there is none.
    async fn reclaim_next(&mut self, workers: &[Worker]) -> bool {
        while let Some(Candidate { worker, since, key, id }) = self.candidates.pop() {
            if workers[worker].reclaim(key, id, since).await {
                self.closed_any = true;
                return true;
            }
        }
        false
    }
}

impl Reclaimer {
    pub(crate) fn new(min_idle: Option<Duration>) -> Self {
        Self { min_idle: Mutex::new(min_idle), choice: sync::Mutex::default() }
    }

    pub(crate) fn set_min_idle(&self, min_idle: Option<Duration>) {
        *self.lock_min_idle() = min_idle;
    }

    /// Returns whether idle connections are closed for waiting clients.
    pub(crate) fn is_on(&self) -> bool {
        self.lock_min_idle().is_some()
    }

    /// Closes one idle connection, if one may be closed. Returns whether it did.
    pub(crate) async fn reclaim_one(&self, workers: &[Worker], limit: usize) -> bool {
        let Some(min_idle) = *self.lock_min_idle() else { return false };
        // Held while a connection is closed: a second choice at the same time would not know of it.
        let mut choice = self.choice.lock().await;
        if choice.made_at.is_some_and(|at| clock().saturating_duration_since(at) > MAX_AGE) {
            *choice = Choice::default();
        }
        if choice.reclaim_next(workers).await {
            return true;
        }
        if choice.made_at.is_some() && !choice.closed_any {
            // Another choice would find no connection either, so soon after this one.
            return false;
        }
        let mut reports = Vec::with_capacity(workers.len());
        for worker in workers {
            reports.push(worker.report_idle().await);
        }
        let now = clock();
        let candidates = choose(reports, limit, min_idle, now);
        *choice = Choice { made_at: Some(now), candidates, closed_any: false };
        choice.reclaim_next(workers).await
    }

    fn lock_min_idle(&self) -> MutexGuard<'_, Option<Duration>> {
        // A value is stored in one step, so it is valid even if a thread panicked.
        self.min_idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn source(last: u8) -> Source {
        Source::of_ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))).unwrap()
    }

    /// Chooses among connections, each given by its source and the seconds for which it has been idle (`None`: not idle).
    /// Returns the seconds of the chosen connections, in the order in which they are closed.
    fn chosen(limit: usize, min_idle: u64, connections: &[(u8, Option<u64>)]) -> Vec<u64> {
        let now = clock() + Duration::from_secs(10_000);
        let mut reports = [IdleReport::default(), IdleReport::default()];
        for (number, (last, idle)) in connections.iter().enumerate() {
            let since = idle.map(|idle| now - Duration::from_secs(idle));
            let id = number as u64;
            reports[number % 2].add(number, id, source(*last), since);
        }
        let mut chosen = choose(reports.into(), limit, Duration::from_secs(min_idle), now);
        chosen.reverse();
        chosen.iter().map(|one| now.saturating_duration_since(one.since).as_secs()).collect()
    }

    fn idle(source: u8, idle: impl IntoIterator<Item = u64>) -> Vec<(u8, Option<u64>)> {
        idle.into_iter().map(|idle| (source, Some(idle))).collect()
    }

    #[test]
    fn the_longest_idle_connections_of_a_source_with_more_than_half_are_chosen_whatever_their_age() {
        let all = [idle(1, [3, 1, 2, 4, 5, 6]), idle(2, [100]), idle(3, [200, 300])].concat();
        assert_eq!(chosen(9, 60, &all), [6, 5]);
        let busy = [vec![(1, None); 4], idle(1, [1, 2]), idle(2, [5]), idle(3, [6, 7])].concat();
        assert_eq!(chosen(9, 60, &busy), [2, 1]);
        assert_eq!(chosen(1, 60, &idle(1, [0])), [0]);
    }

    #[test]
    fn otherwise_those_of_sources_with_more_than_an_equal_share_that_are_idle_for_long_enough() {
        let all = [idle(1, [100, 90, 80, 70]), idle(2, [200, 10, 95]), idle(3, [1000]), idle(4, [1000])].concat();
        // The source of the waiting client is the fifth, so an equal share is two.
        assert_eq!(chosen(10, 60, &all), [200, 100, 90]);
        assert_eq!(chosen(10, 150, &all), [200]);
        assert_eq!(chosen(10, 201, &all), [0_u64; 0]);
        let single = [idle(1, [100]), idle(2, [200]), idle(3, [300])].concat();
        assert_eq!(chosen(3, 0, &single), [0_u64; 0]);
    }

    #[test]
    fn sources_that_hold_everything_in_equal_parts_make_room_for_a_further_one() {
        let half_each = [idle(1, [100, 101]), idle(2, [200, 201])].concat();
        assert_eq!(chosen(4, 60, &half_each), [201, 101]);
        let all: Vec<_> = (0..16).flat_map(|source| idle(source, [100; 256])).collect();
        assert_eq!(chosen(4096, 60, &all).len(), MAX_CHOSEN);
    }

    #[test]
    fn a_source_with_more_than_half_that_is_busy_protects_no_other() {
        let all = [vec![(1, None); 6], idle(2, [100, 90, 80, 70])].concat();
        // An equal share is three.
        assert_eq!(chosen(10, 60, &all), [100]);
        assert_eq!(chosen(10, 200, &all), [0_u64; 0]);
    }

    #[test]
    fn of_connections_that_have_been_idle_equally_long_the_first_one_is_closed_first() {
        let now = clock();
        let mut reports = [IdleReport::default(), IdleReport::default()];
        for id in 0..8 {
            reports[usize::from(id % 2 == 0)].add(0, id, source(1), Some(now));
        }
        let chosen = choose(reports.into(), 8, Duration::ZERO, now);
        let ids = chosen.iter().rev().map(|one| one.id);
        assert_eq!(ids.collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn few_are_chosen_at_a_time() {
        assert_eq!(chosen(1000, 60, &idle(1, 0..1000)).len(), MAX_CHOSEN);
    }
}
