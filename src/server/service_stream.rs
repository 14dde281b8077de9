//! A connection that a task serves: a stream for tokio, of any kind of socket.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net as unix;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use super::accepted_socket::AcceptedSocket;
use super::disposal::Disposal;
use super::peer::Peer;
use super::peer_descriptors::{self, PeerDescriptors};
use super::peer_input;

/// A connection that a task serves. Descriptors that its peer sends break it, and are closed by another thread.
#[derive(Debug)]
pub struct ServiceStream {
    /// There until the drop.
    stream: Option<UnixStream>,
    descriptors: PeerDescriptors,
    disposal: Disposal,
}

impl ServiceStream {
    /// Registers a socket with the reactor of this thread.
    ///
    /// # Errors
    /// Returns the errors of [`AcceptedSocket::register`].
    pub(crate) fn new(
        socket: AcceptedSocket,
        disposal: &Disposal,
    ) -> Result<Self, (io::Error, Option<AcceptedSocket>)> {
        let (stream, descriptors) = socket.register(|socket| UnixStream::from_std(unix::UnixStream::from(socket)))?;
        Ok(Self { stream: Some(stream), descriptors, disposal: disposal.clone() })
    }

    /// Returns the process at the other end, or its address.
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer::of(self.stream(), None)
    }

    fn stream(&self) -> &UnixStream {
        let Some(stream) = &self.stream else { unreachable!("it is there until the drop") };
        stream
    }

    /// Reads once.
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { stream: Some(stream), descriptors, disposal } = self else { return Ok(0) };
        stream.try_io(Interest::READABLE, || {
            if *descriptors == PeerDescriptors::None {
                return Ok(retry_on_intr(|| recv(&*stream, &mut *buffer, RecvFlags::empty()))?.0);
            }
            let mut parked = false;
            let make_waker = || Waker::noop().clone();
            match peer_input::read_stream(&*stream, buffer, descriptors, &mut parked, disposal, make_waker)? {
                _ if parked => Err(io::Error::new(ErrorKind::InvalidData, "the peer has sent descriptors")),
                Some(count) => Ok(count),
                None => Err(ErrorKind::WouldBlock.into()),
            }
        })
    }
}

impl AsyncRead for ServiceStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream().poll_read_ready(context))?;
            match self.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ServiceStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.stream();
        loop {
            ready!(stream.poll_write_ready(context))?;
            let write = || Ok(retry_on_intr(|| send(stream, bytes, SendFlags::NOSIGNAL))?);
            match stream.try_io(Interest::WRITABLE, write) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A peer that is gone does not mind; the next read says so.
        let _ = shutdown(self.stream(), Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}

/// Closes the socket: on another thread, if descriptors may be queued in it.
impl Drop for ServiceStream {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        if self.descriptors == PeerDescriptors::None || peer_descriptors::shut_down_empty(&stream) {
            return;
        }
        // Its registration cannot be removed only if the reactor is gone, with the process.
        if let Ok(stream) = stream.into_std() {
            self.disposal.close(OwnedFd::from(stream), None);
        }
    }
}
