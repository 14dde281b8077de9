//! Escapes text of others, so that it stays on its line and does nothing to a terminal.

use std::borrow::Cow;
use std::fmt::Write;

use crate::escape::is_unsafe;

/// Escapes characters of `text` that do something instead of being seen; if it is `multiline`, line feeds and tabs
/// stay.
pub(super) fn escape_control(text: &str, multiline: bool) -> Cow<'_, str> {
    let is_kept = |c: char| !is_unsafe(c) || multiline && matches!(c, '\n' | '\t');
    if text.chars().all(is_kept) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_kept(c) { out.push(c) } else { escape(&mut out, c) }
    }
    Cow::Owned(out)
}

/// Escapes any bytes as text in quotation marks, in one line, so that no two are the same: text stays readable, all else
/// becomes `\n`, `\x1b`, `\u{202e}`.
#[must_use]
pub(super) fn escape_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 16);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                c if is_unsafe(c) || matches!(c, '\\' | '"') => escape(&mut out, c),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

fn escape(out: &mut String, c: char) {
    // Writing to a String cannot fail.
    let _ = match c {
        '\0'..='\x7f' => write!(out, "{}", u8::try_from(c).unwrap_or_default().escape_ascii()),
        c => write!(out, "{}", c.escape_unicode()),
    };
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
