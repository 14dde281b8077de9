//! The delimited echo: from the bytes of messages to replies on their way, each after its message was logged.
//!
//! A message that the log does not take stops the session there: its whole reply is kept in the place of the message in
//! progress, what follows it in the input is held, and [`Session::resume`] asks the log again. No byte of it is searched
//! again for that.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::super::framer::Frame;
use super::super::reply::{ENOUGH, Output, READ_SIZE};
use super::super::unfinished::Rest;
use super::super::verdict::Verdict;
use super::{Outlet, Session};

/// A reply that is complete but was begun in an earlier call is copied together with those after it up to this size,
/// in bytes; a larger one is sent by itself.
const SMALL: usize = 4096;

impl Session {
    /// Answers the messages in `input[range]`, and returns up to where it came: to the end, or until there were replies
    /// enough for one call, or the log took no more. Nothing is owed when it is called. `input` before the range may be
    /// overwritten. Only what was `HELD` may be longer than one read: other rules held when it came.
    // Into both of its callers: a call would cost a tenth of what a lone message costs.
    #[inline(always)]
    pub(super) fn answer<const HELD: bool>(
        &mut self,
        now: Instant,
        input: &mut [u8],
        range: Range<usize>,
        output: &mut Output,
        outlet: &mut impl Outlet,
    ) -> usize {
        let (mut at, end) = (range.start, range.end);
        while at < end {
            if output.len() >= ENOUGH {
                // Enough for one call, even if all of it was taken: others want their turn.
                self.send_now(now, output, outlet);
                return at;
            }
            match self.framer.next(&self.rules.delimiter, self.rules.max_message, &input[at..end]) {
                Frame::Complete(taken) => {
                    let from = at;
                    at += taken;
                    let long = HELD && taken > READ_SIZE;
                    if long && output.len() > 0 {
                        self.send_now(now, output, outlet);
                        return from;
                    }
                    let begun = self.take_message().map(|(_, reply)| reply);
                    if let Some(mut reply) = begun.or_else(|| long.then(|| self.rules.prefix.as_bytes().to_vec())) {
                        reply.reserve_exact(taken);
                        reply.extend_from_slice(&input[from..at]);
                        if !outlet.log(message_in(
                            &reply,
                            self.rules.prefix.len()..reply.len(),
                            self.rules.delimiter.len(),
                        )) {
                            self.unfinished(now).await_log(now, reply);
                            return at;
                        }
                        // It is the first of this input, so output is empty.
                        if !self.add(now, reply, output, outlet) {
                            return at;
                        }
                        continue;
                    }
                    if !outlet.log(message_in(input, from..at, self.rules.delimiter.len())) {
                        self.send_now(now, output, outlet);
                        let reply = [self.rules.prefix.as_bytes(), &input[from..at]].concat();
                        self.unfinished(now).await_log(now, reply);
                        return at;
                    }
                    self.totals.messages += 1;
                    if at == end && output.len() == 0 && from >= self.rules.prefix.len() {
                        // Answered where it lies. What is overwritten was answered before.
                        let start = from - self.rules.prefix.len();
                        input[start..from].copy_from_slice(self.rules.prefix.as_bytes());
                        let reply = &input[start..end];
                        let taken = outlet.send(reply);
                        self.count_sent(now, taken);
                        if taken < reply.len() {
                            self.owe(now, Rest::of(&reply[taken..]));
                        }
                        return end;
                    }
                    output.push_reply(&self.rules.prefix, input, from, at);
                }
                Frame::Unfinished => {
                    let rules = Arc::clone(&self.rules);
                    self.unfinished(now).keep(now, &rules, &input[at..end]);
                    at = end;
                }
                Frame::TooLong => {
                    self.send_now(now, output, outlet);
                    self.end(Verdict::TooLong, now);
                    return end;
                }
            }
        }
        self.send_now(now, output, outlet);
        end
    }

    /// Goes on with what waited for the log, and then with the input that is held, unless something is owed.
    pub(super) fn go_on(&mut self, now: Instant, output: &mut Output, outlet: &mut impl Outlet) {
        output.clear();
        if !self.is_plain {
            return self.go_on_otherwise(now, output, outlet);
        }
        if !self.log_again(outlet) {
            return;
        }
        let Some(unfinished) = self.unfinished.as_mut().filter(|unfinished| unfinished.owed.is_empty()) else { return };
        if let Some((since, reply)) = unfinished.take_unlogged() {
            self.waited_for_log(since, now);
            if !self.add(now, reply, output, outlet) {
                return;
            }
        }
        if let Some((mut bytes, at)) = self.unfinished.as_mut().and_then(|unfinished| unfinished.take_held()) {
            let end = bytes.len();
            let at = self.answer::<true>(now, &mut bytes, at..end, output, outlet);
            if at < end {
                self.unfinished(now).held = Rest::from(bytes, at);
            }
        } else {
            self.send_now(now, output, outlet);
        }
    }

    /// Adds the whole reply to a message that was logged to `output`, which is empty; a large one is sent by itself.
    /// Returns `false` if not all of that was taken.
    fn add(&mut self, now: Instant, reply: Vec<u8>, output: &mut Output, outlet: &mut impl Outlet) -> bool {
        self.totals.messages += 1;
        if reply.len() <= SMALL {
            output.push(&reply);
            return true;
        }
        let taken = outlet.send(&reply);
        self.count_sent(now, taken);
        if taken < reply.len() {
            self.owe(now, Rest::from(reply, taken));
            return false;
        }
        true
    }

    /// Sends `output` and empties it; what is not taken becomes owed.
    #[inline]
    pub(super) fn send_now(&mut self, now: Instant, output: &mut Output, outlet: &mut impl Outlet) {
        if output.len() > 0 {
            let taken = outlet.send(output.as_bytes());
            self.count_sent(now, taken);
            let rest = &output.as_bytes()[taken..];
            if !rest.is_empty() {
                self.owe(now, Rest::of(rest));
            }
            output.clear();
        }
    }
}

/// The message at `range` of `bytes`, without the `ending` bytes that it ends with.
#[inline]
pub(super) fn message_in(bytes: &[u8], range: Range<usize>, ending: usize) -> &[u8] {
    // Indexing could panic, so it would be done even where nothing is logged.
    bytes.get(range.start..range.end - ending).unwrap_or_default()
}
