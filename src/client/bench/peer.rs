//! One connection: what it has sent, and what it is owed.

use std::os::fd::OwnedFd;

use super::script::Script;

/// Where a connection is in its life.
#[derive(Debug)]
pub(super) enum State {
    /// There is none; it is dialled when this time has come.
    Down { until: u64 },
    /// It is being made; without a socket where it was not even taken into the backlog, and is tried again.
    Connecting { socket: Option<OwnedFd> },
    /// It is there.
    Live { socket: OwnedFd },
    /// Something wrong has come over it: what of that reply is here so far. The rest is awaited, to be shown.
    Wrong { socket: OwnedFd, reply: Vec<u8> },
}

/// One connection, and the next ones in its place.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) state: State,
    /// Messages that wait for their replies, those that are not written whole among them.
    pub(super) owed: usize,
    /// The place of the first of them in the script.
    pub(super) first: usize,
    /// Bytes of the owed messages that were written.
    pub(super) written: usize,
    /// Bytes of their replies that have come.
    pub(super) received: usize,
    /// Whether more can only be written when there is room again.
    pub(super) full: bool,
    /// Whether the epoll set is told to tell so.
    pub(super) watches_room: bool,
    /// When the batch was sent. Times are in nanoseconds.
    pub(super) sent_at: u64,
    /// Since when the next reply is the next one; since when there is an attempt to connect.
    pub(super) since: u64,
    /// Messages of all its life, lost ones too: how many of its slots are used.
    pub(super) slots: u64,
    /// Whether this connection has brought a reply.
    pub(super) useful: bool,
    /// Attempts and connections in a row that brought none.
    pub(super) failures: u32,
    /// Whether it has been there once, or has failed.
    pub(super) settled: bool,
}

/// What came is not what is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Misfit;

impl Peer {
    pub(super) fn new() -> Self {
        Self {
            state: State::Down { until: 0 },
            owed: 0,
            first: 0,
            written: 0,
            received: 0,
            full: false,
            watches_room: false,
            sent_at: 0,
            since: 0,
            slots: 0,
            useful: false,
            failures: 0,
            settled: false,
        }
    }

    /// So many more messages are to be sent.
    #[inline]
    pub(super) fn owe(&mut self, count: usize, now: u64) {
        if self.owed == 0 {
            self.since = now;
        }
        self.sent_at = now;
        self.owed += count;
        self.slots += count as u64;
    }

    /// What is still to be written.
    #[inline]
    pub(super) fn unwritten<'a>(&self, script: &'a Script) -> &'a [u8] {
        &script.messages(self.first, self.owed)[self.written..]
    }

    /// What is still to come.
    #[inline]
    pub(super) fn awaited<'a>(&self, script: &'a Script) -> &'a [u8] {
        &script.replies(self.first, self.owed)[self.received..]
    }

    /// Takes what came, and returns how many replies are now here whole. With `verify`, every byte is compared;
    /// otherwise they are only counted. When it does not fit, nothing is taken.
    #[inline]
    pub(super) fn take(&mut self, bytes: &[u8], script: &Script, verify: bool) -> Result<usize, Misfit> {
        let awaited = self.awaited(script);
        match awaited.get(..bytes.len()) {
            Some(expected) if !verify || expected == bytes => {}
            _ => return Err(Misfit),
        }
        if bytes.len() < awaited.len() {
            return self.credit(bytes.len(), script);
        }
        // All of it. What answers a message that was not sent whole, answers none.
        if self.written < self.owed * script.message_size() {
            return Err(Misfit);
        }
        let whole = self.owed;
        self.first = (self.first + whole) % script.places();
        (self.owed, self.written, self.received) = (0, 0, 0);
        Ok(whole)
    }

    /// So many bytes of the awaited replies have come and are right.
    pub(super) fn credit(&mut self, bytes: usize, script: &Script) -> Result<usize, Misfit> {
        let received = self.received + bytes;
        let whole = received / script.reply_size();
        let written = self.written.checked_sub(whole * script.message_size()).ok_or(Misfit)?;
        self.received = received - whole * script.reply_size();
        self.written = written;
        self.owed -= whole;
        self.first = (self.first + whole) % script.places();
        Ok(whole)
    }

    /// Nothing is owed any more. Returns how many messages stay unanswered.
    pub(super) fn forget(&mut self, script: &Script) -> usize {
        let owed = std::mem::take(&mut self.owed);
        self.first = (self.first + owed) % script.places();
        (self.written, self.received, self.full) = (0, 0, false);
        owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Delimiter;
    use crate::protocol::reply::Prefix;

    fn script(depth: usize) -> Script {
        Script::new(5, depth, &Delimiter::default(), &Prefix::new(b"server got:")).unwrap()
    }

    #[test]
    fn replies_are_taken_however_they_are_cut() {
        let script = script(7);
        for size in 1..=script.reply_size() * 7 {
            let mut peer = Peer::new();
            for _ in 0..50 {
                peer.owe(7, 1);
                let replies = script.replies(peer.first, 7).to_vec();
                peer.written = peer.unwritten(&script).len();
                let taken: usize = replies.chunks(size).map(|chunk| peer.take(chunk, &script, true).unwrap()).sum();
                assert_eq!((taken, peer.owed, peer.written, peer.received), (7, 0, 0, 0), "cut every {size}");
            }
            assert_eq!(peer.slots, 350);
        }
    }

    #[test]
    fn more_can_be_owed_while_some_is() {
        let script = script(3);
        let mut peer = Peer::new();
        let mut all = Vec::new();
        for turn in 0..100 {
            peer.owe(if turn == 0 { 3 } else { 1 }, turn);
            peer.written += peer.unwritten(&script).len();
            let reply = script.replies(peer.first, 1).to_vec();
            assert_eq!(peer.take(&reply, &script, true), Ok(1));
            all.push(reply);
        }
        assert_eq!(peer.owed, 2);
        assert_eq!(all[0], all[script.places()]);
        assert_ne!(all[0], all[1]);
    }

    #[test]
    fn what_differs_in_one_byte_is_a_misfit_and_changes_nothing() {
        let script = script(2);
        for at in 0..2 * script.reply_size() {
            let mut peer = Peer::new();
            peer.owe(2, 1);
            peer.written = 2 * script.message_size();
            let mut replies = script.replies(0, 2).to_vec();
            replies[at] ^= 1;
            assert_eq!(peer.take(&replies, &script, true), Err(Misfit));
            assert_eq!((peer.owed, peer.received), (2, 0));
            assert_eq!(peer.take(&replies, &script, false), Ok(2));
        }
    }

    #[test]
    fn too_much_and_too_early_are_misfits_even_unverified() {
        let script = script(1);
        for verify in [true, false] {
            let mut peer = Peer::new();
            let reply = script.replies(0, 1).to_vec();
            assert_eq!(peer.take(&reply, &script, verify), Err(Misfit), "nobody asked");
            peer.owe(1, 1);
            assert_eq!(peer.take(&reply, &script, verify), Err(Misfit), "it is not even sent");
            peer.written = script.message_size();
            assert_eq!(peer.take(&[&reply[..], b"x"].concat(), &script, verify), Err(Misfit), "one byte more");
            assert_eq!(peer.take(&reply, &script, verify), Ok(1));
        }
    }

    #[test]
    fn after_a_loss_the_next_messages_are_the_next() {
        let script = script(2);
        let mut peer = Peer::new();
        peer.owe(2, 1);
        peer.written = 3;
        assert_eq!(peer.forget(&script), 2);
        assert_eq!((peer.owed, peer.written, peer.first), (0, 0, 2 % script.places()));
        assert_eq!(peer.forget(&script), 0);
    }
}
