//! The text and the severity of the server's events.

use std::fmt;
use std::os::unix::ffi::OsStrExt;

use echoed::config::Level;
use echoed::escape::quote;
use echoed::protocol::Verdict;
use echoed::protocol::packet::DropCause;
use echoed::protocol::session::Totals;
use echoed::server::event::{Event, Retry};
use echoed::server::socket::SocketKind;
use echoed::units::format_age;

/// How urgent the beginning of a connection is.
pub(super) const OPENED: Level = Level::Debug;

/// Returns how urgent an event is. What a peer did is never more than `Info`; `Info` where it broke a rule.
pub(super) fn level(event: &Event) -> Level {
    match event {
        Event::ListenerFailed { .. } => Level::Error,
        Event::LimitReached { .. }
        | Event::AcceptPaused { .. }
        | Event::ConnectionFailed { .. }
        | Event::MessagesLost { .. } => Level::Warn,
        Event::AcceptResumed { .. } | Event::Message { .. } | Event::DatagramsDropped { .. } => Level::Info,
        Event::Opened { .. } | Event::Resumed { .. } => OPENED,
        Event::Closed { verdict, .. } => level_of_end(*verdict),
    }
}

/// Returns how urgent the end of a connection with this verdict is.
pub(super) fn level_of_end(verdict: Verdict) -> Level {
    match verdict {
        Verdict::TooLong
        | Verdict::ReadDeadline
        | Verdict::WriteDeadline
        | Verdict::TooMany { .. }
        | Verdict::Busy
        | Verdict::BadProxyHeader
        | Verdict::Reclaimed => Level::Info,
        Verdict::IdleDeadline
        | Verdict::Lifetime
        | Verdict::PeerClosed
        | Verdict::PeerReset
        | Verdict::Unterminated { .. }
        | Verdict::Shutdown
        | Verdict::HandedOver => Level::Debug,
    }
}

/// An event as a line of the log.
pub(super) struct Text<'a>(pub(super) &'a Event);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Event::Opened { id, listener, peer } => {
                write!(f, "connection {id} on {listener} from {peer}")
            }
            Event::Closed { id, listener, peer, verdict, totals, age, bad_header } => {
                write!(f, "connection {id} on {listener} from {peer} ended: {verdict}")?;
                if let Some(bad_header) = bad_header {
                    write!(f, " ({bad_header})")?;
                }
                match verdict {
                    Verdict::Unterminated { bytes } => write!(f, " ({bytes} bytes)")?,
                    Verdict::TooMany { limit } => write!(f, " (limits.connections_per_source={limit})")?,
                    _ => {}
                }
                let Totals { messages, bytes_in, bytes_out } = totals;
                let age = format_age(*age);
                write!(f, "; {messages} messages, {bytes_in} bytes in, {bytes_out} bytes out, {age}")
            }
            Event::Message { connection_id, listener, peer, received_at, text } => {
                let at = received_at.map(|time| format!(" at {}", humantime::format_rfc3339_nanos(time)));
                let at = at.unwrap_or_default();
                match connection_id {
                    Some(connection) => {
                        write!(f, "message on connection {connection} on {listener} from {peer}{at}: {text}")
                    }
                    None => write!(f, "message on {listener} from {peer}{at}: {text}"),
                }
            }
            Event::LimitReached { limit, awaiting_header: Some(count) } => {
                let s = if *count == 1 { "" } else { "s" };
                write!(
                    f,
                    "PROXY header limit reached ({count} connection{s}, a quarter of limits.connections={limit}), \
                     new connections wait in the backlog"
                )
            }
            Event::LimitReached { limit, awaiting_header: None } => {
                write!(f, "connection limit reached (limits.connections={limit}), new connections wait in the backlog")
            }
            Event::AcceptPaused { listener, kind, error, retry } => {
                let operation = if *kind == SocketKind::Datagram { "receive" } else { "accept" };
                let when = match retry {
                    Retry::ConnectionEnded => "when a connection ends",
                    Retry::After(_) => "after pauses of up to 1s",
                };
                write!(f, "failed to {operation} on {listener}: {error}; retrying {when}")
            }
            Event::AcceptResumed { listener, kind } => {
                let operation = if *kind == SocketKind::Datagram { "receiving" } else { "accepting" };
                write!(f, "{operation} on {listener} again")
            }
            Event::ListenerFailed { listener, error } => {
                write!(f, "failed to serve {listener}: {error}; this listener is no longer served")
            }
            Event::Resumed { id, listener, peer } => {
                write!(f, "connection {id} on {listener} from {peer} resumed")
            }
            Event::ConnectionFailed { listener, peer, error } => {
                write!(f, "failed to serve {peer} on {listener}: {error}; connection closed")
            }
            Event::MessagesLost { id, listener, peer, count } => {
                let s = if *count == 1 { "" } else { "s" };
                write!(
                    f,
                    "{count} message{s} on connection {id} on {listener} from {peer} could not be logged, and got no reply"
                )
            }
            Event::DatagramsDropped { listener, cause, count, last_peer, last_path } => {
                let (s, last) = if *count == 1 { ("", "") } else { ("s", "the last ") };
                write!(f, "{count} datagram{s} dropped on {listener}: {cause}")?;
                if *cause == DropCause::Kernel {
                    return f.write_str("; no room (ReceiveBuffer=), damaged, or refused by a filter (IPAddressDeny=)");
                }
                write!(f, "; {last}from {last_peer}")?;
                match (cause, last_path) {
                    (DropCause::UnsafeAddress, Some(path)) => write!(f, " at {}", quote(path.as_os_str().as_bytes())),
                    (DropCause::Rate, _) => f.write_str(" (limits.datagrams_per_source)"),
                    (DropCause::SendBuffer, _) => f.write_str(" (SendBuffer=)"),
                    _ => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use echoed::server::peer::Peer;

    use super::*;

    #[test]
    fn a_drop_names_the_path_that_is_unsafe_and_the_key_of_the_limit() {
        let dropped = |cause, count, path: Option<&[u8]>| Event::DatagramsDropped {
            listener: "echo".into(),
            cause,
            count,
            last_peer: Peer::Process { uid: 1000, pid: Some(7) },
            last_path: path.map(|path| Path::new(OsStr::from_bytes(path)).to_owned()),
        };
        let path = Some(&b"run/x\n\xff"[..]);
        for (event, text) in [
            (
                dropped(DropCause::UnsafeAddress, 1, path),
                r#"1 datagram dropped on echo: unsafe-address; from uid 1000 pid 7 at "run/x\n\xff""#,
            ),
            (
                dropped(DropCause::UnsafeAddress, 2, None),
                "2 datagrams dropped on echo: unsafe-address; the last from uid 1000 pid 7",
            ),
            (
                dropped(DropCause::Rate, 2, path),
                "2 datagrams dropped on echo: rate; the last from uid 1000 pid 7 (limits.datagrams_per_source)",
            ),
            (dropped(DropCause::NoRoom, 1, path), "1 datagram dropped on echo: no-room; from uid 1000 pid 7"),
            (
                dropped(DropCause::SendBuffer, 2, None),
                "2 datagrams dropped on echo: send-buffer; the last from uid 1000 pid 7 (SendBuffer=)",
            ),
            (
                dropped(DropCause::Kernel, 3, None),
                "3 datagrams dropped on echo: kernel; \
                    no room (ReceiveBuffer=), damaged, or refused by a filter (IPAddressDeny=)",
            ),
        ] {
            assert_eq!(Text(&event).to_string(), text);
        }
    }

    #[test]
    fn messages_say_whose_they_are_and_those_that_are_lost_are_a_warning() {
        let (listener, peer) = (Arc::<str>::from("echo"), Peer::Unknown);
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_796_026_177_023_000_001);
        for (connection_id, received_at, expected) in [
            (Some(7), None, "message on connection 7 on echo from unknown: \"a\""),
            (None, None, "message on echo from unknown: \"a\""),
            (None, Some(time), "message on echo from unknown at 2026-11-30T08:09:37.023000001Z: \"a\""),
        ] {
            let (listener, text) = (Arc::clone(&listener), "\"a\"".to_owned());
            let message = Event::Message { connection_id, listener, peer, received_at, text };
            assert_eq!(Text(&message).to_string(), expected);
            assert_eq!(level(&message), Level::Info);
        }
        for (count, begin) in [(1, "1 message on"), (2, "2 messages on")] {
            let lost = Event::MessagesLost { id: 7, listener: Arc::clone(&listener), peer, count };
            let end = "connection 7 on echo from unknown could not be logged, and got no reply";
            assert_eq!(Text(&lost).to_string(), format!("{begin} {end}"));
            assert_eq!(level(&lost), Level::Warn);
        }
    }
}
