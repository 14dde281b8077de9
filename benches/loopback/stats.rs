//! Samples in pairs, their medians and ratios, and tables that line up.

use std::fmt::Write as _;

/// Which of the two servers a sample is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// The C server: what the other one is compared with.
    Reference,
    /// The server that is measured.
    Subject,
}

impl Side {
    /// 0 and 1.
    pub(crate) fn index(self) -> usize {
        usize::from(self == Self::Subject)
    }

    /// Both, the first one changing from round to round, so that neither always comes after the other.
    pub(crate) fn in_round(round: usize) -> [Self; 2] {
        if round % 2 == 0 { [Self::Reference, Self::Subject] } else { [Self::Subject, Self::Reference] }
    }
}

/// One figure of both servers, one sample a round; those of a round were taken at the same time.
#[derive(Clone, Default)]
pub(crate) struct Pairs {
    reference: Vec<f64>,
    subject: Vec<f64>,
}

impl Pairs {
    /// Adds the sample of one side.
    pub(crate) fn push(&mut self, side: Side, sample: f64) {
        match side {
            Side::Reference => self.reference.push(sample),
            Side::Subject => self.subject.push(sample),
        }
    }

    /// The median of one side.
    pub(crate) fn median(&self, side: Side) -> f64 {
        match side {
            Side::Reference => median(&self.reference),
            Side::Subject => median(&self.subject),
        }
    }

    /// The subject's median in relation to the reference's.
    pub(crate) fn ratio(&self) -> f64 {
        self.median(Side::Subject) / self.median(Side::Reference)
    }

    /// The ratio of the medians, with the least and the greatest ratio within one round: `1.02 (0.99-1.05)`.
    pub(crate) fn ratio_and_range(&self) -> String {
        let ratios = || self.subject.iter().zip(&self.reference).map(|(subject, reference)| subject / reference);
        let least = ratios().fold(f64::INFINITY, f64::min);
        let greatest = ratios().fold(f64::NEG_INFINITY, f64::max);
        format!("{:.2} ({least:.2}-{greatest:.2})", self.ratio())
    }
}

/// The middle sample, or the mean of the two in the middle. NaN of nothing.
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

/// The sample that `per_mille` of a thousand samples do not exceed. NaN of nothing.
pub(crate) fn percentile(samples: &[f64], per_mille: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// A number with as many digits as are worth reading: `62.4M`, `4.21M`, `278k`, `12.6k`, `835`, `3.10`.
pub(crate) fn short(number: f64) -> String {
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

/// A table: a title, a row of headings, rows of cells; the first column is flush left, the others right.
pub(crate) struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(title: impl Into<String>, headings: &[&str]) -> Self {
        Self { title: title.into(), rows: vec![headings.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row, a cell to a heading.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }

    /// The finished table, in Markdown, which reads well as it is.
    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(2))
            .collect();
        let mut text = format!("{}\n\n", self.title);
        for (number, row) in self.rows.iter().enumerate() {
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let written =
                    if column == 0 { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
                written.expect("a String takes everything");
            }
            text.push_str("|\n");
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    text.push('|');
                    text.push_str(&"-".repeat(width + 1));
                    text.push(if column == 0 { '-' } else { ':' });
                }
                text.push_str("|\n");
            }
        }
        text
    }
}
