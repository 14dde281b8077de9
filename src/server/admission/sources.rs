//! The limit of connections of each source.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::protocol::Verdict;
use crate::server::peer::Source;

/// One connection, counted for its source.
#[derive(Debug, Clone, Copy)]
pub(super) enum SourceSlot {
    Held(Source),
    /// The slot is decided when the workers have processed all closes.
    Pending(Source),
}

/// The slots of one source.
#[derive(Debug, Default, PartialEq, Eq)]
struct SourceUsage {
    held: u32,
    pending: u32,
}

/// The slots of all sources, against the limit. A source without slots has no entry. (A keyed hash, which peers could not
/// predict, would cost more than this tree.)
#[derive(Debug)]
pub(super) struct SourceLimits {
    /// The limit of each source; 0 means none. A reload may change it at any time.
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

    /// Returns a held slot, without checking the limit.
    pub(super) fn claim_unchecked(&self, source: Source) -> SourceSlot {
        self.usage().entry(source).or_default().held += 1;
        SourceSlot::Held(source)
    }

    /// Returns a held slot if the source has room and no pending slot, otherwise a pending one.
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

    /// Turns a pending slot into a held one. Releases the pending slot in any case.
    ///
    /// # Errors
    /// Returns an error if the source is at its limit.
    pub(super) fn claim_or_refuse(&self, source: Source) -> Result<(), Verdict> {
        let mut all = self.usage();
        let usage = all.entry(source).or_default();
        usage.pending -= 1;
        // The source holds other slots, so its entry stays.
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

    /// Returns the limit if it is reached.
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
