//! Times, sizes, rates and numbers as people write them: `2s`, `1h 30min`, `64KiB`, `100/s`, `18,400`. The notation of
//! times is that of systemd.time(7). A bare number is refused, with the unit that was probably meant.

use std::fmt;
use std::time::Duration;

/// The error of an invalid time, size or rate, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitError(String);

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnitError {}

/// The longest time, 10,000 days: a longer one probably means "off". Sums of times stay far from overflow.
pub const MAX_TIME: Duration = Duration::from_secs(10_000 * 86_400);

/// The units of time, in nanoseconds. The first of each length is the one that is printed.
const TIME_UNITS: [(&str, u64); 22] = [
    ("w", 604_800_000_000_000),
    ("week", 604_800_000_000_000),
    ("weeks", 604_800_000_000_000),
    ("d", 86_400_000_000_000),
    ("day", 86_400_000_000_000),
    ("days", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("hr", 3_600_000_000_000),
    ("hour", 3_600_000_000_000),
    ("hours", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("m", 60_000_000_000),
    ("minute", 60_000_000_000),
    ("minutes", 60_000_000_000),
    ("s", 1_000_000_000),
    ("sec", 1_000_000_000),
    ("second", 1_000_000_000),
    ("seconds", 1_000_000_000),
    ("ms", 1_000_000),
    ("msec", 1_000_000),
    ("us", 1000),
    ("usec", 1000),
];

/// The units of size, in bytes. The largest that fits is printed.
const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads a time: one or more numbers, each with its unit, added up (`1h 30min`); fractions are allowed (`1.5s`). What
/// is below a microsecond is left out.
///
/// # Errors
/// Returns an error if the text is not a time, a number has no unit or an unknown one, or the time exceeds [`MAX_TIME`].
pub fn parse_time(text: &str) -> Result<Duration, UnitError> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(UnitError("missing time (examples: 2s, 500ms, 1h 30min)".to_owned()));
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (number, unit, after) = split_number_and_unit(rest);
        if number.is_empty() {
            return Err(UnitError(format!("invalid time \"{}\" (examples: 2s, 500ms, 1h 30min)", text.escape_debug())));
        }
        if unit.is_empty() {
            return Err(UnitError(format!("{number} has no unit; write {number}s if seconds are meant")));
        }
        let Some((_, nanos)) = TIME_UNITS.iter().find(|(name, _)| *name == unit) else {
            let known = "known: us, ms, s, min, h, d, w";
            return Err(UnitError(format!("unknown unit of time \"{}\" ({known})", unit.escape_debug())));
        };
        let part = scale_number(number, *nanos).ok_or_else(|| too_long_error(text))?;
        total = total.checked_add(part).ok_or_else(|| too_long_error(text))?;
        rest = after.trim_start();
    }
    let time = Duration::from_micros(total / 1000);
    if time > MAX_TIME { Err(too_long_error(text)) } else { Ok(time) }
}

/// Writes a time in the notation that [`parse_time`] reads: `1h 30min`. Parts below a microsecond are left out.
#[must_use]
pub fn format_time(time: Duration) -> String {
    let mut rest = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut parts = Vec::new();
    let mut last = 0;
    for (name, nanos) in TIME_UNITS {
        if nanos != last && rest >= nanos {
            parts.push(format!("{}{name}", rest / nanos));
            rest %= nanos;
        }
        last = nanos;
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// Writes how long something took, for people to read: `0.3ms`, `12ms`, `3.5s`.
#[must_use]
pub fn format_age(age: Duration) -> String {
    let millis = age.as_secs_f64() * 1000.0;
    match millis {
        ..9.95 => format!("{millis:.1}ms"),
        9.95..999.5 => format!("{millis:.0}ms"),
        _ => format!("{:.1}s", millis / 1000.0),
    }
}

/// Writes a number with its digits grouped: `18,400`.
#[must_use]
pub fn format_number(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Reads a size: a number with `B`, `KiB`, `MiB` or `GiB`.
///
/// # Errors
/// Returns an error if the text is not a size, or its unit is missing or unknown; units of powers of ten (kB) are unknown.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit, after) = split_number_and_unit(text.trim());
    if number.is_empty() {
        return Err(UnitError(format!("invalid size \"{}\" (examples: 512B, 64KiB, 1MiB)", text.escape_debug())));
    }
    if unit.is_empty() {
        return Err(UnitError(format!("{number} has no unit; write {number}B if bytes are meant")));
    }
    let Some((_, bytes)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).filter(|_| after.is_empty()) else {
        let wrong = text.trim()[number.len()..].trim().escape_debug();
        return Err(UnitError(format!("unknown unit of size \"{wrong}\" (known: B, KiB, MiB, GiB)")));
    };
    scale_number(number, *bytes).ok_or_else(|| UnitError(format!("{} is too large", text.escape_debug())))
}

/// Writes a size with the largest unit that divides it: `64KiB`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, size)| bytes >= *size && bytes % size == 0);
    unit.map_or_else(|| format!("{bytes}B"), |(name, size)| format!("{}{name}", bytes / size))
}

/// Reads a rate: a whole number `/s`.
///
/// # Errors
/// Returns an error if the text is not a rate, or its unit is missing or unknown.
pub fn parse_rate(text: &str) -> Result<u32, UnitError> {
    let (number, unit) = text.split_once('/').map_or((text, None), |(number, unit)| (number, Some(unit.trim())));
    let number = number.trim();
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UnitError(format!("invalid rate \"{}\" (example: 100/s)", text.escape_debug())));
    }
    match unit {
        None => Err(UnitError(format!("{number} has no unit; write {number}/s if that is meant"))),
        Some("s") => number.parse().map_err(|_| UnitError(format!("{} is too large", text.escape_debug()))),
        Some(unit) => Err(UnitError(format!("unknown unit of rate \"/{}\" (known: /s)", unit.escape_debug()))),
    }
}

/// Writes a rate in the notation that [`parse_rate`] reads: `100/s`.
#[must_use]
pub fn format_rate(per_second: u32) -> String {
    format!("{per_second}/s")
}

/// Splits `text` into the number at its beginning, the unit that follows, and the rest.
fn split_number_and_unit(text: &str) -> (&str, &str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    // A point alone is not a number, and digits with two points are not either.
    let is_number = text[..end].contains(|c: char| c.is_ascii_digit()) && text[..end].matches('.').count() < 2;
    let end = if is_number { end } else { 0 };
    let (number, rest) = text.split_at(end);
    let rest = rest.trim_start();
    let end = rest.find(|c: char| c.is_whitespace() || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(end);
    (number, unit, rest)
}

/// Multiplies a decimal number by `unit`, rounded down to a whole number.
fn scale_number(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // More digits would not change a thing.
    let fraction = fraction.get(..18).unwrap_or(fraction);
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u64>().ok() };
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = u128::from(digits(fraction)?) * u128::from(unit) / scale;
    digits(whole)?.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}

fn too_long_error(text: &str) -> UnitError {
    UnitError(format!("{} is too long (maximum: 10000d); write \"off\" for no limit", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ages_are_written_with_the_digits_that_matter() {
        for (micros, written) in [
            (0, "0.0ms"),
            (340, "0.3ms"),
            (9_900, "9.9ms"),
            (9_960, "10ms"),
            (12_345, "12ms"),
            (999_000, "999ms"),
            (999_700, "1.0s"),
            (1_000_000, "1.0s"),
            (3_540_000, "3.5s"),
            (4_000_000_000, "4000.0s"),
        ] {
            assert_eq!(format_age(Duration::from_micros(micros)), written);
        }
    }

    #[test]
    fn times_are_read_and_written() {
        for (text, millis, written) in [
            ("2s", 2000, "2s"),
            ("500ms", 500, "500ms"),
            ("5min", 300_000, "5min"),
            ("5m", 300_000, "5min"),
            ("1h 30min", 5_400_000, "1h 30min"),
            ("1h30min", 5_400_000, "1h 30min"),
            ("90 min", 5_400_000, "1h 30min"),
            ("1.5s", 1500, "1s 500ms"),
            (".5s", 500, "500ms"),
            ("0s", 0, "0s"),
            (" 2 weeks 1day ", 1_296_000_000, "2w 1d"),
        ] {
            let time = parse_time(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(time, Duration::from_millis(millis), "{text}");
            assert_eq!(format_time(time), written, "{text}");
            assert_eq!(parse_time(written), Ok(time), "{text}");
        }
    }

    #[test]
    fn invalid_time_error_says_what_to_write() {
        for (text, hint) in [
            ("", "missing time"),
            ("5", "write 5s"),
            ("1h 30", "write 30s"),
            ("5 parsecs", "unknown unit of time"),
            ("soon", "invalid time"),
            ("-1s", "invalid time"),
            ("10001d", "maximum: 10000d"),
            ("99999999999999999999s", "maximum: 10000d"),
            ("1.2.3s", "invalid time"),
        ] {
            let error = parse_time(text).expect_err(text).to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, written) in [
            ("0B", 0, "0B"),
            ("512B", 512, "512B"),
            ("64KiB", 65_536, "64KiB"),
            ("64 KiB", 65_536, "64KiB"),
            ("1.5MiB", 1_572_864, "1536KiB"),
            ("2GiB", 2 << 30, "2GiB"),
            ("65537B", 65_537, "65537B"),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(format_size(bytes), written, "{text}");
            assert_eq!(parse_size(written), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn invalid_size_error_says_what_to_write() {
        for (text, hint) in [
            ("64", "write 64B"),
            ("64KB", "(known: B, KiB"),
            ("64kib", "(known: B, KiB"),
            ("64KiB 1B", "(known: B, KiB"),
            ("big", "invalid size"),
            ("1.2.3KiB", "invalid size"),
            ("", "invalid size"),
            ("99999999999999999999GiB", "too large"),
        ] {
            let error = parse_size(text).expect_err(text).to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn rates_are_read_and_written() {
        for (text, rate, written) in [("100/s", 100, "100/s"), (" 5 / s ", 5, "5/s"), ("0/s", 0, "0/s")] {
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
            assert_eq!(format_rate(rate), written, "{text}");
        }
        for (text, hint) in [
            ("100", "write 100/s"),
            ("100/min", "(known: /s)"),
            ("100/", "(known: /s)"),
            ("", "invalid rate"),
            ("/s", "invalid rate"),
            ("-1/s", "invalid rate"),
            ("1.5/s", "invalid rate"),
            ("many", "invalid rate"),
            ("4294967296/s", "too large"),
        ] {
            let error = parse_rate(text).expect_err(text).to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn digits_are_grouped_by_three() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (18_400, "18,400"), (1_234_567, "1,234,567")] {
            assert_eq!(format_number(number), text);
        }
    }

    /// Generates texts like a time or a size, most of them valid.
    fn notation(units: &'static [&'static str]) -> impl Strategy<Value = String> {
        let number = prop_oneof!["[0-9]{1,6}", "[0-9]{0,3}\\.[0-9]{0,20}", "[0-9]{18,21}"];
        let part = (number, "[ \t]{0,2}", prop::sample::select(units), "[ \n]?");
        let part = part.prop_map(|(number, blank, unit, end)| format!("{number}{blank}{unit}{end}"));
        prop::collection::vec(part, 1..4).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn a_time_that_was_written_is_read_as_the_same(micros in 0..=MAX_TIME.as_secs() * 1_000_000) {
            let time = Duration::from_micros(micros);
            prop_assert_eq!(parse_time(&format_time(time)), Ok(time));
        }

        #[test]
        fn a_time_that_was_read_is_written_as_the_same(
            text in notation(&["us", "ms", "s", "sec", "min", "m", "h", "days", "w", "month", ""]),
        ) {
            if let Ok(time) = parse_time(&text) {
                prop_assert_eq!(parse_time(&format_time(time)), Ok(time));
            }
        }

        #[test]
        fn a_size_that_was_written_is_read_as_the_same(bytes in any::<u64>(), shift in 0..64) {
            for bytes in [bytes >> shift, bytes << shift] {
                prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
            }
        }

        #[test]
        fn a_size_that_was_read_is_written_as_the_same(text in notation(&["B", "KiB", "MiB", "GiB", "KB", ""])) {
            if let Ok(bytes) = parse_size(&text) {
                prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
            }
        }

        #[test]
        fn a_rate_that_was_written_is_read_as_the_same(rate in any::<u32>()) {
            prop_assert_eq!(parse_rate(&format_rate(rate)), Ok(rate));
        }

        #[test]
        fn parsing_any_text_does_not_panic(text in ".*") {
            let _ = (parse_time(&text), parse_size(&text), parse_rate(&text));
        }
    }
}
