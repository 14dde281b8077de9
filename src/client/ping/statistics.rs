//! The counts, and the distribution of round trips.

use std::time::Duration;

/// The outcomes of the messages so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Statistics {
    /// Messages whose time had come, whether they could be sent or not.
    pub sent: u64,
    /// Messages with the right reply in time.
    pub received: u64,
    /// Right replies that came too late: their messages count as lost.
    pub late: u64,
    /// Replies that came a second time.
    pub duplicates: u64,
    /// Replies that answer no message.
    pub wrong: u64,
    min: Option<Duration>,
    max: Duration,
    /// The mean in seconds, and the sum of squares of the differences from it (Welford, 1962).
    mean: f64,
    squares: f64,
}

/// How long replies took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrips {
    /// The shortest.
    pub min: Duration,
    /// The mean.
    pub avg: Duration,
    /// The longest.
    pub max: Duration,
    /// The standard deviation of all of them, which ping(8) calls mdev.
    pub mdev: Duration,
}

impl Statistics {
    /// Records a reply that came in time.
    pub(super) fn record(&mut self, round_trip: Duration) {
        self.received += 1;
        self.min = Some(self.min.map_or(round_trip, |min| min.min(round_trip)));
        self.max = self.max.max(round_trip);
        let seconds = round_trip.as_secs_f64();
        let difference = seconds - self.mean;
        self.mean += difference / self.received as f64;
        self.squares += difference * (seconds - self.mean);
    }

    /// Returns the number of messages without a reply in time, including those on their way.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }

    /// Returns the percentage of lost messages; 0 if there were no messages.
    #[must_use]
    pub fn loss_percent(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { self.lost() as f64 / self.sent as f64 * 100.0 }
    }

    /// Returns the round-trip times of replies; `None` if there were no replies.
    #[must_use]
    pub fn round_trips(&self) -> Option<RoundTrips> {
        let mdev = (self.squares / self.received as f64).max(0.0).sqrt();
        let seconds = Duration::from_secs_f64;
        self.min.map(|min| RoundTrips { min, avg: seconds(self.mean.max(0.0)), max: self.max, mdev: seconds(mdev) })
    }

    /// Returns whether every message was answered once, and nothing else came.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.sent > 0 && self.lost() == 0 && self.duplicates == 0 && self.wrong == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_statistics_match_ping8() {
        let mut statistics = Statistics { sent: 4, ..Statistics::default() };
        for millis in [2, 4, 4, 6] {
            statistics.record(Duration::from_millis(millis));
        }
        let trips = statistics.round_trips().unwrap();
        let millis = [trips.min, trips.avg, trips.max, trips.mdev].map(|time| (time.as_secs_f64() * 1e6).round() / 1e3);
        // sqrt((4 + 0 + 0 + 4) / 4)
        assert_eq!(millis, [2.0, 4.0, 6.0, 1.414]);
        assert!(statistics.is_ok());
    }

    #[test]
    fn equal_round_trips_have_no_deviation() {
        let mut statistics = Statistics { sent: 1_000_000, ..Statistics::default() };
        for _ in 0..1_000_000 {
            statistics.record(Duration::from_micros(57));
        }
        let trips = statistics.round_trips().unwrap();
        assert_eq!((trips.avg.as_nanos(), trips.mdev.as_nanos()), (57_000, 0));
    }

    #[test]
    fn messages_without_a_reply_in_time_are_lost() {
        let mut statistics = Statistics::default();
        assert_eq!((statistics.loss_percent(), statistics.round_trips(), statistics.is_ok()), (0.0, None, false));
        statistics.sent = 3;
        assert_eq!((statistics.loss_percent(), statistics.lost()), (100.0, 3));
        statistics.record(Duration::ZERO);
        assert!((statistics.loss_percent() - 66.667).abs() < 0.001);
        statistics.sent = 1;
        assert!(statistics.is_ok());
        for failed in
            [Statistics { duplicates: 1, ..statistics.clone() }, Statistics { wrong: 1, ..statistics.clone() }]
        {
            assert!(!failed.is_ok());
        }
    }
}
