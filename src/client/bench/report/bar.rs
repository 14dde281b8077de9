//! The line that shows how far a load is.

use std::time::Duration;

use super::{number, rate};
use crate::client::bench::Progress;

/// What a line is made of.
#[derive(Debug, Clone, Copy)]
pub struct Bar {
    /// How much of the load is done, from 0 to 1; `None` where nobody can know.
    pub part: Option<f64>,
    /// How long it has been going on.
    pub elapsed: Duration,
    /// Messages a second of late.
    pub rate: f64,
    /// What was counted so far.
    pub progress: Progress,
}

/// The line, at most `width` columns (escapes not counted), without a line feed.
#[must_use]
pub fn line(bar: &Bar, width: usize, colour: bool) -> String {
    let (green, red, plain) = if colour { ("\x1b[32m", "\x1b[31m", "\x1b[0m") } else { ("", "", "") };
    let numbers =
        format!("{:.0}s  {} answered  {}/s", bar.elapsed.as_secs_f64(), number(bar.progress.answered), rate(bar.rate));
    let errors = match bar.progress.errors {
        0 => String::new(),
        1 => "  1 error".to_owned(),
        errors => format!("  {} errors", number(errors)),
    };
    let texts = numbers.len() + errors.len();
    if texts > width {
        return numbers.chars().take(width).collect();
    }
    let mut line = String::new();
    let room = (width - texts).saturating_sub(10).min(30);
    if let Some(part) = bar.part.filter(|_| room >= 5) {
        let done = columns(part.clamp(0.0, 1.0) * room as f64);
        line = format!("[{green}{}{plain}{}] {:3.0} %  ", "=".repeat(done), " ".repeat(room - done), part * 100.0);
        if line.chars().count() > room + 10 + green.len() + plain.len() {
            line.clear();
        }
    }
    line.push_str(&numbers);
    if !errors.is_empty() {
        line.push_str(&format!("{red}{errors}{plain}"));
    }
    line
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the room")]
fn columns(length: f64) -> usize {
    length.round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(part: Option<f64>, errors: u64) -> Bar {
        let progress = Progress { answered: 123_456, errors };
        Bar { part, elapsed: Duration::from_secs(5), rate: 24_691.0, progress }
    }

    #[test]
    fn it_fits_its_width() {
        for width in 0..150 {
            for part in [None, Some(0.0), Some(0.5), Some(1.0), Some(1.2)] {
                let line = line(&bar(part, 12), width, false);
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn it_shows_how_far_it_is() {
        let numbers = "5s  123,456 answered  24,691/s";
        let half = format!("[{}{}]  50 %  {numbers}", "=".repeat(15), " ".repeat(15));
        assert_eq!(line(&bar(Some(0.5), 0), 80, false), half);
        assert_eq!(line(&bar(None, 1), 80, false), format!("{numbers}  1 error"));
        let coloured = line(&bar(Some(1.0), 2), 90, true);
        assert_eq!(
            coloured.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", ""),
            line(&bar(Some(1.0), 2), 90, false)
        );
        assert!(coloured.contains("\x1b[31m  2 errors\x1b[0m"));
    }
}
