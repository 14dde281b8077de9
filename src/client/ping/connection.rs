//! The connection of ping: its unwritten bytes, and the reply in progress.

use std::io::{self, ErrorKind};
use std::mem;

use tokio::io::Interest;
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::client::connection::Connection;
use crate::client::expectation::MAX_EXCESS;
use crate::protocol::Delimiter;
use crate::protocol::framer::{Frame, Framer};

/// While this many bytes, or two messages, are unwritten, no more are taken.
const MAX_UNWRITTEN: usize = 1024 * 1024;

/// The connection over which ping sends its messages.
pub(super) struct PingConnection {
    connection: Connection,
    unwritten: Vec<u8>,
    written: usize,
    framer: Framer,
    partial: Vec<u8>,
    chunk: Vec<u8>,
    /// How many bytes of the chunk are filled, and how many of those were scanned.
    filled: usize,
    scanned: usize,
    /// When the chunk came.
    received_at: Instant,
    /// Replies that no message had asked for.
    pub(super) surplus: u64,
}

/// A received packet or event.
pub(super) enum Received {
    /// A reply, without its delimiter, and when its last byte came.
    Reply(Vec<u8>, Instant),
    /// Nothing more now.
    Pending,
    /// Too much without a delimiter.
    TooLong,
    /// The end: why, unless the server ended it properly.
    End(Option<io::Error>),
}

impl PingConnection {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            chunk: connection.allocate_buffer(),
            connection,
            unwritten: Vec::new(),
            written: 0,
            framer: Framer::default(),
            partial: Vec::new(),
            filled: 0,
            scanned: 0,
            received_at: Instant::now(),
            surplus: 0,
        }
    }

    /// Returns the buffer for a message of `size` bytes; `None` while too much is unwritten.
    pub(super) fn write_buffer(&mut self, size: usize) -> Option<&mut Vec<u8>> {
        let waiting = self.unwritten.len() - self.written;
        if self.connection.is_packets() {
            return (waiting == 0).then_some(&mut self.unwritten);
        }
        if waiting + size > MAX_UNWRITTEN.max(2 * size) { None } else { Some(&mut self.unwritten) }
    }

    /// Waits until something can be done.
    pub(super) async fn ready(&self) {
        if self.scanned < self.filled {
            // More replies came at once than were handled.
            return yield_now().await;
        }
        let interest =
            if self.unwritten.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        self.connection.ready(interest).await;
    }

    /// Writes as much as there is room for.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while self.written < self.unwritten.len() {
            match self.connection.try_write(&self.unwritten[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.unwritten.clear();
        self.written = 0;
        Ok(())
    }

    /// Returns the next thing that was received. A right reply has `max_size` bytes without its delimiter; a packet is
    /// a reply.
    pub(super) fn read(&mut self, delimiter: &Delimiter, max_size: usize) -> Received {
        loop {
            if self.connection.is_packets() && self.filled > 0 {
                return Received::Reply(self.chunk[..mem::take(&mut self.filled)].to_vec(), self.received_at);
            }
            if self.scanned < self.filled {
                let rest = &self.chunk[self.scanned..self.filled];
                match self.framer.next(delimiter, max_size + MAX_EXCESS, rest) {
                    Frame::Complete(end) => {
                        self.partial.extend_from_slice(&rest[..end]);
                        self.scanned += end;
                        self.partial.truncate(self.partial.len() - delimiter.len());
                        return Received::Reply(mem::take(&mut self.partial), self.received_at);
                    }
                    Frame::Incomplete => self.partial.extend_from_slice(rest),
                    Frame::TooLong => return Received::TooLong,
                }
            }
            (self.filled, self.scanned) = (0, 0);
            match self.connection.try_read(&mut self.chunk) {
                Ok(None) => return Received::End(None),
                Ok(Some(0)) => return Received::Reply(Vec::new(), Instant::now()),
                Ok(Some(count)) => (self.filled, self.received_at) = (count, Instant::now()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Received::Pending,
                Err(error) => return Received::End(Some(error)),
            }
        }
    }
}
