//! What one listener's sessions obey: plain data, complete, shared by all of them.

use std::fmt;
use std::time::Duration;

use super::delimiter::Delimiter;
use super::reply::Prefix;

/// The rules of the conversations on one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// What ends a message.
    pub delimiter: Delimiter,
    /// What stands before the message in a reply. Never contains the delimiter.
    pub prefix: Prefix,
    /// The longest message, in bytes without its delimiter. 64 KiB fit into one read and are more than any health
    /// check or log line needs.
    pub max_message: usize,
    /// What becomes of bytes after the last delimiter when the peer ends its stream.
    pub unterminated: Unterminated,
    /// Whether a peer is told, as a last reply, why it is cut off.
    pub error_replies: bool,
    /// Whether its messages are logged.
    pub log_messages: LogMessages,
    /// How long a peer may take.
    pub deadlines: Deadlines,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            delimiter: Delimiter::default(),
            prefix: Prefix::new(b"server got:"),
            max_message: 64 * 1024,
            unterminated: Unterminated::Discard,
            error_replies: true,
            log_messages: LogMessages::Off,
            deadlines: Deadlines::default(),
        }
    }
}

/// What becomes of bytes after the last delimiter when the peer ends its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unterminated {
    /// They are not a message: dropped and counted.
    Discard,
    /// They are the last message, and are answered like one.
    Accept,
}

/// Whether messages are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogMessages {
    /// They are not.
    Off,
    /// One entry for each message, escaped and cut at 256 bytes. When the log is slow, entries are left out and counted.
    Summary,
    /// One entry for each message, whole. None is lost: when the log is slow, the peer waits.
    Full,
}

/// How long a peer may take; `None` is as long as it likes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines {
    /// Without a message in progress and without a reply owed, since the last byte in either direction. 5 min: longer
    /// than the intervals of health checks, which so keep their connection.
    pub idle: Option<Span>,
    /// From the first byte of a message to its delimiter; further bytes do not extend it. 2 s: a message is sent at
    /// once or the sender hangs.
    pub read: Option<Span>,
    /// Without the peer taking a single byte of what it is owed. 10 s: enough for a peer that swaps or a route that
    /// changes, too little to hoard replies.
    pub write: Option<Span>,
    /// Of the whole connection. Off: there is no reason to cut a peer that behaves.
    pub lifetime: Option<Span>,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            idle: Some(Span::new(Duration::from_secs(300), "5min")),
            read: Some(Span::new(Duration::from_secs(2), "2s")),
            write: Some(Span::new(Duration::from_secs(10), "10s")),
            lifetime: None,
        }
    }
}

/// A length of time together with the notation in which it was configured, in which it is also told to peers.
#[derive(Debug, Clone)]
pub struct Span {
    length: Duration,
    notation: Box<str>,
}

impl Span {
    /// `length`, written as `notation`.
    #[must_use]
    pub fn new(length: Duration, notation: &str) -> Self {
        Self { length, notation: notation.into() }
    }

    /// How long it is.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.length
    }
}

/// Two spans are equal when they are equally long, however they are written.
impl PartialEq for Span {
    fn eq(&self, other: &Self) -> bool {
        self.length == other.length
    }
}

impl Eq for Span {}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.notation)
    }
}
