//! The kind of input that a connection receives, and its state. Part of the hot path, see `connection.rs`.

use std::mem;
use std::os::fd::AsFd;

use super::peer_descriptors::PeerDescriptors;
use super::receive_buffer::ReceiveBuffer;
use crate::protocol::session::MAX_PACKETS;

/// The kind of input of a connection.
pub(super) enum InputKind {
    /// A stream without file descriptors.
    Bytes(ReceiveBuffer),
    /// A Unix stream, over which the peer may also send file descriptors.
    WithDescriptors {
        descriptors: PeerDescriptors,
        /// Whether reading is suspended: the peer's descriptors are still being closed, or there is no room for the
        /// next ones.
        parked: bool,
    },
    /// Packets, over which the peer may also send file descriptors.
    Packets {
        descriptors: PeerDescriptors,
        /// Whether reading is suspended, as for [`InputKind::WithDescriptors`].
        parked: bool,
        pace: Pace,
    },
}

/// How many packets to receive with one call. It adapts to how many came lately: a call for several packets costs more
/// than a call for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// One packet, `left` more times. Then a call asks for several; if only one comes, the next `2 * last` calls ask
    /// for one again.
    One { left: u8, last: u8 },
    /// Up to this many packets.
    Many(u8),
}

/// The least number of packets to ask for when asking for more than one.
const MIN_MANY: u8 = 4;

/// The most calls that ask for a single packet before one asks for several.
const MAX_ONE: u8 = 16;

impl Pace {
    pub(super) const START: Self = Self::One { left: 1, last: 1 };

    /// Returns how many packets the next call asks for.
    #[inline]
    pub(super) fn next(self) -> usize {
        match self {
            Self::One { left: 1.., .. } => 1,
            Self::One { .. } => MIN_MANY.into(),
            Self::Many(count) => count.into(),
        }
    }

    /// Adapts to how many packets the last call received.
    #[inline]
    pub(super) fn note(&mut self, count: usize) {
        *self = match *self {
            Self::One { left: left @ 1.., last } => Self::One { left: left - 1, last },
            _ if count > 1 => {
                let count = u8::try_from((2 * count).min(MAX_PACKETS)).unwrap_or(u8::MAX);
                Self::Many(count.max(MIN_MANY))
            }
            Self::One { last, .. } => {
                let last = (2 * last).min(MAX_ONE);
                Self::One { left: last, last }
            }
            Self::Many(_) => Self::START,
        };
    }
}

impl InputKind {
    pub(super) fn is_parked(&self) -> bool {
        matches!(self, Self::WithDescriptors { parked: true, .. } | Self::Packets { parked: true, .. })
    }

    #[inline]
    pub(super) fn is_packets(&self) -> bool {
        matches!(self, Self::Packets { .. })
    }

    /// Resumes reading. Returns whether it was suspended.
    pub(super) fn unpark(&mut self) -> bool {
        match self {
            Self::WithDescriptors { parked, .. } | Self::Packets { parked, .. } => mem::replace(parked, false),
            Self::Bytes(_) => false,
        }
    }

    /// Returns whether plain recv(2) is enough, and the receive buffer is already set for reading.
    #[inline]
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::Bytes(receive_buffer) => *receive_buffer != ReceiveBuffer::Adapted,
            Self::WithDescriptors { descriptors, parked } => *descriptors == PeerDescriptors::None && !parked,
            Self::Packets { .. } => false,
        }
    }

    /// Returns which file descriptors may be queued in the socket.
    pub(super) fn descriptors(&self) -> PeerDescriptors {
        match self {
            Self::WithDescriptors { descriptors, .. } | Self::Packets { descriptors, .. } => *descriptors,
            Self::Bytes(_) => PeerDescriptors::None,
        }
    }

    /// Prepares the socket for the time until the next drive. `reads` says whether input will be read then; if not, the
    /// kernel may enlarge the receive buffer of a TCP socket.
    #[inline]
    pub(super) fn prepare(&mut self, reads: bool, socket: impl AsFd) {
        if let Self::Bytes(receive_buffer) = self {
            if reads {
                receive_buffer.limit(socket);
            } else {
                receive_buffer.adapt(socket);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_packet_is_asked_for_until_more_come_and_again_when_they_do_not() {
        let mut pace = Pace::START;
        // Returns how many packets each of `times` calls asks for, while `waiting` packets are queued each time.
        let mut asked = |waiting: usize, times: usize| -> Vec<usize> {
            let ask = |_| {
                let asked = pace.next();
                pace.note(asked.min(waiting));
                asked
            };
            (0..times).map(ask).collect()
        };
        assert_eq!(asked(1, 5), [1, 4, 1, 1, 4]);
        // At most 16 calls for one packet come between two calls for several.
        assert_eq!(asked(1, 1000).iter().filter(|count| **count > 1).count(), 60);
        let many = asked(16, 40);
        assert_eq!(many[many.len() - 20..], [32; 20]);
        // A call may also receive nothing.
        assert_eq!(asked(0, 3), [32, 1, 4]);
        assert_eq!(asked(2, 3)[2], 4);
    }
}
