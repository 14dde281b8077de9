//! JSON, as far as it is needed here.

use std::fmt::Write;

/// Bytes as a JSON string (RFC 8259).
pub(super) fn push_json_string(line: &mut String, bytes: &[u8]) {
    line.push('"');
    for character in String::from_utf8_lossy(bytes).chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '\0'..='\x1f' => {
                let _ = write!(line, "\\u{:04x}", u32::from(character));
            }
            _ => line.push(character),
        }
    }
    line.push('"');
}
