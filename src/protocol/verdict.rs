//! Verdicts: the reasons why connections end. An action of a peer is never an error of the daemon: it is expected,
//! named and counted.

use std::fmt;

use super::rules::{Framing, Rules};

/// Defines all verdicts, each with its code in a snapshot, its name, and its text in the final reply ([`Verdict::text`]).
macro_rules! verdicts {
    (|$rules:ident| $(
        $(#[$doc:meta])*
        $verdict:ident $({ $(#[$field_doc:meta])* $field:ident })? = $code:literal, $name:literal, $text:expr;
    )*) => {
        /// The reason why a connection ended. Each has one name ([`Verdict::name`]) in the log and in metrics.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Verdict {
            $($(#[$doc])* $verdict $({ $(#[$field_doc])* $field: u32 })?,)*
        }

        /// The names of all verdicts, in the order of [`Verdict::index`].
        pub const NAMES: [&str; KINDS] = [$($name,)*];

        /// The number of kinds of verdicts.
        pub const KINDS: usize = [$($name,)*].len();

        impl Verdict {
            /// All verdicts, in the order of [`Verdict::index`]. Numbers are 0.
            pub const ALL: [Self; KINDS] = [$(Self::$verdict $({ $field: 0 })?,)*];

            /// Returns its code in a snapshot.
            pub(super) fn code(self) -> u8 {
                match self { $(Self::$verdict { .. } => $code,)* }
            }

            /// Returns its number; `None` if it has none.
            pub(super) fn number(self) -> Option<u32> {
                match self {
                    $($(Self::$verdict { $field } => Some($field),)?)*
                    _ => None,
                }
            }

            /// Returns the verdict with this code; `None` if the code is unknown. If it has a number, calls `read_number` with
            /// the name of its field.
            ///
            /// # Errors
            /// Returns the error of `read_number`.
            pub(super) fn from_code<E>(
                code: u8,
                read_number: impl FnOnce(&'static str) -> Result<u32, E>,
            ) -> Result<Option<Self>, E> {
                Ok(Some(match code {
                    $($code => Self::$verdict $({ $field: read_number(concat!("verdict's ", stringify!($field)))? })?,)*
                    _ => return Ok(None),
                }))
            }

            /// Returns its text in the final reply; `None` if the peer cannot act on it or cannot read it.
            #[must_use]
            #[expect(unused_variables, reason = "the text does not have every number")]
            pub fn text(self, $rules: &Rules) -> Option<String> {
                match self { $(Self::$verdict $({ $field })? => $text,)* }
            }
        }
    };
}

// A code is never reused.
verdicts! { |rules|
    /// The message in progress exceeded `max_message`.
    TooLong = 1, "too-long", Some(format!("message exceeds {} bytes", rules.max_message));
    /// The message in progress was not finished within `deadlines.read`.
    ReadDeadline = 2, "read-deadline",
        rules.deadlines.read.as_ref().map(|time| format!("message not finished within {time}"));
    /// No message came within `deadlines.idle`.
    IdleDeadline = 3, "idle-deadline", rules.deadlines.idle.as_ref().map(|time| format!("no message within {time}"));
    /// The connection reached `deadlines.lifetime`.
    Lifetime = 4, "lifetime", rules.deadlines.lifetime.as_ref().map(|time| format!("connection older than {time}"));
    /// The peer's source has as many connections as `limits.connections_per_source` allows.
    TooMany {
        /// The limit.
        limit
    } = 5, "too-many", Some(format!("too many connections from this source (limit {limit})"));
    /// The buffers of the connection do not fit into `limits.buffer_memory`.
    Busy = 6, "busy", Some("out of buffer memory".to_owned());
    /// The peer's kernel took no byte of the replies for `deadlines.write`.
    WriteDeadline = 7, "write-deadline", None;
    /// The peer ended its stream after a whole message, and got every reply.
    PeerClosed = 8, "peer-closed", None;
    /// The connection broke: the peer reset it, or a system call for it failed, which is reported as well.
    PeerReset = 9, "peer-reset", None;
    /// The peer ended its stream in the middle of a message.
    Unterminated {
        /// The number of its bytes that had come, capped at `u32::MAX`.
        bytes
    } = 10, "unterminated", None;
    /// The daemon stopped.
    Shutdown = 11, "shutdown", None;
    /// The connection has not ended, but was handed over to the next process of the daemon.
    HandedOver = 12, "handed-over", None;
    /// The listener demands a PROXY header, and no valid one came in time.
    BadProxyHeader = 13, "bad-proxy-header", None;
    /// The connection was idle, all permits were taken, and another client was waiting (`limits.reclaim_idle`).
    Reclaimed = 14, "reclaimed", Some("connection reclaimed, the server is full".to_owned());
    /// An administrator closed the connection.
    ClosedByAdmin = 15, "closed-by-admin", Some("connection closed by the administrator".to_owned());
}

/// The beginning of a final reply, in place of the prefix.
pub const SERVER_ERROR: &[u8] = b"server error:";

impl Verdict {
    /// Returns the verdict's name, in lower case with hyphens.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[self.index()]
    }

    /// Returns its index in [`NAMES`] and in counters, less than [`KINDS`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.code()) - 1
    }

    /// Returns the final reply: `server error:`, the text, the delimiter. `None` if there is no text, if the text contains the
    /// delimiter, or in raw framing.
    pub(super) fn final_reply(self, rules: &Rules) -> Option<Vec<u8>> {
        if rules.framing == Framing::Raw {
            return None;
        }
        let text = self.text(rules)?;
        let reply = [SERVER_ERROR, text.as_bytes(), rules.delimiter.as_bytes()].concat();
        (rules.delimiter.search(&mut 0, &reply) == Some(reply.len())).then_some(reply)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
