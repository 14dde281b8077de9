//! Sending and receiving several packets with one call, so that the load costs less than what it measures.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

use crate::packets::content::Content;
use crate::packets::window::MAX_WINDOW;
use crate::socket_io::{receive_packet, try_send};
use crate::{Context as _, Result};

/// The buffers in which packets are written and received.
pub(crate) struct PacketIo {
    content: Content,
    buffer: Vec<u8>,
    /// The distance of two packets in the buffer. There is room for a byte too many, which a reply must not have.
    stride: usize,
    headers: MultiHeaders<SockaddrStorage>,
    /// The lengths of the packets that were received last.
    lengths: Vec<usize>,
}

impl PacketIo {
    /// Creates buffers for packets with this content.
    pub(crate) fn new(content: Content) -> Self {
        let stride = content.reply_size() + 1;
        Self {
            content,
            buffer: vec![0; stride * MAX_WINDOW],
            stride,
            headers: MultiHeaders::preallocate(MAX_WINDOW, None),
            lengths: Vec::with_capacity(MAX_WINDOW),
        }
    }

    /// Sends the messages of a source from number `first` on. Returns how many the socket takes now.
    pub(crate) fn send(&mut self, socket: &OwnedFd, source: u32, first: u32, count: usize) -> Result<usize> {
        let size = self.content.size();
        let slots = self.buffer.chunks_exact_mut(self.stride).take(count);
        for (slot, number) in slots.zip(0..) {
            self.content.write(source, first.wrapping_add(number), &mut slot[..size]);
        }
        if count == 1 {
            return Ok(usize::from(try_send(socket, &self.buffer[..size])? == size));
        }
        let slots = self.buffer.chunks_exact(self.stride).take(count);
        let slices: Vec<[IoSlice<'_>; 1]> = slots.map(|slot| [IoSlice::new(&slot[..size])]).collect();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendmmsg(socket.as_raw_fd(), &mut self.headers, &slices, [None; MAX_WINDOW], [], flags) {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            sent => Ok(sent.context("sending packets")?.count()),
        }
    }

    /// Receives up to `most` packets, and returns how many there were.
    pub(crate) fn receive(&mut self, socket: &OwnedFd, most: usize) -> Result<usize> {
        self.lengths.clear();
        if most == 1 {
            self.lengths.extend(receive_packet(socket, &mut self.buffer[..self.stride])?);
        } else {
            let slots = self.buffer.chunks_exact_mut(self.stride).take(most);
            let mut slices: Vec<[IoSliceMut<'_>; 1]> = slots.map(|slot| [IoSliceMut::new(slot)]).collect();
            let flags = MsgFlags::MSG_DONTWAIT;
            match recvmmsg(socket.as_raw_fd(), &mut self.headers, slices.iter_mut(), flags, None) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                received => self.lengths.extend(received.context("receiving packets")?.map(|packet| packet.bytes)),
            }
        }
        Ok(self.lengths.len())
    }

    /// Returns the number of the message of `source` to which a packet is the reply, one of those that were received last.
    /// `None` if it is not the reply to any.
    pub(crate) fn number_of_reply(&self, source: u32, index: usize) -> Option<u32> {
        self.content.number_of_reply(source, &self.buffer[index * self.stride..][..self.lengths[index]])
    }
}
