//! Somebody who talks to the daemon.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use super::{CEILING, now};

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

impl Peer {
    /// Connects to an address as the daemon writes it: `tcp:127.0.0.1:40123`, `unix:/PATH`, `unix:@NAME`.
    pub fn connect(address: &str) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    pub fn try_connect(address: &str) -> std::io::Result<Self> {
        let stream = if let Some(name) = address.strip_prefix("unix:@") {
            let address = unix::SocketAddr::from_abstract_name(name)?;
            Stream::Unix(UnixStream::connect_addr(&address)?)
        } else if let Some(path) = address.strip_prefix("unix:") {
            Stream::Unix(UnixStream::connect(path)?)
        } else {
            let ip: SocketAddr = address.strip_prefix("tcp:").unwrap_or(address).parse().expect("an address");
            let stream = TcpStream::connect_timeout(&ip, CEILING)?;
            stream.set_nodelay(true)?;
            Stream::Tcp(stream)
        };
        let peer = Self { stream, sent: Vec::new(), received: Vec::new(), expected: 0 };
        peer.set_timeout(CEILING);
        Ok(peer)
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
        self.set_timeout(CEILING);
        while self.received.len() < until {
            match self.read_some() {
                Ok(0) => self.fail(&format!("the stream ended, expected \"{}\"", bytes.escape_ascii())),
                Ok(_) => {}
                Err(error) => self.fail(&format!("{error}, expected \"{}\"", bytes.escape_ascii())),
            }
        }
        if self.received[self.expected..until] != *bytes {
            self.fail(&format!("expected \"{}\"", bytes.escape_ascii()));
        }
        self.expected = until;
    }

    /// Sends a message and waits for its reply.
    pub fn exchange(&mut self, message: &str) {
        self.send(format!("{message}\t"));
        self.expect(format!("server got:{message}\t"));
    }

    /// Waits for the end of the stream, with nothing before it.
    pub fn expect_close(&mut self) {
        self.set_timeout(CEILING);
        match self.read_some() {
            Ok(0) if self.received.len() == self.expected => {}
            Ok(_) => self.fail("expected the end of the stream, not more bytes"),
            Err(error) => self.fail(&format!("{error}, expected the end of the stream")),
        }
    }

    /// Everything up to the end of the stream, be it a proper one or a reset.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        self.set_timeout(CEILING);
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

    /// How long it takes until the stream ends; what comes before is kept for `expect`.
    pub fn time_until_close(&mut self, since: Instant) -> Duration {
        self.set_timeout(CEILING);
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
        let count = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(&mut chunk)?,
            Stream::Unix(stream) => stream.read(&mut chunk)?,
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
        let tail = |bytes: &[u8]| bytes[bytes.len().saturating_sub(300)..].escape_ascii().to_string();
        panic!(
            "{problem}\n  sent {} bytes, the last: \"{}\"\n  received {} bytes, {} of them expected, the last: \"{}\"",
            self.sent.len(),
            tail(&self.sent),
            self.received.len(),
            self.expected,
            tail(&self.received)
        )
    }
}
