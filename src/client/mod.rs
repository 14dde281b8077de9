//! The client: echoctl as a library.
//!
//! [`connect`] dials an address, [`input`] says what to send, [`exchange`] sends it and checks each reply against its
//! message, [`report`] prints. [`ping`] measures round trips, [`bench`] the most that a server does. What the other side does wrong, and what fails here, ends an exchange with an error that
//! is one sentence; what its exit code is, only the program knows.

pub mod bench;
pub mod connect;
pub mod exchange;
pub mod failure;
pub mod input;
pub mod message;
pub mod ping;
pub mod report;

mod json;
mod outbox;
mod quote;

#[cfg(test)]
mod tests;
