//! What is promised against hostile peers, each promise as a sentence: nothing that one of them does hurts another.

// Its macros use each other by their bare names.
#[macro_use]
extern crate nix;

mod datagrams;
mod descriptors;
mod memory;
mod mptcp;
mod places;
mod readers;
mod vanished;
mod windows;
