//! The rules of the sessions of one listener.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::delimiter::Delimiter;
use super::reply::{BLOCK, Prefix};

/// The rules of the sessions of one listener, which all of them share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// How input is split into messages.
    pub framing: Framing,
    /// Whether the connection carries packets (SOCK_SEQPACKET). Each packet is then a message; the framing only decides
    /// whether a peer may get a final reply. See [`Session`](super::Session).
    pub packets: bool,
    /// The delimiter of messages in delimited framing.
    pub delimiter: Delimiter,
    /// The reply to a message.
    pub reply: ReplyMode,
    /// The bytes before the message in a reply. In delimited framing, they never contain the delimiter.
    pub prefix: Prefix,
    /// The reply to every message in [`ReplyMode::Fixed`]: 0 to [`MAX_FIXED_REPLY`] bytes. In delimited framing, they
    /// never contain the delimiter.
    pub fixed_reply: Arc<[u8]>,
    /// The delay after each reply before the next message of the connection is processed.
    pub reply_delay: TimeSpan,
    /// The longest message, in bytes without its delimiter. 64 KiB fit into one read, and exceed every health check and
    /// log line. In raw framing, messages have at most 512 bytes.
    pub max_message: usize,
    /// The treatment of bytes after the last delimiter when the peer ends its stream.
    pub unterminated: Unterminated,
    /// Whether a peer that is cut off gets a final reply with the reason.
    pub error_replies: bool,
    /// Whether messages are logged.
    pub log_messages: LogMessages,
    /// The deadlines for peers.
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

/// The longest fixed reply, in bytes.
pub const MAX_FIXED_REPLY: usize = 4096;

/// The longest message in raw framing, in bytes.
const MAX_RAW_MESSAGE: usize = 512;

impl Rules {
    /// Returns the terminator of a message and a reply: the delimiter, or nothing in raw framing.
    #[must_use]
    pub fn terminator(&self) -> &[u8] {
        match self.framing {
            Framing::Delimited if !self.packets => self.delimiter.as_bytes(),
            Framing::Delimited | Framing::Raw => &[],
        }
    }

    /// Returns whether these rules are plain delimited echo without a delay, which the fast path serves.
    pub(super) fn is_plain_echo(&self) -> bool {
        self.framing == Framing::Delimited
            && !self.packets
            && self.reply == ReplyMode::Echo
            && self.reply_delay.duration().is_zero()
    }

    /// Returns whether short messages can be found and answered block by block.
    pub(super) fn allows_blocks(&self) -> bool {
        self.is_plain_echo()
            && self.log_messages == LogMessages::Off
            && self.delimiter.single().is_some()
            && self.max_message >= BLOCK
            && self.prefix.is_short()
    }

    /// Returns whether the replies to consecutive messages are exactly the messages' bytes.
    pub(super) fn is_verbatim(&self) -> bool {
        self.framing == Framing::Raw
            && self.reply == ReplyMode::Echo
            && self.prefix.len() == 0
            && self.reply_delay.duration().is_zero()
    }

    /// Returns the longest message in raw framing, in bytes.
    pub(super) fn max_raw_message(&self) -> usize {
        self.max_message.clamp(1, MAX_RAW_MESSAGE)
    }
}

/// The way in which input is split into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A delimiter ends each message.
    Delimited,
    /// All bytes of one read are a message: up to 512 bytes, or `max_message` if that is less. There are no error
    /// replies.
    Raw,
}

impl Framing {
    /// Returns the default prefix: `server got:`, or nothing in raw framing.
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
    /// They are dropped and counted, not answered.
    Discard,
    /// They are the last message, and are answered.
    Accept,
}

/// Whether messages are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogMessages {
    /// Messages are not logged.
    Off,
    /// One entry per message, escaped and truncated to 256 bytes. If the log is slow, entries are dropped and counted.
    Summary,
    /// One entry per message, complete. No entry is lost: if the log is slow, the peer has to wait.
    Full,
}

/// The deadlines for peers; `None` for no deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines {
    /// The longest time without a message in progress and without an owed reply, since the last byte in either
    /// direction. 5 min exceed the usual intervals of health checks, so these can keep their connections.
    pub idle: Option<TimeSpan>,
    /// The longest time from the first byte of a message to its delimiter; more bytes do not extend it. 2 s: most
    /// clients send a message at once, and a slower one hangs.
    pub read: Option<TimeSpan>,
    /// The longest time in which the peer takes none of the bytes that it is owed. 10 s are enough for a peer that
    /// swaps or a route that changes, and too short for hoarding replies.
    pub write: Option<TimeSpan>,
    /// The longest time that a connection may exist. Off, because a peer that behaves need not be cut off.
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

/// A duration with its notation in the settings, which is also sent to peers.
#[derive(Debug, Clone)]
pub struct TimeSpan {
    duration: Duration,
    notation: Box<str>,
}

impl TimeSpan {
    /// Creates a time span of `duration`, written as `notation`.
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

/// Compares the durations, not the notations.
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
