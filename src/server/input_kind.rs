//! What comes with the input of a connection, and how much of it: part of the hot path, see `connection.rs`.

use std::os::fd::AsFd;

use super::peer_descriptors::PeerDescriptors;
use super::receive_buffer::ReceiveBuffer;

/// What else may come with input, and how much of it.
pub(super) enum InputKind {
    /// Bytes alone.
    Bytes(ReceiveBuffer),
    /// Descriptors as well, over a Unix socket.
    WithDescriptors {
        descriptors: PeerDescriptors,
        /// Whether descriptors that the peer sent wait to be closed, or its next ones to be received: nothing is read then.
        parked: bool,
    },
}

impl InputKind {
    pub(super) fn is_parked(&self) -> bool {
        matches!(self, Self::WithDescriptors { parked: true, .. })
    }

    /// Returns whether only bytes come, and the receive buffer is as it is to be while the connection is read.
    #[inline]
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::Bytes(receive_buffer) => *receive_buffer != ReceiveBuffer::Adapted,
            Self::WithDescriptors { descriptors, parked } => *descriptors == PeerDescriptors::None && !parked,
        }
    }

    /// Returns which descriptors may be queued in the socket.
    pub(super) fn descriptors(&self) -> PeerDescriptors {
        if let Self::WithDescriptors { descriptors, .. } = self { *descriptors } else { PeerDescriptors::None }
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
