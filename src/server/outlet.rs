//! The outlets of a connection during one drive: its socket, and the log.
//!
//! Part of the hot path: see `connection.rs`.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags};

use super::disposal::Disposal;
use super::event::{Event, EventSink, ReceivedMessage, summary};
use super::listener::ConnectionInfo;
use super::packet_socket;
use super::peer_descriptors::PeerDescriptors;
use super::peer_input;
use crate::protocol::packet::Reply;
use crate::protocol::rules::LogMessages;
use crate::protocol::{Outlet, Scratch, Session, Want};

/// The socket, during one drive.
pub(super) struct SocketOutlet<'a> {
    pub(super) socket: &'a OwnedFd,
    /// Whether the socket or the log had no room. epoll reports when the socket has room; the log wakes the waker when it has.
    pub(super) blocked: bool,
    /// The error that broke the connection.
    pub(super) broken: Option<Errno>,
}

impl SocketOutlet<'_> {
    /// Reads once. Returns the number of bytes; 0 at the end of the stream, `None` if nothing was received.
    #[inline]
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match retry_on_intr(|| rustix::net::recv(self.socket, &mut *buffer, RecvFlags::empty())) {
            Ok((count, _)) => Some(count),
            Err(Errno::AGAIN) => None,
            Err(error) => {
                self.broken = Some(error);
                None
            }
        }
    }
}

/// Not part of the hot path: used for Unix sockets only, and only at their beginning if the kernel refuses descriptors.
impl SocketOutlet<'_> {
    /// Reads once, as [`SocketOutlet::read`] does, and passes received descriptors to the disposal thread. The connection is
    /// parked until they are closed, or until there is room for the next descriptors.
    #[inline(never)]
    pub(super) fn read_with_descriptors(
        &mut self,
        buffer: &mut [u8],
        descriptors: &mut PeerDescriptors,
        parked: &mut bool,
        disposal: &Disposal,
        make_waker: impl Fn() -> Waker,
    ) -> Option<usize> {
        let read = peer_input::read_stream(self.socket, buffer, descriptors, parked, disposal, make_waker);
        read.unwrap_or_else(|error| {
            self.broken = Some(error);
            None
        })
    }
}

/// Logs no messages.
impl Outlet for SocketOutlet<'_> {
    #[inline]
    fn send(&mut self, bytes: &[u8]) -> usize {
        match retry_on_intr(|| rustix::net::send(self.socket, bytes, SendFlags::NOSIGNAL)) {
            Ok(sent) => return sent,
            Err(Errno::AGAIN) => self.blocked = true,
            Err(error) => self.broken = Some(error),
        }
        0
    }

    fn send_packets(&mut self, replies: &[Reply<'_>]) -> usize {
        let mut sent = 0;
        // The next call returns the error of the reply at which this one stopped.
        while let Some((next, more)) = replies.get(sent..).and_then(<[_]>::split_first) {
            let result = if more.is_empty() {
                packet_socket::send(self.socket, next).map(|()| 1)
            } else {
                packet_socket::send_many(self.socket, &replies[sent..])
            };
            match result {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.blocked = true;
                    break;
                }
                Err(error) => {
                    self.broken = Some(error);
                    break;
                }
            }
        }
        sent
    }

    #[inline]
    fn log(&mut self, _: &[u8]) -> bool {
        true
    }

    #[inline]
    fn is_logging(&self) -> bool {
        false
    }
}

/// The socket, and the log of its messages.
pub(super) struct LoggingOutlet<'a, 'w, M> {
    pub(super) inner: &'a mut SocketOutlet<'w>,
    pub(super) sink: &'a EventSink,
    /// Makes a waker for this connection.
    pub(super) make_waker: M,
    pub(super) info: &'a ConnectionInfo,
    pub(super) waker: &'a mut Option<Box<Waker>>,
    /// Whether a message waits for the log, and is counted in [`UnloggedMessages`](super::event::UnloggedMessages).
    pub(super) awaits_log: &'a mut bool,
    pub(super) log: LogMessages,
}

/// Separate functions, so that logging adds no code to the hot path.
impl<M: Fn() -> Waker> LoggingOutlet<'_, '_, M> {
    #[inline(never)]
    pub(super) fn receive(mut self, session: &mut Session, now: Instant, scratch: &mut Scratch, count: usize) {
        session.receive(now, scratch, count, &mut self);
        self.end_wait(session);
    }

    #[inline(never)]
    pub(super) fn process_buffers(mut self, session: &mut Session, now: Instant, scratch: &mut Scratch) {
        session.process_buffers(now, scratch, &mut self);
        self.end_wait(session);
    }

    /// Records that no message waits for the log any longer, if so. Not called for each message that the log accepts: a drain
    /// that ends between two messages would close the connection before the second is logged and the first is answered.
    #[inline]
    pub(super) fn end_wait(&mut self, session: &Session) {
        if *self.awaits_log && !matches!(session.wants(), Want::Log) && !session.has_unlogged_messages() {
            *self.awaits_log = false;
            self.sink.unlogged.end_wait();
        }
    }
}

impl<M: Fn() -> Waker> Outlet for LoggingOutlet<'_, '_, M> {
    fn send(&mut self, bytes: &[u8]) -> usize {
        self.inner.send(bytes)
    }

    fn send_packets(&mut self, replies: &[Reply<'_>]) -> usize {
        self.inner.send_packets(replies)
    }

    fn is_logging(&self) -> bool {
        true
    }

    fn log(&mut self, message: &[u8]) -> bool {
        let ConnectionInfo { id, ref listener, peer } = *self.info;
        // The kernel does not tell when the bytes of a stream were received.
        let (connection_id, received_at) = (Some(id), None);
        let sink = self.sink;
        match self.log {
            LogMessages::Off => true,
            LogMessages::Summary => {
                let listener = Arc::clone(&listener.name);
                let text = summary(message);
                sink.report(Event::Message { connection_id, listener, peer, received_at, text });
                true
            }
            LogMessages::Full => {
                // The log requires the same waker for each attempt.
                let waker = self.waker.get_or_insert_with(|| Box::new((self.make_waker)()));
                let (listener, bytes) = (&listener.name, message);
                let message = ReceivedMessage { connection_id, listener, peer, received_at, bytes };
                let appended = sink.message_log.try_append(message, waker);
                self.inner.blocked |= !appended;
                if !appended && !*self.awaits_log {
                    *self.awaits_log = true;
                    sink.unlogged.begin_wait();
                }
                appended
            }
        }
    }
}
