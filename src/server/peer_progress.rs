//! Whether the peer of a connection takes what was sent, as the kernel knows it.
//!
//! A full socket says nothing about that: the kernel reports room for output only when a good part of the buffer is free
//! again, and that takes a slow reader as long as its rate and the buffer say. So before a connection is cut off because its
//! peer takes nothing, the kernel is asked.

use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::getsockopt;
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

use super::socket_memory::SocketMemory;

/// The index of `tcpi_bytes_acked` (linux/tcp.h) in a [`TcpInfo`].
const BYTES_ACKED: usize = 15;

sockopt_impl!(
    /// The beginning of `struct tcp_info`, up to `tcpi_bytes_acked` (Linux 4.1).
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    [u64; BYTES_ACKED + 1]
);

/// The index of `mptcpi_snd_una` (linux/mptcp.h) in an [`MptcpInfo`].
const SND_UNA: usize = 3;

/// SOL_MPTCP and MPTCP_INFO of linux/mptcp.h, which no library names.
const SOL_MPTCP: libc::c_int = 284;
const MPTCP_INFO: libc::c_int = 1;

sockopt_impl!(
    /// The beginning of `struct mptcp_info`, up to `mptcpi_snd_una` (Linux 5.16).
    MptcpInfo,
    GetOnly,
    SOL_MPTCP,
    MPTCP_INFO,
    [u64; SND_UNA + 1]
);

/// Returns a number that changes whenever the peer takes something, as long as nothing is sent: how many bytes its kernel
/// has acknowledged (TCP; MPTCP, on whatever subflow), or how much memory of what was sent the kernel has not freed (Unix,
/// where that happens when a buffer has been read whole). `None` where that is unknown.
pub(crate) fn mark(socket: impl AsFd) -> Option<u64> {
    match socket_domain(&socket).ok()? {
        AddressFamily::UNIX => SocketMemory::of(&socket).map(|memory| memory.sent.into()),
        // On MPTCP, the information about TCP is that of the first subflow, which may carry nothing, or be gone. Other sockets
        // do not know this option, among them those of MPTCP that have fallen back to TCP.
        _ => match getsockopt(&socket, MptcpInfo) {
            Ok(info) => Some(info[SND_UNA]),
            Err(_) => getsockopt(&socket, TcpInfo).ok().map(|info| info[BYTES_ACKED]),
        },
    }
}
