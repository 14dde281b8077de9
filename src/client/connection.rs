//! A connection of either kind, which is written and read without waiting.

use std::io;
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use tokio::io::Interest;

use super::connect::{ConnectError, Stream, connect};
use super::packets::{MAX_PACKET, PacketSocket};
use crate::address::Address;

/// How much of a stream is read at once, in bytes.
const READ_SIZE: usize = 64 * 1024;

/// A connection of either kind.
#[derive(Debug)]
pub enum Connection {
    /// Bytes one after the other.
    Stream(Stream),
    /// One packet after the other.
    Packets(PacketSocket),
}

impl Connection {
    /// Connects to `address` within `limit`, the lookup of its name included.
    ///
    /// # Errors
    /// Returns an error if the server cannot be reached; see [`ConnectError`].
    pub async fn connect(address: &Address, limit: Duration) -> Result<Self, ConnectError> {
        if address.is_packets() {
            PacketSocket::connect(address, limit).await.map(Self::Packets)
        } else {
            connect(address, limit).await.map(Self::Stream)
        }
    }

    /// Returns whether what is written with one call comes with one.
    pub(super) fn is_packets(&self) -> bool {
        matches!(self, Self::Packets(_))
    }

    /// Returns whether the server can end it: a stream or a seqpacket connection, not datagrams.
    pub(super) fn is_connection_oriented(&self) -> bool {
        match self {
            Self::Stream(_) => true,
            Self::Packets(packets) => packets.is_connection_oriented(),
        }
    }

    /// Allocates a buffer for the largest read.
    pub(super) fn allocate_buffer(&self) -> Vec<u8> {
        vec![0; if self.is_packets() { MAX_PACKET } else { READ_SIZE }]
    }

    /// Waits until something can be done.
    pub(super) async fn ready(&self, interest: Interest) {
        match self {
            Self::Stream(stream) => {
                // Errors come again when it is read.
                let _ = stream.ready(interest).await;
            }
            Self::Packets(packets) => packets.ready(interest).await,
        }
    }

    /// Writes as much of it as there is room for; of a packet all.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stream(stream) => stream.try_write(bytes),
            Self::Packets(packets) => packets.try_send(bytes).map(|()| bytes.len()),
        }
    }

    /// Reads what has arrived. Returns its length; `None` if the server has ended its stream.
    pub(super) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Stream(stream) => stream.try_read(buffer).map(|count| (count > 0).then_some(count)),
            Self::Packets(packets) => packets.try_receive(buffer),
        }
    }

    /// Returns the connect error if `error` means that there was no connection at all, or else `error` itself.
    pub(super) fn take_connect_error(&mut self, error: io::Error) -> Result<ConnectError, io::Error> {
        match self {
            Self::Stream(_) => Err(error),
            Self::Packets(packets) => packets.take_connect_error(error),
        }
    }

    /// Ends our stream: no more will be written.
    pub(super) fn shut_down_writes(&self) {
        match self {
            Self::Stream(stream) => {
                // An error shows in what is read.
                let _ = shutdown(stream, Shutdown::Write);
            }
            Self::Packets(packets) => packets.shut_down_writes(),
        }
    }
}
