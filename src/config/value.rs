//! What the keys of the configuration take, each with what is said about anything else.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::diagnose::nearest;
use super::tree::Data;
use crate::protocol::Delimiter;
use crate::protocol::framer::MAX_MESSAGE;
use crate::protocol::reply::{MAX_PREFIX, Prefix};
use crate::protocol::rules::{MAX_TEXT, Span};
use crate::units;

/// Sizes of messages, in bytes.
pub(super) const MESSAGE_SIZES: RangeInclusive<u64> = 1..=MAX_MESSAGE as u64;

/// Sizes of socket buffers, in bytes; the kernel doubles them and keeps them below an int.
pub(super) const SOCKET_BUFFERS: RangeInclusive<u64> = 1024..=1 << 29;

/// Budgets of buffer memory, in bytes: one small message at least.
pub(super) const BUFFER_MEMORY: RangeInclusive<u64> = 4096..=1 << 40;

/// Datagrams per second.
pub(super) const RATES: RangeInclusive<u32> = 1..=1_000_000;

/// The shortest time that a deadline can be.
const SHORTEST: Duration = Duration::from_millis(1);

/// What keys are said to take.
pub(super) const STRING: &str = "a string";
pub(super) const NUMBER: &str = "a number";
pub(super) const BOOLEAN: &str = "true or false";
pub(super) const TIME: &str = "a time";
pub(super) const SIZE: &str = "a size";
pub(super) const RATE: &str = "a rate";
pub(super) const WORD: &str = "a word";

/// Why a value cannot be what it should be.
#[derive(Debug)]
pub(super) enum Wrong {
    /// It is of another type.
    Type,
    /// In words.
    Said(String),
}

impl Wrong {
    fn said(error: &impl ToString) -> Self {
        Self::Said(error.to_string())
    }
}

/// What to write where a value of another type should be what is called `kind`.
pub(super) fn instead(kind: &str, value: &Data) -> Option<String> {
    match (kind, value) {
        (STRING, Data::Integer(_, written) | Data::Float(written)) => Some(format!("\"{written}\"")),
        (STRING, Data::Boolean(is)) => Some(format!("\"{is}\"")),
        (NUMBER, Data::Text(text)) => text.trim().parse::<u64>().ok().map(|number| number.to_string()),
        (BOOLEAN, Data::Text(text)) => match &*text.to_lowercase() {
            "true" | "yes" | "on" => Some("true".to_owned()),
            "false" | "no" | "off" => Some("false".to_owned()),
            _ => None,
        },
        _ => None,
    }
}

/// One of a few words.
pub(super) fn word<T: Copy>(value: &Data, words: &[(&str, T)]) -> Result<T, Wrong> {
    let text = text(value)?;
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let hint = nearest(text, &known).map(|word| format!("; is {word} meant?")).unwrap_or_default();
        Wrong::Said(format!("\"{}\" is not one of {}{hint}", text.escape_debug(), known.join(", ")))
    })
}

pub(super) fn text(value: &Data) -> Result<&str, Wrong> {
    if let Data::Text(text) = value { Ok(text) } else { Err(Wrong::Type) }
}

pub(super) fn boolean(value: &Data) -> Result<bool, Wrong> {
    if let Data::Boolean(is) = value { Ok(*is) } else { Err(Wrong::Type) }
}

pub(super) fn integer<T: TryFrom<i64>>(value: &Data, range: RangeInclusive<i64>) -> Result<T, Wrong> {
    let Data::Integer(number, written) = value else { return Err(Wrong::Type) };
    let number = number.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| Wrong::Said(format!("{written} is out of range; write {} to {}", range.start(), range.end())))
}

pub(super) fn time(value: &Data) -> Result<Span, Wrong> {
    let text = with_unit(value, "s")?;
    let time = units::parse_time(text).map_err(|error| Wrong::said(&error))?;
    // It is shown to peers, on one line.
    Ok(Span::new(time, &text.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// A time, or "off".
pub(super) fn time_or_off(value: &Data) -> Result<Option<Span>, Wrong> {
    if matches!(value, Data::Text(text) if text == "off") {
        return Ok(None);
    }
    let span = time(value)?;
    if span.length() < SHORTEST {
        return Err(Wrong::Said(format!("{span} is too short; write 1ms or more, or \"off\" for none")));
    }
    Ok(Some(span))
}

pub(super) fn size(value: &Data, range: RangeInclusive<u64>) -> Result<usize, Wrong> {
    let size = units::parse_size(with_unit(value, "B")?).map_err(|error| Wrong::said(&error))?;
    let fits = usize::try_from(size).ok().filter(|_| range.contains(&size));
    let (from, to) = (units::format_size(*range.start()), units::format_size(*range.end()));
    fits.ok_or_else(|| Wrong::Said(format!("{} is out of range; write {from} to {to}", units::format_size(size))))
}

/// A size, or "default".
pub(super) fn size_or_default(value: &Data) -> Result<Option<usize>, Wrong> {
    if matches!(value, Data::Text(text) if text == "default") {
        return Ok(None);
    }
    size(value, SOCKET_BUFFERS).map(Some)
}

/// A rate per second, or "off".
pub(super) fn rate_or_off(value: &Data) -> Result<Option<u32>, Wrong> {
    if matches!(value, Data::Text(text) if text == "off") {
        return Ok(None);
    }
    let rate = units::parse_rate(with_unit(value, "/s")?).map_err(|error| Wrong::said(&error))?;
    if RATES.contains(&rate) {
        return Ok(Some(rate));
    }
    let [rate, from, to] = [rate, *RATES.start(), *RATES.end()].map(units::format_rate);
    Err(Wrong::Said(format!("{rate} is out of range; write {from} to {to}, or \"off\" for no limit")))
}

pub(super) fn delimiter(value: &Data) -> Result<Delimiter, Wrong> {
    Delimiter::new(text(value)?.as_bytes()).map_err(|error| Wrong::said(&error))
}

pub(super) fn prefix(value: &Data) -> Result<Prefix, Wrong> {
    let text = text(value)?.as_bytes();
    if text.len() > MAX_PREFIX {
        return Err(Wrong::Said(format!("a prefix has at most {MAX_PREFIX} bytes, this one has {}", text.len())));
    }
    Ok(Prefix::new(text))
}

/// The text of a fixed reply.
pub(super) fn reply_text(value: &Data) -> Result<Box<[u8]>, Wrong> {
    let text = text(value)?.as_bytes();
    if text.len() > MAX_TEXT {
        return Err(Wrong::Said(format!("a text has at most {MAX_TEXT} bytes, this one has {}", text.len())));
    }
    Ok(text.into())
}

/// The text of a value that has a unit; a bare number is answered with what was probably meant.
fn with_unit<'a>(value: &'a Data, unit: &str) -> Result<&'a str, Wrong> {
    match value {
        Data::Integer(_, number) | Data::Float(number) => {
            Err(Wrong::Said(format!("{number} has no unit; write \"{number}{unit}\" if that is meant")))
        }
        value => text(value),
    }
}
