//! The work of a thread for every packet: receive it, find the message that it answers, count it, and send the next.
//!
//! ```text
//! reply ──> format: is it right? ──yes──> window: what is its message? ── awaited ──> answered; if overdue, late
//!                        └─no──> wrong                                 ├─ lost ─────> late
//!                                                                      ├─ answered ─> duplicate
//!                                                                      └─ unsent ───> wrong
//! ```
//!
//! At the end, each message that was sent is answered or lost. The other counts are of replies.

use std::io;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::connection::State;
use super::stats::Cause;
use super::window::MessageState;
use super::worker::{LoadThread, Phase};
use crate::client::exchange_error::Difference;
use crate::client::quote::{Cut, Quoted, reason};
use crate::protocol::verdict::SERVER_ERROR;
use crate::units::format_time;

/// The failure of a refused connection or datagram.
pub(super) const NOT_LISTENING: &str = "no socket listens there";

/// So many packets that no message awaits are received from a socket before others have their turn.
const MAX_SURPLUS: usize = 1024;

/// So many messages are sent over a socket before its replies are received, which might fill its buffer otherwise.
const MAX_UNREAD: u64 = 32;

/// So many messages are sent over a socket before others have their turn.
const MAX_BURST: u64 = 1024;

/// Why no more comes from a socket.
enum End {
    Closed,
    Error(io::Error),
    /// The server has said what is wrong.
    ServerError(String),
}

/// The kinds of received packets.
enum Arrival {
    /// The reply to a message that was awaited, be it right or wrong.
    Awaited,
    Surplus,
    End(End),
}

impl LoadThread<'_> {
    /// Receives what has come, and sends the next messages.
    #[inline]
    pub(super) fn receive_packets(&mut self, key: usize, ended: bool) {
        self.drain_packets(key, ended);
        self.send_packets(key, self.clock.now());
    }

    /// Receives until all awaited replies have come, or nothing more is there; with `ended`, or if none is awaited, until
    /// nothing more is there. What is left besides is received when the next packet comes. Returns whether this was the end
    /// of the connection.
    pub(super) fn drain_packets(&mut self, key: usize, ended: bool) -> bool {
        let owed = self.connections[key].owed;
        let (mut awaited, mut surplus, mut reset) = (owed, 0, false);
        let end = loop {
            let State::Packets { socket, .. } = &self.connections[key].state else { return false };
            let arrival = match recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) if self.target().has_ended(socket) => Arrival::End(End::Closed),
                Ok((_, size)) => {
                    self.stats.bytes_received += size as u64;
                    self.handle_packet(key, size, self.clock.now())
                }
                Err(Errno::AGAIN) => break None,
                Err(Errno::INTR) => continue,
                Err(error) if self.target().reports_network_errors() => {
                    self.handle_network_error(error);
                    Arrival::Surplus
                }
                // Packets that came before are still there.
                Err(Errno::CONNRESET) if !reset => {
                    reset = true;
                    continue;
                }
                Err(error) => Arrival::End(End::Error(error.into())),
            };
            match arrival {
                Arrival::Awaited => {
                    awaited = awaited.saturating_sub(1);
                    if awaited == 0 && !ended {
                        break None;
                    }
                }
                Arrival::Surplus => {
                    surplus += 1;
                    if surplus == MAX_SURPLUS {
                        // Reports it anew, since more may be there.
                        self.watch_writable(key, self.connections[key].watches_writable);
                        break None;
                    }
                }
                Arrival::End(end) => break Some(end),
            }
        };
        if owed > 0 && self.connections[key].owed == 0 {
            self.decrement_waiting();
        }
        match end {
            None | Some(End::Closed) if reset => self.handle_io_error(key, Errno::CONNRESET.into()),
            None => return false,
            Some(End::Closed) => self.handle_closed(key),
            Some(End::Error(error)) => self.handle_io_error(key, error),
            Some(End::ServerError(text)) => {
                self.fail_connection(key, Cause::ServerError, self.clock.now(), || text);
            }
        }
        true
    }

    /// Handles one packet that has come.
    #[inline]
    fn handle_packet(&mut self, key: usize, size: usize, at: u64) -> Arrival {
        let source = self.source(key);
        let connection = &mut self.connections[key];
        let (Some(packets), State::Packets { window, .. }) = (&self.packets, &mut connection.state) else {
            return Arrival::Surplus;
        };
        let number = packets.format.right_reply(&self.buffer[..size], source, self.settings.verify);
        let Some((number, state)) = number.and_then(|bits| window.find(bits)) else {
            return self.handle_wrong_packet(key, size, at);
        };
        let MessageState::Awaited { sent_at } = state else {
            return self.handle_surplus(key, number, state, size);
        };
        window.settle(number);
        self.stats.reordered += u64::from(window.is_reordered(number));
        connection.owed -= 1;
        let round_trip = at.saturating_sub(sent_at);
        if round_trip > packets.timeout {
            self.record_lost(1, at);
            self.record_late();
            return Arrival::Awaited;
        }
        connection.has_answered = true;
        if self.last_answer == 0 {
            self.control.note_answer();
        }
        self.last_answer = at;
        self.stats.answered += 1;
        let latency = match &self.schedule {
            Some(schedule) => at.saturating_sub(schedule.due_time(key, number)),
            None => round_trip,
        };
        self.stats.latencies.record(latency, 1);
        Arrival::Awaited
    }

    /// Sends the next messages: without a rate, as many as are answered or lost; else those that are due, as far as the
    /// depth allows.
    #[inline]
    pub(super) fn send_packets(&mut self, key: usize, mut at: u64) {
        let connection = &self.connections[key];
        if self.phase != Phase::Sending || connection.write_blocked || connection.state.open_socket().is_none() {
            return;
        }
        let available = self.depth.saturating_sub(connection.owed) as u64;
        let wanted = if self.schedule.is_some() { self.messages_due(key).min(available) } else { available };
        for number in 0..wanted.min(MAX_BURST) {
            if self.messages_left == 0 {
                break;
            }
            if number > 0 {
                at = self.clock.now();
                if number % MAX_UNREAD == 0 && self.drain_packets(key, false) {
                    // Another connection has taken its place, and has sent what it may.
                    return;
                }
            }
            if !self.send_packet(key, at) {
                return;
            }
        }
        if self.messages_left == 0 {
            self.stop_sending(at, u64::MAX);
        }
    }

    /// Sends one message. Returns whether it did.
    #[inline]
    fn send_packet(&mut self, key: usize, at: u64) -> bool {
        let source = self.source(key);
        let connection = &mut self.connections[key];
        let Some(packets) = &mut self.packets else { return false };
        packets.format.write_numbers(&mut packets.message, source, connection.slots_used);
        match self.try_send_packet(key, at) {
            Ok(()) => true,
            Err(error) => self.handle_packet_send_error(key, error, at),
        }
    }

    /// Sends the message that is prepared, and counts it if that succeeds.
    #[inline]
    fn try_send_packet(&mut self, key: usize, at: u64) -> rustix::io::Result<()> {
        let connection = &mut self.connections[key];
        let (Some(packets), State::Packets { socket, window }) = (&self.packets, &mut connection.state) else {
            return Err(Errno::NOTCONN);
        };
        let size = retry_on_intr(|| send(&*socket, &packets.message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))?;
        window.push(at);
        connection.owed += 1;
        connection.slots_used += 1;
        self.stats.sent += 1;
        self.stats.bytes_sent += size as u64;
        self.messages_left -= 1;
        if connection.watches_writable {
            self.watch_writable(key, false);
        }
        Ok(())
    }

    /// Returns the number of a source among those of all threads.
    #[inline]
    fn source(&self, key: usize) -> u64 {
        (key * self.settings.threads + self.thread_number) as u64
    }

    // --- Rarely ------------------------------------------------------------------------------------------------------

    /// Handles a right reply to a message that is not awaited.
    #[cold]
    fn handle_surplus(&mut self, key: usize, number: u64, state: MessageState, size: usize) -> Arrival {
        if state == MessageState::Lost {
            if let State::Packets { window, .. } = &mut self.connections[key].state {
                window.settle(number);
                self.stats.reordered += u64::from(window.is_reordered(number));
            }
            self.record_late();
        } else {
            let reply = &self.buffer[..size];
            self.stats.record_failure(Cause::Duplicate, 0, || format!("got {} more than once", Quoted(reply)));
        }
        Arrival::Surplus
    }

    /// Handles a packet that is not the right reply to any message. If it has the number of one that is awaited, that
    /// message is lost.
    #[cold]
    fn handle_wrong_packet(&mut self, key: usize, size: usize, at: u64) -> Arrival {
        let source = self.source(key);
        let reply = &self.buffer[..size];
        if let Some(error_text) = reply.strip_prefix(SERVER_ERROR) {
            let text = format!("the server says: {}", Cut(error_text));
            if self.target().is_connection_oriented() {
                return Arrival::End(End::ServerError(text));
            }
            self.stats.record_failure(Cause::ServerError, 0, || text);
            return Arrival::Surplus;
        }
        let connection = &mut self.connections[key];
        let (Some(packets), State::Packets { window, .. }) = (&self.packets, &mut connection.state) else {
            return Arrival::Surplus;
        };
        let found = packets.format.wrong_reply(reply, source).and_then(|bits| window.find(bits));
        let expected = found.map(|(number, _)| number).or(window.oldest());
        let expected = expected.map(|number| packets.format.reply_to(source, number));
        let example = || match &expected {
            Some(expected) => Difference { expected, got: reply }.to_string(),
            None => format!("got {}, which no message had asked for", Quoted(reply)),
        };
        let Some((number, MessageState::Awaited { .. })) = found else {
            self.stats.record_failure(Cause::WrongReply, 0, example);
            return Arrival::Surplus;
        };
        window.settle(number);
        connection.owed -= 1;
        self.stats.record_failure(Cause::WrongReply, 1, example);
        self.note_failure(at);
        Arrival::Awaited
    }

    fn record_lost(&mut self, count: usize, at: u64) {
        for _ in 0..count {
            let limit = self.settings.timeout;
            self.stats.record_failure(Cause::Lost, 1, || format!("no reply within {} (--timeout)", format_time(limit)));
        }
        self.note_failure(at);
    }

    fn record_late(&mut self) {
        let limit = self.settings.timeout;
        let example = || format!("a reply came after more than {} (--timeout)", format_time(limit));
        self.stats.record_failure(Cause::Late, 0, example);
    }

    /// Handles what the network says of datagrams that were sent. It does not say which; they are lost when their time is
    /// over.
    #[cold]
    fn handle_network_error(&mut self, error: Errno) {
        let text = reason(&error.into());
        if error == Errno::CONNREFUSED {
            self.stats.record_failure(Cause::Refused, 0, || format!("{NOT_LISTENING} ({text})"));
            self.control.report_refusal();
        } else {
            self.stats.record_failure(Cause::Unreachable, 0, || format!("the messages do not arrive ({text})"));
        }
    }

    /// Handles the error of a message that was not sent. Returns whether it is sent now.
    #[cold]
    fn handle_packet_send_error(&mut self, key: usize, error: Errno, at: u64) -> bool {
        match error {
            Errno::AGAIN => self.watch_writable(key, true),
            // No event tells when there is room: the sweep tries again.
            Errno::NOBUFS | Errno::NOMEM => self.pause_sending(key, at),
            _ if self.target().reports_network_errors() => {
                // The error may be that of a datagram before, with which this one was not sent; only once, then.
                let second = self.try_send_packet(key, at);
                if second == Err(error) && error != Errno::CONNREFUSED {
                    self.handle_not_sent(key, error, at);
                    return false;
                }
                self.handle_network_error(error);
                if second.is_ok() {
                    return true;
                }
                self.pause_sending(key, at);
            }
            _ => {
                // The server's final reply may have come before, and says more.
                if !self.drain_packets(key, true) {
                    self.handle_io_error(key, error.into());
                }
            }
        }
        false
    }

    /// Counts a message that the system does not send, and pauses before the next.
    fn handle_not_sent(&mut self, key: usize, error: Errno, at: u64) {
        let connection = &mut self.connections[key];
        if let State::Packets { window, .. } = &mut connection.state {
            window.push(at);
            window.settle(connection.slots_used);
        }
        connection.slots_used += 1;
        self.stats.sent += 1;
        self.messages_left -= 1;
        self.stats.record_failure(Cause::NotSent, 1, || format!("cannot send ({})", reason(&error.into())));
        self.note_failure(at);
        self.pause_sending(key, at);
    }

    fn pause_sending(&mut self, key: usize, at: u64) {
        self.connections[key].write_blocked = true;
        self.sweep_soon(at);
    }

    /// Handles the time that has passed: messages whose reply is overdue are lost.
    pub(super) fn sweep_packets(&mut self, key: usize, at: u64) {
        let is_overdue = |thread: &Self| match (&thread.packets, &thread.connections[key].state) {
            (Some(packets), State::Packets { window, .. }) => window.is_overdue(at, packets.timeout),
            _ => false,
        };
        if is_overdue(self) {
            // Tells those apart that have come meanwhile.
            self.drain_packets(key, false);
        }
        let connection = &mut self.connections[key];
        let (Some(packets), State::Packets { window, .. }) = (&self.packets, &mut connection.state) else { return };
        let lost = window.lose_overdue(at, packets.timeout);
        connection.owed -= lost;
        let is_last = lost > 0 && connection.owed == 0;
        if !connection.watches_writable {
            connection.write_blocked = false;
        }
        if lost > 0 {
            self.record_lost(lost, at);
        }
        if is_last {
            self.decrement_waiting();
        }
        self.send_packets(key, at);
    }
}
