//! One connection of pings: what is unwritten, and the reply in progress.

use std::io::{self, ErrorKind};
use std::mem;

use tokio::io::Interest;
use tokio::time::Instant;

use crate::client::connection::Connection;
use crate::protocol::Delimiter;
use crate::protocol::framer::{Frame, Framer};

/// While this many bytes, or two messages, are unwritten, no more are taken.
const ENOUGH: usize = 1024 * 1024;

/// How much longer than the right ones a reply may be, to be shown, in bytes.
const MORE: usize = 4096;

/// A connection.
pub(super) struct Link {
    connection: Connection,
    unwritten: Vec<u8>,
    written: usize,
    framer: Framer,
    partial: Vec<u8>,
    chunk: Vec<u8>,
    /// How much of the chunk is there, and how much of that was looked at.
    filled: usize,
    looked_at: usize,
    /// When the chunk came.
    at: Instant,
}

/// What there is to read.
pub(super) enum Received {
    /// A reply, without its delimiter, and when its last byte came.
    Reply(Vec<u8>, Instant),
    /// Nothing more now.
    Nothing,
    /// Too much without a delimiter.
    TooLong,
    /// The end: why, unless the server ended it properly.
    End(Option<io::Error>),
}

impl Link {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            chunk: connection.buffer(),
            connection,
            unwritten: Vec::new(),
            written: 0,
            framer: Framer::default(),
            partial: Vec::new(),
            filled: 0,
            looked_at: 0,
            at: Instant::now(),
        }
    }

    /// Where a message of `size` bytes goes; `None` while too much is there already.
    pub(super) fn room(&mut self, size: usize) -> Option<&mut Vec<u8>> {
        let waiting = self.unwritten.len() - self.written;
        if self.connection.is_packets() {
            return (waiting == 0).then_some(&mut self.unwritten);
        }
        if waiting + size > ENOUGH.max(2 * size) { None } else { Some(&mut self.unwritten) }
    }

    /// Waits until something can be done.
    pub(super) async fn ready(&self) {
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

    /// The next thing that has come. A right reply has `most` bytes without its delimiter; a packet is a reply.
    pub(super) fn read(&mut self, delimiter: &Delimiter, most: usize) -> Received {
        loop {
            if self.connection.is_packets() && self.filled > 0 {
                return Received::Reply(self.chunk[..mem::take(&mut self.filled)].to_vec(), self.at);
            }
            if self.looked_at < self.filled {
                let rest = &self.chunk[self.looked_at..self.filled];
                match self.framer.next(delimiter, most + MORE, rest) {
                    Frame::Complete(end) => {
                        self.partial.extend_from_slice(&rest[..end]);
                        self.looked_at += end;
                        self.partial.truncate(self.partial.len() - delimiter.len());
                        return Received::Reply(mem::take(&mut self.partial), self.at);
                    }
                    Frame::Incomplete => self.partial.extend_from_slice(rest),
                    Frame::TooLong => return Received::TooLong,
                }
            }
            (self.filled, self.looked_at) = (0, 0);
            match self.connection.try_read(&mut self.chunk) {
                Ok(None) => return Received::End(None),
                Ok(Some(0)) => return Received::Reply(Vec::new(), Instant::now()),
                Ok(Some(count)) => (self.filled, self.at) = (count, Instant::now()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Received::Nothing,
                Err(error) => return Received::End(Some(error)),
            }
        }
    }
}
