//! A tree to [`Settings`]. All of it is checked, and every problem reported. It reads each layer by itself, where all
//! that is wrong with one value is found, and then what they were merged to, where nothing is left to be found but what
//! [`conflicts`](super::conflicts) looks for.

use std::sync::Arc;

use super::diagnose::Problem;
use super::section::Section;
use super::tree::{Node, Table, Value};
use super::value::{
    self, BOOLEAN, BUFFER_MEMORY, MESSAGE_SIZES, NUMBER, RATE_OR_OFF, SIZE, STRING, TIME, TIME_OR_OFF, WORD,
};
use super::{Level, Limits, ListenerSettings, RESERVED_NAMES, Service, Settings, is_listener_name};
use crate::address::Address;
use crate::protocol::reply::Prefix;
use crate::protocol::rules::{Deadlines, Framing, LogMessages, ReplyMode, Rules, Unterminated};

/// Returns the settings of a tree, with the defaults where it sets nothing, and all problems in it.
pub(super) fn read_settings(tree: &Node) -> (Settings, Vec<Problem>) {
    let (mut settings, mut problems, empty) = (Settings::default(), Vec::new(), Table::new());
    Section::read_all(tree.table().unwrap_or(&empty), &mut problems, |root| read(root, &mut settings));
    (settings, problems)
}

fn read(root: &mut Section<'_, '_>, settings: &mut Settings) {
    root.section("log", |log| {
        let levels = Level::ALL.map(|level| (level.as_str(), level));
        log.set(&mut settings.log_level, "level", WORD, |value| value::word(value, &levels));
    });
    root.section("service", |section| read_service(section, &mut settings.service));
    root.section("limits", |section| read_limits(section, &mut settings.limits));
    let mut prefix = None;
    root.section("defaults", |section| {
        settings.defaults = read_listener(section, settings.defaults.clone(), &mut prefix);
        if let Some(node) = section.value("listen") {
            let message = "listen belongs in [listener.NAME], not in [defaults]";
            section.report_problem(node.span, message.to_owned());
        }
    });
    root.section("listener", |all| {
        for (name, node) in all.table() {
            if RESERVED_NAMES.contains(&name.as_str()) {
                all.report_problem(node.key_span, format!("{name} is not the name of an echo listener"));
            } else if !is_listener_name(name) {
                let message =
                    format!("invalid listener name \"{}\" (allowed: letters, digits and _ . @ -)", name.escape_debug());
                all.report_problem(node.key_span, message);
            }
            all.named_section(name, |section| {
                let mut listener = read_listener(section, settings.defaults.clone(), &mut prefix.clone());
                read_addresses(section, &mut listener.listen);
                settings.listeners.insert(name.clone(), listener);
            });
        }
    });
    root.unimplemented_keys = &["metrics"];
}

fn read_service(section: &mut Section<'_, '_>, service: &mut Service) {
    section.set(&mut service.workers, "workers", NUMBER, |value| value::integer(value, 0..=64));
    section.set(&mut service.idle_exit, "idle_exit", TIME_OR_OFF, value::time_or_off);
    section.set(&mut service.drain_timeout, "drain_timeout", TIME, value::time);
    section.set(&mut service.handover, "handover", BOOLEAN, value::boolean);
}

fn read_limits(section: &mut Section<'_, '_>, limits: &mut Limits) {
    section.set(&mut limits.connections, "connections", NUMBER, |value| value::integer(value, 1..=1_000_000));
    let per_source = &mut limits.connections_per_source;
    section.set(per_source, "connections_per_source", NUMBER, |value| value::integer(value, 0..=1_000_000));
    section.set(&mut limits.reclaim_idle, "reclaim_idle", TIME_OR_OFF, value::time_or_off);
    section.set(&mut limits.buffer_memory, "buffer_memory", SIZE, |value| value::size(value, BUFFER_MEMORY));
    section.set(&mut limits.datagrams_per_source, "datagrams_per_source", RATE_OR_OFF, value::rate_or_off);
}

/// Reads one listener's settings; those that are not set are `base`'s. `prefix` is the one that is set there, if one
/// is, and then here: otherwise it follows from the framing.
fn read_listener(
    section: &mut Section<'_, '_>,
    base: ListenerSettings,
    prefix: &mut Option<Prefix>,
) -> ListenerSettings {
    let mut listener = base;
    let mut rules = Rules::clone(&listener.rules);
    let words = [("delimited", Framing::Delimited), ("raw", Framing::Raw)];
    section.set(&mut rules.framing, "framing", WORD, |value| value::word(value, &words));
    section.set(&mut rules.delimiter, "delimiter", STRING, value::delimiter);
    let words = [("echo", ReplyMode::Echo), ("fixed", ReplyMode::Fixed), ("none", ReplyMode::None)];
    section.set(&mut rules.reply, "reply", WORD, |value| value::word(value, &words));
    section.set(prefix, "prefix", STRING, |value| value::prefix(value).map(Some));
    rules.prefix = prefix.clone().unwrap_or_else(|| rules.framing.default_prefix());
    section.set(&mut rules.fixed_reply, "fixed_reply", STRING, value::fixed_reply);
    section.set(&mut rules.reply_delay, "reply_delay", TIME, value::time);
    let words = [("discard", Unterminated::Discard), ("accept", Unterminated::Accept)];
    section.set(&mut rules.unterminated, "unterminated", WORD, |value| value::word(value, &words));
    section.set(&mut rules.error_replies, "error_replies", BOOLEAN, value::boolean);
    let words = [("off", LogMessages::Off), ("summary", LogMessages::Summary), ("full", LogMessages::Full)];
    section.set(&mut rules.log_messages, "log_messages", WORD, |value| value::word(value, &words));
    section.set(&mut rules.max_message, "max_message", SIZE, |value| value::size(value, MESSAGE_SIZES));
    section.section("deadlines", |section| read_deadlines(section, &mut rules.deadlines));
    listener.rules = Arc::new(rules);

    let words = [("off", false), ("required", true)];
    section.set(&mut listener.proxy_protocol, "proxy_protocol", WORD, |value| value::word(value, &words));
    section.set(&mut listener.nodelay, "nodelay", BOOLEAN, value::boolean);
    section.set(&mut listener.receive_buffer, "receive_buffer", SIZE, value::buffer_size);
    section.set(&mut listener.send_buffer, "send_buffer", SIZE, value::buffer_size);
    listener
}

fn read_deadlines(section: &mut Section<'_, '_>, deadlines: &mut Deadlines) {
    section.set(&mut deadlines.idle, "idle", TIME_OR_OFF, value::time_or_off);
    section.set(&mut deadlines.read, "read", TIME_OR_OFF, value::time_or_off);
    section.set(&mut deadlines.write, "write", TIME_OR_OFF, value::time_or_off);
    section.set(&mut deadlines.lifetime, "lifetime", TIME_OR_OFF, value::time_or_off);
}

/// Reads a list of addresses; each that is wrong is a problem of its own.
fn read_addresses(section: &mut Section<'_, '_>, addresses: &mut Vec<Address>) {
    let Some(node) = section.value("listen") else { return };
    let Value::Array(nodes) = &node.value else {
        let hint = match &node.value {
            Value::Text(text) if text.parse::<Address>().is_ok() => {
                format!("; write [{}]", super::keys::toml_string(text))
            }
            _ => String::new(),
        };
        return section
            .report_problem(node.span, format!("listen is a list of addresses, not {}{hint}", node.value.kind()));
    };
    for node in nodes {
        match &node.value {
            Value::Text(text) => match text.parse() {
                Ok(address) => addresses.push(address),
                Err(error) => section.report_problem(node.span, format!("listen: {error}")),
            },
            other => section.report_problem(node.span, format!("listen: an address is a string, not {}", other.kind())),
        }
    }
}
