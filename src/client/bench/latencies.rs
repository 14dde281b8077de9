//! A histogram of latencies: recorded in buckets, a fixed number of them, from which percentiles and bars are computed.
//!
//! ```text
//! nanoseconds    0 1 2 … 2047   2048 2050 … 4094   4096 4100 … 8188   8192 …
//! buckets        0 1 2 … 2047   2048 2049 … 3071   3072 3073 … 4095   4096 …
//!                exact          pairs              fours              eights
//! ```
//!
//! So each value is known to 1 in 1024: three digits. The layout is that of HdrHistogram; its other features, which are
//! omitted here, would cost as much for each message as everything else together that is not a system call.

use std::time::Duration;

/// The longest latency that is distinguished: a day. Longer ones count as this.
const MAX_LATENCY: u64 = 86_400_000_000_000;

/// Buckets for each doubling: two to the power of this.
const BUCKET_BITS: u32 = 10;

/// A histogram of latencies, to three digits.
#[derive(Debug, Clone)]
pub struct LatencyHistogram {
    counts: Box<[u64]>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

/// Returns the bucket in which a value (at most [`MAX_LATENCY`]) is counted.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "it is less than 2^16")]
fn bucket_of(nanos: u64) -> usize {
    let shift = (nanos | 1 << BUCKET_BITS).ilog2() - BUCKET_BITS;
    ((u64::from(shift) << BUCKET_BITS) + (nanos >> shift)) as usize
}

/// Returns the largest value that is counted in a bucket.
fn bucket_max(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket >> BUCKET_BITS).saturating_sub(1);
    ((bucket - (shift << BUCKET_BITS) + 1) << shift) - 1
}

/// One bar: the latencies above the bar before, up to an upper bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistogramBar {
    /// The longest latency of this bar.
    pub upper_bound: Duration,
    /// How many latencies belong to it.
    pub count: u64,
}

impl LatencyHistogram {
    /// Creates an empty histogram.
    #[must_use]
    pub fn new() -> Self {
        Self { counts: vec![0; bucket_of(MAX_LATENCY) + 1].into(), count: 0, sum: 0, min: u64::MAX, max: 0 }
    }

    /// Records `count` latencies (at least one) of `nanos` nanoseconds each.
    #[inline]
    pub(super) fn record(&mut self, nanos: u64, count: u64) {
        let nanos = nanos.min(MAX_LATENCY);
        self.counts[bucket_of(nanos)] += count;
        self.count += count;
        self.sum += u128::from(nanos) * u128::from(count);
        self.min = self.min.min(nanos);
        self.max = self.max.max(nanos);
    }

    /// Adds the latencies of another histogram.
    pub(super) fn merge(&mut self, other: &Self) {
        for (ours, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *ours += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Returns the number of latencies.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the shortest latency, exact; 0 if there are none.
    #[must_use]
    pub fn min(&self) -> Duration {
        Duration::from_nanos(if self.count == 0 { 0 } else { self.min })
    }

    /// Returns the longest latency, exact; 0 if there are none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// Returns the mean latency, exact; 0 if there are none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let mean = self.sum.checked_div(u128::from(self.count)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// Returns the latency that `percent` (0 to 100) of them did not exceed.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        // Of a million, 99.99 % are not to be 999,901 for the sake of a fraction.
        let rank = round_to_u64((self.count as f64 * percent / 100.0 - 1e-6).ceil()).clamp(1, self.count.max(1));
        let mut cumulative = 0;
        let found = self.counts.iter().position(|count| {
            cumulative += count;
            cumulative >= rank
        });
        Duration::from_nanos(found.map_or(0, |bucket| bucket_max(bucket).min(self.max)))
    }

    /// Returns all latencies in at most `max_bars` bars, from the shortest to the longest. The upper bounds grow by a
    /// constant factor; the bars at the beginning and at the end are not empty.
    #[must_use]
    pub fn bars(&self, max_bars: usize) -> Vec<HistogramBar> {
        if self.count == 0 || max_bars == 0 {
            return Vec::new();
        }
        let (min, max) = (self.min.max(1) as f64, self.max.max(1) as f64);
        let factor = (max / min).powf(1.0 / max_bars as f64);
        let mut bars: Vec<HistogramBar> = Vec::with_capacity(max_bars);
        let mut from = 0;
        for number in 1..=max_bars {
            let edge = round_to_u64(min * factor.powi(i32::try_from(number).unwrap_or(i32::MAX)));
            let to = if number == max_bars { bucket_of(self.max) } else { bucket_of(edge.clamp(self.min, self.max)) };
            // If all latencies are close together, several bars would be the same.
            if to >= from {
                let count = self.counts[from..=to].iter().sum();
                bars.push(HistogramBar { upper_bound: Duration::from_nanos(bucket_max(to).min(self.max)), count });
                from = to + 1;
            }
        }
        bars
    }
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two values of the table")]
fn round_to_u64(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies_of(values: impl IntoIterator<Item = u64>) -> LatencyHistogram {
        let mut latencies = LatencyHistogram::new();
        for value in values {
            latencies.record(value, 1);
        }
        latencies
    }

    /// Asserts that two times are the same to three digits.
    #[track_caller]
    fn assert_close(found: Duration, nanos: u64) {
        let found = found.as_nanos() as f64;
        assert!((found / nanos as f64 - 1.0).abs() < 0.001, "{found} is not {nanos}");
    }

    #[test]
    fn every_value_has_a_bucket_that_is_exact_to_three_digits() {
        let mut values: Vec<u64> = (0..10_000).collect();
        values.extend(
            (0..47)
                .flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1])
                .filter(|value| *value <= MAX_LATENCY),
        );
        values.push(MAX_LATENCY);
        values.sort_unstable();
        for pair in values.windows(2) {
            assert!(bucket_of(pair[0]) <= bucket_of(pair[1]), "{pair:?}");
            assert!(bucket_of(pair[1]) <= bucket_of(pair[0]) + 1 || pair[1] > pair[0] + 1, "{pair:?}");
        }
        for value in values {
            let largest = bucket_max(bucket_of(value));
            assert!(largest >= value && largest - value <= value / 1024, "{value} is counted as {largest}");
            assert_eq!(bucket_of(largest), bucket_of(value));
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        // In an order of its own: 7 is prime to 10,000.
        let latencies = latencies_of((0..10_000).map(|number| (number * 7 % 10_000 + 1) * 1000));
        assert_eq!(latencies.count(), 10_000);
        for (percent, nanos) in
            [(50.0, 5_000_000), (90.0, 9_000_000), (99.0, 9_900_000), (99.9, 9_990_000), (99.99, 9_999_000)]
        {
            assert_close(latencies.percentile(percent), nanos);
        }
        assert_close(latencies.min(), 1000);
        assert_close(latencies.max(), 10_000_000);
        assert_close(latencies.mean(), 5_000_500);
    }

    #[test]
    fn one_long_wait_in_ten_thousand_shows_in_the_last_percentiles_only() {
        let mut latencies = latencies_of([1_000_000_000]);
        latencies.record(1000, 9999);
        assert_close(latencies.percentile(99.9), 1000);
        assert_close(latencies.percentile(99.99), 1000);
        assert_close(latencies.percentile(100.0), 1_000_000_000);
        latencies.record(1_000_000_000, 1);
        assert_close(latencies.percentile(99.99), 1_000_000_000);
    }

    #[test]
    fn empty_histogram_is_zero_and_more_than_a_day_counts_as_a_day() {
        let none = latencies_of([]);
        assert_eq!([none.min(), none.max(), none.mean(), none.percentile(50.0)], [Duration::ZERO; 4]);
        assert_eq!(none.bars(10), []);
        assert_close(latencies_of([u64::MAX]).max(), MAX_LATENCY);
    }

    #[test]
    fn merged_histograms_are_added_up() {
        let mut latencies = latencies_of([1000]);
        latencies.merge(&latencies_of([3000, 5000]));
        assert_eq!(latencies.count(), 3);
        assert_close(latencies.mean(), 3000);
    }

    #[test]
    fn bars_count_every_value_once() {
        for values in
            [vec![5], vec![0], vec![5, 5, 6], vec![1000, 1001, 1002], (1..5000).collect(), vec![1, 1_000_000_000_000]]
        {
            let (latencies, count) = (latencies_of(values.iter().copied()), values.len() as u64);
            for max_bars in [1, 2, 12, 40] {
                let bars = latencies.bars(max_bars);
                assert!((1..=max_bars).contains(&bars.len()), "{bars:?}");
                assert_eq!(bars.iter().map(|bar| bar.count).sum::<u64>(), count, "{values:?} in {max_bars}: {bars:?}");
                assert!(bars.is_sorted_by(|a, b| a.upper_bound < b.upper_bound), "{bars:?}");
                assert!(bars[0].count > 0 && bars[bars.len() - 1].count > 0, "{values:?}: {bars:?}");
            }
        }
    }
}
