//! Builds replies: prefix, message, delimiter.
//!
//! All connections of a thread share one [`Scratch`], so a connection needs no buffers of its own unless it has to store data.
//! There is room before the input ([`Scratch::input_room`]), so the prefix of a single message can be written before it, and
//! the reply is sent without copying the message.

use std::fmt;
use std::sync::Arc;

/// The maximum length of a prefix, in bytes.
pub const MAX_PREFIX: usize = 4096;

/// The maximum size of one read, in bytes. A message of the default `max_message` fits.
pub const READ_SIZE: usize = 128 * 1024;

/// When this many bytes of replies are ready, they are sent before more input is processed.
pub(super) const FLUSH_THRESHOLD: usize = 64 * 1024;

/// Short prefixes and messages are copied as one block of this fixed size, in bytes: a few vector moves without a call or a
/// loop.
pub(super) const BLOCK: usize = 64;

/// The alignment of the buffers of a scratch.
const CACHE_LINE: usize = 64;

/// The bytes before the message in a reply: 0 to [`MAX_PREFIX`] bytes.
#[derive(Clone)]
pub struct Prefix {
    /// Shared, because most listeners have the same prefix.
    bytes: Arc<[u8]>,
    /// Its first bytes, padded.
    block: [u8; BLOCK],
    /// Its last bytes, with padding before them.
    end_block: [u8; BLOCK],
}

impl Prefix {
    /// Creates a prefix of these bytes. Truncates it to [`MAX_PREFIX`]; the settings refuse longer ones beforehand.
    #[must_use]
    pub fn new(text: &[u8]) -> Self {
        let bytes = &text[..text.len().min(MAX_PREFIX)];
        let mut block = [0; BLOCK];
        let beginning = &bytes[..bytes.len().min(BLOCK)];
        block[..beginning.len()].copy_from_slice(beginning);
        let mut end_block = [0; BLOCK];
        let end = &bytes[bytes.len().saturating_sub(BLOCK)..];
        end_block[BLOCK - end.len()..].copy_from_slice(end);
        Self { bytes: bytes.into(), block, end_block }
    }

    /// Returns its bytes.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether it fits into a block, as [`Prefix::put_before`] and [`Output::push_replies`] require.
    pub(super) fn is_short(&self) -> bool {
        self.len() <= BLOCK
    }

    /// Writes a short prefix into `input` before `at`, as the end of a block whose other bytes are arbitrary. Returns `false`
    /// if there is no room for a block.
    #[inline]
    pub(super) fn put_before(&self, input: &mut [u8], at: usize) -> bool {
        let room = input.get_mut(..at).and_then(|input| input.last_chunk_mut::<BLOCK>());
        room.map(|room| *room = self.end_block).is_some()
    }
}

impl PartialEq for Prefix {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Prefix {}

/// Formats its first 64 bytes, in quotes.
impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, more) = self.bytes.split_at(self.len().min(BLOCK));
        write!(f, "\"{}\"{}", shown.escape_ascii(), if more.is_empty() { "" } else { "…" })
    }
}

/// The buffers of one thread, for input and for replies. They hold no data between calls of a session.
///
/// Both are aligned to a cache line. Some CPUs copy a large message half as fast to a destination that is 16 bytes
/// behind the beginning of a page, which is where malloc(3) would put it.
pub struct Scratch {
    pub(super) input: Box<[u8]>,
    /// The index of the input. There is room for a prefix before it.
    pub(super) input_start: usize,
    pub(super) output: Output,
}

impl Scratch {
    /// Creates buffers of about 330 KiB. Their pages become resident when they are first used.
    #[must_use]
    pub fn new() -> Self {
        let zeroed = |len| vec![0; len + CACHE_LINE].into_boxed_slice();
        let input = zeroed(MAX_PREFIX + READ_SIZE + BLOCK);
        let input_start = align(&input, MAX_PREFIX);
        let bytes = zeroed(FLUSH_THRESHOLD + MAX_PREFIX + READ_SIZE + 2 * BLOCK);
        let start = align(&bytes, 0);
        Self { input, input_start, output: Output { bytes, start, end: start } }
    }

    /// Returns the room for the next input: [`READ_SIZE`] bytes.
    pub fn input_room(&mut self) -> &mut [u8] {
        &mut self.input[self.input_start..self.input_start + READ_SIZE]
    }
}

/// Returns the first index from `at` on that is aligned to a cache line.
fn align(bytes: &[u8], at: usize) -> usize {
    at + bytes[at..].as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE)
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

/// Replies that are sent together. Has room for [`FLUSH_THRESHOLD`] bytes, and one more reply to a message of one read.
pub(super) struct Output {
    bytes: Box<[u8]>,
    /// The index where the replies start.
    start: usize,
    /// The index where they end.
    end: usize,
}

impl Output {
    pub(super) fn clear(&mut self) {
        self.end = self.start;
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Adds the reply to the message at `from..to` of `input`, which includes its delimiter.
    #[inline]
    pub(super) fn push_reply(&mut self, prefix: &Prefix, input: &[u8], from: usize, to: usize) {
        match self.bytes.get_mut(self.end..).and_then(|room| room.first_chunk_mut()) {
            // The message overwrites the excess bytes.
            Some(room) if prefix.is_short() && to - from >= BLOCK => {
                *room = prefix.block;
                self.end += prefix.len();
            }
            _ => self.push(prefix.as_bytes()),
        }
        self.push(&input[from..to]);
    }

    /// Adds the replies to the messages in `input` that follow each other from `at` on. `last_bytes` has a bit for the last
    /// byte of each message, relative to `at`. Returns the end of the last message.
    // Inlined into its only caller, so that its variables are in registers: messages that follow each other cost most of their
    // time here.
    #[inline(always)]
    pub(super) fn push_replies(&mut self, prefix: &Prefix, input: &[u8], at: usize, last_bytes: u64) -> usize {
        let (head, block) = (prefix.len(), prefix.block);
        let (mut from, mut end, mut remaining) = (at, self.end, last_bytes);
        while remaining != 0 {
            let to = at + remaining.trailing_zeros() as usize + 1;
            remaining &= remaining - 1;
            let room = self.bytes.get_mut(end..).and_then(|room| room.first_chunk_mut::<{ 2 * BLOCK }>());
            match (input.get(from..).and_then(|message| message.first_chunk::<BLOCK>()), room) {
                // The next part overwrites the excess bytes.
                (Some(message), Some(room)) if head <= BLOCK => {
                    room[..BLOCK].copy_from_slice(&block);
                    room[head..head + BLOCK].copy_from_slice(message);
                    end += head + (to - from);
                }
                _ => {
                    self.end = end;
                    self.push_reply(prefix, input, from, to);
                    end = self.end;
                }
            }
            from = to;
        }
        self.end = end;
        from
    }

    /// Adds bytes.
    #[inline]
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffers_begin_at_cache_lines() {
        let mut scratch = Scratch::new();
        scratch.output.clear();
        scratch.output.push(b"a");
        let is_aligned = |bytes: &[u8]| bytes.as_ptr().align_offset(CACHE_LINE) == 0;
        assert!(is_aligned(scratch.output.as_bytes()));
        assert!(is_aligned(scratch.input_room()));
        assert_eq!(scratch.input_room().len(), READ_SIZE);
    }
}
