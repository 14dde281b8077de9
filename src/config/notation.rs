//! Keys and strings as TOML writes them.

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
