//! The delimited echo: from the bytes of messages to replies on their way, each after its message was logged.
//!
//! A message that the log does not accept stops the session there: its whole reply is kept in place of the message in
//! progress, the input after it goes to `inbound`, and [`Session::process_buffers`] asks the log again. No byte of it
//! is searched again for that.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::{Outlet, Session};
use crate::protocol::buffers::ByteQueue;
use crate::protocol::delimiter::positions;
use crate::protocol::framer::Frame;
use crate::protocol::reply::{BLOCK, FLUSH_THRESHOLD, Output, READ_SIZE};
use crate::protocol::verdict::Verdict;

/// A reply that is complete but was begun in an earlier call is copied together with those after it up to this size,
/// in bytes; a larger one is sent by itself.
const MAX_COALESCED: usize = 4096;

impl Session {
    /// Answers the messages in `input[range]`, and returns up to where it came: to the end, or until there were replies
    /// enough for one call, or the log accepted no more. Nothing is owed when it is called. `input` before the range
    /// may be overwritten. Only input from the inbound buffer (`INBOUND`) may be longer than one read: other rules
    /// applied when it came.
    // Into both of its callers: a call would cost a tenth of what a lone message costs.
    #[inline(always)]
    pub(super) fn answer_fast<const INBOUND: bool>(
        &mut self,
        now: Instant,
        input: &mut [u8],
        range: Range<usize>,
        output: &mut Output,
        outlet: &mut impl Outlet,
    ) -> usize {
        let (mut at, end) = (range.start, range.end);
        // Whether the last message would have fitted into a block: the next one probably does as well.
        let mut is_short = true;
        while at < end {
            if output.len() >= FLUSH_THRESHOLD {
                // Enough for one call, even if all of it was taken: other connections wait to be driven.
                self.flush_output(now, output, outlet);
                return at;
            }
            if is_short && self.uses_blocks && !outlet.is_logging() && !self.framer.in_progress() {
                let up_to = self.answer_block(now, input, at..end, output, outlet);
                if up_to > at {
                    at = up_to;
                    continue;
                }
            }
            match self.framer.next(&self.rules.delimiter, self.rules.max_message, &input[at..end]) {
                Frame::Complete(taken) => {
                    let from = at;
                    at += taken;
                    is_short = taken <= BLOCK;
                    let long = INBOUND && taken > READ_SIZE;
                    if long && output.len() > 0 {
                        self.flush_output(now, output, outlet);
                        return from;
                    }
                    let partial_reply = self.take_message().map(|(_, reply)| reply);
                    if let Some(mut reply) =
                        partial_reply.or_else(|| long.then(|| self.rules.prefix.as_bytes().to_vec()))
                    {
                        reply.reserve_exact(taken);
                        reply.extend_from_slice(&input[from..at]);
                        if !outlet.log(message_in(
                            &reply,
                            self.rules.prefix.len()..reply.len(),
                            self.rules.delimiter.len(),
                        )) {
                            self.buffers_mut(now).await_log(now, reply);
                            return at;
                        }
                        // It is the first of this input, so output is empty.
                        if !self.push_or_send(now, reply, output, outlet) {
                            return at;
                        }
                        continue;
                    }
                    if !outlet.log(message_in(input, from..at, self.rules.delimiter.len())) {
                        self.flush_output(now, output, outlet);
                        let reply = [self.rules.prefix.as_bytes(), &input[from..at]].concat();
                        self.buffers_mut(now).await_log(now, reply);
                        return at;
                    }
                    self.totals.messages += 1;
                    if at == end && output.len() == 0 && from >= self.rules.prefix.len() {
                        // Answered in place. The overwritten bytes were answered before.
                        let start = from - self.rules.prefix.len();
                        input[start..from].copy_from_slice(self.rules.prefix.as_bytes());
                        let reply = &input[start..end];
                        let taken = outlet.send(reply);
                        self.count_sent(now, taken);
                        if taken < reply.len() {
                            self.set_outbound(now, ByteQueue::from_slice(&reply[taken..]));
                        }
                        return end;
                    }
                    output.push_reply(&self.rules.prefix, input, from, at);
                }
                Frame::Incomplete => {
                    let rules = Arc::clone(&self.rules);
                    self.buffers_mut(now).buffer_message(now, &rules, &input[at..end]);
                    at = end;
                }
                Frame::TooLong => {
                    self.flush_output(now, output, outlet);
                    self.close(Verdict::TooLong, now);
                    return end;
                }
            }
        }
        if output.len() > 0 {
            self.flush_output(now, output, outlet);
        }
        end
    }

    /// Answers the messages that end in the next block of `input[range]`, and returns up to where it came: to the end of the
    /// last one. No message is in progress, and none is logged.
    #[inline(always)]
    fn answer_block(
        &mut self,
        now: Instant,
        input: &mut [u8],
        range: Range<usize>,
        output: &mut Output,
        outlet: &mut impl Outlet,
    ) -> usize {
        let Range { start: at, end } = range;
        let block = input.get(at..).and_then(|input| input.first_chunk::<BLOCK>());
        let Some((byte, block)) = self.rules.delimiter.single().zip(block) else { return at };
        let found = positions(byte, block, end - at);
        if found == 0 {
            return at;
        }
        if at + found.trailing_zeros() as usize + 1 == end
            && output.len() == 0
            && self.rules.prefix.put_before(input, at)
        {
            // Answered in place. The overwritten bytes were answered before.
            self.totals.messages += 1;
            let reply = &input[at - self.rules.prefix.len()..end];
            let taken = outlet.send(reply);
            self.count_sent(now, taken);
            if taken < reply.len() {
                self.set_outbound(now, ByteQueue::from_slice(&reply[taken..]));
            }
            return end;
        }
        self.totals.messages += u64::from(found.count_ones());
        output.push_replies(&self.rules.prefix, input, at, found)
    }

    /// Answers the message that waited for the log, and then those in the inbound buffer. While something is owed, only the
    /// former.
    pub(super) fn answer_pending(&mut self, now: Instant, output: &mut Output, outlet: &mut impl Outlet) {
        output.clear();
        if self.has_outbound() {
            return self.answer_behind_outbound(now, outlet);
        }
        if !self.uses_fast_path {
            return self.answer_pending_general(now, output, outlet);
        }
        if !self.retry_log(outlet) {
            return;
        }
        let Some(buffers) = self.buffers.as_mut() else { return };
        if let Some((since, reply)) = buffers.take_unlogged() {
            self.exclude_log_wait(since, now);
            if !self.push_or_send(now, reply, output, outlet) {
                return;
            }
        }
        if let Some((mut bytes, at)) = self.buffers.as_mut().and_then(|buffers| buffers.take_inbound()) {
            let end = bytes.len();
            let at = self.answer_fast::<true>(now, &mut bytes, at..end, output, outlet);
            if at < end {
                self.buffers_mut(now).inbound = ByteQueue::from_vec(bytes, at);
            }
        } else {
            self.flush_output(now, output, outlet);
        }
    }

    /// Adds the whole reply to a message that was logged to `output`, which is empty; a large one is sent by itself.
    /// Returns `false` if not all of that was taken.
    fn push_or_send(&mut self, now: Instant, reply: Vec<u8>, output: &mut Output, outlet: &mut impl Outlet) -> bool {
        self.totals.messages += 1;
        if reply.len() <= MAX_COALESCED {
            output.push(&reply);
            return true;
        }
        let taken = outlet.send(&reply);
        self.count_sent(now, taken);
        if taken < reply.len() {
            self.set_outbound(now, ByteQueue::from_vec(reply, taken));
            return false;
        }
        true
    }

    /// Sends `output` and empties it; what is not taken goes to `outbound`.
    #[inline]
    pub(super) fn flush_output(&mut self, now: Instant, output: &mut Output, outlet: &mut impl Outlet) {
        if output.len() > 0 {
            let taken = outlet.send(output.as_bytes());
            self.count_sent(now, taken);
            let rest = &output.as_bytes()[taken..];
            if !rest.is_empty() {
                self.set_outbound(now, ByteQueue::from_slice(rest));
            }
            output.clear();
        }
    }
}

/// Returns the message at `range` of `bytes`, without the `terminator_len` bytes that it ends with.
#[inline]
pub(super) fn message_in(bytes: &[u8], range: Range<usize>, terminator_len: usize) -> &[u8] {
    // Indexing could panic, so it would be done even where nothing is logged.
    bytes.get(range.start..range.end - terminator_len).unwrap_or_default()
}
