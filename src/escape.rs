//! Escapes text of others before a person sees it, so that it stays on its line and does nothing to a terminal.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Returns whether a character acts on the terminal or cannot be seen, instead of being shown: controls (C0, DEL, C1),
/// format characters (direction, joining, tags), separators of lines and paragraphs, and what has no width (Unicode's
/// `Default_Ignorable_Code_Point`).
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    // Most text is ASCII.
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{890}'..='\u{891}'
                | '\u{8e2}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{110bd}'
                | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// The notation of controls of ASCII without a letter of their own (`\n` has one).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controls {
    /// As characters of Rust: `\u{1b}`, `\0`.
    Unicode,
    /// As bytes: `\x1b`, `\x00`.
    Hex,
}

/// Writes bytes as text. Characters for which `is_kept` returns true are written as they are. Of the others, quotation
/// marks, backslashes and what is not shown become escapes (`\"`, `\n`, `\u{202e}`), and so do bytes that are not UTF-8
/// (`\xff`).
///
/// # Errors
/// Returns an error if `output` does.
pub fn write_escaped(
    output: &mut impl Write,
    bytes: &[u8],
    controls: Controls,
    is_kept: impl Fn(char) -> bool,
) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let has_letter = matches!(c, '\t' | '\n' | '\r');
            if is_kept(c) {
                output.write_char(c)?;
            } else if c.is_ascii_control() && !has_letter && controls == Controls::Hex {
                write!(output, "\\x{:02x}", u32::from(c))?;
            } else if is_unsafe(c) && !c.is_ascii() {
                write!(output, "{}", c.escape_unicode())?;
            } else {
                c.escape_debug().try_for_each(|c| output.write_char(c))?;
            }
        }
        for byte in chunk.invalid() {
            write!(output, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// Escapes the characters of a text for which [`is_unsafe`] returns true and `is_kept` does not.
#[must_use]
pub fn escape_unsafe(text: &str, controls: Controls, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_kept = |c| !is_unsafe(c) || is_kept(c);
    if text.chars().all(is_kept) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    // Writing to a string cannot fail.
    let _ = write_escaped(&mut escaped, text.as_bytes(), controls, is_kept);
    Cow::Owned(escaped)
}

/// Returns bytes on one line, in quotation marks: text as it is, the rest as escapes.
#[must_use]
pub fn quote(bytes: &[u8]) -> String {
    let mut quoted = String::with_capacity(bytes.len() + 2);
    quoted.push('"');
    // Writing to a string cannot fail.
    let _ = write_escaped(&mut quoted, bytes, Controls::Unicode, |c| c == '\'');
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_or_has_no_width_is_unsafe_and_text_is_not() {
        let unsafe_characters = "\0\t\n\r\x1b\x7f\u{80}\u{85}\u{9b}\u{ad}\u{61c}\u{200b}\u{200d}\u{200e}\u{200f}\u{2028}\
                                 \u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{3164}\u{fe0f}\u{feff}\u{e0041}";
        for c in unsafe_characters.chars() {
            assert!(is_unsafe(c), "{c:?}");
        }
        for c in " aZ~\\\"é\u{301}日本हिन्दीשלום😀\u{a0}\u{fffd}".chars() {
            assert!(!is_unsafe(c), "{c:?}");
        }
    }

    #[test]
    fn bytes_become_text_in_either_notation() {
        let bytes = "a\n\t\"\\\0\x1b\u{9b}\u{202e}\u{3164}'é".as_bytes();
        let bytes = [bytes, b"\xff\xc3"].concat();
        assert_eq!(quote(&bytes), r#""a\n\t\"\\\0\u{1b}\u{9b}\u{202e}\u{3164}'é\xff\xc3""#);
        let mut hex = String::new();
        write_escaped(&mut hex, &bytes, Controls::Hex, |_| false).expect("a string takes everything");
        assert_eq!(hex, r#"a\n\t\"\\\x00\x1b\u{9b}\u{202e}\u{3164}\'é\xff\xc3"#);
    }

    #[test]
    fn a_text_without_unsafe_characters_is_not_copied() {
        assert!(matches!(escape_unsafe("naïve \\ \"quoted\" 日本", Controls::Hex, |_| false), Cow::Borrowed(_)));
        assert!(matches!(escape_unsafe("a\nb", Controls::Hex, |c| c == '\n'), Cow::Borrowed(_)));
        assert_eq!(escape_unsafe("a\n\x07b", Controls::Hex, |c| c == '\n'), "a\n\\x07b");
    }
}
