//! Latencies: recorded in a table of fixed size, and asked for percentiles and bars.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest that is told apart: a day. What takes longer counts as this.
const LONGEST: u64 = 86_400_000_000_000;

/// How long things took, to three digits.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

/// One bar: those above the bar before, up to a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// The longest that belong here.
    pub to: Duration,
    /// How many they are.
    pub count: u64,
}

impl Latencies {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST, 3).expect("these bounds are in order"))
    }

    /// `count` things took `nanos` nanoseconds each.
    #[inline]
    pub(super) fn record(&mut self, nanos: u64, count: u64) {
        self.0.saturating_record_n(nanos, count);
    }

    /// Those of another table come along.
    pub(super) fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The shortest; 0 if there are none.
    #[must_use]
    pub fn min(&self) -> Duration {
        Duration::from_nanos(self.0.min())
    }

    /// The longest; 0 if there are none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// The mean; 0 if there are none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.0.mean() / 1e9)
    }

    /// The time in which so many percent (0 to 100) of them were done.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_percentile(percent))
    }

    /// All of them in at most `most` bars, from the shortest to the longest. Each bar reaches as many times further
    /// as the one before; those at the beginning and at the end are not empty.
    #[must_use]
    pub fn bars(&self, most: usize) -> Vec<Bar> {
        if self.0.is_empty() || most == 0 {
            return Vec::new();
        }
        let (min, max) = (self.0.min().max(1) as f64, self.0.max().max(1) as f64);
        let factor = (max / min).powf(1.0 / most as f64);
        let mut bars: Vec<Bar> = Vec::with_capacity(most);
        let mut from = 0;
        for number in 1..=most {
            let to = if number == most {
                self.0.max()
            } else {
                rounded(min * factor.powi(i32::try_from(number).unwrap_or(i32::MAX)))
            };
            let to = self.0.highest_equivalent(to).min(self.0.max());
            // Where all are close together, several bars would be the same.
            if bars.is_empty() || to > from {
                let low = if bars.is_empty() { 0 } else { from + 1 };
                bars.push(Bar { to: Duration::from_nanos(to), count: self.0.count_between(low, to) });
                from = to;
            }
        }
        bars
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two values of the table")]
fn rounded(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::new();
        for value in values {
            latencies.record(value, 1);
        }
        latencies
    }

    /// The same to three digits.
    #[track_caller]
    fn close(found: Duration, nanos: u64) {
        let found = found.as_nanos() as f64;
        assert!((found / nanos as f64 - 1.0).abs() < 0.001, "{found} is not {nanos}");
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        // In an order of its own: 7 is prime to 10,000.
        let latencies = of((0..10_000).map(|number| (number * 7 % 10_000 + 1) * 1000));
        assert_eq!(latencies.count(), 10_000);
        for (percent, nanos) in
            [(50.0, 5_000_000), (90.0, 9_000_000), (99.0, 9_900_000), (99.9, 9_990_000), (99.99, 9_999_000)]
        {
            close(latencies.percentile(percent), nanos);
        }
        close(latencies.min(), 1000);
        close(latencies.max(), 10_000_000);
        close(latencies.mean(), 5_000_500);
    }

    #[test]
    fn one_long_wait_in_ten_thousand_shows_in_the_last_percentiles_only() {
        let mut latencies = of([1_000_000_000]);
        latencies.record(1000, 9999);
        close(latencies.percentile(99.9), 1000);
        close(latencies.percentile(99.99), 1000);
        close(latencies.percentile(100.0), 1_000_000_000);
        latencies.record(1_000_000_000, 1);
        close(latencies.percentile(99.99), 1_000_000_000);
    }

    #[test]
    fn none_is_zero_and_more_than_a_day_is_a_day() {
        let none = of([]);
        assert_eq!([none.min(), none.max(), none.mean(), none.percentile(50.0)], [Duration::ZERO; 4]);
        assert_eq!(none.bars(10), []);
        close(of([u64::MAX]).max(), LONGEST);
    }

    #[test]
    fn threads_are_added_up() {
        let mut latencies = of([1000]);
        latencies.merge(&of([3000, 5000]));
        assert_eq!(latencies.count(), 3);
        close(latencies.mean(), 3000);
    }

    #[test]
    fn bars_hold_everything_once() {
        for values in
            [vec![5], vec![0], vec![5, 5, 6], vec![1000, 1001, 1002], (1..5000).collect(), vec![1, 1_000_000_000_000]]
        {
            let (latencies, count) = (of(values.iter().copied()), values.len() as u64);
            for most in [1, 2, 12, 40] {
                let bars = latencies.bars(most);
                assert!((1..=most).contains(&bars.len()), "{bars:?}");
                assert_eq!(bars.iter().map(|bar| bar.count).sum::<u64>(), count, "{values:?} in {most}: {bars:?}");
                assert!(bars.is_sorted_by(|a, b| a.to < b.to), "{bars:?}");
                assert!(bars[0].count > 0 && bars[bars.len() - 1].count > 0, "{values:?}: {bars:?}");
            }
        }
    }
}
