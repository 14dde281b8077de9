//! Asks the kernel whether the peer of a connection takes the data that was sent.
//!
//! A full socket does not tell: the kernel reports room for output only when a good part of the send buffer is free again, and
//! a slow reader may need long for that. So the daemon asks the kernel before it closes a connection because its peer takes
//! nothing.

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

/// Returns a number that changes whenever the peer takes data, as long as nothing is sent: the bytes that the peer's kernel has
/// acknowledged (TCP, and MPTCP over all subflows), or the bytes of memory that sent data still occupies (Unix sockets, which
/// free a buffer when the peer has read all of it). `None` if the kernel does not tell.
pub(crate) fn mark(socket: impl AsFd) -> Option<u64> {
    match socket_domain(&socket).ok()? {
        AddressFamily::UNIX => SocketMemory::of(&socket).map(|memory| memory.sent.into()),
        // On MPTCP, TCP_INFO describes the first subflow, which may carry nothing, or be gone. Sockets without this option
        // include MPTCP sockets that have fallen back to TCP.
        _ => match getsockopt(&socket, MptcpInfo) {
            Ok(info) => Some(info[SND_UNA]),
            Err(_) => getsockopt(&socket, TcpInfo).ok().map(|info| info[BYTES_ACKED]),
        },
    }
}
