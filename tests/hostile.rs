//! What is promised against hostile peers, each promise as a sentence: nothing that one of them does hurts another.

mod common;
#[path = "hostile/descriptors.rs"]
mod descriptors;
#[path = "hostile/readers.rs"]
mod readers;
