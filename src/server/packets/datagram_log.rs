//! Logs the messages of datagrams, on the thread of their socket.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use crate::protocol::rules::LogMessages;
use crate::server::clock::clock;
use crate::server::event::{Event, EventSink, ReceivedMessage, summary};
use crate::server::listener::Listener;
use crate::server::packets::END_WAIT;
use crate::server::packets::datagram_thread::ThreadControl;

/// Logs a message, if the listener logs messages. Waits for the lossless log until the thread has to end, or until [`END_WAIT`]
/// has passed since waits for the log are limited; `given_up_at` is that time, once it is known. Returns `false` if the message
/// was given up: it is lost, and must not be answered.
#[must_use]
pub(crate) fn log(
    message: ReceivedMessage<'_>,
    listener: &Listener,
    sink: &EventSink,
    control: &Arc<ThreadControl>,
    given_up_at: &mut Option<Instant>,
) -> bool {
    match listener.settings.rules.log_messages {
        LogMessages::Off => true,
        LogMessages::Summary => {
            let ReceivedMessage { connection_id, peer, received_at, bytes, .. } = message;
            let (listener, text) = (Arc::clone(&listener.name), summary(bytes));
            sink.report(Event::Message { connection_id, listener, peer, received_at, text });
            true
        }
        LogMessages::Full => log_whole(message, sink, control, given_up_at),
    }
}

fn log_whole(
    message: ReceivedMessage<'_>,
    sink: &EventSink,
    control: &Arc<ThreadControl>,
    given_up_at: &mut Option<Instant>,
) -> bool {
    let waker = Waker::from(Arc::clone(control));
    if sink.message_log.try_append(message, &waker) {
        return true;
    }
    sink.unlogged.begin_wait();
    let is_logged = loop {
        control.wait(None, *given_up_at);
        control.take_wakeup();
        if sink.message_log.try_append(message, &waker) {
            break true;
        }
        if given_up_at.is_none() && control.ends_log_wait() {
            *given_up_at = Some(clock() + END_WAIT);
        }
        if control.has_ended() || given_up_at.is_some_and(|at| at <= clock()) {
            // The log may have written it just now.
            let is_written = sink.message_log.abandon(&waker);
            if !is_written {
                sink.unlogged.add_lost(1);
            }
            break is_written;
        }
    };
    sink.unlogged.end_wait();
    // A wakeup that was taken above may have been for another reason.
    waker.wake();
    is_logged
}
