//! The general path, for all combinations of framing and reply. Also the wait for the log, which it shares with the
//! [`fast_path`](super::fast_path).
//!
//! A message that the log does not accept is stored as on the fast path: prefix, message, terminator. Its reply is built when
//! the log has accepted it.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fast_path::message_in;
use super::{Outlet, Phase, Session};
use crate::protocol::buffers::ByteQueue;
use crate::protocol::framer::{Frame, Framer};
use crate::protocol::reply::{FLUSH_THRESHOLD, Output, READ_SIZE};
use crate::protocol::rules::{Framing, LogMessages, ReplyMode, Rules};
use crate::protocol::verdict::Verdict;

/// The maximum delay: 100 years, so that no clock overflows.
const MAX_DELAY: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Session {
    /// Does what [`Session::answer_fast`] does, for all framings and replies.
    #[inline(never)]
    pub(super) fn answer_general(
        &mut self,
        now: Instant,
        input: &[u8],
        range: Range<usize>,
        output: &mut Output,
        outlet: &mut impl Outlet,
    ) -> usize {
        let rules = Arc::clone(&self.rules);
        if rules.is_verbatim() && output.len() == 0 {
            return self.echo_verbatim(now, &rules, input, range, outlet);
        }
        let (mut at, end) = (range.start, range.end);
        while at < end {
            if output.len() >= FLUSH_THRESHOLD {
                self.flush_output(now, output, outlet);
                return at;
            }
            let from = at;
            match next_frame(&mut self.framer, &rules, &input[at..end]) {
                Frame::Complete(taken) => at += taken,
                Frame::Incomplete => {
                    self.buffers_mut(now).buffer_message(now, &rules, &input[at..end]);
                    break;
                }
                Frame::TooLong => {
                    self.flush_output(now, output, outlet);
                    self.close(Verdict::TooLong, now);
                    return end;
                }
            }
            // A message from an earlier call is stored with its prefix, as while it waits for the log.
            let (complete_message, skip) = match self.take_message() {
                Some((_, mut partial_reply)) => {
                    partial_reply.reserve_exact(at - from);
                    partial_reply.extend_from_slice(&input[from..at]);
                    (Cow::Owned(partial_reply), rules.prefix.len())
                }
                None => (Cow::Borrowed(&input[from..at]), 0),
            };
            if !outlet.log(message_in(&complete_message, skip..complete_message.len(), rules.terminator().len())) {
                self.flush_output(now, output, outlet);
                let complete_message = match complete_message {
                    Cow::Owned(complete_message) => complete_message,
                    Cow::Borrowed(message) => [rules.prefix.as_bytes(), message].concat(),
                };
                self.buffers_mut(now).await_log(now, complete_message);
                return at;
            }
            if !self.answer_message(now, &rules, &complete_message[skip..], output, outlet) {
                return at;
            }
        }
        self.flush_output(now, output, outlet);
        end
    }

    /// Does what [`Session::answer_pending`] does, for all framings and replies.
    #[inline(never)]
    pub(super) fn answer_pending_general(&mut self, now: Instant, output: &mut Output, outlet: &mut impl Outlet) {
        let Some(buffers) = self.buffers.as_mut() else { return };
        if buffers.is_delayed(now) {
            return;
        }
        buffers.leave_delay();
        if !self.retry_log(outlet) {
            return;
        }
        let rules = Arc::clone(&self.rules);
        if let Some((since, complete_message)) = self.buffers_mut(now).take_unlogged() {
            self.exclude_log_wait(since, now);
            if !self.answer_message(now, &rules, &complete_message[rules.prefix.len()..], output, outlet) {
                return;
            }
        }
        if let Some((bytes, at)) = self.buffers_mut(now).take_inbound() {
            let end = bytes.len();
            let at = self.answer_general(now, &bytes, at..end, output, outlet);
            if at < end {
                self.buffers_mut(now).inbound = ByteQueue::from_vec(bytes, at);
            }
        } else {
            self.flush_output(now, output, outlet);
        }
        if !self.is_reading_blocked() {
            // The session read no input until now, so the peer was not idle, even if no reply was sent.
            self.last_activity = now;
        }
    }

    /// Answers `message`, which includes its terminator. Returns `false` if the next message must not be taken yet, because
    /// replies are owed or a delay begins; `output` is empty then.
    fn answer_message(
        &mut self,
        now: Instant,
        rules: &Rules,
        message: &[u8],
        output: &mut Output,
        outlet: &mut impl Outlet,
    ) -> bool {
        self.totals.messages += 1;
        match rules.reply {
            ReplyMode::Echo if message.len() <= READ_SIZE => {
                output.push(rules.prefix.as_bytes());
                output.push(message);
            }
            ReplyMode::Echo => {
                self.flush_output(now, output, outlet);
                let reply = [rules.prefix.as_bytes(), message].concat();
                if self.has_outbound() {
                    self.buffers_mut(now).outbound.push(&reply);
                    return false;
                }
                let taken = outlet.send(&reply);
                self.count_sent(now, taken);
                if taken < reply.len() {
                    self.set_outbound(now, ByteQueue::from_vec(reply, taken));
                    return false;
                }
            }
            ReplyMode::Fixed => {
                output.push(&rules.fixed_reply);
                output.push(rules.terminator());
            }
            ReplyMode::None => {}
        }
        let Some(delay_until) = self.delay_after_reply(now) else { return true };
        self.flush_output(now, output, outlet);
        self.buffers_mut(now).start_delay(delay_until);
        false
    }

    /// Returns the end of the delay after a reply at `now`, if there is a delay.
    pub(super) fn delay_after_reply(&self, now: Instant) -> Option<Instant> {
        let delay = self.rules.reply_delay.duration().min(MAX_DELAY);
        (!delay.is_zero() && self.phase == Phase::Open).then(|| now + delay)
    }

    /// Answers all messages of the range with the same bytes, at once.
    fn echo_verbatim(
        &mut self,
        now: Instant,
        rules: &Rules,
        input: &[u8],
        range: Range<usize>,
        outlet: &mut impl Outlet,
    ) -> usize {
        let end = range.end.min(range.start + READ_SIZE);
        let mut at = range.start;
        let mut unlogged = None;
        for message in input[range.start..end].chunks(rules.max_raw_message()) {
            if !outlet.log(message) {
                unlogged = Some(message);
                break;
            }
            at += message.len();
            self.totals.messages += 1;
        }
        let replies = &input[range.start..at];
        if !replies.is_empty() {
            let taken = outlet.send(replies);
            self.count_sent(now, taken);
            if taken < replies.len() {
                self.set_outbound(now, ByteQueue::from_slice(&replies[taken..]));
            }
        }
        if let Some(message) = unlogged {
            self.buffers_mut(now).await_log(now, message.to_vec());
            at += message.len();
        }
        at
    }

    pub(super) fn has_outbound(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| !buffers.outbound.is_empty())
    }
}

// --- Waiting for the log ---------------------------------------------------------------------------------------------

impl Session {
    /// Asks the log again to accept the message that waits for it. Returns `false` if it does not.
    pub(super) fn retry_log(&self, outlet: &mut impl Outlet) -> bool {
        let complete_message = self.buffers.as_ref().and_then(|buffers| buffers.unlogged());
        let (prefix, terminator_len) = (self.rules.prefix.len(), self.rules.terminator().len());
        complete_message.is_none_or(|complete_message| {
            outlet.log(message_in(complete_message, prefix..complete_message.len(), terminator_len))
        })
    }

    /// Asks the log to accept the message that waits for it, even though replies are owed: the log may have written it, and
    /// remembers that until it is asked. The reply is added behind those that are owed.
    #[cold]
    pub(super) fn answer_behind_outbound(&mut self, now: Instant, outlet: &mut impl Outlet) {
        if !self.retry_log(outlet) {
            return;
        }
        let rules = Arc::clone(&self.rules);
        let Some((_, echo)) = self.buffers_mut(now).take_unlogged() else { return };
        self.totals.messages += 1;
        let outbound = &mut self.buffers_mut(now).outbound;
        match rules.reply {
            ReplyMode::Echo => outbound.push(&echo),
            ReplyMode::Fixed => outbound.push(&[&rules.fixed_reply, rules.terminator()].concat()),
            ReplyMode::None => {}
        }
        if let Some(delay_until) = self.delay_after_reply(now) {
            self.buffers_mut(now).start_delay(delay_until);
        }
    }

    /// Extends the deadline of a stopping session by the time since `since`, in which a message waited for the log, because the
    /// peer did not cause that wait. The deadline is capped, because a part of the wait may be older than the stop.
    pub(super) fn exclude_log_wait(&mut self, since: Instant, now: Instant) {
        let final_reply_deadline = self.final_reply_deadline(now);
        if let Phase::Stopping(_, until) = &mut self.phase {
            let later = until.checked_add(now.saturating_duration_since(since)).unwrap_or(*until);
            *until = later.min(final_reply_deadline);
        }
    }

    /// Returns the number of complete messages that were read and still wait for the lossless log.
    #[must_use]
    pub fn unlogged_messages(&self) -> usize {
        self.count_unlogged(usize::MAX)
    }

    /// Returns whether [`Session::unlogged_messages`] is not 0.
    #[must_use]
    pub fn has_unlogged_messages(&self) -> bool {
        self.count_unlogged(1) > 0
    }

    /// Returns [`Session::unlogged_messages`], but counts up to `most` only.
    fn count_unlogged(&self, most: usize) -> usize {
        let Self { rules, framer, buffers: Some(buffers), .. } = self else { return 0 };
        if rules.log_messages != LogMessages::Full {
            return 0;
        }
        let (mut framer, mut rest) = (framer.clone(), buffers.inbound.as_slice());
        let mut count = usize::from(buffers.has_unlogged());
        while count < most {
            let Frame::Complete(taken) = next_frame(&mut framer, rules, rest) else { break };
            (count, rest) = (count + 1, &rest[taken..]);
        }
        count
    }

    /// Logs the messages that were read from a lost peer. They are not answered.
    pub(super) fn log_remaining(&mut self, verdict: Verdict, outlet: &mut impl Outlet) {
        if !self.retry_log(outlet) {
            return;
        }
        let Self { rules, framer, buffers: Some(buffers), .. } = self else { return self.finish(verdict) };
        buffers.take_unlogged();
        let inbound = &mut buffers.inbound;
        while let Frame::Complete(taken) = next_frame(framer, rules, inbound.as_slice()) {
            if !outlet.log(message_in(inbound.as_slice(), 0..taken, rules.terminator().len())) {
                return;
            }
            inbound.advance(taken);
        }
        self.finish(verdict);
    }
}

/// Finds the end of the message in progress.
pub(super) fn next_frame(framer: &mut Framer, rules: &Rules, chunk: &[u8]) -> Frame {
    match rules.framing {
        Framing::Delimited => framer.next(&rules.delimiter, rules.max_message, chunk),
        Framing::Raw if chunk.is_empty() => Frame::Incomplete,
        Framing::Raw => Frame::Complete(chunk.len().min(rules.max_raw_message())),
    }
}
