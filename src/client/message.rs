//! A valid message: bytes that the server will take for exactly one message.

use std::fmt;

use crate::protocol::Delimiter;
use crate::protocol::framer::{self, Frame, Framer};

/// The longest message, in bytes: the largest `max_message` that a daemon can be given.
pub const MAX_MESSAGE: usize = framer::MAX_MESSAGE;

/// One message and its delimiter, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    terminated: Vec<u8>,
    len: usize,
}

/// Why some bytes cannot be sent as one message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageError {
    /// The server would find the delimiter before their end.
    Delimiter(Delimiter),
    /// More than [`MAX_MESSAGE`] bytes.
    TooLong,
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delimiter(delimiter) => {
                write!(
                    f,
                    "contains the delimiter {delimiter:?}, which would end it early; is another --delimiter meant?"
                )
            }
            Self::TooLong => write!(f, "exceeds {MAX_MESSAGE} bytes, the most that a message can have"),
        }
    }
}

impl std::error::Error for MessageError {}

impl Message {
    /// Makes a message of these bytes. Without a delimiter, they are sent unchanged.
    ///
    /// # Errors
    /// Returns an error if they contain the delimiter, end so that the delimiter is found too early (`a` before `aa`), or
    /// are more than [`MAX_MESSAGE`].
    pub fn new(bytes: Vec<u8>, delimiter: Option<&Delimiter>) -> Result<Self, MessageError> {
        let len = bytes.len();
        let Some(delimiter) = delimiter else {
            return if len <= MAX_MESSAGE { Ok(Self { terminated: bytes, len }) } else { Err(MessageError::TooLong) };
        };
        let mut terminated = bytes;
        terminated.extend_from_slice(delimiter.as_bytes());
        // Read as the server reads it.
        match Framer::default().next(delimiter, MAX_MESSAGE, &terminated) {
            Frame::Complete(end) if end == terminated.len() => Ok(Self { terminated, len }),
            Frame::TooLong => Err(MessageError::TooLong),
            Frame::Complete(_) | Frame::Incomplete => Err(MessageError::Delimiter(delimiter.clone())),
        }
    }

    /// Returns its bytes without the delimiter.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.terminated[..self.len]
    }

    /// Returns the bytes that are sent: its own, and the delimiter if there is one.
    #[must_use]
    pub fn terminated(&self) -> &[u8] {
        &self.terminated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8], delimiter: &str) -> Result<Message, MessageError> {
        Message::new(bytes.to_vec(), Some(&Delimiter::from_escaped(delimiter).unwrap()))
    }

    #[test]
    fn any_bytes_but_the_delimiter_are_a_message() {
        for (bytes, delimiter) in
            [(&b""[..], r"\t"), (b"aaaa", r"\t"), (b"\xff\0\r\n", r"\t"), (b"a\r", r"\r\n"), (b"xa", "aba")]
        {
            let message = message(bytes, delimiter).unwrap();
            assert_eq!(message.as_bytes(), bytes);
            assert_eq!(message.terminated().len(), bytes.len() + Delimiter::from_escaped(delimiter).unwrap().len());
        }
    }

    #[test]
    fn message_that_the_server_would_split_is_refused() {
        for (bytes, delimiter) in
            [(&b"a\tb"[..], r"\t"), (b"\t", r"\t"), (b"a\r\nb", r"\r\n"), (b"a", "aa"), (b"xab", "aba")]
        {
            assert!(matches!(message(bytes, delimiter), Err(MessageError::Delimiter(_))), "{bytes:?} {delimiter}");
        }
    }
}
