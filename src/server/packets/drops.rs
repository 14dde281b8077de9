//! Datagrams that were dropped, told in a bounded way: of each cause the first at once, and from then on how many there
//! were, once in an interval, until there is one without any.

use std::time::{Duration, Instant};

use crate::protocol::packet::{DROP_CAUSES, DropCause};
use crate::server::socket::Peer;

/// How long one cause is not told of again.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);

/// What a listener has dropped and not told yet.
#[derive(Debug)]
pub(crate) struct Drops([Tally; DROP_CAUSES]);

#[derive(Debug, Clone, Copy)]
struct Tally {
    /// How many were dropped that were not told of.
    untold: u64,
    /// Where the last one came from.
    from: Peer,
    /// Until when none of them is told.
    quiet_until: Option<Instant>,
}

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) cause: DropCause,
    pub(crate) count: u64,
    pub(crate) from: Peer,
}

impl Drops {
    pub(crate) fn new() -> Self {
        Self([Tally { untold: 0, from: Peer::Unknown, quiet_until: None }; DROP_CAUSES])
    }

    /// One was dropped. Returns what is to be told of it now.
    pub(crate) fn count(&mut self, cause: DropCause, from: Peer, now: Instant) -> Option<Report> {
        let tally = &mut self.0[cause.index()];
        (tally.untold, tally.from) = (tally.untold + 1, from);
        if tally.quiet_until.is_some() {
            return None;
        }
        tally.quiet_until = Some(now + INTERVAL);
        tally.report(cause)
    }

    /// When [`Drops::due`] may have something to tell.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.iter().filter_map(|tally| tally.quiet_until).min()
    }

    /// What is to be told since intervals are over.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Report> {
        let over = |tally: &Tally| tally.quiet_until.is_some_and(|until| until <= now);
        self.reports(over, Some(now + INTERVAL))
    }

    /// What is left to be told.
    pub(crate) fn rest(&mut self) -> Vec<Report> {
        self.reports(|_| true, None)
    }

    fn reports(&mut self, wanted: impl Fn(&Tally) -> bool, quiet_until: Option<Instant>) -> Vec<Report> {
        let mut reports = Vec::new();
        for cause in DropCause::ALL {
            let tally = &mut self.0[cause.index()];
            if wanted(tally) {
                let report = tally.report(cause);
                tally.quiet_until = quiet_until.filter(|_| report.is_some());
                reports.extend(report);
            }
        }
        reports
    }
}

impl Tally {
    fn report(&mut self, cause: DropCause) -> Option<Report> {
        let count = std::mem::take(&mut self.untold);
        (count > 0).then_some(Report { cause, count, from: self.from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::connection::clock;

    fn peer(port: u16) -> Peer {
        Peer::Ip(([192, 0, 2, 1], port).into())
    }

    #[test]
    fn the_first_is_told_at_once_and_those_after_it_together() {
        let (mut drops, start) = (Drops::new(), clock());
        let cause = DropCause::Rate;
        assert_eq!(drops.next(), None);
        assert_eq!(drops.count(cause, peer(1), start), Some(Report { cause, count: 1, from: peer(1) }));
        for port in 2..1000 {
            assert_eq!(drops.count(cause, peer(port), start), None);
        }
        assert_eq!(drops.next(), Some(start + INTERVAL));
        assert_eq!(drops.due(start + INTERVAL - Duration::from_millis(1)), []);
        assert_eq!(drops.due(start + INTERVAL), [Report { cause, count: 998, from: peer(999) }]);
        // As long as there are more, once in an interval.
        assert_eq!(drops.count(cause, peer(7), start + INTERVAL), None);
        assert_eq!(drops.due(start + 2 * INTERVAL), [Report { cause, count: 1, from: peer(7) }]);
        // An interval without any, and the next is the first again.
        assert_eq!(drops.due(start + 3 * INTERVAL), []);
        assert_eq!(drops.next(), None);
        assert!(drops.count(cause, peer(8), start + 3 * INTERVAL).is_some());
    }

    #[test]
    fn each_cause_is_told_by_itself_and_the_rest_at_the_end() {
        let (mut drops, start) = (Drops::new(), clock());
        for cause in DropCause::ALL {
            assert!(drops.count(cause, peer(1), start).is_some());
        }
        drops.count(DropCause::Nameless, Peer::Unknown, start);
        drops.count(DropCause::TooLong, peer(2), start);
        let rest: Vec<_> = drops.rest().iter().map(|report| report.cause).collect();
        assert_eq!(rest, [DropCause::TooLong, DropCause::Nameless]);
        assert_eq!(drops.rest(), []);
    }
}
