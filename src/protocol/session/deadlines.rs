//! Until when something has to happen, and what comes of it if it does not.

use std::time::Instant;

use super::{FINAL_REPLY_TIMEOUT, Phase, Session, Want};
use crate::protocol::buffers::Awaited;
use crate::protocol::rules::{Deadlines, TimeSpan};
use crate::protocol::verdict::Verdict;

impl Session {
    /// Returns when [`Session::handle_timeout`] has something to do, unless something else happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.next_deadline().map(|(until, _)| until)
    }

    /// Acts on the deadlines that have passed, and on the end of a delay.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some((until, verdict)) = self.next_deadline() else { return };
        if until > now {
            return;
        }
        let Some(verdict) = verdict else {
            self.buffers_mut(now).mark_delay_over();
            // Another one may be over as well.
            return self.handle_timeout(now);
        };
        match self.phase {
            Phase::Open | Phase::HalfClosed(_) if verdict != Verdict::WriteDeadline => self.stop(verdict, now),
            _ => self.abort(verdict),
        }
    }

    /// Returns until when the final reply may be sent. The time is bounded as a whole: a peer that takes a byte now and
    /// then gains nothing by it.
    pub(super) fn final_reply_deadline(&self, now: Instant) -> Instant {
        let limit = self.rules.deadlines.write.as_ref().map_or(FINAL_REPLY_TIMEOUT, TimeSpan::duration);
        now.checked_add(limit).unwrap_or(now + FINAL_REPLY_TIMEOUT)
    }

    /// Returns the next deadline and the verdict if it passes; a verdict of `None` means that the delay ends.
    // After each drive only the time is asked for, and the rest costs nothing then.
    #[inline(always)]
    fn next_deadline(&self) -> Option<(Instant, Option<Verdict>)> {
        match self.phase {
            Phase::Open | Phase::HalfClosed(_) => {
                earlier(self.peer_deadline(), self.deadline_after(self.opened, |d| &d.lifetime, Verdict::Lifetime))
            }
            Phase::Stopping(Verdict::Shutdown, _) => self.peer_deadline(),
            // The deadline is off while the session waits for the log.
            Phase::Stopping(..) if self.wants() == Want::Log => None,
            Phase::Stopping(verdict, until) | Phase::Closing(verdict, until) | Phase::Lingering(verdict, until, _) => {
                Some((until, Some(verdict)))
            }
            Phase::Logging(_) | Phase::Done(_) => None,
        }
    }

    /// Returns the deadline for what the peer has to do next, and the verdict if it passes.
    #[inline]
    fn peer_deadline(&self) -> Option<(Instant, Option<Verdict>)> {
        match self.buffers.as_ref().map_or(Awaited::MessageStart, |buffers| buffers.awaited()) {
            Awaited::MessageStart => self.deadline_after(self.last_activity, |d| &d.idle, Verdict::IdleDeadline),
            Awaited::MessageEnd(until) => until.map(|until| (until, Some(Verdict::ReadDeadline))),
            Awaited::Log | Awaited::DelayOver => None,
            Awaited::Delay(until) => Some((until, None)),
            Awaited::PeerRead(since) => self.deadline_after(since, |d| &d.write, Verdict::WriteDeadline),
        }
    }

    fn deadline_after(
        &self,
        since: Instant,
        deadline: impl Fn(&Deadlines) -> &Option<TimeSpan>,
        verdict: Verdict,
    ) -> Option<(Instant, Option<Verdict>)> {
        let time_span = deadline(&self.rules.deadlines).as_ref()?;
        // A time beyond all times never comes.
        since.checked_add(time_span.duration()).map(|until| (until, Some(verdict)))
    }
}

fn earlier<T>(one: Option<(Instant, T)>, other: Option<(Instant, T)>) -> Option<(Instant, T)> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
        (one, other) => one.or(other),
    }
}
