//! Tests of the core: tables, an oracle, and stories on a fake clock.

mod backpressure;
mod calls;
mod combinations;
mod conversation;
mod endings;
mod logging;
mod oracle;
mod pauses;
mod snapshot;
mod story;
mod tables;
