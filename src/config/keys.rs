//! The keys of the configuration: where they stand and what they are. [`read`](super::read) knows what they take,
//! [`print`](super::print) how they are written.

/// A key, for people.
pub(super) struct Key {
    /// Where it stands: `log`; what stands in `defaults` stands in each `listener.NAME`, too.
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    /// The description: what it is, its unit, and the words that it takes.
    pub(super) description: &'static str,
}

const fn key(section: &'static str, name: &'static str, description: &'static str) -> Key {
    Key { section, name, description }
}

/// All of them but `listen`, which has no default and stands in `[listener.NAME]` only.
pub(super) const KEYS: [Key; 28] = [
    key("log", "level", "error, warn, info, debug, trace"),
    key("service", "workers", "threads that serve connections; 0: one per CPU it may use, 8 at most"),
    key("service", "idle_exit", "a time, or \"off\"; exit after this long without a connection, where systemd listens"),
    key("service", "drain_timeout", "a time; when it stops: how long owed replies may take"),
    key("service", "handover", "true, false; hand live connections to the next process over a restart"),
    key("limits", "connections", "at once; when reached, the rest waits in the kernel's backlog"),
    key("limits", "connections_per_source", "one IPv4 address, one IPv6 /64, one UID on a Unix socket; 0: no limit"),
    key("limits", "reclaim_idle", "a time, or \"off\"; when connections is reached: close those idle for so long"),
    key("limits", "buffer_memory", "a size; unfinished messages and unsent replies of all connections together"),
    key(
        "limits",
        "datagrams_per_source",
        "a rate, or \"off\"; one IPv4 address, one IPv6 /64, one UID; more are dropped",
    ),
    key("defaults", "framing", "delimited: a delimiter ends a message; raw: up to 512 bytes that came are a message"),
    key("defaults", "delimiter", "1 to 16 bytes; what ends a message"),
    key("defaults", "reply", "echo: the prefix and the message; fixed: fixed_reply; none"),
    key("defaults", "prefix", "up to 4096 bytes; what an echo begins with; nothing in raw framing, unless it is set"),
    key("defaults", "fixed_reply", "up to 4096 bytes; the reply, where it is fixed"),
    key("defaults", "reply_delay", "a time; after a reply, until the next message of that connection is taken"),
    key("defaults", "unterminated", "discard, accept; bytes after the last delimiter: dropped, or a last message"),
    key("defaults", "error_replies", "true, false; whether a final reply says why a connection is closed"),
    key(
        "defaults",
        "log_messages",
        "off; summary: an entry per message, cut at 256 bytes; full: whole, before its reply",
    ),
    key("defaults", "max_message", "a size; the longest message, without its delimiter"),
    key("defaults", "proxy_protocol", "off, required; a PROXY v1 or v2 header starts every connection"),
    key("defaults", "nodelay", "true, false; TCP_NODELAY"),
    key("defaults", "receive_buffer", "a size, \"default\" or \"auto\"; SO_RCVBUF"),
    key("defaults", "send_buffer", "a size, \"default\" or \"auto\"; SO_SNDBUF"),
    key("defaults.deadlines", "idle", "a time, or \"off\"; waiting for the first byte of a message"),
    key("defaults.deadlines", "read", "a time, or \"off\"; from the first byte of a message to its delimiter"),
    key("defaults.deadlines", "write", "a time, or \"off\"; the client's kernel takes no byte of what it is owed"),
    key("defaults.deadlines", "lifetime", "a time, or \"off\"; of the whole connection"),
];

/// Returns the sections that have a key of this name, as headers.
pub(super) fn sections_of(name: &str) -> Vec<&'static str> {
    let section = match name {
        "listen" => return vec!["[listener.NAME]"],
        "deadlines" => "defaults",
        _ => KEYS.iter().find(|key| key.name == name).map_or("", |key| key.section),
    };
    match section {
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
    let variable =
        |key: &Key, between: &str| format!("{}.{}", key.section, key.name).replace('.', between).to_uppercase();
    KEYS.iter().find(|key| variable(key, "_") == name).map(|key| variable(key, "__"))
}

/// Returns the description of a key.
pub(super) fn description(section: &str, name: &str) -> &'static str {
    KEYS.iter().find(|key| key.section == section && key.name == name).map_or("", |key| key.description)
}

/// Formats a key for a header or before a `=`: in quotes where TOML needs them.
pub(super) fn toml_key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(is_bare) { key.to_owned() } else { toml_string(key) }
}

/// Formats a TOML string, on one line.
pub(super) fn toml_string(text: &str) -> String {
    let mut written = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => written.push_str("\\\""),
            '\\' => written.push_str("\\\\"),
            '\t' => written.push_str("\\t"),
            '\n' => written.push_str("\\n"),
            '\r' => written.push_str("\\r"),
            character if character.is_control() => written.push_str(&format!("\\u{:04X}", u32::from(character))),
            character => written.push(character),
        }
    }
    written.push('"');
    written
}
