//! Sources that always have as much on the way as they may, and a probe beside them that measures how long its replies
//! take.

use std::time::{Duration, Instant};

use crate::address::{Address, Transport};
use crate::packets::content::Content;
use crate::packets::in_flight::{most_in_flight, most_queued};
use crate::packets::packet_io::PacketIo;
use crate::packets::source::{CHECK_INTERVAL, Source};
use crate::packets::tally::Tally;
use crate::packets::window::MAX_WINDOW;
use crate::socket_io::{Interest, Poll};
use crate::{Result, now};

/// The bytes of the probe's messages.
const PROBE_SIZE: usize = 16;

/// Sources that flood, and a probe.
pub(crate) struct PacketFlood {
    poll: Poll,
    flooding: Vec<Source>,
    /// How many messages each of them has on the way.
    window: usize,
    io: PacketIo,
    probe: Source,
    probe_io: PacketIo,
    tally: Tally,
}

impl PacketFlood {
    /// Opens this many flooding sources, with messages of `size` bytes, and the probe.
    pub(crate) fn open(address: &Address, transport: Transport, size: usize, flooding: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let open = |key| {
            let source = Source::open(address, transport, key)?;
            poll.add(&source.socket, key, Interest::ReadEdge)?;
            Ok(source)
        };
        let mut sources = (0..=flooding).map(open).collect::<Result<Vec<_>>>()?;
        let probe = sources.pop().expect("there is one more than flood");
        // The probe needs room, too. If the queue of the server were full, the probe would wait before it sends, for a
        // turn that this program gives, and not the server.
        let room = most_in_flight(transport, size)?.min(most_queued(transport)?) - 1;
        Ok(Self {
            poll,
            flooding: sources,
            window: (room / flooding).clamp(1, MAX_WINDOW),
            io: PacketIo::new(Content::new(size)),
            probe,
            probe_io: PacketIo::new(Content::new(PROBE_SIZE)),
            tally: Tally::default(),
        })
    }

    /// Runs for a time, and returns the round trip times of the probe, in seconds. Then all is answered.
    pub(crate) fn run(&mut self, time: Duration) -> Result<Vec<f64>> {
        let start = now();
        let mut times = Vec::new();
        let mut probe_sent: Option<Instant> = None;
        let mut last_check = start;
        loop {
            let continue_sending = now() - start < time;
            if continue_sending {
                for source in &mut self.flooding {
                    let missing = self.window.saturating_sub(source.outstanding());
                    source.send(&mut self.io, missing)?;
                }
                if self.probe.outstanding() == 0 {
                    // If the server takes no more now, that time counts.
                    probe_sent.get_or_insert_with(now);
                    self.probe.send(&mut self.probe_io, 1)?;
                }
            } else if self.outstanding() == 0 {
                return Ok(times);
            }
            let events = self.poll.wait_for(CHECK_INTERVAL)?.unwrap_or(0);
            // The probe first: that the others are many is not to be its loss here.
            if (0..events).any(|index| self.poll.event(index).key == self.flooding.len()) {
                let answered = self.probe.receive(&mut self.probe_io, &mut self.tally)?;
                if let Some(sent) = probe_sent.filter(|_| answered > 0) {
                    times.push(sent.elapsed().as_secs_f64());
                    probe_sent = None;
                }
            }
            for index in 0..events {
                if let Some(source) = self.flooding.get_mut(self.poll.event(index).key) {
                    source.receive(&mut self.io, &mut self.tally)?;
                }
            }
            if last_check.elapsed() > CHECK_INTERVAL {
                last_check = now();
                for source in self.flooding.iter_mut().chain([&mut self.probe]) {
                    source.give_up_overdue(&mut self.tally);
                }
            }
        }
    }

    /// Returns the outcomes of all messages so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    fn outstanding(&self) -> usize {
        self.flooding.iter().map(Source::outstanding).sum::<usize>() + self.probe.outstanding()
    }
}
