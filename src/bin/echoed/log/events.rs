//! The entries of the server's events: their texts and their fields.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use echoed::escape::quote;
use echoed::protocol::Verdict;
use echoed::protocol::packet::DropCause;
use echoed::protocol::session::Totals;
use echoed::server::event::{Event, LameDuckCause, Retry};
use echoed::server::peer::Peer;
use echoed::server::socket::SocketKind;
use echoed::systemd::journal::LogEntry;
use echoed::units::format_age;

use super::plural;

/// Returns an entry about what a process asked for on a control socket.
fn by_caller(caller: &Peer, text: String) -> LogEntry {
    let (caller_uid, caller_pid) = match caller {
        Peer::Process { uid, pid } => (Some(*uid), *pid),
        Peer::Ip(_) | Peer::Proxied(_) | Peer::Unknown => (None, None),
    };
    LogEntry { text, caller_uid, caller_pid, ..LogEntry::default() }
}

/// Returns a caller in words. All that is known, also of a user that has no UID here: its process can be looked up.
fn name_caller(caller: &Peer) -> String {
    match caller {
        Peer::Process { uid, pid: Some(pid) } => format!("uid {uid} pid {pid}"),
        Peer::Process { uid, pid: None } => format!("uid {uid}"),
        Peer::Ip(_) | Peer::Proxied(_) | Peer::Unknown => caller.to_string(),
    }
}

/// Returns an entry about lame duck. `method` is what a process has called for it, `effect` what it means.
fn about_lame_duck(cause: LameDuckCause, change: &str, method: &str, effect: &str) -> LogEntry {
    match cause {
        LameDuckCause::Caller(caller) => {
            by_caller(&caller, format!("{change} {} called {method}; {effect}", name_caller(&caller)))
        }
        LameDuckCause::Signal(name) => LogEntry { text: format!("{change} {name}; {effect}"), ..LogEntry::default() },
    }
}

/// Returns the entry of an event.
pub(super) fn entry(event: &Event) -> LogEntry {
    match event {
        Event::Opened { id, listener, peer } => LogEntry {
            text: format!("connection {id} on {listener} from {peer}"),
            connection: Some(*id),
            ..about_peer(listener, peer)
        },
        Event::Closed { id, listener, peer, verdict, totals, age, bad_header } => {
            let reason = bad_header.as_ref().map(|bad_header| format!(" ({bad_header})")).unwrap_or_default();
            let number = match verdict {
                Verdict::Unterminated { bytes } => format!(" ({bytes} bytes)"),
                Verdict::TooMany { limit } => format!(" (limits.connections_per_source={limit})"),
                _ => String::new(),
            };
            let Totals { messages, bytes_in, bytes_out } = *totals;
            LogEntry {
                text: format!(
                    "connection {id} on {listener} from {peer} ended: {verdict}{reason}{number}; \
                     {messages} messages, {bytes_in} bytes in, {bytes_out} bytes out, {}",
                    format_age(*age)
                ),
                connection: Some(*id),
                verdict: Some(verdict.name()),
                reason: bad_header.as_ref().map(|bad_header| bad_header.fault.name()),
                bytes_in: Some(bytes_in),
                bytes_out: Some(bytes_out),
                messages: Some(messages),
                ..about_peer(listener, peer)
            }
        }
        Event::Message { connection_id, listener, peer, received_at, text } => {
            let at = received_at.map(|time| format!(" at {}", humantime::format_rfc3339_nanos(time)));
            let at = at.unwrap_or_default();
            LogEntry {
                text: match connection_id {
                    Some(id) => format!("message on connection {id} on {listener} from {peer}{at}: {text}"),
                    None => format!("message on {listener} from {peer}{at}: {text}"),
                },
                connection: *connection_id,
                received_at: *received_at,
                ..about_peer(listener, peer)
            }
        }
        Event::LimitReached { limit, awaiting_header } => LogEntry {
            text: match awaiting_header {
                Some(count) => format!(
                    "PROXY header limit reached ({count} connection{}, a quarter of limits.connections={limit}), \
                     new connections wait in the backlog",
                    plural(*count)
                ),
                None => format!(
                    "connection limit reached (limits.connections={limit}), new connections wait in the backlog"
                ),
            },
            ..LogEntry::default()
        },
        Event::AcceptPaused { listener, kind, error, retry } => {
            let operation = if *kind == SocketKind::Datagram { "receive" } else { "accept" };
            let when = match retry {
                Retry::ConnectionEnded => "when a connection ends",
                Retry::After(_) => "after pauses of up to 1s",
            };
            LogEntry {
                text: format!("failed to {operation} on {listener}: {error}; retrying {when}"),
                ..about_listener(listener)
            }
        }
        Event::AcceptResumed { listener, kind } => {
            let operation = if *kind == SocketKind::Datagram { "receiving" } else { "accepting" };
            LogEntry { text: format!("{operation} on {listener} again"), ..about_listener(listener) }
        }
        Event::ListenerFailed { listener, error } => LogEntry {
            text: format!("failed to serve {listener}: {error}; this listener is no longer served"),
            ..about_listener(listener)
        },
        Event::Resumed { id, listener, peer } => LogEntry {
            text: format!("connection {id} on {listener} from {peer} resumed"),
            connection: Some(*id),
            ..about_peer(listener, peer)
        },
        Event::ConnectionFailed { listener, peer, error } => LogEntry {
            text: format!("failed to serve {peer} on {listener}: {error}; connection closed"),
            ..about_peer(listener, peer)
        },
        Event::MessagesLost { id, listener, peer, count } => LogEntry {
            text: format!(
                "{count} message{} on connection {id} on {listener} from {peer} could not be logged, and got no reply",
                plural(*count)
            ),
            connection: Some(*id),
            ..about_peer(listener, peer)
        },
        Event::CloseRequested { id, caller } => {
            let text = format!("closing connection {id}: {} called Close", name_caller(caller));
            LogEntry { connection: Some(*id), ..by_caller(caller, text) }
        }
        Event::LameDuckBegan { cause } => {
            let text = "load balancers are told to send new clients elsewhere";
            about_lame_duck(*cause, "lame duck began:", "Drain", text)
        }
        Event::LameDuckEnded { cause, has_ended: false } => {
            about_lame_duck(*cause, "lame duck goes on:", "Resume", "the daemon is about to stop")
        }
        Event::LameDuckEnded { cause, has_ended: true } => {
            about_lame_duck(*cause, "lame duck ended:", "Resume", "load balancers may send new clients again")
        }
        Event::DatagramsDropped { listener, cause, count, last_peer, last_path } => {
            let (s, last) = if *count == 1 { ("", "") } else { ("s", "the last ") };
            let details = match (cause, last_path) {
                (DropCause::Kernel, _) => {
                    "no room (ReceiveBuffer=), damaged, or refused by a filter (IPAddressDeny=)".to_owned()
                }
                (DropCause::UnsafeAddress, Some(path)) => {
                    format!("{last}from {last_peer} at {}", quote(path.as_os_str().as_bytes()))
                }
                (DropCause::Rate, _) => format!("{last}from {last_peer} (limits.datagrams_per_source)"),
                (DropCause::SendBuffer, _) => format!("{last}from {last_peer} (SendBuffer=)"),
                _ => format!("{last}from {last_peer}"),
            };
            LogEntry {
                text: format!("{count} datagram{s} dropped on {listener}: {cause}; {details}"),
                verdict: Some(cause.name()),
                ..about_peer(listener, last_peer)
            }
        }
    }
}

fn about_listener(listener: &Arc<str>) -> LogEntry {
    LogEntry { listener: Some(Arc::clone(listener)), ..LogEntry::default() }
}

fn about_peer(listener: &Arc<str>, peer: &Peer) -> LogEntry {
    LogEntry { peer: Some(peer.to_string()), ..about_listener(listener) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use echoed::config::Level;
    use echoed::server::peer::Peer;

    use super::*;
    use crate::log::kinds::of_event;

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
            assert_eq!(entry(&event).text, text);
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
            assert_eq!(entry(&message).text, expected);
            assert_eq!(of_event(&message).level, Level::Info);
        }
        for (count, begin) in [(1, "1 message on"), (2, "2 messages on")] {
            let lost = Event::MessagesLost { id: 7, listener: Arc::clone(&listener), peer, count };
            let end = "connection 7 on echo from unknown could not be logged, and got no reply";
            assert_eq!(entry(&lost).text, format!("{begin} {end}"));
            assert_eq!(of_event(&lost).level, Level::Warn);
        }
    }
}
