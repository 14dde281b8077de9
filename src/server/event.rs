//! Events that the server reports to its embedder. The server does not log: main turns events into log entries.

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

/// Handles events. It is called on the serving threads, so it must not block.
pub trait EventHandler: Send + Sync {
    /// Handles an event.
    fn handle(&self, event: Event);

    /// Returns whether [`Event::Opened`] is to be reported.
    fn wants_opened(&self) -> bool {
        true
    }

    /// Returns whether [`Event::Closed`] with this verdict is to be reported.
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
        /// Its id.
        id: u64,
        /// The listener's name.
        listener: Arc<str>,
        /// The peer.
        peer: Peer,
        /// Why it ended.
        verdict: Verdict,
        /// The counts of its bytes and messages.
        totals: Totals,
        /// The time since it was accepted.
        age: Duration,
        /// The bytes that came instead of a PROXY header, for [`Verdict::BadProxyHeader`].
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
        /// When the kernel received it. Known only for datagrams, and only if their socket has timestamps enabled.
        received_at: Option<SystemTime>,
        /// The message without its delimiter, in readable form ([`summary`]).
        text: String,
    },
    /// The number of connections has reached `limits.connections`, or the number that await their PROXY header has reached its
    /// limit. Further connections wait in the backlog.
    LimitReached {
        /// `limits.connections`.
        limit: usize,
        /// The limit of connections that await their PROXY header, if it is this one that was reached.
        awaiting_header: Option<usize>,
    },
    /// Accepting connections or receiving datagrams fails for a reason that may be temporary: no file descriptors are left, or
    /// a policy denies it. The server tries again.
    AcceptPaused {
        /// The listener's name.
        listener: Arc<str>,
        /// The kind of its socket.
        kind: SocketKind,
        /// The error of accept(2) or recvmsg(2).
        error: io::Error,
        /// When the server tries again.
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
        /// The error of accept(2) or recvmsg(2), or of waiting for the socket.
        error: io::Error,
    },
    /// A connection that a previous process accepted was restored, and resumes.
    Resumed {
        /// The id that it had in the previous process.
        id: u64,
        /// The listener's name.
        listener: Arc<str>,
        /// The peer.
        peer: Peer,
    },
    /// A connection was closed because a system call failed through no fault of its peer.
    ConnectionFailed {
        /// The listener's name.
        listener: Arc<str>,
        /// The peer.
        peer: Peer,
        /// The error of the call.
        error: io::Error,
    },
    /// Messages of a connection could not be written to the lossless log, and are lost. Not reported for connections that the
    /// end of the server cuts off.
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
    /// Datagrams were dropped: the first one for this cause, or all since the last report.
    DatagramsDropped {
        /// The listener's name.
        listener: Arc<str>,
        /// Why they were dropped.
        cause: DropCause,
        /// How many.
        count: u64,
        /// The peer that sent the last one.
        last_peer: Peer,
        /// The path of its sender's Unix socket, if that is bound to one.
        last_path: Option<PathBuf>,
    },
    /// An administrator closes a connection. Its end is reported as well, if there is one with this id.
    CloseRequested {
        /// The id that was given.
        id: u64,
        /// The process that asked for it.
        caller: Peer,
    },
    /// Lame duck has begun: everything is served as before, but load balancers are told to send new clients elsewhere.
    LameDuckBegan {
        /// Who wants that.
        cause: LameDuckCause,
    },
    /// The end of lame duck was asked for.
    LameDuckEnded {
        /// Who wants that.
        cause: LameDuckCause,
        /// Whether it has ended: not if the server is to stop.
        has_ended: bool,
    },
}

/// Why lame duck begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LameDuckCause {
    /// A process asked for it on a control socket.
    Caller(Peer),
    /// A signal.
    Signal(&'static str),
}

/// When a failed call is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// When a connection ends, and once a second.
    ConnectionEnded,
    /// After this time. Later pauses are longer, up to a second.
    After(Duration),
}

/// One message of a peer, for `log_messages = "full"`.
#[derive(Debug, Clone, Copy)]
pub struct ReceivedMessage<'a> {
    /// The id of its connection; a datagram has none.
    pub connection_id: Option<u64>,
    /// The listener's name.
    pub listener: &'a Arc<str>,
    /// The peer that sent it.
    pub peer: Peer,
    /// When the kernel received it. Known only for datagrams, and only if their socket has timestamps enabled.
    pub received_at: Option<SystemTime>,
    /// The whole message without its delimiter. It may contain any bytes.
    pub bytes: &'a [u8],
}

/// The lossless log, which gets whole messages. It is called on the serving threads, so it must not block.
pub trait MessageLog: Send + Sync {
    /// Appends the message, and returns `true` when it is written: this process can no longer lose it. If the log has no room,
    /// returns `false`, and later wakes `waker`. The caller then tries again with the same message and the same waker, or calls
    /// [`MessageLog::abandon`].
    fn try_append(&self, message: ReceivedMessage<'_>, waker: &Waker) -> bool;

    /// Forgets the message that was last refused with this waker, so that it is not written from now on. Returns whether it was
    /// already written. A log that keeps no refused messages need not implement this.
    fn abandon(&self, waker: &Waker) -> bool {
        let _ = waker;
        false
    }
}

/// The counts of messages that the log has not accepted: those that wait for it, and those that are lost. They were not
/// answered.
#[derive(Debug, Default)]
pub struct UnloggedMessages {
    waiting: AtomicUsize,
    lost: AtomicUsize,
}

impl UnloggedMessages {
    /// Returns how many messages wait for the log. Each connection waits with one message.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns how many messages were lost with their connections. After the server has ended, only messages of a worker that
    /// does not respond still count as waiting.
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

/// The receiver of events and messages. Implements `Debug`, unlike its fields.
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

/// The maximum number of message bytes in a summary.
const MAX_SUMMARY_BYTES: usize = 256;

/// Returns a message as one line in quotation marks: printable text as it is, other bytes as escapes. Shows the first 256 bytes
/// at most, and then the number of omitted bytes.
#[must_use]
pub fn summary(message: &[u8]) -> String {
    let end = if message.len() <= MAX_SUMMARY_BYTES {
        message.len()
    } else {
        // A UTF-8 character, which has up to three bytes after its first, is not split.
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
            // Characters that change the writing direction or break the line are escaped.
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
        // A UTF-8 character is not split; other bytes may be.
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
