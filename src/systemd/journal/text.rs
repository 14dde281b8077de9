//! Escapes text of others in the notation of the journal's lines.

use std::borrow::Cow;

use crate::escape::{Controls, escape_unsafe, is_unsafe, write_escaped};

/// Escapes characters of `text` that do something instead of being seen; if it is `multiline`, line feeds and tabs
/// stay.
pub(super) fn escape_control(text: &str, multiline: bool) -> Cow<'_, str> {
    escape_unsafe(text, Controls::Hex, |c| multiline && matches!(c, '\n' | '\t'))
}

/// Escapes any bytes as text in quotation marks, in one line, so that no two are the same: text stays readable, all else
/// becomes `\n`, `\x1b`, `\u{202e}`.
#[must_use]
pub(super) fn escape_bytes(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len() + 16);
    escaped.push('"');
    // Writing to a string cannot fail.
    let _ = write_escaped(&mut escaped, bytes, Controls::Hex, |c| !is_unsafe(c) && !matches!(c, '\\' | '"'));
    escaped.push('"');
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_text_is_not() {
        assert!(matches!(escape_control("naïve \\ \"quoted\" 日本", false), Cow::Borrowed(_)));
        assert_eq!(escape_control("a\nPRIORITY=0\r\x1b[2J\u{202e}b", false), "a\\nPRIORITY=0\\r\\x1b[2J\\u{202e}b");
        assert_eq!(escape_control("one\n\ttwo\x07", true), "one\n\ttwo\\x07");
    }

    #[test]
    fn escaped_bytes_are_one_line_and_unambiguous() {
        assert_eq!(escape_bytes(b"na\xc3\xafve\t\\n\n\xff\xc3\x00"), "\"na\u{ef}ve\\t\\\\n\\n\\xff\\xc3\\x00\"");
        assert_eq!(escape_bytes("\u{2028}x".as_bytes()), "\"\\u{2028}x\"");
        let mut seen = std::collections::HashSet::new();
        for first in 0..=255_u8 {
            for second in [b'x', b'\\', b'"', b'n', b'\n', 0, 0xff, 0xc3, 0xaf] {
                let line = escape_bytes(&[first, second]);
                assert!(!line.chars().any(char::is_control), "{line:?}");
                assert!(seen.insert(line), "{first} {second}");
            }
        }
    }
}
