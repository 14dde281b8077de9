//! Datagrams: each is one message, and its reply is one datagram. `protocol/packet.rs` has the rules of the protocol for them.
//! (An event loop serves connections of packets: `connection/packets.rs`.)
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

/// The maximum time that a datagram waits for the log after a restart has begun, and that an ending datagram server waits for
/// its replies to paths. Both may otherwise wait forever.
pub(crate) const END_WAIT: Duration = Duration::from_millis(500);
