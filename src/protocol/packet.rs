//! Packets: each is one message, and its reply is one packet. No delimiter is searched for or added.
//!
//! ```text
//! C: 61 61 61 61                                     aaaa
//! S: 73 65 72 76 65 72 20 67 6f 74 3a 61 61 61 61    server got:aaaa
//! ```
//!
//! An empty packet is a message. A packet beyond `max_message` is never answered with a part of it.
//!
//! The sender of a datagram can forge its source address. So a reply can hit another host: with more bytes than were sent
//! ([`DropCause::Amplifies`]), or endlessly, if that host answers as well ([`DropCause::OwnReply`] and others). Such datagrams
//! are dropped, and counted by their cause.

use std::fmt;

use super::rules::{self, Framing, Rules};
use super::verdict::{SERVER_ERROR, Verdict};

/// A reply: one packet of these two parts. The first part is the same in all replies of a listener.
pub type Reply<'a> = [&'a [u8]; 2];

/// The length of the headers on the wire, in bytes: 20 of IPv4 and 8 of UDP.
const HEADERS: usize = 28;

/// The maximum ratio of the length of a reply to that of its message, with headers.
const MAX_AMPLIFICATION: usize = 3;

/// The first port of clients. A reply to a port below it would go to a service, which may answer as well.
const FIRST_CLIENT_PORT: u16 = 1024;

/// The reason why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropCause {
    /// The datagram is longer than `max_message`.
    TooLong,
    /// The reply would be longer than a packet can be.
    ReplyTooLong,
    /// The source port is below 1024.
    ServicePort,
    /// The source is an address on which the listener itself receives.
    OwnAddress,
    /// The datagram was sent to a broadcast or multicast address.
    Broadcast,
    /// The datagram begins like a reply of the listener, or with `server error:`.
    OwnReply,
    /// The reply would be more than three times as long, including headers.
    Amplifies,
    /// The source has used up `limits.datagrams_per_source`.
    Rate,
    /// The source is a Unix socket without a name, so that no reply can be sent to it.
    Nameless,
    /// The source is a Unix socket at a path that is relative, or that leads the daemon to no socket of the sender; or a
    /// socket with an abstract name, to a listener at a path that sends only what the sender says.
    UnsafeAddress,
    /// There was no room for the descriptors, in the log, or on the way of the reply.
    NoRoom,
    /// The send buffer of the listener's socket was full of replies that the network has not taken, or that any clients of a
    /// Unix socket have not read.
    SendBuffer,
    /// The reply could not be sent, because there is no route to the source, or no socket is bound there.
    Unreachable,
    /// The kernel dropped the datagram: the receive buffer of the socket was full, the datagram was damaged, or a
    /// filter refused it. Its source is unknown.
    Kernel,
}

/// The number of causes.
pub const DROP_CAUSES: usize = 14;

/// The names of the causes, in the order of [`DropCause::index`].
pub const DROP_NAMES: [&str; DROP_CAUSES] = [
    "too-long",
    "reply-too-long",
    "service-port",
    "own-address",
    "broadcast",
    "own-reply",
    "amplifies",
    "rate",
    "nameless",
    "unsafe-address",
    "no-room",
    "send-buffer",
    "unreachable",
    "kernel",
];

impl DropCause {
    /// All causes.
    pub const ALL: [Self; DROP_CAUSES] = [
        Self::TooLong,
        Self::ReplyTooLong,
        Self::ServicePort,
        Self::OwnAddress,
        Self::Broadcast,
        Self::OwnReply,
        Self::Amplifies,
        Self::Rate,
        Self::Nameless,
        Self::UnsafeAddress,
        Self::NoRoom,
        Self::SendBuffer,
        Self::Unreachable,
        Self::Kernel,
    ];

    /// Returns its name in the log and in metrics: lower case with hyphens.
    #[must_use]
    pub fn name(self) -> &'static str {
        DROP_NAMES[self.index()]
    }

    /// Returns its index in [`DropCause::ALL`] and [`DROP_NAMES`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for DropCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the reply to a packet under these rules; `None` if the rules have no replies.
#[must_use]
pub fn reply<'a>(rules: &'a Rules, message: &'a [u8]) -> Option<Reply<'a>> {
    match rules.reply {
        rules::ReplyMode::Echo => Some([rules.prefix.as_bytes(), message]),
        rules::ReplyMode::Fixed => Some([&rules.fixed_reply, &[]]),
        rules::ReplyMode::None => None,
    }
}

/// Returns whether replies under these rules say only what the sender of the packet says: its own bytes, without a prefix.
#[must_use]
pub fn says_only_what_the_sender_says(rules: &Rules) -> bool {
    rules.reply == rules::ReplyMode::Echo && rules.prefix.as_bytes().is_empty()
}

/// Returns the final reply to a peer whose connection is closed: `server error:` and the text. `None` if the verdict has no
/// text, if error replies are off, or in raw framing, where only bytes of the peer are sent back.
#[must_use]
pub fn final_reply(rules: &Rules, verdict: Verdict) -> Option<Vec<u8>> {
    let is_told = rules.error_replies && rules.framing != Framing::Raw;
    let text = verdict.text(rules).filter(|_| is_told)?;
    Some([SERVER_ERROR, text.as_bytes()].concat())
}

/// Returns whether a UDP port belongs to a service by convention.
#[must_use]
pub fn is_service_port(port: u16) -> bool {
    port < FIRST_CLIENT_PORT
}

/// Returns why sending `reply` to `message` is unsafe, judged by their contents; `None` if it is safe.
#[must_use]
pub fn unsafe_to_answer(message: &[u8], reply: &Reply<'_>) -> Option<DropCause> {
    let [own, _] = reply;
    if (!own.is_empty() && message.starts_with(own)) || message.starts_with(SERVER_ERROR) {
        return Some(DropCause::OwnReply);
    }
    let answer: usize = reply.iter().map(|part| part.len()).sum();
    (answer + HEADERS > MAX_AMPLIFICATION * (message.len() + HEADERS)).then_some(DropCause::Amplifies)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::protocol::reply::Prefix;

    fn rules(prefix: &[u8]) -> Rules {
        Rules { prefix: Prefix::new(prefix), ..Rules::default() }
    }

    fn drop_cause_of(prefix: &[u8], message: &[u8]) -> Option<DropCause> {
        let rules = rules(prefix);
        reply(&rules, message).and_then(|reply| unsafe_to_answer(message, &reply))
    }

    #[test]
    fn a_reply_is_the_prefix_and_the_message() {
        for message in [&b""[..], b"a", b"a\tb\t", b"\0\xff"] {
            let rules = Rules::default();
            assert_eq!(reply(&rules, message).unwrap().concat(), [b"server got:", message].concat());
        }
    }

    #[test]
    fn a_fixed_reply_is_the_configured_text_and_reply_none_sends_nothing() {
        let fixed_reply = b"hello"[..].into();
        let mut rules = Rules { reply: rules::ReplyMode::Fixed, fixed_reply, ..Rules::default() };
        for message in [&b""[..], b"a\tb"] {
            assert_eq!(reply(&rules, message).unwrap().concat(), b"hello");
        }
        // Two such servers would answer each other forever.
        let own = reply(&rules, b"hello").unwrap();
        assert_eq!(unsafe_to_answer(b"hello", &own), Some(DropCause::OwnReply));
        rules.reply = rules::ReplyMode::None;
        assert_eq!(reply(&rules, b"a"), None);
    }

    #[test]
    fn final_replies_have_no_delimiter_and_may_contain_it() {
        let mut rules = rules(b"");
        assert_eq!(final_reply(&rules, Verdict::TooLong).unwrap(), b"server error:message exceeds 65536 bytes");
        assert_eq!(final_reply(&rules, Verdict::PeerClosed), None);
        rules.delimiter = crate::protocol::Delimiter::new(b"s").unwrap();
        assert!(final_reply(&rules, Verdict::TooLong).is_some());
        rules.framing = Framing::Raw;
        assert_eq!(final_reply(&rules, Verdict::TooLong), None);
        rules.framing = Framing::Delimited;
        rules.error_replies = false;
        assert_eq!(final_reply(&rules, Verdict::TooLong), None);
    }

    #[test]
    fn messages_that_look_like_replies_are_not_answered() {
        for message in [&b"server got:"[..], b"server got:server got:a", b"server error:", b"server error:busy"] {
            assert_eq!(drop_cause_of(b"server got:", message), Some(DropCause::OwnReply));
        }
        for message in [&b"server got"[..], b"server error", b" server got:", b"Server got:a", b""] {
            assert_eq!(drop_cause_of(b"server got:", message), None);
        }
        // Every message begins with an empty prefix, so it is not checked.
        assert_eq!(drop_cause_of(b"", b"a"), None);
        assert_eq!(drop_cause_of(b"", b""), None);
        assert_eq!(drop_cause_of(b"", b"server error:x"), Some(DropCause::OwnReply));
    }

    #[test]
    fn a_reply_with_headers_is_at_most_three_times_as_large_as_its_message() {
        // An empty message has 28 bytes of headers, so its reply may have 3 * 28 = 84 bytes, 56 without headers. Each byte of
        // the message allows three more, one of which is its echo.
        for (message, prefix) in [(0, 56), (1, 58), (100, 256)] {
            let message = vec![b'x'; message];
            assert_eq!(drop_cause_of(&vec![b'p'; prefix], &message), None, "{prefix}");
            assert_eq!(drop_cause_of(&vec![b'p'; prefix + 1], &message), Some(DropCause::Amplifies), "{prefix}");
        }
    }

    #[test]
    fn ports_below_1024_are_service_ports() {
        assert!(is_service_port(0) && is_service_port(7) && is_service_port(1023));
        assert!(!is_service_port(1024) && !is_service_port(65535));
    }

    #[test]
    fn every_drop_cause_has_its_own_number_and_name() {
        let names: BTreeSet<_> = DropCause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), DROP_CAUSES);
        assert!(DropCause::ALL.iter().enumerate().all(|(at, cause)| cause.index() == at));
    }
}
