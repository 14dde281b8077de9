//! The load of packets: sources that send some messages, wait for all the replies, and send the next.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::address::{Address, Transport};
use crate::load::{Answered, Run, burst_length};
use crate::packets::content::Content;
use crate::packets::in_flight::most_in_flight;
use crate::packets::packet_io::PacketIo;
use crate::packets::source::{CHECK_INTERVAL, Source};
use crate::packets::tally::Tally;
use crate::socket_io::{Case, Interest, Poll, REPLY_TIMEOUT, no_reply};
use crate::{Result, now};

/// Sources that send some messages, wait for all the replies, and send the next.
pub(crate) struct PacketLoad {
    poll: Poll,
    sources: Vec<LoadSource>,
    /// The sources that have something to send, in the order in which they do.
    queue: VecDeque<usize>,
    io: PacketIo,
    depth: usize,
    in_flight: usize,
    most_in_flight: usize,
    tally: Tally,
    /// The time of the last wait, which is exact enough for what is overdue.
    time: Instant,
    last_reply: Instant,
    last_check: Instant,
}

struct LoadSource {
    source: Source,
    /// How many messages of its batch it has not sent yet. It is in the queue while there are some.
    unsent: usize,
}

impl PacketLoad {
    /// Opens the sources. Nothing is sent yet.
    pub(crate) fn open(address: &Address, transport: Transport, case: Case) -> Result<Self> {
        Self::with_content(address, transport, case, Content::new(case.size))
    }

    /// Starts a load of messages and replies with other content.
    pub(crate) fn with_content(address: &Address, transport: Transport, case: Case, content: Content) -> Result<Self> {
        let poll = Poll::new()?;
        let time = now();
        let mut sources = Vec::with_capacity(case.connections);
        for key in 0..case.connections {
            let source = Source::open(address, transport, key)?;
            poll.add(&source.socket, key, Interest::ReadEdge)?;
            sources.push(LoadSource { source, unsent: 0 });
        }
        Ok(Self {
            poll,
            sources,
            queue: VecDeque::with_capacity(case.connections),
            most_in_flight: most_in_flight(transport, content.size())?,
            io: PacketIo::new(content),
            depth: case.depth,
            in_flight: 0,
            tally: Tally::default(),
            time,
            last_reply: time,
            last_check: time,
        })
    }

    /// Leaves the server's receive buffer to so many loads, of which this is one.
    pub(crate) fn share_buffer(mut self, loads: usize) -> Self {
        self.most_in_flight /= loads;
        self
    }

    /// Changes what the sources send, between two rounds.
    pub(crate) fn set_message_size(&mut self, size: usize) {
        self.io = PacketIo::new(Content::new(size));
    }

    /// Has every source send its messages once; returns when all is answered.
    pub(crate) fn exchange_batch(&mut self) -> Result<()> {
        self.run_burst(Duration::ZERO)
    }

    /// Returns the outcomes of all messages so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    fn run_burst(&mut self, time: Duration) -> Result<()> {
        self.time = now();
        let start = self.time;
        self.last_reply = start;
        for key in 0..self.sources.len() {
            self.enqueue(key);
        }
        self.send_queued()?;
        while self.in_flight > 0 || !self.queue.is_empty() {
            let events = self.poll.wait_for(CHECK_INTERVAL)?.unwrap_or(0);
            self.time = now();
            let continue_sending = self.time - start < time;
            for index in 0..events {
                let key = self.poll.event(index).key;
                if self.receive(key)? && continue_sending {
                    self.enqueue(key);
                }
            }
            self.give_up_overdue()?;
            self.send_queued()?;
        }
        Ok(())
    }

    fn enqueue(&mut self, key: usize) {
        self.sources[key].unsent = self.depth;
        self.queue.push_back(key);
    }

    /// Sends what the queue has, as far as there is room for it.
    fn send_queued(&mut self) -> Result<()> {
        while let Some(&key) = self.queue.front() {
            let LoadSource { source, unsent } = &mut self.sources[key];
            if self.in_flight > 0 && self.in_flight + *unsent > self.most_in_flight {
                break;
            }
            let sent = source.send(&mut self.io, *unsent)?;
            *unsent -= sent;
            self.in_flight += sent;
            if *unsent > 0 {
                // The server takes no more now. It will when it has replied.
                break;
            }
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Returns whether all that the source had sent is answered now.
    fn receive(&mut self, key: usize) -> Result<bool> {
        let LoadSource { source, unsent } = &mut self.sources[key];
        let answered = source.receive(&mut self.io, &mut self.tally)?;
        if answered > 0 {
            self.in_flight -= answered;
            self.last_reply = self.time;
        }
        Ok(answered > 0 && source.outstanding() == 0 && *unsent == 0)
    }

    /// Gives up messages that have no reply for too long; their sources send anew.
    fn give_up_overdue(&mut self) -> Result<()> {
        if self.time - self.last_check < CHECK_INTERVAL {
            return Ok(());
        }
        self.last_check = self.time;
        if self.time - self.last_reply > REPLY_TIMEOUT {
            return Err(no_reply());
        }
        for key in 0..self.sources.len() {
            let LoadSource { source, unsent } = &mut self.sources[key];
            let lost = source.give_up_overdue(&mut self.tally);
            self.in_flight -= lost;
            if lost > 0 && *unsent == 0 {
                self.enqueue(key);
            }
        }
        Ok(())
    }
}

impl Run for PacketLoad {
    /// Keeps all sources busy for a time, in bursts, as a load of streams does; returns when all is answered.
    fn run(&mut self, time: Duration) -> Result<Answered> {
        let (start, before) = (now(), self.tally);
        while start.elapsed() < time {
            self.run_burst(self.burst_length().min(time))?;
        }
        let messages = self.tally.answered - before.answered;
        Ok(Answered { messages, lost: self.tally.lost - before.lost, time: start.elapsed() })
    }

    fn burst_length(&self) -> Duration {
        burst_length(self.sources.len())
    }
}
