//! The ways in which a session ends: after replying to everything that was read, with a final reply, or at once.

use std::time::Instant;

use super::general_path::next_frame;
use super::packets::stored;
use super::{LINGER, LINGER_BYTES, Phase, Session, Want};
use crate::protocol::buffers::{Buffers, ByteQueue};
use crate::protocol::framer::{Frame, Framer};
use crate::protocol::packet;
use crate::protocol::rules::{LogMessages, Rules};
use crate::protocol::verdict::Verdict;

impl Session {
    /// Records that the end of our stream was sent, as [`Want::Shutdown`] asked. If no byte has passed in either
    /// direction for a second, nothing is in flight that closing could destroy, so the session does not linger.
    pub fn handle_shutdown_sent(&mut self, now: Instant) {
        if self.wants() != Want::Shutdown {
            return;
        }
        if let Phase::Closing(verdict, _) = self.phase {
            if self.input_ended || now.saturating_duration_since(self.last_activity) >= LINGER {
                self.finish(verdict);
            } else {
                self.phase = Phase::Lingering(verdict, now + LINGER, LINGER_BYTES);
            }
        }
    }

    /// Ends the session after the connection broke: nothing can be sent or received any longer.
    pub fn handle_reset(&mut self) {
        self.abort(self.verdict().unwrap_or(Verdict::PeerReset));
    }

    /// Ends the session gracefully: reads no more input, replies to the messages that were read, then ends the stream.
    pub fn drain(&mut self, now: Instant) {
        if self.phase == Phase::Open {
            self.stop(Verdict::Shutdown, now);
        }
    }

    /// Ends the session with `verdict`, because this peer cannot be served. Messages that were read before are
    /// answered.
    pub fn refuse(&mut self, verdict: Verdict, now: Instant) {
        self.stop(verdict, now);
    }

    /// Frees all buffers because memory has run out. Unprocessed input and the message that waits for the log are lost.
    /// If the peer has not taken all its replies, these are lost too, and there is no final reply.
    pub fn handle_out_of_memory(&mut self, now: Instant) {
        let has_outbound = self.buffers.as_ref().is_some_and(|buffers| !buffers.outbound.is_empty());
        if has_outbound || matches!(self.phase, Phase::Logging(_)) {
            self.finish(self.verdict().unwrap_or(Verdict::Busy));
        } else if matches!(self.phase, Phase::Open | Phase::Stopping(..) | Phase::HalfClosed(_)) {
            self.close(Verdict::Busy, now);
        }
    }

    /// Takes no more input, and closes the session once everything that was read is answered.
    pub(super) fn stop(&mut self, verdict: Verdict, now: Instant) {
        if matches!(self.phase, Phase::Open | Phase::HalfClosed(_)) {
            // Otherwise the end of the message may have been read ahead.
            if self.buffers.as_ref().is_none_or(|buffers| buffers.inbound.is_empty()) {
                self.framer = Framer::default();
                self.take_message();
            }
            self.leave_delay();
            self.phase = Phase::Stopping(verdict, self.final_reply_deadline(now));
            self.update_phase(now);
        }
    }

    /// Closes the session from our side: drops input, and appends the final reply. After [`Session::stop`], the final
    /// reply has no more time than the replies before it; after a drain, it has its own.
    pub(super) fn close(&mut self, verdict: Verdict, now: Instant) {
        let until = match self.phase {
            Phase::Stopping(Verdict::Shutdown, _) => self.final_reply_deadline(now),
            Phase::Stopping(_, until) => until,
            _ => self.final_reply_deadline(now),
        };
        self.framer = Framer::default();
        let mut outbound = self.buffers.take().map(|buffers| buffers.outbound).unwrap_or_default();
        if self.rules.error_replies {
            if self.rules.packets {
                if let Some(reply) = packet::final_reply(&self.rules, verdict) {
                    outbound.push(&stored(&[[&reply, &[]]]));
                }
            } else if let Some(reply) = verdict.final_reply(&self.rules) {
                outbound.push(&reply);
            }
        }
        if !outbound.is_empty() {
            self.set_outbound(now, outbound);
        }
        self.phase = Phase::Closing(verdict, until);
    }

    /// Ends the session at once, without replying to what was read. Messages that must be logged are still logged: the
    /// session then wants [`Want::Log`].
    pub fn abandon(&mut self) {
        if !matches!(self.phase, Phase::Logging(_) | Phase::Done(_)) {
            self.abort(self.verdict().unwrap_or(Verdict::Shutdown));
        }
    }

    /// Aborts the connection: drops all replies, but keeps messages that must be logged.
    pub(super) fn abort(&mut self, verdict: Verdict) {
        if let (LogMessages::Full, Some(buffers)) = (self.rules.log_messages, &mut self.buffers) {
            let finished = take_finished_message(buffers, &mut self.framer, &self.rules);
            buffers.drop_replies();
            if let Some(reply) = finished {
                buffers.await_log(buffers.wait.since(), reply);
            }
            if buffers.is_reading_blocked() {
                self.framer = Framer::default();
                self.phase = Phase::Logging(verdict);
                return;
            }
        }
        self.finish(verdict);
    }

    /// Ends the session and frees all buffers.
    pub(super) fn finish(&mut self, verdict: Verdict) {
        self.framer = Framer::default();
        self.buffers = None;
        self.phase = Phase::Done(verdict);
    }
}

/// Takes the reply to the message in progress if the end of the message was read ahead. Otherwise drops the read part
/// of the message.
fn take_finished_message(buffers: &mut Buffers, framer: &mut Framer, rules: &Rules) -> Option<Vec<u8>> {
    let (_, mut reply) = buffers.take_message()?;
    let Frame::Complete(taken) = next_frame(framer, rules, buffers.inbound.as_slice()) else {
        buffers.inbound = ByteQueue::default();
        return None;
    };
    reply.extend_from_slice(&buffers.inbound.as_slice()[..taken]);
    buffers.inbound.advance(taken);
    Some(reply)
}
