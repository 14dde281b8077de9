//! The reason why a connection ended. An action of a peer is never an error of the daemon: it is expected, named and counted.

use std::fmt;

use super::rules::{Framing, Rules};

/// Defines all verdicts: the code of each in a snapshot, its name, and the text that the peer gets about it; `None` where the
/// peer could do nothing about it or could not read it.
macro_rules! verdicts {
    (|$rules:ident| $(
        $(#[$doc:meta])*
        $verdict:ident $({ $(#[$field_doc:meta])* $field:ident })? = $code:literal, $name:literal, $text:expr;
    )*) => {
        /// Why a connection ended. Each has one name ([`Verdict::name`]) on the wire, in the log, in the metrics and in tests.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Verdict {
            $($(#[$doc])* $verdict $({ $(#[$field_doc])* $field: u32 })?,)*
        }

        /// The names of all verdicts, in the order of [`Verdict::index`].
        pub const NAMES: [&str; KINDS] = [$($name,)*];

        /// How many kinds of verdicts there are.
        pub const KINDS: usize = [$($name,)*].len();

        impl Verdict {
            /// Each of them once, in the order of [`Verdict::index`]; those with a number with 0.
            pub const ALL: [Self; KINDS] = [$(Self::$verdict $({ $field: 0 })?,)*];

            /// Returns its code in a snapshot.
            pub(super) fn code(self) -> u8 {
                match self { $(Self::$verdict { .. } => $code,)* }
            }

            /// Returns the number that it has.
            pub(super) fn number(self) -> Option<u32> {
                match self {
                    $($(Self::$verdict { $field } => Some($field),)?)*
                    _ => None,
                }
            }

            /// Returns the verdict with this code. `read_number` is called if it has a number, with a name for that.
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

            /// Returns the text that the peer gets about it; `None` where the peer could do nothing about it or could not
            /// read it.
            #[must_use]
            #[expect(unused_variables, reason = "the text does not have every number")]
            pub fn text(self, $rules: &Rules) -> Option<String> {
                match self { $(Self::$verdict $({ $field })? => $text,)* }
            }
        }
    };
}

// A code is never used again for something else.
verdicts! { |rules|
    /// The message in progress passed `max_message`.
    TooLong = 1, "too-long", Some(format!("message exceeds {} bytes", rules.max_message));
    /// The message in progress was not finished within `deadlines.read`.
    ReadDeadline = 2, "read-deadline",
        rules.deadlines.read.as_ref().map(|time| format!("message not finished within {time}"));
    /// No message within `deadlines.idle`.
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
    /// The peer's kernel took no byte of what the peer was owed for `deadlines.write`.
    WriteDeadline = 7, "write-deadline", None;
    /// The peer ended its stream after a whole message, and got every reply.
    PeerClosed = 8, "peer-closed", None;
    /// The connection broke: the peer broke it off, or a call for it failed, which is reported then.
    PeerReset = 9, "peer-reset", None;
    /// The peer ended its stream in the middle of a message.
    Unterminated {
        /// How many bytes of it had come; stands still at the most that fit.
        bytes
    } = 10, "unterminated", None;
    /// We end: the daemon stops.
    Shutdown = 11, "shutdown", None;
    /// It has not ended: it was handed over to the next process of the daemon.
    HandedOver = 12, "handed-over", None;
    /// It did not begin with a PROXY header, as its listener demands, or not in time.
    BadProxyHeader = 13, "bad-proxy-header", None;
    /// It was idle, all permits were taken, and another client waited: `limits.reclaim_idle`.
    Reclaimed = 14, "reclaimed", Some("connection reclaimed, the server is full".to_owned());
}

/// The beginning of a final reply, instead of a prefix.
pub const SERVER_ERROR: &[u8] = b"server error:";

impl Verdict {
    /// Returns its name, in lower case with hyphens.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[self.index()]
    }

    /// Returns its number among the kinds: less than [`KINDS`]; the index into [`NAMES`] and into counters.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.code()) - 1
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

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
