//! The messages that are to be sent, and those that were sent and await their replies.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::message::Message;

/// No more messages are taken while this many bytes wait to be written.
const MAX_UNWRITTEN: usize = 64 * 1024;

/// No more messages are taken while this many await their replies.
const MAX_AWAITED: usize = 4096;

/// No more messages are taken while those that await their replies have this many bytes.
const MAX_AWAITED_BYTES: usize = 1024 * 1024;

/// Messages on their way. Holds what its limits say and one message more.
#[derive(Debug)]
pub(super) struct SendQueue {
    bytes: Vec<u8>,
    /// How many of these bytes are written.
    written: usize,
    /// Bytes of all messages so far, and how many of those are written.
    total_bytes: u64,
    total_written: u64,
    message_count: u64,
    awaited: VecDeque<AwaitedMessage>,
    awaited_bytes: usize,
    /// How many of the awaited messages are sent.
    sent_count: usize,
    last_progress: Instant,
}

#[derive(Debug)]
struct AwaitedMessage {
    message: Message,
    /// The position of its last byte in the bytes of all messages.
    end: u64,
    /// When its last byte was written, if it is: just before the call.
    sent_at: Option<Instant>,
}

impl SendQueue {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            bytes: Vec::new(),
            written: 0,
            total_bytes: 0,
            total_written: 0,
            message_count: 0,
            awaited: VecDeque::new(),
            awaited_bytes: 0,
            sent_count: 0,
            last_progress: now,
        }
    }

    /// Returns how many messages there were so far.
    pub(super) fn message_count(&self) -> u64 {
        self.message_count
    }

    /// Returns whether there is room for another message.
    pub(super) fn has_room(&self) -> bool {
        self.unwritten().len() < MAX_UNWRITTEN
            && self.awaited.len() < MAX_AWAITED
            && self.awaited_bytes < MAX_AWAITED_BYTES
    }

    /// Returns the bytes that are to be written.
    pub(super) fn unwritten(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// Returns when something was last written; before that, when there was something to write.
    pub(super) fn last_progress(&self) -> Instant {
        self.last_progress
    }

    /// Returns whether any message awaits its reply.
    pub(super) fn has_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Returns the message whose reply comes next, and when it was sent, if it was.
    pub(super) fn next_awaited(&self) -> Option<(&Message, Option<Instant>)> {
        self.awaited.front().map(|awaited| (&awaited.message, awaited.sent_at))
    }

    /// Returns when the message whose reply comes next was sent.
    pub(super) fn next_sent(&self) -> Option<Instant> {
        self.awaited.front()?.sent_at
    }

    /// Adds a message, which may await a reply.
    pub(super) fn push(&mut self, message: Message, expects_reply: bool, now: Instant) {
        if self.unwritten().is_empty() {
            self.last_progress = now;
        }
        // At most `MAX_UNWRITTEN` bytes move, and only for the first message after a write.
        self.bytes.drain(..self.written);
        self.written = 0;
        self.bytes.extend_from_slice(message.terminated());
        self.total_bytes += message.terminated().len() as u64;
        self.message_count += 1;
        if expects_reply {
            self.awaited_bytes += message.terminated().len();
            self.awaited.push_back(AwaitedMessage { message, end: self.total_bytes, sent_at: None });
        }
    }

    /// Records that `count` of the [`SendQueue::unwritten`] bytes were written at that time.
    pub(super) fn note_written(&mut self, count: usize, at: Instant) {
        self.written += count;
        self.total_written += count as u64;
        self.last_progress = at;
        for awaited in self.awaited.range_mut(self.sent_count..) {
            if awaited.end > self.total_written {
                break;
            }
            awaited.sent_at = Some(at);
            self.sent_count += 1;
        }
    }

    /// Removes the oldest awaited message: its reply has come.
    pub(super) fn pop_answered(&mut self) {
        if let Some(AwaitedMessage { message, sent_at, .. }) = self.awaited.pop_front() {
            self.awaited_bytes -= message.terminated().len();
            self.sent_count -= usize::from(sent_at.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Delimiter;

    #[test]
    fn send_queue_does_not_grow_with_the_messages_sent() {
        let now = Instant::now();
        let mut send_queue = SendQueue::new(now);
        let message = Message::new(vec![b'x'; 999], Some(&Delimiter::default())).unwrap();
        for _ in 0..1000 {
            send_queue.push(message.clone(), true, now);
            // Never all of it.
            send_queue.note_written(send_queue.unwritten().len() - 1, now);
            while send_queue.next_sent().is_some() {
                send_queue.pop_answered();
            }
        }
        assert_eq!(
            (send_queue.message_count(), send_queue.unwritten(), send_queue.awaited_bytes),
            (1000, &b"\t"[..], 1000)
        );
        assert!(send_queue.bytes.capacity() < 10_000, "{}", send_queue.bytes.capacity());
    }
}
