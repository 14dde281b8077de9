//! The content of packets: each differs from the others on the way and names its source, so that every byte of a reply
//! can be checked, and a reply that is late or comes twice is recognized.

use crate::socket_io::{PREFIX, Workload};

/// The beginning of a message: the number of its source, and its own number.
pub(crate) const HEAD: usize = 8;

/// How many different ends messages have.
const ENDS: usize = 1024;

/// Prepares messages of one size, and their replies.
pub(crate) struct Content {
    size: usize,
    prefix: &'static [u8],
    /// The ends of messages are pieces of it.
    pattern: Vec<u8>,
}

impl Content {
    /// Prepares messages of `size` bytes, [`HEAD`] at least, and replies as the protocol has them.
    pub(crate) fn new(size: usize) -> Self {
        let pattern = Workload::new(size + ENDS, 1).messages(0, 1).to_vec();
        Self { size, prefix: PREFIX, pattern }
    }

    /// Prepares messages and replies for a server that echoes without a prefix.
    pub(crate) fn without_prefix(size: usize) -> Self {
        Self { prefix: &[], ..Self::new(size) }
    }

    /// Returns the bytes of a message.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Returns the bytes of a reply.
    pub(crate) fn reply_size(&self) -> usize {
        self.prefix.len() + self.size
    }

    /// Writes a message.
    pub(crate) fn write(&self, source: u32, number: u32, message: &mut [u8]) {
        message[..4].copy_from_slice(&source.to_le_bytes());
        message[4..HEAD].copy_from_slice(&number.to_le_bytes());
        message[HEAD..].copy_from_slice(self.end(source, number));
    }

    /// Returns the number of the message to which this is the reply. `None` if it is not the reply to any message of
    /// `source`.
    pub(crate) fn number_of_reply(&self, source: u32, reply: &[u8]) -> Option<u32> {
        let message = reply.strip_prefix(self.prefix).filter(|message| message.len() == self.size)?;
        let (head, end) = message.split_at(HEAD);
        let (own, number) = head.split_at(4);
        let number = u32::from_le_bytes(number.try_into().ok()?);
        (own == source.to_le_bytes() && end == self.end(source, number)).then_some(number)
    }

    /// Returns the end of a message, which differs from those of its neighbours.
    fn end(&self, source: u32, number: u32) -> &[u8] {
        let start = source.wrapping_mul(31).wrapping_add(number) as usize % ENDS;
        &self.pattern[start..][..self.size - HEAD]
    }
}
