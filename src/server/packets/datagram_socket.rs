//! A datagram socket (UDP, Unix): what comes, from whom, and how a reply goes back.
//!
//! Each datagram comes with the local address that it was sent to (IP_PKTINFO, ip(7)). That tells a broadcast from what
//! was sent to this machine alone. On a socket that is bound to every address (`0.0.0.0`, `::`), the reply leaves from
//! that address: a connected client takes it from no other.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;

use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, SockaddrLike, SockaddrStorage, UnixAddr, UnixCredentials,
    getsockname, recvmsg, sendmsg, setsockopt, sockopt,
};
use rustix::net::AddressFamily;
use tokio::io::{Interest, Ready};
use tokio::net::UnixStream;

use crate::protocol::packet::{DropCause, Reply};
use crate::server::disposal::Disposal;
use crate::server::peer::Peer;
use crate::server::peer_descriptors::PeerDescriptors;
use crate::server::peer_input::{self, Input};
use crate::server::services::Services;

/// The longest datagram of UDP.
const MAX_UDP_SIZE: usize = 65_535;

/// Go as far as the route and then send nothing (MSG_PROBE of linux/socket.h, which no library names).
const PROBE: MsgFlags = MsgFlags::from_bits_retain(0x10);

/// A port to be probed where any does.
const PROBED_PORT: u16 = 9;

/// What a Unix address is shorter than that has a name (`sun_family` of unix(7)).
const FAMILY_SIZE: usize = size_of::<nix::libc::sa_family_t>();

/// A datagram socket.
pub(crate) struct DatagramSocket {
    socket: UnixStream,
    /// A second descriptor of it, there while descriptors of peers may be queued in it: for the disposal thread to drop a
    /// datagram when the process can have no further descriptor.
    second: Option<Arc<OwnedFd>>,
    bound: BoundAddress,
    descriptors: PeerDescriptors,
    /// The buffer for the ancillary data of a datagram.
    ancillary: Vec<u8>,
}

/// What it is bound to.
enum BoundAddress {
    Ip(SocketAddr),
    Unix(UnixAddr),
}

/// A datagram that came. Its bytes are in the buffer that was given.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// How long it is: more than there was room for, where it was cut.
    pub(crate) len: usize,
    pub(crate) peer: Peer,
    pub(crate) sent_to: Destination,
    pub(crate) reply_to: ReplyTo,
}

impl Datagram {
    /// Returns the name of the Unix socket that it came from, if it has one.
    pub(crate) fn unix_address(&self) -> Option<UnixAddr> {
        match self.reply_to {
            ReplyTo::Abstract(address) | ReplyTo::Path(address) => Some(address),
            ReplyTo::Ip(..) | ReplyTo::Unnamed => None,
        }
    }
}

/// How many machines a datagram was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    One,
    /// To a broadcast or multicast address.
    Many,
    /// To this address of IPv4. It was queued before the socket was prepared, so the kernel does not say what that is.
    Unknown(Ipv4Addr),
}

/// Where a reply goes.
#[derive(Debug)]
pub(crate) enum ReplyTo {
    /// To that address, from the local address that the datagram was sent to, where that has to be given.
    Ip(SocketAddr, Option<LocalAddress>),
    /// To a name in the abstract namespace.
    Abstract(UnixAddr),
    /// To a path, which only `PathReplies` sends to.
    Path(UnixAddr),
    /// Nowhere: a Unix socket without a name.
    Unnamed,
}

/// Look at the next datagram, whose length and sender are told.
const PEEK: MsgFlags = MsgFlags::MSG_PEEK.union(MsgFlags::MSG_TRUNC).union(MsgFlags::MSG_DONTWAIT);

/// The address of ours that a datagram was sent to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LocalAddress {
    V4(in_pktinfo),
    V6(in6_pktinfo),
}

impl DatagramSocket {
    /// Opens a bound, non-blocking datagram socket, and registers it with the reactor of `services`.
    ///
    /// # Errors
    /// It cannot be prepared or registered.
    pub(crate) fn open(socket: OwnedFd, services: &Services) -> io::Result<Self> {
        let family = rustix::net::sockopt::socket_domain(&socket)?;
        let (bound, ancillary) = if family == AddressFamily::UNIX {
            setsockopt(&socket, sockopt::PassCred, &true)?;
            (BoundAddress::Unix(getsockname(socket.as_raw_fd())?), nix::cmsg_space!(UnixCredentials))
        } else {
            let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
            // On a socket for IPv6, too: of a datagram that came over IPv4, IPV6_PKTINFO does not say whether it is a
            // broadcast.
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            if bound.is_ipv6() {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            }
            // With room for what else systemd may have enabled (Timestamping= and its kin).
            (BoundAddress::Ip(bound), nix::cmsg_space!([u8; 256]))
        };
        let descriptors = PeerDescriptors::refuse(&socket);
        let may_have_descriptors = descriptors != PeerDescriptors::None;
        let second = may_have_descriptors.then(|| socket.try_clone()).transpose()?.map(Arc::new);
        Ok(Self { socket: services.register(socket)?, second, bound, descriptors, ancillary })
    }

    /// Returns how large the buffer must be for messages of `max_message` bytes at most.
    pub(crate) fn buffer_size(&self, max_message: usize) -> usize {
        match self.bound {
            BoundAddress::Ip(_) => max_message.min(MAX_UDP_SIZE),
            BoundAddress::Unix(_) => max_message,
        }
    }

    /// Waits until there may be a datagram, or until another process has shut the socket down.
    ///
    /// # Errors
    /// The runtime ends.
    pub(crate) async fn ready(&self) -> io::Result<Ready> {
        self.socket.ready(Interest::READABLE).await
    }

    /// Returns whether a datagram waits. Asks the kernel and not the reactor, which may not know of it yet. An error
    /// counts as one: the next call of `receive` returns it.
    pub(crate) fn has_datagram(&self) -> bool {
        let peek = || rustix::net::recv(&self.socket, &mut [0; 0], rustix::net::RecvFlags::PEEK);
        !matches!(rustix::io::retry_on_intr(peek), Err(rustix::io::Errno::AGAIN))
    }

    /// Receives one datagram; what there is no room for is cut.
    ///
    /// # Errors
    /// What recvmsg(2) says; [`io::ErrorKind::WouldBlock`] where there is none.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Datagram> {
        let Self { socket, bound, ancillary, .. } = self;
        socket.try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
            match bound {
                BoundAddress::Ip(bound) => {
                    let found = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(ancillary), flags)?;
                    let (mut sent_to, mut local) = (None, None);
                    for message in found.cmsgs().into_iter().flatten() {
                        sent_to = sent_to.or_else(|| Destination::from_ancillary(&message));
                        local = local.or_else(|| LocalAddress::from_ancillary(&message));
                    }
                    // What is not known to be sent to us alone may have been sent to others.
                    let sent_to = sent_to.unwrap_or(Destination::Many);
                    let local = local.filter(|_| bound.ip().is_unspecified());
                    let from = found.address.as_ref().and_then(ip_address).ok_or(io::ErrorKind::InvalidData)?;
                    let peer = Peer::Ip(SocketAddr::new(from.ip().to_canonical(), from.port()));
                    Ok(Datagram { len: found.bytes, peer, sent_to, reply_to: ReplyTo::Ip(from, local) })
                }
                BoundAddress::Unix(_) => {
                    let found = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(ancillary), flags)?;
                    Ok(unix_datagram(&found))
                }
            }
        })
    }

    /// Returns whether descriptors come with the next datagram: then [`DatagramSocket::receive_with_descriptors`] is to
    /// receive it. Where none can come, it does not ask.
    ///
    /// # Errors
    /// Returns an error if recvmsg(2) fails; [`io::ErrorKind::WouldBlock`] if there is no datagram.
    pub(crate) fn has_descriptors(&mut self) -> io::Result<bool> {
        if self.descriptors == PeerDescriptors::None {
            return Ok(false);
        }
        let Self { socket, ancillary, .. } = self;
        // Without a call, the reactor knows of no datagram: that says nothing.
        let mut asked = false;
        // With space for credentials only: no descriptor becomes ours, and the last reference stays in the socket.
        let peeked = socket.try_io(Interest::READABLE, || {
            asked = true;
            let peeked = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut [], Some(ancillary), PEEK)?;
            Ok(peeked.flags.contains(MsgFlags::MSG_CTRUNC))
        });
        let is_empty = asked && peeked.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        if is_empty && self.descriptors == PeerDescriptors::Queued {
            (self.descriptors, self.second) = (PeerDescriptors::None, None);
        }
        peeked
    }

    /// Receives one datagram, as [`DatagramSocket::receive`], and has its descriptors closed. Returns `None` if there is no
    /// room for them: `waker` is woken when there is.
    ///
    /// # Errors
    /// Returns an error if recvmsg(2) fails; EMFILE if the process cannot have the descriptors.
    pub(crate) fn receive_with_descriptors(
        &mut self,
        buffer: &mut [u8],
        disposal: &Disposal,
        make_waker: impl Fn() -> Waker,
    ) -> io::Result<Option<Datagram>> {
        let peeked = recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut [], Some(&mut self.ancillary), PEEK)?;
        let datagram = unix_datagram(&peeked);
        // Without the credentials, which rustix cannot represent for a process of another PID namespace.
        setsockopt(&self.socket, sockopt::PassCred, &false)?;
        let received = peer_input::receive(&self.socket, buffer, disposal, make_waker);
        setsockopt(&self.socket, sockopt::PassCred, &true)?;
        Ok((received? != Input::Parked).then_some(datagram))
    }

    /// Returns a copy of the socket.
    ///
    /// # Errors
    /// Returns an error if the process cannot have a further descriptor.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    /// Returns a second descriptor of the socket, if descriptors of peers may be queued in it.
    pub(crate) fn second_descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.second.clone()
    }

    /// Closes the first descriptor of the socket, and returns the second, if there is one: if it is the last, closing it may
    /// block.
    pub(crate) fn close(self) -> Option<Arc<OwnedFd>> {
        drop(self.socket);
        self.second
    }

    /// Sends a reply to an address for which the kernel asks no file system: not to a path.
    ///
    /// # Errors
    /// What sendmsg(2) says.
    pub(crate) fn send(&self, reply: &Reply<'_>, reply_to: &ReplyTo) -> Result<(), Errno> {
        let parts = reply.map(IoSlice::new);
        match reply_to {
            ReplyTo::Ip(to, local) => {
                let to = SockaddrStorage::from(*to);
                match self.send_from(*local, &parts, MsgFlags::empty(), &to) {
                    // Nothing can be sent from an IPv6 address that is ours by its route alone.
                    Err(Errno::EINVAL) if local.is_some() => self.send_from(None, &parts, MsgFlags::empty(), &to),
                    result => result,
                }
            }
            ReplyTo::Abstract(to) => send_message(self.socket.as_fd(), &parts, &[], MsgFlags::empty(), to),
            ReplyTo::Path(_) | ReplyTo::Unnamed => Err(Errno::EDESTADDRREQ),
        }
    }

    /// Whether a datagram comes from an address on which this socket itself receives.
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

    /// Whether an address is one of this machine's, as the network of this socket sees it. We may be in another one
    /// (`PrivateNetwork=`), so it is the socket that has to be asked: nothing can be sent from an address of others.
    fn is_local(&self, address: SocketAddr) -> bool {
        let from = match (self.is_ipv6(), address.ip()) {
            (false, IpAddr::V4(ip)) => LocalAddress::V4(in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr { s_addr: u32::from(ip).to_be() },
                ipi_addr: in_addr { s_addr: 0 },
            }),
            (_, ip) => {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                let scope = if let SocketAddr::V6(address) = address { address.scope_id() } else { 0 };
                LocalAddress::V6(in6_pktinfo { ipi6_addr: in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: scope })
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
            Some(LocalAddress::V4(info)) => send(&[ControlMessage::Ipv4PacketInfo(&info)]),
            Some(LocalAddress::V6(info)) => send(&[ControlMessage::Ipv6PacketInfo(&info)]),
            None => send(&[]),
        }
    }
}

/// Sends a datagram from a socket, without waiting for room at its receiver.
///
/// # Errors
/// What sendmsg(2) says.
pub(crate) fn send_message(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    ancillary: &[ControlMessage<'_>],
    flags: MsgFlags,
    to: &impl SockaddrLike,
) -> Result<(), Errno> {
    let flags = flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg(socket.as_raw_fd(), parts, ancillary, flags, Some(to)) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Returns why a datagram is dropped whose reply cannot be sent.
pub(crate) fn drop_cause(error: Errno) -> DropCause {
    match error {
        Errno::EMSGSIZE => DropCause::ReplyTooLong,
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => DropCause::NoRoom,
        _ => DropCause::Unreachable,
    }
}

impl LocalAddress {
    /// Returns the local address in the ancillary data of a datagram that was sent to this machine alone, in the form
    /// that its reply needs.
    fn from_ancillary(ancillary: &ControlMessageOwned) -> Option<Self> {
        match ancillary {
            // The way back is the route's to choose, not that of the way here.
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(Self::V4(in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: info.ipi_addr,
                ipi_addr: in_addr { s_addr: 0 },
            })),
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                // An address of one link is nothing without that link.
                let ipi6_ifindex = if ip.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                Some(Self::V6(in6_pktinfo { ipi6_ifindex, ..*info }))
            }
            _ => None,
        }
    }
}

impl Destination {
    /// Returns the destination in the ancillary data of a datagram.
    fn from_ancillary(ancillary: &ControlMessageOwned) -> Option<Self> {
        match ancillary {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let [to, own] = [info.ipi_addr, info.ipi_spec_dst].map(|ip| Ipv4Addr::from(u32::from_be(ip.s_addr)));
                // The address to reply from is the destination itself, unless that is not one to send from.
                Some(match own {
                    _ if to.is_multicast() || to.is_broadcast() => Self::Many,
                    Ipv4Addr::UNSPECIFIED => Self::Unknown(to),
                    own if own == to => Self::One,
                    _ => Self::Many,
                })
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let to = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                // That came over IPv4, and IP_PKTINFO says more.
                to.to_ipv4_mapped().is_none().then_some(if to.is_multicast() { Self::Many } else { Self::One })
            }
            _ => None,
        }
    }
}

/// Returns what recvmsg(2) tells of a datagram on a Unix socket.
fn unix_datagram(received: &RecvMsg<'_, '_, UnixAddr>) -> Datagram {
    let peer = received.cmsgs().into_iter().flatten().find_map(|message| peer_from_credentials(&message));
    let named = received.address.filter(|address| address.len() as usize > FAMILY_SIZE);
    Datagram {
        len: received.bytes,
        peer: peer.unwrap_or(Peer::Unknown),
        sent_to: Destination::One,
        reply_to: match named {
            // A path of 108 bytes has no end: nix reads beyond it.
            Some(address) if address.len() as usize > size_of::<nix::libc::sockaddr_un>() => ReplyTo::Unnamed,
            Some(address) if address.as_abstract().is_none() => ReplyTo::Path(address),
            Some(address) => ReplyTo::Abstract(address),
            None => ReplyTo::Unnamed,
        },
    }
}

fn peer_from_credentials(ancillary: &ControlMessageOwned) -> Option<Peer> {
    let ControlMessageOwned::ScmCredentials(credentials) = ancillary else { return None };
    Some(Peer::process(credentials.uid(), credentials.pid()))
}

fn ip_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::task::Waker;

    use super::*;
    use crate::server::disposal::Disposal;
    use crate::server::event::{self, EventSink, MessageLog};
    use crate::server::worker_state::WorkerState;

    struct NoMessages;

    impl MessageLog for NoMessages {
        fn try_append(&self, _: event::ReceivedMessage<'_>, _: &Waker) -> bool {
            true
        }
    }

    fn services() -> Services {
        let sink = EventSink { handler: Arc::new(|_| {}), message_log: Arc::new(NoMessages), unlogged: Arc::default() };
        Services::new(WorkerState::new(sink, Disposal::default()))
    }

    /// Only with another machine could a datagram come from one, so the socket is asked directly.
    #[test]
    fn addresses_of_this_machine_are_recognized() {
        let services = services();
        for (bound, own, remote) in [
            ("0.0.0.0:0", &["127.0.0.1:9", "127.1.2.3:9"][..], &["192.0.2.1:9", "8.8.8.8:9"][..]),
            (
                "[::]:0",
                &["[::1]:9", "[::ffff:127.0.0.1]:9"],
                &["[2001:db8::1]:9", "[::ffff:192.0.2.1]:9", "[fe80::1]:9"],
            ),
        ] {
            let socket = UdpSocket::bind(bound).unwrap();
            socket.set_nonblocking(true).unwrap();
            let socket = DatagramSocket::open(socket.into(), &services).unwrap();
            let is_local = |address: &&str| socket.is_local(address.parse().unwrap());
            assert_eq!(own.iter().filter(|message| !is_local(message)).collect::<Vec<_>>(), [&""; 0]);
            assert_eq!(remote.iter().filter(|message| is_local(message)).collect::<Vec<_>>(), [&""; 0]);
        }
    }

    #[test]
    fn probing_an_address_sends_nothing() {
        let services = services();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = DatagramSocket::open(socket.into(), &services).unwrap();
        let address = other.local_addr().unwrap();
        assert!(socket.is_local(address));
        // What came before it would be there first.
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"after", address).unwrap();
        let mut buffer = [0; 10];
        let (count, _) = other.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"after");
    }
}
