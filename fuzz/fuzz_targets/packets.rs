//! Any bytes as a datagram to a listener with any prefix or fixed reply: it gets the expected reply or none, and no
//! reply is answered again by a listener with the same rules.
//!
//! The first byte says how many of the next are the prefix and the fixed reply; the rest is the datagram.

#![no_main]

use echoed::protocol::packet::{DropCause, reply, unsafe_to_answer};
use echoed::protocol::reply::Prefix;
use echoed::protocol::rules::{ReplyMode, Rules};
use libfuzzer_sys::fuzz_target;

/// Headers of IPv4 and UDP.
const HEADERS: usize = 28;

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first() else { return };
    let (prefix, message) = rest.split_at(usize::from(*length).min(rest.len()));
    check(ReplyMode::Echo, prefix, message, Some([prefix, message].concat()));
    check(ReplyMode::Fixed, prefix, message, Some(prefix.to_vec()));
    check(ReplyMode::None, prefix, message, None);
});

/// Checks the reply to a message under a reply mode, with these bytes as the prefix and as the fixed reply.
fn check(kind: ReplyMode, prefix: &[u8], message: &[u8], expected: Option<Vec<u8>>) {
    let rules = Rules { reply: kind, prefix: Prefix::new(prefix), fixed_reply: prefix.into(), ..Rules::default() };
    let parts = reply(&rules, message);
    let answer = parts.map(|parts| parts.concat());
    assert_eq!(answer, expected);
    let (Some(parts), Some(answer)) = (parts, answer) else { return };
    let is_large = answer.len() + HEADERS > 3 * (message.len() + HEADERS);
    match unsafe_to_answer(message, &parts) {
        None => {
            assert!(!is_large, "{kind:?}: {prefix:?}, {message:?}");
            let again = reply(&rules, &answer).and_then(|parts| unsafe_to_answer(&answer, &parts));
            assert!(
                prefix.is_empty() || again == Some(DropCause::OwnReply),
                "{kind:?}: {prefix:?}, {message:?}: {again:?}"
            );
        }
        Some(DropCause::OwnReply) => {
            let is_own = !prefix.is_empty() && message.starts_with(prefix);
            assert!(is_own || message.starts_with(b"server error:"), "{kind:?}: {prefix:?}, {message:?}");
        }
        Some(DropCause::Amplifies) => assert!(is_large, "{kind:?}: {prefix:?}, {message:?}"),
        Some(other) => panic!("{kind:?}: {prefix:?}, {message:?}: {other}"),
    }
}
