//! The loads: connections that ask and wait, connections that come and go, connections that flood.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::wire::{Case, Interest, Poll, Script, check, dial, try_receive, try_send};
use crate::{Failure, Result, now};

/// What a single receive may bring.
const BUFFER: usize = 256 * 1024;

/// How long a load of few connections goes on before it pauses.
const BOUT: Duration = Duration::from_millis(5);

/// What was answered, and in which time.
#[derive(Clone, Copy)]
pub(crate) struct Answered {
    /// Messages whose replies have been received whole.
    pub(crate) messages: u64,
    /// The time it took.
    pub(crate) time: Duration,
}

/// Connections that send a batch of messages, wait for all the replies, and send the next batch.
pub(crate) struct Load {
    poll: Poll,
    peers: Vec<Peer>,
    script: Script,
    depth: usize,
    answered: u64,
    /// Connections that wait for replies.
    waiting: usize,
    buffer: Vec<u8>,
}

struct Peer {
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
        let script = case.script();
        let mut peers = Vec::with_capacity(case.connections);
        for key in 0..case.connections {
            let socket = dial(address, key)?;
            poll.add(&socket, key, Interest::ReadEdge)?;
            peers.push(Peer { socket, first: key % script.places(case.depth), sent: 0, received: None });
        }
        Ok(Self { poll, peers, script, depth: case.depth, answered: 0, waiting: 0, buffer: vec![0; BUFFER] })
    }

    /// Changes what the connections send, between two rounds.
    pub(crate) fn switch_to(&mut self, size: usize) {
        self.script = Case::new(size, self.depth, 1).script();
    }

    /// Every connection sends one batch; returns when all is answered.
    pub(crate) fn round(&mut self) -> Result<()> {
        self.bout(Duration::ZERO)
    }

    /// Keeps all connections busy for a time; returns when all is answered.
    ///
    /// Two programs that feed each other fall into step, in one of several ways: now this one finds many events
    /// at a time and the other few, now the reverse. It lasts for seconds, and one way costs a quarter more than
    /// another. Therefore the load pauses again and again until all is answered, so that a sample is a mean over
    /// many beginnings.
    pub(crate) fn run(&mut self, time: Duration) -> Result<Answered> {
        let (start, before) = (now(), self.answered);
        while start.elapsed() < time {
            self.bout(self.bout_length().min(time))?;
        }
        Ok(Answered { messages: self.answered - before, time: start.elapsed() })
    }

    /// How long it goes on before it pauses.
    pub(crate) fn bout_length(&self) -> Duration {
        BOUT * u32::try_from(self.peers.len() / 200).unwrap_or(u32::MAX).max(1)
    }

    fn bout(&mut self, time: Duration) -> Result<()> {
        let start = now();
        for key in 0..self.peers.len() {
            self.begin(key)?;
        }
        while self.waiting > 0 {
            let go_on = start.elapsed() < time;
            self.turn(go_on)?;
        }
        Ok(())
    }

    fn turn(&mut self, go_on: bool) -> Result<()> {
        for index in 0..self.poll.wait()? {
            let ready = self.poll.event(index);
            if ready.writable {
                self.send_rest(ready.key)?;
            }
            if ready.readable && self.receive(ready.key)? && go_on {
                self.begin(ready.key)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, key: usize) -> Result<()> {
        let peer = &mut self.peers[key];
        let batch = self.script.messages(peer.first, self.depth);
        peer.received = Some(0);
        peer.sent = try_send(&peer.socket, batch)?;
        if peer.sent < batch.len() {
            self.poll.change(&peer.socket, key, Interest::ReadWriteEdge)?;
        }
        self.waiting += 1;
        Ok(())
    }

    fn send_rest(&mut self, key: usize) -> Result<()> {
        let peer = &mut self.peers[key];
        let batch = self.script.messages(peer.first, self.depth);
        if peer.sent < batch.len() {
            peer.sent += try_send(&peer.socket, &batch[peer.sent..])?;
            if peer.sent == batch.len() {
                self.poll.change(&peer.socket, key, Interest::ReadEdge)?;
            }
        }
        Ok(())
    }

    /// Returns whether the batch is now answered whole.
    fn receive(&mut self, key: usize) -> Result<bool> {
        let peer = &mut self.peers[key];
        loop {
            let Some(size) = try_receive(&peer.socket, &mut self.buffer)? else { return Ok(false) };
            let Some(received) = peer.received else {
                return Err(Failure::new(format_args!("{size} bytes came that nobody had asked for")));
            };
            let owed = &self.script.replies(peer.first, self.depth)[received..];
            check(&self.buffer[..size], owed)?;
            if size == owed.len() {
                peer.received = None;
                peer.first = (peer.first + 1) % self.script.places(self.depth);
                self.answered += self.depth as u64;
                self.waiting -= 1;
                return Ok(true);
            }
            peer.received = Some(received + size);
            if size < self.buffer.len() {
                return Ok(false);
            }
        }
    }
}

/// Connections that are opened, send one message, take the reply and are closed, over and over.
pub(crate) struct Visits<'a> {
    address: &'a Address,
    poll: Poll,
    visitors: Vec<Option<Visitor>>,
    script: &'a Script,
    count: usize,
    buffer: Vec<u8>,
}

struct Visitor {
    socket: OwnedFd,
    message: usize,
    received: usize,
}

impl<'a> Visits<'a> {
    /// Prepares `at_once` connections at a time.
    pub(crate) fn new(address: &'a Address, script: &'a Script, at_once: usize) -> Result<Self> {
        Ok(Self {
            address,
            poll: Poll::new()?,
            visitors: (0..at_once).map(|_| None).collect(),
            script,
            count: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Goes on for a time; returns when all is answered and closed. It pauses now and then, as [`Load::run`].
    pub(crate) fn run(&mut self, time: Duration) -> Result<Answered> {
        let start = now();
        let mut messages = 0;
        while start.elapsed() < time {
            let bout = now();
            for key in 0..self.visitors.len() {
                self.visitors[key] = Some(self.visit(key)?);
            }
            let mut present = self.visitors.len();
            while present > 0 {
                for index in 0..self.poll.wait()? {
                    let key = self.poll.event(index).key;
                    if self.receive(key)? {
                        messages += 1;
                        // The old connection is closed before the new one is opened.
                        self.visitors[key] = None;
                        if bout.elapsed() < 5 * BOUT {
                            self.visitors[key] = Some(self.visit(key)?);
                        } else {
                            present -= 1;
                        }
                    }
                }
            }
        }
        Ok(Answered { messages, time: start.elapsed() })
    }

    /// Returns whether the reply is now there whole.
    fn receive(&mut self, key: usize) -> Result<bool> {
        let Some(visitor) = &mut self.visitors[key] else { return Ok(false) };
        let Some(size) = try_receive(&visitor.socket, &mut self.buffer)? else { return Ok(false) };
        let owed = &self.script.replies(visitor.message, 1)[visitor.received..];
        check(&self.buffer[..size], owed)?;
        visitor.received += size;
        Ok(size == owed.len())
    }

    fn visit(&mut self, key: usize) -> Result<Visitor> {
        self.count += 1;
        let message = self.count % self.script.count();
        let socket = dial(self.address, self.count)?;
        if try_send(&socket, self.script.messages(message, 1))? < self.script.messages(message, 1).len() {
            return Err(Failure::new("a new connection does not take a single small message"));
        }
        self.poll.add(&socket, key, Interest::Read)?;
        Ok(Visitor { socket, message, received: 0 })
    }
}

/// Connections that send without ever waiting, and one beside them that measures how long its replies take.
pub(crate) struct Flood {
    poll: Poll,
    /// The last one is the one that measures.
    peers: Vec<Stream>,
    script: Script,
    buffer: Vec<u8>,
}

struct Stream {
    socket: OwnedFd,
    /// Where the next byte to be sent and to be received stands in the script, which is repeated without end.
    sent: usize,
    received: usize,
}

impl Flood {
    /// What a flooding connection may send, and receive, in one turn: the load must not be what is unfair.
    const TURN: usize = 64 * 1024;

    /// Opens so many flooding connections, with messages of `size` bytes, and the one that measures.
    pub(crate) fn connect(address: &Address, size: usize, flooding: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let mut peers = Vec::with_capacity(flooding + 1);
        for key in 0..=flooding {
            let socket = dial(address, key)?;
            poll.add(&socket, key, if key < flooding { Interest::ReadWrite } else { Interest::Read })?;
            peers.push(Stream { socket, sent: 0, received: 0 });
        }
        Ok(Self { poll, peers, script: Script::new(size, 2 * Self::TURN / (size + 1)), buffer: vec![0; Self::TURN] })
    }

    /// Goes on for a time, and returns the round trip times of the connection that measures, in seconds.
    pub(crate) fn run(&mut self, time: Duration) -> Result<Vec<f64>> {
        let start = now();
        let mut times = Vec::new();
        let mut asked = self.ask()?;
        while now() - start < time {
            let count = self.poll.wait()?;
            let measuring = self.peers.len() - 1;
            if (0..count).any(|index| self.poll.event(index).key == measuring) && self.receive(measuring)? {
                times.push((now() - asked).as_secs_f64());
                asked = self.ask()?;
            }
            for index in 0..count {
                let ready = self.poll.event(index);
                if ready.key == measuring {
                    continue;
                }
                if ready.readable {
                    self.receive(ready.key)?;
                }
                if ready.writable {
                    let messages = self.script.messages(0, self.script.count());
                    let peer = &mut self.peers[ready.key];
                    let end = messages.len().min(peer.sent + Self::TURN);
                    peer.sent = (peer.sent + try_send(&peer.socket, &messages[peer.sent..end])?) % messages.len();
                }
            }
        }
        // One question is still open; it must not be left to the next run.
        while !self.receive(self.peers.len() - 1)? {
            self.poll.wait()?;
        }
        Ok(times)
    }

    fn ask(&self) -> Result<Instant> {
        let asked = now();
        let message = self.script.messages(0, 1);
        let sent = self.peers.last().map_or(Ok(0), |peer| try_send(&peer.socket, message))?;
        if sent < message.len() {
            return Err(Failure::new("an idle connection does not take a single small message"));
        }
        Ok(asked)
    }

    /// Returns whether the stream now stands at the end of the script's first reply.
    fn receive(&mut self, key: usize) -> Result<bool> {
        let whole = self.script.replies(0, if key + 1 == self.peers.len() { 1 } else { self.script.count() });
        let peer = &mut self.peers[key];
        let Some(size) = try_receive(&peer.socket, &mut self.buffer)? else { return Ok(false) };
        let (mut rest, mut received) = (&self.buffer[..size], peer.received);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(whole.len() - received));
            check(now, &whole[received..])?;
            received = (received + now.len()) % whole.len();
            rest = later;
        }
        peer.received = received;
        Ok(received == 0)
    }
}
