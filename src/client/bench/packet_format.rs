//! Messages and replies as packets: each message says which source sent it, and which of its messages it is.
//!
//! ```text
//! message    0001f 000002a …     source 31, message 42, and the same bytes in all messages
//! reply      server got: 0001f 000002a …
//! ```
//!
//! So a reply is never taken for that of another message or another source, however late it is. The numbers are in
//! hexadecimal digits, so that the server's log and our errors can show them.

use std::ops::Range;

use super::workload::Workload;
use crate::protocol::reply::Prefix;

/// The shortest message, in bytes: the two numbers.
pub const MIN_PACKET: usize = 12;

/// The bits of a message's number. After that many messages the numbers begin anew; no reply is awaited for so long.
const NUMBER_BITS: u32 = 28;

/// The bits of a message's number that are sent.
const NUMBER_MASK: u64 = (1 << NUMBER_BITS) - 1;

/// The digits, and those that replace the one with which replies begin. No message begins like a reply or like
/// `server error:`: a server does not answer such a datagram, since that may be its own reply.
const DIGITS: &[u8; 35] = b"0123456789abcdefghijklmnopqrtuvwxyz";

/// The value of a byte that is not a digit.
const NO_DIGIT: u8 = 0xff;

/// Writes messages and recognizes replies.
pub(super) struct PacketFormat {
    digits: [u8; 16],
    /// The value of each byte as a digit.
    values: [u8; 256],
    prefix: Vec<u8>,
    /// A message, whose numbers are replaced in each.
    template: Vec<u8>,
}

impl PacketFormat {
    /// Has messages that are as long (at least [`MIN_PACKET`]) as those of `workload`, which has no delimiter.
    pub(super) fn new(workload: &Workload, prefix: &Prefix) -> Self {
        let prefix = prefix.as_bytes().to_vec();
        let mut digits = [0; 16];
        let mut values = [NO_DIGIT; 256];
        let allowed = DIGITS.iter().filter(|digit| prefix.first() != Some(digit));
        for ((digit, allowed), value) in digits.iter_mut().zip(allowed).zip(0..) {
            *digit = *allowed;
            values[usize::from(*allowed)] = value;
        }
        Self { digits, values, prefix, template: workload.messages(0, 1).to_vec() }
    }

    /// Returns a message in which the numbers are still to be written.
    pub(super) fn template(&self) -> &[u8] {
        &self.template
    }

    /// Returns the bytes of a reply.
    pub(super) fn reply_size(&self) -> usize {
        self.prefix.len() + self.template.len()
    }

    /// Writes the numbers into a message.
    #[inline]
    pub(super) fn write_numbers(&self, message: &mut [u8], source: u64, number: u64) {
        let id = source << NUMBER_BITS | number & NUMBER_MASK;
        for (digit, byte) in (0..MIN_PACKET).rev().zip(&mut message[..MIN_PACKET]) {
            *byte = self.digits[(id >> (4 * digit) & 15) as usize];
        }
    }

    /// Returns the number of the message to which this is the right reply, without the bits that are not sent. Does not
    /// compare what follows the numbers unless `verify` is set.
    #[inline]
    pub(super) fn right_reply(&self, reply: &[u8], source: u64, verify: bool) -> Option<u64> {
        let message = reply.strip_prefix(&self.prefix[..])?;
        if message.len() != self.template.len() || verify && message[MIN_PACKET..] != self.template[MIN_PACKET..] {
            return None;
        }
        self.read_numbers(message, source)
    }

    /// Returns the number of the message to which this wrong reply belongs, if its numbers can be read: after the prefix,
    /// or, if it has another one, where they are in the whole message at its end.
    pub(super) fn wrong_reply(&self, reply: &[u8], source: u64) -> Option<u64> {
        let after_prefix = reply.strip_prefix(&self.prefix[..]).and_then(|message| self.read_numbers(message, source));
        let from_end = || self.read_numbers(&reply[reply.len().checked_sub(self.template.len())?..], source);
        after_prefix.or_else(from_end)
    }

    /// Returns the number of a message if this source has sent it.
    #[inline]
    fn read_numbers(&self, message: &[u8], source: u64) -> Option<u64> {
        let (mut id, mut all) = (0, 0);
        for byte in message.get(..MIN_PACKET)? {
            let value = self.values[usize::from(*byte)];
            all |= value;
            id = id << 4 | u64::from(value & 15);
        }
        (all != NO_DIGIT && id >> NUMBER_BITS == source).then_some(id & NUMBER_MASK)
    }

    /// Returns the right reply to a message.
    pub(super) fn reply_to(&self, source: u64, number: u64) -> Vec<u8> {
        let mut reply = [&self.prefix[..], &self.template].concat();
        self.write_numbers(&mut reply[self.prefix.len()..], source, number);
        reply
    }
}

/// Returns the whole number of a message, of which these bits were sent, if it is one of `sent`, which end with the
/// newest.
#[inline]
pub(super) fn whole_number(bits: u64, sent: Range<u64>) -> Option<u64> {
    let before_next = sent.end.wrapping_sub(bits) & NUMBER_MASK;
    let number = sent.end.checked_sub(before_next)?;
    sent.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(size: usize, prefix: &[u8]) -> PacketFormat {
        let prefix = Prefix::new(prefix);
        PacketFormat::new(&Workload::new(size, 1, &[], &prefix).unwrap(), &prefix)
    }

    #[test]
    fn replies_tell_their_source_and_message() {
        for prefix in [&b"server got:"[..], b"", b"0", b"a0", b"s"] {
            for size in [MIN_PACKET, 16, 1000] {
                let format = format(size, prefix);
                for (source, number) in [(0, 0), (31, 42), (999_999, NUMBER_MASK), (1, NUMBER_MASK + 2)] {
                    let mut message = format.template().to_vec();
                    format.write_numbers(&mut message, source, number);
                    assert_eq!(message.len(), size);
                    let reply = [prefix, &message].concat();
                    assert_eq!((reply.len(), &reply), (format.reply_size(), &format.reply_to(source, number)));
                    for verify in [true, false] {
                        assert_eq!(format.right_reply(&reply, source, verify), Some(number & NUMBER_MASK));
                        assert_eq!(format.right_reply(&reply, source + 1, verify), None);
                    }
                    assert!(prefix.is_empty() || !message.starts_with(prefix), "{prefix:?}");
                    assert!(!message.starts_with(b"s"), "like a server error");
                }
            }
        }
    }

    #[test]
    fn each_altered_byte_is_found_and_most_replies_still_belong_to_their_message() {
        let format = format(40, b"server got:");
        let right = format.reply_to(5, 77);
        let numbers = 11..11 + MIN_PACKET;
        for at in 0..right.len() {
            let mut reply = right.clone();
            reply[at] ^= 0x80;
            assert_eq!(format.right_reply(&reply, 5, true), None, "byte {at}");
            assert_eq!(format.wrong_reply(&reply, 5), (!numbers.contains(&at)).then_some(77), "byte {at}");
            let is_seen = at < numbers.end;
            assert_eq!(format.right_reply(&reply, 5, false).is_none(), is_seen, "byte {at}");
        }
        for (reply, number) in [
            (&right[..30], Some(77)),
            (&right[..20], None),
            (&right[11..], Some(77)),
            (&[&b"other:"[..], &right[11..]].concat(), Some(77)),
            (&[&right[..], b"x"].concat(), Some(77)),
            (b"", None),
        ] {
            assert_eq!(format.right_reply(reply, 5, false), None, "{reply:?}");
            assert_eq!(format.wrong_reply(reply, 5), number, "{reply:?}");
            assert_eq!(format.wrong_reply(reply, 6), None, "{reply:?}");
        }
    }

    #[test]
    fn numbers_are_whole_again_also_after_they_began_anew() {
        let most = NUMBER_MASK + 1;
        for (bits, sent, number) in [
            (0, 0..0, None),
            (0, 0..1, Some(0)),
            (1, 0..1, None),
            (NUMBER_MASK, 0..1, None),
            (NUMBER_MASK, 0..most + 1, Some(NUMBER_MASK)),
            (0, 0..most + 1, Some(most)),
            // It may be the next one.
            (1, 0..most + 1, None),
            (0, 5..most, None),
            (7, 0..5 * most + 8, Some(5 * most + 7)),
            (9, 0..5 * most + 8, Some(4 * most + 9)),
        ] {
            assert_eq!(whole_number(bits, sent.clone()), number, "{bits} {sent:?}");
        }
    }
}
