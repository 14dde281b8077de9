//! The PROXY protocol (haproxy.org, doc/proxy-protocol.txt), versions 1 and 2: what a load balancer says of the client
//! before anything else.
//!
//! ```text
//! 1   "PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n"
//! 2   0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a            its signature
//!     21                                             version 2, PROXY (20: LOCAL)
//!     11                                             IPv4, stream
//!     00 0c                                          how many bytes follow
//!     c0 00 02 01  c6 33 64 07  9c bb  1f 95         from, to; their ports; then anything else (TLVs), ignored
//! ```
//!
//! A connection whose listener demands the header waits for it apart from those that are served, and costs them
//! nothing. The header is looked at in the kernel's buffer, and taken out when it is complete, and not a byte more: so
//! what lies behind it is the connection's first input, as if there had been no header.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net as unix;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_header::ParseConfig;
use rustix::io::retry_on_intr;
use rustix::net::sockopt::socket_error;
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time;

use super::accept::Dispatcher;
use super::admission::Permit;
use super::connection::{Connection, ConnectionInfo, clock};
use super::event::Event;
use super::socket::Peer;
use crate::protocol::rules::TimeSpan;
use crate::protocol::{Session, Verdict};

/// The longest header, in bytes.
pub const MAX_HEADER: usize = 4096;

/// The longest header of version 1, in bytes, its line feed among them.
const MAX_V1_LEN: usize = 107;

/// How long a header may take where `deadlines.read` is off. The standard asks for 3 s at least, for one lost packet.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

const V1_PREFIX: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The bytes of version 2 before those that it counts.
const V2_FIXED_LEN: usize = 16;

/// What some bytes are that a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderParse {
    /// The beginning of a header.
    Incomplete,
    /// A header.
    Complete {
        /// Its length in bytes; more may follow it.
        len: usize,
        /// The client that the load balancer speaks for; `None` where it does not say (UNKNOWN, LOCAL, and addresses
        /// that are not of the internet).
        client: Option<SocketAddr>,
    },
    /// No header, whatever follows.
    Invalid,
}

impl HeaderParse {
    /// Parses the first bytes of a connection.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        if bytes.starts_with(V1_PREFIX) {
            Self::parse_v1(bytes)
        } else if bytes.starts_with(V2_SIGNATURE) {
            Self::parse_v2(bytes)
        } else if V1_PREFIX.starts_with(bytes) || V2_SIGNATURE.starts_with(bytes) {
            Self::Incomplete
        } else {
            Self::Invalid
        }
    }

    fn parse_v1(bytes: &[u8]) -> Self {
        let within = &bytes[..bytes.len().min(MAX_V1_LEN)];
        match memchr::memchr(b'\n', within) {
            Some(at) => Self::parse_complete(&bytes[..=at]),
            None if bytes.len() < MAX_V1_LEN => Self::Incomplete,
            None => Self::Invalid,
        }
    }

    fn parse_v2(bytes: &[u8]) -> Self {
        let Some(&[command, _, high, low]) = bytes.get(V2_SIGNATURE.len()..V2_FIXED_LEN) else {
            return Self::Incomplete;
        };
        let len = V2_FIXED_LEN + usize::from(u16::from_be_bytes([high, low]));
        if !matches!(command, 0x20 | 0x21) || len > MAX_HEADER {
            return Self::Invalid;
        }
        match bytes.get(..len) {
            None => Self::Incomplete,
            // Of the load balancer's own accord, such as a health check: whatever else it says does not count.
            Some(_) if command == 0x20 => Self::Complete { len, client: None },
            Some(header) => Self::parse_complete(header),
        }
    }

    /// Parses a complete header.
    fn parse_complete(header: &[u8]) -> Self {
        let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
        match proxy_header::ProxyHeader::parse(header, config) {
            Ok((parsed, len)) if len == header.len() => {
                let client = parsed.proxied_address().map(|address| address.source);
                let client = client.map(|client| SocketAddr::new(client.ip().to_canonical(), client.port()));
                Self::Complete { len, client }
            }
            _ => Self::Invalid,
        }
    }
}

/// What came of waiting for a header.
enum HeaderOutcome {
    Header(Option<SocketAddr>),
    /// There will be none that is right, or not in time.
    Invalid,
    /// The connection ended before its first byte. The event loop sees that as well.
    ClosedEarly,
    /// The connection broke.
    Broken,
    /// The server stops.
    Cancelled,
}

/// A connection that was accepted and waits for its header.
pub(crate) struct PendingHeader {
    pub(crate) socket: OwnedFd,
    pub(crate) session: Session,
    pub(crate) info: ConnectionInfo,
    pub(crate) permit: Permit,
}

impl PendingHeader {
    /// Waits for the header in a task on one of the workers. Then the connection is served, or refused.
    pub(crate) fn spawn(self, dispatcher: &Arc<Dispatcher>) {
        let number = usize::try_from(self.info.id).unwrap_or_default();
        let Some(worker) = dispatcher.workers.get(number % dispatcher.workers.len().max(1)) else { return };
        let (cancelled, dispatcher) = (dispatcher.pending_cancelled.subscribe(), Arc::clone(dispatcher));
        worker.spawn(async move { self.wait(cancelled, &dispatcher).await });
    }

    /// `cancelled` is kept to the end: [`Dispatcher::cancel_pending`] waits until it is dropped.
    async fn wait(self, mut cancelled: watch::Receiver<bool>, dispatcher: &Dispatcher) {
        let Self { socket, mut session, mut info, mut permit } = self;
        let (socket, outcome) = match read_header_before(socket, deadline(&session), &mut cancelled).await {
            Ok(waited) => waited,
            Err(error) => {
                let listener = Arc::clone(&info.listener.name);
                return (dispatcher.handle_event)(Event::SetupFailed { listener, peer: info.peer, error });
            }
        };
        let now = clock();
        match outcome {
            HeaderOutcome::Header(client) => {
                session.note_activity(now);
                if let Some(client) = client {
                    info.peer = Peer::Proxied(client);
                    let held = permit.claim(info.peer.source());
                    let claimed = if held { Ok(()) } else { dispatcher.claim_or_refuse(&mut permit).await };
                    if let Err(verdict) = claimed {
                        let Some(refused) = permit.refuse() else { return };
                        permit = refused;
                        session.refuse(verdict, now);
                    }
                }
            }
            HeaderOutcome::Invalid => session.refuse(Verdict::BadProxyHeader, now),
            HeaderOutcome::ClosedEarly => {}
            HeaderOutcome::Broken => session.handle_reset(),
            HeaderOutcome::Cancelled => session.drain(now),
        }
        let Some(worker) = dispatcher.least_loaded_worker() else { return };
        worker.serve(Box::new(Connection::new(socket, session, info, worker, permit)));
    }
}

/// Until when the header of a connection that has just begun has to be there.
fn deadline(session: &Session) -> Instant {
    let limit = session.rules().deadlines.read.as_ref().map_or(DEFAULT_TIMEOUT, TimeSpan::duration);
    session.opened().checked_add(limit).unwrap_or_else(|| session.opened() + DEFAULT_TIMEOUT)
}

/// Waits for the header until the deadline, or until it is cancelled, and consumes it.
async fn read_header_before(
    socket: OwnedFd,
    until: Instant,
    cancelled: &mut watch::Receiver<bool>,
) -> io::Result<(OwnedFd, HeaderOutcome)> {
    let stream = UnixStream::from_std(unix::UnixStream::from(socket))?;
    let outcome = tokio::select! {
        // What came while this process was stopped is not late.
        biased;
        outcome = read_header(&stream) => outcome,
        () = time::sleep_until(until.into()) => HeaderOutcome::Invalid,
        // An error means that the server is gone.
        _ = cancelled.wait_for(|cancelled| *cancelled) => HeaderOutcome::Cancelled,
    };
    Ok((stream.into_std()?.into(), outcome))
}

/// Waits for the header, and consumes it.
async fn read_header(stream: &UnixStream) -> HeaderOutcome {
    loop {
        let Ok(ready) = stream.ready(Interest::READABLE).await else { return HeaderOutcome::Broken };
        // If it is incomplete, the error clears the readiness in the reactor, which reports when there is more.
        let peeked = stream.try_io(Interest::READABLE, || match peek_header(stream)? {
            Some(HeaderParse::Incomplete) => Err(ErrorKind::WouldBlock.into()),
            found => Ok(found),
        });
        match peeked {
            Ok(Some(HeaderParse::Complete { len, client })) => {
                return if consume(stream, len).is_ok() {
                    HeaderOutcome::Header(client)
                } else {
                    HeaderOutcome::Broken
                };
            }
            Ok(Some(_)) => return HeaderOutcome::Invalid,
            Ok(None) => return HeaderOutcome::ClosedEarly,
            // All that will ever come was there before it was looked at.
            Err(error) if error.kind() == ErrorKind::WouldBlock && ready.is_read_closed() => {
                return if let Ok(Ok(())) = socket_error(stream) {
                    HeaderOutcome::Invalid
                } else {
                    HeaderOutcome::Broken
                };
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return HeaderOutcome::Broken,
        }
    }
}

/// Parses what has come so far, and does not consume it; `None` at the end of the stream.
fn peek_header(socket: impl AsFd) -> io::Result<Option<HeaderParse>> {
    let mut bytes = [0; MAX_HEADER];
    let (count, _) = retry_on_intr(|| recv(&socket, &mut bytes[..], RecvFlags::PEEK))?;
    Ok((count > 0).then(|| HeaderParse::parse(&bytes[..count])))
}

/// Consumes so many bytes of the stream, which are there already.
fn consume(socket: impl AsFd, len: usize) -> io::Result<()> {
    let mut bytes = [0; MAX_HEADER];
    let mut consumed = 0;
    while consumed < len {
        let (count, _) = retry_on_intr(|| recv(&socket, &mut bytes[consumed..len], RecvFlags::empty()))?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        consumed += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::rules::{Deadlines, Rules};

    fn complete(len: usize, client: &str) -> HeaderParse {
        HeaderParse::Complete { len, client: client.parse().ok() }
    }

    /// A header of version 2.
    fn v2_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &len, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0x9c, 0xbb, 0x1f, 0x95];

    fn v6() -> Vec<u8> {
        let (from, to) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let octets = |ip: std::net::Ipv6Addr| ip.octets();
        [&octets(from)[..], &octets(to), &[0x9c, 0xbb, 0x1f, 0x95]].concat()
    }

    /// Headers, and the clients that they name; `-` where there is none.
    fn valid_headers() -> Vec<(Vec<u8>, &'static str)> {
        let unix = [0; 216];
        let with_more = [&V4[..], &[3, 0, 4, 1, 2, 3, 4]].concat();
        let long = [&V4[..], &[0xe0, 0x0f, 0xe1], &[b'x'; 4065]].concat();
        vec![
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n".to_vec(), "192.0.2.1:40123"),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 40123 8085\r\n".to_vec(), "[2001:db8::1]:40123"),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n".to_vec(), "192.0.2.1:1"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "-"),
            ([b"PROXY UNKNOWN ", &[b'f'; 91][..], b"\r\n"].concat(), "-"),
            (v2_header(0x21, 0x11, &V4), "192.0.2.1:40123"),
            (v2_header(0x21, 0x12, &V4), "192.0.2.1:40123"),
            (v2_header(0x21, 0x21, &v6()), "[2001:db8::1]:40123"),
            (v2_header(0x21, 0x11, &with_more), "192.0.2.1:40123"),
            (v2_header(0x21, 0x11, &long), "192.0.2.1:40123"),
            (v2_header(0x21, 0x00, &[]), "-"),
            (v2_header(0x21, 0x31, &unix), "-"),
            (v2_header(0x20, 0x00, &[]), "-"),
            (v2_header(0x20, 0x11, &V4), "-"),
            (v2_header(0x20, 0x99, &[1, 2, 3]), "-"),
        ]
    }

    /// How long it takes until a connection without a header is given up.
    async fn header_timeout(read: Option<TimeSpan>) -> Duration {
        let (_silent, socket) = unix::UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let (begun, cancelled) = (time::Instant::now(), watch::Sender::new(false));
        let rules = Rules { deadlines: Deadlines { read, ..Deadlines::default() }, ..Rules::default() };
        let session = Session::new(rules.into(), begun.into());
        let waited = read_header_before(socket.into(), deadline(&session), &mut cancelled.subscribe()).await;
        assert!(matches!(waited, Ok((_, HeaderOutcome::Invalid))));
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_has_the_read_deadline_or_else_10_s() {
        for (read, expected) in [(Some(2), 2), (Some(60), 60), (None, 10)] {
            let took = header_timeout(read.map(|read| TimeSpan::new(Duration::from_secs(read), "so long"))).await;
            // The timer is as fine as a millisecond.
            assert_eq!(took.as_secs(), expected, "{took:?}");
        }
    }

    #[test]
    fn headers_are_parsed_without_the_bytes_behind_them() {
        for (header, client) in valid_headers() {
            let expected = complete(header.len(), client);
            assert_eq!(HeaderParse::parse(&header), expected, "{}", header.escape_ascii());
            for more in [&b"aaaa\t"[..], b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n", &[0; 5000]] {
                let bytes = [&header, more].concat();
                assert_eq!(HeaderParse::parse(&bytes), expected, "{}", header.escape_ascii());
            }
        }
    }

    #[test]
    fn every_prefix_of_a_header_is_incomplete() {
        for (header, _) in valid_headers() {
            for end in 0..header.len() {
                assert_eq!(
                    HeaderParse::parse(&header[..end]),
                    HeaderParse::Incomplete,
                    "{}",
                    header[..end].escape_ascii()
                );
            }
        }
    }

    #[test]
    fn invalid_headers_are_rejected_as_soon_as_possible() {
        let too_long = [&V4[..], &[b'x'; MAX_HEADER - V2_FIXED_LEN - 11]].concat();
        for invalid in [
            &b"aaaa\t"[..],
            b"\t",
            b"PROXx",
            b"proxy TCP4 ",
            b"PROXY\r\n",
            b"PROXY \n",
            b"PROXY UNKNOWN\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 40123\r\n",
            b"PROXY TCP4 192.0.2.256 198.51.100.7 40123 8085\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 40123 8085\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 65536 8085\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.7 40123 8085\r\n",
            b"\r\n\r\nx",
            &[V1_PREFIX, &[b'x'; MAX_V1_LEN - V1_PREFIX.len()]].concat(),
            &[b"PROXY UNKNOWN ", &[b'f'; 92][..], b"\r\n"].concat(),
            &v2_header(0x11, 0x11, &V4),
            &v2_header(0x22, 0x11, &V4),
            &v2_header(0x21, 0x11, &V4[..11]),
            &v2_header(0x21, 0x21, &V4),
            &v2_header(0x21, 0x31, &[0; 215]),
            &v2_header(0x21, 0x99, &[]),
            &v2_header(0x21, 0x11, &too_long)[..V2_FIXED_LEN],
            &v2_header(0x20, 0x00, &too_long)[..V2_FIXED_LEN],
        ] {
            assert_eq!(HeaderParse::parse(invalid), HeaderParse::Invalid, "{}", invalid.escape_ascii());
        }
    }
}
