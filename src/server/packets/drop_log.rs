//! Reports dropped datagrams at a bounded rate. The first of each cause is reported at once. Later ones are reported as a
//! number, once in each interval, until an interval has none.

use std::time::{Duration, Instant};

use nix::sys::socket::UnixAddr;

use crate::protocol::packet::{DROP_CAUSES, DropCause};
use crate::server::peer::Peer;

/// The time between two reports of one cause.
pub(crate) const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// The dropped datagrams of a listener that have not been reported yet.
#[derive(Debug)]
pub(crate) struct DropLog([DropCounter; DROP_CAUSES]);

#[derive(Debug, Clone, Copy)]
struct DropCounter {
    /// The number of dropped datagrams that have not been reported.
    unreported: u64,
    /// The sender of the last one.
    last_peer: Peer,
    /// Its address, if it came from a Unix socket.
    last_address: Option<UnixAddr>,
    /// The end of the interval without reports.
    suppressed_until: Option<Instant>,
}

/// A report of datagrams that were dropped for one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DropReport {
    pub(crate) cause: DropCause,
    pub(crate) count: u64,
    pub(crate) last_peer: Peer,
    pub(crate) last_address: Option<UnixAddr>,
}

impl DropLog {
    pub(crate) fn new() -> Self {
        let none = DropCounter { unreported: 0, last_peer: Peer::Unknown, last_address: None, suppressed_until: None };
        Self([none; DROP_CAUSES])
    }

    /// Records `more` dropped datagrams, with the sender of the last one and its address if it came from a Unix socket. Returns
    /// a report, if one is due now.
    pub(crate) fn record(
        &mut self,
        cause: DropCause,
        more: u64,
        peer: Peer,
        address: Option<UnixAddr>,
        now: Instant,
    ) -> Option<DropReport> {
        let counter = &mut self.0[cause.index()];
        (counter.unreported, counter.last_peer, counter.last_address) = (counter.unreported + more, peer, address);
        if counter.suppressed_until.is_some() {
            return None;
        }
        counter.suppressed_until = Some(now + REPORT_INTERVAL);
        counter.report(cause)
    }

    /// Returns when the next interval ends.
    pub(crate) fn next_report_at(&self) -> Option<Instant> {
        self.0.iter().filter_map(|counter| counter.suppressed_until).min()
    }

    /// Returns the reports of intervals that have ended.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<DropReport> {
        let is_due = |counter: &DropCounter| counter.suppressed_until.is_some_and(|until| until <= now);
        self.reports(is_due, Some(now + REPORT_INTERVAL))
    }

    /// Returns all remaining reports.
    pub(crate) fn take_all(&mut self) -> Vec<DropReport> {
        self.reports(|_| true, None)
    }

    fn reports(&mut self, wanted: impl Fn(&DropCounter) -> bool, suppressed_until: Option<Instant>) -> Vec<DropReport> {
        let mut reports = Vec::new();
        for cause in DropCause::ALL {
            let counter = &mut self.0[cause.index()];
            if wanted(counter) {
                let report = counter.report(cause);
                counter.suppressed_until = suppressed_until.filter(|_| report.is_some());
                reports.extend(report);
            }
        }
        reports
    }
}

impl DropCounter {
    fn report(&mut self, cause: DropCause) -> Option<DropReport> {
        let count = std::mem::take(&mut self.unreported);
        let (last_peer, last_address) = (self.last_peer, self.last_address);
        (count > 0).then_some(DropReport { cause, count, last_peer, last_address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::clock::clock;

    fn peer(port: u16) -> Peer {
        Peer::Ip(([192, 0, 2, 1], port).into())
    }

    #[test]
    fn the_first_drop_is_reported_at_once_and_later_ones_together() {
        let (mut log, start) = (DropLog::new(), clock());
        let cause = DropCause::Rate;
        let report = |count, last_peer| DropReport { cause, count, last_peer, last_address: None };
        assert_eq!(log.next_report_at(), None);
        assert_eq!(log.record(cause, 1, peer(1), None, start), Some(report(1, peer(1))));
        for port in 2..1000 {
            assert_eq!(log.record(cause, 1, peer(port), None, start), None);
        }
        assert_eq!(log.next_report_at(), Some(start + REPORT_INTERVAL));
        assert_eq!(log.take_due(start + REPORT_INTERVAL - Duration::from_millis(1)), []);
        assert_eq!(log.take_due(start + REPORT_INTERVAL), [report(998, peer(999))]);
        // Further ones are reported once in each interval.
        assert_eq!(log.record(cause, 1, peer(7), None, start + REPORT_INTERVAL), None);
        assert_eq!(log.take_due(start + 2 * REPORT_INTERVAL), [report(1, peer(7))]);
        // After an interval without any, the next one is reported at once.
        assert_eq!(log.take_due(start + 3 * REPORT_INTERVAL), []);
        assert_eq!(log.next_report_at(), None);
        assert!(log.record(cause, 1, peer(8), None, start + 3 * REPORT_INTERVAL).is_some());
    }

    #[test]
    fn each_cause_is_reported_separately_and_the_rest_at_the_end() {
        let (mut log, start) = (DropLog::new(), clock());
        for cause in DropCause::ALL {
            assert!(log.record(cause, 1, peer(1), None, start).is_some());
        }
        log.record(DropCause::Nameless, 1, Peer::Unknown, None, start);
        log.record(DropCause::TooLong, 1, peer(2), None, start);
        let reports: Vec<_> = log.take_all().iter().map(|report| report.cause).collect();
        assert_eq!(reports, [DropCause::TooLong, DropCause::Nameless]);
        assert_eq!(log.take_all(), []);
    }
}
