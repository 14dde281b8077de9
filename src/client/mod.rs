//! The client: echoctl as a library.
//!
//! [`connection`] is a stream or a socket of packets, [`input`] says what to send, [`expectation`] what replies to
//! expect. [`pipelined`] sends the messages and checks each reply against its message, [`lockstep`] does so for packets
//! and where there is no delimiter; [`output`] prints the replies. [`ping`] measures round trips, [`bench`](mod@bench)
//! the most that a server does. [`control`] asks a running daemon over its control socket. What the other side does
//! wrong, and what fails here, ends an exchange with an error that is one sentence; what its exit code is, only the
//! program knows.

pub mod bench;
pub mod connect;
pub mod connection;
pub mod control;
pub mod exchange_error;
pub mod expectation;
pub mod input;
pub mod lockstep;
pub mod message;
pub mod next_message;
pub mod output;
pub mod packets;
pub mod ping;
pub mod pipelined;
pub mod repeat;
pub mod table;

mod deadline;
mod json;
mod quote;
mod send_queue;

#[cfg(test)]
mod tests;
