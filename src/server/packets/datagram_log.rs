//! Logs the messages of datagrams, on the thread of their socket.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use crate::protocol::rules::LogMessages;
use crate::server::clock::clock;
use crate::server::event::ReceivedMessage;
use crate::server::listener::Listener;
use crate::server::packets::datagram_thread::ThreadControl;
use crate::server::packets::{self, END_WAIT, WaitingMessage};
use crate::server::services::{Services, StopRequest};

/// Logs a message of this listener, if it logs messages. Waits for the lossless log, until the thread has to end, or until
/// connections have to end at once and [`END_WAIT`] is over: `given_up_at`, once that is known. Returns `false` if the message was
/// given up then: it is lost, and not to be answered.
#[must_use]
pub(crate) fn log(
    message: ReceivedMessage<'_>,
    listener: &Listener,
    services: &Services,
    control: &Arc<ThreadControl>,
    given_up_at: &mut Option<Instant>,
) -> bool {
    match listener.settings.rules.log_messages {
        LogMessages::Off => true,
        LogMessages::Summary => {
            packets::log_summary(message, listener, &services.state.sink);
            true
        }
        LogMessages::Full => log_whole(message, services, control, given_up_at),
    }
}

fn log_whole(
    message: ReceivedMessage<'_>,
    services: &Services,
    control: &Arc<ThreadControl>,
    given_up_at: &mut Option<Instant>,
) -> bool {
    let waker = Waker::from(Arc::clone(control));
    if services.state.sink.message_log.try_append(message, &waker) {
        return true;
    }
    let waiting = WaitingMessage::new(services, &waker);
    let logged = loop {
        control.wait(None, *given_up_at);
        control.take_wakeup();
        if services.state.sink.message_log.try_append(message, &waker) {
            waiting.accept();
            break true;
        }
        if given_up_at.is_none() && services.stop_request() == StopRequest::Immediate {
            *given_up_at = Some(clock() + END_WAIT);
        }
        if control.has_ended() || given_up_at.is_some_and(|at| at <= clock()) {
            break waiting.give_up();
        }
    };
    // What woke the thread meanwhile may not have been the log.
    waker.wake();
    logged
}
