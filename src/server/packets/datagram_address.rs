//! What a datagram tells of its way: who sent it, to which address, and where its reply goes.
//!
//! Each datagram comes with the local address that it was sent to (IP_PKTINFO, ip(7)). That tells a broadcast from what
//! was sent to this machine alone. On a socket that is bound to every address (`0.0.0.0`, `::`), the reply leaves from
//! that address: a connected client takes it from no other.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo, sockaddr_un};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, RecvMsg, SockaddrLike, SockaddrStorage, UnixAddr};
use nix::sys::time::TimeValLike;

use crate::server::peer::Peer;

/// What a Unix address is longer than that has a name (`sun_family` of unix(7)).
const FAMILY_SIZE: usize = size_of::<nix::libc::sa_family_t>();

/// A datagram that came. Its bytes are in the buffer that was given.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// How long it is: more than there was room for, where it was cut.
    pub(crate) len: usize,
    pub(crate) peer: Peer,
    pub(crate) sent_to: Destination,
    pub(crate) reply_to: ReplyTo,
    /// How many datagrams the kernel had dropped by then since the socket was made (SO_RXQ_OVFL, socket(7)); `None` if it had dropped none.
    pub(crate) lost_before: Option<u32>,
    /// When the kernel received it, if the socket asks for that (SO_TIMESTAMP, SO_TIMESTAMPNS, socket(7)).
    pub(crate) received_at: Option<SystemTime>,
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

/// An address of ours, as the kernel takes it for what is sent from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LocalAddress {
    V4(Ipv4Addr),
    /// With the number of its interface, for an address of one link.
    V6(Ipv6Addr, u32),
}

impl Datagram {
    /// Returns the name of the Unix socket that it came from, if it has one.
    pub(crate) fn unix_address(&self) -> Option<UnixAddr> {
        match self.reply_to {
            ReplyTo::Abstract(address) | ReplyTo::Path(address) => Some(address),
            ReplyTo::Ip(..) | ReplyTo::Unnamed => None,
        }
    }

    /// Returns what was received on a socket of IP. `is_wildcard`: the socket is bound to every address.
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
            // What is not known to be sent to us alone may have been sent to others.
            sent_to: sent_to.unwrap_or(Destination::Many),
            reply_to: from.map_or(ReplyTo::Unnamed, |from| ReplyTo::Ip(from, local.filter(|_| is_wildcard))),
            lost_before,
            received_at,
        }
    }

    /// Returns what was received on a Unix socket.
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
                // A path of 108 bytes has no end: nix reads beyond it.
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
    /// Calls `send` with the ancillary data that has a datagram leave from this address.
    pub(crate) fn with_ancillary<T>(self, send: impl FnOnce(ControlMessage<'_>) -> T) -> T {
        match self {
            // The interface is the route's to choose, not that of the way here.
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

    /// Returns how much room its ancillary data takes.
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
                // An address of one link is nothing without that link.
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
