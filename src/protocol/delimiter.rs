//! Delimiters: the bytes that end a message, and the search for them.
//!
//! A search continues where it stopped. Its state is one number: how many bytes of the delimiter match at the end of the last
//! chunk. So no byte is searched twice, however small the chunks are.

use std::fmt;

use memchr::memmem::Finder;

/// The longest delimiter, in bytes.
pub const MAX_LEN: usize = 16;

/// The end of a message: 1 to 16 bytes of any value. The default is one TAB (0x09).
#[derive(Clone)]
pub struct Delimiter {
    bytes: [u8; MAX_LEN],
    len: u8,
    /// `borders[i]`: length of the longest proper prefix that also ends `bytes[..=i]` (Knuth, Morris, Pratt).
    borders: [u8; MAX_LEN],
    /// The searcher for delimiters of several bytes; `None` for one byte.
    finder: Option<Box<Finder<'static>>>,
}

/// The reason why bytes or a text cannot be a delimiter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DelimiterError {
    /// There are no bytes.
    Empty,
    /// There are more than [`MAX_LEN`] bytes: this many.
    TooLong(usize),
    /// A backslash begins an unknown escape: this one.
    UnknownEscape(String),
}

impl fmt::Display for DelimiterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a delimiter needs at least one byte"),
            Self::TooLong(len) => write!(f, "a delimiter has at most {MAX_LEN} bytes, this one has {len}"),
            Self::UnknownEscape(text) => {
                write!(
                    f,
                    "unknown escape {text} (known: \\t \\n \\r \\0 \\b \\e \\f \\\" \\\\ \\xNN \\uNNNN \\UNNNNNNNN)"
                )
            }
        }
    }
}

impl std::error::Error for DelimiterError {}

impl Delimiter {
    /// Creates a delimiter of exactly these bytes.
    ///
    /// # Errors
    /// Returns an error if there are no bytes, or more than [`MAX_LEN`].
    pub fn new(bytes: &[u8]) -> Result<Self, DelimiterError> {
        if bytes.is_empty() {
            return Err(DelimiterError::Empty);
        }
        let too_long = || DelimiterError::TooLong(bytes.len());
        let len = u8::try_from(bytes.len()).map_err(|_| too_long())?;
        let mut padded = [0; MAX_LEN];
        padded.get_mut(..bytes.len()).ok_or_else(too_long)?.copy_from_slice(bytes);
        let finder = (bytes.len() > 1).then(|| Box::new(Finder::new(bytes).into_owned()));
        Ok(Self { bytes: padded, len, borders: borders(bytes), finder })
    }

    /// Parses a delimiter as written on a command line ([`unescape`]).
    ///
    /// # Errors
    /// Returns an error if an escape is unknown, or if [`Delimiter::new`] refuses the length.
    pub fn from_escaped(text: &str) -> Result<Self, DelimiterError> {
        Self::new(&unescape(text)?)
    }

    /// Returns its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Returns its length in bytes: 1 to 16.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Returns whether it occurs in `bytes`.
    #[must_use]
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.search(&mut 0, bytes).is_some()
    }

    /// Returns its byte if it has only one.
    pub(super) fn single(&self) -> Option<u8> {
        (self.len == 1).then_some(self.bytes[0])
    }

    /// Returns where the delimiter's first occurrence in `chunk` ends (the index after its last byte).
    ///
    /// `matched` is the number of bytes of the delimiter that match at the end of the input before `chunk` (0 at the start of a
    /// message). If nothing is found, it is updated for the end of `chunk`.
    pub(super) fn search(&self, matched: &mut u8, chunk: &[u8]) -> Option<usize> {
        let Some(finder) = &self.finder else {
            return find(self.bytes[0], chunk).map(|at| at + 1);
        };
        let mut at = 0;
        while *matched > 0 {
            let byte = *chunk.get(at)?;
            *matched = self.advance(*matched, byte);
            at += 1;
            if *matched == self.len {
                *matched = 0;
                return Some(at);
            }
        }
        let rest = &chunk[at..];
        if let Some(found) = finder.find(rest) {
            return Some(at + found + self.len());
        }
        let tail = rest.len().saturating_sub(self.len() - 1);
        *matched = rest[tail..].iter().fold(0, |matched, byte| self.advance(matched, *byte));
        None
    }

    /// Returns how many bytes of the delimiter match after `byte`, if `matched` (fewer than all) matched before it.
    fn advance(&self, mut matched: u8, byte: u8) -> u8 {
        while matched > 0 && self.bytes[usize::from(matched)] != byte {
            matched = self.borders[usize::from(matched) - 1];
        }
        if self.bytes[usize::from(matched)] == byte { matched + 1 } else { 0 }
    }
}

impl Default for Delimiter {
    fn default() -> Self {
        let mut bytes = [0; MAX_LEN];
        bytes[0] = b'\t';
        Self { bytes, len: 1, borders: [0; MAX_LEN], finder: None }
    }
}

impl PartialEq for Delimiter {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Delimiter {}

/// Formats it as [`Delimiter::from_escaped`] reads it, in quotes.
impl fmt::Debug for Delimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for byte in self.as_bytes() {
            match byte {
                b'\'' => f.write_str("'")?,
                byte => write!(f, "{}", byte.escape_ascii())?,
            }
        }
        f.write_str("\"")
    }
}

/// Finds `byte` in `chunk`. Searches the first 32 bytes without memchr, because for a short message the call costs more than
/// the search.
#[inline]
fn find(byte: u8, chunk: &[u8]) -> Option<usize> {
    const NEAR: usize = 32;
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // Parsing settings also ends up here. memchr would first detect CPU features, which delays the start of the process.
    let Some(near) = chunk.first_chunk::<NEAR>() else { return chunk.iter().position(|one| *one == byte) };
    let pattern = ONES * u64::from(byte);
    for at in (0..NEAR).step_by(8) {
        let word = near[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        let differs = word ^ pattern;
        // The high bit of every byte that is 0, and perhaps of later bytes.
        let equal = differs.wrapping_sub(ONES) & !differs & HIGH;
        if equal != 0 {
            return Some(at + equal.trailing_zeros() as usize / 8);
        }
    }
    memchr::memchr(byte, &chunk[NEAR..]).map(|at| NEAR + at)
}

/// Returns the positions of `byte` in the first `len` bytes of a block, as a bit set.
#[inline(always)]
pub(super) fn positions(byte: u8, block: &[u8; 64], len: usize) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const LOW: u64 = ONES * 0x7f;
    /// Moves the highest bit of each byte to the top byte, in order.
    const GATHER: u64 = 0x0002_0408_1020_4081;
    let pattern = ONES * u64::from(byte);
    let mut found = 0;
    for at in (0..len.min(64)).step_by(8) {
        let differs = block[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word)) ^ pattern;
        // The high bit of exactly the bytes that are 0.
        let equal = !(((differs & LOW) + LOW) | differs | LOW);
        found |= (equal.wrapping_mul(GATHER) >> 56) << at;
    }
    if len < 64 { found & ((1 << len) - 1) } else { found }
}

/// Computes [`Delimiter::borders`] of a pattern of at most [`MAX_LEN`] bytes.
fn borders(pattern: &[u8]) -> [u8; MAX_LEN] {
    let mut borders = [0; MAX_LEN];
    let mut border = 0_u8;
    for at in 1..pattern.len() {
        while border > 0 && pattern[usize::from(border)] != pattern[at] {
            border = borders[usize::from(border) - 1];
        }
        if pattern[usize::from(border)] == pattern[at] {
            border += 1;
        }
        borders[at] = border;
    }
    borders
}

/// Decodes a text of a command line, with the escapes of a TOML string, `\0`, and `\xNN` for any byte.
///
/// # Errors
/// Returns an error if an escape is unknown.
pub fn unescape(text: &str) -> Result<Vec<u8>, DelimiterError> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = &rest[at..];
        let unknown = || DelimiterError::UnknownEscape(escape.chars().take(4).collect());
        let letter = escape.chars().nth(1).ok_or_else(unknown)?;
        let digits = match letter {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let end = 1 + letter.len_utf8() + digits;
        if digits == 0 {
            bytes.push(match letter {
                't' => b'\t',
                'n' => b'\n',
                'r' => b'\r',
                '0' => 0,
                'b' => 8,
                'e' => 0x1b,
                'f' => 0x0c,
                '"' => b'"',
                '\\' => b'\\',
                _ => return Err(unknown()),
            });
        } else {
            let hex = escape.get(2..end).filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()));
            let code = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).ok_or_else(unknown)?;
            if digits == 2 {
                bytes.push(u8::try_from(code).map_err(|_| unknown())?);
            } else {
                let character = char::from_u32(code).ok_or_else(unknown)?;
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        rest = &escape[end..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_the_byte_and_no_other_in_the_first_bytes_of_a_block() {
        // Bytes that differ from the searched one by one bit, or by a borrow.
        for byte in [b'\t', 0, 0x7f, 0x80, 0xff] {
            let near = [byte, byte ^ 1, byte ^ 0x80, byte.wrapping_add(1), byte.wrapping_sub(1)];
            for shift in 0..near.len() {
                let mut block = [0; 64];
                (0..64).for_each(|at| block[at] = near[(at * 7 / 3 + shift) % near.len()]);
                for len in 0..=64 {
                    let is_there = |at: &usize| *at < len && block[*at] == byte;
                    let expected = (0..64).filter(is_there).fold(0, |found, at| found | 1 << at);
                    assert_eq!(positions(byte, &block, len), expected, "{byte} {len} {block:?}");
                }
            }
        }
    }

    #[test]
    fn escapes_stand_for_their_bytes() {
        for (text, bytes) in [
            (r"\t", &b"\t"[..]),
            (r"\r\n", b"\r\n"),
            (r"\0", b"\0"),
            (r"\xff\x00", b"\xff\0"),
            (r"\u00e9", "é".as_bytes()),
            (r"\U0001F600", "😀".as_bytes()),
            (r"a\\b", b"a\\b"),
            ("é", "é".as_bytes()),
            ("\t", b"\t"),
        ] {
            assert_eq!(Delimiter::from_escaped(text).unwrap().as_bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn invalid_delimiters_are_rejected() {
        for text in [r"\", r"\q", r"\x", r"\x4", r"\xg0", r"\x+1", r"\u12", r"\ud800", r"\U00110000", r"\é"] {
            let error = Delimiter::from_escaped(text).unwrap_err();
            assert!(matches!(error, DelimiterError::UnknownEscape(_)), "{text}: {error}");
        }
        assert_eq!(Delimiter::new(b""), Err(DelimiterError::Empty));
        assert_eq!(Delimiter::new(&[b'x'; 17]), Err(DelimiterError::TooLong(17)));
        assert_eq!(Delimiter::new(&[b'x'; 300]), Err(DelimiterError::TooLong(300)));
        assert!(Delimiter::new(&[b'x'; 16]).is_ok());
    }

    #[test]
    fn the_default_is_one_tab() {
        assert_eq!(Delimiter::default(), Delimiter::new(b"\t").unwrap());
    }
}
