//! Sends descriptors over Unix sockets (SCM_RIGHTS, unix(7)).

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::cmsg_space;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::pass_rights::MAX_FDS_PER_MESSAGE;

/// Sends a message with descriptors, [`MAX_FDS_PER_MESSAGE`] at most, or with none. SIGPIPE is not raised.
///
/// # Errors
/// Returns an error if there are too many descriptors, or if the message cannot be sent.
pub(super) fn send_with_fds(
    socket: impl AsFd,
    message: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS_PER_MESSAGE))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::INVAL);
    }
    retry_on_intr(|| sendmsg(&socket, message, &mut ancillary, flags | SendFlags::NOSIGNAL)).map(drop)
}
