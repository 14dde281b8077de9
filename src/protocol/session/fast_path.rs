//! The delimited echo without a delay: finds messages in the input, logs them, and sends their replies.
//!
//! At a message that the log does not accept, the session stops. It stores the whole reply in place of the message in progress,
//! and the input after it in `inbound`. [`Session::process_buffers`] asks the log again, without searching any byte again.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::{Outlet, Session};
use crate::protocol::buffers::ByteQueue;
use crate::protocol::delimiter::positions;
use crate::protocol::framer::Frame;
use crate::protocol::reply::{BLOCK, FLUSH_THRESHOLD, Output, READ_SIZE};
use crate::protocol::verdict::Verdict;

/// The maximum size of a stored reply that is copied and sent together with the replies after it, in bytes. A larger one is
/// sent by itself.
const MAX_COALESCED: usize = 4096;

impl Session {
    /// Answers the messages in `input[range]`. Returns the index at which it stopped: the end, or earlier if there were enough
    /// replies for one call, or if the log accepted no more. No replies may be owed. `input` before the range may be
    /// overwritten. Only messages from the inbound buffer (`INBOUND`) may be longer than one read, because other rules may have
    /// applied when they came.
    // Inlined into both callers: a call would cost a tenth of the time of a single message.
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
        // Whether the last message fitted into a block. The next one probably does as well.
        let mut is_short = true;
        while at < end {
            if output.len() >= FLUSH_THRESHOLD {
                // Enough for one call, even if the peer took all of it: other connections wait to be driven.
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
                        // This is the first message of the input, so `output` is empty.
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
                        // Answered in place. The overwritten bytes have already been answered.
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

    /// Answers the messages that end in the next block of `input[range]`. Returns the end of the last one, or `range.start` if
    /// there is none. No message may be in progress, and messages are not logged.
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
            // Answered in place. The overwritten bytes have already been answered.
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

    /// Answers the message that waits for the log, and then those in the inbound buffer. While replies are owed, only the
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

    /// Adds the whole reply to a logged message to `output`, which must be empty, or sends a large one by itself. Returns
    /// `false` if the peer did not take all of it.
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

    /// Sends `output` and empties it. Stores the bytes that the peer does not take in `outbound`.
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
    // Indexing could panic, so the compiler would keep it even if nothing is logged.
    bytes.get(range.start..range.end - terminator_len).unwrap_or_default()
}
