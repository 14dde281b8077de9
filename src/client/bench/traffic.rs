//! What a thread does for every message: receive, compare, count, send. One receive and one send for each wake-up of a
//! connection, one look at the clock, no allocation. And below that, what it does when something goes wrong.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::dial::Dialled;
use super::peer::{Misfit, State};
use super::poll::Interest;
use super::tally::Cause;
use super::worker::{Batch, Phase, Worker};
use crate::client::failure::Difference;
use crate::client::quote::{Escaped, Quoted, reason};
use crate::protocol::verdict::SERVER_ERROR;
use crate::units::format_time;

/// The most of a wrong reply that is awaited and shown, in bytes.
const MAX_WRONG: usize = 4096;

/// The first pause before a connection is dialled again that has brought nothing, in nanoseconds. It doubles each time.
const FIRST_PAUSE: u64 = 10_000_000;

/// The longest pause.
const LONGEST_PAUSE: u64 = 1_000_000_000;

impl Worker<'_> {
    /// Something has happened to a connection.
    #[inline]
    pub(super) fn ready(&mut self, key: usize, writable: bool, ended: bool) {
        if let State::Connecting { .. } = self.peers[key].state {
            self.decided(key, self.clock.now());
        } else {
            self.receive(key, ended);
        }
        if writable && self.peers[key].full {
            self.peers[key].full = false;
            self.flush(key);
        }
    }

    /// Receives what is there. With `ended`, everything up to the end of the stream.
    #[inline]
    pub(super) fn receive(&mut self, key: usize, ended: bool) {
        loop {
            let State::Live { socket } = &self.peers[key].state else { return self.receive_wrong(key) };
            let size = match recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return self.closed(key),
                Ok((_, size)) => size,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(error) => return self.broken(key, error.into()),
            };
            let at = self.clock.now();
            self.tally.bytes_received += size as u64;
            if self.next_batch(key, size, at) {
                if ended {
                    continue;
                }
                return;
            }
            let peer = &mut self.peers[key];
            match peer.take(&self.buffer[..size], self.script, self.load.verify) {
                Ok(0) => {}
                Ok(count) => self.answered(key, count, at),
                Err(Misfit) => return self.misfit(key, size, at),
            }
            // A short read has taken all there was. Only an end would be overlooked: it is no change any more.
            if size < self.buffer.len() && !ended {
                return;
            }
        }
    }

    /// What is almost always so, in as few instructions as that takes: all replies to a batch have come at once, and
    /// are right, and the next batch is sent at once. Returns whether it was so; otherwise nothing is done. (All of it
    /// is what [`Self::answered`] and [`Self::pump`] do as well.)
    #[inline]
    fn next_batch(&mut self, key: usize, size: usize, at: u64) -> bool {
        let (peer, script, count) = (&mut self.peers[key], self.script, self.load.depth as u64);
        let Batch { messages, replies, step } = self.batch;
        let State::Live { socket } = &peer.state else { return false };
        // The size: the buffer may be smaller than a batch.
        if size != replies
            || peer.owed != self.load.depth
            || peer.received != 0
            || peer.written != messages
            || self.left < count
            || self.phase != Phase::Sending
            || self.schedule.is_some()
        {
            return false;
        }
        if self.load.verify && self.buffer[..size] != *script.replies(peer.first, peer.owed) {
            return false;
        }
        self.tally.latencies.record(at.saturating_sub(peer.sent_at), count);
        self.tally.answered += count;
        self.tally.sent += count;
        self.left -= count;
        self.last_answer = at;
        peer.useful = true;
        (peer.since, peer.sent_at) = (at, at);
        peer.slots += count;
        peer.first += step;
        if peer.first >= script.places() {
            peer.first -= script.places();
        }
        let bytes = script.messages(peer.first, peer.owed);
        match send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(written) if written == messages && !peer.watches_room => self.tally.bytes_sent += written as u64,
            sent => {
                peer.written = 0;
                self.sent(key, sent, messages);
            }
        }
        true
    }

    /// So many replies have come and were right.
    #[inline]
    fn answered(&mut self, key: usize, count: usize, at: u64) {
        self.credit(key, count, at);
        let peer = &mut self.peers[key];
        if self.phase == Phase::Sending {
            if peer.owed == 0 || self.schedule.is_some() {
                self.pump(key, at);
            }
        } else if peer.owed == 0 {
            self.one_less();
        }
    }

    #[inline]
    fn credit(&mut self, key: usize, count: usize, at: u64) {
        let peer = &mut self.peers[key];
        peer.since = at;
        peer.useful = true;
        self.last_answer = at;
        self.tally.answered += count as u64;
        let Some(schedule) = &self.schedule else {
            return self.tally.latencies.record(at.saturating_sub(peer.sent_at), count as u64);
        };
        let first = peer.slots - (peer.owed + count) as u64;
        for number in first..first + count as u64 {
            self.tally.latencies.record(at.saturating_sub(schedule.time(key, number)), 1);
        }
    }

    /// Sends what is to be sent now: without a rate the next batch, if all of the last one was answered; else what is
    /// due, as far as the depth allows.
    #[inline]
    pub(super) fn pump(&mut self, key: usize, at: u64) {
        let peer = &self.peers[key];
        if !matches!(peer.state, State::Live { .. }) {
            return;
        }
        let room = self.load.depth - peer.owed;
        let wanted = match &self.schedule {
            None if peer.owed > 0 => return,
            None => room as u64,
            Some(_) => self.due(key).min(room as u64),
        };
        let count = wanted.min(self.left);
        if count == 0 {
            if self.left == 0 && self.phase == Phase::Sending {
                self.finish(at, u64::MAX);
            }
            return;
        }
        self.left -= count;
        self.tally.sent += count;
        // It is at most the depth.
        self.peers[key].owe(usize::try_from(count).unwrap_or(room), at);
        if !self.peers[key].full {
            self.flush(key);
        }
    }

    /// Writes as much as there is room for.
    #[inline]
    fn flush(&mut self, key: usize) {
        let peer = &mut self.peers[key];
        let State::Live { socket } = &peer.state else { return };
        let bytes = peer.unwritten(self.script);
        let (sent, wanted) = (send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL), bytes.len());
        self.sent(key, sent, wanted);
    }

    /// What sending has come to.
    fn sent(&mut self, key: usize, sent: rustix::io::Result<usize>, wanted: usize) {
        let written = match sent {
            Ok(written) => written,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return self.cannot_send(key, error),
        };
        let peer = &mut self.peers[key];
        peer.written += written;
        self.tally.bytes_sent += written as u64;
        let full = written < wanted;
        if full || peer.watches_room {
            self.watch_room(key, full);
        }
    }

    // --- Rarely --------------------------------------------------------------------------------------------------------

    #[cold]
    fn watch_room(&mut self, key: usize, full: bool) {
        let peer = &mut self.peers[key];
        peer.full = full;
        let State::Live { socket } = &peer.state else { return };
        let interest = if full { Interest::ReadWrite } else { Interest::Read };
        match self.poll.change(socket, key, interest) {
            Ok(()) => peer.watches_room = full,
            Err(error) => self.broken(key, error),
        }
    }

    /// A connection waits for nothing more, at the end.
    fn one_less(&mut self) {
        if self.phase == Phase::Finishing {
            self.waiting = self.waiting.saturating_sub(1);
            if self.waiting == 0 {
                self.phase = Phase::Done;
            }
        }
    }

    #[cold]
    fn cannot_send(&mut self, key: usize, error: Errno) {
        // Its last words may have come before, and say more.
        self.receive(key, true);
        if matches!(self.peers[key].state, State::Live { .. }) && self.peers[key].owed > 0 {
            self.broken(key, error.into());
        }
    }

    #[cold]
    fn closed(&mut self, key: usize) {
        let cause = if self.peers[key].owed > 0 { Cause::Closed } else { Cause::EndedIdle };
        self.lose(key, cause, self.clock.now(), || "the server ended the connection".to_owned());
    }

    #[cold]
    fn broken(&mut self, key: usize, error: io::Error) {
        let cause = match error.kind() {
            _ if self.peers[key].owed == 0 => Cause::EndedIdle,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Cause::Reset,
            _ => Cause::Broken,
        };
        self.lose(key, cause, self.clock.now(), || format!("the connection broke ({})", reason(&error)));
    }

    /// What came is wrong, or the server's words. What was right before it counts; the rest of it is awaited.
    #[cold]
    fn misfit(&mut self, key: usize, size: usize, at: u64) {
        let (script, bytes) = (self.script, &self.buffer[..size]);
        let peer = &mut self.peers[key];
        let awaited = peer.awaited(script);
        let mut right = bytes.iter().zip(awaited).take_while(|(came, awaited)| came == awaited).count();
        // What was not sent yet cannot be right.
        right = right.min((peer.written / script.message_size() * script.reply_size()).saturating_sub(peer.received));
        let begun = (peer.received + right) % script.reply_size();
        let end = peer.received + right;
        let mut reply = script.replies(peer.first, peer.owed)[end - begun..end].to_vec();
        reply.extend_from_slice(&bytes[right..]);
        let whole = peer.credit(right, script).unwrap_or(0);
        if whole > 0 {
            self.credit(key, whole, at);
        }
        let peer = &mut self.peers[key];
        // The rest has its own time.
        peer.since = at;
        let before = std::mem::replace(&mut peer.state, State::Down { until: 0 });
        if let State::Live { socket } = before {
            peer.state = State::Wrong { socket, reply };
        }
        self.hasten(at);
        self.receive_wrong(key);
        if self.phase == Phase::Finishing && self.peers[key].owed == 0 && whole > 0 {
            // Nobody waits for the rest.
            self.conclude(key, at);
            self.one_less();
        }
    }

    /// Awaits the end of a wrong reply.
    #[cold]
    fn receive_wrong(&mut self, key: usize) {
        loop {
            let State::Wrong { socket, reply } = &mut self.peers[key].state else { return };
            if reply.len() > MAX_WRONG || self.load.delimiter.is_in(reply) {
                return self.conclude(key, self.clock.now());
            }
            match recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, size)) if size > 0 => {
                    self.tally.bytes_received += size as u64;
                    reply.extend_from_slice(&self.buffer[..size]);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                _ => return self.conclude(key, self.clock.now()),
            }
        }
    }

    /// A wrong reply is here, as far as it comes.
    #[cold]
    pub(super) fn conclude(&mut self, key: usize, at: u64) {
        let peer = &mut self.peers[key];
        let State::Wrong { reply, .. } = &mut peer.state else { return };
        let mut reply = std::mem::take(reply);
        let delimiter = self.load.delimiter.as_bytes();
        if let Some(end) = reply.windows(delimiter.len()).position(|window| window == delimiter) {
            reply.truncate(end);
        }
        if let Some(words) = reply.strip_prefix(SERVER_ERROR) {
            return self.lose(key, Cause::ServerError, at, || format!("the server says: {}", Escaped(words)));
        }
        let expected = (peer.owed > 0).then(|| self.script.replies(peer.first, 1));
        let expected = expected.map(|reply| &reply[..reply.len() - delimiter.len()]);
        self.lose(key, Cause::WrongReply, at, || match expected {
            Some(expected) => Difference { expected, got: &reply }.to_string(),
            None => format!("got {}, which no message had asked for", Quoted(&reply)),
        });
    }

    /// Gives a connection up, with all that it owes, and sees to the next one.
    #[cold]
    pub(super) fn lose(&mut self, key: usize, cause: Cause, at: u64, example: impl FnOnce() -> String) {
        let peer = &mut self.peers[key];
        let lost = peer.forget(self.script);
        self.tally.lose(cause, lost as u64, example);
        if lost > 0 {
            self.one_less();
        }
        self.down(key, at);
    }

    /// There is no connection any more, or still none.
    fn down(&mut self, key: usize, at: u64) {
        let peer = &mut self.peers[key];
        let pause = if peer.useful {
            peer.failures = 0;
            0
        } else {
            peer.failures = peer.failures.saturating_add(1);
            (FIRST_PAUSE << (peer.failures - 1).min(10)).min(LONGEST_PAUSE)
        };
        peer.useful = false;
        peer.settled = true;
        peer.state = State::Down { until: at + pause };
        self.note_failure(at);
        if pause == 0 && self.dials() {
            self.dial(key, at);
        } else {
            self.hasten(at);
        }
    }

    // --- Connecting ----------------------------------------------------------------------------------------------------

    /// Begins to connect.
    pub(super) fn dial(&mut self, key: usize, at: u64) {
        self.peers[key].since = at;
        match self.target().dial() {
            Dialled::Connected(socket) => self.connected(key, socket, true, at),
            Dialled::Begun(socket) => {
                let added = self.poll.add(&socket, key, Interest::ReadWrite);
                self.peers[key].state = State::Connecting { socket: Some(socket) };
                if let Err(error) = added {
                    return self.connect_failed(key, &error, at);
                }
            }
            // As long as another attempt; the sweep sees to it.
            Dialled::Full => self.peers[key].state = State::Connecting { socket: None },
            Dialled::Failed(error) => self.connect_failed(key, &error, at),
        }
        self.hasten(at);
    }

    /// Tries again where the backlog was full. It is still the same attempt.
    pub(super) fn dial_again(&mut self, key: usize, at: u64) {
        match self.target().dial() {
            Dialled::Full => {}
            Dialled::Connected(socket) => self.connected(key, socket, true, at),
            // A Unix socket does not do this.
            Dialled::Begun(_) => {}
            Dialled::Failed(error) => self.connect_failed(key, &error, at),
        }
    }

    /// An attempt is decided.
    #[cold]
    fn decided(&mut self, key: usize, at: u64) {
        let before = std::mem::replace(&mut self.peers[key].state, State::Down { until: 0 });
        let State::Connecting { socket: Some(socket) } = before else { return };
        match self.target().outcome(&socket) {
            Ok(()) => self.connected(key, socket, false, at),
            Err(error) => self.connect_failed(key, &error, at),
        }
    }

    /// A connection is there.
    pub(super) fn connected(&mut self, key: usize, socket: OwnedFd, new: bool, at: u64) {
        let watched = if new {
            self.poll.add(&socket, key, Interest::Read)
        } else {
            self.poll.change(&socket, key, Interest::Read)
        };
        if let Err(error) = watched {
            return self.connect_failed(key, &error, at);
        }
        let peer = &mut self.peers[key];
        peer.state = State::Live { socket };
        peer.settled = true;
        (peer.full, peer.watches_room) = (false, false);
        if self.phase == Phase::Sending {
            self.pump(key, at);
        }
    }

    #[cold]
    fn connect_failed(&mut self, key: usize, error: &io::Error, at: u64) {
        let cause = match error.kind() {
            // A Unix socket that is not there is refused in other words.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Cause::ConnectRefused,
            io::ErrorKind::TimedOut => Cause::ConnectTimeout,
            _ => Cause::ConnectFailed,
        };
        self.tally.lose(cause, 0, || format!("cannot connect: {}", reason(error)));
        self.down(key, at);
    }

    #[cold]
    pub(super) fn connect_timed_out(&mut self, key: usize, at: u64) {
        let limit = format_time(self.load.connect_timeout);
        self.tally.lose(Cause::ConnectTimeout, 0, || format!("cannot connect within {limit} (--connect-timeout)"));
        self.down(key, at);
    }
}
