//! The reports of a load: [`text`] for people, [`json`] for programs, and a [`progress_bar`] while it runs. All of them
//! are functions of values to strings.

mod histogram;
pub mod json;
pub mod progress_bar;
pub mod text;

use std::time::Duration;

use crate::units::format_number;

/// The percentiles that are reported.
const PERCENTILES: [(&str, f64); 5] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99)];

/// The most bars of the histogram.
const MAX_BARS: usize = 16;

/// The abilities of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Columns.
    pub width: usize,
    /// Block characters and the letter µ, and not only ASCII.
    pub unicode: bool,
}

impl Style {
    /// For files, pipes and terminals of which nothing is known.
    pub const PLAIN: Self = Self { width: 80, unicode: false };
}

/// Formats a time with three digits: `12.3 us`.
fn format_time(time: Duration, style: Style) -> String {
    let nanos = time.as_nanos() as f64;
    // A number that would be rounded to four digits gets the next unit.
    let units = [("ns", 1.0), (if style.unicode { "µs" } else { "us" }, 1e3), ("ms", 1e6), ("s", 1e9)];
    let (unit, size) = units.into_iter().find(|(_, size)| nanos / size < 999.5).unwrap_or(("s", 1e9));
    let number = nanos / size;
    let decimals = match number {
        _ if size == 1.0 => 0,
        number if number < 9.995 => 2,
        number if number < 99.95 => 1,
        _ => 0,
    };
    format!("{number:.decimals$} {unit}")
}

/// Formats a number of bytes with three digits or a few more: `45.2 MiB`.
fn format_bytes(bytes: f64) -> String {
    let units = [("B", 1.0), ("KiB", 1024.0), ("MiB", 1_048_576.0)];
    let (unit, size) = units.into_iter().find(|(_, size)| bytes / size < 1023.5).unwrap_or(("GiB", 1_073_741_824.0));
    let number = bytes / size;
    let decimals = if size == 1.0 || number >= 99.95 { 0 } else { 1 };
    format!("{number:.decimals$} {unit}")
}

/// Formats a rate: `0.5`, `12.3`, `278,512`.
fn format_rate(rate: f64) -> String {
    if rate < 99.95 { format!("{rate:.1}") } else { format_number(round_to_u64(rate)) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is positive; beyond u64, it saturates")]
fn round_to_u64(number: f64) -> u64 {
    number.round() as u64
}

/// Looks, of all that is shown, as it would on a terminal that shows everything.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (nanos, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1.00 us"),
            (12_345, "12.3 us"),
            (99_960, "100 us"),
            (999_499, "999 us"),
            (999_600, "1.00 ms"),
            (1_500_000_000, "1.50 s"),
            (2_000_000_000_000, "2000 s"),
        ] {
            assert_eq!(format_time(Duration::from_nanos(nanos), Style::PLAIN), text);
        }
        assert_eq!(format_time(Duration::from_micros(3), Style { width: 80, unicode: true }), "3.00 µs");
    }

    #[test]
    fn numbers_have_commas_and_units() {
        assert_eq!(
            [0.0, 1023.0, 1024.0, 1e6, 1e8, 1e12].map(format_bytes),
            ["0 B", "1023 B", "1.0 KiB", "977 KiB", "95.4 MiB", "931 GiB"]
        );
        assert_eq!([0.0, 99.94, 99.96, 1e6].map(format_rate), ["0.0", "99.9", "100", "1,000,000"]);
    }
}
