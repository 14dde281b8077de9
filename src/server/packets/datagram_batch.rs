//! The datagrams that one call receives, and the replies that one call sends.

use std::array;
use std::io::{self, IoSlice};
use std::mem;

use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, UnixAddr};

use crate::protocol::packet::Reply;
use crate::server::packets::datagram_address::{Datagram, LocalAddress, ReplyTo};
use crate::server::packets::datagram_socket::{DatagramSocket, MAX_BATCH};

/// How many slots a call has at least: nothing is gained by fewer.
const MIN_BATCH: usize = 4;

/// How much room all slots together have at most, unless a single message may be longer.
const MAX_BYTES: usize = 4 << 20;

/// The size of a cache line on most CPUs, in bytes.
const CACHE_LINE: usize = 64;

/// Datagrams that were received with one call, and the room for them.
pub(crate) struct Batch {
    /// How long a message may be.
    max_message: usize,
    /// The slots. What was never received takes no memory.
    buffer: Vec<u8>,
    /// From one slot to the next.
    stride: usize,
    datagrams: Vec<Datagram>,
    /// How many slots the next call has.
    slots: usize,
}

impl Batch {
    /// Creates a batch without room.
    pub(crate) fn new() -> Self {
        Self { max_message: 0, buffer: Vec::new(), stride: 1, datagrams: Vec::new(), slots: MIN_BATCH }
    }

    /// Makes room for messages of so many bytes.
    pub(crate) fn set_max_message(&mut self, max_message: usize) {
        if self.max_message == max_message && !self.buffer.is_empty() {
            return;
        }
        // At different places of their pages, where caches have room for all of them.
        let stride = (max_message / CACHE_LINE + 2) * CACHE_LINE;
        let slots = (MAX_BYTES / stride).clamp(1, MAX_BATCH);
        // The old room first.
        self.buffer = Vec::new();
        *self = Self { max_message, buffer: vec![0; slots * stride], stride, ..Self::new() };
    }

    /// Receives the datagrams that wait, `limit` at most. Returns whether there may be more.
    ///
    /// # Errors
    /// Returns the errors of recvmmsg(2); [`io::ErrorKind::WouldBlock`] if there is none.
    pub(crate) fn receive(&mut self, socket: &DatagramSocket, limit: usize) -> io::Result<bool> {
        self.datagrams.clear();
        let Self { max_message, ref mut buffer, stride, ref mut datagrams, slots } = *self;
        let places = buffer.chunks_exact_mut(stride).take(slots.min(limit)).map(|place| &mut place[..max_message]);
        let count = places.len();
        socket.receive_many(places, datagrams)?;
        // As many as come now will come next.
        self.slots = (2 * datagrams.len()).clamp(MIN_BATCH, MAX_BATCH);
        Ok(datagrams.len() == count)
    }

    /// Receives a datagram by other means: `receive` is given the room for it.
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

    /// Returns the datagrams with their bytes; without them if it was longer than there was room for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Datagram, Option<&[u8]>)> {
        let bytes = self.buffer.chunks_exact(self.stride).map(|place| &place[..self.max_message]);
        self.datagrams.iter().zip(bytes).map(|(datagram, bytes)| (datagram, bytes.get(..datagram.len)))
    }
}

/// Replies that are to be sent with one call, in their order: all from the same local address.
pub(crate) struct ReplyBatch<'a> {
    /// What they answer.
    datagrams: [Option<&'a Datagram>; MAX_BATCH],
    parts: [[IoSlice<'a>; 2]; MAX_BATCH],
    count: usize,
}

impl<'a> ReplyBatch<'a> {
    /// Creates one without replies.
    pub(crate) fn new() -> Self {
        let nothing = || [IoSlice::new(&[]), IoSlice::new(&[])];
        Self { datagrams: [None; MAX_BATCH], parts: array::from_fn(|_| nothing()), count: 0 }
    }

    /// Returns whether a reply can be sent with those that are here.
    pub(crate) fn has_room_for(&self, datagram: &Datagram) -> bool {
        match (self.datagrams[0], self.count) {
            (_, MAX_BATCH) => false,
            (Some(first), 1..) => local_address(&first.reply_to) == local_address(&datagram.reply_to),
            _ => true,
        }
    }

    /// Adds a reply, for which there is room.
    pub(crate) fn push(&mut self, datagram: &'a Datagram, reply: &Reply<'a>) {
        self.datagrams[self.count] = Some(datagram);
        self.parts[self.count] = reply.map(IoSlice::new);
        self.count += 1;
    }

    /// Sends all, and calls `sent` with what came of each.
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
            // The one at which sending stopped, or the only one.
            let Some((Some(datagram), parts)) = self.datagrams[..count].get(at).zip(self.parts.get(at)) else { break };
            let reply = [&*parts[0], &*parts[1]];
            sent(datagram, socket.send(&reply, &datagram.reply_to).map(|()| length(parts)));
            at += 1;
        }
    }
}

/// Sends replies with one call. Returns how many of the first were sent.
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
