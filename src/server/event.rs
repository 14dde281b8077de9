//! Events that the server reports to its embedder. The server does not log: main decides what an event becomes.

use std::fmt::{self, Write};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, SystemTime};

use super::peer::Peer;
use super::proxy_header::BadHeader;
use super::socket::SocketKind;
use crate::escape::quote;
use crate::protocol::Verdict;
use crate::protocol::packet::DropCause;
use crate::protocol::session::Totals;

/// Handles events. It is called on the threads that serve, so it must not block.
pub trait EventHandler: Send + Sync {
    /// Handles an event.
    fn handle(&self, event: Event);

    /// Returns whether [`Event::Opened`] is of interest. If not, it need not be made.
    fn wants_opened(&self) -> bool {
        true
    }

    /// Returns the same of [`Event::Closed`] with this verdict.
    fn wants_closed(&self, _: Verdict) -> bool {
        true
    }
}

/// Handles all events.
impl<F: Fn(Event) + Send + Sync> EventHandler for F {
    fn handle(&self, event: Event) {
        self(event);
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A connection was accepted.
    Opened {
        /// Counted from 1 over all listeners.
        id: u64,
        /// The listener's name.
        listener: Arc<str>,
        /// The peer.
        peer: Peer,
    },
    /// A connection ended.
    Closed {
        /// The id it got when it was accepted.
        id: u64,
        /// The listener's name.
        listener: Arc<str>,
        /// The peer.
        peer: Peer,
        /// Why it ended.
        verdict: Verdict,
        /// What went through it.
        totals: Totals,
        /// How long it existed.
        age: Duration,
        /// What it began with instead of a PROXY header, for [`Verdict::BadProxyHeader`].
        bad_header: Option<BadHeader>,
    },
    /// A peer sent a message, for `log_messages = "summary"`.
    Message {
        /// The id of its connection; a datagram has none.
        connection_id: Option<u64>,
        /// The listener's name.
        listener: Arc<str>,
        /// The peer that sent it.
        peer: Peer,
        /// When the kernel received it: for datagrams, if their socket asks for that.
        received_at: Option<SystemTime>,
        /// The message without its delimiter, for people to read: see [`summary`].
        text: String,
    },
    /// As many connections are open as `limits.connections` allows, or as many of them await their PROXY header as may;
    /// more wait in the backlog.
    LimitReached {
        /// `limits.connections`.
        limit: usize,
        /// How many may await their PROXY header, if that many do.
        awaiting_header: Option<usize>,
    },
    /// Accepting connections or receiving datagrams fails, for a reason that may pass: no descriptors are left, or a
    /// policy denies it. It is tried again.
    AcceptPaused {
        /// The listener's name.
        listener: Arc<str>,
        /// The kind of its socket.
        kind: SocketKind,
        /// What accept(2) or recvmsg(2) said.
        error: io::Error,
        /// When it is tried again.
        retry: Retry,
    },
    /// Accepting connections or receiving datagrams works again.
    AcceptResumed {
        /// The listener's name.
        listener: Arc<str>,
        /// The kind of its socket.
        kind: SocketKind,
    },
    /// A listener failed, and is no longer served.
    ListenerFailed {
        /// The listener's name.
        listener: Arc<str>,
        /// What accept(2) or recvmsg(2) said, or what waits for the socket.
        error: io::Error,
    },
    /// A connection that the previous process accepted was restored, and resumes.
    Resumed {
        /// The id it got there.
        id: u64,
        /// The listener's name.
        listener: Arc<str>,
        /// The peer.
        peer: Peer,
    },
    /// A connection was closed, since a call for it failed through no fault of its peer.
    ConnectionFailed {
        /// The listener's name.
        listener: Arc<str>,
        /// The peer.
        peer: Peer,
        /// What failed.
        error: io::Error,
    },
    /// Messages of a connection that goes on or ends while the server runs are lost: they were to be logged whole, and were not.
    MessagesLost {
        /// The id of the connection.
        id: u64,
        /// The listener's name.
        listener: Arc<str>,
        /// The peer that sent them.
        peer: Peer,
        /// How many.
        count: usize,
    },
    /// Datagrams were dropped: the first for this cause, or all since the last report.
    DatagramsDropped {
        /// The listener's name.
        listener: Arc<str>,
        /// Why they were.
        cause: DropCause,
        /// How many.
        count: u64,
        /// The peer that sent the last one.
        last_peer: Peer,
        /// The path that it named, if it came from a Unix socket with one.
        last_path: Option<PathBuf>,
    },
}

/// When a call that failed is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// When a connection ends, and every second.
    ConnectionEnded,
    /// After so long. Further pauses are longer, up to a second.
    After(Duration),
}

/// One message that a peer sent, for `log_messages = "full"`.
#[derive(Debug, Clone, Copy)]
pub struct ReceivedMessage<'a> {
    /// The id of its connection; a datagram has none.
    pub connection_id: Option<u64>,
    /// The listener's name.
    pub listener: &'a Arc<str>,
    /// The peer that sent it.
    pub peer: Peer,
    /// When the kernel received it: for datagrams, if their socket asks for that.
    pub received_at: Option<SystemTime>,
    /// All of it, without the delimiter. Anything may be in it.
    pub bytes: &'a [u8],
}

/// The lossless log, which gets whole messages. It is called on the threads that serve, so it must not
/// block.
pub trait MessageLog: Send + Sync {
    /// Appends the message, and returns `true` when it is written: what is accepted cannot be lost by this process. Or
    /// returns `false`; then `waker` is woken when it makes sense to try again, with the same message and the same
    /// waker. One that does not try again abandons it.
    fn try_append(&self, message: ReceivedMessage<'_>, waker: &Waker) -> bool;

    /// Forgets the message that was last refused with this waker, if there is one: it is not to be written from now on. Returns
    /// whether it was written already. A log that keeps nothing of what it refuses has nothing to do.
    fn abandon(&self, waker: &Waker) -> bool {
        let _ = waker;
        false
    }
}

/// The messages that the log has not accepted: how many wait for it, and how many are lost. They were not answered.
#[derive(Debug, Default)]
pub struct UnloggedMessages {
    waiting: AtomicUsize,
    lost: AtomicUsize,
}

impl UnloggedMessages {
    /// Returns how many messages wait for the log: of each connection the next one.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns how many messages were lost with their connections. When the server has ended, nothing waits any longer
    /// but what a worker that does not respond has kept.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }

    /// Counts messages that are lost.
    pub fn add_lost(&self, count: usize) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn begin_wait(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end_wait(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where connections report their events and append their messages. Implements `Debug`, which its fields do not.
#[derive(Clone)]
pub(crate) struct EventSink {
    pub(crate) handler: Arc<dyn EventHandler>,
    pub(crate) message_log: Arc<dyn MessageLog>,
    pub(crate) unlogged: Arc<UnloggedMessages>,
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}

impl EventSink {
    /// Reports an event.
    pub(crate) fn report(&self, event: Event) {
        self.handler.handle(event);
    }
}

/// How many bytes of a message a summary shows.
const MAX_SUMMARY_BYTES: usize = 256;

/// A message on one line, in quotation marks: text as it is, the rest as escapes, its first 256 bytes at most, and how
/// many more there are.
#[must_use]
pub fn summary(message: &[u8]) -> String {
    let end = if message.len() <= MAX_SUMMARY_BYTES {
        message.len()
    } else {
        // Not within a character, if it is one: there are at most three bytes after its first.
        let begins = |at: &usize| message[*at] & 0b1100_0000 != 0b1000_0000;
        (MAX_SUMMARY_BYTES - 3..=MAX_SUMMARY_BYTES).rev().find(begins).unwrap_or(MAX_SUMMARY_BYTES)
    };
    let mut text = quote(&message[..end]);
    let omitted = message.len() - end;
    if omitted > 0 {
        let _ = write!(text, "… ({omitted} bytes more)");
    }
    text
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_summary_is_one_readable_line() {
        for (message, expected) in [
            (&b"aaaa"[..], r#""aaaa""#),
            (b"", r#""""#),
            (b"it's\ta \"line\"\r\n", r#""it's\ta \"line\"\r\n""#),
            (b"back\\slash", r#""back\\slash""#),
            ("é😀".as_bytes(), "\"é😀\""),
            (b"\0\x1b[2J\x7f\xff\xc3", r#""\0\u{1b}[2J\u{7f}\xff\xc3""#),
            // What would turn the writing around, or break the line.
            ("a\u{202e}b\u{2028}".as_bytes(), r#""a\u{202e}b\u{2028}""#),
        ] {
            assert_eq!(summary(message), expected);
        }
    }

    #[test]
    fn a_summary_shows_256_bytes_and_says_how_many_more_there_are() {
        let x = |count| "x".repeat(count);
        assert_eq!(summary(x(256).as_bytes()), format!("\"{}\"", x(256)));
        assert_eq!(summary(x(257).as_bytes()), format!("\"{}\"… (1 bytes more)", x(256)));
        assert_eq!(summary(&[0; 65_536]), format!("\"{}\"… (65280 bytes more)", "\\0".repeat(256)));
        // A character is not cut, what is none may be.
        for (character, shown) in [("é", 255), ("€", 254), ("😀", 253)] {
            let message = x(shown) + character + "yy";
            let omitted = character.len() + 2;
            assert_eq!(summary(message.as_bytes()), format!("\"{}\"… ({omitted} bytes more)", x(shown)));
            let message = x(256 - character.len()) + character + "y";
            let all = x(256 - character.len()) + character;
            assert_eq!(summary(message.as_bytes()), format!("\"{all}\"… (1 bytes more)"));
        }
        assert_eq!(summary(&[0x80; 300]), format!("\"{}\"… (44 bytes more)", "\\x80".repeat(256)));
    }
}
