//! Every combination of a framing and a reply; and what the delimited echo, which has a way of its own
//! ([`answer`](super::answer)), shares with them while a message waits for the log.
//!
//! A message that the log does not take is kept as it is there: prefix, message, ending. What it is answered with is known
//! when the log has taken it.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::framer::{Frame, Framer};
use super::super::reply::{ENOUGH, Output, READ_SIZE};
use super::super::rules::{Framing, Reply, Rules};
use super::super::unfinished::Rest;
use super::super::verdict::Verdict;
use super::answer::message_in;
use super::{Outlet, Phase, Session};

/// The longest pause: 100 years, so that no clock overflows.
const LONGEST_PAUSE: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Session {
    /// Does what [`Session::answer`] does.
    #[inline(never)]
    pub(super) fn answer_otherwise(
        &mut self,
        now: Instant,
        input: &[u8],
        range: Range<usize>,
        output: &mut Output,
        outlet: &mut impl Outlet,
    ) -> usize {
        let rules = Arc::clone(&self.rules);
        if rules.is_verbatim() && output.len() == 0 {
            return self.pass_on(now, &rules, input, range, outlet);
        }
        let (mut at, end) = (range.start, range.end);
        while at < end {
            if output.len() >= ENOUGH {
                self.send_now(now, output, outlet);
                return at;
            }
            let from = at;
            match frame(&mut self.framer, &rules, &input[at..end]) {
                Frame::Complete(taken) => at += taken,
                Frame::Unfinished => {
                    self.unfinished(now).keep(now, &rules, &input[at..end]);
                    break;
                }
                Frame::TooLong => {
                    self.send_now(now, output, outlet);
                    self.end(Verdict::TooLong, now);
                    return end;
                }
            }
            // Begun in an earlier call, it is kept as it would be while it waits for the log.
            let (whole, skip) = match self.take_message() {
                Some((_, mut begun)) => {
                    begun.reserve_exact(at - from);
                    begun.extend_from_slice(&input[from..at]);
                    (Cow::Owned(begun), rules.prefix.len())
                }
                None => (Cow::Borrowed(&input[from..at]), 0),
            };
            if !outlet.log(message_in(&whole, skip..whole.len(), rules.ending().len())) {
                self.send_now(now, output, outlet);
                let whole = match whole {
                    Cow::Owned(whole) => whole,
                    Cow::Borrowed(message) => [rules.prefix.as_bytes(), message].concat(),
                };
                self.unfinished(now).await_log(now, whole);
                return at;
            }
            if !self.reply(now, &rules, &whole[skip..], output, outlet) {
                return at;
            }
        }
        self.send_now(now, output, outlet);
        end
    }

    /// Does what [`Session::go_on`] does.
    #[inline(never)]
    pub(super) fn go_on_otherwise(&mut self, now: Instant, output: &mut Output, outlet: &mut impl Outlet) {
        let Some(unfinished) = self.unfinished.as_mut() else { return };
        if !unfinished.owed.is_empty() || unfinished.is_paused(now) {
            return;
        }
        unfinished.forget_pause();
        if !self.log_again(outlet) {
            return;
        }
        let rules = Arc::clone(&self.rules);
        if let Some((since, whole)) = self.unfinished(now).take_unlogged() {
            self.waited_for_log(since, now);
            if !self.reply(now, &rules, &whole[rules.prefix.len()..], output, outlet) {
                return;
            }
        }
        if let Some((bytes, at)) = self.unfinished(now).take_held() {
            let end = bytes.len();
            let at = self.answer_otherwise(now, &bytes, at..end, output, outlet);
            if at < end {
                self.unfinished(now).held = Rest::from(bytes, at);
            }
        } else {
            self.send_now(now, output, outlet);
        }
        if !self.is_behind() {
            // Until now it was we who did not read, though nothing may have been sent.
            self.last_byte = now;
        }
    }

    /// Answers `message`, which ends as it ends on the wire. Returns `false` if the next one is not to be taken yet:
    /// something is owed, or a pause begins. Then `output` is empty.
    fn reply(
        &mut self,
        now: Instant,
        rules: &Rules,
        message: &[u8],
        output: &mut Output,
        outlet: &mut impl Outlet,
    ) -> bool {
        self.totals.messages += 1;
        match rules.reply {
            Reply::Echo if message.len() <= READ_SIZE => {
                output.push(rules.prefix.as_bytes());
                output.push(message);
            }
            Reply::Echo => {
                self.send_now(now, output, outlet);
                let reply = [rules.prefix.as_bytes(), message].concat();
                if self.is_owing() {
                    self.unfinished(now).owed.push(&reply);
                    return false;
                }
                let taken = outlet.send(&reply);
                self.count_sent(now, taken);
                if taken < reply.len() {
                    self.owe(now, Rest::from(reply, taken));
                    return false;
                }
            }
            Reply::Fixed => {
                output.push(&rules.text);
                output.push(rules.ending());
            }
            Reply::None => {}
        }
        let delay = rules.reply_delay.length().min(LONGEST_PAUSE);
        if delay.is_zero() || self.phase != Phase::Open {
            return true;
        }
        self.send_now(now, output, outlet);
        self.unfinished(now).pause(now + delay);
        false
    }

    /// Answers messages with the same bytes: with as many of them at once as there are.
    fn pass_on(
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
        for message in input[range.start..end].chunks(rules.max_raw()) {
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
                self.owe(now, Rest::of(&replies[taken..]));
            }
        }
        if let Some(message) = unlogged {
            self.unfinished(now).await_log(now, message.to_vec());
            at += message.len();
        }
        at
    }

    fn is_owing(&self) -> bool {
        self.unfinished.as_ref().is_some_and(|unfinished| !unfinished.owed.is_empty())
    }
}

// --- Waiting for the log ---------------------------------------------------------------------------------------------

impl Session {
    /// Asks the log once more to take the message that waits for it. Returns `false` if it does not.
    pub(super) fn log_again(&self, outlet: &mut impl Outlet) -> bool {
        let whole = self.unfinished.as_ref().and_then(|unfinished| unfinished.unlogged());
        let (prefix, ending) = (self.rules.prefix.len(), self.rules.ending().len());
        whole.is_none_or(|whole| outlet.log(message_in(whole, prefix..whole.len(), ending)))
    }

    /// A message waited for the log since then. It was not the peer that took this time; but some of it may have passed
    /// before we stopped.
    pub(super) fn waited_for_log(&mut self, since: Instant, now: Instant) {
        let last_words_until = self.last_words_until(now);
        if let Phase::Stopping(_, until) = &mut self.phase {
            let later = until.checked_add(now.saturating_duration_since(since)).unwrap_or(*until);
            *until = later.min(last_words_until);
        }
    }

    /// The peer is lost, and nobody waits for the replies any more; the messages that were read are logged all the same.
    pub(super) fn log_rest(&mut self, verdict: Verdict, outlet: &mut impl Outlet) {
        if !self.log_again(outlet) {
            return;
        }
        let Self { rules, framer, unfinished: Some(unfinished), .. } = self else { return self.finish(verdict) };
        unfinished.take_unlogged();
        let held = &mut unfinished.held;
        while let Frame::Complete(taken) = frame(framer, rules, held.as_slice()) {
            if !outlet.log(message_in(held.as_slice(), 0..taken, rules.ending().len())) {
                return;
            }
            held.advance(taken);
        }
        self.finish(verdict);
    }
}

/// Where the message in progress ends.
fn frame(framer: &mut Framer, rules: &Rules, chunk: &[u8]) -> Frame {
    match rules.framing {
        Framing::Delimited => framer.next(&rules.delimiter, rules.max_message, chunk),
        Framing::Raw if chunk.is_empty() => Frame::Unfinished,
        Framing::Raw => Frame::Complete(chunk.len().min(rules.max_raw())),
    }
}
