//! The buffers of one thread for the packets of its connections. Nothing stays in them from one call of a session to the next.

use std::slice::ChunksExactMut;

use crate::protocol::session::{HEADROOM, MAX_PACKETS};

/// How much room all packets of a call have together at most, unless a single one may be longer.
const MAX_BYTES: usize = 4 << 20;

/// How long a packet can be at most, in bytes: the kernel allocates one in a piece of 4 MiB and some pages at most
/// (KMALLOC_MAX_SIZE), so that longer ones fail to be sent.
const MAX_PACKET: usize = 8 << 20;

/// The size of a cache line on most CPUs, in bytes.
const CACHE_LINE: usize = 64;

/// Room for packets that are received with one call.
#[derive(Debug, Default)]
pub(crate) struct PacketScratch {
    /// What was never received takes no memory.
    bytes: Vec<u8>,
}

impl PacketScratch {
    /// Returns rooms for packets of at most `max_message` bytes each, with [`HEADROOM`] before: [`MAX_PACKETS`] of them, fewer if
    /// the packets may be large, and one at least. There is room for a byte more, which shows that a packet is too long.
    pub(crate) fn rooms(&mut self, max_message: usize) -> ChunksExactMut<'_, u8> {
        // An odd number of cache lines, so that the beginnings of all do not compete for the same lines of the cache.
        let stride = ((HEADROOM + max_message.min(MAX_PACKET) + 1).div_ceil(CACHE_LINE) | 1) * CACHE_LINE;
        let size = (MAX_BYTES / stride).clamp(1, MAX_PACKETS) * stride;
        if self.bytes.len() < size + CACHE_LINE {
            // The old room first.
            self.bytes = Vec::new();
            self.bytes = vec![0; size + CACHE_LINE];
        }
        let start = self.bytes.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE);
        self.bytes[start..start + size].chunks_exact_mut(stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_the_longest_packets_and_for_as_many_as_fit() {
        let mut scratch = PacketScratch::default();
        let cases = [(0, 32), (16, 32), (65_536, 32), (1 << 20, 3), (8 << 20, 1), (1 << 30, 1), (16, 32)];
        for (max_message, count) in cases {
            let rooms = scratch.rooms(max_message);
            assert_eq!(rooms.len(), count, "{max_message}");
            for room in rooms {
                assert!(room.len() > HEADROOM + max_message.min(MAX_PACKET));
                assert_eq!(room.as_ptr().align_offset(CACHE_LINE), 0);
            }
        }
        // However long messages may be, no packet needs more.
        assert!(scratch.bytes.capacity() < 2 * MAX_PACKET);
    }
}
