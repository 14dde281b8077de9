//! The reason why a connection ended. An action of a peer is never an error of the daemon: it is expected, named and counted.

use std::fmt;

use super::rules::{Framing, Rules, TimeSpan};

/// Why a connection ended. Each has one name ([`Verdict::name`]) on the wire, in the log, in the metrics and in tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The message in progress passed `max_message`.
    TooLong,
    /// The message in progress was not finished within `deadlines.read`.
    ReadDeadline,
    /// No message within `deadlines.idle`.
    IdleDeadline,
    /// The connection reached `deadlines.lifetime`.
    Lifetime,
    /// The peer's source has as many connections as `limits.connections_per_source` allows.
    TooMany {
        /// The limit.
        limit: u32,
    },
    /// The buffers of the connection do not fit into `limits.buffer_memory`.
    Busy,
    /// The peer's kernel took no byte of what the peer was owed for `deadlines.write`.
    WriteDeadline,
    /// The peer ended its stream after a whole message, and got every reply.
    PeerClosed,
    /// The connection broke: the peer broke it off, or a call for it failed, which is reported then.
    PeerReset,
    /// The peer ended its stream in the middle of a message.
    Unterminated {
        /// How many bytes of it had come; stands still at the most that fit.
        bytes: u32,
    },
    /// We end: the daemon stops.
    Shutdown,
    /// It has not ended: it was handed over to the next process of the daemon.
    HandedOver,
    /// It did not begin with a PROXY header, as its listener demands, or not in time.
    BadProxyHeader,
    /// It was idle, all permits were taken, and another client waited: `limits.reclaim_idle`.
    Reclaimed,
}

/// The beginning of a final reply, instead of a prefix.
pub const SERVER_ERROR: &[u8] = b"server error:";

/// How many kinds of verdicts there are.
pub const KINDS: usize = 14;

impl Verdict {
    /// Returns its name, in lower case with hyphens.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[self.index()]
    }

    /// Returns its number among the kinds: less than [`KINDS`]; the index into [`NAMES`] and into counters.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::TooLong => 0,
            Self::ReadDeadline => 1,
            Self::IdleDeadline => 2,
            Self::Lifetime => 3,
            Self::TooMany { .. } => 4,
            Self::Busy => 5,
            Self::WriteDeadline => 6,
            Self::PeerClosed => 7,
            Self::PeerReset => 8,
            Self::Unterminated { .. } => 9,
            Self::Shutdown => 10,
            Self::HandedOver => 11,
            Self::BadProxyHeader => 12,
            Self::Reclaimed => 13,
        }
    }

    /// Returns the text that the peer gets about it; `None` where the peer could do nothing about it or could not read
    /// it.
    #[must_use]
    pub fn text(self, rules: &Rules) -> Option<String> {
        let deadlines = &rules.deadlines;
        match self {
            Self::TooLong => Some(format!("message exceeds {} bytes", rules.max_message)),
            Self::ReadDeadline => {
                deadline_text(deadlines.read.as_ref(), |d| format!("message not finished within {d}"))
            }
            Self::IdleDeadline => deadline_text(deadlines.idle.as_ref(), |d| format!("no message within {d}")),
            Self::Lifetime => deadline_text(deadlines.lifetime.as_ref(), |d| format!("connection older than {d}")),
            Self::TooMany { limit } => Some(format!("too many connections from this source (limit {limit})")),
            Self::Busy => Some("out of buffer memory".to_owned()),
            Self::Reclaimed => Some("connection reclaimed, the server is full".to_owned()),
            Self::WriteDeadline
            | Self::PeerClosed
            | Self::PeerReset
            | Self::Unterminated { .. }
            | Self::Shutdown
            | Self::HandedOver
            | Self::BadProxyHeader => None,
        }
    }

    /// Returns the final reply: `server error:`, the text, the delimiter. `None` where there is no text, where the
    /// delimiter would be found before its position, or where there is none.
    pub(super) fn final_reply(self, rules: &Rules) -> Option<Vec<u8>> {
        if rules.framing == Framing::Raw {
            return None;
        }
        let text = self.text(rules)?;
        let reply = [SERVER_ERROR, text.as_bytes(), rules.delimiter.as_bytes()].concat();
        (rules.delimiter.search(&mut 0, &reply) == Some(reply.len())).then_some(reply)
    }
}

/// The names of all verdicts, in the order of [`Verdict::index`].
pub const NAMES: [&str; KINDS] = [
    "too-long",
    "read-deadline",
    "idle-deadline",
    "lifetime",
    "too-many",
    "busy",
    "write-deadline",
    "peer-closed",
    "peer-reset",
    "unterminated",
    "shutdown",
    "handed-over",
    "bad-proxy-header",
    "reclaimed",
];

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the text about a deadline that has passed. It can only have passed where there is one.
fn deadline_text(deadline: Option<&TimeSpan>, text: impl Fn(&TimeSpan) -> String) -> Option<String> {
    deadline.map(text)
}
