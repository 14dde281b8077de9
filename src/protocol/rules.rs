//! The rules of one listener's sessions: plain data, complete, shared by all of them.

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
    /// Whether messages come as packets (SOCK_SEQPACKET): each is a message, and the framing only says whether a peer may get a
    /// final reply. [`Session`](super::Session) has more about it.
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
    /// Delay after each reply before the next message of the connection is taken.
    pub reply_delay: TimeSpan,
    /// The longest message, in bytes without its delimiter. 64 KiB fit into one read and are more than any health
    /// check or log line needs. In raw framing there are none of more than 512 bytes.
    pub max_message: usize,
    /// The treatment of bytes after the last delimiter when the peer ends its stream.
    pub unterminated: Unterminated,
    /// Whether a peer that is cut off gets a final reply that says why.
    pub error_replies: bool,
    /// Whether its messages are logged.
    pub log_messages: LogMessages,
    /// How long a peer may take.
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
    /// Returns what ends a message and a reply: the delimiter, or nothing.
    #[must_use]
    pub fn terminator(&self) -> &[u8] {
        match self.framing {
            Framing::Delimited if !self.packets => self.delimiter.as_bytes(),
            Framing::Delimited | Framing::Raw => &[],
        }
    }

    /// Returns whether the rules are those of the delimited echo without a delay, which has the fast path.
    pub(super) fn is_plain_echo(&self) -> bool {
        self.framing == Framing::Delimited
            && !self.packets
            && self.reply == ReplyMode::Echo
            && self.reply_delay.duration().is_zero()
    }

    /// Returns whether messages can be looked for and answered by blocks, as far as they are short.
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

    /// Returns the longest message in raw framing.
    pub(super) fn max_raw_message(&self) -> usize {
        self.max_message.clamp(1, MAX_RAW_MESSAGE)
    }
}

/// The bytes that are a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The bytes before a delimiter.
    Delimited,
    /// Any input: up to 512 bytes, or `max_message` if that is less. There are no error replies.
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
    /// One entry for each message, escaped and cut at 256 bytes. When the log is slow, entries are dropped and counted.
    Summary,
    /// One entry for each message, whole. None is lost: when the log is slow, the peer waits.
    Full,
}

/// How long a peer may take; `None` is as long as it likes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines {
    /// Without a message in progress and without a reply owed, since the last byte in either direction. 5 min: longer
    /// than the intervals of health checks, which so keep their connection.
    pub idle: Option<TimeSpan>,
    /// From the first byte of a message to its delimiter; further bytes do not extend it. 2 s: a message is sent at
    /// once or the sender hangs.
    pub read: Option<TimeSpan>,
    /// Without the peer taking a single byte of what it is owed. 10 s: enough for a peer that swaps or a route that
    /// changes, too little to hoard replies.
    pub write: Option<TimeSpan>,
    /// Of the whole connection. Off: there is no reason to cut a peer that behaves.
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
