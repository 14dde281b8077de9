//! The memory that a socket holds in the kernel.

use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::getsockopt;

/// SO_MEMINFO of asm-generic/socket.h (Linux 4.12), which no library names.
const SO_MEMINFO: libc::c_int = 55;

sockopt_impl!(
    /// The beginning of what linux/sock_diag.h lists (SK_MEMINFO_VARS).
    MemInfo,
    GetOnly,
    libc::SOL_SOCKET,
    SO_MEMINFO,
    [u32; 4]
);

sockopt_impl!(
    /// All of it.
    WholeMemInfo,
    GetOnly,
    libc::SOL_SOCKET,
    SO_MEMINFO,
    [u32; 9]
);

/// The memory that a socket holds, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketMemory {
    /// What was received and not read (SK_MEMINFO_RMEM_ALLOC).
    pub(crate) received: u32,
    /// How much of that the kernel allows (SK_MEMINFO_RCVBUF).
    pub(crate) receive_limit: u32,
    /// What was sent and not freed (SK_MEMINFO_WMEM_ALLOC).
    pub(crate) sent: u32,
    /// How much of that the kernel allows (SK_MEMINFO_SNDBUF): it sends while there is less.
    pub(crate) send_limit: u32,
}

/// Returns how many packets the kernel has dropped since the socket was made: for want of room in it, since they were damaged, or
/// since a filter refused them, such as that of `IPAddressDeny=` (SK_MEMINFO_DROPS); `None` if the kernel does not tell.
pub(crate) fn drops(socket: impl AsFd) -> Option<u32> {
    Some(getsockopt(&socket, WholeMemInfo).ok()?[8])
}

impl SocketMemory {
    /// Returns the memory of a socket; `None` if the kernel does not tell.
    pub(crate) fn of(socket: impl AsFd) -> Option<Self> {
        let [received, receive_limit, sent, send_limit] = getsockopt(&socket, MemInfo).ok()?;
        Some(Self { received, receive_limit, sent, send_limit })
    }

    /// Returns whether nothing more can be sent until some of what was sent is freed.
    pub(crate) fn is_send_buffer_full(self) -> bool {
        self.sent >= self.send_limit
    }
}
