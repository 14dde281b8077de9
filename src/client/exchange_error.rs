//! Why an exchange ends early, each as one sentence.

use std::fmt;
use std::io;
use std::time::Duration;

use super::connect::ConnectError;
use super::next_message::InputError;
use super::quote::{Cut, MAX_QUOTED, Quoted, reason};
use crate::protocol::Delimiter;
use crate::units::format_time;

/// How much of what two long replies have in common is shown before they differ, in bytes.
const CONTEXT: usize = 20;

/// Why an exchange ended early.
#[derive(Debug)]
#[non_exhaustive]
pub enum ExchangeError {
    /// There was no connection: no socket listens where the first message was sent.
    Connect(ConnectError),
    /// A reply is not as it should be.
    WrongReply {
        /// Counted from 1.
        number: u64,
        /// The expected reply.
        expected: Vec<u8>,
        /// The received reply.
        got: Vec<u8>,
    },
    /// A reply came that no message had asked for.
    UnexpectedReply {
        /// The received reply.
        got: Vec<u8>,
    },
    /// The server has said what is wrong.
    ServerError {
        /// The text of the error.
        text: Vec<u8>,
        /// Our delimiter, if the server has not ended the text with it.
        other_delimiter: Option<Delimiter>,
    },
    /// A reply has not come in time.
    ReplyTimeout {
        /// Counted from 1.
        number: u64,
        /// The message.
        message: Vec<u8>,
        /// The time that there was.
        timeout: Duration,
        /// The delimiter that would have ended the reply, if there is one.
        delimiter: Option<Box<Delimiter>>,
        /// The part that was received.
        rest: Vec<u8>,
    },
    /// A reply is so much longer than the right one that its end is not awaited.
    ReplyTooLong {
        /// Counted from 1.
        number: u64,
        /// The length of the right one, in bytes.
        expected_len: usize,
        /// The part that was received.
        got: Vec<u8>,
        /// The delimiter that would have ended it.
        delimiter: Box<Delimiter>,
    },
    /// A message is larger than a packet can be.
    MessageTooLarge {
        /// Counted from 1.
        number: u64,
        /// Its size in bytes.
        size: usize,
    },
    /// The server has stopped reading.
    WriteTimeout {
        /// The time that there was.
        timeout: Duration,
    },
    /// The server has not ended its stream in time.
    EndTimeout {
        /// The time that there was.
        timeout: Duration,
        /// Whether more replies may come; otherwise it is unknown whether the server took everything.
        replies_expected: bool,
    },
    /// The connection has ended too early.
    ConnectionEnded {
        /// Why, unless the server ended it properly.
        error: Option<io::Error>,
        /// How many of the messages are unanswered; `None` if no replies are expected.
        unanswered: Option<u64>,
        /// The beginning of a reply that came before.
        rest: Vec<u8>,
    },
    /// There are no more messages although there should be. Those before were sent and answered.
    Input {
        /// The error of the next one.
        error: InputError,
        /// How many were sent.
        sent: u64,
    },
    /// A reply could not be written to the sink.
    Output(io::Error),
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::WrongReply { number, expected, got } => {
                write!(f, "reply {number} is wrong: {}", Difference { expected, got })
            }
            Self::UnexpectedReply { got } => write!(f, "got {}, which no message had asked for", Quoted(got)),
            Self::ServerError { text, other_delimiter } => {
                write!(f, "the server says: {}", Cut(text))?;
                match other_delimiter {
                    Some(delimiter) => {
                        write!(f, " (and then not {delimiter:?}; does it use that delimiter, see --delimiter?)")
                    }
                    None => Ok(()),
                }
            }
            Self::ReplyTimeout { number, message, timeout, delimiter, rest } => {
                let timeout = format_time(*timeout);
                write!(f, "no reply to message {number}, {}, within {timeout} (--timeout)", Quoted(message))?;
                if rest.is_empty() {
                    return Ok(());
                }
                write!(f, "; so far {} has come", Quoted(rest))?;
                delimiter.as_ref().map_or(Ok(()), |delimiter| write!(f, ", without the delimiter {delimiter:?}"))
            }
            Self::MessageTooLarge { number, size } => {
                write!(f, "message {number} has {size} bytes, more than fit into one packet")
            }
            Self::ReplyTooLong { number, expected_len, got, delimiter } => write!(
                f,
                "reply {number} is too long: got {} without the delimiter {delimiter:?}, and the right one has \
                 {expected_len}; is --delimiter right?",
                Quoted(got)
            ),
            Self::WriteTimeout { timeout } => {
                write!(f, "the server has taken nothing of what we send for {} (--timeout)", format_time(*timeout))
            }
            Self::EndTimeout { timeout, replies_expected: false } => write!(
                f,
                "the server has not ended its stream within {} after the last message (--timeout), \
                 so it may not have taken everything",
                format_time(*timeout)
            ),
            Self::EndTimeout { timeout, replies_expected: true } => write!(
                f,
                "the server has not ended its stream within {} after the last message (--timeout), \
                 so more replies may have been on their way",
                format_time(*timeout)
            ),
            Self::ConnectionEnded { error, unanswered, rest } => {
                match error {
                    Some(error) => write!(f, "the connection broke ({})", reason(error))?,
                    None => f.write_str("the server ended the connection")?,
                }
                match unanswered {
                    None => f.write_str(", so it may not have taken everything")?,
                    Some(0) => f.write_str(" before the end of the messages")?,
                    Some(1) => f.write_str(", 1 message is unanswered")?,
                    Some(count) => write!(f, ", {count} messages are unanswered")?,
                }
                if rest.is_empty() { Ok(()) } else { write!(f, "; the last that came was {}", Quoted(rest)) }
            }
            Self::Input { error, .. } => error.fmt(f),
            Self::Output(error) => write!(f, "cannot write to stdout: {}", reason(error)),
        }
    }
}

impl std::error::Error for ExchangeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(error) => Some(error),
            Self::ConnectionEnded { error, .. } => error.as_ref().map(|error| error as _),
            Self::Input { error, .. } => Some(error),
            Self::Output(error) => Some(error),
            _ => None,
        }
    }
}

/// Where a wrong reply differs from the right one.
pub(super) struct Difference<'a> {
    pub(super) expected: &'a [u8],
    pub(super) got: &'a [u8],
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected, got } = *self;
        // Of long ones, what counts is where they begin to differ.
        let common = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
        let from = if common < MAX_QUOTED { 0 } else { common - CONTEXT };
        if from > 0 {
            write!(f, "from byte {} on ", from + 1)?;
        }
        write!(f, "expected {}, got {}", Quoted(&expected[from..]), Quoted(&got[from..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_replies_are_shown_from_where_they_differ() {
        let (expected, got) = (vec![b'x'; 1000], [&[b'x'; 500][..], b"y"].concat());
        let text = ExchangeError::WrongReply { number: 7, expected, got }.to_string();
        assert!(text.starts_with("reply 7 is wrong: from byte 481 on expected \"xxx"), "{text}");
        assert!(text.ends_with(&format!("got \"{}y\"", "x".repeat(20))), "{text}");
    }

    #[test]
    fn short_replies_are_shown_whole() {
        let (expected, got) = (b"server got:a".to_vec(), b"server got:a\n".to_vec());
        let text = ExchangeError::WrongReply { number: 1, expected, got }.to_string();
        assert_eq!(text, r#"reply 1 is wrong: expected "server got:a", got "server got:a\n""#);
    }
}
