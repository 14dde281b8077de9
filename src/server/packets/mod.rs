//! Datagrams: one is one message, and one is its reply. What the protocol says of them is in `protocol/packet.rs`. (Connections of
//! packets are connections of an event loop: `connection/packets.rs`.)
//!
//! ```text
//! DatagramServer (a thread for each socket) ──► datagram: is it safe to answer, and within its rate?
//! then answered, else counted by its cause (DropLog)
//! at a path: PathReplies ──► UserThreads: open, check, send, close
//! ```

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
mod user_threads;

use std::time::Duration;

/// How long a datagram waits for the log after a restart has begun, and a listener of datagrams for its replies to paths at its end:
/// both may wait for something that never comes.
pub(crate) const END_WAIT: Duration = Duration::from_millis(500);
