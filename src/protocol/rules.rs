//! The rules of the sessions on one listener: plain data that all of them share.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::delimiter::Delimiter;
use super::reply::{BLOCK, Prefix};

/// The rules of the sessions on one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The bytes that are a message.
    pub framing: Framing,
    /// Whether each packet is a message (SOCK_SEQPACKET). The framing then only tells whether a peer may get a final reply. See
    /// [`Session`](super::Session).
    pub packets: bool,
    /// The delimiter of messages, in delimited framing.
    pub delimiter: Delimiter,
    /// The reply to a message.
    pub reply: ReplyMode,
    /// The bytes before the message in a reply. Never contains the delimiter, in delimited framing.
    pub prefix: Prefix,
    /// The reply to every message in [`ReplyMode::Fixed`]: 0 to [`MAX_FIXED_REPLY`] bytes.
    /// Never contains the delimiter, in delimited framing.
    pub fixed_reply: Arc<[u8]>,
    /// The delay after each reply before the next message of the connection is taken.
    pub reply_delay: TimeSpan,
    /// The maximum length of a message, in bytes without its delimiter. The default of 64 KiB fits into one read, and is more
    /// than a health check or a log line needs. Raw framing also limits it to 512 bytes.
    pub max_message: usize,
    /// The treatment of bytes after the last delimiter when the peer ends its stream.
    pub unterminated: Unterminated,
    /// Whether a peer gets a final reply when its connection is closed.
    pub error_replies: bool,
    /// Whether and how messages are logged.
    pub log_messages: LogMessages,
    /// The deadlines of peers.
    pub deadlines: Deadlines,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            framing: Framing::Delimited,
            packets: false,
            delimiter: Delimiter::default(),
            reply: ReplyMode::Echo,
            prefix: Framing::Delimited.default_prefix(),
            fixed_reply: Arc::default(),
            reply_delay: TimeSpan::new(Duration::ZERO, "0s"),
            max_message: 64 * 1024,
            unterminated: Unterminated::Discard,
            error_replies: true,
            log_messages: LogMessages::Off,
            deadlines: Deadlines::default(),
        }
    }
}

/// The maximum length of a fixed reply, in bytes.
pub const MAX_FIXED_REPLY: usize = 4096;

/// The maximum length of a message in raw framing, in bytes.
const MAX_RAW_MESSAGE: usize = 512;

impl Rules {
    /// Returns the bytes that end a message and a reply: the delimiter, or nothing.
    #[must_use]
    pub fn terminator(&self) -> &[u8] {
        match self.framing {
            Framing::Delimited if !self.packets => self.delimiter.as_bytes(),
            Framing::Delimited | Framing::Raw => &[],
        }
    }

    /// Returns whether the fast path applies: a delimited echo without a delay.
    pub(super) fn is_plain_echo(&self) -> bool {
        self.framing == Framing::Delimited
            && !self.packets
            && self.reply == ReplyMode::Echo
            && self.reply_delay.duration().is_zero()
    }

    /// Returns whether short messages can be found and answered in blocks.
    pub(super) fn allows_blocks(&self) -> bool {
        self.is_plain_echo()
            && self.log_messages == LogMessages::Off
            && self.delimiter.single().is_some()
            && self.max_message >= BLOCK
            && self.prefix.is_short()
    }

    /// Returns whether replies are the same bytes as the messages, with nothing between them.
    pub(super) fn is_verbatim(&self) -> bool {
        self.framing == Framing::Raw
            && self.reply == ReplyMode::Echo
            && self.prefix.len() == 0
            && self.reply_delay.duration().is_zero()
    }

    /// Returns the maximum length of a message in raw framing, in bytes.
    pub(super) fn max_raw_message(&self) -> usize {
        self.max_message.clamp(1, MAX_RAW_MESSAGE)
    }
}

/// The bytes that are a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A message is the bytes before a delimiter.
    Delimited,
    /// A message is any input of up to 512 bytes, or `max_message` if that is less. There are no final replies.
    Raw,
}

impl Framing {
    /// Returns the prefix if none is set: `server got:`, or nothing in raw framing.
    #[must_use]
    pub fn default_prefix(self) -> Prefix {
        match self {
            Self::Delimited => Prefix::new(b"server got:"),
            Self::Raw => Prefix::new(b""),
        }
    }
}

/// The reply to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyMode {
    /// The prefix and the message.
    Echo,
    /// [`Rules::fixed_reply`].
    Fixed,
    /// Nothing.
    None,
}

/// The treatment of bytes after the last delimiter when the peer ends its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unterminated {
    /// They are not a message. They are dropped and counted.
    Discard,
    /// They are the last message, and are answered.
    Accept,
}

/// Whether messages are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogMessages {
    /// Messages are not logged.
    Off,
    /// One entry for each message, escaped and truncated to 256 bytes. If the log is slow, entries are dropped and counted.
    Summary,
    /// One entry with each whole message. If the log is slow, the peer waits, and no entry is lost.
    Full,
}

/// The deadlines of peers. `None` means no deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines {
    /// The maximum time since the last byte in either direction, while no message is in progress and no reply is owed. The
    /// default of 5 min is longer than the intervals of health checks, so these keep their connection.
    pub idle: Option<TimeSpan>,
    /// The maximum time from the first byte of a message to its delimiter. Further bytes do not extend it. The default of 2 s
    /// assumes that a client sends a message at once.
    pub read: Option<TimeSpan>,
    /// The maximum time in which the peer takes no byte of the replies that it is owed. The default of 10 s tolerates a peer
    /// that swaps or a route that changes.
    pub write: Option<TimeSpan>,
    /// The maximum age of the connection. Off by default, because there is no reason to close connections of peers that obey
    /// the protocol.
    pub lifetime: Option<TimeSpan>,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            idle: Some(TimeSpan::new(Duration::from_secs(300), "5min")),
            read: Some(TimeSpan::new(Duration::from_secs(2), "2s")),
            write: Some(TimeSpan::new(Duration::from_secs(10), "10s")),
            lifetime: None,
        }
    }
}

/// A duration together with the notation in which it was configured, which is also sent to peers.
#[derive(Debug, Clone)]
pub struct TimeSpan {
    duration: Duration,
    notation: Box<str>,
}

impl TimeSpan {
    /// Creates the time span `duration`, written as `notation`.
    #[must_use]
    pub fn new(duration: Duration, notation: &str) -> Self {
        Self { duration, notation: notation.into() }
    }

    /// Returns the duration.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

/// Returns the end of a limit that begins at `since`. Where there is no limit, or it ends beyond the range of the clock,
/// `default` applies.
pub(crate) fn end_of_limit(limit: Option<&TimeSpan>, default: Duration, since: Instant) -> Instant {
    let limit = limit.map_or(default, TimeSpan::duration);
    since.checked_add(limit).unwrap_or_else(|| since + default)
}

/// Two time spans are equal if their durations are equal, however they are written.
impl PartialEq for TimeSpan {
    fn eq(&self, other: &Self) -> bool {
        self.duration == other.duration
    }
}

impl Eq for TimeSpan {}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.notation)
    }
}
