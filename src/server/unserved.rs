//! Connections that end without having been served: they are counted and reported like all others.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::admission::Permit;
use super::connection::{ConnectionInfo, clock};
use super::event::Event;
use super::proxy::BadHeader;
use super::socket::AcceptedSocket;
use super::socket_error;
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

/// Reports a connection that cannot be served, as [`report`], with the error, and closes it. `worker` is the one that runs
/// this. Without a socket, that was closed.
pub(crate) fn close_failed(
    worker: &Worker,
    info: &ConnectionInfo,
    opened: Instant,
    error: io::Error,
    socket: Option<AcceptedSocket>,
    permit: Permit,
) {
    socket_error::report_failure(error, info, &worker.sink);
    report(worker, info, opened, Verdict::PeerReset, None);
    match socket {
        Some(socket) => socket.close(&worker.disposal, permit),
        None => drop(permit),
    }
}

/// Ends a connection that cannot be served, on this worker. To be called from any thread. Without a socket, that was closed.
pub(crate) fn end_failed(
    worker: &Arc<Worker>,
    info: ConnectionInfo,
    error: io::Error,
    socket: Option<AcceptedSocket>,
    permit: Permit,
) {
    let (task, opened) = (Arc::clone(worker), clock());
    worker.spawn(async move { close_failed(&task, &info, opened, error, socket, permit) });
}
