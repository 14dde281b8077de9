//! The tables of docs/configuration.md: every key, and what it takes.

use std::ops::RangeInclusive;
use std::time::Duration;

use echoed::units::{MAX_TIME, format_rate, format_size, format_time, parse_rate, parse_size, parse_time};

const PAGE: &str = include_str!("../../docs/configuration.md");

/// A row of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DocumentedKey {
    /// The section, such as `defaults.deadlines`.
    pub(crate) section: &'static str,
    /// The name of the key.
    pub(crate) name: &'static str,
    /// The default as TOML.
    pub(crate) default: &'static str,
    /// What it takes, in words.
    pub(crate) takes: &'static str,
}

/// What the numbers of a range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Numbers without a unit.
    Number,
    /// Times in microseconds.
    Time,
    /// Sizes in bytes.
    Size,
    /// Rates per second.
    Rate,
    /// Lengths of strings in bytes.
    Length,
}

impl Unit {
    /// Formats a value as TOML, as the daemon prints it. A string has this length, and only the letter x.
    pub(crate) fn format(self, number: u64) -> String {
        match self {
            Self::Number => number.to_string(),
            Self::Time => format!("\"{}\"", format_time(Duration::from_micros(number))),
            Self::Size => format!("\"{}\"", format_size(number)),
            Self::Rate => format!("\"{}\"", format_rate(u32::try_from(number).expect("rates are small"))),
            Self::Length => format!("\"{}\"", "x".repeat(usize::try_from(number).expect("strings are short"))),
        }
    }
}

impl DocumentedKey {
    /// Returns the path of the key, such as `defaults.deadlines.read`.
    pub(crate) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// Returns the words that it takes, as TOML.
    pub(crate) fn words(&self) -> Vec<String> {
        let is_bare = |word: &str| word.starts_with('"') || !self.default.starts_with('"');
        let words = self.takes.split('`').skip(1).step_by(2);
        words.map(|word| if is_bare(word) { word.to_owned() } else { format!("\"{word}\"") }).collect()
    }

    /// Returns the range of the other values that it takes.
    pub(crate) fn range(&self) -> Option<(Unit, RangeInclusive<u64>)> {
        let (text, _) = self.takes.split_once(['`', ',']).unwrap_or((self.takes, ""));
        let text = text.trim();
        let range = |text: &str, parse: &dyn Fn(&str) -> Option<u64>| {
            let (from, to) = text.split_once(" to ")?;
            Some(parse(from)?..=parse(to)?)
        };
        let micros = |time: Duration| u64::try_from(time.as_micros()).expect("it is less than MAX_TIME");
        let number = |text: &str| text.parse().ok();
        let found = if text.is_empty() {
            return None;
        } else if let Some(least) = text.strip_prefix("a time") {
            let least = least.strip_prefix(" from ").map_or(Some(Duration::ZERO), |least| parse_time(least).ok());
            least.map(|least| (Unit::Time, micros(least)..=micros(MAX_TIME)))
        } else if let Some(sizes) = text.strip_prefix("a size from ") {
            range(sizes, &|size| parse_size(size).ok()).map(|sizes| (Unit::Size, sizes))
        } else if let Some(rates) = text.strip_prefix("a rate from ") {
            range(rates, &|rate| parse_rate(rate).map(u64::from).ok()).map(|rates| (Unit::Rate, rates))
        } else if let Some(lengths) = text.strip_suffix(" bytes") {
            range(lengths, &number).map(|lengths| (Unit::Length, lengths))
        } else {
            range(text, &number).map(|numbers| (Unit::Number, numbers))
        };
        Some(found.unwrap_or_else(|| panic!("docs/configuration.md: what does {} take: {}?", self.path(), self.takes)))
    }
}

/// Returns every key that has a default, in the order of the page: all but those of `[listener.NAME]` alone.
///
/// # Panics
/// Panics if the page has another form.
pub(crate) fn documented_keys() -> Vec<DocumentedKey> {
    let (_, tables) = PAGE.split_once("\n## Every key\n").expect("docs/configuration.md has \"## Every key\"");
    let tables = tables.split("\n## ").next().unwrap_or_default();
    let (mut keys, mut section) = (Vec::new(), "");
    for line in tables.lines() {
        if let Some(heading) = line.strip_prefix("### `[") {
            section = heading.split(']').next().unwrap_or_default();
        } else if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<_> = row.split(" | ").collect();
            let [name, default, takes, _] = cells[..] else {
                panic!("docs/configuration.md: a row has 4 cells: {line}")
            };
            let (name, default) = (name.trim_end_matches('`'), default.trim_matches('`'));
            keys.push(DocumentedKey { section, name, default, takes });
        }
    }
    keys.retain(|key| !["listen", "role", "weight"].contains(&key.name));
    keys
}
