//! Chunks in, messages out.
//!
//! ```text
//! chunks    "aa"      "aa\tb"             "\t"
//! frames    Incomplete Complete(3) Incomplete Complete(1)
//! messages             "aaaa"                 "b"
//! ```
//!
//! The framer keeps two numbers and no byte: the session keeps the bytes of an incomplete message.

use super::delimiter::Delimiter;

/// The largest limit on messages, in bytes: 1 GiB.
pub const MAX_MESSAGE: usize = 1 << 30;

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Framer {
    /// Bytes of the message in progress that were consumed so far, those of a partial delimiter included.
    consumed: u32,
    /// How many bytes at their end match the beginning of the delimiter.
    matched: u8,
}

/// The result of framing a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// The message in progress ends with this many bytes of the chunk, its delimiter included.
    Complete(usize),
    /// The whole chunk belongs to the message in progress.
    Incomplete,
    /// The message in progress is certain to pass the limit. The stream cannot be followed any further.
    TooLong,
}

impl Framer {
    /// Looks for the end of the message in progress in `chunk`, the bytes that follow those of the last call.
    ///
    /// A message of `max` bytes (at most [`MAX_MESSAGE`]) is allowed; at one more, as soon as that is certain, it is
    /// [`Frame::TooLong`]. Bytes that may begin the delimiter are not certain yet.
    #[inline]
    pub fn next(&mut self, delimiter: &Delimiter, max: usize, chunk: &[u8]) -> Frame {
        let remaining = max + delimiter.len() - self.consumed();
        let window = &chunk[..remaining.min(chunk.len())];
        if let Some(end) = delimiter.search(&mut self.matched, window) {
            self.consumed = 0;
            return Frame::Complete(end);
        }
        // No overflow: it is less than `max` and a delimiter.
        self.consumed += u32::try_from(window.len()).unwrap_or(u32::MAX);
        if self.certain_len() > max { Frame::TooLong } else { Frame::Incomplete }
    }

    /// Returns whether a message has begun and not ended.
    #[must_use]
    pub fn in_progress(&self) -> bool {
        self.consumed > 0
    }

    /// Returns how many bytes of the message in progress were consumed, if no delimiter follows: at most `max` + 15.
    #[must_use]
    pub fn consumed(&self) -> usize {
        self.consumed as usize
    }

    /// Returns how many bytes belong to the message in progress whatever comes next.
    fn certain_len(&self) -> usize {
        self.consumed() - usize::from(self.matched)
    }
}
