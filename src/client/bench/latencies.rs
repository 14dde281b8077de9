//! Latencies: recorded in a table of fixed size, and asked for percentiles and bars.
//!
//! ```text
//! nanoseconds    0 1 2 … 2047   2048 2050 … 4094   4096 4100 … 8188   8192 …
//! places         0 1 2 … 2047   2048 2049 … 3071   3072 3073 … 4095   4096 …
//!                exact          pairs              fours              eights
//! ```
//!
//! So each value is known to 1 in 1024: three digits. The layout is that of HdrHistogram; what is left out here of it
//! would cost as much for each message as everything else together that is not a system call.

use std::time::Duration;

/// The longest that is told apart: a day. What takes longer counts as this.
const LONGEST: u64 = 86_400_000_000_000;

/// Places for each doubling: two to the power of this.
const BITS: u32 = 10;

/// How long things took, to three digits.
#[derive(Debug, Clone)]
pub struct Latencies {
    counts: Box<[u64]>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

/// Where a value (at most [`LONGEST`]) is counted.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "it is less than 2^16")]
fn place(nanos: u64) -> usize {
    let shift = (nanos | 1 << BITS).ilog2() - BITS;
    ((u64::from(shift) << BITS) + (nanos >> shift)) as usize
}

/// The largest value that is counted at a place.
fn largest(place: usize) -> u64 {
    let place = place as u64;
    let shift = (place >> BITS).saturating_sub(1);
    ((place - (shift << BITS) + 1) << shift) - 1
}

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
        Self { counts: vec![0; place(LONGEST) + 1].into(), count: 0, sum: 0, min: u64::MAX, max: 0 }
    }

    /// `count` things (at least one) took `nanos` nanoseconds each.
    #[inline]
    pub(super) fn record(&mut self, nanos: u64, count: u64) {
        let nanos = nanos.min(LONGEST);
        self.counts[place(nanos)] += count;
        self.count += count;
        self.sum += u128::from(nanos) * u128::from(count);
        self.min = self.min.min(nanos);
        self.max = self.max.max(nanos);
    }

    /// Those of another table come along.
    pub(super) fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *ours += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The shortest, exactly; 0 if there are none.
    #[must_use]
    pub fn min(&self) -> Duration {
        Duration::from_nanos(if self.count == 0 { 0 } else { self.min })
    }

    /// The longest, exactly; 0 if there are none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The mean, exactly; 0 if there are none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let mean = self.sum.checked_div(u128::from(self.count)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// The time in which so many percent (0 to 100) of them were done.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        // Of a million, 99.99 % are not to be 999,901 for the sake of a fraction.
        let rank = rounded((self.count as f64 * percent / 100.0 - 1e-6).ceil()).clamp(1, self.count.max(1));
        let mut before = 0;
        let found = self.counts.iter().position(|count| {
            before += count;
            before >= rank
        });
        Duration::from_nanos(found.map_or(0, |place| largest(place).min(self.max)))
    }

    /// All of them in at most `most` bars, from the shortest to the longest. Each bar reaches as many times further
    /// as the one before; those at the beginning and at the end are not empty.
    #[must_use]
    pub fn bars(&self, most: usize) -> Vec<Bar> {
        if self.count == 0 || most == 0 {
            return Vec::new();
        }
        let (min, max) = (self.min.max(1) as f64, self.max.max(1) as f64);
        let factor = (max / min).powf(1.0 / most as f64);
        let mut bars: Vec<Bar> = Vec::with_capacity(most);
        let mut from = 0;
        for number in 1..=most {
            let edge = rounded(min * factor.powi(i32::try_from(number).unwrap_or(i32::MAX)));
            let to = if number == most { place(self.max) } else { place(edge.clamp(self.min, self.max)) };
            // Where all are close together, several bars would be the same.
            if to >= from {
                let count = self.counts[from..=to].iter().sum();
                bars.push(Bar { to: Duration::from_nanos(largest(to).min(self.max)), count });
                from = to + 1;
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
    fn every_value_has_a_place_that_is_right_to_three_digits() {
        let mut values: Vec<u64> = (0..10_000).collect();
        values.extend(
            (0..47).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1]).filter(|value| *value <= LONGEST),
        );
        values.push(LONGEST);
        values.sort_unstable();
        for pair in values.windows(2) {
            assert!(place(pair[0]) <= place(pair[1]), "{pair:?}");
            assert!(place(pair[1]) <= place(pair[0]) + 1 || pair[1] > pair[0] + 1, "{pair:?}");
        }
        for value in values {
            let largest = largest(place(value));
            assert!(largest >= value && largest - value <= value / 1024, "{value} is counted as {largest}");
            assert_eq!(place(largest), place(value));
        }
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
