//! Sends descriptors over Unix sockets (SCM_RIGHTS, unix(7)).

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Sends a message with descriptors, or with none.
pub(crate) fn send_descriptors(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[impl AsFd],
    flags: SendFlags,
) -> Result<(), Errno> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(borrowed.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags | SendFlags::NOSIGNAL).map(drop)
}
