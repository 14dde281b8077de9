//! What both sides of an exchange have agreed on: what answers a message, and within what time.

use std::time::Duration;

use crate::protocol::reply::Prefix;

/// What both sides have agreed on.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// What answers a message.
    pub reply: ExpectedReply,
    /// How long a reply may take, from when it is the next one awaited and its message was sent. The server must not
    /// stop taking messages for longer than this either.
    pub timeout: Duration,
}

/// What answers a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectedReply {
    /// This prefix and the message.
    Echo(Prefix),
    /// These bytes, whatever the message is.
    Exact(Vec<u8>),
    /// Whatever comes. Only where messages take turns: nobody knows where a reply ends.
    Any,
    /// Nothing. What comes is dropped, unless it is a server error, and at the end the server has the time of a reply to
    /// end its stream after we have ended ours: so it has taken everything.
    None,
}

impl ExpectedReply {
    /// Whether messages are answered.
    #[must_use]
    pub fn is_expected(&self) -> bool {
        *self != Self::None
    }

    /// Whether these bytes are the right reply to a message.
    #[must_use]
    pub fn matches(&self, reply: &[u8], message: &[u8]) -> bool {
        match self {
            Self::Echo(prefix) => reply.strip_prefix(prefix.as_bytes()) == Some(message),
            Self::Exact(bytes) => reply == bytes,
            Self::Any => true,
            Self::None => false,
        }
    }

    /// The right reply to a message; `None` where there is not the one.
    #[must_use]
    pub fn expected_bytes(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Echo(prefix) => Some([prefix.as_bytes(), message].concat()),
            Self::Exact(bytes) => Some(bytes.clone()),
            Self::Any | Self::None => None,
        }
    }
}
