//! One thread of the load: the phases of its run, and its periodic checks.
//!
//! ```text
//! connecting ──all threads──> sending (warm-up, then measured) ──time, count or Ctrl-C──> finishing ──> done
//! ```
//!
//! The work for each message is in [`super::traffic`], where every instruction counts. The code here runs once
//! a tick.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::time::Duration;

use super::connection::{BenchConnection, State};
use super::control::{Control, StopRequest};
use super::packet_traffic::PacketTraffic;
use super::poll::{Clock, Event, Poll};
use super::schedule::Schedule;
use super::stats::{Cause, Stats};
use super::target::Target;
use super::workload::Workload;
use super::{Bench, BenchSettings, nanos};
use crate::units::format_time;

/// The most that a single receive may bring, in bytes.
const BUFFER_SIZE: usize = 256 * 1024;

/// How often the deadlines are checked, unless they are shorter; and how often progress is reported.
const SWEEP_INTERVAL: u64 = 100_000_000;

/// How often the deadlines are checked while connections are missing.
const SHORT_SWEEP_INTERVAL: u64 = 10_000_000;

/// After Ctrl-C, how long replies are still waited for.
const GRACE_PERIOD: u64 = 1_000_000_000;

/// How long packets may still come that no message awaits, when all others have come: replies that come twice or late.
const SURPLUS_PERIOD: u64 = 50_000_000;

/// One thread with its share of the connections.
pub(super) struct LoadThread<'a> {
    pub(super) settings: &'a BenchSettings,
    pub(super) workload: &'a Workload,
    target: &'a Target,
    pub(super) control: &'a Control,
    pub(super) clock: Clock,
    /// The number of this thread.
    pub(super) thread_number: usize,
    pub(super) poll: Poll,
    pub(super) connections: Vec<BenchConnection>,
    pub(super) buffer: Vec<u8>,
    pub(super) stats: Stats,
    warm_up: Stats,
    pub(super) phase: Phase,
    pub(super) schedule: Option<Schedule>,
    pub(super) batch: Batch,
    /// The state for packets, if it sends packets.
    pub(super) packets: Option<PacketTraffic<'a>>,
    /// How many messages of a connection may be on their way at once.
    pub(super) depth: usize,
    /// How many slots have been released: their messages may be sent.
    slots_released: u64,
    /// How many messages may still be sent.
    pub(super) messages_left: u64,
    /// Connections that wait for replies, while the load finishes.
    pub(super) waiting_connections: usize,
    /// When the measured time began; 0: not yet.
    measure_start: u64,
    /// When it ended.
    pub(super) measure_end: u64,
    pub(super) last_answer: u64,
    /// Since when nothing but failures has happened.
    failing_since: Option<u64>,
    unsent: u64,
    warm_until: u64,
    send_until: u64,
    finish_until: u64,
    next_sweep: u64,
}

/// The phase of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Every connection is made, or fails once.
    Connecting,
    /// Messages are sent.
    Sending,
    /// Nothing more is sent; replies that are owed may still come.
    Finishing,
    /// The load has ended.
    Done,
}

/// The sizes of a batch of the whole depth.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    /// Bytes of its messages.
    pub(super) messages: usize,
    /// Bytes of its replies.
    pub(super) replies: usize,
    /// From its first message in the workload to that of the next batch.
    pub(super) step: usize,
}

/// The result of one thread.
pub(super) struct ThreadResult {
    pub(super) measured: Stats,
    pub(super) warm_up: Stats,
    pub(super) time: Duration,
    pub(super) unsent: u64,
}

impl<'a> LoadThread<'a> {
    /// Creates thread number `thread_number` of a load, with its share of the connections; `first` is one of them.
    pub(super) fn new(
        thread_number: usize,
        bench: &'a Bench,
        target: &'a Target,
        clock: Clock,
        first: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let Bench { settings, workload, packet_format, control, .. } = bench;
        let packets = packet_format.as_ref().map(|format| PacketTraffic::new(format, settings));
        let depth = settings.max_owed(packets.is_some()).unwrap_or(usize::MAX);
        let batch_depth = if packets.is_some() { 1 } else { depth };
        let mut connections: Vec<_> = (0..connections_of_thread(settings.connections, settings.threads, thread_number))
            .map(|_| BenchConnection::new())
            .collect();
        for (at, connection) in connections.iter_mut().enumerate() {
            connection.first = at % workload.distinct_messages();
        }
        let poll = Poll::new(control.waker(thread_number))?;
        let mut worker = Self {
            settings,
            workload,
            target,
            control,
            clock,
            thread_number,
            poll,
            connections,
            // A packet that is longer than the right reply must not look like one.
            buffer: vec![0; BUFFER_SIZE.max(packet_format.as_ref().map_or(0, |format| format.reply_size() + 1))],
            stats: Stats::default(),
            warm_up: Stats::default(),
            phase: Phase::Connecting,
            schedule: None,
            batch: Batch {
                messages: batch_depth * workload.message_size(),
                replies: batch_depth * workload.reply_size(),
                step: batch_depth % workload.distinct_messages(),
            },
            packets,
            depth,
            slots_released: 0,
            messages_left: settings
                .count
                .map_or(u64::MAX, |count| messages_of_thread(count, settings.threads, thread_number)),
            waiting_connections: 0,
            measure_start: 0,
            measure_end: 0,
            last_answer: 0,
            failing_since: None,
            unsent: 0,
            warm_until: 0,
            send_until: u64::MAX,
            finish_until: u64::MAX,
            next_sweep: 0,
        };
        if let Some(socket) = first {
            worker.handle_connected(0, socket, true, clock.now());
        }
        Ok(worker)
    }

    /// Runs to the end. The barrier is passed once by each thread, when its connections are made.
    pub(super) fn run(mut self, barrier: &Barrier) -> io::Result<ThreadResult> {
        let connected = self.connect_all();
        barrier.wait();
        connected?;
        if self.phase == Phase::Connecting {
            self.start_sending(self.clock.now());
        }
        while self.phase != Phase::Done {
            self.process_events()?;
        }
        self.control.set_progress(self.thread_number, self.warm_up.answered + self.stats.answered, self.errors());
        let time = if self.measure_start == 0 {
            0
        } else {
            self.measure_end.max(self.last_answer).saturating_sub(self.measure_start)
        };
        Ok(ThreadResult {
            measured: self.stats,
            warm_up: self.warm_up,
            time: Duration::from_nanos(time),
            unsent: self.unsent,
        })
    }

    fn errors(&self) -> u64 {
        self.warm_up.errors() + self.stats.errors()
    }

    // --- Phases ------------------------------------------------------------------------------------------------------

    fn connect_all(&mut self) -> io::Result<()> {
        for key in 0..self.connections.len() {
            if matches!(self.connections[key].state, State::Disconnected { .. }) {
                self.start_connect(key, self.clock.now());
            }
        }
        self.handle_tick(self.clock.now());
        while self.phase == Phase::Connecting && !self.connections.iter().all(|connection| connection.attempted) {
            self.process_events()?;
        }
        Ok(())
    }

    fn start_sending(&mut self, at: u64) {
        let settings = self.settings;
        self.phase = Phase::Sending;
        self.warm_until = at.saturating_add(nanos(settings.warm_up));
        self.send_until = settings.duration.map_or(u64::MAX, |time| self.warm_until.saturating_add(nanos(time)));
        self.measure_start = at;
        if let Some(rate) = settings.rate {
            // Each thread has its share of the rate, and its slots lie between those of the others.
            let offset = (1e9 / rate * self.thread_number as f64).round();
            let start = at.saturating_add(nanos(Duration::from_secs_f64(offset / 1e9)));
            let thread_rate = rate * self.connections.len() as f64 / settings.connections as f64;
            self.schedule = Some(Schedule::new(start, thread_rate, self.connections.len()));
        } else {
            for key in 0..self.connections.len() {
                self.send_next(key, self.clock.now());
            }
        }
        self.handle_tick(self.clock.now());
    }

    /// Stops sending. Replies may still come for some time.
    pub(super) fn stop_sending(&mut self, at: u64, grace: u64) {
        if matches!(self.phase, Phase::Finishing | Phase::Done) {
            return;
        }
        if let Some(schedule) = &self.schedule {
            let used: u64 = self.connections.iter().map(|connection| connection.slots_used).sum();
            // A message that is due at the very end is not sent any more.
            let last = at.min(self.send_until.saturating_sub(1));
            self.unsent = schedule.sends_due(last).saturating_sub(used).min(self.messages_left);
        } else if self.settings.count.is_some() {
            self.unsent = self.messages_left;
        }
        self.phase = Phase::Finishing;
        self.measure_end = at;
        self.waiting_connections = self.connections.iter().filter(|connection| connection.owed > 0).count();
        self.finish_until = at.saturating_add(grace);
        self.end_if_answered();
    }

    /// Ends the load if no connection waits for replies while it finishes.
    pub(super) fn end_if_answered(&mut self) {
        if self.phase != Phase::Finishing || self.waiting_connections > 0 {
            return;
        }
        if self.packets.is_some() {
            let now = self.clock.now();
            self.finish_until = self.finish_until.min(now + SURPLUS_PERIOD);
            self.set_timer(now);
        } else {
            self.phase = Phase::Done;
        }
    }

    fn process_events(&mut self) -> io::Result<()> {
        let count = self.poll.wait()?;
        let mut tick = false;
        for index in 0..count {
            match self.poll.event(index) {
                // Afterwards: a tick may replace connections that are still in this list.
                Event::Tick => tick = true,
                Event::Socket { key, writable, ended } => self.handle_ready(key, writable, ended),
            }
        }
        if tick {
            self.handle_tick(self.clock.now());
        }
        Ok(())
    }

    /// Handles stop requests and whatever is due by now.
    fn handle_tick(&mut self, at: u64) {
        match self.control.stop_request() {
            StopRequest::None => {}
            StopRequest::Graceful => self.stop_sending(at, GRACE_PERIOD.min(nanos(self.settings.timeout))),
            StopRequest::Immediate => {
                self.stop_sending(at, 0);
                self.finish_until = 0;
            }
        }
        if self.phase == Phase::Sending {
            if self.warm_until > 0 && at >= self.warm_until {
                if self.warm_until > self.measure_start {
                    self.end_warm_up();
                }
                self.warm_until = 0;
            }
            if at >= self.send_until {
                self.stop_sending(self.send_until, u64::MAX);
            } else if self.messages_left == 0 {
                self.stop_sending(at, u64::MAX);
            }
        }
        if self.phase == Phase::Sending {
            self.send_due_slots(at);
        }
        if at >= self.next_sweep {
            self.sweep(at);
        }
        if self.phase == Phase::Finishing && at >= self.finish_until {
            for key in 0..self.connections.len() {
                self.finish_wrong_reply(key, at);
                self.drain_packets(key, false);
                if self.connections[key].owed > 0 {
                    self.fail_connection(key, Cause::Unanswered, at, || "interrupted before the reply came".to_owned());
                }
            }
            self.phase = Phase::Done;
        }
        self.set_timer(at);
    }

    fn end_warm_up(&mut self) {
        self.warm_up = std::mem::take(&mut self.stats);
        // A message on its way counts for the time in which it is answered.
        let owed: usize = self.connections.iter().map(|connection| connection.owed).sum();
        self.warm_up.sent -= owed as u64;
        self.stats.sent = owed as u64;
        self.measure_start = self.warm_until;
    }

    fn set_timer(&self, at: u64) {
        let mut next = self.next_sweep.min(self.finish_until);
        if self.phase == Phase::Sending {
            next = next.min(self.send_until);
            if self.warm_until > 0 {
                next = next.min(self.warm_until);
            }
            if let Some(schedule) = &self.schedule {
                next = next.min(schedule.send_time(self.slots_released));
            }
        }
        self.poll.set_timer(next.saturating_sub(at));
    }

    // --- From time to time -------------------------------------------------------------------------------------------

    /// Sends what has become due.
    fn send_due_slots(&mut self, at: u64) {
        let Some(schedule) = &self.schedule else { return };
        let due = schedule.sends_due(at);
        // After a stall, each connection once is enough.
        let from = self.slots_released.max(due.saturating_sub(self.connections.len() as u64));
        self.slots_released = due;
        for slot in from..due {
            if let Some(key) = self.schedule.as_ref().map(|schedule| schedule.connection_of_send(slot)) {
                self.send_next(key, at);
            }
        }
    }

    /// Returns how many messages of a connection are due and not sent.
    pub(super) fn messages_due(&self, key: usize) -> u64 {
        let Some(schedule) = &self.schedule else { return 0 };
        schedule.sends_of_connection(key, self.slots_released).saturating_sub(self.connections[key].slots_used)
    }

    fn sweep(&mut self, at: u64) {
        let (timeout, connect_timeout) = (nanos(self.settings.timeout), nanos(self.settings.connect_timeout));
        let mut missing = false;
        for key in 0..self.connections.len() {
            let connection = &self.connections[key];
            let since = at.saturating_sub(connection.waiting_since);
            match connection.state {
                State::Connected { .. } if connection.owed > 0 && since > timeout => {
                    // A reply that came while this process was stopped is not late: read once more before giving up.
                    self.receive(key, false);
                    let connection = &self.connections[key];
                    if connection.owed > 0 && at.saturating_sub(connection.waiting_since) > timeout {
                        let limit = format_time(self.settings.timeout);
                        self.fail_connection(key, Cause::Late, at, || format!("no reply within {limit} (--timeout)"));
                    }
                }
                State::Packets { .. } => self.sweep_packets(key, at),
                State::WrongReply { .. } if since > timeout => self.finish_wrong_reply(key, at),
                State::Connecting { .. } if since > connect_timeout => self.handle_connect_timeout(key, at),
                State::Connecting { socket: None } => self.retry_connect(key, at),
                State::Disconnected { retry_at } if at >= retry_at && self.may_connect() => self.start_connect(key, at),
                _ => {}
            }
            missing |= self.connections[key].state.open_socket().is_none();
        }
        let period = if missing { SHORT_SWEEP_INTERVAL } else { SWEEP_INTERVAL };
        self.next_sweep = at + period.min(nanos(self.settings.timeout) / 8).max(1_000_000);
        self.stop_if_failing(at);
        self.control.set_progress(self.thread_number, self.warm_up.answered + self.stats.answered, self.errors());
    }

    /// Stops the load if nothing but failures has happened for too long: with a count and no duration it might never
    /// end.
    fn stop_if_failing(&mut self, at: u64) {
        let max_failing_time = nanos(self.settings.connect_timeout).saturating_add(nanos(self.settings.timeout));
        let failing = self.failing_since.filter(|since| *since > self.last_answer);
        let is_failing_too_long = failing.is_some_and(|since| at.saturating_sub(since) > max_failing_time);
        if self.phase == Phase::Sending && self.settings.duration.is_none() && is_failing_too_long {
            self.stop_sending(at, u64::MAX);
        }
    }

    /// Returns whether new connections are still made.
    pub(super) fn may_connect(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Sending)
    }

    /// Schedules the next sweep soon, to retry missing connections.
    pub(super) fn sweep_soon(&mut self, at: u64) {
        if self.next_sweep > at + SHORT_SWEEP_INTERVAL {
            self.next_sweep = at + SHORT_SWEEP_INTERVAL;
            self.set_timer(at);
        }
    }

    /// Records the time of a failure.
    pub(super) fn note_failure(&mut self, at: u64) {
        if self.last_answer >= self.failing_since.unwrap_or(0) {
            self.failing_since = Some(at);
        }
    }

    pub(super) fn target(&self) -> &'a Target {
        self.target
    }
}

/// Returns how many of `all` connections belong to one thread.
pub(super) fn connections_of_thread(all: usize, threads: usize, number: usize) -> usize {
    all / threads + usize::from(all % threads > number)
}

fn messages_of_thread(all: u64, threads: usize, number: usize) -> u64 {
    let threads = threads as u64;
    all / threads + u64::from(all % threads > number as u64)
}
