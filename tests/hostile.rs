//! What is promised against hostile peers, each promise as a sentence: nothing that one of them does hurts another.

// Its macros use each other by their bare names.
#[macro_use]
extern crate nix;

mod common;
#[path = "hostile/datagrams.rs"]
mod datagrams;
#[path = "hostile/descriptors.rs"]
mod descriptors;
#[path = "journal/fake_journald.rs"]
mod fake_journald;
#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/mptcp.rs"]
mod mptcp;
#[path = "hostile/places.rs"]
mod places;
#[path = "hostile/readers.rs"]
mod readers;
#[allow(dead_code, reason = "handover.rs uses the rest")]
#[path = "handover/service.rs"]
mod service;
#[path = "hostile/vanished.rs"]
mod vanished;
#[path = "hostile/windows.rs"]
mod windows;
