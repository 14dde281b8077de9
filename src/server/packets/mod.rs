//! Packets: one is one message, and one is its reply. What the protocol says of them is in `protocol/packet.rs`.
//!
//! ```text
//! SOCK_SEQPACKET   accept ── permit ──► SeqpacketConnection: a task on the worker with the fewest connections
//! SOCK_DGRAM       DatagramServer (a task for each listener) ──► datagram: is it safe to answer, and within its rate?
//!                  then answered, else counted by its cause (DropLog)
//!                  at a path: PathReplies ──► UserThreads: open, check, send, close
//! ```
//!
//! Seqpacket connections are few and local, so each is a task, which is simpler than a connection of the event loop.
//! The event loop does not know them.

pub(crate) mod datagram_server;
pub(crate) mod datagram_socket;
pub(crate) mod drop_log;
pub(crate) mod path_replies;
pub(crate) mod rate_limit;
pub(crate) mod sender_socket;
pub(crate) mod seqpacket;
mod seqpacket_socket;
pub(crate) mod user_threads;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::accept::Listener;
use super::event::{Event, ReceivedMessage, UnloggedMessages, summary};
use super::worker::EventSink;
use crate::protocol::rules::LogMessages;

/// Logs a message of this listener, if it logs messages. Waits for the lossless log, however long it takes.
pub(crate) async fn log(message: ReceivedMessage<'_>, listener: &Listener, sink: &EventSink) {
    match listener.settings.rules.log_messages {
        LogMessages::Off => {}
        LogMessages::Summary => {
            let ReceivedMessage { connection_id, peer, bytes, .. } = message;
            let (listener, text) = (Arc::clone(&listener.name), summary(bytes));
            (sink.handle_event)(Event::Message { connection_id, listener, peer, text });
        }
        LogMessages::Full => {
            let mut waiting = None;
            poll_fn(|cx| {
                if sink.message_log.try_append(message, cx.waker()) {
                    return Poll::Ready(());
                }
                waiting.get_or_insert_with(|| WaitingMessage::new(&sink.unlogged));
                Poll::Pending
            })
            .await;
            waiting.into_iter().for_each(WaitingMessage::accept);
        }
    }
}

/// A message that waits for the lossless log. If its task ends before that, it is lost.
struct WaitingMessage<'a> {
    unlogged: &'a UnloggedMessages,
    accepted: bool,
}

impl<'a> WaitingMessage<'a> {
    fn new(unlogged: &'a UnloggedMessages) -> Self {
        unlogged.begin_wait();
        Self { unlogged, accepted: false }
    }

    fn accept(mut self) {
        self.accepted = true;
    }
}

impl Drop for WaitingMessage<'_> {
    fn drop(&mut self) {
        self.unlogged.end_wait();
        if !self.accepted {
            self.unlogged.add_lost(1);
        }
    }
}
