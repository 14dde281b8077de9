//! One connection, or one source of datagrams: what it has sent, and what it is owed.

use std::os::fd::OwnedFd;

use super::window::Window;
use super::workload::Workload;

/// The state of a connection.
#[derive(Debug)]
pub(super) enum State {
    /// There is no connection; the next attempt to connect starts at this time.
    Disconnected { retry_at: u64 },
    /// An attempt to connect is in progress; without a socket if the backlog was full, then it is retried.
    Connecting { socket: Option<OwnedFd> },
    /// The connection is established.
    Connected { socket: OwnedFd },
    /// A wrong reply has come, this much of it so far. The rest is awaited, to be shown.
    WrongReply { socket: OwnedFd, reply: Vec<u8> },
    /// The socket is one of packets and can be used.
    Packets { socket: OwnedFd, window: Box<Window> },
}

impl State {
    /// Returns the socket over which messages are sent, if they can be.
    pub(super) fn open_socket(&self) -> Option<&OwnedFd> {
        match self {
            Self::Connected { socket } | Self::Packets { socket, .. } => Some(socket),
            Self::Disconnected { .. } | Self::Connecting { .. } | Self::WrongReply { .. } => None,
        }
    }
}

/// One connection of the load, and those that replace it later.
#[derive(Debug)]
pub(super) struct BenchConnection {
    pub(super) state: State,
    /// Messages that wait for their replies, those that are not written whole among them.
    pub(super) owed: usize,
    /// The index of the first of them in the workload.
    pub(super) first: usize,
    /// Bytes of the owed messages that were written.
    pub(super) written: usize,
    /// Bytes of their replies that have come.
    pub(super) received: usize,
    /// Whether more can only be written when there is room again.
    pub(super) write_blocked: bool,
    /// Whether the epoll set watches for room to write.
    pub(super) watches_writable: bool,
    /// When the batch was sent. Times are in nanoseconds.
    pub(super) sent_at: u64,
    /// Since when the next reply is awaited; or since when there is an attempt to connect.
    pub(super) waiting_since: u64,
    /// How many of its slots are used: messages sent since the start, lost ones too.
    pub(super) slots_used: u64,
    /// Whether this connection has brought a reply.
    pub(super) has_answered: bool,
    /// Attempts and connections in a row that brought no reply.
    pub(super) consecutive_failures: u32,
    /// Whether it was established once, or has failed.
    pub(super) attempted: bool,
}

/// The received bytes are not those of the awaited replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mismatch;

impl BenchConnection {
    pub(super) fn new() -> Self {
        Self {
            state: State::Disconnected { retry_at: 0 },
            owed: 0,
            first: 0,
            written: 0,
            received: 0,
            write_blocked: false,
            watches_writable: false,
            sent_at: 0,
            waiting_since: 0,
            slots_used: 0,
            has_answered: false,
            consecutive_failures: 0,
            attempted: false,
        }
    }

    /// Adds `count` messages that are to be sent.
    #[inline]
    pub(super) fn enqueue(&mut self, count: usize, now: u64) {
        if self.owed == 0 {
            self.waiting_since = now;
        }
        self.sent_at = now;
        self.owed += count;
        self.slots_used += count as u64;
    }

    /// Returns the bytes of messages that are still to be written.
    #[inline]
    pub(super) fn unwritten<'a>(&self, workload: &'a Workload) -> &'a [u8] {
        &workload.messages(self.first, self.owed)[self.written..]
    }

    /// Returns the bytes of replies that are still awaited.
    #[inline]
    pub(super) fn awaited<'a>(&self, workload: &'a Workload) -> &'a [u8] {
        &workload.replies(self.first, self.owed)[self.received..]
    }

    /// Consumes received bytes, and returns how many replies are now complete. With `verify`, every byte is compared;
    /// otherwise they are only counted. After a mismatch, nothing is consumed.
    #[inline]
    pub(super) fn consume(&mut self, bytes: &[u8], workload: &Workload, verify: bool) -> Result<usize, Mismatch> {
        let awaited = self.awaited(workload);
        match awaited.get(..bytes.len()) {
            Some(expected) if !verify || expected == bytes => {}
            _ => return Err(Mismatch),
        }
        if bytes.len() < awaited.len() {
            return self.advance(bytes.len(), workload);
        }
        // All of it: a reply to a message that was not sent whole is wrong.
        if self.written < self.owed * workload.message_size() {
            return Err(Mismatch);
        }
        let completed = self.owed;
        self.first = (self.first + completed) % workload.distinct_messages();
        (self.owed, self.written, self.received) = (0, 0, 0);
        Ok(completed)
    }

    /// Advances by `bytes` bytes of the awaited replies, which have come and are right.
    pub(super) fn advance(&mut self, bytes: usize, workload: &Workload) -> Result<usize, Mismatch> {
        let received = self.received + bytes;
        let completed = received / workload.reply_size();
        let written = self.written.checked_sub(completed * workload.message_size()).ok_or(Mismatch)?;
        self.received = received - completed * workload.reply_size();
        self.written = written;
        self.owed -= completed;
        self.first = (self.first + completed) % workload.distinct_messages();
        Ok(completed)
    }

    /// Discards the messages that wait for their replies. Returns how many stay unanswered.
    pub(super) fn discard_owed(&mut self, workload: &Workload) -> usize {
        let owed = std::mem::take(&mut self.owed);
        self.first = (self.first + owed) % workload.distinct_messages();
        (self.written, self.received, self.write_blocked) = (0, 0, false);
        owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Delimiter;
    use crate::protocol::reply::Prefix;

    fn workload(depth: usize) -> Workload {
        Workload::new(5, depth, Delimiter::default().as_bytes(), &Prefix::new(b"server got:")).unwrap()
    }

    #[test]
    fn replies_are_recognized_in_pieces_of_any_size() {
        let workload = workload(7);
        for size in 1..=workload.reply_size() * 7 {
            let mut connection = BenchConnection::new();
            for _ in 0..50 {
                connection.enqueue(7, 1);
                let replies = workload.replies(connection.first, 7).to_vec();
                connection.written = connection.unwritten(&workload).len();
                let taken: usize =
                    replies.chunks(size).map(|chunk| connection.consume(chunk, &workload, true).unwrap()).sum();
                assert_eq!(
                    (taken, connection.owed, connection.written, connection.received),
                    (7, 0, 0, 0),
                    "cut every {size}"
                );
            }
            assert_eq!(connection.slots_used, 350);
        }
    }

    #[test]
    fn messages_can_be_added_while_replies_are_owed() {
        let workload = workload(3);
        let mut connection = BenchConnection::new();
        let mut all = Vec::new();
        for round in 0..100 {
            connection.enqueue(if round == 0 { 3 } else { 1 }, round);
            connection.written += connection.unwritten(&workload).len();
            let reply = workload.replies(connection.first, 1).to_vec();
            assert_eq!(connection.consume(&reply, &workload, true), Ok(1));
            all.push(reply);
        }
        assert_eq!(connection.owed, 2);
        assert_eq!(all[0], all[workload.distinct_messages()]);
        assert_ne!(all[0], all[1]);
    }

    #[test]
    fn one_differing_byte_is_a_mismatch_and_changes_nothing() {
        let workload = workload(2);
        for at in 0..2 * workload.reply_size() {
            let mut connection = BenchConnection::new();
            connection.enqueue(2, 1);
            connection.written = 2 * workload.message_size();
            let mut replies = workload.replies(0, 2).to_vec();
            replies[at] ^= 1;
            assert_eq!(connection.consume(&replies, &workload, true), Err(Mismatch));
            assert_eq!((connection.owed, connection.received), (2, 0));
            assert_eq!(connection.consume(&replies, &workload, false), Ok(2));
        }
    }

    #[test]
    fn surplus_and_early_replies_are_mismatches_even_without_verification() {
        let workload = workload(1);
        for verify in [true, false] {
            let mut connection = BenchConnection::new();
            let reply = workload.replies(0, 1).to_vec();
            assert_eq!(connection.consume(&reply, &workload, verify), Err(Mismatch), "it was not asked for");
            connection.enqueue(1, 1);
            assert_eq!(connection.consume(&reply, &workload, verify), Err(Mismatch), "it is not even sent");
            connection.written = workload.message_size();
            assert_eq!(
                connection.consume(&[&reply[..], b"x"].concat(), &workload, verify),
                Err(Mismatch),
                "one byte more"
            );
            assert_eq!(connection.consume(&reply, &workload, verify), Ok(1));
        }
    }

    #[test]
    fn messages_after_discarded_ones_continue_the_workload() {
        let workload = workload(2);
        let mut connection = BenchConnection::new();
        connection.enqueue(2, 1);
        connection.written = 3;
        assert_eq!(connection.discard_owed(&workload), 2);
        assert_eq!((connection.owed, connection.written, connection.first), (0, 0, 2 % workload.distinct_messages()));
        assert_eq!(connection.discard_owed(&workload), 0);
    }
}
