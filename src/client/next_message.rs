//! The result of asking a source of messages: the next one, or why there is none.

use std::fmt;
use std::io;

use super::message::{Message, MessageError};
use super::quote::reason;

/// The current state of a source of messages.
#[derive(Debug)]
pub(super) enum Next {
    Message(Message),
    /// No message yet: it is to be waited for.
    Pending,
    /// There are no more.
    End,
}

/// Why there are no more messages although there should be.
#[derive(Debug)]
#[non_exhaustive]
pub enum InputError {
    /// A message of the command line cannot be sent.
    Argument {
        /// Counted from 1.
        number: u64,
        /// The error of the message.
        error: MessageError,
    },
    /// A line cannot be sent.
    Line {
        /// Counted from 1.
        number: u64,
        /// The error of the message.
        error: MessageError,
    },
    /// The stream cannot be read.
    Read(io::Error),
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument { number, error } => write!(f, "message {number} {error}"),
            Self::Line { number, error } => write!(f, "line {number} {error}"),
            Self::Read(error) => write!(f, "cannot read stdin: {}", reason(error)),
        }
    }
}

impl std::error::Error for InputError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Argument { error, .. } | Self::Line { error, .. } => Some(error),
            Self::Read(error) => Some(error),
        }
    }
}
