//! The outlet of a simulated connection: its peer and its log.

use crate::protocol::packet::Reply;
use crate::protocol::rules::ReplyMode;
use crate::protocol::{Outlet, Rules};

/// The destination of the session's output: the peer and the log.
pub(super) struct SimulatedOutlet {
    /// The room in the kernel's send buffer, in bytes.
    pub(super) send_capacity: usize,
    pub(super) received: Vec<u8>,
    pub(super) received_total: usize,
    /// How many messages the log accepts.
    pub(super) log_capacity: usize,
    pub(super) logged: Vec<Vec<u8>>,
    /// Whether messages are logged. Otherwise the session need not ask the log.
    pub(super) logs: bool,
    /// The rules by which replies are built.
    pub(super) rules: Rules,
    /// The number of bytes that may have been sent: replies to logged messages, and final replies.
    pub(super) allowed: usize,
    /// Whether the peer or the log has refused something in this call of the session.
    pub(super) full: bool,
    pub(super) log_refused: bool,
}

impl SimulatedOutlet {
    /// Notes that a call of the session begins.
    pub(super) fn begin_call(&mut self, sends_final_reply: bool) {
        (self.full, self.log_refused) = (false, false);
        if sends_final_reply {
            self.allowed = usize::MAX;
        }
    }
}

impl Outlet for SimulatedOutlet {
    fn send(&mut self, bytes: &[u8]) -> usize {
        assert!(!bytes.is_empty(), "nothing was given to be sent");
        assert!(!self.full, "asked again, after fewer bytes were taken than were given");
        let is_allowed = !self.logs || self.received_total + bytes.len() <= self.allowed;
        assert!(is_allowed, "a message is answered that was not logged");
        let taken = bytes.len().min(self.send_capacity);
        self.full = taken < bytes.len();
        self.received.extend_from_slice(&bytes[..taken]);
        self.received_total += taken;
        self.send_capacity -= taken;
        taken
    }

    fn send_packets(&mut self, replies: &[Reply<'_>]) -> usize {
        let has_room = |room: &mut usize, reply: &[u8]| {
            *room = room.checked_sub(reply.len())?;
            Some(())
        };
        let mut room = self.send_capacity;
        let replies: Vec<_> = replies.iter().map(|reply| reply.concat()).collect();
        let taken = replies.iter().take_while(|reply| has_room(&mut room, reply).is_some()).count();
        let bytes = replies[..taken].concat();
        if !bytes.is_empty() {
            self.send(&bytes);
        }
        self.full = taken < replies.len();
        taken
    }

    fn is_logging(&self) -> bool {
        self.logs
    }

    fn log(&mut self, message: &[u8]) -> bool {
        assert!(!self.log_refused, "asked again, after a message was not logged");
        self.log_refused = self.logs && self.log_capacity == 0;
        if self.log_refused {
            return false;
        }
        self.log_capacity -= usize::from(self.logs);
        self.logged.push(message.to_vec());
        self.allowed = self.allowed.saturating_add(expected_reply(&self.rules, message).len());
        true
    }
}

/// Returns the expected reply to a message.
pub(super) fn expected_reply(rules: &Rules, message: &[u8]) -> Vec<u8> {
    match rules.reply {
        ReplyMode::Echo => [rules.prefix.as_bytes(), message, rules.terminator()].concat(),
        ReplyMode::Fixed => [&rules.fixed_reply, rules.terminator()].concat(),
        ReplyMode::None => Vec::new(),
    }
}
