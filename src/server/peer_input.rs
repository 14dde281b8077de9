//! Receives from Unix sockets whose peers may send file descriptors (SCM_RIGHTS, unix(7)).
//!
//! Received descriptors go to the disposal thread, and nothing more is read from the peer until they are closed. If too
//! many descriptors of all peers are waiting to be closed, nothing is read until there is room.

use std::os::fd::AsFd;
use std::task::Waker;

use rustix::io::Errno;

use super::disposal::Disposal;
use super::peer_descriptors::{self, PeerDescriptors, Received};

/// The result of [`receive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// This many bytes, without descriptors.
    Bytes(usize),
    /// This many bytes. Their descriptors are being closed; the waker is woken after that.
    WithDescriptors(usize),
    /// Nothing, because too many descriptors wait to be closed. The waker is woken when there is room.
    Parked,
}

/// Receives bytes of a stream or a packet, and passes the descriptors that came with them to the disposal thread. Calls
/// `make_waker` if the next call has to wait for more than the socket.
///
/// # Errors
/// Returns an error if recvmsg(2) fails; [`Errno::MFILE`] if the process has no room for the descriptors.
pub(crate) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    disposal: &Disposal,
    make_waker: impl Fn() -> Waker,
) -> Result<Input, Errno> {
    let waiting = disposal.waiting();
    match peer_descriptors::receive(socket, buffer, disposal.room_beside(waiting))? {
        Received::Complete(count, descriptors) if descriptors.is_empty() => Ok(Input::Bytes(count)),
        Received::Complete(count, descriptors) => {
            disposal.dispose(descriptors, make_waker());
            Ok(Input::WithDescriptors(count))
        }
        Received::Failed(error, copies) => {
            if !copies.is_empty() {
                disposal.dispose(copies, Waker::noop().clone());
            }
            Err(error)
        }
        Received::NoRoom(copies) => {
            if !copies.is_empty() {
                disposal.dispose(copies, Waker::noop().clone());
            }
            if waiting == 0 {
                return Err(Errno::MFILE);
            }
            disposal.park(waiting, make_waker());
            Ok(Input::Parked)
        }
    }
}

/// Reads a stream once. Returns the number of bytes: 0 at the end of the stream, `None` if no input has arrived. Sets
/// `parked` if the connection must not be read until the waker is woken.
///
/// # Errors
/// Returns the errors of [`receive`], except [`Errno::AGAIN`].
pub(crate) fn read_stream(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut PeerDescriptors,
    parked: &mut bool,
    disposal: &Disposal,
    make_waker: impl Fn() -> Waker,
) -> Result<Option<usize>, Errno> {
    let input = receive(socket, buffer, disposal, make_waker);
    *parked |= matches!(input, Ok(Input::WithDescriptors(_) | Input::Parked));
    match input {
        Ok(Input::Bytes(count) | Input::WithDescriptors(count)) => {
            if count == 0 {
                // Descriptors cannot follow the end of the stream.
                *descriptors = PeerDescriptors::None;
            }
            Ok(Some(count))
        }
        Ok(Input::Parked) => Ok(None),
        Err(Errno::AGAIN) => {
            if *descriptors == PeerDescriptors::Queued {
                *descriptors = PeerDescriptors::None;
            }
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
