//! One thread of the load: the phases of its run, and what is looked at from time to time.
//!
//! ```text
//! connecting ──all threads──> sending (warm-up, then measured) ──time, count or Ctrl-C──> finishing ──> done
//! ```
//!
//! What happens between two looks at the clock is in [`super::traffic`]: there every instruction is paid for each
//! message, here for each tick.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::time::Duration;

use super::control::{Control, Ending};
use super::dial::Target;
use super::peer::{Peer, State};
use super::poll::{Clock, Event, Poll};
use super::schedule::Schedule;
use super::script::Script;
use super::tally::{Cause, Tally};
use super::{Load, nanos};
use crate::units::format_time;

/// What a single receive may bring, in bytes.
const BUFFER: usize = 256 * 1024;

/// How often the deadlines are looked at, unless they are shorter; and how often progress is told.
const SWEEP: u64 = 100_000_000;

/// The same while connections are missing.
const SOON: u64 = 10_000_000;

/// After Ctrl-C, how long replies are still waited for.
const GRACE: u64 = 1_000_000_000;

/// What a thread does with its part of the connections.
pub(super) struct Worker<'a> {
    pub(super) load: &'a Load,
    pub(super) script: &'a Script,
    target: &'a Target,
    control: &'a Control,
    pub(super) clock: Clock,
    /// Which thread this is.
    number: usize,
    pub(super) poll: Poll,
    pub(super) peers: Vec<Peer>,
    pub(super) buffer: Vec<u8>,
    pub(super) tally: Tally,
    warm_up: Tally,
    pub(super) phase: Phase,
    pub(super) schedule: Option<Schedule>,
    pub(super) batch: Batch,
    /// How many slots have been looked at.
    released: u64,
    /// How many messages may still be sent.
    pub(super) left: u64,
    /// Connections that wait for replies, while this finishes.
    pub(super) waiting: usize,
    /// When the measured time began; 0: not yet.
    began: u64,
    /// When it ended.
    pub(super) ended: u64,
    pub(super) last_answer: u64,
    /// Since when nothing but failures has happened.
    failing_since: Option<u64>,
    unsent: u64,
    warm_until: u64,
    send_until: u64,
    finish_until: u64,
    next_sweep: u64,
}

/// What a thread is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Every connection is made, or fails once.
    Connecting,
    /// Messages are sent.
    Sending,
    /// Nothing more is sent; replies that are owed may still come.
    Finishing,
    /// That is all.
    Done,
}

/// What a batch of the whole depth is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    /// Bytes of its messages.
    pub(super) messages: usize,
    /// Bytes of its replies.
    pub(super) replies: usize,
    /// From its place in the script to that of the next one.
    pub(super) step: usize,
}

/// What a thread has found out.
pub(super) struct Findings {
    pub(super) measured: Tally,
    pub(super) warm_up: Tally,
    pub(super) time: Duration,
    pub(super) unsent: u64,
}

impl<'a> Worker<'a> {
    /// Number `number` of the threads of a load, with its share of the connections; `first` is one of them.
    pub(super) fn new(
        number: usize,
        load: &'a Load,
        script: &'a Script,
        target: &'a Target,
        control: &'a Control,
        clock: Clock,
        first: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let mut peers: Vec<_> = (0..share(load.connections, load.threads, number)).map(|_| Peer::new()).collect();
        for (at, peer) in peers.iter_mut().enumerate() {
            peer.first = at % script.places();
        }
        let poll = Poll::new(control.waker(number))?;
        let mut worker = Self {
            load,
            script,
            target,
            control,
            clock,
            number,
            poll,
            peers,
            buffer: vec![0; BUFFER],
            tally: Tally::default(),
            warm_up: Tally::default(),
            phase: Phase::Connecting,
            schedule: None,
            batch: Batch {
                messages: load.depth * script.message_size(),
                replies: load.depth * script.reply_size(),
                step: load.depth % script.places(),
            },
            released: 0,
            left: load.count.map_or(u64::MAX, |count| share_of(count, load.threads, number)),
            waiting: 0,
            began: 0,
            ended: 0,
            last_answer: 0,
            failing_since: None,
            unsent: 0,
            warm_until: 0,
            send_until: u64::MAX,
            finish_until: u64::MAX,
            next_sweep: 0,
        };
        if let Some(socket) = first {
            worker.connected(0, socket, true, clock.now());
        }
        Ok(worker)
    }

    /// Runs to the end. The barrier is passed once by each thread, when its connections are made.
    pub(super) fn run(mut self, barrier: &Barrier) -> io::Result<Findings> {
        let connected = self.connect_all();
        barrier.wait();
        connected?;
        if self.phase == Phase::Connecting {
            self.begin(self.clock.now());
        }
        while self.phase != Phase::Done {
            self.turn()?;
        }
        self.control.report(self.number, self.warm_up.answered + self.tally.answered, self.errors());
        let time = if self.began == 0 { 0 } else { self.ended.max(self.last_answer).saturating_sub(self.began) };
        Ok(Findings {
            measured: self.tally,
            warm_up: self.warm_up,
            time: Duration::from_nanos(time),
            unsent: self.unsent,
        })
    }

    fn errors(&self) -> u64 {
        self.warm_up.errors() + self.tally.errors()
    }

    // --- Phases --------------------------------------------------------------------------------------------------------

    fn connect_all(&mut self) -> io::Result<()> {
        for key in 0..self.peers.len() {
            if matches!(self.peers[key].state, State::Down { .. }) {
                self.dial(key, self.clock.now());
            }
        }
        self.tick(self.clock.now());
        while self.phase == Phase::Connecting && !self.peers.iter().all(|peer| peer.settled) {
            self.turn()?;
        }
        Ok(())
    }

    fn begin(&mut self, at: u64) {
        let load = self.load;
        self.phase = Phase::Sending;
        self.warm_until = at.saturating_add(nanos(load.warm_up));
        self.send_until = load.duration.map_or(u64::MAX, |time| self.warm_until.saturating_add(nanos(time)));
        self.began = at;
        if let Some(rate) = load.rate {
            // Each thread has its part of the rate, and its slots lie between those of the others.
            let offset = (1e9 / rate * self.number as f64).round();
            let start = at.saturating_add(nanos(Duration::from_secs_f64(offset / 1e9)));
            let part = rate * self.peers.len() as f64 / load.connections as f64;
            self.schedule = Some(Schedule::new(start, part, self.peers.len()));
        } else {
            for key in 0..self.peers.len() {
                self.pump(key, self.clock.now());
            }
        }
        self.tick(self.clock.now());
    }

    /// Nothing more is sent. Replies may still come for some time.
    pub(super) fn finish(&mut self, at: u64, grace: u64) {
        if matches!(self.phase, Phase::Finishing | Phase::Done) {
            return;
        }
        if let Some(schedule) = &self.schedule {
            let used: u64 = self.peers.iter().map(|peer| peer.slots).sum();
            self.unsent = schedule.due(at.min(self.send_until)).saturating_sub(used).min(self.left);
        } else if self.load.count.is_some() {
            self.unsent = self.left;
        }
        self.phase = Phase::Finishing;
        self.ended = at;
        self.waiting = self.peers.iter().filter(|peer| peer.owed > 0).count();
        self.finish_until = at.saturating_add(grace);
        if self.waiting == 0 {
            self.phase = Phase::Done;
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        let count = self.poll.wait()?;
        let mut tick = false;
        for index in 0..count {
            match self.poll.event(index) {
                // Afterwards: it may put new connections in the place of those that are still in this list.
                Event::Tick => tick = true,
                Event::Socket { key, writable, ended } => self.ready(key, writable, ended),
            }
        }
        if tick {
            self.tick(self.clock.now());
        }
        Ok(())
    }

    /// Looks at the clock and at what others want.
    fn tick(&mut self, at: u64) {
        match self.control.ending() {
            Ending::No => {}
            Ending::Soon => self.finish(at, GRACE.min(nanos(self.load.timeout))),
            Ending::Now => {
                self.finish(at, 0);
                self.finish_until = 0;
            }
        }
        if self.phase == Phase::Sending {
            if self.warm_until > 0 && at >= self.warm_until {
                if self.warm_until > self.began {
                    self.end_warm_up();
                }
                self.warm_until = 0;
            }
            if at >= self.send_until {
                self.finish(self.send_until, u64::MAX);
            } else if self.left == 0 {
                self.finish(at, u64::MAX);
            }
        }
        if self.phase == Phase::Sending {
            self.release(at);
        }
        if at >= self.next_sweep {
            self.sweep(at);
        }
        if self.phase == Phase::Finishing && at >= self.finish_until {
            for key in 0..self.peers.len() {
                self.conclude(key, at);
                if self.peers[key].owed > 0 {
                    self.lose(key, Cause::Unanswered, at, || "interrupted before the reply came".to_owned());
                }
            }
            self.phase = Phase::Done;
        }
        self.set_timer(at);
    }

    fn end_warm_up(&mut self) {
        self.warm_up = std::mem::take(&mut self.tally);
        // What is on its way belongs to the time in which it is answered.
        let owed: usize = self.peers.iter().map(|peer| peer.owed).sum();
        self.warm_up.sent -= owed as u64;
        self.tally.sent = owed as u64;
        self.began = self.warm_until;
    }

    fn set_timer(&self, at: u64) {
        let mut next = self.next_sweep.min(self.finish_until);
        if self.phase == Phase::Sending {
            next = next.min(self.send_until);
            if self.warm_until > 0 {
                next = next.min(self.warm_until);
            }
            if let Some(schedule) = &self.schedule {
                next = next.min(schedule.slot(self.released));
            }
        }
        self.poll.set_timer(next.saturating_sub(at));
    }

    // --- From time to time ---------------------------------------------------------------------------------------------

    /// Sends what has become due.
    fn release(&mut self, at: u64) {
        let Some(schedule) = &self.schedule else { return };
        let due = schedule.due(at);
        // After a pause, each connection once is enough.
        let from = self.released.max(due.saturating_sub(self.peers.len() as u64));
        self.released = due;
        for slot in from..due {
            if let Some(key) = self.schedule.as_ref().map(|schedule| schedule.connection(slot)) {
                self.pump(key, at);
            }
        }
    }

    /// How many messages of a connection are due and not sent.
    pub(super) fn due(&self, key: usize) -> u64 {
        let Some(schedule) = &self.schedule else { return 0 };
        schedule.share(key, self.released).saturating_sub(self.peers[key].slots)
    }

    fn sweep(&mut self, at: u64) {
        let (timeout, connect_timeout) = (nanos(self.load.timeout), nanos(self.load.connect_timeout));
        let mut missing = false;
        for key in 0..self.peers.len() {
            let peer = &self.peers[key];
            let since = at.saturating_sub(peer.since);
            match peer.state {
                State::Live { .. } if peer.owed > 0 && since > timeout => {
                    // What has come while this process was stopped is not late: a last look.
                    self.receive(key, false);
                    let peer = &self.peers[key];
                    if peer.owed > 0 && at.saturating_sub(peer.since) > timeout {
                        let limit = format_time(self.load.timeout);
                        self.lose(key, Cause::Late, at, || format!("no reply within {limit} (--timeout)"));
                    }
                }
                State::Wrong { .. } if since > timeout => self.conclude(key, at),
                State::Connecting { .. } if since > connect_timeout => self.connect_timed_out(key, at),
                State::Connecting { socket: None } => self.dial_again(key, at),
                State::Down { until } if at >= until && self.dials() => self.dial(key, at),
                _ => {}
            }
            missing |= !matches!(self.peers[key].state, State::Live { .. });
        }
        let period = if missing { SOON } else { SWEEP };
        self.next_sweep = at + period.min(nanos(self.load.timeout) / 8).max(1_000_000);
        self.give_up_if_hopeless(at);
        self.control.report(self.number, self.warm_up.answered + self.tally.answered, self.errors());
    }

    /// Where only a count would end it, it might never end.
    fn give_up_if_hopeless(&mut self, at: u64) {
        let patience = nanos(self.load.connect_timeout).saturating_add(nanos(self.load.timeout));
        let failing = self.failing_since.filter(|since| *since > self.last_answer);
        let hopeless = failing.is_some_and(|since| at.saturating_sub(since) > patience);
        if self.phase == Phase::Sending && self.load.duration.is_none() && hopeless {
            self.finish(at, u64::MAX);
        }
    }

    /// Whether connections are still made.
    pub(super) fn dials(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Sending)
    }

    /// Looks after missing connections soon.
    pub(super) fn hasten(&mut self, at: u64) {
        if self.next_sweep > at + SOON {
            self.next_sweep = at + SOON;
            self.set_timer(at);
        }
    }

    /// Something has failed.
    pub(super) fn note_failure(&mut self, at: u64) {
        if self.last_answer >= self.failing_since.unwrap_or(0) {
            self.failing_since = Some(at);
        }
    }

    pub(super) fn target(&self) -> &'a Target {
        self.target
    }
}

/// How many of `all` connections are those of one thread.
pub(super) fn share(all: usize, threads: usize, number: usize) -> usize {
    all / threads + usize::from(all % threads > number)
}

fn share_of(all: u64, threads: usize, number: usize) -> u64 {
    let threads = threads as u64;
    all / threads + u64::from(all % threads > number as u64)
}
