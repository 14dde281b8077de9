//! The output of the replies.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use serde::Serialize;

use super::json::{self, Text};
use crate::escape::{Controls, is_unsafe, write_escaped};

/// A reply, right or wrong.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    /// As it came, with its prefix, without the delimiter.
    pub bytes: &'a [u8],
    /// The message that it should answer; `None` when no reply was awaited.
    pub message: Option<&'a [u8]>,
    /// Whether it is the right one.
    pub ok: bool,
    /// Since the message was sent.
    pub round_trip: Option<Duration>,
}

/// A destination for replies.
pub trait ReplySink {
    /// Writes a reply.
    ///
    /// # Errors
    /// Returns an error if the reply cannot be written, which ends the exchange.
    fn write_reply(&mut self, reply: Reply<'_>) -> io::Result<()>;

    /// Flushes the replies: no more have come for the moment.
    ///
    /// # Errors
    /// Returns an error in the same cases as [`ReplySink::write_reply`].
    fn flush(&mut self) -> io::Result<()>;
}

/// How replies are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the right ones, as they came, each on a line. (For a terminal, see [`TerminalWriter`].) The wrong one that ends the exchange is left to its
    /// error.
    Text,
    /// The bytes of the right ones, as they came, and nothing between them.
    Raw,
    /// An object for each, on a line: `{"reply":"server got:a","message":"a","ok":true,"rtt_us":57}`. What is not UTF-8
    /// becomes U+FFFD; what a terminal would obey or not show is escaped. `message` and `rtt_us` are `null` where no reply
    /// was awaited.
    Json,
}

/// Prints replies. They are written together as far as they came together.
#[derive(Debug)]
pub struct Printer<W: Write> {
    output: BufWriter<W>,
    format: Format,
}

impl<W: Write> Printer<W> {
    /// Prints to `output`.
    pub fn new(output: W, format: Format) -> Self {
        Self { output: BufWriter::with_capacity(64 * 1024, output), format }
    }
}

impl<W: Write> ReplySink for Printer<W> {
    fn write_reply(&mut self, reply: Reply<'_>) -> io::Result<()> {
        match self.format {
            Format::Text | Format::Raw if !reply.ok => Ok(()),
            Format::Raw => self.output.write_all(reply.bytes),
            Format::Text => {
                self.output.write_all(reply.bytes)?;
                self.output.write_all(b"\n")
            }
            Format::Json => json::write_line(&mut self.output, &ReplyObject::from(reply)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Writes text to a terminal. What the terminal would obey or not show becomes an escape (`\u{1b}`, `\xff`), except line
/// feeds and tabs.
#[derive(Debug)]
pub struct TerminalWriter<W: Write> {
    terminal: W,
    /// The beginning of a character whose other bytes have not come.
    partial: Vec<u8>,
}

impl<W: Write> TerminalWriter<W> {
    /// Writes to `terminal`.
    pub fn new(terminal: W) -> Self {
        Self { terminal, partial: Vec::new() }
    }

    fn write_text(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut text = String::with_capacity(bytes.len());
        // Writing to a string cannot fail.
        let _ = write_escaped(&mut text, bytes, Controls::Unicode, |c| !is_unsafe(c) || matches!(c, '\n' | '\t'));
        self.terminal.write_all(text.as_bytes())
    }
}

impl<W: Write> Write for TerminalWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = std::mem::take(&mut self.partial);
        all.extend_from_slice(bytes);
        self.partial = all.split_off(all.len() - incomplete_len(&all));
        self.write_text(&all)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.terminal.flush()
    }
}

impl<W: Write> Drop for TerminalWriter<W> {
    fn drop(&mut self) {
        // The other bytes have not come. An error has nowhere to go.
        let partial = std::mem::take(&mut self.partial);
        let _ = self.write_text(&partial).and_then(|()| self.terminal.flush());
    }
}

/// Returns how many bytes at the end of `bytes` are the beginning of a character.
fn incomplete_len(bytes: &[u8]) -> usize {
    let is_incomplete = |len: &usize| {
        std::str::from_utf8(&bytes[bytes.len() - len..])
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=bytes.len().min(3)).find(is_incomplete).unwrap_or(0)
}

/// A reply in JSON.
#[derive(Serialize)]
struct ReplyObject<'a> {
    reply: Text<'a>,
    message: Option<Text<'a>>,
    ok: bool,
    rtt_us: Option<u128>,
}

impl<'a> From<Reply<'a>> for ReplyObject<'a> {
    fn from(reply: Reply<'a>) -> Self {
        let rtt_us = reply.round_trip.map(|time| time.as_micros());
        Self { reply: Text(reply.bytes), message: reply.message.map(Text), ok: reply.ok, rtt_us }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(format: Format, reply: Reply<'_>) -> String {
        let mut output = Vec::new();
        let mut printer = Printer::new(&mut output, format);
        printer.write_reply(reply).unwrap();
        printer.flush().unwrap();
        drop(printer);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn json_escapes_a_reply_into_one_line() {
        for (bytes, string) in [
            (&b"aaaa"[..], r#""aaaa""#),
            (b"\"\\/\n\r\t\0\x1f\x7f", "\"\\\"\\\\/\\n\\r\\t\\u0000\\u001f\\u007f\""),
            ("é😀".as_bytes(), r#""é😀""#),
            (b"a\xffb", "\"a\u{fffd}b\""),
            (b"\x9b2J", "\"\u{fffd}2J\""),
            ("\u{9b}2J\u{202e}\u{2028}\u{200b}".as_bytes(), r#""\u009b2J\u202e\u2028\u200b""#),
            ("\u{e0041}".as_bytes(), r#""\udb40\udc41""#),
        ] {
            let reply =
                Reply { bytes, message: Some(bytes), ok: true, round_trip: Some(Duration::from_micros(1_234_567)) };
            let expected = format!("{{\"reply\":{string},\"message\":{string},\"ok\":true,\"rtt_us\":1234567}}\n");
            assert_eq!(print(Format::Json, reply), expected);
        }
    }

    #[test]
    fn unrequested_reply_has_null_in_json_and_is_not_printed_as_text() {
        let reply = Reply { bytes: b"x", message: None, ok: false, round_trip: None };
        assert_eq!(print(Format::Json, reply), "{\"reply\":\"x\",\"message\":null,\"ok\":false,\"rtt_us\":null}\n");
        assert_eq!(print(Format::Text, reply), "");
    }

    #[test]
    fn a_terminal_is_shown_escapes_however_the_text_is_cut() {
        let text = "a\té日本😀\n\u{1b}[2J\u{9b}2J\u{202e}\u{200b}\r\n\\\"";
        let bytes = [text.as_bytes(), b"\x9b\xff\xe6\x97"].concat();
        let shown = "a\té日本😀\n\\u{1b}[2J\\u{9b}2J\\u{202e}\\u{200b}\\r\n\\\"\\x9b\\xff\\xe6\\x97";
        for size in 1..=bytes.len() {
            let mut output = Vec::new();
            let mut writer = TerminalWriter::new(&mut output);
            for piece in bytes.chunks(size) {
                writer.write_all(piece).unwrap();
            }
            drop(writer);
            assert_eq!(String::from_utf8(output).unwrap(), shown, "cut every {size}");
        }
    }
}
