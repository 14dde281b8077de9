//! Messages that are numbers: each differs from all others, whatever the delimiter.
//!
//! ```text
//! 1, 16 bytes            0000000000000001
//! the same, delimiter 0  1111111111111112
//! ```

use crate::protocol::Delimiter;

/// The shortest message, in bytes: a number for every millisecond of 30 years.
pub const MIN_SIZE: usize = 12;

/// The longest message, in bytes.
pub const MAX_SIZE: usize = 16 << 20;

/// The digits that are left where the delimiter has some of the first ten.
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Encodes and decodes numbers of one size.
#[derive(Debug, Clone)]
pub(super) struct NumberCodec {
    digits: [u8; 10],
    size: usize,
}

impl NumberCodec {
    /// Creates a codec of numbers of `size` bytes, none of which is in the delimiter (which has at most 16, so that
    /// enough are left).
    pub(super) fn new(size: usize, delimiter: &Delimiter) -> Self {
        let mut digits = [0; 10];
        let allowed = DIGITS.iter().filter(|digit| !delimiter.as_bytes().contains(digit));
        for (digit, allowed) in digits.iter_mut().zip(allowed) {
            *digit = *allowed;
        }
        Self { digits, size }
    }

    /// Returns the size of each message, in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Appends a number.
    pub(super) fn encode(&self, number: u64, output: &mut Vec<u8>) {
        let start = output.len();
        output.resize(start + self.size, self.digits[0]);
        let mut rest = number;
        for output_byte in output[start..].iter_mut().rev() {
            *output_byte = self.digits[usize::try_from(rest % 10).unwrap_or_default()];
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
    }

    /// Returns the number that these bytes are, if they are one.
    pub(super) fn decode(&self, bytes: &[u8]) -> Option<u64> {
        if bytes.len() != self.size {
            return None;
        }
        bytes.iter().try_fold(0_u64, |number, byte| {
            let digit = self.digits.iter().position(|digit| digit == byte)?;
            number.checked_mul(10)?.checked_add(digit as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decoded_as_they_were_encoded_whatever_the_delimiter() {
        for delimiter in ["\\t", "0", "0123456789abcdef", "17", "\\n"] {
            let delimiter = Delimiter::from_escaped(delimiter).unwrap();
            for size in [MIN_SIZE, 16, 1000] {
                let codec = NumberCodec::new(size, &delimiter);
                for number in [0, 1, 9, 10, 12_345, 999_999_999_999] {
                    let mut bytes = Vec::new();
                    codec.encode(number, &mut bytes);
                    assert_eq!((bytes.len(), codec.decode(&bytes)), (size, Some(number)), "{delimiter:?}");
                    assert!(bytes.iter().all(|byte| !delimiter.as_bytes().contains(byte)), "{delimiter:?}");
                }
            }
        }
    }

    #[test]
    fn bytes_that_are_not_a_number_are_rejected() {
        let codec = NumberCodec::new(12, &Delimiter::default());
        for bytes in [&b""[..], b"1", b"00000000001x", b"0000000000001", b" 00000000001", b"-00000000001"] {
            assert_eq!(codec.decode(bytes), None, "{bytes:?}");
        }
        // More than can be counted.
        assert_eq!(NumberCodec::new(30, &Delimiter::default()).decode(&[b'9'; 30]), None);
    }
}
