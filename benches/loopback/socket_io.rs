//! The traffic of a load: the workload of messages and replies, the sockets of the load, and an epoll set.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, recv, send,
    socket_with,
};

use crate::address::Address;
use crate::{Context as _, Failure, Result};

/// How long the load waits for any event before the server counts as stuck.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) const PREFIX: &[u8] = b"server got:";
const DELIMITER: u8 = b'\t';

/// Messages of one size, each different, and the replies to them, both as they stand on the wire one after
/// the other.
pub(crate) struct Workload {
    messages: Vec<u8>,
    replies: Vec<u8>,
    message_size: usize,
    reply_size: usize,
}

impl Workload {
    /// Creates a workload for a server that sends back the bytes as they are.
    pub(crate) fn without_prefix(size: usize, count: usize) -> Self {
        let workload = Self::new(size, count);
        Self { replies: workload.messages.clone(), reply_size: workload.message_size, ..workload }
    }

    /// Creates a workload of `count` messages of `size` bytes, the delimiter not counted.
    pub(crate) fn new(size: usize, count: usize) -> Self {
        let mut messages = Vec::with_capacity(count * (size + 1));
        let mut replies = Vec::with_capacity(count * (PREFIX.len() + size + 1));
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..count {
            let start = messages.len();
            while messages.len() < start + size {
                // xorshift64: bytes of all values, the same ones in every run.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let word = state.to_le_bytes().map(|byte| if byte == DELIMITER { b'T' } else { byte });
                messages.extend_from_slice(&word[..word.len().min(start + size - messages.len())]);
            }
            messages.push(DELIMITER);
            replies.extend_from_slice(PREFIX);
            replies.extend_from_slice(&messages[start..]);
        }
        Self { messages, replies, message_size: size + 1, reply_size: PREFIX.len() + size + 1 }
    }

    /// Returns the number of messages.
    pub(crate) fn count(&self) -> usize {
        self.messages.len() / self.message_size
    }

    /// Returns the bytes of a reply, including its delimiter.
    pub(crate) fn reply_size(&self) -> usize {
        self.reply_size
    }

    /// Returns the number of messages with which a batch of `depth` messages can begin.
    pub(crate) fn batch_starts(&self, depth: usize) -> usize {
        self.count() - depth + 1
    }

    /// Returns `depth` messages, beginning with number `first`.
    pub(crate) fn messages(&self, first: usize, depth: usize) -> &[u8] {
        &self.messages[first * self.message_size..][..depth * self.message_size]
    }

    /// Returns the replies to [`Self::messages`].
    pub(crate) fn replies(&self, first: usize, depth: usize) -> &[u8] {
        &self.replies[first * self.reply_size()..][..depth * self.reply_size()]
    }
}

/// Opens a connection, or connects a socket of datagrams. TCP connections come from changing addresses of the loopback
/// network, chosen by `number`, because the ports of one address are soon used up by connections that were closed within
/// the last minute. A Unix socket of datagrams gets a name in the abstract namespace from the kernel.
pub(crate) fn open_connection(address: &Address, number: usize) -> Result<OwnedFd> {
    let last = u8::try_from(1 + number % 250).unwrap_or(1);
    let own = SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, last), 0);
    let opened = (|| match address {
        Address::Tcp(address) => {
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &own)?;
            set_tcp_nodelay(&socket, true)?;
            connect(&socket, address)?;
            Ok(socket)
        }
        Address::Udp(address) => {
            let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &own)?;
            connect(&socket, address)?;
            Ok(socket)
        }
        Address::Unix(path) => connect_unix(SocketType::STREAM, None, path),
        Address::Seqpacket(path) => connect_unix(SocketType::SEQPACKET, None, path),
        Address::Unixgram(path) => connect_unix(SocketType::DGRAM, Some(&SocketAddrUnix::new_unnamed()), path),
    })();
    opened.context(format_args!("connecting to {address:?} (connection {number})"))
}

/// Connects a Unix socket, which is bound to `own` before, if that is given.
pub(crate) fn connect_unix(
    socket_type: SocketType,
    own: Option<&SocketAddrUnix>,
    path: &Path,
) -> std::result::Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::UNIX, socket_type, SocketFlags::CLOEXEC, None)?;
    if let Some(own) = own {
        bind(&socket, own)?;
    }
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends without waiting; 0: the socket takes nothing now.
pub(crate) fn try_send(socket: &OwnedFd, bytes: &[u8]) -> Result<usize> {
    match send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Err(Errno::AGAIN) => Ok(0),
        sent => sent.context("sending"),
    }
}

/// Receives without waiting; `None`: there is nothing now. The end of the stream is a failure: no server may close a
/// connection here.
pub(crate) fn try_receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>> {
    match recv(socket, buffer, RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN) => Ok(None),
        Ok((_, 0)) => Err(Failure::new("receiving: the server has closed the connection")),
        received => received.map(|(_, size)| Some(size)).context("receiving"),
    }
}

/// Receives a packet without waiting, and returns its size; `None`: there is nothing now. What does not fit into the buffer
/// is lost.
pub(crate) fn receive_packet(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>> {
    match recv(socket, buffer, RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN) => Ok(None),
        received => received.map(|(size, _)| Some(size)).context("receiving"),
    }
}

/// Compares received bytes with the expected ones.
pub(crate) fn check_reply(received: &[u8], owed: &[u8]) -> Result<()> {
    if owed.get(..received.len()) == Some(received) {
        return Ok(());
    }
    let offset = received.iter().zip(owed).take_while(|(got, expected)| got == expected).count();
    let around = |bytes: &[u8]| {
        bytes[offset.saturating_sub(8).min(bytes.len())..(offset + 24).min(bytes.len())].escape_ascii().to_string()
    };
    let (received, owed) = (around(received), around(owed));
    Err(Failure::new(format_args!(
        "wrong reply: got …{received}… where …{owed}… was owed (difference at byte {offset})"
    )))
}

/// The events that a socket is watched for.
#[derive(Clone, Copy)]
pub(crate) enum Interest {
    /// Changes from nothing to read to something to read.
    ReadEdge,
    /// The same, and changes from full to writable.
    ReadWriteEdge,
    /// As long as there is something to read.
    Read,
    /// As long as there is something to read or room to write.
    ReadWrite,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        use epoll::EventFlags as Flags;
        match self {
            Self::ReadEdge => Flags::IN | Flags::ET,
            Self::ReadWriteEdge => Flags::IN | Flags::OUT | Flags::ET,
            Self::Read => Flags::IN,
            Self::ReadWrite => Flags::IN | Flags::OUT,
        }
    }
}

/// Returns the failure of a server that has not replied for [`REPLY_TIMEOUT`].
pub(crate) fn no_reply() -> Failure {
    Failure::new(format_args!("no reply for {} s, though some are owed", REPLY_TIMEOUT.as_secs()))
}

/// An epoll set and the events that it reported last.
pub(crate) struct Poll {
    set: OwnedFd,
    events: Vec<epoll::Event>,
}

/// The event of one socket.
#[derive(Clone, Copy)]
pub(crate) struct Ready {
    /// The number it was added with.
    pub(crate) key: usize,
    /// There is something to read, or the connection is broken.
    pub(crate) readable: bool,
    /// There is room to write.
    pub(crate) writable: bool,
}

impl Poll {
    /// Makes an empty set.
    pub(crate) fn new() -> Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).context("making an epoll set")?;
        Ok(Self { set, events: Vec::with_capacity(512) })
    }

    /// Adds a socket.
    pub(crate) fn add(&self, socket: &OwnedFd, key: usize, interest: Interest) -> Result<()> {
        let key = epoll::EventData::new_u64(key as u64);
        epoll::add(&self.set, socket, key, interest.flags()).context("adding to an epoll set")
    }

    /// Changes what a socket is watched for.
    pub(crate) fn modify(&self, socket: &OwnedFd, key: usize, interest: Interest) -> Result<()> {
        let key = epoll::EventData::new_u64(key as u64);
        epoll::modify(&self.set, socket, key, interest.flags()).context("changing an epoll set")
    }

    /// Waits for events and returns how many there are; a long silence is a failure.
    pub(crate) fn wait(&mut self) -> Result<usize> {
        match self.wait_for(REPLY_TIMEOUT)? {
            Some(0) => Err(no_reply()),
            count => Ok(count.unwrap_or(0)),
        }
    }

    /// Waits for events for some time, and returns how many there are. `None`: a signal came.
    pub(crate) fn wait_for(&mut self, time: Duration) -> Result<Option<usize>> {
        let timeout = Timespec::try_from(time).context("converting a time")?;
        self.events.clear();
        match epoll::wait(&self.set, rustix::buffer::spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(count) => Ok(Some(count)),
            Err(Errno::INTR) => Ok(None),
            Err(error) => Err(error).context("waiting for events"),
        }
    }

    /// Returns an event of the last wait.
    pub(crate) fn event(&self, index: usize) -> Ready {
        use epoll::EventFlags as Flags;
        let epoll::Event { flags, data } = self.events[index];
        Ready {
            // It was a usize when the socket was added.
            key: usize::try_from(data.u64()).unwrap_or(usize::MAX),
            readable: flags.intersects(Flags::IN | Flags::HUP | Flags::ERR),
            writable: flags.contains(Flags::OUT),
        }
    }
}

/// A load of equal connections, as the results call it: `SIZE-DEPTH-CONNECTIONS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Case {
    /// The size of every message in bytes, the delimiter not counted.
    pub(crate) size: usize,
    /// How many messages a connection sends before it waits for all their replies.
    pub(crate) depth: usize,
    /// The number of connections.
    pub(crate) connections: usize,
}

impl Case {
    /// Makes a case.
    pub(crate) const fn new(size: usize, depth: usize, connections: usize) -> Self {
        Self { size, depth, connections }
    }

    /// Creates a workload that lets a connection begin with a different message each time.
    pub(crate) fn workload(self) -> Workload {
        Workload::new(self.size, self.depth + if self.size > 4096 { 3 } else { 15 })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.size, self.depth, self.connections)
    }
}

impl std::str::FromStr for Case {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Vec<usize> = text.split('-').filter_map(|number| number.parse().ok()).collect();
        match numbers[..] {
            [size, depth, connections] if depth > 0 && connections > 0 => Ok(Self { size, depth, connections }),
            _ => Err(Failure::new(format_args!("invalid case {text:?} (SIZE-DEPTH-CONNECTIONS, example: 16-1-64)"))),
        }
    }
}
