//! The histogram as lines of text.

use super::{MAX_BARS, Style, format_time};
use crate::client::bench::LatencyHistogram;
use crate::units::format_number;

/// The parts of a column, in eighths.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// Renders one line for each bar, none longer than the style's width as far as the numbers leave room for it.
pub(super) fn render_histogram(latencies: &LatencyHistogram, style: Style) -> Vec<String> {
    let bars = latencies.bars(MAX_BARS);
    let labels: Vec<_> = bars.iter().map(|bar| format_time(bar.upper_bound, style)).collect();
    let counts: Vec<_> = bars.iter().map(|bar| format_number(bar.count)).collect();
    let widest = |texts: &[String]| texts.iter().map(|text| text.chars().count()).max().unwrap_or(0);
    let (label_width, count_width) = (widest(&labels), widest(&counts));
    let total = latencies.count().max(1) as f64;
    // Two blanks, the label, " |", the bar, two blanks, the percentage ("100.00 %"), two blanks, the count.
    let bar_width = style.width.saturating_sub(label_width + count_width + 16).clamp(4, 100);
    let max_count = bars.iter().map(|bar| bar.count).max().unwrap_or(0).max(1) as f64;
    let edge = if style.unicode { "▕" } else { "|" };
    let lines = bars.iter().zip(labels).zip(counts).map(|((bar, label), count)| {
        let drawn = draw_bar(bar.count as f64 / max_count, bar.count > 0, bar_width, style);
        let percent = bar.count as f64 / total * 100.0;
        format!("  {label:>label_width$} {edge}{drawn:bar_width$}  {percent:6.2} %  {count:>count_width$}")
    });
    lines.collect()
}

/// Draws a bar over a fraction (0 to 1) of the width. A bar that is not zero is always visible.
fn draw_bar(fraction: f64, is_nonzero: bool, bar_width: usize, style: Style) -> String {
    let (eighths, min_length) = if style.unicode { (8, 1) } else { (1, 1) };
    let length = round_columns(fraction * (bar_width * eighths) as f64).max(if is_nonzero { min_length } else { 0 });
    if style.unicode { "█".repeat(length / 8) + EIGHTHS[length % 8] } else { "#".repeat(length) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the room")]
fn round_columns(length: f64) -> usize {
    length.round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies() -> LatencyHistogram {
        let mut latencies = LatencyHistogram::new();
        latencies.record(10_000, 700);
        latencies.record(40_000, 299);
        latencies.record(1_000_000_000, 1);
        latencies
    }

    #[test]
    fn the_histogram_fits_its_width() {
        for width in [40, 41, 60, 80, 81, 120] {
            for unicode in [true, false] {
                let lines = render_histogram(&latencies(), Style { width, unicode });
                assert_eq!(lines.len(), MAX_BARS);
                for line in &lines {
                    assert!(line.chars().count() <= width, "{width}: {line}");
                    assert!(unicode || line.is_ascii(), "{line}");
                }
                let longest = lines.iter().map(|line| line.chars().count()).max();
                assert_eq!(longest, Some(width), "{lines:#?}");
            }
        }
        // There are numbers even where there is no room for them, and no bar is wider than can be taken in.
        assert!(render_histogram(&latencies(), Style { width: 0, unicode: true })[0].contains("70.00 %"));
        assert!(render_histogram(&latencies(), Style { width: 1000, unicode: true })[0].chars().count() < 140);
    }

    #[test]
    fn longest_bar_fills_the_width_and_the_shortest_is_visible() {
        let lines = render_histogram(&latencies(), Style { width: 60, unicode: false });
        let marks: Vec<_> = lines.iter().map(|line| line.matches('#').count()).collect();
        assert_eq!(lines[0], format!("  20.5 us |{}   70.00 %  700", "#".repeat(marks[0])));
        assert_eq!(lines[0].len(), 60);
        assert!(marks[1..].iter().all(|marks| *marks < lines[0].matches('#').count()), "{lines:#?}");
        assert_eq!(marks[15], 1, "{lines:#?}");
        assert_eq!(marks[5], 0, "{lines:#?}");
    }

    #[test]
    fn empty_latencies_have_no_histogram() {
        assert_eq!(render_histogram(&LatencyHistogram::new(), Style::PLAIN), Vec::<String>::new());
    }
}
