//! Permits: each is the right to have one connection, from before it is accepted until its socket is closed.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::sources::SourceSlot;
use super::{Admission, MAX_REFUSED, increment_below};
use crate::protocol::Verdict;
use crate::server::peer::Source;

/// The right to have one connection, and its share of the buffer memory. Dropping it releases both.
#[derive(Debug)]
pub(crate) struct Permit {
    pub(super) admission: Arc<Admission>,
    pub(super) state: PermitState,
    /// The memory of the connection's buffers, in bytes.
    pub(super) memory: usize,
}

#[derive(Debug)]
pub(super) enum PermitState {
    /// The connection is served. It holds a slot, if it has a source.
    Serving(Option<SourceSlot>),
    /// The connection awaits its PROXY header, and counts for no source until then.
    AwaitingHeader,
    /// The connection was accepted while all permits were taken, and its source is not known yet.
    Undecided,
    /// The connection has no permit until it is decided whether its source has room. The slot is pending.
    Pending(Source),
    /// The source has room, so the connection gets the next released permit. It holds a slot, if it has a source.
    Reserved(Option<Source>),
    /// The source has no room. The connection has no slot.
    Rejected,
    Refused,
    Released,
}

impl Permit {
    /// Claims a slot of this source, and releases the earlier slot. The connection no longer counts as awaiting its PROXY
    /// header. Returns whether the connection can be served now. If not, the slot is pending, or the permit was undecided: the
    /// connection then has no permit until [`Permit::decide`] and [`Permit::try_reacquire`]. While a slot of a source is
    /// pending, its later slots are pending as well.
    pub(crate) fn claim(&mut self, source: Option<Source>) -> bool {
        self.stop_awaiting_header();
        self.release_source();
        let has_permit = !matches!(self.state, PermitState::Undecided);
        match source.map(|source| self.admission.sources.claim(source)) {
            Some(SourceSlot::Pending(source)) => {
                if has_permit {
                    // In this order, so that the connection is always counted.
                    self.admission.pending.fetch_add(1, Ordering::SeqCst);
                    self.admission.release_open();
                    self.admission.connection_ended.notify();
                }
                self.state = PermitState::Pending(source);
                false
            }
            slot if has_permit => {
                self.state = PermitState::Serving(slot);
                true
            }
            _ => {
                self.reserve(source);
                false
            }
        }
    }

    /// Turns a pending slot into a held one. If this succeeds, [`Permit::try_reacquire`] acquires the permit.
    ///
    /// # Errors
    /// Returns an error if the source is at its limit. The connection then has no slot.
    pub(crate) fn decide(&mut self) -> Result<(), Verdict> {
        let PermitState::Pending(source) = self.state else { return Ok(()) };
        self.state = PermitState::Rejected;
        self.admission.sources.claim_or_refuse(source)?;
        self.reserve(Some(source));
        Ok(())
    }

    /// Reserves the next permit for a connection that holds a slot of its source, if it has one.
    fn reserve(&mut self, source: Option<Source>) {
        self.admission.reserved.fetch_add(1, Ordering::SeqCst);
        self.state = PermitState::Reserved(source);
    }

    /// Acquires the reserved permit, if one is available. Returns whether the connection has a permit. Until then, no new
    /// connection is accepted.
    pub(crate) fn try_reacquire(&mut self) -> bool {
        let is_reserved = matches!(self.state, PermitState::Reserved(_));
        if is_reserved && !increment_below(&self.admission.open, self.admission.limit()) {
            return false;
        }
        self.end_reservation();
        true
    }

    /// Acquires the reserved permit without checking the limit. For a server that no longer accepts connections.
    pub(crate) fn reacquire_unchecked(&mut self) {
        if matches!(self.state, PermitState::Reserved(_)) {
            self.admission.open.fetch_add(1, Ordering::SeqCst);
            self.end_reservation();
        }
    }

    fn end_reservation(&mut self) {
        if let PermitState::Reserved(source) = self.state {
            self.state = PermitState::Serving(source.map(SourceSlot::Held));
            self.admission.reserved.fetch_sub(1, Ordering::SeqCst);
            self.admission.pending.fetch_sub(1, Ordering::SeqCst);
            // Acceptors may be waiting for the end of the reservation.
            self.admission.connection_ended.notify();
        }
    }

    /// Releases the slot, if it has one.
    fn release_source(&mut self) {
        if let PermitState::Serving(slot) = &mut self.state {
            if let Some(slot) = slot.take() {
                self.admission.sources.release(slot);
            }
        }
    }

    /// Stops counting the connection as awaiting its PROXY header.
    pub(crate) fn stop_awaiting_header(&mut self) {
        if matches!(self.state, PermitState::AwaitingHeader) {
            self.state = PermitState::Serving(None);
            self.admission.release_awaiting_header();
            self.admission.connection_ended.notify();
        }
    }

    /// Turns this into the permit of a refused or reclaimed connection, which does not count against the limit. Returns
    /// `false`, and leaves the permit unchanged, if there are [`MAX_REFUSED`] of them.
    pub(crate) fn refuse(&mut self) -> bool {
        let below = |refused| (refused < MAX_REFUSED).then_some(refused + 1);
        if self.admission.refused.fetch_update(Ordering::SeqCst, Ordering::SeqCst, below).is_err() {
            return false;
        }
        self.release();
        self.state = PermitState::Refused;
        true
    }

    /// Returns whether the connection counts against the limit.
    pub(crate) fn counts(&self) -> bool {
        !matches!(self.state, PermitState::Refused)
    }

    /// Returns the memory of the connection's buffers, in bytes, as it was last set.
    #[inline]
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Sets the memory of the connection's buffers, in bytes. Returns `false` if all connections together exceed
    /// `limits.buffer_memory`; the memory counts in any case.
    #[inline]
    pub(crate) fn set_memory(&mut self, bytes: usize) -> bool {
        let before = mem::replace(&mut self.memory, bytes);
        if bytes <= before {
            if bytes < before {
                self.admission.buffer_memory.fetch_sub(before - bytes, Ordering::Relaxed);
            }
            return true;
        }
        let more = bytes - before;
        let budget = self.admission.max_buffer_memory.load(Ordering::Relaxed);
        self.admission.buffer_memory.fetch_add(more, Ordering::Relaxed) + more <= budget
    }

    /// Returns whether the buffers of all connections occupy more than half of `limits.buffer_memory`.
    #[inline]
    pub(crate) fn is_memory_scarce(&self) -> bool {
        let budget = self.admission.max_buffer_memory.load(Ordering::Relaxed);
        self.admission.buffer_memory.load(Ordering::Relaxed) > budget / 2
    }

    /// Releases a permit that no connection has used. Notifies no acceptor, because the acceptor that calls this would try
    /// again at once. Notifies connections that wait for a reserved permit.
    pub(crate) fn release_unused(mut self) {
        match mem::replace(&mut self.state, PermitState::Released) {
            PermitState::Undecided => {
                self.admission.pending.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            PermitState::AwaitingHeader => {
                self.admission.awaiting_header.fetch_sub(1, Ordering::SeqCst);
            }
            _ => {}
        }
        self.admission.open.fetch_sub(1, Ordering::SeqCst);
        if self.admission.reserved.load(Ordering::SeqCst) > 0 {
            self.admission.connection_ended.notify();
        }
    }

    fn release(&mut self) {
        let admission = &self.admission;
        let state = mem::replace(&mut self.state, PermitState::Released);
        if !matches!(state, PermitState::Released) {
            admission.note_use();
        }
        match state {
            PermitState::Serving(slot) => {
                if let Some(slot) = slot {
                    admission.sources.release(slot);
                }
                admission.release_open();
            }
            PermitState::AwaitingHeader => {
                admission.release_awaiting_header();
                admission.release_open();
            }
            PermitState::Pending(source) => {
                admission.sources.release(SourceSlot::Pending(source));
                admission.pending.fetch_sub(1, Ordering::SeqCst);
            }
            PermitState::Reserved(source) => {
                if let Some(source) = source {
                    admission.sources.release(SourceSlot::Held(source));
                }
                admission.reserved.fetch_sub(1, Ordering::SeqCst);
                admission.pending.fetch_sub(1, Ordering::SeqCst);
            }
            PermitState::Undecided | PermitState::Rejected => {
                admission.pending.fetch_sub(1, Ordering::SeqCst);
            }
            PermitState::Refused => {
                admission.refused.fetch_sub(1, Ordering::SeqCst);
            }
            PermitState::Released => return,
        }
        self.admission.connection_ended.notify();
    }
}

/// The permit of a connection that has ended, but whose socket is not closed yet. It counts against the limits, but no shutdown
/// waits for it.
#[derive(Debug)]
pub(crate) struct ClosingPermit(Permit);

impl Permit {
    /// Turns this into the permit of a connection whose socket is to be closed. Releases the permit, and returns `None`, if it
    /// does not count against the limit.
    pub(crate) fn into_closing(self) -> Option<ClosingPermit> {
        if !matches!(self.state, PermitState::Serving(_) | PermitState::AwaitingHeader) {
            return None;
        }
        self.admission.closing.fetch_add(1, Ordering::SeqCst);
        self.admission.note_use();
        self.admission.connection_ended.notify();
        Some(ClosingPermit(self))
    }
}

impl Drop for ClosingPermit {
    fn drop(&mut self) {
        self.0.admission.closing.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.set_memory(0);
        self.release();
    }
}
