//! The PROXY protocol (haproxy.org, doc/proxy-protocol.txt), versions 1 and 2: what a load balancer says of the client
//! before anything else.
//!
//! ```text
//! 1   "PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n"
//! 2   0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a            its signature
//!     21                                             version 2, PROXY (20: LOCAL)
//!     11                                             IPv4, stream
//!     00 0c                                          how many bytes follow
//!     c0 00 02 01  c6 33 64 07  9c bb  1f 95         from, to; their ports; then whatever else (TLVs), which is ignored
//! ```
//!
//! A connection whose listener demands the header waits for it apart from those that are served, and costs them nothing. The
//! header is looked at in the kernel's buffer, and taken out when it is complete, and not a byte more: so what lies behind it
//! is the connection's first input, as if there had been no header.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net as unix;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_header::{ParseConfig, ProxyHeader};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::socket_error;
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time;

use super::accept::Reception;
use super::admission::Place;
use super::connection::{Caller, Connection, clock};
use super::event::Event;
use super::socket::Peer;
use crate::protocol::rules::Span;
use crate::protocol::{Session, Verdict};

/// The longest header, in bytes.
pub const MAX_HEADER: usize = 4096;

/// The longest header of version 1, in bytes, its line feed among them.
const MAX_LINE: usize = 107;

/// How long a header may take where `deadlines.read` is off. The standard asks for 3 s at least, for one lost packet.
const PATIENCE: Duration = Duration::from_secs(10);

const LINE: &[u8] = b"PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The bytes of version 2 before those that it counts.
const FIXED: usize = 16;

/// What some bytes are that a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The beginning of a header.
    Incomplete,
    /// A header.
    Complete {
        /// Its length in bytes; more may follow it.
        len: usize,
        /// The client that the load balancer speaks for; `None` where it does not say (UNKNOWN, LOCAL, and addresses that are
        /// not of the internet).
        client: Option<SocketAddr>,
    },
    /// No header, whatever follows.
    Wrong,
}

impl Header {
    /// What the first bytes of a connection are.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.starts_with(LINE) {
            Self::of_line(bytes)
        } else if bytes.starts_with(SIGNATURE) {
            Self::of_binary(bytes)
        } else if LINE.starts_with(bytes) || SIGNATURE.starts_with(bytes) {
            Self::Incomplete
        } else {
            Self::Wrong
        }
    }

    fn of_line(bytes: &[u8]) -> Self {
        let within = &bytes[..bytes.len().min(MAX_LINE)];
        match memchr::memchr(b'\n', within) {
            Some(at) => Self::parse(&bytes[..=at]),
            None if bytes.len() < MAX_LINE => Self::Incomplete,
            None => Self::Wrong,
        }
    }

    fn of_binary(bytes: &[u8]) -> Self {
        let Some(&[command, _, high, low]) = bytes.get(SIGNATURE.len()..FIXED) else { return Self::Incomplete };
        let len = FIXED + usize::from(u16::from_be_bytes([high, low]));
        if !matches!(command, 0x20 | 0x21) || len > MAX_HEADER {
            return Self::Wrong;
        }
        match bytes.get(..len) {
            None => Self::Incomplete,
            // Of the load balancer's own accord, such as a health check: whatever else it says does not count.
            Some(_) if command == 0x20 => Self::Complete { len, client: None },
            Some(header) => Self::parse(header),
        }
    }

    /// What a whole header says.
    fn parse(header: &[u8]) -> Self {
        let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
        match ProxyHeader::parse(header, config) {
            Ok((parsed, len)) if len == header.len() => {
                let client = parsed.proxied_address().map(|address| address.source);
                let client = client.map(|client| SocketAddr::new(client.ip().to_canonical(), client.port()));
                Self::Complete { len, client }
            }
            _ => Self::Wrong,
        }
    }
}

/// What came of waiting for a header.
enum Outcome {
    Header(Option<SocketAddr>),
    /// There will be none that is right, or not in time.
    Wrong,
    /// The connection ended before its first byte: whoever serves it sees that, too.
    Nothing,
    /// The connection broke.
    Broken,
    /// We stop.
    Stopped,
}

/// A connection that was accepted and waits for its header.
pub(crate) struct Arrival {
    pub(crate) socket: OwnedFd,
    pub(crate) session: Session,
    pub(crate) caller: Caller,
    pub(crate) place: Place,
}

impl Arrival {
    /// Has it wait for its header on one of the workers, and then be served, or refused.
    pub(crate) fn wait(self, reception: &Arc<Reception>) {
        let turn = usize::try_from(self.caller.connection).unwrap_or_default();
        let Some(worker) = reception.workers.get(turn % reception.workers.len().max(1)) else { return };
        let (stopping, reception) = (reception.waiting.subscribe(), Arc::clone(reception));
        worker.spawn(async move { self.attend(stopping, &reception).await });
    }

    /// `stopping` is kept to the end: whoever stops waits for that.
    async fn attend(self, mut stopping: watch::Receiver<bool>, reception: &Reception) {
        let Self { socket, mut session, mut caller, mut place } = self;
        let (socket, outcome) = match header_in_time(socket, deadline(&session), &mut stopping).await {
            Ok(waited) => waited,
            Err(error) => {
                let listener = Arc::clone(&caller.desk.name);
                return (reception.events)(Event::Dropped { listener, peer: caller.peer, error });
            }
        };
        let now = clock();
        match outcome {
            Outcome::Header(client) => {
                session.heard(now);
                if let Some(client) = client {
                    caller.peer = Peer::Proxied(client);
                    let is_in = place.claim(caller.peer.source());
                    let claimed = if is_in { Ok(()) } else { reception.last_claim(&mut place).await };
                    if let Err(verdict) = claimed {
                        let Some(refused) = place.refuse() else { return };
                        place = refused;
                        session.refuse(verdict, now);
                    }
                }
            }
            Outcome::Wrong => session.refuse(Verdict::BadProxyHeader, now),
            Outcome::Nothing => {}
            Outcome::Broken => session.reset(),
            Outcome::Stopped => session.drain(now),
        }
        let Some(worker) = reception.worker() else { return };
        worker.serve(Box::new(Connection::new(socket, session, caller, worker, place)));
    }
}

/// Until when the header of a connection that has just begun has to be there.
fn deadline(session: &Session) -> Instant {
    let limit = session.rules().deadlines.read.as_ref().map_or(PATIENCE, Span::length);
    session.opened().checked_add(limit).unwrap_or_else(|| session.opened() + PATIENCE)
}

/// Waits for the header for as long as that makes sense, and takes it out of the stream.
async fn header_in_time(
    socket: OwnedFd,
    until: Instant,
    stopping: &mut watch::Receiver<bool>,
) -> io::Result<(OwnedFd, Outcome)> {
    let stream = UnixStream::from_std(unix::UnixStream::from(socket))?;
    let outcome = tokio::select! {
        // What came while this process was stopped is not late.
        biased;
        outcome = header(&stream) => outcome,
        () = time::sleep_until(until.into()) => Outcome::Wrong,
        // An error means that the server is gone.
        _ = stopping.wait_for(|stopping| *stopping) => Outcome::Stopped,
    };
    Ok((stream.into_std()?.into(), outcome))
}

/// Waits for the header, and takes it out of the stream.
async fn header(stream: &UnixStream) -> Outcome {
    loop {
        let Ok(ready) = stream.ready(Interest::READABLE).await else { return Outcome::Broken };
        // Where it is not complete, the reactor is told that it was seen, and says when there is more.
        let looked = stream.try_io(Interest::READABLE, || match look(stream)? {
            Some(Header::Incomplete) => Err(ErrorKind::WouldBlock.into()),
            found => Ok(found),
        });
        match looked {
            Ok(Some(Header::Complete { len, client })) => {
                return if take(stream, len).is_ok() { Outcome::Header(client) } else { Outcome::Broken };
            }
            Ok(Some(_)) => return Outcome::Wrong,
            Ok(None) => return Outcome::Nothing,
            // All that will ever come was there before it was looked at.
            Err(error) if error.kind() == ErrorKind::WouldBlock && ready.is_read_closed() => {
                return if let Ok(Ok(())) = socket_error(stream) { Outcome::Wrong } else { Outcome::Broken };
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Outcome::Broken,
        }
    }
}

/// What has come so far, if anything will.
fn look(socket: impl AsFd) -> io::Result<Option<Header>> {
    let mut bytes = [0; MAX_HEADER];
    let (count, _) = retry_on_intr(|| recv(&socket, &mut bytes[..], RecvFlags::PEEK))?;
    Ok((count > 0).then(|| Header::of(&bytes[..count])))
}

/// Takes so many bytes, which are there, out of the stream.
fn take(socket: impl AsFd, len: usize) -> io::Result<()> {
    let mut bytes = [0; MAX_HEADER];
    let mut taken = 0;
    while taken < len {
        let (count, _) = retry_on_intr(|| recv(&socket, &mut bytes[taken..len], RecvFlags::empty()))?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        taken += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::rules::{Deadlines, Rules};

    fn complete(len: usize, client: &str) -> Header {
        Header::Complete { len, client: client.parse().ok() }
    }

    /// A header of version 2.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &len, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0x9c, 0xbb, 0x1f, 0x95];

    fn v6() -> Vec<u8> {
        let (from, to) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let octets = |ip: std::net::Ipv6Addr| ip.octets();
        [&octets(from)[..], &octets(to), &[0x9c, 0xbb, 0x1f, 0x95]].concat()
    }

    /// Headers, and the clients that they tell; `-` where there is none.
    fn right() -> Vec<(Vec<u8>, &'static str)> {
        let unix = [0; 216];
        let with_more = [&V4[..], &[3, 0, 4, 1, 2, 3, 4]].concat();
        let long = [&V4[..], &[0xe0, 0x0f, 0xe1], &[b'x'; 4065]].concat();
        vec![
            (b"PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n".to_vec(), "192.0.2.1:40123"),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 40123 8085\r\n".to_vec(), "[2001:db8::1]:40123"),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n".to_vec(), "192.0.2.1:1"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "-"),
            ([b"PROXY UNKNOWN ", &[b'f'; 91][..], b"\r\n"].concat(), "-"),
            (binary(0x21, 0x11, &V4), "192.0.2.1:40123"),
            (binary(0x21, 0x12, &V4), "192.0.2.1:40123"),
            (binary(0x21, 0x21, &v6()), "[2001:db8::1]:40123"),
            (binary(0x21, 0x11, &with_more), "192.0.2.1:40123"),
            (binary(0x21, 0x11, &long), "192.0.2.1:40123"),
            (binary(0x21, 0x00, &[]), "-"),
            (binary(0x21, 0x31, &unix), "-"),
            (binary(0x20, 0x00, &[]), "-"),
            (binary(0x20, 0x11, &V4), "-"),
            (binary(0x20, 0x99, &[1, 2, 3]), "-"),
        ]
    }

    /// How long it takes until a connection without a header is given up.
    async fn patience(read: Option<Span>) -> Duration {
        let (_silent, socket) = unix::UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let (begun, stopping) = (time::Instant::now(), watch::Sender::new(false));
        let rules = Rules { deadlines: Deadlines { read, ..Deadlines::default() }, ..Rules::default() };
        let session = Session::new(rules.into(), begun.into());
        let waited = header_in_time(socket.into(), deadline(&session), &mut stopping.subscribe()).await;
        assert!(matches!(waited, Ok((_, Outcome::Wrong))));
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_has_the_time_of_a_message_or_else_10_s() {
        for (read, expected) in [(Some(2), 2), (Some(60), 60), (None, 10)] {
            let took = patience(read.map(|read| Span::new(Duration::from_secs(read), "so long"))).await;
            // The timer is as fine as a millisecond.
            assert_eq!(took.as_secs(), expected, "{took:?}");
        }
    }

    #[test]
    fn headers_are_read_and_not_a_byte_behind_them() {
        for (header, client) in right() {
            let expected = complete(header.len(), client);
            assert_eq!(Header::of(&header), expected, "{}", header.escape_ascii());
            for more in [&b"aaaa\t"[..], b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n", &[0; 5000]] {
                let bytes = [&header, more].concat();
                assert_eq!(Header::of(&bytes), expected, "{}", header.escape_ascii());
            }
        }
    }

    #[test]
    fn until_a_header_is_complete_it_may_still_be_one() {
        for (header, _) in right() {
            for end in 0..header.len() {
                assert_eq!(Header::of(&header[..end]), Header::Incomplete, "{}", header[..end].escape_ascii());
            }
        }
    }

    #[test]
    fn what_is_no_header_is_seen_as_soon_as_it_is_certain() {
        let too_long = [&V4[..], &[b'x'; MAX_HEADER - FIXED - 11]].concat();
        for wrong in [
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
            &[LINE, &[b'x'; MAX_LINE - LINE.len()]].concat(),
            &[b"PROXY UNKNOWN ", &[b'f'; 92][..], b"\r\n"].concat(),
            &binary(0x11, 0x11, &V4),
            &binary(0x22, 0x11, &V4),
            &binary(0x21, 0x11, &V4[..11]),
            &binary(0x21, 0x21, &V4),
            &binary(0x21, 0x31, &[0; 215]),
            &binary(0x21, 0x99, &[]),
            &binary(0x21, 0x11, &too_long)[..FIXED],
            &binary(0x20, 0x00, &too_long)[..FIXED],
        ] {
            assert_eq!(Header::of(wrong), Header::Wrong, "{}", wrong.escape_ascii());
        }
    }
}
