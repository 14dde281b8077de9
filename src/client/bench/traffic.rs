//! The work of a thread for every message: receive, compare, count, send. One receive and one send for each wake-up of a
//! connection, one look at the clock, no allocation. Below that, the handling of failures and of new connections.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::connection::{Mismatch, State};
use super::packets::NOT_LISTENING;
use super::poll::Interest;
use super::stats::Cause;
use super::target::ConnectAttempt;
use super::worker::{Batch, LoadThread, Phase};
use crate::client::exchange_error::Difference;
use crate::client::quote::{Cut, Quoted, reason};
use crate::protocol::verdict::SERVER_ERROR;
use crate::units::format_time;

/// The most of a wrong reply that is awaited and shown, in bytes.
const MAX_WRONG: usize = 4096;

/// The shortest delay before reconnecting after a connection without a reply, in nanoseconds. It doubles each time.
const MIN_RECONNECT_DELAY: u64 = 10_000_000;

/// The longest delay before reconnecting, in nanoseconds.
const MAX_RECONNECT_DELAY: u64 = 1_000_000_000;

impl LoadThread<'_> {
    /// Handles an event of a connection.
    #[inline]
    pub(super) fn handle_ready(&mut self, key: usize, writable: bool, ended: bool) {
        if let State::Connecting { .. } = self.connections[key].state {
            self.finish_connect(key, self.clock.now());
        } else {
            self.receive(key, ended);
        }
        if writable && self.connections[key].write_blocked {
            self.connections[key].write_blocked = false;
            self.flush(key);
        }
    }

    /// Receives what is there. With `ended`, everything up to the end of the stream.
    #[inline]
    pub(super) fn receive(&mut self, key: usize, ended: bool) {
        loop {
            let State::Connected { socket } = &self.connections[key].state else {
                return self.receive_otherwise(key, ended);
            };
            let size = match recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return self.handle_closed(key),
                Ok((_, size)) => size,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(error) => return self.handle_io_error(key, error.into()),
            };
            let at = self.clock.now();
            self.stats.bytes_received += size as u64;
            if self.try_next_batch(key, size, at) {
                if ended {
                    continue;
                }
                return;
            }
            let connection = &mut self.connections[key];
            match connection.consume(&self.buffer[..size], self.workload, self.settings.verify) {
                Ok(0) => {}
                Ok(count) => self.handle_answered(key, count, at),
                Err(Mismatch) => return self.handle_mismatch(key, size, at),
            }
            // A short read has taken all there was. Only the end of the stream would be missed: it is not a new edge.
            if size < self.buffer.len() && !ended {
                return;
            }
        }
    }

    /// Handles the most frequent case in as few instructions as possible: all replies to a batch have come at once and
    /// are right, and the next batch is sent at once. Returns whether this was the case; otherwise does nothing.
    /// ([`Self::handle_answered`] and [`Self::send_next`] do the same in general.)
    #[inline]
    fn try_next_batch(&mut self, key: usize, size: usize, at: u64) -> bool {
        let (connection, workload, count) = (&mut self.connections[key], self.workload, self.depth as u64);
        let Batch { messages, replies, step } = self.batch;
        let State::Connected { socket } = &connection.state else { return false };
        // The size: the buffer may be smaller than a batch.
        if size != replies
            || connection.owed != self.depth
            || connection.received != 0
            || connection.written != messages
            || self.messages_left < count
            || self.phase != Phase::Sending
            || self.schedule.is_some()
        {
            return false;
        }
        if self.settings.verify && self.buffer[..size] != *workload.replies(connection.first, connection.owed) {
            return false;
        }
        self.stats.latencies.record(at.saturating_sub(connection.sent_at), count);
        self.stats.answered += count;
        self.stats.sent += count;
        self.messages_left -= count;
        self.last_answer = at;
        connection.has_answered = true;
        (connection.waiting_since, connection.sent_at) = (at, at);
        connection.slots_used += count;
        connection.first += step;
        if connection.first >= workload.distinct_messages() {
            connection.first -= workload.distinct_messages();
        }
        let bytes = workload.messages(connection.first, connection.owed);
        match send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(written) if written == messages && !connection.watches_writable => {
                self.stats.bytes_sent += written as u64
            }
            sent => {
                connection.written = 0;
                self.handle_sent(key, sent, messages);
            }
        }
        true
    }

    /// Handles `count` replies that have come and were right.
    #[inline]
    fn handle_answered(&mut self, key: usize, count: usize, at: u64) {
        self.record_answered(key, count, at);
        let connection = &mut self.connections[key];
        if self.phase == Phase::Sending {
            if connection.owed == 0 || self.schedule.is_some() {
                self.send_next(key, at);
            }
        } else if connection.owed == 0 {
            self.decrement_waiting();
        }
    }

    #[inline]
    fn record_answered(&mut self, key: usize, count: usize, at: u64) {
        let connection = &mut self.connections[key];
        connection.waiting_since = at;
        connection.has_answered = true;
        self.last_answer = at;
        self.stats.answered += count as u64;
        let Some(schedule) = &self.schedule else {
            return self.stats.latencies.record(at.saturating_sub(connection.sent_at), count as u64);
        };
        let first = connection.slots_used - (connection.owed + count) as u64;
        for number in first..first + count as u64 {
            self.stats.latencies.record(at.saturating_sub(schedule.due_time(key, number)), 1);
        }
    }

    /// Sends the next messages: without a rate the next batch, if all of the last one was answered; else those that are
    /// due, as far as the depth allows.
    #[inline]
    pub(super) fn send_next(&mut self, key: usize, at: u64) {
        let connection = &self.connections[key];
        if !matches!(connection.state, State::Connected { .. }) {
            return self.send_packets(key, at);
        }
        let available = self.depth - connection.owed;
        let wanted = match &self.schedule {
            None if connection.owed > 0 => return,
            None => available as u64,
            Some(_) => self.messages_due(key).min(available as u64),
        };
        let count = wanted.min(self.messages_left);
        if count == 0 {
            if self.messages_left == 0 && self.phase == Phase::Sending {
                self.stop_sending(at, u64::MAX);
            }
            return;
        }
        self.messages_left -= count;
        self.stats.sent += count;
        // It is at most the depth.
        self.connections[key].enqueue(usize::try_from(count).unwrap_or(available), at);
        if !self.connections[key].write_blocked {
            self.flush(key);
        }
    }

    /// Writes as much as there is room for.
    #[inline]
    fn flush(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        let State::Connected { socket } = &connection.state else { return self.send_packets(key, self.clock.now()) };
        let bytes = connection.unwritten(self.workload);
        let (sent, wanted) = (send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL), bytes.len());
        self.handle_sent(key, sent, wanted);
    }

    /// Handles the result of a send.
    fn handle_sent(&mut self, key: usize, sent: rustix::io::Result<usize>, wanted: usize) {
        let written = match sent {
            Ok(written) => written,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return self.handle_send_error(key, error),
        };
        let connection = &mut self.connections[key];
        connection.written += written;
        self.stats.bytes_sent += written as u64;
        let blocked = written < wanted;
        if blocked || connection.watches_writable {
            self.watch_writable(key, blocked);
        }
    }

    // --- Rarely ------------------------------------------------------------------------------------------------------

    /// Receives where a connection is none of a stream, or has brought a wrong reply.
    fn receive_otherwise(&mut self, key: usize, ended: bool) {
        if self.packets.is_some() { self.receive_packets(key, ended) } else { self.receive_wrong_reply(key) }
    }

    #[cold]
    pub(super) fn watch_writable(&mut self, key: usize, blocked: bool) {
        let connection = &mut self.connections[key];
        connection.write_blocked = blocked;
        let Some(socket) = connection.state.open_socket() else { return };
        let interest = if blocked { Interest::ReadWrite } else { Interest::Read };
        match self.poll.modify(socket, key, interest) {
            Ok(()) => connection.watches_writable = blocked,
            Err(error) => self.handle_io_error(key, error),
        }
    }

    /// Counts one connection less that waits for replies while the load finishes.
    pub(super) fn decrement_waiting(&mut self) {
        if self.phase == Phase::Finishing {
            self.waiting_connections = self.waiting_connections.saturating_sub(1);
            self.end_if_answered();
        }
    }

    #[cold]
    fn handle_send_error(&mut self, key: usize, error: Errno) {
        // The server's final reply may have come before, and says more.
        self.receive(key, true);
        if matches!(self.connections[key].state, State::Connected { .. }) && self.connections[key].owed > 0 {
            self.handle_io_error(key, error.into());
        }
    }

    #[cold]
    pub(super) fn handle_closed(&mut self, key: usize) {
        let cause = if self.connections[key].owed > 0 { Cause::Closed } else { Cause::EndedIdle };
        self.fail_connection(key, cause, self.clock.now(), || "the server ended the connection".to_owned());
    }

    #[cold]
    pub(super) fn handle_io_error(&mut self, key: usize, error: io::Error) {
        let cause = match error.kind() {
            _ if self.connections[key].owed == 0 => Cause::EndedIdle,
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotConnected => Cause::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Cause::Reset,
            _ => Cause::Broken,
        };
        let what = if cause == Cause::Refused { NOT_LISTENING } else { "the connection broke" };
        self.fail_connection(key, cause, self.clock.now(), || format!("{what} ({})", reason(&error)));
    }

    /// Handles a wrong reply or a server error. Replies before it count; the rest of it is awaited.
    #[cold]
    fn handle_mismatch(&mut self, key: usize, size: usize, at: u64) {
        let (workload, bytes) = (self.workload, &self.buffer[..size]);
        let connection = &mut self.connections[key];
        let awaited = connection.awaited(workload);
        let mut matching = bytes.iter().zip(awaited).take_while(|(received, awaited)| received == awaited).count();
        // A reply to a message that was not sent yet cannot be right.
        matching = matching.min(
            (connection.written / workload.message_size() * workload.reply_size()).saturating_sub(connection.received),
        );
        let partial_size = (connection.received + matching) % workload.reply_size();
        let end = connection.received + matching;
        let mut reply = workload.replies(connection.first, connection.owed)[end - partial_size..end].to_vec();
        reply.extend_from_slice(&bytes[matching..]);
        let completed = connection.advance(matching, workload).unwrap_or(0);
        if completed > 0 {
            self.record_answered(key, completed, at);
        }
        let connection = &mut self.connections[key];
        // The rest of the reply has its own timeout.
        connection.waiting_since = at;
        let previous = std::mem::replace(&mut connection.state, State::Disconnected { retry_at: 0 });
        if let State::Connected { socket } = previous {
            connection.state = State::WrongReply { socket, reply };
        }
        self.sweep_soon(at);
        self.receive_wrong_reply(key);
        if self.phase == Phase::Finishing && self.connections[key].owed == 0 && completed > 0 {
            // The rest is not awaited while the load finishes.
            self.finish_wrong_reply(key, at);
            self.decrement_waiting();
        }
    }

    /// Receives a wrong reply up to its end.
    #[cold]
    fn receive_wrong_reply(&mut self, key: usize) {
        loop {
            let State::WrongReply { socket, reply } = &mut self.connections[key].state else { return };
            if reply.len() > MAX_WRONG || self.settings.delimiter.is_in(reply) {
                return self.finish_wrong_reply(key, self.clock.now());
            }
            match recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, size)) if size > 0 => {
                    self.stats.bytes_received += size as u64;
                    reply.extend_from_slice(&self.buffer[..size]);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                _ => return self.finish_wrong_reply(key, self.clock.now()),
            }
        }
    }

    /// Reports a wrong reply, as far as it came, and ends the connection.
    #[cold]
    pub(super) fn finish_wrong_reply(&mut self, key: usize, at: u64) {
        let connection = &mut self.connections[key];
        let State::WrongReply { reply, .. } = &mut connection.state else { return };
        let mut reply = std::mem::take(reply);
        let delimiter = self.settings.delimiter.as_bytes();
        if let Some(end) = reply.windows(delimiter.len()).position(|window| window == delimiter) {
            reply.truncate(end);
        }
        if let Some(error_text) = reply.strip_prefix(SERVER_ERROR) {
            return self
                .fail_connection(key, Cause::ServerError, at, || format!("the server says: {}", Cut(error_text)));
        }
        let expected = (connection.owed > 0).then(|| self.workload.replies(connection.first, 1));
        let expected = expected.map(|reply| &reply[..reply.len() - delimiter.len()]);
        self.fail_connection(key, Cause::WrongReply, at, || match expected {
            Some(expected) => Difference { expected, got: &reply }.to_string(),
            None => format!("got {}, which no message had asked for", Quoted(&reply)),
        });
    }

    /// Ends a connection, counts its unanswered messages as lost, and schedules the next connection in its place.
    #[cold]
    pub(super) fn fail_connection(&mut self, key: usize, cause: Cause, at: u64, example: impl FnOnce() -> String) {
        let connection = &mut self.connections[key];
        let lost = connection.discard_owed(self.workload);
        self.stats.record_failure(cause, lost as u64, example);
        if lost > 0 {
            self.decrement_waiting();
        }
        self.schedule_reconnect(key, at);
    }

    /// Schedules the next attempt to connect, after a connection has ended or could not be made.
    fn schedule_reconnect(&mut self, key: usize, at: u64) {
        let connection = &mut self.connections[key];
        let delay = if connection.has_answered {
            connection.consecutive_failures = 0;
            0
        } else {
            connection.consecutive_failures = connection.consecutive_failures.saturating_add(1);
            (MIN_RECONNECT_DELAY << (connection.consecutive_failures - 1).min(10)).min(MAX_RECONNECT_DELAY)
        };
        connection.has_answered = false;
        connection.attempted = true;
        connection.state = State::Disconnected { retry_at: at + delay };
        self.note_failure(at);
        if delay == 0 && self.may_connect() {
            self.start_connect(key, at);
        } else {
            self.sweep_soon(at);
        }
    }

    // --- Connecting --------------------------------------------------------------------------------------------------

    /// Starts to connect.
    pub(super) fn start_connect(&mut self, key: usize, at: u64) {
        self.connections[key].waiting_since = at;
        match self.target().start_connect() {
            ConnectAttempt::Connected(socket) => self.handle_connected(key, socket, true, at),
            ConnectAttempt::InProgress(socket) => {
                let added = self.poll.add(&socket, key, Interest::ReadWrite);
                self.connections[key].state = State::Connecting { socket: Some(socket) };
                if let Err(error) = added {
                    return self.handle_connect_error(key, &error, at);
                }
            }
            // The attempt has the same timeout as any other; the sweep retries it.
            ConnectAttempt::BacklogFull => self.connections[key].state = State::Connecting { socket: None },
            ConnectAttempt::Failed(error) => self.handle_connect_error(key, &error, at),
        }
        self.sweep_soon(at);
    }

    /// Tries again where the backlog was full. It is still the same attempt.
    pub(super) fn retry_connect(&mut self, key: usize, at: u64) {
        match self.target().start_connect() {
            ConnectAttempt::BacklogFull => {}
            ConnectAttempt::Connected(socket) => self.handle_connected(key, socket, true, at),
            // A Unix socket does not do this.
            ConnectAttempt::InProgress(_) => {}
            ConnectAttempt::Failed(error) => self.handle_connect_error(key, &error, at),
        }
    }

    /// Handles the end of an attempt to connect.
    #[cold]
    fn finish_connect(&mut self, key: usize, at: u64) {
        let previous = std::mem::replace(&mut self.connections[key].state, State::Disconnected { retry_at: 0 });
        let State::Connecting { socket: Some(socket) } = previous else { return };
        match self.target().finish_connect(&socket) {
            Ok(()) => self.handle_connected(key, socket, false, at),
            Err(error) => self.handle_connect_error(key, &error, at),
        }
    }

    /// Handles a connection that is established.
    pub(super) fn handle_connected(&mut self, key: usize, socket: OwnedFd, is_new: bool, at: u64) {
        let registered = if is_new {
            self.poll.add(&socket, key, Interest::Read)
        } else {
            self.poll.modify(&socket, key, Interest::Read)
        };
        if let Err(error) = registered {
            return self.handle_connect_error(key, &error, at);
        }
        let connection = &mut self.connections[key];
        connection.state = match &self.packets {
            Some(packets) => State::Packets { socket, window: Box::new(packets.new_window(connection.slots_used)) },
            None => State::Connected { socket },
        };
        connection.attempted = true;
        (connection.write_blocked, connection.watches_writable) = (false, false);
        if self.phase == Phase::Sending {
            self.send_next(key, at);
        }
    }

    #[cold]
    fn handle_connect_error(&mut self, key: usize, error: &io::Error, at: u64) {
        let cause = match error.kind() {
            // A Unix socket that does not exist gives another error for the same.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Cause::ConnectRefused,
            io::ErrorKind::TimedOut => Cause::ConnectTimeout,
            _ => Cause::ConnectFailed,
        };
        self.stats.record_failure(cause, 0, || format!("cannot connect: {}", reason(error)));
        self.schedule_reconnect(key, at);
    }

    #[cold]
    pub(super) fn handle_connect_timeout(&mut self, key: usize, at: u64) {
        let limit = format_time(self.settings.connect_timeout);
        self.stats
            .record_failure(Cause::ConnectTimeout, 0, || format!("cannot connect within {limit} (--connect-timeout)"));
        self.schedule_reconnect(key, at);
    }
}
