//! What is sent, and what must come back: both prepared once, as they stand on the wire.
//!
//! ```text
//! messages   m0 m1 … m16 m0 m1 …     places: 17, and as many more as are owed at once: so any batch is one slice,
//! replies    r0 r1 … r16 r0 r1 …     and so are its replies, wherever among the places it begins
//! ```

use std::fmt;

use crate::protocol::Delimiter;
use crate::protocol::reply::Prefix;

/// The most that may be owed to one connection, messages and replies together, in bytes.
pub const MAX_BATCH: usize = 256 * 1024 * 1024;

/// How much of messages that differ is worth it: beyond this they only fill the processor's cache.
const ENOUGH: usize = 16 * 1024;

/// Messages of one size, each different, one after the other, and their replies.
pub(super) struct Script {
    messages: Vec<u8>,
    replies: Vec<u8>,
    message_size: usize,
    reply_size: usize,
    places: usize,
}

/// A batch of messages and its replies exceed [`MAX_BATCH`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = MAX_BATCH >> 20;
        write!(f, "what each connection has on its way would exceed {limit} MiB; give a smaller --size or --depth")
    }
}

impl std::error::Error for TooLarge {}

impl Script {
    /// Messages of `size` bytes, of which up to `depth` (at least 1) are owed at once.
    pub(super) fn new(size: usize, depth: usize, delimiter: &Delimiter, prefix: &Prefix) -> Result<Self, TooLarge> {
        let (prefix, delimiter) = (prefix.as_bytes(), delimiter.as_bytes());
        let message_size = size.checked_add(delimiter.len()).ok_or(TooLarge)?;
        let reply_size = message_size.checked_add(prefix.len()).ok_or(TooLarge)?;
        let both = message_size.checked_add(reply_size).ok_or(TooLarge)?;
        if depth.checked_mul(both).is_none_or(|batch| batch > MAX_BATCH) {
            return Err(TooLarge);
        }
        // The number must not divide the depth: else each batch of a connection would be the same.
        let least = (ENOUGH / message_size).clamp(2, 16);
        let places = (least..).find(|places| depth % places != 0 || depth == 0).unwrap_or(least);
        let mut script = Self {
            messages: Vec::with_capacity((places + depth) * message_size),
            replies: Vec::with_capacity((places + depth) * reply_size),
            message_size,
            reply_size,
            places,
        };
        let mut bytes = Bytes::without(delimiter);
        for place in 0..places + depth {
            let start = script.messages.len();
            if place < places {
                script.messages.extend(bytes.by_ref().take(size));
                script.messages.extend_from_slice(delimiter);
            } else {
                let again = (place - places) * message_size;
                script.messages.extend_from_within(again..again + message_size);
            }
            script.replies.extend_from_slice(prefix);
            script.replies.extend_from_slice(&script.messages[start..]);
        }
        Ok(script)
    }

    /// The number of different messages.
    pub(super) fn places(&self) -> usize {
        self.places
    }

    /// The bytes of a message, its delimiter counted.
    pub(super) fn message_size(&self) -> usize {
        self.message_size
    }

    /// The bytes of a reply, its delimiter counted.
    pub(super) fn reply_size(&self) -> usize {
        self.reply_size
    }

    /// `count` messages (at most the depth) from the place `first` on.
    pub(super) fn messages(&self, first: usize, count: usize) -> &[u8] {
        &self.messages[first * self.message_size..][..count * self.message_size]
    }

    /// The replies to [`Self::messages`].
    pub(super) fn replies(&self, first: usize, count: usize) -> &[u8] {
        &self.replies[first * self.reply_size..][..count * self.reply_size]
    }
}

/// Bytes of all values but some, in no order, the same ones in every run.
struct Bytes {
    /// What stands in place of each value.
    table: [u8; 256],
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Bytes {
    /// Without those of a delimiter, which so begins nowhere in them.
    fn without(delimiter: &[u8]) -> Self {
        let mut table = [0; 256];
        let allowed = (0..=u8::MAX).filter(|byte| !delimiter.contains(byte));
        let mut others = allowed.clone().cycle();
        for (value, place) in (0..=u8::MAX).zip(&mut table) {
            *place = if delimiter.contains(&value) { others.next().unwrap_or_default() } else { value };
        }
        Self { table, state: 0x9e37_79b9_7f4a_7c15, word: [0; 8], used: 8 }
    }
}

impl Iterator for Bytes {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        if self.used == self.word.len() {
            // xorshift64 (Marsaglia, 2003).
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.word = self.state.to_le_bytes();
            self.used = 0;
        }
        let value = self.word[self.used];
        self.used += 1;
        Some(self.table[usize::from(value)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::message::Message;

    fn script(size: usize, depth: usize, delimiter: &str) -> Script {
        let delimiter = Delimiter::from_escaped(delimiter).unwrap();
        Script::new(size, depth, &delimiter, &Prefix::new(b"server got:")).unwrap()
    }

    #[test]
    fn every_batch_is_messages_and_their_replies() {
        for (size, depth, delimiter) in
            [(0, 1, "\\t"), (1, 16, "\\t"), (16, 17, "\\r\\n"), (3, 40, "aba"), (100_000, 2, "aa")]
        {
            let (script, delimiter_bytes) =
                (script(size, depth, delimiter), Delimiter::from_escaped(delimiter).unwrap());
            for first in 0..script.places() {
                let messages = script.messages(first, depth).chunks(script.message_size());
                let replies = script.replies(first, depth).chunks(script.reply_size());
                assert_eq!((messages.len(), replies.len()), (depth, depth));
                for (message, reply) in messages.zip(replies) {
                    let text = &message[..size];
                    let message_itself = Message::new(text.to_vec(), Some(&delimiter_bytes)).unwrap();
                    assert_eq!(message_itself.terminated(), message);
                    assert_eq!(reply, [b"server got:", message].concat());
                }
            }
        }
    }

    #[test]
    fn one_batch_after_the_other_differs() {
        for depth in [1, 2, 15, 16, 17, 18, 32, 1000] {
            let script = script(16, depth, "\\t");
            let next = depth % script.places();
            assert_ne!(script.messages(0, depth), script.messages(next, depth), "depth {depth}");
        }
    }

    #[test]
    fn a_batch_has_a_limit() {
        let (delimiter, prefix) = (Delimiter::default(), Prefix::new(b""));
        for (size, depth) in [(MAX_BATCH, 1), (usize::MAX, 1), (MAX_BATCH / 32, 17), (0, usize::MAX)] {
            assert_eq!(Script::new(size, depth, &delimiter, &prefix).err(), Some(TooLarge), "{size} {depth}");
        }
    }
}
