//! Connections that end without having been served: they are counted and reported like all others.

use std::sync::Arc;
use std::time::Instant;

use super::connection::{ConnectionInfo, clock};
use super::event::Event;
use super::proxy::BadHeader;
use super::worker::Worker;
use crate::protocol::Verdict;
use crate::protocol::session::Totals;

/// Counts a connection that was accepted and has ended, and reports why. `worker` is the one that runs this. To be called
/// before the permit is released: the server may end then.
pub(crate) fn report(
    worker: &Worker,
    info: &ConnectionInfo,
    opened: Instant,
    verdict: Verdict,
    bad_header: Option<BadHeader>,
) {
    let totals = Totals { bytes_in: bad_header.as_ref().map_or(0, |header| header.len), ..Totals::default() };
    worker.counters.count_accepted();
    worker.counters.count_totals(Totals::default(), totals);
    worker.counters.count_ended(verdict);
    (worker.sink.handle_event)(Event::Closed {
        id: info.id,
        listener: Arc::clone(&info.listener.name),
        peer: info.peer,
        verdict,
        totals,
        age: clock().saturating_duration_since(opened),
        bad_header,
    });
}
