//! Descriptors over Unix sockets (SCM_RIGHTS, unix(7)): how many there can be, and the socket option with which a socket takes none
//! from its peer.

use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::setsockopt;

/// How many descriptors come with one message at most (SCM_MAX_FD, unix(7)).
pub(crate) const MAX_FDS_PER_MESSAGE: usize = 253;

/// SO_PASSRIGHTS of asm-generic/socket.h, which no library names.
const SO_PASSRIGHTS: libc::c_int = 83;

sockopt_impl!(
    /// Whether peers may send descriptors.
    PassRights,
    SetOnly,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool
);

/// Has the kernel refuse the descriptors that peers send over this Unix socket (SCM_RIGHTS, unix(7)): sendmsg(2) of the
/// peer then fails with EPERM. Returns whether it does: Linux 6.16 and newer.
pub(crate) fn refuse_descriptors(socket: impl AsFd) -> bool {
    setsockopt(&socket, PassRights, &false).is_ok()
}
