//! A client of the daemon.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use super::{TEST_TIMEOUT, now, wait_until};

/// A connection to the daemon, which remembers what went over it.
pub struct Peer {
    stream: Stream,
    sent: Vec<u8>,
    received: Vec<u8>,
    /// How much of `received` was expected already.
    expected: usize,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// How many bytes of a connection wait in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuedBytes {
    /// On their way to the daemon's side.
    pub to_daemon: usize,
    /// Arrived there, but not read.
    pub unread: usize,
    /// Sent by the daemon, but not arrived at ours.
    pub from_daemon: usize,
}

impl Peer {
    /// Connects to an address as the daemon writes it: `tcp:127.0.0.1:40123`, `unix:/PATH`, `unix:@NAME`.
    pub fn connect(address: &str) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    /// Connects, or returns why that is not possible.
    pub fn try_connect(address: &str) -> std::io::Result<Self> {
        let stream = if let Some(name) = address.strip_prefix("unix:@") {
            let address = unix::SocketAddr::from_abstract_name(name)?;
            Stream::Unix(UnixStream::connect_addr(&address)?)
        } else if let Some(path) = address.strip_prefix("unix:") {
            Stream::Unix(UnixStream::connect(path)?)
        } else {
            let ip: SocketAddr = address.strip_prefix("tcp:").unwrap_or(address).parse().expect("an address");
            let stream = TcpStream::connect_timeout(&ip, TEST_TIMEOUT)?;
            stream.set_nodelay(true)?;
            Stream::Tcp(stream)
        };
        Ok(Self::new(stream))
    }

    /// The daemon is at the other end of this already.
    pub fn from_stream(stream: UnixStream) -> Self {
        Self::new(Stream::Unix(stream))
    }

    fn new(stream: Stream) -> Self {
        let peer = Self { stream, sent: Vec::new(), received: Vec::new(), expected: 0 };
        peer.set_timeout(TEST_TIMEOUT);
        let sending = rustix::net::sockopt::Timeout::Send;
        rustix::net::sockopt::set_socket_timeout(peer.fd(), sending, Some(TEST_TIMEOUT))
            .expect("the timeout can be set");
        peer
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.sent.extend_from_slice(bytes);
        if let Err(error) = self.write_all(bytes) {
            self.fail(&format!("cannot send {} bytes: {error}", bytes.len()));
        }
    }

    /// Ends our stream.
    pub fn shutdown(&mut self) {
        let done = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
        done.expect("the stream can be shut down");
    }

    /// Waits for exactly these bytes.
    pub fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let until = self.expected + bytes.len();
        self.set_timeout(TEST_TIMEOUT);
        while self.received.len() < until {
            match self.read_some() {
                Ok(0) => self.fail(&format!("the stream ended, expected {}", excerpt(bytes))),
                Ok(_) => {}
                Err(error) => self.fail(&format!("{error}, expected {}", excerpt(bytes))),
            }
        }
        if self.received[self.expected..until] != *bytes {
            self.fail(&format!("expected {}", excerpt(bytes)));
        }
        self.expected = until;
    }

    /// Sends a message and waits for its reply.
    pub fn exchange(&mut self, message: &str) {
        self.send(format!("{message}\t"));
        self.expect(format!("server got:{message}\t"));
    }

    /// The next reply, up to the TAB that ends it; or else what comes before the stream ends.
    pub fn next_reply(&mut self) -> Vec<u8> {
        self.next_until(b'\t')
    }

    /// The same, up to the line feed that ends a line.
    pub fn next_line(&mut self) -> String {
        String::from_utf8_lossy(&self.next_until(b'\n')).into_owned()
    }

    fn next_until(&mut self, delimiter: u8) -> Vec<u8> {
        let start = self.expected;
        loop {
            if let Some(at) = self.received[self.expected..].iter().position(|byte| *byte == delimiter) {
                self.expected += at + 1;
                return self.received[start..self.expected].to_vec();
            }
            match self.read_some() {
                Ok(0) => return self.received[start..].to_vec(),
                Ok(_) => {}
                Err(error) => self.fail(&format!("{error}, expected a reply")),
            }
        }
    }

    /// Waits for the end of the stream, with nothing before it.
    pub fn expect_close(&mut self) {
        self.set_timeout(TEST_TIMEOUT);
        match self.read_some() {
            Ok(0) if self.received.len() == self.expected => {}
            Ok(_) => self.fail("expected the end of the stream, not more bytes"),
            Err(error) => self.fail(&format!("{error}, expected the end of the stream")),
        }
    }

    /// Everything up to the end of the stream, be it a proper one or a reset.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        self.set_timeout(TEST_TIMEOUT);
        loop {
            match self.read_some() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
                Err(error) => self.fail(&error.to_string()),
            }
        }
        self.received[self.expected..].to_vec()
    }

    /// Checks that nothing comes for this long: no byte, no end.
    pub fn expect_silence(&mut self, time: Duration) {
        let until = now() + time;
        self.set_timeout(time);
        match self.read_some() {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // The kernel's timeouts may be early by a tick.
                thread::sleep(until.saturating_duration_since(now()));
            }
            other => self.fail(&format!("expected silence for {time:?}, got {other:?}")),
        }
    }

    /// Receives for this long at most; what comes is kept for `expect`. Returns how many bytes that were.
    pub fn receive_for(&mut self, time: Duration) -> usize {
        self.set_timeout(time);
        match self.read_some() {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => 0,
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// How long it takes until the stream ends; what comes before is kept for `expect`.
    pub fn time_until_close(&mut self, since: Instant) -> Duration {
        self.set_timeout(TEST_TIMEOUT);
        loop {
            match self.read_some() {
                Ok(0) => return since.elapsed(),
                Ok(_) => {}
                Err(error) => self.fail(&error.to_string()),
            }
        }
    }

    /// The socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }

    /// A second handle of the socket, of one type whatever kind of stream it is: reading and writing are the same.
    pub fn stream(&self) -> UnixStream {
        self.fd().try_clone_to_owned().expect("the descriptor can be duplicated").into()
    }

    /// The socket alone, as [`Peer::stream`] gives it.
    pub fn into_stream(self) -> UnixStream {
        match self.stream {
            Stream::Tcp(stream) => OwnedFd::from(stream).into(),
            Stream::Unix(stream) => stream,
        }
    }

    /// What waits in the kernel of this connection, which must be TCP over IPv4.
    pub fn queued_bytes(&self) -> QueuedBytes {
        let Stream::Tcp(stream) = &self.stream else { panic!("not a TCP connection") };
        let ports = [stream.local_addr(), stream.peer_addr()].map(|address| address.expect("it is connected").port());
        let [ours, theirs] = ports.map(|port| format!(":{port:04X}"));
        // Of this thread, which may be in another network than the process.
        let table = fs::read_to_string("/proc/thread-self/net/tcp").expect("/proc is mounted");
        // proc_net_tcp(5): number, local and remote address, state, tx_queue:rx_queue, in hexadecimal.
        let queues = |local: &str, remote: &str| {
            let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let line = line.into_iter().find(|line| line[1].ends_with(local) && line[2].ends_with(remote));
            let line = line.unwrap_or_else(|| self.fail("the connection is gone"));
            let (sending, received) = line[4].split_once(':').expect("two queues");
            [sending, received].map(|count| usize::from_str_radix(count, 16).expect("a number"))
        };
        let ([to_daemon, _], [from_daemon, unread]) = (queues(&ours, &theirs), queues(&theirs, &ours));
        QueuedBytes { to_daemon, unread, from_daemon }
    }

    /// How many bytes have arrived, but were not read.
    pub fn readable_bytes(&self) -> usize {
        let count = rustix::io::ioctl_fionread(self.fd()).expect("it is a socket");
        usize::try_from(count).expect("it is small")
    }

    /// Waits until the daemon has read everything that was sent. (TCP over IPv4 only.)
    pub fn wait_until_read(&self) {
        let all_read = || {
            let QueuedBytes { to_daemon, unread, .. } = self.queued_bytes();
            to_daemon + unread == 0
        };
        // Twice, since one look sees both ends at slightly different times.
        wait_until("the daemon has read everything", || all_read() && all_read());
    }

    /// Closes it for good. By a drop alone it stays open as long as a process that another test is starting has a copy of the
    /// descriptor, between fork(2) and execve(2).
    pub fn close(self) {
        // The other end may have closed it already.
        let _ = rustix::net::shutdown(self.fd(), rustix::net::Shutdown::Both);
    }

    /// Breaks the connection off: closing it sends a reset.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(self.fd(), Some(Duration::ZERO)).expect("SO_LINGER can be set");
    }

    /// Sends what fits without waiting, and returns how much that was.
    pub fn send_what_fits(&mut self, bytes: &[u8]) -> usize {
        match rustix::net::send(self.fd(), bytes, rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL) {
            Ok(sent) => sent,
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(error) => self.fail(&format!("cannot send: {error}")),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }

    fn read_some(&mut self) -> std::io::Result<usize> {
        let mut chunk = [0; 65536];
        let count = loop {
            let read = match &mut self.stream {
                Stream::Tcp(stream) => stream.read(&mut chunk),
                Stream::Unix(stream) => stream.read(&mut chunk),
            };
            match read {
                // A wait with a timeout is interrupted also where no signal has a handler: by a stop, a debugger (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.received.extend_from_slice(&chunk[..count]);
        Ok(count)
    }

    fn set_timeout(&self, timeout: Duration) {
        let done = match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
        };
        done.expect("the timeout can be set");
    }

    fn fail(&self, problem: &str) -> ! {
        panic!(
            "{problem}\n  sent {}\n  received {}, of which {} bytes were expected",
            excerpt(&self.sent),
            excerpt(&self.received),
            self.expected,
        )
    }
}

/// Bytes as text: the last of them, if they are many.
fn excerpt(bytes: &[u8]) -> String {
    let tail = &bytes[bytes.len().saturating_sub(300)..];
    let cut = if tail.len() < bytes.len() { "the last: " } else { "" };
    format!("{} bytes, {cut}\"{}\"", bytes.len(), tail.escape_ascii())
}
