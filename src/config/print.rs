//! [`Settings`] as a document that can be loaded again, with every key.

use super::keys::{description, toml_key, toml_string};
use super::{BufferSize, ListenerSettings, Settings};
use crate::protocol::rules::{Framing, LogMessages, ReplyMode, TimeSpan, Unterminated};
use crate::units::{format_rate, format_size};

/// The column where comments begin, if there is room.
const COMMENT_COLUMN: usize = 31;

/// A section: its path, and its keys with their values.
struct Section {
    path: Vec<String>,
    keys: Vec<(&'static str, String)>,
}

/// Prints all settings. `comment` is given the path of a section and a key in it.
pub(super) fn document(settings: &Settings, comment: impl Fn(&[&str], &str) -> String) -> String {
    let mut text = String::new();
    for Section { path, keys } in sections(settings) {
        let path: Vec<_> = path.iter().map(String::as_str).collect();
        if !text.is_empty() {
            text.push('\n');
        }
        let header: Vec<_> = path.iter().map(|key| toml_key(key)).collect();
        text.push_str(&format!("[{}]\n", header.join(".")));
        for (key, value) in keys {
            let (line, comment) = (format!("{key} = {value}"), comment(&path, key));
            if comment.is_empty() {
                text.push_str(&format!("{line}\n"));
            } else {
                text.push_str(&format!("{line:COMMENT_COLUMN$} # {comment}\n"));
            }
        }
    }
    text
}

/// Prints the defaults, each key with its explanation.
pub(super) fn defaults() -> String {
    let text = document(&Settings::default(), |section, key| description(&section.join("."), key).to_owned());
    format!(
        "{text}\n\
         # [listener.NAME] is the section of the sockets of this name. It takes every key of [defaults], and\n\
         # [listener.NAME.deadlines] those of [defaults.deadlines]; what it does not set is as in the defaults. Only there:\n\
         # listen = [\"tcp:127.0.0.1:8085\", \"unix:/run/echoed.sock\"] says where to listen without systemd.\n"
    )
}

fn sections(settings: &Settings) -> Vec<Section> {
    let section = |path: &[&str], keys| Section { path: path.iter().map(|key| (*key).to_owned()).collect(), keys };
    let (service, limits) = (&settings.service, &settings.limits);
    let mut sections = vec![
        section(&["log"], vec![("level", toml_string(settings.log_level.as_str()))]),
        section(
            &["service"],
            vec![
                ("workers", service.workers.to_string()),
                ("idle_exit", time(service.idle_exit.as_ref())),
                ("drain_timeout", time(Some(&service.drain_timeout))),
                ("handover", service.handover.to_string()),
            ],
        ),
        section(
            &["limits"],
            vec![
                ("connections", limits.connections.to_string()),
                ("connections_per_source", limits.connections_per_source.to_string()),
                ("reclaim_idle", time(limits.reclaim_idle.as_ref())),
                ("buffer_memory", size(limits.buffer_memory)),
                ("datagrams_per_source", rate(limits.datagrams_per_source)),
            ],
        ),
        section(&["defaults"], listener(&settings.defaults)),
        section(&["defaults", "deadlines"], deadlines(&settings.defaults)),
    ];
    for (name, one) in &settings.listeners {
        let mut keys = listener(one);
        let addresses: Vec<_> = one.listen.iter().map(|address| toml_string(&address.to_string())).collect();
        keys.insert(0, ("listen", format!("[{}]", addresses.join(", "))));
        sections.push(section(&["listener", name], keys));
        sections.push(section(&["listener", name, "deadlines"], deadlines(one)));
    }
    sections
}

fn listener(listener: &ListenerSettings) -> Vec<(&'static str, String)> {
    let rules = &listener.rules;
    let text = |bytes: &[u8]| toml_string(&String::from_utf8_lossy(bytes));
    vec![
        (
            "framing",
            toml_string(match rules.framing {
                Framing::Delimited => "delimited",
                Framing::Raw => "raw",
            }),
        ),
        ("delimiter", text(rules.delimiter.as_bytes())),
        (
            "reply",
            toml_string(match rules.reply {
                ReplyMode::Echo => "echo",
                ReplyMode::Fixed => "fixed",
                ReplyMode::None => "none",
            }),
        ),
        ("prefix", text(rules.prefix.as_bytes())),
        ("fixed_reply", text(&rules.fixed_reply)),
        ("reply_delay", time(Some(&rules.reply_delay))),
        (
            "unterminated",
            toml_string(match rules.unterminated {
                Unterminated::Discard => "discard",
                Unterminated::Accept => "accept",
            }),
        ),
        ("error_replies", rules.error_replies.to_string()),
        (
            "log_messages",
            toml_string(match rules.log_messages {
                LogMessages::Off => "off",
                LogMessages::Summary => "summary",
                LogMessages::Full => "full",
            }),
        ),
        ("max_message", size(rules.max_message)),
        ("proxy_protocol", toml_string(if listener.proxy_protocol { "required" } else { "off" })),
        ("nodelay", listener.nodelay.to_string()),
        ("receive_buffer", buffer_size(listener.receive_buffer)),
        ("send_buffer", buffer_size(listener.send_buffer)),
    ]
}

fn buffer_size(value: BufferSize) -> String {
    match value {
        BufferSize::Default => toml_string("default"),
        BufferSize::Auto => toml_string("auto"),
        BufferSize::Bytes(bytes) => size(bytes),
    }
}

fn deadlines(listener: &ListenerSettings) -> Vec<(&'static str, String)> {
    let deadlines = &listener.rules.deadlines;
    vec![
        ("idle", time(deadlines.idle.as_ref())),
        ("read", time(deadlines.read.as_ref())),
        ("write", time(deadlines.write.as_ref())),
        ("lifetime", time(deadlines.lifetime.as_ref())),
    ]
}

fn time(time_span: Option<&TimeSpan>) -> String {
    toml_string(&time_span.map_or("off".to_owned(), ToString::to_string))
}

fn rate(per_second: Option<u32>) -> String {
    toml_string(&per_second.map_or("off".to_owned(), format_rate))
}

fn size(bytes: usize) -> String {
    toml_string(&format_size(bytes as u64))
}
