//! Ends sessions: after the messages that were read are answered, with a final reply, or at once.

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
    /// Records that the end of the daemon's stream was sent, as [`Want::Shutdown`] requests. The session then lingers, unless
    /// the peer has ended its stream, or both directions have been silent for so long that no data is on its way that a reset
    /// would destroy.
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

    /// Ends the session after the connection broke.
    pub fn handle_reset(&mut self) {
        self.abort(self.verdict().unwrap_or(Verdict::PeerReset));
    }

    /// Drains the session: reads no more input, answers the messages that were read, then ends the stream.
    pub fn drain(&mut self, now: Instant) {
        if self.phase == Phase::Open {
            self.stop(Verdict::Shutdown, now);
        }
    }

    /// Ends the session with `verdict`, because this peer cannot be served. Messages that were already read are answered.
    pub fn refuse(&mut self, verdict: Verdict, now: Instant) {
        self.stop(verdict, now);
    }

    /// Frees all buffers, because there is no memory for them. Unprocessed input and the message that waits for the log are
    /// lost. If the peer has not taken all its replies, it loses them, and gets no final reply.
    pub fn handle_out_of_memory(&mut self, now: Instant) {
        let has_outbound = self.buffers.as_ref().is_some_and(|buffers| !buffers.outbound.is_empty());
        if has_outbound || matches!(self.phase, Phase::Logging(_)) {
            self.finish(self.verdict().unwrap_or(Verdict::Busy));
        } else if matches!(self.phase, Phase::Open | Phase::Stopping(..) | Phase::HalfClosed(_)) {
            self.close(Verdict::Busy, now);
        }
    }

    /// Takes no more input, and closes the session when the messages that were read are answered.
    pub(super) fn stop(&mut self, verdict: Verdict, now: Instant) {
        if matches!(self.phase, Phase::Open | Phase::HalfClosed(_)) {
            // The end of the message in progress may be in the inbound buffer.
            if self.buffers.as_ref().is_none_or(|buffers| buffers.inbound.is_empty()) {
                self.framer = Framer::default();
                self.take_message();
            }
            self.leave_delay();
            self.phase = Phase::Stopping(verdict, self.final_reply_deadline(now));
            self.update_phase(now);
        }
    }

    /// Closes the session: drops input, and adds the final reply. If the session is already stopping, the final reply gets no
    /// additional time, except in a drain.
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

    /// Ends the session at once, without answering the messages that were read. If the lossless log has to get some of them,
    /// the session still wants [`Want::Log`].
    pub fn abandon(&mut self) {
        if !matches!(self.phase, Phase::Logging(_) | Phase::Done(_)) {
            self.abort(self.verdict().unwrap_or(Verdict::Shutdown));
        }
    }

    /// Aborts the session: drops all replies, but keeps messages for the lossless log.
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

/// Takes the reply to the message in progress, if the end of the message is in the inbound buffer. Otherwise drops the message
/// and the inbound buffer.
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
