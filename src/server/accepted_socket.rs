//! The socket of an accepted connection, until it is served or closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::net::UnixStream;

use super::admission::Permit;
use super::disposal::Disposal;
use super::listener::Listener;
use super::peer_descriptors::{self, PeerDescriptors};
use super::receive_buffer::ReceiveBuffer;
use super::socket::SocketKind;

/// A connected socket, with the descriptors that its peer may have sent, and the state of its receive buffer.
#[derive(Debug)]
pub(crate) struct AcceptedSocket {
    pub(crate) socket: OwnedFd,
    pub(crate) descriptors: PeerDescriptors,
    pub(crate) receive_buffer: ReceiveBuffer,
}

impl AcceptedSocket {
    /// Prepares a socket that was accepted from `listener`. `inherited` is the state of its receive buffer, if the connection
    /// was established after the options of the listener were set.
    pub(crate) fn new(socket: OwnedFd, listener: &Listener, inherited: Option<ReceiveBuffer>) -> Self {
        let descriptors = match listener.descriptors {
            PeerDescriptors::Queued if inherited.is_some() => PeerDescriptors::None,
            PeerDescriptors::None => PeerDescriptors::None,
            _ => PeerDescriptors::refuse(&socket),
        };
        // Only Unix sockets have descriptors.
        if listener.descriptors != PeerDescriptors::None && listener.kind == SocketKind::Stream {
            if descriptors != PeerDescriptors::None {
                peer_descriptors::merge_writers(&socket);
            }
            peer_descriptors::include_urgent_data(&socket);
        }
        let receive_buffer = inherited.unwrap_or_else(|| ReceiveBuffer::of(&socket, listener.settings.receive_buffer));
        Self { socket, descriptors, receive_buffer }
    }

    /// Registers the socket with a reactor. If `register` fails, it closes its descriptor. To prevent this from closing a
    /// socket with queued descriptors, a copy is kept meanwhile.
    ///
    /// # Errors
    /// Returns the error, and the socket if the caller has to close it.
    pub(crate) fn register(
        self,
        register: impl FnOnce(OwnedFd) -> io::Result<UnixStream>,
    ) -> Result<(UnixStream, PeerDescriptors), (io::Error, Option<Self>)> {
        let Self { socket, descriptors, receive_buffer } = self;
        let copy = match descriptors {
            PeerDescriptors::None => None,
            _ => match socket.try_clone() {
                Ok(copy) => Some(copy),
                Err(error) => return Err((error, Some(Self { socket, descriptors, receive_buffer }))),
            },
        };
        match register(socket) {
            Ok(stream) => Ok((stream, descriptors)),
            Err(error) => Err((error, copy.map(|socket| Self { socket, descriptors, receive_buffer }))),
        }
    }

    /// Closes the socket, and then releases the permit. If descriptors are queued in the socket, the disposal thread does this.
    pub(crate) fn close(self, disposal: &Disposal, permit: Permit) {
        close(self.socket, self.descriptors, disposal, permit);
    }
}

/// Closes a socket with these descriptors, and then releases the permit ([`AcceptedSocket::close`]).
pub(crate) fn close(socket: OwnedFd, descriptors: PeerDescriptors, disposal: &Disposal, permit: Permit) {
    if descriptors == PeerDescriptors::None || peer_descriptors::shut_down_empty(&socket) {
        drop(socket);
        drop(permit);
    } else {
        disposal.close(socket, Some(permit));
    }
}

impl AsFd for AcceptedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_that_cannot_be_registered_is_not_closed_if_descriptors_may_be_queued_in_it() {
        for (descriptors, is_open) in
            [(PeerDescriptors::None, false), (PeerDescriptors::Queued, true), (PeerDescriptors::Any, true)]
        {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.set_nonblocking(true).unwrap();
            let receive_buffer = ReceiveBuffer::Untouched;
            let socket = AcceptedSocket { socket: server.into(), descriptors, receive_buffer };
            let (_, socket) = socket.register(|_| Err(ErrorKind::StorageFull.into())).unwrap_err();
            // A closed socket ends the stream.
            assert_eq!(client.read(&mut [0]).is_err(), is_open, "{descriptors:?}");
            assert_eq!(socket.map(|socket| socket.descriptors), Some(descriptors).filter(|_| is_open));
        }
    }
}
