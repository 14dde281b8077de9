//! The addresses of a datagram: its sender, its destination, and the address of its reply.
//!
//! Each datagram comes with the local address that it was sent to (IP_PKTINFO, ip(7)). This tells a broadcast from a datagram
//! to this machine alone. On a socket that is bound to every address (`0.0.0.0`, `::`), the reply is sent from that address,
//! because a connected client accepts it from no other.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo, sockaddr_un};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, RecvMsg, SockaddrLike, SockaddrStorage, UnixAddr};
use nix::sys::time::TimeValLike;

use crate::server::peer::Peer;

/// The length of a Unix address without a name (`sun_family` of unix(7)).
const FAMILY_SIZE: usize = size_of::<nix::libc::sa_family_t>();

/// A received datagram. Its bytes are in the buffer of the receiving call.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// Its length in bytes. If this exceeds the buffer, the datagram was truncated.
    pub(crate) len: usize,
    pub(crate) peer: Peer,
    pub(crate) sent_to: Destination,
    pub(crate) reply_to: ReplyTo,
    /// The number of datagrams that the kernel had dropped by then, since the socket was created (SO_RXQ_OVFL, socket(7));
    /// `None` if it had dropped none.
    pub(crate) lost_before: Option<u32>,
    /// When the kernel received it, if the socket has SO_TIMESTAMP or SO_TIMESTAMPNS (socket(7)).
    pub(crate) received_at: Option<SystemTime>,
}

/// Whether a datagram was sent to this machine alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    One,
    /// A broadcast or multicast address.
    Many,
    /// This IPv4 address, of unknown kind. The datagram was queued before IP_PKTINFO was set, so the kernel does not tell.
    Unknown(Ipv4Addr),
}

/// The address to which a reply goes.
#[derive(Debug)]
pub(crate) enum ReplyTo {
    /// An IP address, and the local address to send from, if the kernel would not choose it by itself.
    Ip(SocketAddr, Option<LocalAddress>),
    /// A name in the abstract namespace.
    Abstract(UnixAddr),
    /// A path. Only `PathReplies` sends to paths.
    Path(UnixAddr),
    /// None: the sender's Unix socket has no name.
    Unnamed,
}

/// A local address to send from (IP_PKTINFO, IPV6_PKTINFO).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LocalAddress {
    V4(Ipv4Addr),
    /// With the index of its interface if the address is link-local, otherwise 0.
    V6(Ipv6Addr, u32),
}

impl Datagram {
    /// Returns the address of the sender's Unix socket, if it has a name.
    pub(crate) fn unix_address(&self) -> Option<UnixAddr> {
        match self.reply_to {
            ReplyTo::Abstract(address) | ReplyTo::Path(address) => Some(address),
            ReplyTo::Ip(..) | ReplyTo::Unnamed => None,
        }
    }

    /// Creates the description of a datagram that was received on an IP socket. `is_wildcard`: the socket is bound to every
    /// address.
    pub(crate) fn from_ip(received: &RecvMsg<'_, '_, SockaddrStorage>, is_wildcard: bool) -> Self {
        let (mut sent_to, mut local, mut lost_before, mut received_at) = (None, None, None, None);
        for message in received.cmsgs().into_iter().flatten() {
            match message {
                ControlMessageOwned::RxqOvfl(count) => lost_before = Some(count),
                message => {
                    received_at = received_at.or_else(|| receive_time(&message));
                    sent_to = sent_to.or_else(|| Destination::from_ancillary(&message));
                    local = local.or_else(|| LocalAddress::from_ancillary(&message));
                }
            }
        }
        let from = received.address.as_ref().and_then(ip_address);
        Self {
            len: received.bytes,
            peer: from.map_or(Peer::Unknown, |from| Peer::Ip(SocketAddr::new(from.ip().to_canonical(), from.port()))),
            // Without IP_PKTINFO, other machines may have received it as well.
            sent_to: sent_to.unwrap_or(Destination::Many),
            reply_to: from.map_or(ReplyTo::Unnamed, |from| ReplyTo::Ip(from, local.filter(|_| is_wildcard))),
            lost_before,
            received_at,
        }
    }

    /// Creates the description of a datagram that was received on a Unix socket.
    pub(crate) fn from_unix(received: &RecvMsg<'_, '_, UnixAddr>) -> Self {
        let (mut peer, mut received_at) = (None, None);
        for message in received.cmsgs().into_iter().flatten() {
            peer = peer.or_else(|| peer_from_credentials(&message));
            received_at = received_at.or_else(|| receive_time(&message));
        }
        let named = received.address.filter(|address| address.len() as usize > FAMILY_SIZE);
        Self {
            len: received.bytes,
            peer: peer.unwrap_or(Peer::Unknown),
            sent_to: Destination::One,
            reply_to: match named {
                // A path of 108 bytes has no terminating zero byte, and nix reads beyond its end.
                Some(address) if address.len() as usize > size_of::<sockaddr_un>() => ReplyTo::Unnamed,
                Some(address) if address.as_abstract().is_none() => ReplyTo::Path(address),
                Some(address) => ReplyTo::Abstract(address),
                None => ReplyTo::Unnamed,
            },
            lost_before: None,
            received_at,
        }
    }
}

impl LocalAddress {
    /// Calls `send` with the ancillary data that makes this the source address of a datagram.
    pub(crate) fn with_ancillary<T>(self, send: impl FnOnce(ControlMessage<'_>) -> T) -> T {
        match self {
            // The route chooses the interface. It may differ from the one on which the datagram arrived.
            Self::V4(ip) => {
                let (ipi_spec_dst, ipi_addr) = (in_addr { s_addr: u32::from(ip).to_be() }, in_addr { s_addr: 0 });
                send(ControlMessage::Ipv4PacketInfo(&in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr }))
            }
            Self::V6(ip, ipi6_ifindex) => {
                let ipi6_addr = in6_addr { s6_addr: ip.octets() };
                send(ControlMessage::Ipv6PacketInfo(&in6_pktinfo { ipi6_addr, ipi6_ifindex }))
            }
        }
    }

    /// Returns a buffer of the size of its ancillary data.
    pub(crate) fn ancillary_space(self) -> Vec<u8> {
        match self {
            Self::V4(_) => nix::cmsg_space!(in_pktinfo),
            Self::V6(..) => nix::cmsg_space!(in6_pktinfo),
        }
    }

    /// Returns the local address in the ancillary data of a datagram that was sent to this machine alone.
    fn from_ancillary(ancillary: &ControlMessageOwned) -> Option<Self> {
        match ancillary {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(Self::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                // A link-local address is ambiguous without its interface.
                Some(Self::V6(ip, if ip.is_unicast_link_local() { info.ipi6_ifindex } else { 0 }))
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
                // The kernel sets `ipi_spec_dst` to the destination itself, if that is an address to send from.
                Some(match own {
                    _ if to.is_multicast() || to.is_broadcast() => Self::Many,
                    Ipv4Addr::UNSPECIFIED => Self::Unknown(to),
                    own if own == to => Self::One,
                    _ => Self::Many,
                })
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let to = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                // The datagram came over IPv4, and IP_PKTINFO tells more.
                to.to_ipv4_mapped().is_none().then_some(if to.is_multicast() { Self::Many } else { Self::One })
            }
            _ => None,
        }
    }
}

/// Returns when the kernel received a datagram, from its ancillary data.
fn receive_time(ancillary: &ControlMessageOwned) -> Option<SystemTime> {
    let since_1970 = match ancillary {
        ControlMessageOwned::ScmTimestamp(time) => Duration::from_micros(time.num_microseconds().try_into().ok()?),
        ControlMessageOwned::ScmTimestampns(time) => Duration::from_nanos(time.num_nanoseconds().try_into().ok()?),
        _ => return None,
    };
    UNIX_EPOCH.checked_add(since_1970)
}

fn peer_from_credentials(ancillary: &ControlMessageOwned) -> Option<Peer> {
    let ControlMessageOwned::ScmCredentials(credentials) = ancillary else { return None };
    Some(Peer::process(credentials.uid(), credentials.pid()))
}

fn ip_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}
