//! JSON for programs, a value on a line (docs/echoctl-json.md): serde_json with the escapes and numbers of ours.

use std::fmt::Display;
use std::io::{self, Write};

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};
use serde_json::value::RawValue;

use crate::escape::is_unsafe;

/// Writes a value and a line feed, in one call.
///
/// # Errors
/// Returns an error if it cannot be written.
pub(super) fn write_line(output: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = Vec::with_capacity(256);
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut line, TerminalSafe))?;
    line.push(b'\n');
    output.write_all(&line)
}

/// Writes JSON in which all characters are escaped that a terminal obeys or does not show.
struct TerminalSafe;

impl Formatter for TerminalSafe {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, output: &mut W, fragment: &str) -> io::Result<()> {
        let mut written = 0;
        for (at, character) in fragment.char_indices().filter(|(_, character)| is_unsafe(*character)) {
            output.write_all(&fragment.as_bytes()[written..at])?;
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(output, "\\u{unit:04x}")?;
            }
            written = at + character.len_utf8();
        }
        output.write_all(&fragment.as_bytes()[written..])
    }

    fn write_char_escape<W: Write + ?Sized>(&mut self, output: &mut W, escape: CharEscape) -> io::Result<()> {
        // All controls but line feeds, carriage returns and tabs are written alike.
        let escape = match escape {
            CharEscape::Backspace => CharEscape::AsciiControl(8),
            CharEscape::FormFeed => CharEscape::AsciiControl(12),
            other => other,
        };
        CompactFormatter.write_char_escape(output, escape)
    }
}

/// Bytes as a string. What is not UTF-8 becomes U+FFFD.
pub(super) struct Text<'a>(pub(super) &'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(self.0))
    }
}

/// A number with the digits that it is given: serde_json would write 5.0 for 5.000.
pub(super) struct Number(String);

impl Number {
    /// Returns a number as it is displayed.
    pub(super) fn new(number: impl Display) -> Self {
        Self(number.to_string())
    }

    /// Returns a number with this many decimals.
    pub(super) fn with_decimals(number: f64, decimals: usize) -> Self {
        Self(format!("{number:.decimals$}"))
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: &RawValue = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        digits.serialize(serializer)
    }
}
