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
//! nothing. What comes is looked at in the kernel's buffer first. While the header is incomplete, all of it belongs to
//! the header and is consumed, so the kernel's buffer may be smaller than the header. Once it is complete, not a byte
//! more is consumed: so what lies behind it is the connection's first input, as if there had been no header.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::net as unix;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use proxy_header::ParseConfig;
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time;

use super::accept::Dispatcher;
use super::admission::Permit;
use super::connection::{Connection, ConnectionInfo, clock};
use super::disposal::Disposal;
use super::event::{Event, quote};
use super::peer_descriptors::{self, PeerDescriptors};
use super::socket::{AcceptedSocket, Peer};
use super::worker::Worker;
use crate::protocol::rules::TimeSpan;
use crate::protocol::session::{LINGER, LINGER_BYTES, Totals};
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
    /// Not a header, whatever follows.
    Invalid(HeaderFault),
}

/// What is wrong with what a connection began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFault {
    /// It does not begin like a header.
    Missing,
    /// It begins like a header, but breaks a rule of its version, or ends in the middle.
    Malformed,
    /// It is longer than a header may be.
    TooLong,
    /// It was not complete in time.
    Timeout,
}

impl HeaderFault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Missing, Self::Malformed, Self::TooLong, Self::Timeout];

    /// Returns its name in the log: lower case with hyphens.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::TooLong => "too-long",
            Self::Timeout => "timeout",
        }
    }
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no PROXY header",
            Self::Malformed => "malformed PROXY header",
            Self::TooLong => "PROXY header too long",
            Self::Timeout => "no complete PROXY header in time",
        })
    }
}

/// What a connection began with instead of a header, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadHeader {
    /// What is wrong with it.
    pub fault: HeaderFault,
    /// Its first bytes, [`MAX_EXCERPT`] at most.
    pub excerpt: Vec<u8>,
    /// How many bytes came in all.
    pub len: u64,
}

/// How many bytes of a bad header are logged.
pub const MAX_EXCERPT: usize = 32;

impl fmt::Display for BadHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, ref excerpt, len } = *self;
        write!(f, "{fault}; ")?;
        match len {
            0 => return f.write_str("nothing came"),
            1 => f.write_str("1 byte came: ")?,
            _ => write!(f, "{len} bytes came: ")?,
        }
        let more = if len > excerpt.len() as u64 { "…" } else { "" };
        write!(f, "{}{more}", quote(excerpt))
    }
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
            Self::Invalid(HeaderFault::Missing)
        }
    }

    fn parse_v1(bytes: &[u8]) -> Self {
        let within = &bytes[..bytes.len().min(MAX_V1_LEN)];
        match memchr::memchr(b'\n', within) {
            Some(at) => Self::parse_complete(&bytes[..=at]),
            None if bytes.len() < MAX_V1_LEN => Self::Incomplete,
            None => Self::Invalid(HeaderFault::TooLong),
        }
    }

    fn parse_v2(bytes: &[u8]) -> Self {
        let Some(&[command, _, high, low]) = bytes.get(V2_SIGNATURE.len()..V2_FIXED_LEN) else {
            return Self::Incomplete;
        };
        let len = V2_FIXED_LEN + usize::from(u16::from_be_bytes([high, low]));
        if !matches!(command, 0x20 | 0x21) {
            return Self::Invalid(HeaderFault::Malformed);
        }
        if len > MAX_HEADER {
            return Self::Invalid(HeaderFault::TooLong);
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
            _ => Self::Invalid(HeaderFault::Malformed),
        }
    }
}

/// What came of waiting for a header.
#[derive(Debug, PartialEq, Eq)]
enum HeaderOutcome {
    Header(Option<SocketAddr>),
    /// There will be none that is right, or not in time.
    Invalid(HeaderFault),
    /// The connection ended before its first byte. The event loop sees that as well.
    ClosedEarly,
    /// The connection broke.
    Broken,
    /// The server stops.
    Cancelled,
}

/// A connection that was accepted and waits for its header.
pub(crate) struct PendingHeader {
    pub(crate) socket: AcceptedSocket,
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
        let (task, worker) = (Arc::clone(worker), worker);
        worker.spawn(async move { self.wait(cancelled, &dispatcher, &task).await });
    }

    /// `cancelled` is kept to the end: [`Dispatcher::cancel_pending`] waits until it is dropped. `worker` runs this.
    async fn wait(self, mut cancelled: watch::Receiver<bool>, dispatcher: &Dispatcher, worker: &Worker) {
        let Self { socket: AcceptedSocket { socket, descriptors }, mut session, mut info, mut permit } = self;
        let stream = match UnixStream::from_std(unix::UnixStream::from(socket)) {
            Ok(stream) => InputStream { stream, descriptors, disposal: dispatcher.disposal.clone() },
            Err(error) => return setup_failed(&info, error, dispatcher),
        };
        let mut header = Vec::new();
        let outcome = read_header_before(&stream, &mut header, deadline(&session), &mut cancelled).await;
        let now = clock();
        match outcome {
            HeaderOutcome::Header(client) => {
                session.note_activity(now);
                info.peer = client.map_or(info.peer, Peer::Proxied);
                let held = permit.claim(info.peer.source());
                let claimed = if held { Ok(()) } else { dispatcher.claim_or_refuse(&mut permit, &mut cancelled).await };
                if let Err(verdict) = claimed {
                    permit = match permit.refuse() {
                        Ok(permit) => permit,
                        Err(permit) => return stream.close(permit),
                    };
                    session.refuse(verdict, now);
                }
            }
            HeaderOutcome::Invalid(fault) => {
                let excerpt = header[..header.len().min(MAX_EXCERPT)].to_vec();
                let bad_header = BadHeader { fault, excerpt, len: header.len() as u64 };
                return reject(stream, bad_header, &info, session.opened(), permit, &mut cancelled, worker).await;
            }
            HeaderOutcome::ClosedEarly => {}
            HeaderOutcome::Broken => session.handle_reset(),
            HeaderOutcome::Cancelled => session.drain(now),
        }
        let socket = match stream.into_socket() {
            Ok(socket) => socket,
            Err(error) => return setup_failed(&info, error, dispatcher),
        };
        permit.stop_awaiting_header();
        let Some(worker) = dispatcher.least_loaded_worker() else { return };
        worker.serve(Box::new(Connection::new(socket, session, info, worker, permit)));
    }
}

fn setup_failed(info: &ConnectionInfo, error: io::Error, dispatcher: &Dispatcher) {
    let listener = Arc::clone(&info.listener.name);
    (dispatcher.handle_event)(Event::SetupFailed { listener, peer: info.peer, error });
}

/// Until when the header of a connection that has just begun has to be there.
fn deadline(session: &Session) -> Instant {
    let limit = session.rules().deadlines.read.as_ref().map_or(DEFAULT_TIMEOUT, TimeSpan::duration);
    session.opened().checked_add(limit).unwrap_or_else(|| session.opened() + DEFAULT_TIMEOUT)
}

/// Waits for the header until the deadline, or until it is cancelled, and consumes it. What was consumed is in
/// `header`.
async fn read_header_before(
    stream: &InputStream,
    header: &mut Vec<u8>,
    until: Instant,
    cancelled: &mut watch::Receiver<bool>,
) -> HeaderOutcome {
    tokio::select! {
        // What came while this process was stopped is not late.
        biased;
        outcome = read_header(stream, header) => outcome,
        () = time::sleep_until(until.into()) => HeaderOutcome::Invalid(HeaderFault::Timeout),
        // An error means that the server is gone.
        _ = cancelled.wait_for(|cancelled| *cancelled) => HeaderOutcome::Cancelled,
    }
}

/// Waits for the header, and consumes it.
async fn read_header(stream: &InputStream, header: &mut Vec<u8>) -> HeaderOutcome {
    loop {
        if stream.stream.readable().await.is_err() {
            return HeaderOutcome::Broken;
        }
        match stream.stream.try_io(Interest::READABLE, || read_available(stream, header)) {
            Ok(Some(HeaderParse::Complete { client, .. })) => return HeaderOutcome::Header(client),
            Ok(Some(HeaderParse::Invalid(fault))) => return HeaderOutcome::Invalid(fault),
            // There may be more.
            Ok(Some(HeaderParse::Incomplete)) => {}
            Ok(None) if header.is_empty() => return HeaderOutcome::ClosedEarly,
            // It ended in the middle.
            Ok(None) => return HeaderOutcome::Invalid(HeaderFault::Malformed),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return HeaderOutcome::Broken,
        }
    }
}

/// Consumes what has come of the header, adds it to `header`, and parses that; `None` at the end of the stream. Bytes
/// behind a header are not consumed.
fn read_available(stream: &InputStream, header: &mut Vec<u8>) -> io::Result<Option<HeaderParse>> {
    let mut buffer = [0; MAX_HEADER];
    let room = MAX_HEADER - header.len();
    let (count, _) = retry_on_intr(|| recv(&stream.stream, &mut buffer[..room], RecvFlags::PEEK))?;
    if count == 0 {
        return Ok(None);
    }
    let consumed = header.len();
    header.extend_from_slice(&buffer[..count]);
    let parsed = HeaderParse::parse(header);
    if let HeaderParse::Complete { len, .. } = parsed {
        header.truncate(len);
    }
    consume(stream, header.len() - consumed)?;
    Ok(Some(parsed))
}

/// Consumes so many bytes of the stream, which are there already.
fn consume(stream: &InputStream, len: usize) -> io::Result<()> {
    let mut bytes = [0; MAX_HEADER];
    let mut consumed = 0;
    while consumed < len {
        let count = stream.receive(&mut bytes[consumed..len])?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        consumed += count;
    }
    Ok(())
}

/// A connection that is read before it is served.
struct InputStream {
    stream: UnixStream,
    descriptors: PeerDescriptors,
    disposal: Disposal,
}

impl InputStream {
    /// Receives bytes, and has descriptors closed that came with them.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.descriptors == PeerDescriptors::None {
            return Ok(retry_on_intr(|| recv(&self.stream, &mut *buffer, RecvFlags::empty()))?.0);
        }
        if self.disposal.is_full() {
            // There are none where there is no room for them: a peer that sends some is not waited for.
            let count = peer_descriptors::receive_before_descriptors(&self.stream, buffer)?;
            return count.ok_or_else(|| ErrorKind::ResourceBusy.into());
        }
        let (count, descriptors) = peer_descriptors::receive(&self.stream, buffer)?;
        if !descriptors.is_empty() {
            self.disposal.dispose(descriptors, Waker::noop().clone());
        }
        Ok(count)
    }

    fn into_socket(self) -> io::Result<AcceptedSocket> {
        Ok(AcceptedSocket { socket: self.stream.into_std()?.into(), descriptors: self.descriptors })
    }

    /// Closes the socket, and then releases the permit: [`AcceptedSocket::close`].
    fn close(self, permit: Permit) {
        let disposal = self.disposal.clone();
        if let Ok(socket) = self.into_socket() {
            socket.close(&disposal, permit);
        }
    }
}

/// Closes a connection without a header, and reports it. It holds no place any longer.
async fn reject(
    stream: InputStream,
    mut bad_header: BadHeader,
    info: &ConnectionInfo,
    opened: Instant,
    permit: Permit,
    cancelled: &mut watch::Receiver<bool>,
    worker: &Worker,
) {
    let permit = match permit.refuse() {
        Ok(permit) => {
            bad_header.len += linger(&stream, cancelled).await;
            permit
        }
        // There are many of them: it is closed at once.
        Err(permit) => permit,
    };
    let (verdict, totals) = (Verdict::BadProxyHeader, Totals { bytes_in: bad_header.len, ..Totals::default() });
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
        bad_header: Some(bad_header),
    });
    // Last, since the server may end when the permit is released, and the connection has to be counted by then.
    stream.close(permit);
}

/// Ends our stream, and drops what still comes: closing with unread input would reset the connection. Returns how many
/// bytes came.
async fn linger(stream: &InputStream, cancelled: &mut watch::Receiver<bool>) -> u64 {
    // A peer that is gone does not mind; the next read says so.
    let _ = shutdown(&stream.stream, Shutdown::Write);
    let mut dropped = 0;
    let drop_input = async {
        while dropped < u64::from(LINGER_BYTES) && stream.stream.readable().await.is_ok() {
            let mut buffer = [0; MAX_HEADER];
            let received = stream.stream.try_io(Interest::READABLE, || stream.receive(&mut buffer));
            match received {
                Ok(0) => break,
                Ok(count) => dropped += count as u64,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
        }
    };
    tokio::select! {
        biased;
        () = drop_input => {}
        () = time::sleep(LINGER) => {}
        // An error means that the server is gone.
        _ = cancelled.wait_for(|cancelled| *cancelled) => {}
    }
    dropped
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
        let (_silent, stream) = UnixStream::pair().unwrap();
        let (begun, cancelled) = (time::Instant::now(), watch::Sender::new(false));
        let rules = Rules { deadlines: Deadlines { read, ..Deadlines::default() }, ..Rules::default() };
        let session = Session::new(rules.into(), begun.into());
        let mut header = Vec::new();
        let stream = InputStream { stream, descriptors: PeerDescriptors::None, disposal: Disposal::default() };
        let outcome = read_header_before(&stream, &mut header, deadline(&session), &mut cancelled.subscribe()).await;
        assert_eq!((outcome, header), (HeaderOutcome::Invalid(HeaderFault::Timeout), Vec::new()));
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
        let (missing, malformed, long) = (HeaderFault::Missing, HeaderFault::Malformed, HeaderFault::TooLong);
        for (invalid, fault) in [
            (&b"aaaa\t"[..], missing),
            (b"\t", missing),
            (b"PROXx", missing),
            (b"proxy TCP4 ", missing),
            (b"PROXY\r\n", missing),
            (b"PROXY \n", malformed),
            (b"PROXY UNKNOWN\n", malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 40123\r\n", malformed),
            (b"PROXY TCP4 192.0.2.256 198.51.100.7 40123 8085\r\n", malformed),
            (b"PROXY TCP4 2001:db8::1 2001:db8::2 40123 8085\r\n", malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 65536 8085\r\n", malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\r\n", malformed),
            (b"PROXY UDP4 192.0.2.1 198.51.100.7 40123 8085\r\n", malformed),
            (b"\r\n\r\nx", missing),
            (&[V1_PREFIX, &[b'x'; MAX_V1_LEN - V1_PREFIX.len()]].concat(), long),
            (&[b"PROXY UNKNOWN ", &[b'f'; 92][..], b"\r\n"].concat(), long),
            (&v2_header(0x11, 0x11, &V4), malformed),
            (&v2_header(0x22, 0x11, &V4), malformed),
            (&v2_header(0x21, 0x11, &V4[..11]), malformed),
            (&v2_header(0x21, 0x21, &V4), malformed),
            (&v2_header(0x21, 0x31, &[0; 215]), malformed),
            (&v2_header(0x21, 0x99, &[]), malformed),
            (&v2_header(0x21, 0x11, &too_long)[..V2_FIXED_LEN], long),
            (&v2_header(0x20, 0x00, &too_long)[..V2_FIXED_LEN], long),
        ] {
            assert_eq!(HeaderParse::parse(invalid), HeaderParse::Invalid(fault), "{}", invalid.escape_ascii());
        }
    }
    #[test]
    fn a_bad_header_is_described_with_its_length_and_its_first_bytes() {
        let describe = |fault, bytes: &[u8], len| {
            BadHeader { fault, excerpt: bytes[..bytes.len().min(MAX_EXCERPT)].to_vec(), len }.to_string()
        };
        assert_eq!(describe(HeaderFault::Missing, b"GET /\r\n", 7), r#"no PROXY header; 7 bytes came: "GET /\r\n""#);
        assert_eq!(describe(HeaderFault::Missing, b"\xff", 1), r#"no PROXY header; 1 byte came: "\xff""#);
        assert_eq!(describe(HeaderFault::Timeout, b"", 0), "no complete PROXY header in time; nothing came");
        let expected = format!("PROXY header too long; 4113 bytes came: \"{}\"…", "x".repeat(32));
        assert_eq!(describe(HeaderFault::TooLong, &[b'x'; 100], 4113), expected);
        assert_eq!(
            describe(HeaderFault::Malformed, "PROXY \u{202e}\x1b\u{9b}\n".as_bytes(), 13),
            r#"malformed PROXY header; 13 bytes came: "PROXY \u{202e}\u{1b}\u{9b}\n""#
        );
    }
}
