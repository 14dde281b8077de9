//! The packet buffers of one thread, shared by its connections. They hold no data between two calls of a session.

use std::slice::ChunksExactMut;

use crate::protocol::session::{HEADROOM, MAX_PACKETS};

/// The most bytes for all packets of one call, unless a single packet may be longer.
const MAX_BYTES: usize = 4 << 20;

/// The longest possible packet, in bytes, rounded up. The kernel allocates a packet in one block of at most 4 MiB plus
/// some pages (KMALLOC_MAX_SIZE); sending a longer one fails.
pub(crate) const MAX_PACKET: usize = 8 << 20;

/// The size of a cache line on most CPUs, in bytes.
const CACHE_LINE: usize = 64;

/// Rooms for packets that are received with one call.
#[derive(Debug, Default)]
pub(crate) struct PacketScratch {
    /// Pages that never received data take no memory.
    bytes: Vec<u8>,
}

impl PacketScratch {
    /// Returns between 1 and [`MAX_PACKETS`] rooms, fewer if packets may be large. Each has [`HEADROOM`] bytes, then
    /// room for a packet of `max_message` bytes and one more byte, which detects longer packets.
    pub(crate) fn rooms(&mut self, max_message: usize) -> ChunksExactMut<'_, u8> {
        // An odd number of cache lines, so that the starts of the rooms do not compete for the same cache sets.
        let stride = ((HEADROOM + max_message.min(MAX_PACKET) + 1).div_ceil(CACHE_LINE) | 1) * CACHE_LINE;
        let size = (MAX_BYTES / stride).clamp(1, MAX_PACKETS) * stride;
        if self.bytes.len() < size + CACHE_LINE {
            // Frees the old buffer before the new one is allocated.
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
        // No setting of `max_message` needs more than the longest packet.
        assert!(scratch.bytes.capacity() < 2 * MAX_PACKET);
    }
}
