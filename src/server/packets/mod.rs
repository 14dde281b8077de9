//! Packets: one is one message, and one is its reply. What the protocol says of them is in `protocol/packet.rs`.
//!
//! ```text
//! SOCK_SEQPACKET   accept ── place ──► conversation: a task on the worker with the fewest connections
//! SOCK_DGRAM       inbox ──► datagram (a task for each listener): is it harmless, within its rate? then answered, else
//!                            counted by its cause (drops)
//! ```
//!
//! Connections of packets are few and local, so they are tasks, which are simpler than turns on the floor, and the floor does
//! not know of them.

pub(crate) mod conversation;
pub(crate) mod drops;
pub(crate) mod inbox;
pub(crate) mod rates;
mod wire;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::accept::Desk;
use super::event::{Event, Message, summary};
use super::worker::Outside;
use crate::protocol::rules::LogMessages;

/// Logs a message that came to a desk, where messages are logged; whole ones for as long as it takes.
pub(crate) async fn log(message: Message<'_>, desk: &Desk, outside: &Outside) {
    match desk.settings.rules.log_messages {
        LogMessages::Off => {}
        LogMessages::Summary => {
            let Message { connection, peer, bytes, .. } = message;
            let (listener, text) = (Arc::clone(&desk.name), summary(bytes));
            (outside.events)(Event::Message { connection, listener, peer, text });
        }
        LogMessages::Full => {
            poll_fn(|cx| if outside.messages.take(message, cx.waker()) { Poll::Ready(()) } else { Poll::Pending })
                .await;
        }
    }
}
