//! The expectations of the client: the reply to a message, and the time that it may take.

use std::time::Duration;

use crate::protocol::reply::Prefix;

/// How much longer than the right one a wrong reply may be, to be shown, in bytes; and the longest error that the server
/// reports. The client reads no more than that of a reply.
pub const MAX_EXCESS: usize = 4096;

/// The expectations of the client.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// The reply to a message.
    pub reply: ExpectedReply,
    /// How long a reply may take, from when it is the next one awaited and its message was sent. The server must not
    /// stop taking messages for longer than this either.
    pub timeout: Duration,
}

/// The reply that is expected to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectedReply {
    /// This prefix and the message.
    Echo(Prefix),
    /// These bytes, whatever the message is.
    Exact(Vec<u8>),
    /// Whatever comes. Only in lockstep, because the end of a reply is unknown. On a stream the server has the time of a
    /// reply to end it after we have ended ours, whatever comes meanwhile.
    Any,
    /// No reply. Input is dropped, unless it is a server error. At the end the server has the time of a reply to end
    /// its stream after we have ended ours, which shows that it has taken everything.
    None,
}

impl ExpectedReply {
    /// Returns whether replies are expected.
    #[must_use]
    pub fn is_expected(&self) -> bool {
        *self != Self::None
    }

    /// Returns whether these bytes are the expected reply to a message.
    #[must_use]
    pub fn matches(&self, reply: &[u8], message: &[u8]) -> bool {
        match self {
            Self::Echo(prefix) => reply.strip_prefix(prefix.as_bytes()) == Some(message),
            Self::Exact(bytes) => reply == bytes,
            Self::Any => true,
            Self::None => false,
        }
    }

    /// Returns the length of the expected reply to a message of `message_len` bytes, in bytes; 0 unless there is exactly
    /// one.
    #[must_use]
    pub fn expected_len(&self, message_len: usize) -> usize {
        match self {
            Self::Echo(prefix) => prefix.as_bytes().len() + message_len,
            Self::Exact(bytes) => bytes.len(),
            Self::Any | Self::None => 0,
        }
    }

    /// Returns the expected reply to a message; `None` unless there is exactly one.
    #[must_use]
    pub fn expected_bytes(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Echo(prefix) => Some([prefix.as_bytes(), message].concat()),
            Self::Exact(bytes) => Some(bytes.clone()),
            Self::Any | Self::None => None,
        }
    }
}
