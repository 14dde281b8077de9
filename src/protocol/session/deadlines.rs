//! The deadlines of a session, and the consequences when they pass.

use std::time::Instant;

use super::{FINAL_REPLY_TIMEOUT, Phase, Session, Want};
use crate::protocol::buffers::Awaited;
use crate::protocol::rules::{Deadlines, TimeSpan};
use crate::protocol::verdict::Verdict;

/// The consequence of a passed deadline.
#[derive(Debug, Clone, Copy)]
enum Timeout {
    /// The session ends with this verdict.
    Verdict(Verdict),
    /// The delay after a reply is over.
    DelayOver,
    /// The peer's progress has to be checked.
    PeerProgress,
}

impl Session {
    /// Returns when [`Session::handle_timeout`] must be called, unless another event changes that.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.next_deadline().map(|(until, _)| until)
    }

    /// Handles deadlines that have passed, and the end of a delay. If [`Session::needs_peer_progress`] returns `true`,
    /// call [`Session::record_peer_progress`] first.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some((until, timeout)) = self.next_deadline() else { return };
        if until > now {
            return;
        }
        match timeout {
            Timeout::Verdict(verdict) => match self.phase {
                Phase::Open | Phase::HalfClosed(_) if verdict != Verdict::WriteDeadline => {
                    self.stop(verdict, now);
                    // A check of the peer's progress may be due as well.
                    self.handle_timeout(now);
                }
                _ => self.abort(verdict),
            },
            Timeout::DelayOver => {
                self.buffers_mut(now).mark_delay_over();
                // Another deadline may have passed as well.
                self.handle_timeout(now);
            }
            Timeout::PeerProgress => {
                self.buffers_mut(now).wait.record_check(now);
                self.handle_timeout(now);
            }
        }
    }

    /// Returns whether to check the peer's progress now.
    #[must_use]
    pub fn needs_peer_progress(&self, now: Instant) -> bool {
        // Any passed deadline counts, because an earlier one may hide the check.
        matches!(self.awaited(), Awaited::PeerRead(..)) && self.deadline().is_some_and(|until| until <= now)
    }

    /// Returns [`Session::deadline`] without the checks of the peer's progress.
    #[cfg(test)]
    pub(in crate::protocol) fn deadline_without_checks(&self) -> Option<Instant> {
        self.phase_deadline().map(|(until, _)| until)
    }

    /// Records the peer's progress as a mark: a number that changes whenever the peer takes something, as long as
    /// nothing is sent. The write deadline does not pass while the mark changes.
    pub fn record_peer_progress(&mut self, now: Instant, mark: u64) {
        if let Some(buffers) = &mut self.buffers {
            buffers.wait.record_progress(now, mark);
        }
    }

    /// Returns the deadline for the final reply. It covers the whole reply, so a peer gains nothing by taking a byte
    /// now and then.
    pub(super) fn final_reply_deadline(&self, now: Instant) -> Instant {
        let limit = self.rules.deadlines.write.as_ref().map_or(FINAL_REPLY_TIMEOUT, TimeSpan::duration);
        now.checked_add(limit).unwrap_or(now + FINAL_REPLY_TIMEOUT)
    }

    /// Returns the next deadline and its consequence.
    // Inlined, because after each drive only the time is needed, and the compiler can drop the rest.
    #[inline(always)]
    fn next_deadline(&self) -> Option<(Instant, Timeout)> {
        earlier(self.phase_deadline(), self.next_check())
    }

    /// Returns the end of the phase, of the wait for the peer, or of a delay, with its consequence.
    #[inline(always)]
    fn phase_deadline(&self) -> Option<(Instant, Timeout)> {
        match self.phase {
            Phase::Open | Phase::HalfClosed(_) => {
                earlier(self.peer_deadline(), self.deadline_after(self.opened, |d| &d.lifetime, Verdict::Lifetime))
            }
            Phase::Stopping(Verdict::Shutdown, _) => self.peer_deadline(),
            // The deadline does not apply while the session waits for the log.
            Phase::Stopping(..) if self.wants() == Want::Log => None,
            Phase::Stopping(verdict, until) | Phase::Closing(verdict, until) | Phase::Lingering(verdict, until, _) => {
                Some((until, Timeout::Verdict(verdict)))
            }
            Phase::Logging(_) | Phase::Done(_) => None,
        }
    }

    #[inline]
    pub(super) fn awaited(&self) -> Awaited {
        self.buffers.as_ref().map_or(Awaited::MessageStart, |buffers| buffers.awaited())
    }

    /// Returns the deadline for the peer's next action.
    #[inline]
    fn peer_deadline(&self) -> Option<(Instant, Timeout)> {
        match self.awaited() {
            Awaited::MessageStart => self.deadline_after(self.last_activity, |d| &d.idle, Verdict::IdleDeadline),
            Awaited::MessageEnd(until) => until.map(|until| (until, Timeout::Verdict(Verdict::ReadDeadline))),
            Awaited::Log | Awaited::DelayOver => None,
            Awaited::Delay(until) => Some((until, Timeout::DelayOver)),
            Awaited::PeerRead(wait) => self.deadline_after(wait.since(), |d| &d.write, Verdict::WriteDeadline),
        }
    }

    /// Returns when to check the peer's progress, if replies are owed.
    #[inline]
    fn next_check(&self) -> Option<(Instant, Timeout)> {
        let Awaited::PeerRead(wait) = self.awaited() else { return None };
        let next_check = wait.next_check(self.rules.deadlines.write.as_ref().map(TimeSpan::duration));
        next_check.map(|at| (at, Timeout::PeerProgress))
    }

    fn deadline_after(
        &self,
        since: Instant,
        deadline: impl Fn(&Deadlines) -> &Option<TimeSpan>,
        verdict: Verdict,
    ) -> Option<(Instant, Timeout)> {
        let time_span = deadline(&self.rules.deadlines).as_ref()?;
        // A time out of range never comes.
        since.checked_add(time_span.duration()).map(|until| (until, Timeout::Verdict(verdict)))
    }
}

fn earlier<T>(one: Option<(Instant, T)>, other: Option<(Instant, T)>) -> Option<(Instant, T)> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
        (one, other) => one.or(other),
    }
}
