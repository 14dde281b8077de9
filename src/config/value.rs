//! The kinds of values that the keys of the configuration take, and the errors about other values.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::BufferSize;
use super::diagnose::closest;
use super::notation::toml_string;
use super::tree::Value;
use crate::protocol::Delimiter;
use crate::protocol::framer::MAX_MESSAGE;
use crate::protocol::reply::{MAX_PREFIX, Prefix};
use crate::protocol::rules::{MAX_FIXED_REPLY, TimeSpan};
use crate::units::{self, format_rate, format_size};

/// Sizes of messages, in bytes.
pub(super) const MESSAGE_SIZES: RangeInclusive<u64> = 1..=MAX_MESSAGE as u64;

/// Sizes of socket buffers, in bytes; the kernel doubles them and keeps them below an int.
const SOCKET_BUFFERS: RangeInclusive<u64> = 1024..=1 << 29;

/// Budgets of buffer memory, in bytes: one small message at least.
pub(super) const BUFFER_MEMORY: RangeInclusive<u64> = 4096..=1 << 40;

/// Datagrams per second.
const RATES: RangeInclusive<u32> = 1..=1_000_000;

/// The shortest time that a deadline can be.
const MIN_DEADLINE: Duration = Duration::from_millis(1);

/// The word that switches something off.
const OFF: &str = "off";

const STRING: &str = "a string";
const NUMBER: &str = "a number";
const BOOLEAN: &str = "true or false";

type Read<T> = dyn Fn(&Value) -> Result<T, ValueError>;

/// What a key takes.
pub(super) struct Kind<T> {
    /// Its name in errors: "a time".
    pub(super) name: &'static str,
    /// Reads a value.
    pub(super) read: Box<Read<T>>,
    /// Writes a value as TOML.
    pub(super) write: Box<dyn Fn(&T) -> String>,
}

impl<T> Kind<T> {
    fn new(
        name: &'static str,
        read: impl Fn(&Value) -> Result<T, ValueError> + 'static,
        write: impl Fn(&T) -> String + 'static,
    ) -> Self {
        Self { name, read: Box::new(read), write: Box::new(write) }
    }
}

/// One of a few words.
pub(super) fn word<T: Copy + PartialEq + 'static, const COUNT: usize>(words: [(&'static str, T); COUNT]) -> Kind<T> {
    let write = move |value: &T| words.iter().find(|(_, meaning)| meaning == value).map_or("", |(word, _)| *word);
    Kind::new("a word", move |value| read_word(value, &words), move |value| toml_string(write(value)))
}

/// True or false.
pub(super) fn boolean() -> Kind<bool> {
    Kind::new(BOOLEAN, read_boolean, bool::to_string)
}

/// A number in a range.
pub(super) fn number<T: TryFrom<i64> + ToString + 'static>(range: RangeInclusive<i64>) -> Kind<T> {
    Kind::new(NUMBER, move |value| read_number(value, &range), T::to_string)
}

/// A time of any length.
pub(super) fn time() -> Kind<TimeSpan> {
    Kind::new("a time", read_time, |time| toml_string(&time.to_string()))
}

/// A time from [`MIN_DEADLINE`], or "off".
pub(super) fn time_or_off() -> Kind<Option<TimeSpan>> {
    let write = |time: &Option<TimeSpan>| time.as_ref().map_or(OFF.to_owned(), TimeSpan::to_string);
    Kind::new("a time or \"off\"", read_time_or_off, move |time| toml_string(&write(time)))
}

/// A size in a range.
pub(super) fn size(range: RangeInclusive<u64>) -> Kind<usize> {
    Kind::new("a size", move |value| read_size(value, &range), |bytes| toml_string(&format_size(*bytes as u64)))
}

/// A size in [`SOCKET_BUFFERS`], "default" or "auto".
pub(super) fn buffer_size() -> Kind<BufferSize> {
    let write = |size: &BufferSize| match size {
        BufferSize::Default => "default".to_owned(),
        BufferSize::Auto => "auto".to_owned(),
        BufferSize::Bytes(bytes) => format_size(*bytes as u64),
    };
    Kind::new("a size", read_buffer_size, move |size| toml_string(&write(size)))
}

/// A rate in [`RATES`], or "off".
pub(super) fn rate_or_off() -> Kind<Option<u32>> {
    let write = |rate: &Option<u32>| rate.map_or(OFF.to_owned(), format_rate);
    Kind::new("a rate or \"off\"", read_rate_or_off, move |rate| toml_string(&write(rate)))
}

/// What ends a message.
pub(super) fn delimiter() -> Kind<Delimiter> {
    let read = |value: &Value| Delimiter::new(text(value)?.as_bytes()).map_err(|error| ValueError::invalid(&error));
    Kind::new(STRING, read, |delimiter| format_bytes(delimiter.as_bytes()))
}

/// What an echo begins with.
pub(super) fn prefix() -> Kind<Prefix> {
    let read = |value: &Value| read_bytes(value, "prefix", MAX_PREFIX).map(Prefix::new);
    Kind::new(STRING, read, |prefix| format_bytes(prefix.as_bytes()))
}

/// A reply that is always the same.
pub(super) fn fixed_reply() -> Kind<Arc<[u8]>> {
    let read = |value: &Value| read_bytes(value, "fixed reply", MAX_FIXED_REPLY).map(Arc::from);
    Kind::new(STRING, read, |reply| format_bytes(reply))
}

/// Formats bytes that were read from a string.
fn format_bytes(bytes: &[u8]) -> String {
    toml_string(&String::from_utf8_lossy(bytes))
}

/// Why a value cannot be what it should be.
#[derive(Debug)]
pub(super) enum ValueError {
    /// The value has another type.
    WrongType,
    /// The value is invalid, for this reason.
    Invalid(String),
}

impl ValueError {
    fn invalid(error: &impl ToString) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Suggests what to write instead of a value of another type, where a `kind` is expected.
pub(super) fn suggest(kind: &str, value: &Value) -> Option<String> {
    match (kind, value) {
        (STRING, Value::Integer(_, written) | Value::Float(written)) => Some(format!("\"{written}\"")),
        (STRING, Value::Boolean(is)) => Some(format!("\"{is}\"")),
        (NUMBER, Value::Text(text)) => text.trim().parse::<u64>().ok().map(|number| number.to_string()),
        (BOOLEAN, Value::Text(text)) => match &*text.to_lowercase() {
            "true" | "yes" | "on" => Some("true".to_owned()),
            "false" | "no" | "off" => Some("false".to_owned()),
            _ => None,
        },
        _ => None,
    }
}

/// Reads one of a few words.
fn read_word<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, ValueError> {
    let text = text(value)?;
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let hint = lower_case_hint(text, &known)
            .or_else(|| closest(text, &known).map(|word| format!("; is {word} meant?")))
            .unwrap_or_default();
        ValueError::Invalid(format!("\"{}\" is not one of {}{hint}", text.escape_debug(), known.join(", ")))
    })
}

/// Returns a hint where a text is one of the known words but for its case.
fn lower_case_hint(text: &str, known: &[&str]) -> Option<String> {
    let word = known.iter().find(|word| word.eq_ignore_ascii_case(text))?;
    Some(format!("; write \"{word}\", in lower case"))
}

/// Returns the error for a text that is one of the known words but for its case.
fn check_case(value: &Value, known: &[&str]) -> Result<(), ValueError> {
    let Value::Text(text) = value else { return Ok(()) };
    let invalid = |hint| ValueError::Invalid(format!("\"{}\" is invalid{hint}", text.escape_debug()));
    lower_case_hint(text, known).map_or(Ok(()), |hint| Err(invalid(hint)))
}

fn text(value: &Value) -> Result<&str, ValueError> {
    if let Value::Text(text) = value { Ok(text) } else { Err(ValueError::WrongType) }
}

fn read_boolean(value: &Value) -> Result<bool, ValueError> {
    if let Value::Boolean(is) = value { Ok(*is) } else { Err(ValueError::WrongType) }
}

fn read_number<T: TryFrom<i64>>(value: &Value, range: &RangeInclusive<i64>) -> Result<T, ValueError> {
    let Value::Integer(number, written) = value else { return Err(ValueError::WrongType) };
    let number = number.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| {
        ValueError::Invalid(format!("{written} is out of range; write {} to {}", range.start(), range.end()))
    })
}

fn read_time(value: &Value) -> Result<TimeSpan, ValueError> {
    let text = with_unit(value, "s")?;
    let time = units::parse_time(text).map_err(|error| ValueError::invalid(&error))?;
    // It is shown to peers, on one line.
    Ok(TimeSpan::new(time, &text.split_whitespace().collect::<Vec<_>>().join(" ")))
}

fn read_time_or_off(value: &Value) -> Result<Option<TimeSpan>, ValueError> {
    if matches!(value, Value::Text(text) if text == OFF) {
        return Ok(None);
    }
    check_case(value, &[OFF])?;
    let too_short = |text: &str| Err(ValueError::Invalid(format!("{text} is too short; write 1ms or more{OR_OFF}")));
    if let Some(zero) = bare_zero(value) {
        return too_short(zero);
    }
    let time_span = read_time(value).map_err(|error| suggest_off(error, value))?;
    if time_span.duration() < MIN_DEADLINE { too_short(&time_span.to_string()) } else { Ok(Some(time_span)) }
}

/// The addition to an error of a key that can be switched off.
const OR_OFF: &str = ", or \"off\" for none";

/// Returns a zero without a unit as it is written: what switches something off elsewhere.
fn bare_zero(value: &Value) -> Option<&str> {
    let (Value::Integer(_, text) | Value::Float(text) | Value::Text(text)) = value else { return None };
    text.trim().parse::<f64>().is_ok_and(|number| number == 0.0).then_some(text)
}

/// Adds to an error that a key can be switched off, where the value is a word that may mean that: "infinity".
fn suggest_off(error: ValueError, value: &Value) -> ValueError {
    match (error, value) {
        (ValueError::Invalid(message), Value::Text(text)) if !text.contains(|one: char| one.is_ascii_digit()) => {
            ValueError::Invalid(message + OR_OFF)
        }
        (error, _) => error,
    }
}

fn read_size(value: &Value, range: &RangeInclusive<u64>) -> Result<usize, ValueError> {
    let size = units::parse_size(with_unit(value, "B")?).map_err(|error| ValueError::invalid(&error))?;
    let range = addressable(range, usize::MAX as u64);
    let fits = usize::try_from(size).ok().filter(|_| range.contains(&size));
    let (from, to) = (format_size(*range.start()), format_size(*range.end()));
    fits.ok_or_else(|| ValueError::Invalid(format!("{} is out of range; write {from} to {to}", format_size(size))))
}

/// Returns the part of a range that a machine has addresses for, up to a whole MiB.
fn addressable(range: &RangeInclusive<u64>, max_address: u64) -> RangeInclusive<u64> {
    let end = if *range.end() > max_address { max_address >> 20 << 20 } else { *range.end() };
    *range.start()..=end
}

fn read_buffer_size(value: &Value) -> Result<BufferSize, ValueError> {
    match value {
        Value::Text(text) if text == "default" => Ok(BufferSize::Default),
        Value::Text(text) if text == "auto" => Ok(BufferSize::Auto),
        _ => check_case(value, &["default", "auto"])
            .and_then(|()| read_size(value, &SOCKET_BUFFERS))
            .map(BufferSize::Bytes),
    }
}

fn read_rate_or_off(value: &Value) -> Result<Option<u32>, ValueError> {
    if matches!(value, Value::Text(text) if text == OFF) {
        return Ok(None);
    }
    check_case(value, &[OFF])?;
    let [from, to] = [*RATES.start(), *RATES.end()].map(format_rate);
    let out_of_range =
        |rate: &str| Err(ValueError::Invalid(format!("{rate} is out of range; write {from} to {to}{OR_OFF}")));
    if let Some(zero) = bare_zero(value) {
        return out_of_range(zero);
    }
    let rate = with_unit(value, "/s")
        .and_then(|text| units::parse_rate(text).map_err(|error| ValueError::invalid(&error)))
        .map_err(|error| suggest_off(error, value))?;
    if RATES.contains(&rate) { Ok(Some(rate)) } else { out_of_range(&format_rate(rate)) }
}

/// Reads the bytes of a string, `most` at most. `what` is what they are.
fn read_bytes<'a>(value: &'a Value, what: &str, most: usize) -> Result<&'a [u8], ValueError> {
    let bytes = text(value)?.as_bytes();
    if bytes.len() > most {
        return Err(ValueError::Invalid(format!("a {what} has at most {most} bytes, this one has {}", bytes.len())));
    }
    Ok(bytes)
}

/// Returns the text of a value that has a unit. The error for a bare number suggests the unit.
fn with_unit<'a>(value: &'a Value, unit: &str) -> Result<&'a str, ValueError> {
    match value {
        Value::Integer(_, number) | Value::Float(number) => {
            Err(ValueError::Invalid(format!("{number} has no unit; write \"{number}{unit}\" if that is meant")))
        }
        value => text(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_end_where_the_addresses_of_the_machine_end() {
        assert_eq!(addressable(&BUFFER_MEMORY, u64::from(u32::MAX)), 4096..=4095 << 20);
        assert_eq!(addressable(&BUFFER_MEMORY, u64::MAX), BUFFER_MEMORY);
        assert_eq!(addressable(&MESSAGE_SIZES, u64::from(u32::MAX)), MESSAGE_SIZES);
    }
}
