//! The messages that are sent, and the replies that must come: both prepared once, as they stand on the wire.
//!
//! ```text
//! messages   m0 m1 … m16 m0 m1 …     17 distinct messages, and as many more as are owed at once: so any batch is one
//! replies    r0 r1 … r16 r0 r1 …     slice, and so are its replies, whichever message it begins with
//! ```

use std::fmt;

use crate::protocol::reply::Prefix;

/// The most that may be owed to one connection, messages and replies together, in bytes.
pub const MAX_BATCH: usize = 256 * 1024 * 1024;

/// The most bytes of distinct messages: more would only fill the processor's cache.
const MAX_DISTINCT_BYTES: usize = 16 * 1024;

/// Messages of one size, each different, one after the other, and their replies.
pub(super) struct Workload {
    messages: Vec<u8>,
    replies: Vec<u8>,
    message_size: usize,
    reply_size: usize,
    distinct_messages: usize,
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

impl Workload {
    /// Prepares messages of `size` bytes, of which up to `depth` (at least 1) are owed at once. Packets have no delimiter.
    pub(super) fn new(size: usize, depth: usize, delimiter: &[u8], prefix: &Prefix) -> Result<Self, TooLarge> {
        let prefix = prefix.as_bytes();
        let message_size = size.checked_add(delimiter.len()).ok_or(TooLarge)?;
        let reply_size = message_size.checked_add(prefix.len()).ok_or(TooLarge)?;
        let both = message_size.checked_add(reply_size).ok_or(TooLarge)?;
        if depth.checked_mul(both).is_none_or(|batch| batch > MAX_BATCH) {
            return Err(TooLarge);
        }
        // The number must not divide the depth: else each batch of a connection would be the same.
        let least = (MAX_DISTINCT_BYTES / message_size.max(1)).clamp(2, 16);
        let distinct_messages =
            (least..).find(|distinct_messages| depth % distinct_messages != 0 || depth == 0).unwrap_or(least);
        let mut workload = Self {
            messages: Vec::with_capacity((distinct_messages + depth) * message_size),
            replies: Vec::with_capacity((distinct_messages + depth) * reply_size),
            message_size,
            reply_size,
            distinct_messages,
        };
        let mut bytes = RandomBytes::excluding(delimiter);
        for entry in 0..distinct_messages + depth {
            let start = workload.messages.len();
            if entry < distinct_messages {
                workload.messages.extend(bytes.by_ref().take(size));
                workload.messages.extend_from_slice(delimiter);
            } else {
                let repeated_from = (entry - distinct_messages) * message_size;
                workload.messages.extend_from_within(repeated_from..repeated_from + message_size);
            }
            workload.replies.extend_from_slice(prefix);
            workload.replies.extend_from_slice(&workload.messages[start..]);
        }
        Ok(workload)
    }

    /// Returns the number of distinct messages.
    pub(super) fn distinct_messages(&self) -> usize {
        self.distinct_messages
    }

    /// Returns the bytes of a message, including its delimiter.
    pub(super) fn message_size(&self) -> usize {
        self.message_size
    }

    /// Returns the bytes of a reply, including its delimiter.
    pub(super) fn reply_size(&self) -> usize {
        self.reply_size
    }

    /// Returns `count` messages (at most the depth) from number `first` on.
    // A call would cost a twentieth of what the client does for a message.
    #[inline(always)]
    pub(super) fn messages(&self, first: usize, count: usize) -> &[u8] {
        &self.messages[first * self.message_size..][..count * self.message_size]
    }

    /// Returns the replies to [`Self::messages`].
    #[inline(always)]
    pub(super) fn replies(&self, first: usize, count: usize) -> &[u8] {
        &self.replies[first * self.reply_size..][..count * self.reply_size]
    }
}

/// Random bytes of all values but some, the same ones in every run.
struct RandomBytes {
    /// The replacement of each value.
    table: [u8; 256],
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl RandomBytes {
    /// Excludes the bytes of a delimiter, so that it begins nowhere in them.
    fn excluding(delimiter: &[u8]) -> Self {
        let mut table = [0; 256];
        let allowed = (0..=u8::MAX).filter(|byte| !delimiter.contains(byte));
        let mut others = allowed.clone().cycle();
        for (value, entry) in (0..=u8::MAX).zip(&mut table) {
            *entry = if delimiter.contains(&value) { others.next().unwrap_or_default() } else { value };
        }
        Self { table, state: 0x9e37_79b9_7f4a_7c15, word: [0; 8], used: 8 }
    }
}

impl Iterator for RandomBytes {
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
    use crate::protocol::Delimiter;

    fn workload(size: usize, depth: usize, delimiter: &str) -> Workload {
        let delimiter = Delimiter::from_escaped(delimiter).unwrap();
        Workload::new(size, depth, delimiter.as_bytes(), &Prefix::new(b"server got:")).unwrap()
    }

    #[test]
    fn every_batch_is_messages_and_their_replies() {
        for (size, depth, delimiter) in
            [(0, 1, "\\t"), (1, 16, "\\t"), (16, 17, "\\r\\n"), (3, 40, "aba"), (100_000, 2, "aa")]
        {
            let (workload, delimiter_bytes) =
                (workload(size, depth, delimiter), Delimiter::from_escaped(delimiter).unwrap());
            for first in 0..workload.distinct_messages() {
                let messages = workload.messages(first, depth).chunks(workload.message_size());
                let replies = workload.replies(first, depth).chunks(workload.reply_size());
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
    fn successive_batches_differ() {
        for depth in [1, 2, 15, 16, 17, 18, 32, 1000] {
            let workload = workload(16, depth, "\\t");
            let next = depth % workload.distinct_messages();
            assert_ne!(workload.messages(0, depth), workload.messages(next, depth), "depth {depth}");
        }
    }

    #[test]
    fn batch_size_is_limited() {
        let prefix = Prefix::new(b"");
        for (size, depth) in [(MAX_BATCH, 1), (usize::MAX, 1), (MAX_BATCH / 32, 17), (0, usize::MAX)] {
            assert_eq!(Workload::new(size, depth, b"\t", &prefix).err(), Some(TooLarge), "{size} {depth}");
        }
    }
}
