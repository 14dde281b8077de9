//! Bytes of the other side as text: escaped, so that they stay on their line and a terminal does not obey them; in our
//! sentences also cut.

use std::fmt;
use std::io;

use crate::escape::{Controls, write_escaped};

/// At most this many bytes of a quotation are shown.
pub(super) const MAX_QUOTED: usize = 200;

/// Bytes in quotation marks; text as it is, the rest as escapes, at most [`MAX_QUOTED`] bytes of it.
pub(super) struct Quoted<'a>(pub(super) &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..MAX_QUOTED) {
            Some(beginning) if self.0.len() > MAX_QUOTED => {
                write!(f, "\"{}…\" ({} bytes)", Escaped(beginning), self.0.len())
            }
            _ => write!(f, "\"{}\"", Escaped(self.0)),
        }
    }
}

/// Bytes without quotation marks; text as it is, the rest as escapes, at most [`MAX_QUOTED`] bytes of it.
pub(super) struct Cut<'a>(pub(super) &'a [u8]);

impl fmt::Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..MAX_QUOTED) {
            Some(beginning) if self.0.len() > MAX_QUOTED => {
                write!(f, "{}… ({} bytes)", Escaped(beginning), self.0.len())
            }
            _ => Escaped(self.0).fmt(f),
        }
    }
}

/// All of the bytes, escaped, without quotation marks.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, self.0, Controls::Unicode, |character| character == '\'')
    }
}

/// Returns the text of an I/O error without its number.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_shown_without_their_number() {
        assert_eq!(reason(&io::Error::from_raw_os_error(111)), "Connection refused");
        assert_eq!(reason(&io::ErrorKind::TimedOut.into()), "timed out");
    }

    #[test]
    fn quoting_keeps_text_and_escapes_control_bytes() {
        for (bytes, quoted) in [
            (&b"aaaa"[..], r#""aaaa""#),
            (b"", r#""""#),
            (b"it's\ta\r\n\"line\"", r#""it's\ta\r\n\"line\"""#),
            ("é".as_bytes(), r#""é""#),
            (b"\xff\0", r#""\xff\0""#),
            (b"\x1b[2J", r#""\u{1b}[2J""#),
            (
                "\u{9b}2J\u{202e}\u{2028}\u{200b}\u{3164}\u{e0041}".as_bytes(),
                r#""\u{9b}2J\u{202e}\u{2028}\u{200b}\u{3164}\u{e0041}""#,
            ),
            (b"\x9b2J", r#""\x9b2J""#),
        ] {
            assert_eq!(Quoted(bytes).to_string(), quoted);
        }
        assert_eq!(Quoted(&[b'x'; 200]).to_string(), format!("\"{}\"", "x".repeat(200)));
        assert_eq!(Quoted(&[b'x'; 201]).to_string(), format!("\"{}…\" (201 bytes)", "x".repeat(200)));
        assert_eq!(Cut(&[b'x'; 200]).to_string(), "x".repeat(200));
        assert_eq!(Cut(&[b'x'; 201]).to_string(), format!("{}… (201 bytes)", "x".repeat(200)));
    }
}
