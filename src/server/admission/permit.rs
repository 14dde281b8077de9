//! Permits: the right of a connection to exist, from before it is accepted until its socket is closed.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::sources::SourceSlot;
use super::{Admission, MAX_REFUSED, increment_below};
use crate::protocol::Verdict;
use crate::server::peer::Source;

/// The right to have one more connection, and its share of the buffer memory. Released when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    pub(super) admission: Arc<Admission>,
    pub(super) state: PermitState,
    /// Bytes that the connection keeps in its buffers.
    pub(super) memory: usize,
}

#[derive(Debug)]
pub(super) enum PermitState {
    /// With its slot, if it has a source.
    Serving(Option<SourceSlot>),
    /// The connection awaits its PROXY header, and counts for no source before.
    AwaitingHeader,
    /// It was accepted while all permits were taken, and its source is not known yet.
    Undecided,
    /// It was given back while it is decided whether the source has room, since the connection may be refused. The slot
    /// is pending.
    Pending(Source),
    /// The source has room: the slot is held, if there is a source. The next permit that is released is this one's.
    Reserved(Option<Source>),
    /// The source has no room: there is no slot.
    Rejected,
    Refused,
    Released,
}

impl Permit {
    /// Claims a slot of this source, and releases the slot that it had before. The connection no longer counts as one
    /// that awaits its PROXY header. Returns `false` if the slot is pending: then the permit is given back to others
    /// until [`Permit::decide`] and [`Permit::try_reacquire`]. Until then, later connections of that source are pending as
    /// well. The same if there was no permit yet.
    pub(crate) fn claim(&mut self, source: Option<Source>) -> bool {
        self.stop_awaiting_header();
        self.release_source();
        let has_permit = !matches!(self.state, PermitState::Undecided);
        match source.map(|source| self.admission.sources.claim(source)) {
            Some(SourceSlot::Pending(source)) => {
                if has_permit {
                    // In this order, so that the connection is counted all the time.
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

    /// Claims the slot that is pending. If that succeeds, the permit is to be acquired again.
    ///
    /// # Errors
    /// Returns an error if the source has as many connections as it may have. The permit has no slot then.
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

    /// Acquires a permit for a connection whose source has room. Returns whether it has one. No new connection is accepted
    /// before it has.
    pub(crate) fn try_reacquire(&mut self) -> bool {
        let is_reserved = matches!(self.state, PermitState::Reserved(_));
        if is_reserved && !increment_below(&self.admission.open, self.admission.limit()) {
            return false;
        }
        self.end_reservation();
        true
    }

    /// The same at once, whatever the limit: nothing is accepted any more.
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
            // Acceptors may have waited for this.
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

    /// No longer counts the connection as one that awaits its PROXY header.
    pub(crate) fn stop_awaiting_header(&mut self) {
        if matches!(self.state, PermitState::AwaitingHeader) {
            self.state = PermitState::Serving(None);
            self.admission.release_awaiting_header();
            self.admission.connection_ended.notify();
        }
    }

    /// Turns this into the permit of a connection that is closed outside the limit, since it was refused or reclaimed.
    /// Returns `false`, and leaves the permit as it is, if there are [`MAX_REFUSED`] of those.
    pub(crate) fn refuse(&mut self) -> bool {
        let below = |refused| (refused < MAX_REFUSED).then_some(refused + 1);
        if self.admission.refused.fetch_update(Ordering::SeqCst, Ordering::SeqCst, below).is_err() {
            return false;
        }
        self.release();
        self.state = PermitState::Refused;
        true
    }

    /// Returns whether the connection counts against the limit: it was not refused.
    pub(crate) fn counts(&self) -> bool {
        !matches!(self.state, PermitState::Refused)
    }

    /// Returns how many bytes the connection keeps in its buffers, as far as that was set.
    #[inline]
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Sets how many bytes the connection keeps in its buffers. Returns whether that fits into the budget of all
    /// connections; it counts in any case.
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

    /// Returns whether the buffers of all connections keep more than half of what they may.
    #[inline]
    pub(crate) fn is_memory_scarce(&self) -> bool {
        let budget = self.admission.max_buffer_memory.load(Ordering::Relaxed);
        self.admission.buffer_memory.load(Ordering::Relaxed) > budget / 2
    }

    /// Releases the permit unused. Notifies no acceptor, since no connection has ended: the one that releases it would
    /// take that for a reason to try again. A connection that waits for its reserved permit has to hear of it.
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

/// The permit of a connection that has ended, and whose socket waits to be closed. It counts against the limits, but no
/// shutdown waits for it.
#[derive(Debug)]
pub(crate) struct ClosingPermit(Permit);

impl Permit {
    /// Turns this into the permit of a connection whose socket waits to be closed. `None` if it does not count against the
    /// limit: then it is released.
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
