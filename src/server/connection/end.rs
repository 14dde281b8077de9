//! The end of a connection: closed, detached for a handover, or failed; and what is lost or reported then.

use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::{Connection, DetachedConnection};
use crate::protocol::Verdict;
use crate::protocol::snapshot;
use crate::server::accepted_socket;
use crate::server::clock::clock;
use crate::server::event::{Event, EventSink};
use crate::server::listener::ConnectionInfo;
use crate::server::peer::Peer;
use crate::server::socket_error;
use crate::server::worker_state::WorkerState;

impl Connection {
    /// Ends the connection, and reports why. Closes the socket and releases the permit; on the disposal thread, if the
    /// peer may have sent descriptors that were not received.
    pub(crate) fn close(self: Box<Self>, state: &WorkerState) {
        let is_written = abandon_message(self.waker.as_deref(), &state.sink);
        state.sink.unlogged.add_lost(self.session.unlogged_messages().saturating_sub(is_written.into()));
        self.end(state);
    }

    /// Ends a connection without messages that wait for the log.
    fn end(self: Box<Self>, state: &WorkerState) {
        // Without a verdict, the session was not finished: the daemon ends it.
        let verdict = self.session.verdict().unwrap_or(Verdict::Shutdown);
        self.report_closed(state, verdict);
        if self.input.is_packets() {
            self.discard_packets();
        }
        let Self { socket, input, permit, .. } = *self;
        let descriptors = input.descriptors();
        accepted_socket::close(socket, descriptors, &state.disposal, permit);
    }

    /// Detaches the connection. Returns its socket and its encoded session.
    pub(crate) fn detach(mut self: Box<Self>, state: &WorkerState, now: Instant) -> DetachedConnection {
        let ConnectionInfo { id, ref listener, peer } = self.info;
        // It may take some time until the next process reads from the socket.
        self.input.prepare(false, &self.socket);
        let client = if let Peer::Proxied(client) = peer { Some(client) } else { None };
        let snapshot = snapshot::encode(&self.session, &listener.name, id, client, now);
        let unlogged = self.session.unlogged_messages();
        // From now on, the next process is responsible for logging the message.
        abandon_message(self.waker.as_deref(), &state.sink);
        self.report_closed(state, Verdict::HandedOver);
        let Self { socket, .. } = *self;
        DetachedConnection { socket, snapshot, unlogged }
    }

    fn report_closed(&self, state: &WorkerState, verdict: Verdict) {
        state.remove_connection();
        self.info.listener.counters(state).count_ended(verdict);
        if self.awaits_log {
            state.sink.unlogged.end_wait();
        }
        if !state.sink.handler.wants_closed(verdict) {
            return;
        }
        state.sink.report(Event::Closed {
            id: self.info.id,
            listener: Arc::clone(&self.info.listener.name),
            peer: self.info.peer,
            verdict,
            totals: self.session.totals(),
            age: clock().saturating_duration_since(self.session.opened()),
            bad_header: None,
        });
    }

    /// Ends a connection that cannot be served, and reports the error.
    pub(crate) fn fail(mut self: Box<Self>, state: &WorkerState, error: io::Error) {
        socket_error::report_failure(error, &self.info, &state.sink);
        self.session.handle_reset();
        report_lost(self.session.unlogged_messages(), self.waker.as_deref(), &self.info, &state.sink);
        self.end(state);
    }
}

/// Tells the log that a waiting message will not be submitted again. Returns whether it was already written.
fn abandon_message(waker: Option<&Waker>, sink: &EventSink) -> bool {
    waker.is_some_and(|waker| sink.message_log.abandon(waker))
}

/// Counts and reports messages that had to be logged and will not be. At the end of the server, the embedder reports
/// the total instead.
#[cold]
pub(crate) fn report_lost(count: usize, waker: Option<&Waker>, info: &ConnectionInfo, sink: &EventSink) {
    if count == 0 {
        return;
    }
    let count = count.saturating_sub(abandon_message(waker, sink).into());
    if count > 0 {
        sink.unlogged.add_lost(count);
        let (listener, peer) = (Arc::clone(&info.listener.name), info.peer);
        sink.report(Event::MessagesLost { id: info.id, listener, peer, count });
    }
}
