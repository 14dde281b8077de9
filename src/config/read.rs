//! A TOML document to [`Settings`]. All of it is checked, and every problem reported; only a document without any
//! becomes settings.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::diagnose::{Problem, nearest};
use super::{Limits, Listener, RESERVED_NAMES, Service, Settings, is_listener_name};
use crate::address::Address;
use crate::protocol::Delimiter;
use crate::protocol::framer::MAX_MESSAGE;
use crate::protocol::reply::{MAX_PREFIX, Prefix};
use crate::protocol::rules::{Deadlines, Rules, Span, Unterminated};
use crate::units;

/// Sizes of messages, in bytes.
const MESSAGE_SIZES: RangeInclusive<u64> = 1..=MAX_MESSAGE as u64;

/// Sizes of socket buffers, in bytes; the kernel doubles them and keeps them below an int.
const SOCKET_BUFFERS: RangeInclusive<u64> = 1024..=1 << 29;

/// Budgets of buffer memory, in bytes: one small message at least.
const BUFFER_MEMORY: RangeInclusive<u64> = 4096..=1 << 40;

/// Checks a document.
///
/// # Errors
/// Everything that is wrong with it.
pub fn settings(text: &str) -> Result<Settings, Vec<Problem>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().map(|error| syntax_problem(text, error)).collect());
    }
    let mut problems = Vec::new();
    let mut root =
        Section { table: document.get_ref(), name: String::new(), asked: Vec::new(), problems: &mut problems };
    let mut settings = Settings::default();

    root.section("log", |log| {
        log.set(&mut settings.log_level, "level", "a level", |value| text_of(value)?.parse());
    });
    root.section("service", |service| read_service(service, &mut settings.service));
    let mut buffer_memory_at = None;
    root.section("limits", |limits| buffer_memory_at = read_limits(limits, &mut settings.limits));
    root.section("metrics", |metrics| metrics.not_built(&["listen"]));
    let buffer_memory = settings.limits.buffer_memory;
    root.section("defaults", |section| {
        settings.defaults = read_listener(section, settings.defaults.clone(), buffer_memory);
        if let Some((span, _)) = section.value("listen") {
            section.problem(span, "where to listen stands in [listener.NAME], not in [defaults]".to_owned());
        }
    });
    let max_message = settings.defaults.rules.max_message;
    let is_built_in = max_message == Rules::default().max_message;
    if let Some(span) = buffer_memory_at.filter(|_| is_built_in && max_message > buffer_memory) {
        let message = never_fits(max_message, buffer_memory);
        root.problem(span, format!("{message}; make it more, or set defaults.max_message"));
    }
    root.section("listener", |all| {
        for (name, _) in all.table {
            let (span, name) = (name.span(), name.get_ref().as_ref());
            if RESERVED_NAMES.contains(&name) {
                all.problem(span, format!("{name} is not the name of an echo listener"));
            } else if !is_listener_name(name) {
                let message = format!("\"{}\" is no name: letters, digits and _ . @ - make one", name.escape_debug());
                all.problem(span, message);
            }
            all.section(name, |section| {
                let mut listener = read_listener(section, settings.defaults.clone(), buffer_memory);
                read_addresses(section, &mut listener.listen);
                settings.listeners.insert(name.to_owned(), listener);
            });
        }
    });
    root.finish();
    if problems.is_empty() { Ok(settings) } else { Err(problems) }
}

fn read_service(section: &mut Section<'_, '_>, service: &mut Service) {
    section.set(&mut service.workers, "workers", "a number", |value| integer_of(value, 0..=64));
    section.set(&mut service.drain, "drain", "a time", |value| time_of(value).map(|span| span.length()));
    section.not_built(&["idle_exit", "carry_connections"]);
}

/// Returns the place of the buffer memory, where it is set.
fn read_limits(section: &mut Section<'_, '_>, limits: &mut Limits) -> Option<Range<usize>> {
    section.set(&mut limits.connections, "connections", "a number", |value| integer_of(value, 1..=1_000_000));
    let per_source = &mut limits.connections_per_source;
    section.set(per_source, "connections_per_source", "a number", |value| integer_of(value, 0..=1_000_000));
    section.not_built(&["datagrams_per_source"]);
    section.set(&mut limits.buffer_memory, "buffer_memory", "a size", |value| size_of(value, BUFFER_MEMORY))
}

/// One listener's settings, where those that are not set are `base`'s.
fn read_listener(section: &mut Section<'_, '_>, base: Listener, buffer_memory: usize) -> Listener {
    let mut listener = base;
    let mut rules = Rules::clone(&listener.rules);
    let delimiter = section.set(&mut rules.delimiter, "delimiter", "a delimiter", |value| {
        Delimiter::new(text_of(value)?.as_bytes()).map_err(|error| error.to_string())
    });
    let prefix = section.set(&mut rules.prefix, "prefix", "a prefix", |value| {
        let text = text_of(value)?.as_bytes();
        if text.len() > MAX_PREFIX {
            return Err(format!("a prefix has at most {MAX_PREFIX} bytes, this one has {}", text.len()));
        }
        Ok(Prefix::new(text))
    });
    if let Some(span) = prefix.or(delimiter) {
        if rules.delimiter.is_in(rules.prefix.as_bytes()) {
            let (prefix, delimiter) = (&rules.prefix, &rules.delimiter);
            let message = format!("the prefix {prefix:?} contains the delimiter {delimiter:?}; change one of them");
            section.problem(span, message);
        }
    }
    let message = section.set(&mut rules.max_message, "max_message", "a size", |value| size_of(value, MESSAGE_SIZES));
    if let Some(span) = message {
        if rules.max_message > buffer_memory {
            section.problem(span, never_fits(rules.max_message, buffer_memory));
        }
    }
    section.set(&mut rules.unterminated, "unterminated", "a choice", |value| match text_of(value)? {
        "discard" => Ok(Unterminated::Discard),
        "accept" => Ok(Unterminated::Accept),
        _ => Err("write discard or accept".to_owned()),
    });
    section.set(&mut rules.error_replies, "error_replies", "true or false", bool_of);
    section.section("deadlines", |section| read_deadlines(section, &mut rules.deadlines));
    listener.rules = Arc::new(rules);

    section.set(&mut listener.nodelay, "nodelay", "true or false", bool_of);
    section.set(&mut listener.receive_buffer, "receive_buffer", "a size", buffer_of);
    section.set(&mut listener.send_buffer, "send_buffer", "a size", buffer_of);
    section.not_built(&["framing", "reply", "text", "reply_delay", "log_messages", "proxy_protocol"]);
    listener
}

fn never_fits(max_message: usize, buffer_memory: usize) -> String {
    let (size, budget) = (units::format_size(max_message as u64), units::format_size(buffer_memory as u64));
    format!("a message of {size} (max_message) never fits into limits.buffer_memory ({budget})")
}

fn read_deadlines(section: &mut Section<'_, '_>, deadlines: &mut Deadlines) {
    section.set(&mut deadlines.idle, "idle", "a time", deadline_of);
    section.set(&mut deadlines.read, "read", "a time", deadline_of);
    section.set(&mut deadlines.write, "write", "a time", deadline_of);
    section.set(&mut deadlines.lifetime, "lifetime", "a time", deadline_of);
}

// --- Values ----------------------------------------------------------------------------------------------------------

/// A value cannot be what it should be: why, in words; empty where its type alone is wrong.
type Wrong = String;

fn text_of<'a>(value: &'a DeValue<'_>) -> Result<&'a str, Wrong> {
    value.as_str().ok_or_else(Wrong::new)
}

fn bool_of(value: &DeValue<'_>) -> Result<bool, Wrong> {
    value.as_bool().ok_or_else(Wrong::new)
}

fn integer_of<T: TryFrom<i64>>(value: &DeValue<'_>, range: RangeInclusive<i64>) -> Result<T, Wrong> {
    let integer = value.as_integer().ok_or_else(Wrong::new)?;
    let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|number| range.contains(number));
    let number = number.and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| format!("{integer} is out of range; write {} to {}", range.start(), range.end()))
}

fn time_of(value: &DeValue<'_>) -> Result<Span, Wrong> {
    let text = unit_text(value, "s")?;
    units::parse_time(text).map(|time| Span::new(time, text)).map_err(|error| error.to_string())
}

fn deadline_of(value: &DeValue<'_>) -> Result<Option<Span>, Wrong> {
    if value.as_str() == Some("off") {
        return Ok(None);
    }
    let span = time_of(value)?;
    if span.length() < Duration::from_millis(1) {
        return Err("a deadline is at least 1ms; write \"off\" for none".to_owned());
    }
    Ok(Some(span))
}

fn size_of(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Result<usize, Wrong> {
    let size = units::parse_size(unit_text(value, "B")?).map_err(|error| error.to_string())?;
    let fits = usize::try_from(size).ok().filter(|_| range.contains(&size));
    let (from, to) = (units::format_size(*range.start()), units::format_size(*range.end()));
    fits.ok_or_else(|| format!("{} is out of range; write {from} to {to}", units::format_size(size)))
}

fn buffer_of(value: &DeValue<'_>) -> Result<Option<usize>, Wrong> {
    if value.as_str() == Some("default") { Ok(None) } else { size_of(value, SOCKET_BUFFERS).map(Some) }
}

/// Reads a list of addresses; each that is wrong is a problem of its own.
fn read_addresses(section: &mut Section<'_, '_>, addresses: &mut Vec<Address>) {
    let Some((span, value)) = section.value("listen") else { return };
    let Some(values) = value.as_array() else {
        let message = format!("listen is a list of addresses, not {}", with_article(value.type_str()));
        return section.problem(span, message);
    };
    for value in values.iter() {
        let (span, value) = (value.span(), value.get_ref());
        match value.as_str().map(str::parse) {
            Some(Ok(address)) => addresses.push(address),
            Some(Err(error)) => section.problem(span, format!("listen: {error}")),
            None => {
                let kind = with_article(value.type_str());
                section.problem(span, format!("listen: an address is a string, not {kind}"));
            }
        }
    }
}

/// The text of a value that has a unit; a bare number is answered with what was probably meant.
fn unit_text<'a>(value: &'a DeValue<'_>, unit: &str) -> Result<&'a str, Wrong> {
    match value {
        DeValue::Integer(number) => Err(format!("{number} has no unit; write \"{number}{unit}\" if that is meant")),
        DeValue::Float(number) => Err(format!("{number} has no unit; write \"{number}{unit}\" if that is meant")),
        value => text_of(value),
    }
}

// --- Sections --------------------------------------------------------------------------------------------------------

/// One table of the document while it is read: what was not asked for when it is finished is not known.
struct Section<'a, 'p> {
    table: &'a DeTable<'a>,
    /// As in a header: `defaults.deadlines`; empty for the document itself.
    name: String,
    asked: Vec<&'a str>,
    problems: &'p mut Vec<Problem>,
}

impl<'a> Section<'a, '_> {
    fn problem(&mut self, span: Range<usize>, message: String) {
        self.problems.push(Problem { span, message });
    }

    /// The value of a key, where it is set.
    fn value(&mut self, key: &'a str) -> Option<(Range<usize>, &'a DeValue<'a>)> {
        self.asked.push(key);
        self.table.get(key).map(|value| (value.span(), value.get_ref()))
    }

    /// Sets `target` where the key is set, and returns the place of the value. A value that `parse` refuses is a problem.
    fn set<T>(
        &mut self,
        target: &mut T,
        key: &'a str,
        kind: &str,
        parse: impl FnOnce(&'a DeValue<'a>) -> Result<T, Wrong>,
    ) -> Option<Range<usize>> {
        let (span, value) = self.value(key)?;
        match parse(value) {
            Ok(value) => {
                *target = value;
                return Some(span);
            }
            Err(wrong) if wrong.is_empty() => {
                self.problem(span, format!("{key} is {kind}, not {}", with_article(value.type_str())));
            }
            Err(wrong) => self.problem(span, format!("{key}: {wrong}")),
        }
        None
    }

    /// Reads the table of this name, where there is one.
    fn section(&mut self, key: &'a str, read: impl FnOnce(&mut Section<'a, '_>)) {
        let Some((span, value)) = self.value(key) else { return };
        let name = if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) };
        let Some(table) = value.as_table() else {
            let message = format!("[{name}] is a section, not {}", with_article(value.type_str()));
            return self.problem(span, message);
        };
        let mut section = Section { table, name, asked: Vec::new(), problems: &mut *self.problems };
        read(&mut section);
        section.finish();
    }

    /// Keys of parts that do not exist yet: refused, not ignored.
    fn not_built(&mut self, keys: &[&'a str]) {
        for key in keys {
            self.asked.push(key);
            if let Some((name, _)) = self.table.get_key_value(*key) {
                let message = format!("{key} is not built yet in this version of echoed; remove it");
                self.problem(name.span(), message);
            }
        }
    }

    /// Reports every key that was not asked for.
    fn finish(self) {
        for (key, _) in self.table {
            let name = key.get_ref().as_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let place = if self.name.is_empty() { String::new() } else { format!(" in [{}]", self.name) };
            let known = self.asked.clone();
            let hint = match nearest(name, &known) {
                Some(nearest) => format!("; is {nearest} meant?"),
                None => format!("; known are {}", known.join(", ")),
            };
            let message = format!("there is no key {}{place}{hint}", name.escape_debug());
            self.problems.push(Problem { span: key.span(), message });
        }
    }
}

fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    Problem { span: error.span().unwrap_or(text.len()..text.len()), message }
}
