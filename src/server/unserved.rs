//! Counts and reports connections that end without having been served, like all others.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::accepted_socket::AcceptedSocket;
use super::admission::Permit;
use super::clock::clock;
use super::event::Event;
use super::listener::ConnectionInfo;
use super::proxy_header::BadHeader;
use super::socket_error;
use super::worker_state::WorkerState;
use crate::protocol::Verdict;
use crate::protocol::session::Totals;

/// Counts a connection that was accepted and has ended, and reports its verdict. `state` is that of the calling thread. Call it
/// before the permit is released, because the server may end then.
pub(crate) fn report(
    state: &WorkerState,
    info: &ConnectionInfo,
    opened: Instant,
    verdict: Verdict,
    bad_header: Option<BadHeader>,
) {
    let totals = Totals { bytes_in: bad_header.as_ref().map_or(0, |header| header.len), ..Totals::default() };
    let counters = info.listener.counters(state);
    counters.count_totals(Totals::default(), totals);
    counters.count_ended(verdict);
    state.sink.report(Event::Closed {
        id: info.id,
        listener: Arc::clone(&info.listener.name),
        peer: info.peer,
        verdict,
        totals,
        age: clock().saturating_duration_since(opened),
        bad_header,
    });
}

/// Reports the error of a connection that cannot be served, counts it as [`report`] does, and closes it. `state` is that of the
/// calling thread. `socket` is `None` if it is already closed.
pub(crate) fn close_failed(
    state: &WorkerState,
    info: &ConnectionInfo,
    opened: Instant,
    error: io::Error,
    socket: Option<AcceptedSocket>,
    permit: Permit,
) {
    socket_error::report_failure(error, info, &state.sink);
    report(state, info, opened, Verdict::PeerReset, None);
    match socket {
        Some(socket) => socket.close(&state.disposal, permit),
        None => drop(permit),
    }
}
