//! The connections of each source, and their limit.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::protocol::Verdict;
use crate::server::peer::Source;

/// The slot of one connection of a source.
#[derive(Debug, Clone, Copy)]
pub(super) enum SourceSlot {
    Held(Source),
    /// To be decided once it is known which connections have ended.
    Pending(Source),
}

/// The slots of one source.
#[derive(Debug, Default, PartialEq, Eq)]
struct SourceUsage {
    held: u32,
    pending: u32,
}

/// The slots of all sources, and the limit for each source. Sources without connections have no entry. A tree is used
/// because a hash function that peers cannot predict would cost more.
#[derive(Debug)]
pub(super) struct SourceLimits {
    /// The limit; 0 for none. A reload may change it.
    limit: AtomicU32,
    usage: Mutex<BTreeMap<Source, SourceUsage>>,
}

impl SourceLimits {
    pub(super) fn new(limit: u32) -> Self {
        Self { limit: AtomicU32::new(limit), usage: Mutex::default() }
    }

    pub(super) fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns a held slot without checking the limit.
    pub(super) fn claim_unchecked(&self, source: Source) -> SourceSlot {
        self.usage().entry(source).or_default().held += 1;
        SourceSlot::Held(source)
    }

    /// Returns a held slot if there is room and no slot is pending, otherwise a pending slot.
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

    /// Turns a pending slot into a held one. The pending slot is gone in any case.
    ///
    /// # Errors
    /// Returns an error if the source is at its limit.
    pub(super) fn claim_or_refuse(&self, source: Source) -> Result<(), Verdict> {
        let mut all = self.usage();
        let usage = all.entry(source).or_default();
        usage.pending -= 1;
        // The entry stays in use: the source has reached its limit, so it holds slots.
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

    /// Returns the limit if the source has reached it.
    fn reached_limit(&self, usage: &SourceUsage) -> Option<u32> {
        let limit = self.limit.load(Ordering::Relaxed);
        (limit > 0 && usage.held >= limit).then_some(limit)
    }

    fn usage(&self) -> MutexGuard<'_, BTreeMap<Source, SourceUsage>> {
        // A count is changed in one step, so it is valid even if a thread panicked.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.usage().len()
    }
}
