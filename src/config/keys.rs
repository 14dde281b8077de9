//! The keys of the configuration: each with what it takes and its description. [`read`](super::read) and
//! [`print`](super::print) follow these tables.

use super::notation::toml_string;
use super::value::{
    self, BUFFER_MEMORY, Kind, MESSAGE_SIZES, boolean, buffer_size, number, rate_or_off, size, time, time_or_off, word,
};
use super::{Level, Limits, ListenerSettings, Role, Service, Settings, Weight};
use crate::protocol::rules::{Deadlines, Framing, LogMessages, ReplyMode, Rules, Unterminated};

/// Visits the keys of a section.
pub(super) trait KeyVisitor {
    /// Visits the key `name`, which sets `setting`. The description says what it is, its unit, and the words that it takes.
    fn visit<T>(&mut self, name: &'static str, setting: &mut T, kind: &Kind<T>, description: &'static str);
}

/// Defines a function that visits the keys of a section. A key has the name of the field that it sets; every field has a
/// key, except those behind `without`.
macro_rules! section {
    ($(#[$doc:meta])* $section:ident: $settings:ident $(without $($other:ident),*)?
     { $($key:ident: $kind:expr, $description:literal;)* }) => {
        $(#[$doc])*
        pub(super) fn $section(keys: &mut impl KeyVisitor, settings: &mut $settings) {
            let $settings { $($key,)* $($($other: _,)*)? } = settings;
            $(keys.visit(stringify!($key), $key, &$kind, $description);)*
        }
    };
}

/// Visits the keys of `[log]`.
pub(super) fn log(keys: &mut impl KeyVisitor, level: &mut Level) {
    let levels = word(Level::ALL.map(|level| (level.as_str(), level)));
    keys.visit("level", level, &levels, "error, warn, info, debug, trace");
}

section! {
    /// Visits the keys of `[service]`.
    service: Service {
        workers: number(0..=64), "threads that serve connections; 0: one per CPU it may use, 8 at most";
        idle_exit: time_or_off(),
            "a time, or \"off\"; exit after this long without a connection, where systemd listens";
        lame_duck: time(), "a time; before a stop that drains: serve on, but tell load balancers to leave";
        drain_timeout: time(), "a time; when it stops: how long owed replies may take";
        handover: boolean(), "true, false; hand live connections to the next process over a restart";
    }
}

section! {
    /// Visits the keys of `[limits]`.
    limits: Limits {
        connections: number(1..=1_000_000), "at once; when reached, the rest waits in the kernel's backlog";
        connections_per_source: number(0..=1_000_000),
            "one IPv4 address, one IPv6 /64, one UID on a Unix socket; 0: no limit";
        reclaim_idle: time_or_off(), "a time, or \"off\"; when connections is reached: close those idle for so long";
        buffer_memory: size(BUFFER_MEMORY),
            "a size; unfinished messages and unsent replies of all connections together";
        datagrams_per_source: rate_or_off(),
            "a rate, or \"off\"; one IPv4 address, one IPv6 /64, one UID; more are dropped";
    }
}

section! {
    /// Visits the keys of `[defaults]` and `[listener.NAME]` that sessions follow.
    rules: Rules without packets, deadlines {
        framing: word([("delimited", Framing::Delimited), ("raw", Framing::Raw)]),
            "delimited: a delimiter ends a message; raw: up to 512 bytes that came are a message";
        delimiter: value::delimiter(), "1 to 16 bytes; what ends a message";
        reply: word([("echo", ReplyMode::Echo), ("fixed", ReplyMode::Fixed), ("none", ReplyMode::None)]),
            "echo: the prefix and the message; fixed: fixed_reply; none";
        prefix: value::prefix(), "up to 4096 bytes; what an echo begins with; nothing in raw framing, unless it is set";
        fixed_reply: value::fixed_reply(), "up to 4096 bytes; the reply, where it is fixed";
        reply_delay: time(), "a time; after a reply, until the next message of that connection is taken";
        unterminated: word([("discard", Unterminated::Discard), ("accept", Unterminated::Accept)]),
            "discard, accept; bytes after the last delimiter: dropped, or a last message";
        error_replies: boolean(), "true, false; whether a final reply says why a connection is closed";
        log_messages: word([("off", LogMessages::Off), ("summary", LogMessages::Summary), ("full", LogMessages::Full)]),
            "off; summary: an entry per message, cut at 256 bytes; full: whole, before its reply";
        max_message: size(MESSAGE_SIZES), "a size; the longest message, without its delimiter";
    }
}

section! {
    /// Visits the other keys of `[defaults]` and `[listener.NAME]`.
    listener: ListenerSettings without listen, role, weight, rules {
        proxy_protocol: word([("off", false), ("required", true)]),
            "off, required; a PROXY v1 or v2 header starts every connection";
        nodelay: boolean(), "true, false; TCP_NODELAY";
        receive_buffer: buffer_size(), "a size, \"default\" or \"auto\"; SO_RCVBUF";
        send_buffer: buffer_size(), "a size, \"default\" or \"auto\"; SO_SNDBUF";
    }
}

/// The keys that stand in `[listener.NAME]` only.
pub(super) const ONLY_LISTENERS: [&str; 3] = ["listen", "role", "weight"];

/// Visits the keys that stand in `[listener.NAME]` only, but `listen`.
pub(super) fn only_listener(keys: &mut impl KeyVisitor, settings: &mut ListenerSettings) {
    let roles = word(Role::ALL.map(|role| (role.as_str(), role)));
    keys.visit("role", &mut settings.role, &roles, "messages, monitor, agent, control; what its connections are for");
    let weights = word(Weight::ALL.map(|weight| (weight.as_str(), weight)));
    keys.visit("weight", &mut settings.weight, &weights, "constant, free; what the agent answers");
}

section! {
    /// Visits the keys of `[defaults.deadlines]` and `[listener.NAME.deadlines]`.
    deadlines: Deadlines {
        idle: time_or_off(), "a time, or \"off\"; waiting for the first byte of a message";
        read: time_or_off(), "a time, or \"off\"; from the first byte of a message to its delimiter";
        write: time_or_off(), "a time, or \"off\"; the client's kernel takes no byte of what it is owed";
        lifetime: time_or_off(), "a time, or \"off\"; of the whole connection";
    }
}

/// A key with its value.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// The value as TOML.
    pub(super) value: String,
    pub(super) description: &'static str,
}

impl KeyVisitor for Vec<Key> {
    fn visit<T>(&mut self, name: &'static str, setting: &mut T, kind: &Kind<T>, description: &'static str) {
        self.push(Key { name, value: (kind.write)(setting), description });
    }
}

/// A section: its path, and its keys with their values.
pub(super) struct Section {
    pub(super) path: Vec<String>,
    pub(super) keys: Vec<Key>,
}

/// Returns all sections of these settings.
pub(super) fn sections(mut settings: Settings) -> Vec<Section> {
    let mut sections = vec![
        section(&["log"], |keys| log(keys, &mut settings.log_level)),
        section(&["service"], |keys| service(keys, &mut settings.service)),
        section(&["limits"], |keys| limits(keys, &mut settings.limits)),
    ];
    sections.extend(listener_sections(&["defaults"], settings.defaults));
    for (name, listener) in settings.listeners {
        sections.extend(listener_sections(&["listener", &name], listener));
    }
    sections
}

fn section(path: &[&str], visit: impl FnOnce(&mut Vec<Key>)) -> Section {
    let mut keys = Vec::new();
    visit(&mut keys);
    Section { path: path.iter().map(|key| (*key).to_owned()).collect(), keys }
}

fn listener_sections(path: &[&str], mut settings: ListenerSettings) -> Vec<Section> {
    let role = settings.role;
    let mut session_rules = Rules::clone(&settings.rules);
    let own = section(path, |keys| {
        // It has no default.
        if path != ["defaults"] {
            let addresses: Vec<_> = settings.listen.iter().map(|address| toml_string(&address.to_string())).collect();
            keys.push(Key { name: "listen", value: format!("[{}]", addresses.join(", ")), description: "" });
            only_listener(keys, &mut settings);
        }
        rules(keys, &mut session_rules);
        listener(keys, &mut settings);
        keys.retain(|key| role.uses(key.name));
    });
    let deadlines = section(&[path, &["deadlines"]].concat(), |keys| deadlines(keys, &mut session_rules.deadlines));
    std::iter::once(own).chain(role.uses("deadlines").then_some(deadlines)).collect()
}

/// Returns the paths of all keys but [`ONLY_LISTENERS`], with points between their parts.
fn paths() -> impl Iterator<Item = String> {
    let path = |section: Section| {
        let section_path = section.path.join(".");
        section.keys.into_iter().map(move |key| format!("{section_path}.{}", key.name))
    };
    sections(Settings::default()).into_iter().flat_map(path)
}

/// Returns the sections that have a key of this name, as headers.
pub(super) fn sections_of(name: &str) -> Vec<&'static str> {
    let path = paths().find(|path| path.rsplit('.').next() == Some(name)).unwrap_or_default();
    match path.rsplit_once('.').map_or("", |(section, _)| section) {
        _ if ONLY_LISTENERS.contains(&name) => vec!["[listener.NAME]"],
        _ if name == "deadlines" => vec!["[defaults]", "[listener.NAME]"],
        "log" => vec!["[log]"],
        "service" => vec!["[service]"],
        "limits" => vec!["[limits]"],
        "defaults" => vec!["[defaults]", "[listener.NAME]"],
        "defaults.deadlines" => vec!["[defaults.deadlines]", "[listener.NAME.deadlines]"],
        _ => Vec::new(),
    }
}

/// Returns the variable that sets a key, where a name has one underscore in place of two: `LOG_LEVEL` for `LOG__LEVEL`.
pub(super) fn variable_meant_by(name: &str) -> Option<String> {
    paths()
        .find(|path| path.replace('.', "_").to_uppercase() == name)
        .map(|path| path.replace('.', "__").to_uppercase())
}
