//! The event loop of a worker: its connections, and the epoll set that reports which of them are ready.
//!
//! Connections could be tasks of an async runtime, but the overhead of a task, its timer and its registration would
//! exceed all other work for a small message, and take many times the memory.
//!
//! ```text
//! epoll_wait ─► for each ready connection: drive (recv, session, send), or queue ─► commands ─► run queue ─► timers ─► epoll_wait
//!             └► for each ready listener: accept
//! ```
//!
//! A connection with much input waits in the run queue, and each pass drives one connection of the queue before it
//! polls epoll again. So a connection with little input waits for at most one drive of a connection with much input,
//! however many of those there are.
//!
//! Connections are watched edge-triggered, because epoll would check a level-triggered socket once more, in vain, after
//! every message. So a ready connection is driven until its socket has no more input, or it is put into the run queue.
//! EPOLLOUT is registered only while output is pending, because a Unix socket reports it after each read by its peer.
//! Listeners are watched level-triggered, and so are connections of packets while they are read: epoll reports again
//! what one pass did not accept or receive.

mod barriers;
mod commands;

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, retry_on_intr};
use slab::Slab;

use super::clock::clock;
use super::connection::{Connection, Progress, Readiness, ThreadScratch};
use super::mailbox::{Acceptor, Mailbox, NextRun};
use super::timers::{TimerQueue, WakeupTimer};
use super::worker_state::WorkerState;
use barriers::Barriers;

/// The most events that one epoll_wait(2) call returns.
const BATCH: usize = 64;

/// How long to wait after epoll_wait(2) has failed, so that a lasting error does not cause a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(1);

/// The first key of acceptors in the epoll set. Smaller keys are those of connections.
const ACCEPTORS: u64 = 1 << 63;

/// The key of the mailbox in the epoll set.
const MAILBOX: u64 = u64::MAX;

/// The key of the timer in the epoll set.
const TIMER: u64 = u64::MAX - 1;

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// The timeout of epoll_wait(2) while the kernel timer could not be set.
const TIMER_RETRY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The connections of a worker, and the acceptors that run on its thread.
pub(crate) struct EventLoop {
    mailbox: Arc<Mailbox>,
    state: Arc<WorkerState>,
    epoll: rustix::fd::OwnedFd,
    connections: Slab<Box<Connection>>,
    acceptors: Slab<WatchedAcceptor>,
    timers: TimerQueue,
    /// Expires no later than the first timer of a connection or the first pause of an acceptor ends.
    wakeup_timer: WakeupTimer,
    /// Whether `wakeup_timer` has expired.
    timers_expired: bool,
    /// Keys of connections to drive, one per pass, even if epoll does not report them.
    run_queue: VecDeque<usize>,
    /// The scratch of this thread, created for its first drive.
    scratch: Option<Box<ThreadScratch>>,
    barriers: Barriers,
}

/// An acceptor, and when to run it.
struct WatchedAcceptor {
    acceptor: Box<dyn Acceptor>,
    next: NextRun,
    /// Whether the socket is in the epoll set.
    watched: bool,
}

impl EventLoop {
    /// Creates an event loop without connections.
    ///
    /// # Errors
    /// Returns an error if the epoll set or the kernel timer cannot be created.
    pub(crate) fn new(mailbox: Arc<Mailbox>, state: Arc<WorkerState>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wakes = EventFlags::IN | EventFlags::ET;
        retry_on_intr(|| epoll::add(&epoll, mailbox.eventfd(), EventData::new_u64(MAILBOX), wakes))?;
        let wakeup_timer = WakeupTimer::new()?;
        retry_on_intr(|| epoll::add(&epoll, wakeup_timer.descriptor(), EventData::new_u64(TIMER), wakes))?;
        Ok(Self {
            mailbox,
            state,
            epoll,
            connections: Slab::new(),
            acceptors: Slab::new(),
            timers: TimerQueue::default(),
            wakeup_timer,
            timers_expired: false,
            run_queue: VecDeque::new(),
            scratch: None,
            barriers: Barriers::default(),
        })
    }

    /// Runs until a command stops it.
    pub(crate) fn run(mut self) {
        let mut events = [const { MaybeUninit::uninit() }; BATCH];
        while self.pass(&mut events, self.has_work()) {}
    }

    /// Runs one pass without blocking. Returns whether another pass must follow.
    pub(crate) fn pass_once(&mut self) -> bool {
        // If the clock is simulated, the kernel's timer does not follow it.
        self.timers_expired = true;
        self.pass(&mut [const { MaybeUninit::uninit() }; BATCH], true)
    }

    /// Runs one pass: waits for events, unless there is work, and drives each connection that needs it. Returns whether
    /// another pass must follow.
    #[inline]
    fn pass(&mut self, events: &mut [MaybeUninit<Event>; BATCH], has_work: bool) -> bool {
        let is_timed = self.wakeup_timer.has_failed();
        let timeout = if has_work { Some(&NO_WAIT) } else { is_timed.then_some(&TIMER_RETRY) };
        let ready: &[Event] = match epoll::wait(&self.epoll, &mut events[..], timeout) {
            Ok((ready, _)) => ready,
            Err(error) => {
                if error != Errno::INTR {
                    thread::sleep(ERROR_PAUSE);
                }
                &[]
            }
        };
        let now = clock();
        for &Event { flags, data } in ready {
            let key = data.u64();
            if key < ACCEPTORS {
                self.drive_ready(index(key), Readiness::from_epoll(flags), now);
            } else {
                self.handle_event(key, flags, now);
            }
        }
        if !self.barriers.is_empty() && self.drive_ended(now) {
            self.barriers.note_wait(ready.len());
        }
        if self.mailbox.has_commands() && !self.run_commands(now) {
            return false;
        }
        self.drive_queued(1, now);
        if self.timers_expired || is_timed {
            self.fire_timers(now);
        }
        true
    }

    /// Returns whether there is work that does not depend on an event.
    #[inline]
    fn has_work(&self) -> bool {
        !self.run_queue.is_empty() || !self.barriers.is_empty()
    }

    /// Handles an event that does not belong to a connection.
    #[cold]
    fn handle_event(&mut self, key: u64, flags: EventFlags, now: Instant) {
        match key {
            MAILBOX => {}
            TIMER => self.timers_expired = true,
            key => self.run_acceptor(index(key - ACCEPTORS), flags, now),
        }
    }

    /// Inserts a connection and drives it for the first time. `readiness` is the known readiness of its socket.
    fn insert(&mut self, connection: Box<Connection>, readiness: Readiness, now: Instant) {
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let interest = connection.interest();
        let data = EventData::new_u64(key as u64);
        match retry_on_intr(|| epoll::add(&self.epoll, connection.socket(), data, interest)) {
            Ok(()) => {
                let connection = entry.insert(connection);
                if readiness == Readiness::None && connection.is_new() && !self.state.is_draining() {
                    // Nothing to do until epoll reports input.
                    connection.prepare_to_read();
                    self.set_timer(key, now);
                } else {
                    self.drive(key, readiness, now);
                }
            }
            Err(error) => connection.fail(&self.state, error.into()),
        }
    }

    /// Drives the connections whose timers have expired, and runs the acceptors whose pauses have ended.
    #[cold]
    fn fire_timers(&mut self, now: Instant) {
        self.timers_expired = false;
        self.wakeup_timer.note_expired();
        while let Some(key) = self.timers.pop_expired(now) {
            self.connections[key].timer = None;
            self.drive(key, Readiness::None, now);
        }
        self.run_acceptors(now, |one| one.paused_until().is_some_and(|until| until <= now));
        let paused = self.acceptors.iter().filter_map(|(_, one)| one.paused_until());
        if let Some(next) = paused.chain(self.timers.next_deadline()).min() {
            self.wakeup_timer.set(next, now);
        }
    }

    /// Drives a connection whose socket is ready, or puts it into the run queue.
    #[inline]
    fn drive_ready(&mut self, key: usize, readiness: Readiness, now: Instant) {
        match self.connections.get(key) {
            Some(connection) if connection.waits_its_turn() => self.queue(key, readiness),
            Some(_) => self.drive_now(key, readiness, now),
            None => {}
        }
    }

    /// Drives `count` connections of the run queue.
    #[inline]
    fn drive_queued(&mut self, count: usize, now: Instant) {
        for _ in 0..count {
            let Some(key) = self.run_queue.pop_front() else { return };
            // The connection may have ended.
            if let Some(readiness) = self.connections.get_mut(key).and_then(|connection| connection.queued.take()) {
                self.drive_now(key, readiness, now);
            }
        }
    }

    /// Drives the connections of the run queue whose peers have ended them. The other connections keep their order. Returns
    /// whether there is none left of those: one drive may not read all that the peer has sent before.
    #[cold]
    fn drive_ended(&mut self, now: Instant) -> bool {
        let has_ended = |one: &Connection| one.queued == Some(Readiness::Ended);
        for _ in 0..self.run_queue.len() {
            let Some(key) = self.run_queue.pop_front() else { break };
            if self.connections.get(key).is_some_and(|one| has_ended(one)) {
                self.connections[key].queued = None;
                self.drive_now(key, Readiness::Ended, now);
            } else {
                self.run_queue.push_back(key);
            }
        }
        !self.run_queue.iter().any(|key| self.connections.get(*key).is_some_and(|one| has_ended(one)))
    }

    /// Drives a connection whose socket is ready. In most cases, one read and one reply are enough.
    #[inline]
    fn drive_now(&mut self, key: usize, readiness: Readiness, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut readiness = readiness;
        if readiness == Readiness::Ready && connection.is_quiet(now) && !self.state.is_draining() {
            let scratch = self.scratch.get_or_insert_with(Box::default);
            match connection.exchange(now, &mut scratch.bytes, &self.state) {
                None => return,
                // There may be more input; other connections run first.
                Some(next @ Readiness::ReadUntilBlocked) => return self.queue(key, next),
                Some(next) => readiness = next,
            }
        }
        self.drive(key, readiness, now);
    }

    /// Drives a connection, and arranges its next drive by its timer, the run queue or epoll.
    fn drive(&mut self, key: usize, readiness: Readiness, now: Instant) {
        // The connection may have ended in the meantime.
        let Some(connection) = self.connections.get_mut(key) else { return };
        let scratch = self.scratch.get_or_insert_with(Box::default);
        let progress = connection.drive(key, readiness, now, scratch, &self.state, &self.mailbox);
        if progress == Progress::Closed {
            return self.remove(key);
        }
        self.set_timer(key, now);
        if progress == Progress::Yield {
            // epoll does not report the end of the stream again.
            self.queue(key, readiness.max(Readiness::ReadUntilBlocked));
        } else {
            self.update_interest(key);
        }
    }

    /// Registers what epoll is to report of a connection, if that has changed.
    #[inline]
    fn update_interest(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        let Some(interest) = connection.changed_interest() else { return };
        // epoll also reports readiness that exists already.
        let data = EventData::new_u64(key as u64);
        if let Err(error) = retry_on_intr(|| epoll::modify(&self.epoll, connection.socket(), data, interest)) {
            // Without its registration, nothing would drive the connection again.
            self.take(key).fail(&self.state, error.into());
        }
    }

    /// Puts a connection into the run queue, unless it is in it already.
    fn queue(&mut self, key: usize, readiness: Readiness) {
        let connection = &mut self.connections[key];
        let is_packets = connection.is_packets();
        // When its turn comes, another process may have taken the packet, and an empty packet looks like the end of the
        // stream.
        let least = if is_packets { Readiness::ReadUntilBlocked } else { Readiness::None };
        let queued = connection.queued.replace(readiness.max(least).max(connection.queued.unwrap_or(least)));
        if queued.is_none() {
            self.run_queue.push_back(key);
            if is_packets {
                self.update_interest(key);
            }
        }
    }

    /// Sets the timer of a connection if its deadline is earlier than the timer. A timer that fires too early costs
    /// less than setting it for every message.
    #[inline]
    fn set_timer(&mut self, key: usize, now: Instant) {
        let connection = &mut self.connections[key];
        if let Some(deadline) = connection.deadline() {
            if connection.timer.is_none_or(|at| deadline < at) {
                self.timers.set(key, connection.timer.replace(deadline), deadline);
                self.wakeup_timer.set(deadline, now);
            }
        }
    }

    fn remove(&mut self, key: usize) {
        self.take(key).close(&self.state);
    }

    fn take(&mut self, key: usize) -> Box<Connection> {
        let connection = self.connections.remove(key);
        // The socket may stay open on the disposal thread or in another process, and epoll would continue to report it
        // if it is watched level-triggered. Deleting a registered socket cannot fail.
        if connection.is_packets() {
            let _ = epoll::delete(&self.epoll, connection.socket());
        }
        self.timers.cancel(key, connection.timer);
        connection
    }

    // --- Acceptors ---------------------------------------------------------------------------------------------------

    /// Runs the wanted acceptors.
    fn run_acceptors(&mut self, now: Instant, wanted: impl Fn(&WatchedAcceptor) -> bool) {
        let keys: Vec<_> = self.acceptors.iter().filter(|(_, one)| wanted(one)).map(|(key, _)| key).collect();
        for key in keys {
            self.run_acceptor(key, EventFlags::empty(), now);
        }
    }

    /// Runs an acceptor, arranges its next run, and serves the connections that it accepted for this event loop.
    fn run_acceptor(&mut self, key: usize, flags: EventFlags, now: Instant) {
        let Some(watched) = self.acceptors.get_mut(key) else { return };
        let mut accepted = Vec::new();
        watched.next = watched.acceptor.run(flags, now, &mut |connection| accepted.push(connection));
        let is_watched = watched.next == NextRun::Ready;
        if watched.watched && !is_watched {
            // If another process holds the socket too, closing it would leave it in the epoll set; and an empty
            // interest would not help, because epoll reports a shutdown regardless. Deleting a registered socket cannot
            // fail.
            let _ = epoll::delete(&self.epoll, watched.acceptor.socket());
        } else if !watched.watched && is_watched {
            let data = EventData::new_u64(ACCEPTORS + key as u64);
            let interest = EventFlags::IN | EventFlags::RDHUP;
            if let Err(error) = retry_on_intr(|| epoll::add(&self.epoll, watched.acceptor.socket(), data, interest)) {
                watched.next = NextRun::Paused(Some(watched.acceptor.watch_failed(error.into(), now)));
            }
        }
        watched.watched = watched.next == NextRun::Ready;
        if let Some(until) = watched.paused_until() {
            self.wakeup_timer.set(until, now);
        }
        if watched.next == NextRun::Never {
            self.acceptors.remove(key);
        }
        for connection in accepted {
            self.insert(connection, Readiness::None, now);
        }
    }
}

impl WatchedAcceptor {
    fn paused_until(&self) -> Option<Instant> {
        if let NextRun::Paused(until) = self.next { until } else { None }
    }
}

fn index(key: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "it was a usize")]
    let key = key as usize;
    key
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.log_remaining(|_| true, clock());
        let commands = self.mailbox.take();
        for connection in self.connections.drain().chain(commands.accepted).chain(commands.restored) {
            connection.close(&self.state);
        }
    }
}

#[cfg(test)]
mod tests;
