//! Any bytes as a datagram to a listener with any prefix: its reply is what it should be or it gets none, and no reply is
//! answered again by one that replies alike.
//!
//! The first byte says how many of the next are the prefix; the rest is the datagram.

#![no_main]

use echoed::protocol::packet::{DropCause, harm, reply};
use echoed::protocol::reply::Prefix;
use echoed::protocol::rules::Rules;
use libfuzzer_sys::fuzz_target;

/// Headers of IPv4 and UDP.
const HEADERS: usize = 28;

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first() else { return };
    let (prefix, message) = rest.split_at(usize::from(*length).min(rest.len()));
    let rules = Rules { prefix: Prefix::new(prefix), ..Rules::default() };
    let Some(parts) = reply(&rules, message) else { panic!("the usual rules answer") };
    let answer = parts.concat();
    assert_eq!(answer, [prefix, message].concat());
    let is_large = answer.len() + HEADERS > 3 * (message.len() + HEADERS);
    match harm(message, &parts) {
        None => {
            assert!(!is_large, "{data:?}");
            let again = reply(&rules, &answer).and_then(|parts| harm(&answer, &parts));
            assert!(prefix.is_empty() || again == Some(DropCause::OwnReply), "{data:?}: {again:?}");
        }
        Some(DropCause::OwnReply) => {
            let own = !prefix.is_empty() && message.starts_with(prefix);
            assert!(own || message.starts_with(b"server error:"), "{data:?}");
        }
        Some(DropCause::Amplifies) => assert!(is_large, "{data:?}"),
        Some(other) => panic!("{data:?}: {other}"),
    }
});
