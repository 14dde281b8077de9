//! The sources of messages: the command line, once or repeated, or a stream, by lines or in chunks.
//!
//! A thread reads the stream, since reading a terminal or a pipe blocks. It is at most two reads ahead, and may well be
//! blocked in one when the program ends: the program does not wait for it.

use std::io::{self, ErrorKind, Read};
use std::thread;
use std::vec;

use tokio::sync::mpsc;

use super::message::{MAX_MESSAGE, Message};
use super::next_message::{InputError, Next};
use super::repeat::{RepeatedMessages, Repetition};
use crate::protocol::Delimiter;

/// How much is read at once, in bytes.
const READ_SIZE: usize = 64 * 1024;

/// Messages, one after the other.
#[derive(Debug)]
pub struct Messages(InputKind);

#[derive(Debug)]
enum InputKind {
    Arguments(vec::IntoIter<Message>),
    Repeated(Box<RepeatedMessages>),
    Lines(Box<Lines>),
    Chunks(Chunks),
}

impl Messages {
    /// Checks these messages and returns them as an input.
    ///
    /// # Errors
    /// Returns an error if one of them cannot be sent.
    pub fn from_arguments(
        messages: impl IntoIterator<Item = Vec<u8>>,
        delimiter: Option<&Delimiter>,
    ) -> Result<Self, InputError> {
        let check =
            |(number, bytes)| Message::new(bytes, delimiter).map_err(|error| InputError::Argument { number, error });
        let messages = (1..).zip(messages).map(check).collect::<Result<Vec<_>, _>>()?;
        Ok(Self(InputKind::Arguments(messages.into_iter())))
    }

    /// Repeats these messages in rotation, each with its number. The first of each is checked.
    ///
    /// # Errors
    /// Returns an error if one of them cannot be sent.
    pub fn repeated(
        messages: impl IntoIterator<Item = Vec<u8>>,
        delimiter: Option<&Delimiter>,
        repetition: Repetition,
    ) -> Result<Self, InputError> {
        let repeated = RepeatedMessages::new(messages.into_iter().collect(), delimiter, repetition)?;
        Ok(Self(InputKind::Repeated(Box::new(repeated))))
    }

    /// Reads the lines of `input`. Lines end with a line feed, which is not part of the message (a carriage return before it
    /// is); the last one need not have it.
    ///
    /// # Errors
    /// Returns an error if the reader thread cannot be started.
    pub fn lines(input: impl Read + Send + 'static, delimiter: Option<&Delimiter>) -> io::Result<Self> {
        Ok(Self(InputKind::Lines(Box::new(Lines {
            chunks: spawn_reader(input)?,
            delimiter: delimiter.cloned(),
            chunk: Vec::new(),
            offset: 0,
            partial: Vec::new(),
            line_number: 0,
            end: None,
        }))))
    }

    /// Reads chunks of `input`: the bytes of each read, unchanged.
    ///
    /// # Errors
    /// Returns an error if the reader thread cannot be started.
    pub fn chunks(input: impl Read + Send + 'static) -> io::Result<Self> {
        Ok(Self(InputKind::Chunks(Chunks { chunks: spawn_reader(input)?, next: None })))
    }

    /// Returns the next message, if it is there.
    pub(super) fn next(&mut self) -> Result<Next, InputError> {
        match &mut self.0 {
            InputKind::Arguments(messages) => Ok(messages.next().map_or(Next::End, Next::Message)),
            InputKind::Repeated(repeated) => repeated.next(),
            InputKind::Lines(lines) => lines.next(),
            InputKind::Chunks(chunks) => chunks.next(),
        }
    }

    /// Waits until [`Messages::next`] may return something else. Nothing is lost when the future is dropped.
    pub(super) async fn wait(&mut self) {
        match &mut self.0 {
            InputKind::Arguments(_) => {}
            InputKind::Repeated(repeated) => repeated.wait().await,
            InputKind::Lines(lines) => lines.wait().await,
            InputKind::Chunks(chunks) => chunks.next = Some(chunks.chunks.recv().await),
        }
    }
}

/// Cuts chunks into lines.
#[derive(Debug)]
struct Lines {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    delimiter: Option<Delimiter>,
    chunk: Vec<u8>,
    /// How much of the chunk was cut off already.
    offset: usize,
    /// The beginning of a line whose end is not in the chunk.
    partial: Vec<u8>,
    /// The number of the last line.
    line_number: u64,
    /// How the stream ended, when it has.
    end: Option<io::Result<()>>,
}

impl Lines {
    fn next(&mut self) -> Result<Next, InputError> {
        let rest = &self.chunk[self.offset..];
        let line_feed = memchr::memchr(b'\n', rest);
        self.partial.extend_from_slice(&rest[..line_feed.unwrap_or(rest.len())]);
        self.offset += line_feed.map_or(rest.len(), |at| at + 1);
        let is_begun = !self.partial.is_empty();
        if line_feed.is_none() && self.partial.len() <= MAX_MESSAGE {
            match self.end.take() {
                None => return Ok(Next::Pending),
                Some(Err(error)) => return Err(InputError::Read(error)),
                Some(Ok(())) if !is_begun => {
                    self.end = Some(Ok(()));
                    return Ok(Next::End);
                }
                Some(Ok(())) => self.end = Some(Ok(())),
            }
        }
        self.line_number += 1;
        let message = Message::new(std::mem::take(&mut self.partial), self.delimiter.as_ref());
        message.map(Next::Message).map_err(|error| InputError::Line { number: self.line_number, error })
    }

    async fn wait(&mut self) {
        match self.chunks.recv().await {
            Some(Ok(chunk)) => {
                self.chunk = chunk;
                self.offset = 0;
            }
            Some(Err(error)) => self.end = Some(Err(error)),
            None => self.end = Some(Ok(())),
        }
    }
}

/// Takes chunks as they are.
#[derive(Debug)]
struct Chunks {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    /// The chunks that were read; `None` in the channel is the end.
    next: Option<Option<io::Result<Vec<u8>>>>,
}

impl Chunks {
    fn next(&mut self) -> Result<Next, InputError> {
        match self.next.take() {
            None => Ok(Next::Pending),
            Some(None) => Ok(Next::End),
            Some(Some(chunk)) => {
                let message = Message::new(chunk.map_err(InputError::Read)?, None);
                message.map(Next::Message).map_err(|error| InputError::Read(io::Error::other(error)))
            }
        }
    }
}

fn spawn_reader(input: impl Read + Send + 'static) -> io::Result<mpsc::Receiver<io::Result<Vec<u8>>>> {
    let (sender, chunks) = mpsc::channel(1);
    thread::Builder::new().name("input".to_owned()).spawn(move || read_chunks(input, &sender))?;
    Ok(chunks)
}

/// Reads chunks until the end, or until the receiver is gone.
fn read_chunks(mut input: impl Read, chunks: &mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut chunk = vec![0; READ_SIZE];
        let result = match input.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => {
                chunk.truncate(count);
                Ok(chunk)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = result.is_err();
        if chunks.blocking_send(result).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Returns all lines of an input that gives at most `size` bytes per read, and its error.
    async fn lines(input: &'static [u8], size: usize) -> (Vec<Vec<u8>>, Option<InputError>) {
        struct Slowly(Cursor<&'static [u8]>, usize);
        impl Read for Slowly {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let size = self.1.min(buffer.len());
                self.0.read(&mut buffer[..size])
            }
        }
        let mut messages = Messages::lines(Slowly(Cursor::new(input), size), Some(&Delimiter::default())).unwrap();
        let mut lines = Vec::new();
        loop {
            match messages.next() {
                Ok(Next::Message(message)) => lines.push(message.as_bytes().to_vec()),
                Ok(Next::Pending) => messages.wait().await,
                Ok(Next::End) => return (lines, None),
                Err(error) => return (lines, Some(error)),
            }
        }
    }

    #[tokio::test]
    async fn lines_do_not_depend_on_the_size_of_reads() {
        for size in [1, 2, 3, 100] {
            for (input, expected) in [
                (&b""[..], &[][..]),
                (b"\n", &[&b""[..]][..]),
                (b"a", &[b"a"]),
                (b"a\n", &[b"a"]),
                (b"a\n\nbcd\r\ne", &[b"a", b"", b"bcd\r", b"e"]),
                (b"a\n\n", &[b"a", b""]),
            ] {
                let (lines, error) = lines(input, size).await;
                assert_eq!(lines, expected, "{input:?} in reads of {size}");
                assert!(error.is_none(), "{error:?}");
            }
        }
    }

    #[tokio::test]
    async fn line_with_the_delimiter_is_an_error_after_the_lines_before_it() {
        let (lines, error) = lines(b"a\nb\nc\td\ne\n", 3).await;
        assert_eq!(lines, [b"a", b"b"]);
        let error = error.expect("the third line is refused").to_string();
        assert!(error.starts_with("line 3 contains the delimiter \"\\t\""), "{error}");
    }

    #[tokio::test]
    async fn a_stream_that_cannot_be_read_is_an_error() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(ErrorKind::IsADirectory.into())
            }
        }
        let mut messages = Messages::lines(Broken, Some(&Delimiter::default())).unwrap();
        messages.wait().await;
        assert_eq!(messages.next().expect_err("it is broken").to_string(), "cannot read stdin: is a directory");
    }
}
