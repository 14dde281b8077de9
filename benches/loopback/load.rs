//! The loads: connections that send and wait, short connections, connections that flood.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::socket_io::{Case, Interest, Poll, Workload, check_reply, open_connection, try_receive, try_send};
use crate::{Failure, Result, now};

/// The size of the receive buffer.
const BUFFER_SIZE: usize = 256 * 1024;

/// How long a burst of few connections lasts.
const BURST: Duration = Duration::from_millis(5);

/// How many messages were answered, and in which time.
#[derive(Clone, Copy, Default)]
pub(crate) struct Answered {
    /// Messages whose replies have been received whole.
    pub(crate) messages: u64,
    /// Messages that had no reply in time. Of a stream there are none.
    pub(crate) lost: u64,
    /// The time it took.
    pub(crate) time: Duration,
}

/// A load that keeps a server busy.
pub(crate) trait Run {
    /// Keeps the server busy for a time; returns when all is answered.
    fn run(&mut self, time: Duration) -> Result<Answered>;

    /// Returns how long a burst lasts.
    fn burst_length(&self) -> Duration;
}

/// Returns how long a burst of so many connections or sources lasts.
pub(crate) fn burst_length(connections: usize) -> Duration {
    BURST * u32::try_from(connections / 200).unwrap_or(u32::MAX).max(1)
}

/// Connections that send a batch of messages, wait for all the replies, and send the next batch.
pub(crate) struct Load {
    poll: Poll,
    connections: Vec<LoadConnection>,
    workload: Workload,
    depth: usize,
    answered: u64,
    /// Connections that wait for replies.
    waiting: usize,
    buffer: Vec<u8>,
}

struct LoadConnection {
    socket: OwnedFd,
    /// The first message of the batch.
    first: usize,
    /// Bytes of the batch that were sent.
    sent: usize,
    /// Bytes of its replies that were received; `None`: no reply is owed.
    received: Option<usize>,
}

impl Load {
    /// Opens the connections. Nothing is sent yet.
    pub(crate) fn connect(address: &Address, case: Case) -> Result<Self> {
        let poll = Poll::new()?;
        let workload = case.workload();
        let mut connections = Vec::with_capacity(case.connections);
        for key in 0..case.connections {
            let socket = open_connection(address, key)?;
            poll.add(&socket, key, Interest::ReadEdge)?;
            connections.push(LoadConnection {
                socket,
                first: key % workload.batch_starts(case.depth),
                sent: 0,
                received: None,
            });
        }
        Ok(Self {
            poll,
            connections,
            workload,
            depth: case.depth,
            answered: 0,
            waiting: 0,
            buffer: vec![0; BUFFER_SIZE],
        })
    }

    /// Changes what the connections send, between two rounds.
    pub(crate) fn set_message_size(&mut self, size: usize) {
        self.workload = Case::new(size, self.depth, 1).workload();
    }

    /// Sends one batch on every connection; returns when all is answered.
    pub(crate) fn exchange_batch(&mut self) -> Result<()> {
        self.run_burst(Duration::ZERO)
    }

    fn run_burst(&mut self, time: Duration) -> Result<()> {
        let start = now();
        for key in 0..self.connections.len() {
            self.send_batch(key)?;
        }
        while self.waiting > 0 {
            let continue_sending = start.elapsed() < time;
            self.process_events(continue_sending)?;
        }
        Ok(())
    }

    fn process_events(&mut self, continue_sending: bool) -> Result<()> {
        for index in 0..self.poll.wait()? {
            let ready = self.poll.event(index);
            if ready.writable {
                self.send_rest(ready.key)?;
            }
            if ready.readable && self.receive(ready.key)? && continue_sending {
                self.send_batch(ready.key)?;
            }
        }
        Ok(())
    }

    fn send_batch(&mut self, key: usize) -> Result<()> {
        let connection = &mut self.connections[key];
        let batch = self.workload.messages(connection.first, self.depth);
        connection.received = Some(0);
        connection.sent = try_send(&connection.socket, batch)?;
        if connection.sent < batch.len() {
            self.poll.modify(&connection.socket, key, Interest::ReadWriteEdge)?;
        }
        self.waiting += 1;
        Ok(())
    }

    fn send_rest(&mut self, key: usize) -> Result<()> {
        let connection = &mut self.connections[key];
        let batch = self.workload.messages(connection.first, self.depth);
        if connection.sent < batch.len() {
            connection.sent += try_send(&connection.socket, &batch[connection.sent..])?;
            if connection.sent == batch.len() {
                self.poll.modify(&connection.socket, key, Interest::ReadEdge)?;
            }
        }
        Ok(())
    }

    /// Returns whether the batch is now answered whole.
    fn receive(&mut self, key: usize) -> Result<bool> {
        let connection = &mut self.connections[key];
        loop {
            let Some(size) = try_receive(&connection.socket, &mut self.buffer)? else { return Ok(false) };
            let Some(received) = connection.received else {
                return Err(Failure::new(format_args!("{size} unexpected bytes were received")));
            };
            let owed = &self.workload.replies(connection.first, self.depth)[received..];
            check_reply(&self.buffer[..size], owed)?;
            if size == owed.len() {
                connection.received = None;
                connection.first = (connection.first + 1) % self.workload.batch_starts(self.depth);
                self.answered += self.depth as u64;
                self.waiting -= 1;
                return Ok(true);
            }
            connection.received = Some(received + size);
            if size < self.buffer.len() {
                return Ok(false);
            }
        }
    }
}

impl Run for Load {
    /// Keeps all connections busy for a time; returns when all is answered.
    ///
    /// Two programs that feed each other fall into step, in one of several ways: now this one finds many events at a
    /// time and the other few, now the reverse. It lasts for seconds, and one way costs a quarter more than another.
    /// Therefore the load runs in bursts and waits after each until all is answered, so that a sample is a mean over
    /// many beginnings.
    fn run(&mut self, time: Duration) -> Result<Answered> {
        let (start, before) = (now(), self.answered);
        while start.elapsed() < time {
            self.run_burst(self.burst_length().min(time))?;
        }
        Ok(Answered { messages: self.answered - before, lost: 0, time: start.elapsed() })
    }

    fn burst_length(&self) -> Duration {
        burst_length(self.connections.len())
    }
}

/// Connections that are opened, send one message, take the reply and are closed, over and over.
pub(crate) struct ShortConnections<'a> {
    address: &'a Address,
    poll: Poll,
    connections: Vec<Option<ShortConnection>>,
    workload: &'a Workload,
    count: usize,
    buffer: Vec<u8>,
}

struct ShortConnection {
    socket: OwnedFd,
    message: usize,
    received: usize,
}

impl<'a> ShortConnections<'a> {
    /// Prepares a load of `concurrency` connections at a time.
    pub(crate) fn new(address: &'a Address, workload: &'a Workload, concurrency: usize) -> Result<Self> {
        Ok(Self {
            address,
            poll: Poll::new()?,
            connections: (0..concurrency).map(|_| None).collect(),
            workload,
            count: 0,
            buffer: vec![0; BUFFER_SIZE],
        })
    }

    /// Runs for a time; returns when all is answered and closed. It runs in bursts, as [`Load::run`].
    pub(crate) fn run(&mut self, time: Duration) -> Result<Answered> {
        let start = now();
        let mut messages = 0;
        while start.elapsed() < time {
            let burst_start = now();
            for key in 0..self.connections.len() {
                self.connections[key] = Some(self.open(key)?);
            }
            let mut open_count = self.connections.len();
            while open_count > 0 {
                for index in 0..self.poll.wait()? {
                    let key = self.poll.event(index).key;
                    if self.receive(key)? {
                        messages += 1;
                        // The old connection is closed before the new one is opened.
                        self.connections[key] = None;
                        if burst_start.elapsed() < 5 * BURST {
                            self.connections[key] = Some(self.open(key)?);
                        } else {
                            open_count -= 1;
                        }
                    }
                }
            }
        }
        Ok(Answered { messages, lost: 0, time: start.elapsed() })
    }

    /// Returns whether the reply is now there whole.
    fn receive(&mut self, key: usize) -> Result<bool> {
        let Some(connection) = &mut self.connections[key] else { return Ok(false) };
        let Some(size) = try_receive(&connection.socket, &mut self.buffer)? else { return Ok(false) };
        let owed = &self.workload.replies(connection.message, 1)[connection.received..];
        check_reply(&self.buffer[..size], owed)?;
        connection.received += size;
        Ok(size == owed.len())
    }

    fn open(&mut self, key: usize) -> Result<ShortConnection> {
        self.count += 1;
        let message = self.count % self.workload.count();
        let socket = open_connection(self.address, self.count)?;
        if try_send(&socket, self.workload.messages(message, 1))? < self.workload.messages(message, 1).len() {
            return Err(Failure::new("a new connection does not take a single small message"));
        }
        self.poll.add(&socket, key, Interest::Read)?;
        Ok(ShortConnection { socket, message, received: 0 })
    }
}

/// Connections that send without ever waiting, and a probe beside them that measures how long its replies take.
pub(crate) struct Flood {
    poll: Poll,
    /// The last one is the probe.
    connections: Vec<FloodConnection>,
    workload: Workload,
    buffer: Vec<u8>,
    /// How many bytes of replies the flooding connections received.
    received: u64,
}

/// The result of a run beside a flood.
pub(crate) struct FloodRun {
    /// The round trip times of the probe, in seconds.
    pub(crate) times: Vec<f64>,
    /// The replies a second that all flooding connections received.
    pub(crate) rate: f64,
}

struct FloodConnection {
    socket: OwnedFd,
    /// The index of the next byte to be sent and to be received in the workload, which is repeated without end.
    sent: usize,
    received: usize,
}

impl Flood {
    /// The most that a flooding connection may send, and receive, for one event: the load itself must be fair.
    const MAX_TRANSFER: usize = 64 * 1024;

    /// Opens this many flooding connections, with messages of `size` bytes, and the probe.
    pub(crate) fn connect(address: &Address, size: usize, flooding: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(flooding + 1);
        for key in 0..=flooding {
            let socket = open_connection(address, key)?;
            poll.add(&socket, key, if key < flooding { Interest::ReadWrite } else { Interest::Read })?;
            connections.push(FloodConnection { socket, sent: 0, received: 0 });
        }
        Ok(Self {
            poll,
            connections,
            workload: Workload::new(size, 2 * Self::MAX_TRANSFER / (size + 1)),
            buffer: vec![0; Self::MAX_TRANSFER],
            received: 0,
        })
    }

    /// Runs for a time.
    pub(crate) fn run(&mut self, time: Duration) -> Result<FloodRun> {
        let start = now();
        let mut times = Vec::new();
        let received_before = self.received;
        let mut probe_sent = self.send_probe()?;
        while now() - start < time {
            let count = self.poll.wait()?;
            let probe = self.connections.len() - 1;
            if (0..count).any(|index| self.poll.event(index).key == probe) && self.receive(probe)? {
                times.push((now() - probe_sent).as_secs_f64());
                probe_sent = self.send_probe()?;
            }
            for index in 0..count {
                let ready = self.poll.event(index);
                if ready.key == probe {
                    continue;
                }
                if ready.readable {
                    self.receive(ready.key)?;
                }
                if ready.writable {
                    let messages = self.workload.messages(0, self.workload.count());
                    let connection = &mut self.connections[ready.key];
                    let end = messages.len().min(connection.sent + Self::MAX_TRANSFER);
                    connection.sent = (connection.sent
                        + try_send(&connection.socket, &messages[connection.sent..end])?)
                        % messages.len();
                }
            }
        }
        let count = self.workload.count();
        let replies =
            (self.received - received_before) as f64 * count as f64 / self.workload.replies(0, count).len() as f64;
        let rate = replies / (now() - start).as_secs_f64();
        // One probe is still unanswered; its reply must not be left to the next run.
        while !self.receive(self.connections.len() - 1)? {
            self.poll.wait()?;
        }
        Ok(FloodRun { times, rate })
    }

    fn send_probe(&self) -> Result<Instant> {
        let probe_sent = now();
        let message = self.workload.messages(0, 1);
        let sent = self.connections.last().map_or(Ok(0), |connection| try_send(&connection.socket, message))?;
        if sent < message.len() {
            return Err(Failure::new("an idle connection does not take a single small message"));
        }
        Ok(probe_sent)
    }

    /// Returns whether the stream is now at the end of the expected replies.
    fn receive(&mut self, key: usize) -> Result<bool> {
        let is_probe = key + 1 == self.connections.len();
        let expected = self.workload.replies(0, if is_probe { 1 } else { self.workload.count() });
        let connection = &mut self.connections[key];
        let Some(size) = try_receive(&connection.socket, &mut self.buffer)? else { return Ok(false) };
        if !is_probe {
            self.received += size as u64;
        }
        let (mut rest, mut received) = (&self.buffer[..size], connection.received);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(expected.len() - received));
            check_reply(now, &expected[received..])?;
            received = (received + now.len()) % expected.len();
            rest = later;
        }
        connection.received = received;
        Ok(received == 0)
    }
}
