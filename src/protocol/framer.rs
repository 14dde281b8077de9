//! Cuts a stream of bytes into messages.
//!
//! ```text
//! chunks    "aa"      "aa\tb"             "\t"
//! frames    Incomplete Complete(3) Incomplete Complete(1)
//! messages             "aaaa"                 "b"
//! ```
//!
//! The framer stores two numbers and no bytes. The session stores the bytes of an incomplete message.

use super::delimiter::Delimiter;

/// The largest limit on messages, in bytes: 1 GiB.
pub const MAX_MESSAGE: usize = 1 << 30;

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Framer {
    /// The bytes of the message in progress that were consumed so far, including those of a partial delimiter.
    consumed: u32,
    /// The number of bytes at their end that match the beginning of the delimiter.
    matched: u8,
}

/// The result of framing a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// The message in progress ends with this many bytes of the chunk, its delimiter included.
    Complete(usize),
    /// The whole chunk belongs to the message in progress.
    Incomplete,
    /// The message in progress is certain to exceed the limit. The rest of the stream cannot be framed.
    TooLong,
}

impl Framer {
    /// Searches for the end of the message in progress in `chunk`, the bytes that follow those of the last call.
    ///
    /// A message may have `max` bytes (at most [`MAX_MESSAGE`]). The result is [`Frame::TooLong`] as soon as it is certain that
    /// the message has more. Bytes that may begin the delimiter are not counted yet.
    #[inline]
    pub fn next(&mut self, delimiter: &Delimiter, max: usize, chunk: &[u8]) -> Frame {
        let remaining = max + delimiter.len() - self.consumed();
        let window = &chunk[..remaining.min(chunk.len())];
        if let Some(end) = delimiter.search(&mut self.matched, window) {
            self.consumed = 0;
            return Frame::Complete(end);
        }
        // No overflow: the sum is less than `max` and a delimiter.
        self.consumed += u32::try_from(window.len()).unwrap_or(u32::MAX);
        if self.certain_len() > max { Frame::TooLong } else { Frame::Incomplete }
    }

    /// Returns whether a message has begun and not ended.
    #[must_use]
    pub fn in_progress(&self) -> bool {
        self.consumed > 0
    }

    /// Returns the number of consumed bytes of the message in progress, including those of a partial delimiter: at most `max` +
    /// 15.
    #[must_use]
    pub fn consumed(&self) -> usize {
        self.consumed as usize
    }

    /// Returns the number of consumed bytes that cannot be part of the delimiter.
    fn certain_len(&self) -> usize {
        self.consumed() - usize::from(self.matched)
    }
}
