//! Connects to an address, under one deadline for everything that this takes.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, sleep, timeout_at};

use super::quote::reason;
use crate::address::{Address, Family, UnixName};
use crate::pass_rights::refuse_descriptors;
use crate::units::format_time;

/// A connected stream socket of any family. Once it is connected, TCP too is read, written and shut down by the same
/// calls as a Unix socket, so that one type will do.
pub type Stream = UnixStream;

/// How long to wait before retrying a Unix socket whose backlog is full.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The addresses of echoed.socket.
const DEFAULT_TCP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8085);
const DEFAULT_UNIX: &str = "/run/echoed.sock";

/// Why there is no connection. Each is a sentence that says what to do; in the alternate form (`{:#}`) without the latter where
/// no server listens.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The host's name could not be looked up.
    Lookup {
        /// The address.
        address: Address,
        /// The error of the resolver.
        error: io::Error,
    },
    /// The host has no address of the family that was asked for.
    NoAddress {
        /// The address.
        address: Address,
    },
    /// None of the host's addresses answered in time.
    TimedOut {
        /// The address.
        address: Address,
        /// The time that there was.
        limit: Duration,
    },
    /// None of the host's addresses took the connection.
    Refused {
        /// The address.
        address: Address,
        /// The error of each of them, in turn; at least one.
        attempts: Vec<(SocketAddr, io::Error)>,
    },
    /// The Unix socket did not take the connection, or the first packet.
    Unix {
        /// The address.
        address: Address,
        /// The error of connect(2).
        error: io::Error,
    },
    /// A stream is required, and the address is one of packets.
    StreamRequired {
        /// The address.
        address: Address,
    },
    /// Packets are required, and the address is one of a stream.
    PacketsRequired {
        /// The address.
        address: Address,
    },
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup { address, error } => {
                let reason = reason(error);
                let reason = reason.strip_prefix("failed to lookup address information: ").unwrap_or(&reason);
                write!(f, "cannot look up the host of {address}: {reason}; is its name right?")
            }
            Self::NoAddress { address } => {
                write!(f, "cannot connect to {address}: the host has no address of that family; write tcp: for any")
            }
            Self::TimedOut { address, limit } => write!(
                f,
                "cannot connect to {address}: timed out after {} (--connect-timeout); \
                 is the host up, and its service not overloaded?",
                format_time(*limit)
            ),
            Self::Refused { address, attempts } => {
                write!(f, "cannot connect to {address}: ")?;
                let mut reasons: Vec<_> = attempts.iter().map(|(_, error)| reason(error)).collect();
                reasons.dedup();
                if reasons.len() == 1 {
                    f.write_str(&reasons[0])?;
                } else {
                    for (index, (address, error)) in attempts.iter().enumerate() {
                        let comma = if index > 0 { ", " } else { "" };
                        write!(f, "{comma}{address}: {}", reason(error))?;
                    }
                }
                let hints = attempts.iter().find_map(|(address, error)| tcp_hint(address, error));
                f.write_str(hints.filter(|_| !f.alternate()).unwrap_or_default())
            }
            Self::Unix { address, error } => {
                let hint = if f.alternate() { "" } else { unix_hint(address, error) };
                write!(f, "cannot connect to {address}: {}{hint}", reason(error))
            }
            Self::StreamRequired { address } => {
                write!(f, "cannot connect to {address}: this takes a stream; write tcp:HOST:PORT or unix:/PATH")
            }
            Self::PacketsRequired { address } => {
                write!(f, "cannot connect to {address}: this takes packets; write udp:HOST:PORT or seqpacket:/PATH")
            }
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lookup { error, .. } | Self::Unix { error, .. } => Some(error),
            Self::Refused { attempts, .. } => attempts.last().map(|(_, error)| error as _),
            Self::NoAddress { .. }
            | Self::TimedOut { .. }
            | Self::StreamRequired { .. }
            | Self::PacketsRequired { .. } => None,
        }
    }
}

/// Returns what to look at where no server listens. `is_default`: the address is one of echoed.socket.
fn start_hint(is_default: bool) -> &'static str {
    if is_default {
        "; is echoed.socket started (systemctl status echoed.socket)?"
    } else {
        "; does a server listen there?"
    }
}

fn tcp_hint(address: &SocketAddr, error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        ErrorKind::ConnectionRefused => Some(start_hint(*address == DEFAULT_TCP)),
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
            Some("; is the network up, and the address right?")
        }
        ErrorKind::PermissionDenied => Some("; does a firewall or a sandbox forbid it?"),
        _ => None,
    }
}

fn unix_hint(address: &Address, error: &io::Error) -> &'static str {
    if Errno::from_io_error(error) == Some(Errno::PROTOTYPE) {
        return "; it is of another kind: unix:, seqpacket: or unixgram:";
    }
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => {
            start_hint(*address == Address::Unix(UnixName::Path(DEFAULT_UNIX.into())))
        }
        ErrorKind::PermissionDenied => {
            "; may this user write to it (SocketMode=, SocketUser=, SocketGroup= of echoed.socket)?"
        }
        _ => "",
    }
}

/// Connects to the stream `address` within `limit`, the lookup of its name included. A host's addresses are tried one
/// after the other; one that does not answer may take an equal share of the time that is left, so that the others are
/// tried too.
///
/// # Errors
/// Returns an error if the server cannot be reached; see [`ConnectError`]. Returns
/// [`ConnectError::StreamRequired`] if `address` is one of packets.
pub async fn connect(address: &Address, limit: Duration) -> Result<Stream, ConnectError> {
    let deadline = Instant::now() + limit;
    let timed_out = |_| ConnectError::TimedOut { address: address.clone(), limit };
    let connected = match address {
        Address::Tcp { family, host, port } => {
            let resolved = look_up(address, *family, host, *port, deadline, limit).await?;
            return connect_any(address, resolved, deadline, limit).await;
        }
        Address::Unix(name) => timeout_at(deadline, connect_unix(name)).await,
        Address::Udp { .. } | Address::Seqpacket(_) | Address::Unixgram(_) => {
            return Err(ConnectError::StreamRequired { address: address.clone() });
        }
    };
    connected.map_err(timed_out)?.map_err(|error| ConnectError::Unix { address: address.clone(), error })
}

/// Looks up the addresses of a host, in the order in which the resolver returns them.
pub(super) async fn look_up(
    address: &Address,
    family: Family,
    host: &str,
    port: u16,
    deadline: Instant,
    limit: Duration,
) -> Result<Vec<SocketAddr>, ConnectError> {
    let resolved = timeout_at(deadline, lookup_host((host, port))).await;
    let resolved = resolved.map_err(|_| ConnectError::TimedOut { address: address.clone(), limit })?;
    let resolved = resolved.map_err(|error| ConnectError::Lookup { address: address.clone(), error })?;
    let wanted = |resolved: &SocketAddr| match family {
        Family::Any => true,
        Family::V4 => resolved.is_ipv4(),
        Family::V6 => resolved.is_ipv6(),
    };
    Ok(resolved.filter(wanted).collect())
}

/// Returns the first connection that is established.
async fn connect_any(
    address: &Address,
    resolved: Vec<SocketAddr>,
    deadline: Instant,
    limit: Duration,
) -> Result<Stream, ConnectError> {
    let mut attempts: Vec<(SocketAddr, io::Error)> = Vec::new();
    for (left, candidate) in (1_u32..=u32::try_from(resolved.len()).unwrap_or(u32::MAX)).rev().zip(resolved) {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / left;
        match timeout_at(now + share, connect_tcp(candidate)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => attempts.push((candidate, error)),
            Err(_) => attempts.push((candidate, ErrorKind::TimedOut.into())),
        }
    }
    let address = address.clone();
    if attempts.is_empty() {
        return Err(ConnectError::NoAddress { address });
    }
    if attempts.iter().all(|(_, error)| error.kind() == ErrorKind::TimedOut && error.raw_os_error().is_none()) {
        return Err(ConnectError::TimedOut { address, limit });
    }
    Err(ConnectError::Refused { address, attempts })
}

async fn connect_tcp(address: SocketAddr) -> io::Result<Stream> {
    let stream = TcpStream::connect(address).await?;
    // If no socket listens on the port and the kernel gave this very port to ours, TCP connects it to itself (RFC 9293,
    // 3.5).
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    UnixStream::from_std(net::UnixStream::from(OwnedFd::from(stream.into_std()?)))
}

async fn connect_unix(name: &UnixName) -> io::Result<Stream> {
    let (socket, address) = (open_unix_socket(SocketType::STREAM)?, unix_socket_address(name)?);
    loop {
        match rustix::net::connect(&socket, &address) {
            // A full backlog. Unlike TCP, a Unix socket does not queue us, and no event says when there is room.
            Err(Errno::AGAIN) => sleep(RETRY_INTERVAL).await,
            result => {
                result?;
                return UnixStream::from_std(net::UnixStream::from(socket));
            }
        }
    }
}

/// Opens a Unix socket to which the server cannot send descriptors. Receiving them would close them, which may take as
/// long as the server likes, whatever the timeout. A kernel that cannot refuse them (before Linux 6.16) lets the server
/// hurt only this client.
pub(super) fn open_unix_socket(kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
    refuse_descriptors(&socket);
    Ok(socket)
}

pub(super) fn unix_socket_address(name: &UnixName) -> io::Result<SocketAddrUnix> {
    Ok(match name {
        UnixName::Path(path) => SocketAddrUnix::new(path)?,
        UnixName::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn bind_listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn address_that_does_not_answer_leaves_time_for_the_next_one() {
        let (silent, first) = bind_listener();
        // Its backlog holds one connection, and then no answer comes.
        rustix::net::listen(&silent, 0).unwrap();
        let _waiting = TcpStream::connect(first).await.unwrap();
        let (_listener, second) = bind_listener();
        let address: Address = "tcp:localhost:1".parse().unwrap();

        let limit = Duration::from_secs(1);
        let start = Instant::now();
        connect_any(&address, vec![first, second], start + limit, limit).await.unwrap();
        assert!((500..1000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());

        let limit = Duration::from_millis(100);
        let error = connect_any(&address, vec![first, first], Instant::now() + limit, limit).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("cannot connect to tcp:localhost:1: timed out after 100ms"), "{text}");
    }

    #[tokio::test]
    async fn error_names_the_failure_of_each_address() {
        let (silent, first) = bind_listener();
        rustix::net::listen(&silent, 0).unwrap();
        let _waiting = TcpStream::connect(first).await.unwrap();
        let (_, second) = bind_listener();
        let address: Address = "tcp:localhost:1".parse().unwrap();
        let limit = Duration::from_millis(200);
        let error = connect_any(&address, vec![first, second], Instant::now() + limit, limit).await.unwrap_err();
        let each = format!("cannot connect to tcp:localhost:1: {first}: timed out, {second}: Connection refused");
        assert_eq!(error.to_string(), format!("{each}; does a server listen there?"));
        let error = connect_any(&address, vec![second, second], Instant::now() + limit, limit).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot connect to tcp:localhost:1: Connection refused; does a server listen there?")
        );
    }

    #[test]
    fn only_the_addresses_of_the_socket_unit_have_a_hint_at_it_and_only_once() {
        let refused = |port| {
            let address = Address::Tcp { family: Family::Any, host: "localhost".to_owned(), port };
            let error = io::Error::from(ErrorKind::ConnectionRefused);
            ConnectError::Refused { address, attempts: vec![((Ipv4Addr::LOCALHOST, port).into(), error)] }
        };
        let missing = |path: &str| ConnectError::Unix {
            address: Address::Unix(UnixName::Path(path.into())),
            error: io::Error::from(ErrorKind::NotFound),
        };
        for (error, is_default) in [
            (refused(8085), true),
            (refused(9), false),
            (missing("/run/echoed.sock"), true),
            (missing("/run/x"), false),
        ] {
            let text = error.to_string();
            let hint = "; is echoed.socket started (systemctl status echoed.socket)?";
            assert_eq!(text.ends_with(hint), is_default, "{text}");
            assert_eq!(text.ends_with("; does a server listen there?"), !is_default, "{text}");
            assert!(!format!("{error:#}").contains(';'), "{error:#}");
        }
    }
}
