//! How many packets may be on the way at a time, all sources together, without the kernel dropping any.

use std::fs;

use crate::address::Transport;
use crate::socket_io::PREFIX;
use crate::{Context as _, Failure, Result};

/// The bytes that the kernel counts for a packet besides its content: headers and the descriptions of a buffer, before the
/// sum is rounded up to a power of two, and the description of the packet.
const HEADERS: usize = 64 + 320;
const DESCRIPTION: usize = 256;

/// Returns how many messages of this size may be on the way.
///
/// The receive buffer of a UDP socket takes a few hundred small ones (net.core.rmem_default), and what does not fit is
/// dropped. A Unix socket of datagrams has a send buffer for all the replies that are not read yet, and servers drop
/// what does not fit. Three eighths are left free: the kernel counts up to a quarter of the buffer for a while after it was
/// received. Connections have buffers of their own.
pub(crate) fn most_in_flight(transport: Transport, size: usize) -> Result<usize> {
    let buffer = match transport {
        Transport::Udp => setting("net/core/rmem_default")?,
        Transport::Unixgram | Transport::UnixgramPath => setting("net/core/wmem_default")?,
        Transport::Tcp | Transport::Unix | Transport::Seqpacket => return Ok(usize::MAX),
    };
    let packet = (PREFIX.len() + size + HEADERS).next_power_of_two() + DESCRIPTION;
    Ok((buffer / 8 * 5 / packet).max(1))
}

/// Returns how many messages may wait in the server's socket: beyond that, clients wait before they send
/// (net.unix.max_dgram_qlen).
pub(crate) fn most_queued(transport: Transport) -> Result<usize> {
    match transport {
        Transport::Unixgram | Transport::UnixgramPath => setting("net/unix/max_dgram_qlen"),
        _ => Ok(usize::MAX),
    }
}

fn setting(name: &str) -> Result<usize> {
    let path = format!("/proc/sys/{name}");
    let text = fs::read_to_string(&path).context(format_args!("reading {path}"))?;
    text.trim().parse().map_err(|_| Failure::new(format_args!("{path} has {:?}, not a number", text.trim())))
}
