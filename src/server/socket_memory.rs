//! The memory that a socket occupies in the kernel.

use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::getsockopt;

/// SO_MEMINFO of asm-generic/socket.h (Linux 4.12), which no library defines.
const SO_MEMINFO: libc::c_int = 55;

sockopt_impl!(
    /// The first fields of SO_MEMINFO (SK_MEMINFO_VARS in linux/sock_diag.h).
    MemInfo,
    GetOnly,
    libc::SOL_SOCKET,
    SO_MEMINFO,
    [u32; 4]
);

sockopt_impl!(
    /// All fields of SO_MEMINFO.
    WholeMemInfo,
    GetOnly,
    libc::SOL_SOCKET,
    SO_MEMINFO,
    [u32; 9]
);

/// The memory that a socket occupies, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketMemory {
    /// Received data that was not read (SK_MEMINFO_RMEM_ALLOC).
    pub(crate) received: u32,
    /// The limit of `received` (SK_MEMINFO_RCVBUF).
    pub(crate) receive_limit: u32,
    /// Sent data that is not freed yet (SK_MEMINFO_WMEM_ALLOC).
    pub(crate) sent: u32,
    /// The limit of `sent` (SK_MEMINFO_SNDBUF).
    pub(crate) send_limit: u32,
}

/// Returns how many packets the kernel has dropped since the socket was created (SK_MEMINFO_DROPS): the receive buffer was
/// full, the packet was damaged, or a filter such as that of `IPAddressDeny=` refused it. `None` if the kernel does not tell.
pub(crate) fn drops(socket: impl AsFd) -> Option<u32> {
    Some(getsockopt(&socket, WholeMemInfo).ok()?[8])
}

impl SocketMemory {
    /// Returns the memory of a socket; `None` if the kernel does not tell.
    pub(crate) fn of(socket: impl AsFd) -> Option<Self> {
        let [received, receive_limit, sent, send_limit] = getsockopt(&socket, MemInfo).ok()?;
        Some(Self { received, receive_limit, sent, send_limit })
    }

    /// Returns whether nothing can be sent until the kernel frees sent data.
    pub(crate) fn is_send_buffer_full(self) -> bool {
        self.sent >= self.send_limit
    }
}
