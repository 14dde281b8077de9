//! The client: echoctl as a library.
//!
//! [`connect`] dials an address, [`input`] says what to send, [`exchange`] sends it and checks each reply against its
//! message, [`report`] prints. What the other side does wrong, and what fails here, ends an exchange with an error that
//! is one sentence; what its exit code is, only the program knows.

pub mod connect;
pub mod exchange;
pub mod failure;
pub mod input;
pub mod message;
pub mod report;

mod outbox;
mod quote;

#[cfg(test)]
mod tests;
