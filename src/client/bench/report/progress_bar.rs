//! The progress bar of a load, on one line.

use std::time::Duration;

use super::format_rate;
use crate::client::bench::BenchProgress;
use crate::units::format_number;

/// The contents of the progress bar.
#[derive(Debug, Clone, Copy)]
pub struct ProgressBar {
    /// How much of the load is done, from 0 to 1; `None` if that is unknown.
    pub fraction: Option<f64>,
    /// How long it has been going on.
    pub elapsed: Duration,
    /// Messages a second of late.
    pub rate: f64,
    /// The counts so far.
    pub progress: BenchProgress,
}

/// Renders the line, at most `width` columns (escapes not counted), without a line feed.
#[must_use]
pub fn render_line(bar: &ProgressBar, width: usize, colour: bool) -> String {
    let (green, red, reset) = if colour { ("\x1b[32m", "\x1b[31m", "\x1b[0m") } else { ("", "", "") };
    let numbers = format!(
        "{:.0}s  {} answered  {}/s",
        bar.elapsed.as_secs_f64(),
        format_number(bar.progress.answered),
        format_rate(bar.rate)
    );
    let errors = match bar.progress.errors {
        0 => String::new(),
        1 => "  1 error".to_owned(),
        errors => format!("  {} errors", format_number(errors)),
    };
    let text_width = numbers.len() + errors.len();
    if text_width > width {
        return numbers.chars().take(width).collect();
    }
    let mut line = String::new();
    let bar_width = (width - text_width).saturating_sub(10).min(30);
    if let Some(fraction) = bar.fraction.filter(|_| bar_width >= 5) {
        let filled = round_columns(fraction.clamp(0.0, 1.0) * bar_width as f64);
        line = format!(
            "[{green}{}{reset}{}] {:3.0} %  ",
            "=".repeat(filled),
            " ".repeat(bar_width - filled),
            fraction * 100.0
        );
        if line.chars().count() > bar_width + 10 + green.len() + reset.len() {
            line.clear();
        }
    }
    line.push_str(&numbers);
    if !errors.is_empty() {
        line.push_str(&format!("{red}{errors}{reset}"));
    }
    line
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the room")]
fn round_columns(length: f64) -> usize {
    length.round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(fraction: Option<f64>, errors: u64) -> ProgressBar {
        let progress = BenchProgress { answered: 123_456, errors };
        ProgressBar { fraction, elapsed: Duration::from_secs(5), rate: 24_691.0, progress }
    }

    #[test]
    fn progress_line_fits_the_width() {
        for width in 0..150 {
            for fraction in [None, Some(0.0), Some(0.5), Some(1.0), Some(1.2)] {
                let line = render_line(&bar(fraction, 12), width, false);
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn progress_line_shows_the_fraction_done() {
        let numbers = "5s  123,456 answered  24,691/s";
        let half = format!("[{}{}]  50 %  {numbers}", "=".repeat(15), " ".repeat(15));
        assert_eq!(render_line(&bar(Some(0.5), 0), 80, false), half);
        assert_eq!(render_line(&bar(None, 1), 80, false), format!("{numbers}  1 error"));
        let coloured = render_line(&bar(Some(1.0), 2), 90, true);
        assert_eq!(
            coloured.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", ""),
            render_line(&bar(Some(1.0), 2), 90, false)
        );
        assert!(coloured.contains("\x1b[31m  2 errors\x1b[0m"));
    }
}
