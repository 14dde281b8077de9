//! Sources of connections, and how many connections each of them has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::protocol::Verdict;
use crate::server::socket::Peer;

/// What the limits per source count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    V4(Ipv4Addr),
    /// The first 64 bits of the address: what one host can change as it likes is the rest.
    V6([u16; 4]),
    Uid(u32),
}

impl Source {
    /// The source of an address; `None` for loopback addresses, which are not limited.
    pub(crate) fn of_ip(ip: IpAddr) -> Option<Self> {
        (!ip.to_canonical().is_loopback()).then(|| Self::of_any_ip(ip))
    }

    fn of_any_ip(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Self::V6([a, b, c, d])
            }
        }
    }

    /// The source of a UID; `None` for 65534, which stands for users of other user namespaces.
    pub(crate) fn of_uid(uid: u32) -> Option<Self> {
        (uid != 65534).then_some(Self::Uid(uid))
    }

    /// The source of a connection, as it counts when an idle one is to be closed: all connections from loopback addresses
    /// have one together, and so have users that are not known.
    pub(crate) fn of_holder(peer: Peer) -> Self {
        peer.source().unwrap_or(match peer {
            Peer::Ip(_) | Peer::Proxied(_) => Self::V4(Ipv4Addr::LOCALHOST),
            Peer::Process { .. } | Peer::Unknown => Self::Uid(65534),
        })
    }

    /// The source of a datagram. None of them is exempt: two services of one machine can be made to talk to each other,
    /// too. Users that are not known are one source together.
    pub(crate) fn of_datagram(peer: Peer) -> Self {
        match peer {
            Peer::Ip(address) | Peer::Proxied(address) => Self::of_any_ip(address.ip()),
            Peer::Process { uid, .. } => Self::Uid(uid),
            Peer::Unknown => Self::Uid(65534),
        }
    }
}

/// One connection, counted for its source.
#[derive(Debug, Clone, Copy)]
pub(super) enum SourceSlot {
    Held(Source),
    /// It is decided when it is known which connections have ended.
    Pending(Source),
}

/// The connections of one source.
#[derive(Debug, Default, PartialEq, Eq)]
struct SourceUsage {
    held: u32,
    pending: u32,
}

/// The connections of all sources, against the limit of each. Nothing is remembered of sources that have none.
#[derive(Debug)]
pub(super) struct SourceLimits {
    /// 0: there is none. A reload may change it at any time.
    limit: AtomicU32,
    usage: Mutex<HashMap<Source, SourceUsage>>,
}

impl SourceLimits {
    pub(super) fn new(limit: u32) -> Self {
        Self { limit: AtomicU32::new(limit), usage: Mutex::default() }
    }

    pub(super) fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns a held slot, whatever the limit.
    pub(super) fn claim_unchecked(&self, source: Source) -> SourceSlot {
        self.usage().entry(source).or_default().held += 1;
        SourceSlot::Held(source)
    }

    /// Returns a held slot if there is room and no slot is pending, otherwise a pending one.
    pub(super) fn claim(&self, source: Source) -> SourceSlot {
        let mut all = self.usage();
        let usage = all.entry(source).or_default();
        if usage.pending == 0 && self.reached_limit(usage).is_none() {
            usage.held += 1;
            SourceSlot::Held(source)
        } else {
            usage.pending += 1;
            SourceSlot::Pending(source)
        }
    }

    /// Turns a pending slot into a held one. The source has one pending slot less in any case.
    ///
    /// # Errors
    /// Returns an error if there is no room.
    pub(super) fn claim_or_refuse(&self, source: Source) -> Result<(), Verdict> {
        let mut all = self.usage();
        let usage = all.entry(source).or_default();
        usage.pending -= 1;
        // Then other slots are held, so the entry need not be removed.
        if let Some(limit) = self.reached_limit(usage) {
            return Err(Verdict::TooMany { limit });
        }
        usage.held += 1;
        Ok(())
    }

    /// Releases a slot.
    pub(super) fn release(&self, slot: SourceSlot) {
        let (SourceSlot::Held(source) | SourceSlot::Pending(source)) = slot;
        if let Entry::Occupied(mut usage) = self.usage().entry(source) {
            match slot {
                SourceSlot::Held(_) => usage.get_mut().held -= 1,
                SourceSlot::Pending(_) => usage.get_mut().pending -= 1,
            }
            if *usage.get() == SourceUsage::default() {
                usage.remove();
            }
        }
    }

    /// Returns the limit, if one connection more would be too many.
    fn reached_limit(&self, usage: &SourceUsage) -> Option<u32> {
        let limit = self.limit.load(Ordering::Relaxed);
        (limit > 0 && usage.held >= limit).then_some(limit)
    }

    fn usage(&self) -> MutexGuard<'_, HashMap<Source, SourceUsage>> {
        // A count is changed in one step, so it is right even if a thread panicked.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.usage().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_addresses_prefixes_and_users() {
        let ip = |text: &str| Source::of_ip(text.parse().unwrap());
        assert_eq!(ip("127.0.0.1"), None);
        assert_eq!(ip("127.8.0.1"), None);
        assert_eq!(ip("::1"), None);
        assert_eq!(ip("::ffff:127.0.0.1"), None);
        assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
        assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:1"));
        assert_ne!(ip("2001:db8::1"), ip("2001:db8:0:1::1"));
        assert_eq!(Source::of_uid(0), Some(Source::Uid(0)));
        assert_eq!(Source::of_uid(65534), None);
    }
}
