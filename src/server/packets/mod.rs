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
