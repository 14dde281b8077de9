//! How a conversation ends: with what was read answered, with last words, or at once.

use std::time::Instant;

use super::super::framer::Framer;
use super::super::rules::LogMessages;
use super::super::verdict::Verdict;
use super::{LINGER, LINGER_BYTES, Phase, Session, Want};

impl Session {
    /// Our end of the stream was sent, as [`Want::Shutdown`] asked. If nothing has passed for a while in either direction,
    /// there is nothing on its way that closing could destroy.
    pub fn sent_end(&mut self, now: Instant) {
        if self.wants() != Want::Shutdown {
            return;
        }
        if let Phase::Ending(verdict, _) = self.phase {
            if self.input_ended || now.saturating_duration_since(self.last_byte) >= LINGER {
                self.finish(verdict);
            } else {
                self.phase = Phase::Lingering(verdict, now + LINGER, LINGER_BYTES);
            }
        }
    }

    /// The connection broke: nothing can be sent or received any more.
    pub fn reset(&mut self) {
        self.give_up(self.verdict().unwrap_or(Verdict::PeerReset));
    }

    /// We want to stop: nothing more is read, what was read is answered, then the stream ends.
    pub fn drain(&mut self, now: Instant) {
        if self.phase == Phase::Open {
            self.stop(Verdict::Shutdown, now);
        }
    }

    /// We cannot serve this peer any further: `verdict` says why. What was read before is answered.
    pub fn refuse(&mut self, verdict: Verdict, now: Instant) {
        self.stop(verdict, now);
    }

    /// There is no memory for what it would have to keep: gives everything back, input that was not looked at and what
    /// waits for the log among it. A peer that has not taken the replies it is owed loses them, and with them the words
    /// that would have told it why.
    pub fn out_of_memory(&mut self, now: Instant) {
        let owes = self.unfinished.as_ref().is_some_and(|unfinished| !unfinished.owed.is_empty());
        if owes || matches!(self.phase, Phase::Logging(_)) {
            self.finish(self.verdict().unwrap_or(Verdict::Busy));
        } else if matches!(self.phase, Phase::Open | Phase::Stopping(..) | Phase::Finishing(_)) {
            self.end(Verdict::Busy, now);
        }
    }

    /// Takes no more input, and ends the conversation as soon as what was read is answered.
    pub(super) fn stop(&mut self, verdict: Verdict, now: Instant) {
        if matches!(self.phase, Phase::Open | Phase::Finishing(_)) {
            self.framer = Framer::default();
            self.take_message();
            self.forget_pause();
            self.phase = Phase::Stopping(verdict, self.last_words_until(now));
            self.settle(now);
        }
    }

    /// Ends the conversation from our side: drops input, and adds the last words. They get no more time than what was
    /// given to the replies before them.
    pub(super) fn end(&mut self, verdict: Verdict, now: Instant) {
        let until = match self.phase {
            Phase::Stopping(Verdict::Shutdown, _) => self.last_words_until(now),
            Phase::Stopping(_, until) => until,
            _ => self.last_words_until(now),
        };
        self.framer = Framer::default();
        let mut owed = self.unfinished.take().map(|unfinished| unfinished.owed).unwrap_or_default();
        if self.rules.error_replies {
            if let Some(words) = verdict.last_words(&self.rules) {
                owed.push(&words);
            }
        }
        if !owed.is_empty() {
            self.owe(now, owed);
        }
        self.phase = Phase::Ending(verdict, until);
    }

    /// Leaves the peer for good, but not the messages of it that are to be logged whole.
    pub(super) fn give_up(&mut self, verdict: Verdict) {
        if let (LogMessages::Full, Some(unfinished)) = (self.rules.log_messages, &mut self.unfinished) {
            unfinished.drop_replies();
            if unfinished.is_behind() {
                self.framer = Framer::default();
                self.phase = Phase::Logging(verdict);
                return;
            }
        }
        self.finish(verdict);
    }

    /// Ends it for good; nothing is kept.
    pub(super) fn finish(&mut self, verdict: Verdict) {
        self.framer = Framer::default();
        self.unfinished = None;
        self.phase = Phase::Done(verdict);
    }
}
