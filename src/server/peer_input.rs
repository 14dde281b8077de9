//! Receives from sockets whose peers may send file descriptors (SCM_RIGHTS, unix(7)), with one rule for all socket types.
//!
//! Received descriptors go to the disposal thread, and the connection is not read again until they are closed. If too many
//! descriptors are waiting already, it is not read until there is room.

use std::os::fd::AsFd;
use std::task::Waker;

use rustix::io::Errno;

use super::disposal::Disposal;
use super::peer_descriptors::{self, Credentials, PeerDescriptors, Received};

/// The result of [`receive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// This number of bytes, without descriptors.
    Bytes(usize),
    /// This number of bytes, with descriptors. The waker is woken when they are closed.
    WithDescriptors(usize),
    /// Nothing, because there is no room for the next descriptors. The waker is woken when there is.
    Parked,
}

/// Receives bytes of a stream, or a packet, and passes received descriptors to the disposal thread. The waker of `make_waker`
/// is woken when the socket may be read again, unless the result is [`Input::Bytes`].
///
/// # Errors
/// Returns an error if recvmsg(2) fails; [`Errno::MFILE`] if the process cannot have the descriptors that come next.
pub(crate) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    credentials: Credentials,
    disposal: &Disposal,
    make_waker: impl Fn() -> Waker,
) -> Result<Input, Errno> {
    let waiting = disposal.waiting();
    match peer_descriptors::receive(socket, buffer, credentials, disposal.room_beside(waiting))? {
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

/// Reads a stream once. Returns the number of bytes; 0 at the end of the stream, `None` if nothing was received. Sets `parked`
/// if the connection must not be read until the waker is woken.
///
/// # Errors
/// Returns the errors of [`receive`] except [`Errno::AGAIN`].
pub(crate) fn read_stream(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut PeerDescriptors,
    parked: &mut bool,
    disposal: &Disposal,
    make_waker: impl Fn() -> Waker,
) -> Result<Option<usize>, Errno> {
    let input = receive(socket, buffer, Credentials::None, disposal, make_waker);
    *parked |= matches!(input, Ok(Input::WithDescriptors(_) | Input::Parked));
    match input {
        Ok(Input::Bytes(count) | Input::WithDescriptors(count)) => {
            if count == 0 {
                // No descriptors can be queued behind the end of the stream.
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
