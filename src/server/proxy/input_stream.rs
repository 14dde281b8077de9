//! The socket of a connection while a task reads its PROXY header.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net as unix;
use std::sync::Arc;
use std::task::Waker;

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::server::accepted_socket::AcceptedSocket;
use crate::server::admission::Permit;
use crate::server::disposal::{Disposal, Unparked};
use crate::server::peer_descriptors::PeerDescriptors;
use crate::server::peer_input;
use crate::server::receive_buffer::ReceiveBuffer;

/// A socket that a task reads.
pub(super) struct InputStream {
    stream: UnixStream,
    descriptors: PeerDescriptors,
    disposal: Disposal,
    /// Notified when descriptors from the peer are closed, and when there is room for further ones.
    unparked: Arc<Unparked>,
    /// Whether that is awaited. The socket is not read meanwhile.
    parked: bool,
    receive_buffer: ReceiveBuffer,
}

impl InputStream {
    /// Registers a socket with the reactor of this thread, and limits its receive buffer ([`ReceiveBuffer::limit`]).
    ///
    /// # Errors
    /// Returns the errors of [`AcceptedSocket::register`].
    pub(super) fn new(
        socket: AcceptedSocket,
        disposal: &Disposal,
    ) -> Result<Self, (io::Error, Option<AcceptedSocket>)> {
        let mut receive_buffer = socket.receive_buffer;
        receive_buffer.limit(&socket);
        let (stream, descriptors) = socket.register(|socket| UnixStream::from_std(unix::UnixStream::from(socket)))?;
        let (disposal, unparked) = (disposal.clone(), Arc::default());
        Ok(Self { stream, descriptors, disposal, unparked, parked: false, receive_buffer })
    }

    /// Lets the kernel adapt the receive buffer, because the socket is not read for a while.
    pub(super) fn stop_reading(&mut self) {
        self.receive_buffer.adapt(&self.stream);
    }

    /// Waits until there may be input, and until the descriptors that came with earlier input are closed.
    ///
    /// # Errors
    /// Returns an error if the runtime ends.
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        self.unparked().await;
        self.stream.readable().await
    }

    /// Waits until the descriptors that came with earlier input are closed, or until there is room for the next ones.
    pub(super) async fn unparked(&mut self) {
        if self.parked {
            self.unparked.wait().await;
            self.parked = false;
        }
    }

    /// Copies input, which stays in the socket. Returns the number of bytes; 0 at the end of the stream.
    ///
    /// # Errors
    /// Returns an error if recv(2) fails; [`ErrorKind::WouldBlock`] if there is no input.
    pub(super) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // Descriptors stay in the socket as well.
        let peek = || Ok(retry_on_intr(|| recv(&self.stream, &mut *buffer, RecvFlags::PEEK))?.0);
        self.stream.try_io(Interest::READABLE, peek)
    }

    /// Receives bytes, and passes received descriptors to the disposal thread. Returns the number of bytes; 0 at the end of the
    /// stream, `None` if nothing is received until there is room for the descriptors.
    ///
    /// # Errors
    /// Returns an error if recvmsg(2) fails; [`ErrorKind::WouldBlock`] if there is no input.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Self { stream, descriptors, disposal, unparked, parked, receive_buffer: _ } = self;
        stream.try_io(Interest::READABLE, || {
            if *descriptors == PeerDescriptors::None {
                return Ok(Some(retry_on_intr(|| recv(&*stream, &mut *buffer, RecvFlags::empty()))?.0));
            }
            let make_waker = || Waker::from(Arc::clone(unparked));
            match peer_input::read_stream(&*stream, buffer, descriptors, parked, disposal, make_waker)? {
                None if !*parked => Err(ErrorKind::WouldBlock.into()),
                received => Ok(received),
            }
        })
    }

    /// Shuts down the output of the stream.
    pub(super) fn shut_down_writes(&self) {
        // It fails if the peer is gone, and the next read tells that, too.
        let _ = shutdown(&self.stream, Shutdown::Write);
    }

    /// Removes the socket from the reactor, and returns it.
    ///
    /// # Errors
    /// Returns an error if its registration cannot be removed.
    pub(super) fn into_socket(self) -> io::Result<AcceptedSocket> {
        let Self { stream, descriptors, receive_buffer, .. } = self;
        Ok(AcceptedSocket { socket: OwnedFd::from(stream.into_std()?), descriptors, receive_buffer })
    }

    /// Closes the socket, and then releases the permit: [`AcceptedSocket::close`].
    pub(super) fn close(self, permit: Permit) {
        let disposal = self.disposal.clone();
        if let Ok(socket) = self.into_socket() {
            socket.close(&disposal, permit);
        }
    }
}
