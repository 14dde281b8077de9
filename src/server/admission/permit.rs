//! Permits: the right to have one more connection, from before accept(2) until the socket is closed.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::sources::SourceSlot;
use super::{Admission, MAX_REFUSED, increment_below};
use crate::protocol::Verdict;
use crate::server::peer::Source;

/// The right to have one more connection, with its share of the buffer memory. Released when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    pub(super) admission: Arc<Admission>,
    pub(super) state: PermitState,
    /// Bytes in the connection's buffers.
    pub(super) memory: usize,
}

#[derive(Debug)]
pub(super) enum PermitState {
    /// The connection may be served. It holds a slot if it has a source.
    Serving(Option<SourceSlot>),
    /// The connection awaits its PROXY header, and does not count for any source yet.
    AwaitingHeader,
    /// The connection was accepted while all permits were taken, and has not claimed a slot yet.
    Undecided,
    /// The connection has no permit until it is decided whether its source has room, because it may be refused. Its
    /// slot is pending.
    Pending(Source),
    /// The source has room, and its slot is held if there is a source. The connection gets the next permit that is
    /// released.
    Reserved(Option<Source>),
    /// The source has no room, and there is no slot.
    Rejected,
    Refused,
    Released,
}

impl Permit {
    /// Claims a slot of this source, and releases the previous slot. The connection no longer counts as awaiting its
    /// PROXY header. Returns whether it may be served now.
    ///
    /// If the slot is pending, the permit is given back until [`Permit::decide`] and [`Permit::try_reacquire`] succeed.
    /// Until then, slots of later connections of that source are pending as well. If there was no permit yet, it has to
    /// be reacquired in any case.
    pub(crate) fn claim(&mut self, source: Option<Source>) -> bool {
        self.stop_awaiting_header();
        self.release_source();
        let has_permit = !matches!(self.state, PermitState::Undecided);
        match source.map(|source| self.admission.sources.claim(source)) {
            Some(SourceSlot::Pending(source)) => {
                if has_permit {
                    // In this order, so that the connection is counted at every moment.
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

    /// Claims the pending slot. On success, the permit must be acquired again.
    ///
    /// # Errors
    /// Returns an error if the source is at its limit; the permit then has no slot.
    pub(crate) fn decide(&mut self) -> Result<(), Verdict> {
        let PermitState::Pending(source) = self.state else { return Ok(()) };
        self.state = PermitState::Rejected;
        self.admission.sources.claim_or_refuse(source)?;
        self.reserve(Some(source));
        Ok(())
    }

    /// Reserves the next permit for a connection that holds a slot of its source, or has no source.
    fn reserve(&mut self, source: Option<Source>) {
        self.admission.reserved.fetch_add(1, Ordering::SeqCst);
        self.state = PermitState::Reserved(source);
    }

    /// Acquires a reserved permit. Returns whether that succeeded. While a permit is reserved, no new connection is
    /// accepted before it.
    pub(crate) fn try_reacquire(&mut self) -> bool {
        let is_reserved = matches!(self.state, PermitState::Reserved(_));
        if is_reserved && !increment_below(&self.admission.open, self.admission.limit()) {
            return false;
        }
        self.end_reservation();
        true
    }

    /// Acquires a reserved permit without checking the limit. Used when nothing is accepted any longer.
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
            // Acceptors may have waited for the end of the reservation.
            self.admission.connection_ended.notify();
        }
    }

    /// Releases the slot, if any.
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
    /// `false` and changes nothing if there are already [`MAX_REFUSED`] of those.
    pub(crate) fn refuse(&mut self) -> bool {
        let below = |refused| (refused < MAX_REFUSED).then_some(refused + 1);
        if self.admission.refused.fetch_update(Ordering::SeqCst, Ordering::SeqCst, below).is_err() {
            return false;
        }
        self.release();
        self.state = PermitState::Refused;
        true
    }

    /// Returns whether the connection counts against the limit, which a refused one does not.
    pub(crate) fn counts(&self) -> bool {
        !matches!(self.state, PermitState::Refused)
    }

    /// Returns the bytes in the connection's buffers, as last set.
    #[inline]
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Sets the bytes in the connection's buffers. Returns whether the total is within the budget of all connections;
    /// the bytes count in any case.
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

    /// Returns whether more than half of the budget for buffers is used.
    #[inline]
    pub(crate) fn is_memory_scarce(&self) -> bool {
        let budget = self.admission.max_buffer_memory.load(Ordering::Relaxed);
        self.admission.buffer_memory.load(Ordering::Relaxed) > budget / 2
    }

    /// Releases an unused permit. Acceptors are not notified, because no connection has ended and the calling acceptor
    /// would try again at once. Connections that wait for a reserved permit are notified.
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

/// The permit of a connection that has ended, but whose socket is not closed yet. It counts against the limits, but a
/// shutdown does not wait for it.
#[derive(Debug)]
pub(crate) struct ClosingPermit(Permit);

impl Permit {
    /// Turns this into the permit of a connection whose socket is not closed yet. If the permit does not count against
    /// the limit, releases it and returns `None`.
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
