//! The deadlines of a session, and their consequences.

use std::time::Instant;

use super::{FINAL_REPLY_TIMEOUT, Phase, Session, Want};
use crate::protocol::buffers::Awaited;
use crate::protocol::rules::{Deadlines, TimeSpan, end_of_limit};
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
    /// Returns when to call [`Session::handle_timeout`], unless another call changes it before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.next_deadline().map(|(until, _)| until)
    }

    /// Acts on deadlines that have passed, and on the end of a delay. If [`Session::needs_peer_progress`] returns `true`, call
    /// [`Session::record_peer_progress`] before.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some((until, timeout)) = self.next_deadline() else { return };
        if until > now {
            return;
        }
        match timeout {
            Timeout::Verdict(verdict) => match self.phase {
                Phase::Open | Phase::HalfClosed(_) if verdict != Verdict::WriteDeadline => {
                    self.stop(verdict, now);
                    // The peer's progress may have to be checked as well.
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

    /// Returns whether the peer's progress has to be checked now.
    #[must_use]
    pub fn needs_peer_progress(&self, now: Instant) -> bool {
        // Also if another deadline than the check has passed, because the result may prevent the write deadline.
        matches!(self.awaited(), Awaited::PeerRead(..)) && self.deadline().is_some_and(|until| until <= now)
    }

    /// Returns [`Session::deadline`] without the checks of the peer's progress.
    #[cfg(test)]
    pub(in crate::protocol) fn deadline_without_checks(&self) -> Option<Instant> {
        self.phase_deadline().map(|(until, _)| until)
    }

    /// Records the peer's progress. `mark` changes whenever the peer takes data, as long as nothing is sent. While it changes,
    /// the write deadline does not pass.
    pub fn record_peer_progress(&mut self, now: Instant, mark: u64) {
        if let Some(buffers) = &mut self.buffers {
            buffers.wait.record_progress(now, mark);
        }
    }

    /// Returns the deadline of the final reply. A peer that takes a byte now and then does not extend it.
    pub(super) fn final_reply_deadline(&self, now: Instant) -> Instant {
        end_of_limit(self.rules.deadlines.write.as_ref(), FINAL_REPLY_TIMEOUT, now)
    }

    /// Returns the next deadline, and its consequence.
    // Inlined, because after each drive only the time is used: the consequence then costs nothing.
    #[inline(always)]
    fn next_deadline(&self) -> Option<(Instant, Timeout)> {
        earlier(self.phase_deadline(), self.next_check())
    }

    /// Returns the deadline of the phase, or the end of a delay.
    #[inline(always)]
    fn phase_deadline(&self) -> Option<(Instant, Timeout)> {
        match self.phase {
            Phase::Open | Phase::HalfClosed(_) => {
                earlier(self.peer_deadline(), self.deadline_after(self.opened, |d| &d.lifetime, Verdict::Lifetime))
            }
            Phase::Stopping(Verdict::Shutdown, _) => self.peer_deadline(),
            // The deadline is off while the session waits for the log.
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

    /// Returns the deadline of the event that the session awaits.
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

    /// Returns when to check the peer's progress next, if replies are owed.
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
        // A time that the clock cannot represent never comes.
        since.checked_add(time_span.duration()).map(|until| (until, Timeout::Verdict(verdict)))
    }
}

fn earlier<T>(one: Option<(Instant, T)>, other: Option<(Instant, T)>) -> Option<(Instant, T)> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
        (one, other) => one.or(other),
    }
}
