//! Tests of the protocol: tables, an oracle, and scenarios on a fake clock.

mod backpressure;
mod calls;
mod close;
mod deadlines;
mod general_path;
mod logging;
mod oracle;
mod packets;
mod reply_delay;
mod simulated_outlet;
mod simulation;
mod snapshot;
mod tables;
