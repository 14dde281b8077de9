//! Verdicts: the reasons why connections end. An action of a peer is never an error of the daemon: it is expected,
//! named and counted.

use std::fmt;

use super::rules::{Framing, Rules, TimeSpan};

/// The reason why a connection ended. Each verdict has one name ([`Verdict::name`]), used in the log, the metrics and
/// tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The message in progress exceeded `max_message`.
    TooLong,
    /// The message in progress was not finished within `deadlines.read`.
    ReadDeadline,
    /// No message began within `deadlines.idle`.
    IdleDeadline,
    /// The connection reached `deadlines.lifetime`.
    Lifetime,
    /// The peer's source has reached `limits.connections_per_source`.
    TooMany {
        /// The limit.
        limit: u32,
    },
    /// The buffers of the connection did not fit into `limits.buffer_memory`.
    Busy,
    /// The peer's kernel took no byte of the owed replies for `deadlines.write`.
    WriteDeadline,
    /// The peer ended its stream after a complete message, and got every reply.
    PeerClosed,
    /// The connection broke: the peer reset it, or a system call failed, which is then reported.
    PeerReset,
    /// The peer ended its stream in the middle of a message.
    Unterminated {
        /// The number of bytes received of that message; saturates.
        bytes: u32,
    },
    /// The daemon ended the connection because it stops.
    Shutdown,
    /// The connection has not ended: it was handed over to the next process of the daemon.
    HandedOver,
    /// The connection did not begin with the PROXY header that its listener demands, or not in time.
    BadProxyHeader,
    /// The connection was idle while all permits were taken and another client waited (`limits.reclaim_idle`).
    Reclaimed,
}

/// The beginning of a final reply, in place of the prefix.
pub const SERVER_ERROR: &[u8] = b"server error:";

/// The number of kinds of verdicts.
pub const KINDS: usize = 14;

impl Verdict {
    /// Returns the verdict's name, in lower case with hyphens.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[self.index()]
    }

    /// Returns the index of the verdict in [`NAMES`] and in counters: less than [`KINDS`].
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

    /// Returns the text that is sent to the peer; `None` if the peer could not act on it or could not read it.
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

    /// Returns the final reply: `server error:`, the text, the delimiter. `None` in raw framing, if there is no text,
    /// or if the delimiter would be found before the end of the reply.
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

/// Returns the text about a passed deadline. A deadline that passed is always set.
fn deadline_text(deadline: Option<&TimeSpan>, text: impl Fn(&TimeSpan) -> String) -> Option<String> {
    deadline.map(text)
}
