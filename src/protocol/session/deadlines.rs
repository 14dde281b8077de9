//! Until when something has to happen, and what comes of it if it does not.

use std::time::Instant;

use super::{FINAL_REPLY_TIMEOUT, Phase, Session, Want};
use crate::protocol::buffers::Awaited;
use crate::protocol::rules::{Deadlines, TimeSpan, end_of_limit};
use crate::protocol::verdict::Verdict;

/// The consequence of a passed deadline.
#[derive(Debug, Clone, Copy)]
enum Timeout {
    /// The session ends, and this is why.
    Verdict(Verdict),
    /// The delay after a reply is over.
    DelayOver,
    /// It is time to look whether the peer takes what it is owed.
    PeerProgress,
}

impl Session {
    /// Returns when [`Session::handle_timeout`] has something to do, unless something else happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.next_deadline().map(|(until, _)| until)
    }

    /// Acts on the deadlines that have passed, and on the end of a delay. If [`Session::needs_peer_progress`] says so,
    /// [`Session::record_peer_progress`] comes before.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some((until, timeout)) = self.next_deadline() else { return };
        if until > now {
            return;
        }
        match timeout {
            Timeout::Verdict(verdict) => match self.phase {
                Phase::Open | Phase::HalfClosed(_) if verdict != Verdict::WriteDeadline => {
                    self.stop(verdict, now);
                    // It may be time to look at the peer's progress as well.
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

    /// Returns whether it is time to look whether the peer takes what it is owed.
    #[must_use]
    pub fn needs_peer_progress(&self, now: Instant) -> bool {
        // As the deadline that passes first can be another one, what has to be done at it does not matter.
        matches!(self.awaited(), Awaited::PeerRead(..)) && self.deadline().is_some_and(|until| until <= now)
    }

    /// Returns [`Session::deadline`] without the looks at the peer's progress.
    #[cfg(test)]
    pub(in crate::protocol) fn deadline_without_checks(&self) -> Option<Instant> {
        self.phase_deadline().map(|(until, _)| until)
    }

    /// Records how far the peer has taken what was sent: a number that changes whenever it takes something, as long as
    /// nothing is sent. While it changes, the write deadline does not pass.
    pub fn record_peer_progress(&mut self, now: Instant, mark: u64) {
        if let Some(buffers) = &mut self.buffers {
            buffers.wait.record_progress(now, mark);
        }
    }

    /// Returns until when the final reply may be sent. The time is bounded as a whole: a peer that takes a byte now and
    /// then gains nothing by it.
    pub(super) fn final_reply_deadline(&self, now: Instant) -> Instant {
        end_of_limit(self.rules.deadlines.write.as_ref(), FINAL_REPLY_TIMEOUT, now)
    }

    /// Returns the next deadline, and what it means that it passes.
    // After each drive only the time is asked for, and the rest costs nothing then.
    #[inline(always)]
    fn next_deadline(&self) -> Option<(Instant, Timeout)> {
        earlier(self.phase_deadline(), self.next_check())
    }

    /// Returns when the phase or a delay ends, unless something else happens before.
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

    /// Returns the deadline for what the peer has to do next.
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

    /// Returns when to look at the peer's progress next, if replies are owed.
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
        // A time beyond all times never comes.
        since.checked_add(time_span.duration()).map(|until| (until, Timeout::Verdict(verdict)))
    }
}

fn earlier<T>(one: Option<(Instant, T)>, other: Option<(Instant, T)>) -> Option<(Instant, T)> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
        (one, other) => one.or(other),
    }
}
