//! Receives from sockets whose peers may send descriptors (SCM_RIGHTS, unix(7)): the one rule for all of them.
//!
//! Descriptors that came along go to the disposal thread, and the peer is not read until they are closed. If more wait
//! already than may, it is not read until there is room.

use std::os::fd::AsFd;
use std::task::Waker;

use rustix::io::Errno;

use super::disposal::Disposal;
use super::peer_descriptors::{self, Credentials, PeerDescriptors, Received};

/// What one call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// So many bytes, and no descriptors.
    Bytes(usize),
    /// So many bytes, whose descriptors wait to be closed: the waker is woken then.
    WithDescriptors(usize),
    /// Nothing, since too many descriptors wait for those that come next: the waker is woken when there is room.
    Parked,
}

/// Receives bytes of a stream or a packet, and has descriptors closed that came along. `make_waker` makes what is woken
/// when the next call makes sense, unless that depends on the socket alone.
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

/// Reads a stream once. Returns how many bytes came; 0 at the end of the stream, `None` when nothing did. Sets `parked` if
/// the connection is not to be read until the waker is woken.
///
/// # Errors
/// Returns the errors of [`receive`], but [`Errno::AGAIN`].
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
                // Nothing can be queued behind the end of the stream.
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
