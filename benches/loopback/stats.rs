//! Samples of all candidates, their medians and ratios.

/// One figure of every candidate, one sample a round; those of a round were taken at the same time. The first candidate
/// is the one that the others are compared with.
#[derive(Clone)]
pub(crate) struct Samples(Vec<Vec<f64>>);

impl Samples {
    /// Creates an empty table for this many candidates.
    pub(crate) fn of(candidates: usize) -> Self {
        Self(vec![Vec::new(); candidates])
    }

    /// Adds a sample of one candidate.
    pub(crate) fn push(&mut self, candidate: usize, sample: f64) {
        self.0[candidate].push(sample);
    }

    /// Returns how many samples there are of one candidate.
    pub(crate) fn count(&self, candidate: usize) -> usize {
        self.0[candidate].len()
    }

    /// Returns the median of one candidate.
    pub(crate) fn median(&self, candidate: usize) -> f64 {
        median(&self.0[candidate])
    }

    /// Returns the ratio of a candidate's median to that of the first.
    pub(crate) fn ratio(&self, candidate: usize) -> f64 {
        self.median(candidate) / self.median(0)
    }

    /// Returns the ratio of the medians, with the least and the greatest ratio within one round: `1.02 (0.99-1.05)`.
    pub(crate) fn ratio_and_range(&self, candidate: usize) -> String {
        let ratios = || self.0[candidate].iter().zip(&self.0[0]).map(|(candidate, first)| candidate / first);
        let least = ratios().fold(f64::INFINITY, f64::min);
        let greatest = ratios().fold(f64::NEG_INFINITY, f64::max);
        format!("{:.2} ({least:.2}-{greatest:.2})", self.ratio(candidate))
    }
}

/// Returns the middle sample, or the mean of the two in the middle; NaN if there are no samples.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Returns the sample that `per_mille` of a thousand samples do not exceed; NaN if there are no samples.
pub(crate) fn percentile(samples: &[f64], per_mille: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Formats a number with three significant digits: `62.4M`, `4.21M`, `278k`, `12.6k`, `835`, `3.10`.
pub(crate) fn format_short(number: f64) -> String {
    let (number, unit) = match number {
        n if n >= 1e6 => (n / 1e6, "M"),
        n if n >= 1e4 => (n / 1e3, "k"),
        n => (n, ""),
    };
    let decimals = match number {
        n if n >= 99.95 => 0,
        n if n >= 9.995 => 1,
        _ => 2,
    };
    format!("{number:.decimals$}{unit}")
}
