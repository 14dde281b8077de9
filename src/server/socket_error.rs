//! Errors of connected sockets. They end the connection with the verdict that it was reset. An error that the peer or the
//! network caused is expected; any other error (a lack of memory, the policy of a security module) is reported as well.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::event::{Event, EventSink};
use super::listener::ConnectionInfo;

/// Reports an error of a read or a write that ended a connection, unless the peer or the network caused it.
pub(crate) fn report(error: io::Error, info: &ConnectionInfo, sink: &EventSink) {
    if !Errno::from_io_error(&error).is_some_and(is_from_peer) {
        report_failure(error, info, sink);
    }
}

/// Reports an error that ended a connection through no fault of its peer.
pub(crate) fn report_failure(error: io::Error, info: &ConnectionInfo, sink: &EventSink) {
    let (listener, peer) = (Arc::clone(&info.listener.name), info.peer);
    sink.report(Event::ConnectionFailed { listener, peer, error });
}

/// Returns whether the peer or the network caused this error (recv(2), send(2), tcp(7), and the ICMP errors of ip(7)).
fn is_from_peer(error: Errno) -> bool {
    matches!(
        error,
        Errno::CONNRESET
            | Errno::CONNABORTED
            | Errno::CONNREFUSED
            | Errno::NOTCONN
            | Errno::PIPE
            | Errno::TIMEDOUT
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET
    )
}
