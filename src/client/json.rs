//! JSON, as far as it is needed here.

use std::fmt::Write;

use crate::escape::is_unsafe;

/// Appends bytes as a JSON string (RFC 8259). What a terminal obeys or does not show becomes an escape; what is not UTF-8
/// becomes U+FFFD.
pub(super) fn push_json_string(line: &mut String, bytes: &[u8]) {
    line.push('"');
    for character in String::from_utf8_lossy(bytes).chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            _ if is_unsafe(character) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(line, "\\u{unit:04x}");
                }
            }
            _ => line.push(character),
        }
    }
    line.push('"');
}
