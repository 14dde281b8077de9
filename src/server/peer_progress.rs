//! Asks the kernel whether the peer of a connection takes what was sent.
//!
//! A full send buffer does not answer that: the kernel reports room only when a good part of the buffer is free, which
//! takes a slow reader a long time. So the daemon asks the kernel before it closes a connection for lack of progress.

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

/// Returns a number that changes whenever the peer takes something, as long as nothing is sent; `None` if the kernel
/// does not tell. For TCP and MPTCP, it is the number of acknowledged bytes (for MPTCP, over all subflows). For Unix
/// sockets, it is the memory of sent data that the kernel has not freed; the kernel frees a buffer once all of it was
/// read.
pub(crate) fn mark(socket: impl AsFd) -> Option<u64> {
    match socket_domain(&socket).ok()? {
        AddressFamily::UNIX => SocketMemory::of(&socket).map(|memory| memory.sent.into()),
        // For MPTCP, TCP_INFO describes only the first subflow, which may be idle or closed. Other sockets, including
        // MPTCP sockets that fell back to TCP, do not support MPTCP_INFO.
        _ => match getsockopt(&socket, MptcpInfo) {
            Ok(info) => Some(info[SND_UNA]),
            Err(_) => getsockopt(&socket, TcpInfo).ok().map(|info| info[BYTES_ACKED]),
        },
    }
}
