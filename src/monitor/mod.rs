//! What others than clients ask of the daemon: metrics, health and status over HTTP ([`Monitor`]), and HAProxy's agent-check
//! ([`Agent`]). Tasks of the services answer ([`ConnectionService`](crate::server::ConnectionService)), never a worker.
//!
//! ```text
//! connection ─► deadlines (request_stream) ─► hyper ─► page (http) ─► metrics ─► exposition ─► text
//!                                                              └────► status ─► JSON
//! ```
//!
//! Everything is read anew for each request, from a [`Source`].

mod accept_header;
mod agent;
mod exposition;
mod http;
mod liveness;
mod metrics;
mod process_counters;
mod process_stats;
mod request_stream;
mod source;
mod status;

pub use agent::Agent;
pub use http::Monitor;
pub use process_counters::{ProcessCounters, ProcessCounts, ResultCounts};
pub(crate) use request_stream::RequestStream;
pub use source::{LogCounts, Source};
pub(crate) use status::Status;
