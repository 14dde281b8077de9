//! What the input of a connection is, and what comes with it: part of the hot path, see `connection.rs`.

use std::mem;
use std::os::fd::AsFd;

use super::peer_descriptors::PeerDescriptors;
use super::receive_buffer::ReceiveBuffer;
use crate::protocol::session::MAX_PACKETS;

/// What input is.
pub(super) enum InputKind {
    /// Bytes alone.
    Bytes(ReceiveBuffer),
    /// Bytes and descriptors, over a Unix socket.
    WithDescriptors {
        descriptors: PeerDescriptors,
        /// Whether descriptors that the peer sent wait to be closed, or its next ones to be received: nothing is read then.
        parked: bool,
    },
    /// Packets.
    Packets {
        descriptors: PeerDescriptors,
        /// As above.
        parked: bool,
        pace: Pace,
    },
}

/// How many packets are received at once: as many as have come lately. To ask for more than one costs more than to receive one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// One, `left` more times. Then it is tried whether more come; if not, the next times are twice as many as `last`.
    One { left: u8, last: u8 },
    /// Up to so many.
    Many(u8),
}

/// How many packets are asked for at least, if it is more than one.
const MIN_MANY: u8 = 4;

/// How many times one packet is received, at most, before it is tried whether more come.
const MAX_ONE: u8 = 16;

impl Pace {
    pub(super) const START: Self = Self::One { left: 1, last: 1 };

    /// Returns how many packets to ask for.
    #[inline]
    pub(super) fn next(self) -> usize {
        match self {
            Self::One { left: 1.., .. } => 1,
            Self::One { .. } => MIN_MANY.into(),
            Self::Many(count) => count.into(),
        }
    }

    /// Notes how many packets came.
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

    /// Ends the wait for descriptors. Returns whether there was one.
    pub(super) fn unpark(&mut self) -> bool {
        match self {
            Self::WithDescriptors { parked, .. } | Self::Packets { parked, .. } => mem::replace(parked, false),
            Self::Bytes(_) => false,
        }
    }

    /// Returns whether only bytes come, and the receive buffer is as it is to be while the connection is read.
    #[inline]
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::Bytes(receive_buffer) => *receive_buffer != ReceiveBuffer::Adapted,
            Self::WithDescriptors { descriptors, parked } => *descriptors == PeerDescriptors::None && !parked,
            Self::Packets { .. } => false,
        }
    }

    /// Returns which descriptors may be queued in the socket.
    pub(super) fn descriptors(&self) -> PeerDescriptors {
        match self {
            Self::WithDescriptors { descriptors, .. } | Self::Packets { descriptors, .. } => *descriptors,
            Self::Bytes(_) => PeerDescriptors::None,
        }
    }

    /// Prepares for what comes while the connection waits, and whether that is read: if not, the kernel may enlarge the receive
    /// buffer of TCP.
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
        // How many come each time, and how many are asked for then.
        let mut asked = |waiting: usize, times: usize| -> Vec<usize> {
            let ask = |_| {
                let asked = pace.next();
                pace.note(asked.min(waiting));
                asked
            };
            (0..times).map(ask).collect()
        };
        assert_eq!(asked(1, 5), [1, 4, 1, 1, 4]);
        // Ever more seldom, but not more seldom than this.
        assert_eq!(asked(1, 1000).iter().filter(|count| **count > 1).count(), 60);
        let many = asked(16, 40);
        assert_eq!(many[many.len() - 20..], [32; 20]);
        // Nothing may have come, too.
        assert_eq!(asked(0, 3), [32, 1, 4]);
        assert_eq!(asked(2, 3)[2], 4);
    }
}
