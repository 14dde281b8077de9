//! A datagram socket (UDP or Unix): receives datagrams and sends replies, one or many with one call.

use std::array;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::task::Waker;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, RecvMsg, SockaddrLike, SockaddrStorage, UnixAddr, UnixCredentials,
    getsockname, getsockopt, recvmmsg, recvmsg, sendmmsg, sendmsg, setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;
use rustix::net::{AddressFamily, RecvFlags};

use crate::protocol::packet::{DropCause, Reply};
use crate::server::disposal::Disposal;
use crate::server::packet_scratch::MAX_PACKET;
use crate::server::packets::datagram_address::{Datagram, Destination, LocalAddress, ReplyTo};
use crate::server::peer_descriptors::{Credentials, PeerDescriptors};
use crate::server::peer_input::{self, Input};
use crate::server::socket_memory::{self, SocketMemory};

/// The longest datagram of UDP.
const MAX_UDP_SIZE: usize = 65_535;

/// The size of the ancillary data of a datagram on an IPv4 and on an IPv6 socket, in bytes: the destination address (on IPv6
/// sockets also that of IPv4), the count of dropped datagrams, and the receive time or other messages that the socket unit has
/// enabled.
const MAX_ANCILLARY: [usize; 2] = [128, 192];

/// Look up the route, but send nothing (MSG_PROBE of linux/socket.h, which no library defines).
const PROBE: MsgFlags = MsgFlags::from_bits_retain(0x10);

/// A port for probes. No datagram is sent to it.
const PROBED_PORT: u16 = 9;

/// A datagram socket.
pub(crate) struct DatagramSocket {
    socket: OwnedFd,
    /// A second descriptor of the socket, kept while file descriptors from peers may be queued in it. With it, the disposal
    /// thread can drop a datagram when the process cannot have further descriptors.
    second: Option<Arc<OwnedFd>>,
    bound: BoundAddress,
    descriptors: PeerDescriptors,
    /// The buffer for the ancillary data of a datagram.
    ancillary: Vec<u8>,
}

/// The address that a socket is bound to.
enum BoundAddress {
    Ip(SocketAddr),
    Unix(UnixAddr),
}

/// The maximum number of queued errors that are discarded at once.
const MAX_FORGOTTEN: u32 = 1024;

/// The maximum number of datagrams that one call receives or sends.
pub(crate) const MAX_BATCH: usize = 32;

/// Peek at the next datagram: its whole length and its sender.
const PEEK: MsgFlags = MsgFlags::MSG_PEEK.union(MsgFlags::MSG_TRUNC).union(MsgFlags::MSG_DONTWAIT);

/// Receive a datagram, and return its whole length even if it is truncated.
const RECEIVE: MsgFlags = MsgFlags::MSG_TRUNC.union(MsgFlags::MSG_DONTWAIT);

/// Send without waiting for room at the receiver.
const SEND: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

impl DatagramSocket {
    /// Opens a bound datagram socket.
    ///
    /// # Errors
    /// Returns an error if a socket option cannot be read or set.
    pub(crate) fn open(socket: OwnedFd) -> io::Result<Self> {
        let family = rustix::net::sockopt::socket_domain(&socket)?;
        let (bound, ancillary) = if family == AddressFamily::UNIX {
            setsockopt(&socket, sockopt::PassCred, &true)?;
            // Exactly as much as always comes: a truncation then means that descriptors come along.
            let ancillary = if has_timestamps(&socket) {
                nix::cmsg_space!(UnixCredentials, TimeSpec)
            } else {
                nix::cmsg_space!(UnixCredentials)
            };
            (BoundAddress::Unix(getsockname(socket.as_raw_fd())?), ancillary)
        } else {
            let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
            // Also on an IPv6 socket: IPV6_PKTINFO does not tell whether a datagram that came over IPv4 was a broadcast.
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            if bound.is_ipv6() {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            }
            setsockopt(&socket, sockopt::RxqOvfl, &1)?;
            // Otherwise an ICMP error for one client's reply would be reported by the next call, which serves another client.
            setsockopt(&socket, sockopt::Ipv4RecvErr, &false)?;
            if bound.is_ipv6() {
                setsockopt(&socket, sockopt::Ipv6RecvErr, &false)?;
            }
            (BoundAddress::Ip(bound), vec![0; MAX_ANCILLARY[usize::from(bound.is_ipv6())]])
        };
        let descriptors = PeerDescriptors::refuse(&socket);
        let may_have_descriptors = descriptors != PeerDescriptors::None;
        let second = may_have_descriptors.then(|| socket.try_clone()).transpose()?.map(Arc::new);
        Ok(Self { socket, second, bound, descriptors, ancillary })
    }

    /// Returns the necessary size of a buffer for messages of up to `max_message` bytes.
    pub(crate) fn buffer_size(&self, max_message: usize) -> usize {
        match self.bound {
            BoundAddress::Ip(_) => max_message.min(MAX_UDP_SIZE),
            BoundAddress::Unix(_) => max_message.min(MAX_PACKET),
        }
    }

    /// Returns whether it is a Unix socket.
    pub(crate) fn is_unix(&self) -> bool {
        matches!(self.bound, BoundAddress::Unix(_))
    }

    /// Returns whether abstract names of senders lead to the same sockets from here: a sender that knows this socket by an
    /// abstract name is in its network namespace. A path can be reached from all of them.
    pub(crate) fn shares_names(&self) -> bool {
        matches!(&self.bound, BoundAddress::Unix(bound) if bound.as_abstract().is_some())
    }

    /// Returns whether a datagram is waiting. A pending error counts as one: the next receiving call returns it.
    pub(crate) fn has_datagram(&self) -> bool {
        // Another holder of the socket may have made it blocking.
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peek = || rustix::net::recv(&self.socket, &mut [0; 0], flags);
        !matches!(rustix::io::retry_on_intr(peek), Err(rustix::io::Errno::AGAIN))
    }

    /// Returns how many datagrams the kernel has dropped since the socket was created ([`socket_memory::drops`]).
    pub(crate) fn lost(&self) -> Option<u32> {
        socket_memory::drops(&self.socket)
    }

    /// Discards errors that no receiving or sending call reports, so that the socket is no longer ready because of them. They
    /// come from the replies of an earlier process.
    pub(crate) fn clear_errors(&self) {
        let _ = rustix::net::sockopt::socket_error(&self.socket);
        // A Unix socket has no error queue, and would return datagrams.
        if let BoundAddress::Ip(_) = self.bound {
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let forget = || recvmsg::<()>(self.socket.as_raw_fd(), &mut [], None, flags).is_ok();
            // If there are more, the socket stays ready, and this is called again.
            let _ = (0..MAX_FORGOTTEN).all(|_| forget());
        }
    }

    /// Receives waiting datagrams in order, one into each place, and truncates those that are longer than their place. Adds
    /// them to `datagrams`. Uses [`MAX_BATCH`] places at most.
    ///
    /// # Errors
    /// Returns the errors of recvmmsg(2); [`io::ErrorKind::WouldBlock`] if there is none.
    pub(crate) fn receive_many<'a>(
        &self,
        places: impl ExactSizeIterator<Item = &'a mut [u8]>,
        datagrams: &mut Vec<Datagram>,
    ) -> io::Result<()> {
        let (descriptor, space) = (self.socket.as_raw_fd(), self.ancillary.len());
        match &self.bound {
            BoundAddress::Ip(bound) => {
                let is_wildcard = bound.ip().is_unspecified();
                receive_many(descriptor, places, space, |found| {
                    datagrams.push(Datagram::from_ip(&found, is_wildcard))
                })?;
            }
            BoundAddress::Unix(_) => {
                receive_many(descriptor, places, space, |found| datagrams.push(Datagram::from_unix(&found)))?;
            }
        }
        Ok(())
    }

    /// Returns whether file descriptors may come with datagrams.
    pub(crate) fn may_have_descriptors(&self) -> bool {
        self.descriptors != PeerDescriptors::None
    }

    /// Returns whether file descriptors come with the next datagram. Such a datagram must be received by
    /// [`DatagramSocket::receive_with_descriptors`]. Costs no system call if none can come.
    ///
    /// # Errors
    /// Returns an error if recvmsg(2) fails; [`io::ErrorKind::WouldBlock`] if there is no datagram.
    pub(crate) fn has_descriptors(&mut self) -> io::Result<bool> {
        if !self.may_have_descriptors() {
            return Ok(false);
        }
        // The space holds only what always comes, so no descriptor is installed in this process, and the last reference stays
        // in the socket.
        let peeked = recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut [], Some(&mut self.ancillary), PEEK);
        let has_descriptors = peeked.map(|peeked| peeked.flags.contains(MsgFlags::MSG_CTRUNC));
        if has_descriptors == Err(Errno::EAGAIN) && self.descriptors == PeerDescriptors::Queued {
            (self.descriptors, self.second) = (PeerDescriptors::None, None);
        }
        Ok(has_descriptors?)
    }

    /// Receives one datagram, and passes its descriptors to the disposal thread. Returns `None` if there is no room for them;
    /// the waker is woken when there is.
    ///
    /// # Errors
    /// Returns an error if a system call fails; EMFILE if the process cannot have the descriptors.
    pub(crate) fn receive_with_descriptors(
        &mut self,
        buffer: &mut [u8],
        disposal: &Disposal,
        make_waker: impl Fn() -> Waker,
    ) -> io::Result<Option<Datagram>> {
        let peeked = recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut [], Some(&mut self.ancillary), PEEK)?;
        let datagram = Datagram::from_unix(&peeked);
        let received = peer_input::receive(&self.socket, buffer, Credentials::Included, disposal, make_waker)?;
        Ok((received != Input::Parked).then_some(datagram))
    }

    /// Returns a further descriptor of the socket.
    ///
    /// # Errors
    /// Returns an error if the process cannot have a further descriptor.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Returns a second descriptor of the socket, if descriptors of peers may be queued in it.
    pub(crate) fn second_descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.second.clone()
    }

    /// Closes the first descriptor of the socket, and returns the second, if there is one. If that is the last one, closing it
    /// may block.
    pub(crate) fn close(self) -> Option<Arc<OwnedFd>> {
        drop(self.socket);
        self.second
    }

    /// Sends a reply to an IP address or an abstract name. Paths are left to `PathReplies`, because they make the kernel ask a
    /// file system.
    ///
    /// # Errors
    /// Returns the errors of sendmsg(2).
    pub(crate) fn send(&self, reply: &Reply<'_>, reply_to: &ReplyTo) -> Result<(), Errno> {
        let parts = reply.map(IoSlice::new);
        match reply_to {
            ReplyTo::Ip(to, local) => {
                let to = SockaddrStorage::from(*to);
                let send = |local| self.send_from(local, &parts, MsgFlags::empty(), &to);
                match send(*local) {
                    // The kernel does not send from an IPv6 address that is local only by a route.
                    Err(Errno::EINVAL) if local.is_some() => send(None),
                    // On a connected socket, this may be the ICMP error of an earlier reply.
                    Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => send(*local),
                    result => result,
                }
            }
            ReplyTo::Abstract(to) => send_message(self.socket.as_fd(), &parts, &[], MsgFlags::empty(), to),
            ReplyTo::Path(_) | ReplyTo::Unnamed => Err(Errno::EDESTADDRREQ),
        }
    }

    /// Sends replies with one call, in order, from the local address `local` if it is given. Returns how many were sent,
    /// counted from the first. To learn why the next one was not sent, send it again.
    pub(crate) fn send_many<S: SockaddrLike + Copy>(
        &self,
        replies: &[[IoSlice<'_>; 2]],
        addresses: &[Option<S>],
        local: Option<LocalAddress>,
    ) -> usize {
        let descriptor = self.socket.as_raw_fd();
        let send = |ancillary: &[ControlMessage<'_>], space| {
            let mut headers = MultiHeaders::preallocate(replies.len(), space);
            sendmmsg(descriptor, &mut headers, replies, addresses, ancillary, SEND).map_or(0, Iterator::count)
        };
        match local {
            Some(local) => local.with_ancillary(|ancillary| send(&[ancillary], Some(local.ancillary_space()))),
            None => send(&[], None),
        }
    }

    /// Returns whether a datagram comes from an address on which this socket itself receives.
    pub(crate) fn is_own_address(&self, reply_to: &ReplyTo) -> bool {
        match (&self.bound, reply_to) {
            (BoundAddress::Ip(bound), ReplyTo::Ip(from, _)) if bound.port() == from.port() => {
                if bound.ip().is_unspecified() {
                    self.is_local(*from)
                } else {
                    bound.ip().to_canonical() == from.ip().to_canonical()
                }
            }
            (BoundAddress::Unix(bound), ReplyTo::Abstract(from) | ReplyTo::Path(from)) => bound == from,
            _ => false,
        }
    }

    /// Returns whether a datagram was sent to a broadcast or multicast address.
    pub(crate) fn is_broadcast(&self, sent_to: Destination) -> bool {
        match sent_to {
            Destination::One => false,
            Destination::Many => true,
            // Broadcast addresses are not addresses of an interface.
            Destination::Unknown(ip) => !self.is_local(SocketAddr::from((ip, PROBED_PORT))),
        }
    }

    /// Returns whether an address belongs to this machine, in the network namespace of the socket. This process may be in
    /// another one (`PrivateNetwork=`), so it asks the socket: the kernel refuses to send from an address that is not local.
    fn is_local(&self, address: SocketAddr) -> bool {
        let from = match (self.is_ipv6(), address.ip()) {
            (false, IpAddr::V4(ip)) => LocalAddress::V4(ip),
            (_, ip) => {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                let scope = if let SocketAddr::V6(address) = address { address.scope_id() } else { 0 };
                LocalAddress::V6(ip, scope)
            }
        };
        self.send_from(Some(from), &[], PROBE, &SockaddrStorage::from(address)).is_ok()
    }

    fn is_ipv6(&self) -> bool {
        matches!(self.bound, BoundAddress::Ip(SocketAddr::V6(_)))
    }

    fn send_from(
        &self,
        local: Option<LocalAddress>,
        parts: &[IoSlice<'_>],
        flags: MsgFlags,
        to: &SockaddrStorage,
    ) -> Result<(), Errno> {
        let send = |ancillary: &[ControlMessage<'_>]| send_message(self.socket.as_fd(), parts, ancillary, flags, to);
        match local {
            Some(local) => local.with_ancillary(|ancillary| send(&[ancillary])),
            None => send(&[]),
        }
    }
}

impl AsFd for DatagramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns whether each datagram comes with its receive time, which systemd enables for `Timestamping=`.
fn has_timestamps(socket: &OwnedFd) -> bool {
    let microseconds = getsockopt(socket, sockopt::ReceiveTimestamp);
    microseconds == Ok(true) || getsockopt(socket, sockopt::ReceiveTimestampns) == Ok(true)
}

/// Receives datagrams with one call, one into each place, with `space` bytes for the ancillary data of each.
fn receive_many<'a, S: SockaddrLike + Copy>(
    descriptor: RawFd,
    mut places: impl ExactSizeIterator<Item = &'a mut [u8]>,
    space: usize,
    mut received: impl FnMut(RecvMsg<'_, '_, S>),
) -> Result<(), Errno> {
    let count = places.len().min(MAX_BATCH);
    // Created for each call: nix does not reset the lengths that the kernel writes, so a short address or little ancillary data
    // would leave too little room for the next datagrams.
    let mut headers = MultiHeaders::preallocate(count, Some(vec![0; space]));
    let mut slots: [[IoSliceMut<'_>; 1]; MAX_BATCH] =
        array::from_fn(|_| [IoSliceMut::new(places.next().unwrap_or_default())]);
    recvmmsg(descriptor, &mut headers, &mut slots[..count], RECEIVE, None)?.for_each(&mut received);
    Ok(())
}

/// Sends a datagram from a socket, without waiting for room at its receiver.
///
/// # Errors
/// Returns the errors of sendmsg(2).
pub(crate) fn send_message(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    ancillary: &[ControlMessage<'_>],
    flags: MsgFlags,
    to: &impl SockaddrLike,
) -> Result<(), Errno> {
    loop {
        match sendmsg(socket.as_raw_fd(), parts, ancillary, flags | SEND, Some(to)) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Returns the cause for dropping a datagram when sending its reply has failed with this error.
pub(crate) fn drop_cause(error: Errno, socket: impl AsFd) -> DropCause {
    let is_full = || SocketMemory::of(&socket).is_some_and(SocketMemory::is_send_buffer_full);
    match error {
        Errno::EMSGSIZE => DropCause::ReplyTooLong,
        Errno::EAGAIN if is_full() => DropCause::SendBuffer,
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => DropCause::NoRoom,
        _ => DropCause::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::server::clock::clock;

    /// Checks addresses without datagrams, because real ones from remote addresses would need another machine.
    #[test]
    fn addresses_of_this_machine_are_recognized() {
        for (bound, own, remote) in [
            ("0.0.0.0:0", &["127.0.0.1:9", "127.1.2.3:9"][..], &["192.0.2.1:9", "8.8.8.8:9"][..]),
            (
                "[::]:0",
                &["[::1]:9", "[::ffff:127.0.0.1]:9"],
                &["[2001:db8::1]:9", "[::ffff:192.0.2.1]:9", "[fe80::1]:9"],
            ),
        ] {
            let socket = DatagramSocket::open(UdpSocket::bind(bound).unwrap().into()).unwrap();
            let is_local = |address: &&str| socket.is_local(address.parse().unwrap());
            assert_eq!(own.iter().filter(|message| !is_local(message)).collect::<Vec<_>>(), [&""; 0]);
            assert_eq!(remote.iter().filter(|message| is_local(message)).collect::<Vec<_>>(), [&""; 0]);
        }
    }

    #[test]
    fn a_blocking_socket_is_probed_without_waiting() {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        // It ends the wait of a probe that blocks.
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let address = socket.local_addr().unwrap();
        let socket = DatagramSocket::open(socket.into()).unwrap();
        let start = clock();
        assert!(!socket.has_datagram());
        assert!(clock() < start + Duration::from_millis(200));
        client.send_to(b"a", address).unwrap();
        assert!(socket.has_datagram());
    }

    #[test]
    fn probing_an_address_sends_nothing() {
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = DatagramSocket::open(UdpSocket::bind("0.0.0.0:0").unwrap().into()).unwrap();
        let address = other.local_addr().unwrap();
        assert!(socket.is_local(address));
        // A datagram that the probe had sent would arrive first.
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"after", address).unwrap();
        let mut buffer = [0; 10];
        let (count, _) = other.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"after");
    }
}
