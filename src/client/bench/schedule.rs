//! When messages are due, where a rate is asked for.
//!
//! ```text
//! slot          0   1   2   3   4   5   6   …     every 1/rate
//! connection    0   1   2   0   1   2   0   …     in rotation
//! ```
//!
//! A message is due in its slot, whether those before it are answered or not, and its latency counts from there. So a
//! server that stalls for a second delays all messages that are due in that second, and not only the few that were
//! already waiting ("coordinated omission").

/// The slots of one thread's connections. Times are in nanoseconds.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    /// The time of slot 0.
    start: u64,
    /// From one slot to the next.
    interval: f64,
    connections: u64,
}

impl Schedule {
    /// Makes a schedule of `rate` slots a second (more than 0) for `connections` (at least one).
    pub(super) fn new(start: u64, rate: f64, connections: usize) -> Self {
        Self { start, interval: 1e9 / rate, connections: connections as u64 }
    }

    /// Returns how many slots were due until now.
    pub(super) fn sends_due(&self, now: u64) -> u64 {
        let Some(elapsed) = now.checked_sub(self.start) else { return 0 };
        let mut sends = truncate_to_u64(elapsed as f64 / self.interval);
        // Fractions may be rounded up.
        while sends > 0 && self.send_time(sends - 1) > now {
            sends -= 1;
        }
        while self.send_time(sends) <= now {
            sends += 1;
        }
        sends
    }

    /// Returns how many of the first `due` slots belong to one connection.
    pub(super) fn sends_of_connection(&self, connection: usize, due: u64) -> u64 {
        due / self.connections + u64::from(due % self.connections > connection as u64)
    }

    /// Returns when a connection's message is due, the first one being number 0.
    pub(super) fn due_time(&self, connection: usize, number: u64) -> u64 {
        self.send_time(number * self.connections + connection as u64)
    }

    /// Returns the connection to which a slot belongs.
    pub(super) fn connection_of_send(&self, number: u64) -> usize {
        usize::try_from(number % self.connections).unwrap_or(usize::MAX)
    }

    /// Returns the time of a slot.
    pub(super) fn send_time(&self, number: u64) -> u64 {
        self.start.saturating_add(truncate_to_u64(number as f64 * self.interval))
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is positive; beyond u64, it saturates")]
fn truncate_to_u64(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_at_the_rate_and_rotate_over_the_connections() {
        let schedule = Schedule::new(1_000_000_000, 1000.0, 3);
        for (now, due) in [(0, 0), (999_999_999, 0), (1_000_000_000, 1), (1_000_999_999, 1), (1_001_000_000, 2)] {
            assert_eq!(schedule.sends_due(now), due, "at {now}");
        }
        // After an hour none is lost, and none is too many.
        assert_eq!(schedule.sends_due(3_601_000_000_000), 3_600_001);
        assert_eq!([0, 1, 2].map(|connection| schedule.sends_of_connection(connection, 7)), [3, 2, 2]);
        assert_eq!(schedule.due_time(2, 4), schedule.send_time(14));
        assert_eq!(schedule.due_time(2, 4), 1_014_000_000);
        assert_eq!([0, 1, 2, 3].map(|number| schedule.connection_of_send(number)), [0, 1, 2, 0]);
    }

    #[test]
    fn every_slot_is_due_at_its_time_and_not_before() {
        for rate in [0.01, 0.3, 7.0, 999.9, 48_000.0, 3e6] {
            let schedule = Schedule::new(12_345, rate, 64);
            for number in [0, 1, 2, 3, 10, 99, 12_345, 1_000_000] {
                let time = schedule.send_time(number);
                assert_eq!(schedule.sends_due(time), number + 1, "slot {number} at {rate}/s");
                assert_eq!(schedule.sends_due(time - 1), number, "before slot {number} at {rate}/s");
            }
        }
    }

    #[test]
    fn every_slot_belongs_to_exactly_one_connection() {
        let schedule = Schedule::new(0, 1.0, 7);
        for due in 0..30 {
            assert_eq!((0..7).map(|connection| schedule.sends_of_connection(connection, due)).sum::<u64>(), due);
        }
    }
}
