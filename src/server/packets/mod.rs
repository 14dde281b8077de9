//! Packets: one is one message, and one is its reply. What the protocol says of them is in `protocol/packet.rs`.
//!
//! ```text
//! SOCK_SEQPACKET   accept ── permit ──► SeqpacketConnection: a task of the services
//! SOCK_DGRAM       DatagramServer (a thread for each socket) ──► datagram: is it safe to answer, and within its rate?
//!                  then answered, else counted by its cause (DropLog)
//!                  at a path: PathReplies ──► UserThreads: open, check, send, close
//! ```
//!
//! Seqpacket connections are few and local, so each is a task, which is simpler than a connection of the event loop.
//! The event loop does not know them.

mod datagram_address;
mod datagram_batch;
mod datagram_log;
pub(crate) mod datagram_server;
mod datagram_socket;
pub(crate) mod datagram_thread;
pub(crate) mod drop_log;
mod parking;
pub(crate) mod path_replies;
pub(crate) mod rate_limit;
pub(crate) mod sender_socket;
pub(crate) mod seqpacket;
mod seqpacket_socket;
mod user_threads;

use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time;

use super::event::{Event, EventSink, ReceivedMessage, summary};
use super::listener::Listener;
use super::services::{Services, StopRequest};
use crate::protocol::rules::LogMessages;

/// How long a packet waits for the log after a restart has begun, and a listener of datagrams for its replies to paths at its end:
/// both may wait for something that never comes.
pub(crate) const END_WAIT: Duration = Duration::from_millis(500);

/// Logs a message of this listener, if it logs messages. Waits for the lossless log, until connections have to end at once and
/// [`END_WAIT`] is over. Returns `false` if the message was given up then: it is lost, and not to be answered.
#[must_use]
pub(crate) async fn log(message: ReceivedMessage<'_>, listener: &Listener, services: &Services) -> bool {
    let sink = &services.state.sink;
    match listener.settings.rules.log_messages {
        LogMessages::Off => {}
        LogMessages::Summary => log_summary(message, listener, sink),
        LogMessages::Full => {
            let mut waiting = None;
            let appended = poll_fn(|cx| {
                if sink.message_log.try_append(message, cx.waker()) {
                    return Poll::Ready(());
                }
                waiting.get_or_insert_with(|| WaitingMessage::new(services, cx.waker()));
                Poll::Pending
            });
            let given_up = async {
                services.stop_requested(StopRequest::Immediate).await;
                time::sleep(END_WAIT).await;
            };
            tokio::select! {
                biased;
                () = appended => {}
                () = given_up => return false,
            }
            waiting.into_iter().for_each(WaitingMessage::accept);
        }
    }
    true
}

/// Logs the beginning of a message.
fn log_summary(message: ReceivedMessage<'_>, listener: &Listener, sink: &EventSink) {
    let ReceivedMessage { connection_id, peer, received_at, bytes, .. } = message;
    let (listener, text) = (Arc::clone(&listener.name), summary(bytes));
    sink.report(Event::Message { connection_id, listener, peer, received_at, text });
}

/// A message that waits for the lossless log. If its task ends before that, it is lost.
struct WaitingMessage<'a> {
    sink: &'a EventSink,
    waker: Waker,
    accepted: bool,
    /// [`Services::packets_logged`] waits until it is dropped.
    _wait: watch::Receiver<()>,
}

impl<'a> WaitingMessage<'a> {
    fn new(services: &'a Services, waker: &Waker) -> Self {
        let sink = &services.state.sink;
        sink.unlogged.begin_wait();
        let wait = services.packets_awaiting_log.subscribe();
        Self { sink, waker: waker.clone(), accepted: false, _wait: wait }
    }

    fn accept(mut self) {
        self.accepted = true;
    }

    /// Gives it up. Returns whether it was written in the last moment; if not, it is lost.
    fn give_up(mut self) -> bool {
        self.accepted = self.sink.message_log.abandon(&self.waker);
        if !self.accepted {
            self.sink.unlogged.add_lost(1);
        }
        mem::replace(&mut self.accepted, true)
    }
}

impl Drop for WaitingMessage<'_> {
    fn drop(&mut self) {
        self.sink.unlogged.end_wait();
        if !self.accepted && !self.sink.message_log.abandon(&self.waker) {
            self.sink.unlogged.add_lost(1);
        }
    }
}
