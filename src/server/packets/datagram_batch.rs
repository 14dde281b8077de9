//! Batches: the datagrams that one system call receives, and the replies that one system call sends.

use std::array;
use std::io::{self, IoSlice};
use std::mem;

use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, UnixAddr};

use crate::protocol::packet::Reply;
use crate::server::packets::datagram_address::{Datagram, LocalAddress, ReplyTo};
use crate::server::packets::datagram_socket::{DatagramSocket, MAX_BATCH};

/// The minimum number of slots of a call. Fewer would save nothing.
const MIN_BATCH: usize = 4;

/// The maximum size of all slots together, in bytes, unless a single message may be longer.
const MAX_BYTES: usize = 4 << 20;

/// The size of a cache line on most CPUs, in bytes.
const CACHE_LINE: usize = 64;

/// Datagrams that were received with one call, and the buffer for them.
pub(crate) struct Batch {
    /// The maximum length of a message, in bytes.
    max_message: usize,
    /// The slots. Pages that were never written occupy no memory.
    buffer: Vec<u8>,
    /// The distance between two slots, in bytes.
    stride: usize,
    datagrams: Vec<Datagram>,
    /// The number of slots of the next call.
    slots: usize,
}

impl Batch {
    /// Creates a batch without a buffer.
    pub(crate) fn new() -> Self {
        Self { max_message: 0, buffer: Vec::new(), stride: 1, datagrams: Vec::new(), slots: MIN_BATCH }
    }

    /// Allocates the buffer for messages of up to `max_message` bytes.
    pub(crate) fn set_max_message(&mut self, max_message: usize) {
        if self.max_message == max_message && !self.buffer.is_empty() {
            return;
        }
        // Longer than necessary, so that slots for messages of a power of two begin at different offsets in their pages, and do
        // not compete for the same cache sets.
        let stride = (max_message / CACHE_LINE + 2) * CACHE_LINE;
        let slots = (MAX_BYTES / stride).clamp(1, MAX_BATCH);
        // The old buffer is freed first.
        self.buffer = Vec::new();
        *self = Self { max_message, buffer: vec![0; slots * stride], stride, ..Self::new() };
    }

    /// Receives waiting datagrams, `limit` at most. Returns whether there may be more.
    ///
    /// # Errors
    /// Returns the errors of recvmmsg(2); [`io::ErrorKind::WouldBlock`] if there is none.
    pub(crate) fn receive(&mut self, socket: &DatagramSocket, limit: usize) -> io::Result<bool> {
        self.datagrams.clear();
        let Self { max_message, ref mut buffer, stride, ref mut datagrams, slots } = *self;
        let places = buffer.chunks_exact_mut(stride).take(slots.min(limit)).map(|place| &mut place[..max_message]);
        let count = places.len();
        socket.receive_many(places, datagrams)?;
        // The next call is likely to find about as many.
        self.slots = (2 * datagrams.len()).clamp(MIN_BATCH, MAX_BATCH);
        Ok(datagrams.len() == count)
    }

    /// Forgets the datagrams of the last call.
    pub(crate) fn clear(&mut self) {
        self.datagrams.clear();
    }

    /// Receives one datagram with `receive`, which gets a slot.
    ///
    /// # Errors
    /// Returns the errors of `receive`.
    pub(crate) fn receive_one(
        &mut self,
        receive: impl FnOnce(&mut [u8]) -> io::Result<Option<Datagram>>,
    ) -> io::Result<()> {
        self.datagrams.clear();
        self.datagrams.extend(receive(&mut self.buffer[..self.max_message])?);
        Ok(())
    }

    /// Returns the datagrams with their bytes; `None` instead of the bytes if a datagram was longer than its slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Datagram, Option<&[u8]>)> {
        let bytes = self.buffer.chunks_exact(self.stride).map(|place| &place[..self.max_message]);
        self.datagrams.iter().zip(bytes).map(|(datagram, bytes)| (datagram, bytes.get(..datagram.len)))
    }
}

/// Replies that one call sends, in their order, all from the same local address.
pub(crate) struct ReplyBatch<'a> {
    /// The datagrams that the replies answer.
    datagrams: [Option<&'a Datagram>; MAX_BATCH],
    parts: [[IoSlice<'a>; 2]; MAX_BATCH],
    count: usize,
}

impl<'a> ReplyBatch<'a> {
    /// Creates an empty batch.
    pub(crate) fn new() -> Self {
        let nothing = || [IoSlice::new(&[]), IoSlice::new(&[])];
        Self { datagrams: [None; MAX_BATCH], parts: array::from_fn(|_| nothing()), count: 0 }
    }

    /// Returns whether the reply to this datagram can be added to the batch.
    pub(crate) fn has_room_for(&self, datagram: &Datagram) -> bool {
        match (self.datagrams[0], self.count) {
            (_, MAX_BATCH) => false,
            (Some(first), 1..) => local_address(&first.reply_to) == local_address(&datagram.reply_to),
            _ => true,
        }
    }

    /// Adds a reply. [`ReplyBatch::has_room_for`] must have returned `true` for it.
    pub(crate) fn push(&mut self, datagram: &'a Datagram, reply: &Reply<'a>) {
        self.datagrams[self.count] = Some(datagram);
        self.parts[self.count] = reply.map(IoSlice::new);
        self.count += 1;
    }

    /// Sends all replies, and calls `sent` with the result of each.
    pub(crate) fn send(&mut self, socket: &DatagramSocket, mut sent: impl FnMut(&'a Datagram, Result<u64, Errno>)) {
        let count = mem::take(&mut self.count);
        let mut at = 0;
        while at < count {
            let (datagrams, parts) = (&self.datagrams[at..count], &self.parts[at..count]);
            if count - at > 1 {
                let many = send_many(socket, datagrams, parts);
                for (datagram, parts) in datagrams.iter().zip(parts).take(many) {
                    datagram.iter().for_each(|datagram| sent(datagram, Ok(length(parts))));
                }
                at += many;
            }
            // The reply at which sendmmsg(2) stopped, or the only one.
            let Some((Some(datagram), parts)) = self.datagrams[..count].get(at).zip(self.parts.get(at)) else { break };
            let reply = [&*parts[0], &*parts[1]];
            sent(datagram, socket.send(&reply, &datagram.reply_to).map(|()| length(parts)));
            at += 1;
        }
    }
}

/// Sends replies with one call. Returns how many were sent, counted from the first.
fn send_many(socket: &DatagramSocket, datagrams: &[Option<&Datagram>], parts: &[[IoSlice<'_>; 2]]) -> usize {
    let to = |at: usize| datagrams.get(at).copied().flatten().map(|datagram| &datagram.reply_to);
    if socket.is_unix() {
        let addresses: [Option<UnixAddr>; MAX_BATCH] = array::from_fn(|at| match to(at) {
            Some(ReplyTo::Abstract(to)) => Some(*to),
            _ => None,
        });
        socket.send_many(parts, &addresses[..parts.len()], None)
    } else {
        let addresses: [Option<SockaddrStorage>; MAX_BATCH] = array::from_fn(|at| match to(at) {
            Some(ReplyTo::Ip(to, _)) => Some(SockaddrStorage::from(*to)),
            _ => None,
        });
        socket.send_many(parts, &addresses[..parts.len()], to(0).and_then(local_address))
    }
}

fn local_address(reply_to: &ReplyTo) -> Option<LocalAddress> {
    if let ReplyTo::Ip(_, local) = reply_to { *local } else { None }
}

fn length(parts: &[IoSlice<'_>]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}
