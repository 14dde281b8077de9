//! All connections of one worker, and the epoll set that reports which of them are ready.
//!
//! Connections could be tasks of an asynchronous runtime; but a task, its timer and its registration cost more than all
//! else that we do for a small message, and many times the memory.
//!
//! ```text
//! epoll_wait ─► for each ready connection: drive (recv, session, send) ─► commands ─► run queue ─► timers ─► epoll_wait
//!             └► for each ready listener: accept
//! ```
//!
//! A connection that sends much waits in the run queue, of which each pass drives one: then those that send little are asked
//! for again. So they wait for one drive of a connection that sends much, however many of those there are.
//!
//! Connections are watched edge-triggered: a level-triggered socket is looked at once more, in vain, after every message.
//! So a connection that is ready is driven until its socket has no more input, or goes into the run queue. EPOLLOUT is
//! registered only while output is pending: a Unix socket reports it after each read of its peer. Listeners are watched
//! level-triggered, and so are connections of packets while they are read: what is not accepted or received in one pass is
//! reported again in the next.

mod barriers;

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
use super::connection::{Connection, DetachedConnection, Progress, Readiness, ThreadScratch};
use super::idleness::IdleReport;
use super::listener::Listener;
use super::mailbox::{Acceptor, Mailbox, NextRun, Reclaim};
use super::timers::{TimerQueue, WakeupTimer};
use super::worker_state::WorkerState;
use barriers::Barriers;

/// How many events are taken from epoll at once.
const BATCH: usize = 64;

/// How long to wait after epoll_wait(2) has failed, so that an error that lasts does not take all time.
const ERROR_PAUSE: Duration = Duration::from_millis(1);

/// The keys of acceptors in the epoll set begin here. Those of connections are their keys.
const ACCEPTORS: u64 = 1 << 63;

/// The key of the mailbox in the epoll set.
const MAILBOX: u64 = u64::MAX;

/// The key of the timer in the epoll set.
const TIMER: u64 = u64::MAX - 1;

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// How long epoll is waited for at most when the timer could not be set.
const TIMER_RETRY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The connections of a worker, and the acceptors that run on its thread.
pub(crate) struct EventLoop {
    mailbox: Arc<Mailbox>,
    state: Arc<WorkerState>,
    epoll: rustix::fd::OwnedFd,
    connections: Slab<Box<Connection>>,
    acceptors: Slab<WatchedAcceptor>,
    timers: TimerQueue,
    /// Expires with the first of the timers and of the pauses of acceptors, or before.
    wakeup_timer: WakeupTimer,
    /// Whether it has expired.
    timers_expired: bool,
    /// Keys of connections that are driven, one in each pass, even if epoll does not report them.
    run_queue: VecDeque<usize>,
    /// The scratch of this thread, made when its first connection is served.
    scratch: Option<Box<ThreadScratch>>,
    barriers: Barriers,
}

/// An acceptor, and when it is to be run.
struct WatchedAcceptor {
    acceptor: Box<dyn Acceptor>,
    next: NextRun,
    /// Whether its socket is in the epoll set.
    watched: bool,
}

impl EventLoop {
    /// Creates an empty event loop.
    ///
    /// # Errors
    /// Returns an error if the epoll set or its timer cannot be made.
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

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) {
        let mut events = [const { MaybeUninit::uninit() }; BATCH];
        while self.pass(&mut events, self.has_work()) {}
    }

    /// Runs one pass, without waiting for anything. Returns whether another pass is to follow.
    pub(crate) fn pass_once(&mut self) -> bool {
        // Its clock may be another one than that of the kernel.
        self.timers_expired = true;
        self.pass(&mut [const { MaybeUninit::uninit() }; BATCH], true)
    }

    /// Runs one pass: waits until something happens, unless there is work, and drives each connection that has a reason to be
    /// driven. Returns whether another pass is to follow.
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
        if !self.barriers.is_empty() {
            self.drive_ended(now);
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

    /// Returns whether there is something to do even if nothing happens.
    #[inline]
    fn has_work(&self) -> bool {
        !self.run_queue.is_empty() || !self.barriers.is_empty()
    }

    /// Handles an event that is not that of a connection.
    #[cold]
    fn handle_event(&mut self, key: u64, flags: EventFlags, now: Instant) {
        match key {
            MAILBOX => {}
            TIMER => self.timers_expired = true,
            key => self.run_acceptor(index(key - ACCEPTORS), flags, now),
        }
    }

    /// Runs the commands of other threads. Returns whether the event loop is to go on.
    fn run_commands(&mut self, now: Instant) -> bool {
        let commands = self.mailbox.take();
        for connection in commands.accepted {
            self.insert(connection, Readiness::None, now);
        }
        for connection in commands.restored {
            connection.count_resumed(&self.state);
            // A deadline may have passed during the handover, but not for input that came before it.
            self.insert(connection, Readiness::ReadUntilBlocked, now);
        }
        for acceptor in commands.acceptors {
            let key = self.acceptors.insert(WatchedAcceptor { acceptor, next: NextRun::Paused(None), watched: false });
            self.run_acceptor(key, EventFlags::empty(), now);
        }
        if commands.run_acceptors {
            self.run_acceptors(now, |_| true);
        } else if commands.resume_acceptors {
            self.run_acceptors(now, |one| matches!(one.next, NextRun::Paused(_)));
        }
        for key in commands.woken {
            self.drive(key, Readiness::ReadUntilBlocked, now);
        }
        for (key, id) in commands.unparked {
            if self.connections.get_mut(key).is_some_and(|connection| connection.unpark(id)) {
                self.drive(key, Readiness::ReadUntilBlocked, now);
            }
        }
        for answer in commands.idle_reports {
            // The caller may have stopped waiting.
            let _ = answer.send(self.report_idle());
        }
        for Reclaim { key, id, since, answer } in commands.reclaims {
            let _ = answer.send(self.reclaim(key, id, since, now));
        }
        if commands.drain {
            let all: Vec<_> = self.connections.iter().map(|(key, _)| key).collect();
            for key in all {
                self.drive(key, Readiness::None, now);
            }
        }
        if commands.give_up_blocked {
            self.log_remaining(Connection::is_blocked_by_peer, now);
        }
        if !commands.close_listeners.is_empty() {
            self.close_listeners(&commands.close_listeners);
        }
        // A caller that no longer waits for the connections would lose them.
        if let Some(answer) = commands.detach.filter(|answer| !answer.is_closed()) {
            if let Err(lost) = answer.send(self.detach(now)) {
                // It has stopped waiting meanwhile.
                self.state.sink.unlogged.add_lost(lost.iter().map(|one| one.unlogged).sum());
            }
        }
        // The mailbox and the timer among them.
        let watched = self.connections.len() + self.acceptors.len() + 2;
        self.barriers.add(commands.barriers, watched);
        // Not earlier: what was asked before has been done.
        drop(commands.pings);
        !commands.stop
    }

    fn report_idle(&self) -> IdleReport {
        let mut report = IdleReport::default();
        for (key, connection) in self.connections.iter().filter(|(_, connection)| connection.counts()) {
            let (id, source) = (connection.id(), connection.holder());
            report.add(key, id, source, connection.idle_since());
        }
        report
    }

    /// Closes a connection, if it has been idle since then. Returns whether it ends or has ended.
    fn reclaim(&mut self, key: usize, id: u64, since: Instant, now: Instant) -> bool {
        let exists = |all: &Slab<Box<Connection>>| all.get(key).is_some_and(|one| one.id() == id);
        if exists(&self.connections) {
            // What has come meanwhile is answered.
            self.drive(key, Readiness::ReadUntilBlocked, now);
        }
        if !exists(&self.connections) {
            return true;
        }
        let connection = &mut self.connections[key];
        if connection.idle_since() != Some(since) {
            return false;
        }
        if connection.reclaim(now) {
            self.drive(key, Readiness::None, now);
        } else {
            self.remove(key);
        }
        true
    }

    /// Detaches all connections, in the middle of whatever they do. Those that have nothing left to do after a last
    /// drive end.
    fn detach(&mut self, now: Instant) -> Vec<DetachedConnection> {
        let all: Vec<_> = self.connections.iter().map(|(key, _)| key).collect();
        for key in all {
            // Tries once more to send what is owed.
            self.drive(key, Readiness::None, now);
        }
        (self.timers, self.run_queue) = (TimerQueue::default(), VecDeque::new());
        let (epoll, state) = (&self.epoll, &self.state);
        let detach = |connection: Box<Connection>| {
            // Its socket stays open, so epoll would go on reporting it. Deleting a socket that is in the set does not
            // fail.
            let _ = epoll::delete(epoll, connection.socket());
            connection.detach(state, now)
        };
        self.connections.drain().map(detach).collect()
    }

    /// Ends the connections of these listeners, whatever they are owed. Those with messages that wait for the log end when it
    /// has accepted them.
    fn close_listeners(&mut self, listeners: &[Arc<Listener>]) {
        let is_closed = |connection: &Connection| listeners.iter().any(|listener| connection.belongs_to(listener));
        self.log_remaining(is_closed, clock());
        let ends = |connection: &Connection| is_closed(connection) && !connection.has_unlogged();
        let closed: Vec<_> = self.connections.iter().filter(|(_, one)| ends(one)).map(|(key, _)| key).collect();
        for key in closed {
            self.remove(key);
        }
    }

    /// Ends these connections as far as they have messages that are to be logged whole and were not yet: they are logged, and not
    /// answered. What the log does not take at once waits for it.
    fn log_remaining(&mut self, wanted: impl Fn(&Connection) -> bool, now: Instant) {
        let wanted: Vec<_> = self.connections.iter().filter(|(_, one)| wanted(one)).map(|(key, _)| key).collect();
        for key in wanted {
            if self.connections[key].abandon_unlogged() {
                self.drive(key, Readiness::None, now);
            }
        }
    }

    /// Inserts a connection, and drives it for the first time. `readiness` is what is known about its socket.
    fn insert(&mut self, connection: Box<Connection>, readiness: Readiness, now: Instant) {
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let interest = connection.interest();
        let data = EventData::new_u64(key as u64);
        match retry_on_intr(|| epoll::add(&self.epoll, connection.socket(), data, interest)) {
            Ok(()) => {
                let connection = entry.insert(connection);
                if readiness == Readiness::None && connection.is_new() && !self.state.is_draining() {
                    // Nothing is known that there would be to do.
                    connection.prepare_to_read();
                    self.set_timer(key, now);
                } else {
                    self.drive(key, readiness, now);
                }
            }
            Err(error) => connection.fail(&self.state, error.into()),
        }
    }

    /// Drives the connections whose timers have expired, and runs the acceptors whose pauses are over.
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

    /// Drives a connection whose socket is ready, or has it wait for its turn.
    #[inline]
    fn drive_ready(&mut self, key: usize, readiness: Readiness, now: Instant) {
        match self.connections.get(key) {
            Some(connection) if connection.waits_its_turn() => self.queue(key, readiness),
            Some(_) => self.drive_now(key, readiness, now),
            None => {}
        }
    }

    /// Drives so many connections of the run queue.
    #[inline]
    fn drive_queued(&mut self, count: usize, now: Instant) {
        for _ in 0..count {
            let Some(key) = self.run_queue.pop_front() else { return };
            // It may have ended meanwhile.
            if let Some(readiness) = self.connections.get_mut(key).and_then(|connection| connection.queued.take()) {
                self.drive_now(key, readiness, now);
            }
        }
    }

    /// Drives the connections of the run queue whose peers have ended them; the others keep their turns.
    #[cold]
    fn drive_ended(&mut self, now: Instant) {
        for _ in 0..self.run_queue.len() {
            let Some(key) = self.run_queue.pop_front() else { return };
            if self.connections.get(key).is_some_and(|one| one.queued == Some(Readiness::Ended)) {
                self.connections[key].queued = None;
                self.drive_now(key, Readiness::Ended, now);
            } else {
                self.run_queue.push_back(key);
            }
        }
    }

    /// Drives a connection whose socket is ready. Mostly that is one read and one reply, and nothing else is asked.
    #[inline]
    fn drive_now(&mut self, key: usize, readiness: Readiness, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut readiness = readiness;
        if readiness == Readiness::Ready && connection.is_quiet(now) && !self.state.is_draining() {
            let scratch = self.scratch.get_or_insert_with(Box::default);
            match connection.exchange(now, &mut scratch.bytes, &self.state) {
                None => return,
                // There may be more, after other connections have run.
                Some(next @ Readiness::ReadUntilBlocked) => return self.queue(key, next),
                Some(next) => readiness = next,
            }
        }
        self.drive(key, readiness, now);
    }

    /// Drives a connection, and arranges its next drive: by its timer, the run queue or epoll.
    fn drive(&mut self, key: usize, readiness: Readiness, now: Instant) {
        // It may have ended since there was a reason to drive it.
        let Some(connection) = self.connections.get_mut(key) else { return };
        let scratch = self.scratch.get_or_insert_with(Box::default);
        let progress = connection.drive(key, readiness, now, scratch, &self.state, &self.mailbox);
        if progress == Progress::Closed {
            return self.remove(key);
        }
        self.set_timer(key, now);
        let connection = &mut self.connections[key];
        if progress == Progress::Yield {
            self.queue(key, Readiness::ReadUntilBlocked);
        } else if let Some(interest) = connection.changed_interest() {
            // Readiness that exists already is reported, too.
            let data = EventData::new_u64(key as u64);
            if let Err(error) = retry_on_intr(|| epoll::modify(&self.epoll, connection.socket(), data, interest)) {
                // Nothing would ever report that it can go on.
                self.take(key).fail(&self.state, error.into());
            }
        }
    }

    /// Has a connection driven when its turn comes.
    fn queue(&mut self, key: usize, readiness: Readiness) {
        let connection = &mut self.connections[key];
        // That a packet waits may not be true any more by then, and an empty one looks like the end of the stream.
        let least = if connection.is_packets() { Readiness::ReadUntilBlocked } else { Readiness::None };
        let queued = connection.queued.replace(readiness.max(least).max(connection.queued.unwrap_or(least)));
        if queued.is_none() {
            self.run_queue.push_back(key);
        }
    }

    /// Sets the timer of a connection, if its deadline is earlier. One that fires too early is cheaper than one that is set
    /// with each message.
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
        // Its socket may stay open, in the disposal thread or in another process; where it is watched level-triggered, epoll
        // would go on reporting it. Deleting a socket that is in the set does not fail.
        if connection.is_packets() {
            let _ = epoll::delete(&self.epoll, connection.socket());
        }
        self.timers.cancel(key, connection.timer);
        connection
    }

    // --- Acceptors ---------------------------------------------------------------------------------------------------

    /// Runs those acceptors that are wanted.
    fn run_acceptors(&mut self, now: Instant, wanted: impl Fn(&WatchedAcceptor) -> bool) {
        let keys: Vec<_> = self.acceptors.iter().filter(|(_, one)| wanted(one)).map(|(key, _)| key).collect();
        for key in keys {
            self.run_acceptor(key, EventFlags::empty(), now);
        }
    }

    /// Runs an acceptor, and arranges its next run. Serves what it accepts for this event loop.
    fn run_acceptor(&mut self, key: usize, flags: EventFlags, now: Instant) {
        let Some(watched) = self.acceptors.get_mut(key) else { return };
        let mut accepted = Vec::new();
        watched.next = watched.acceptor.run(flags, now, &mut |connection| accepted.push(connection));
        let is_watched = watched.next == NextRun::Ready;
        if watched.watched && !is_watched {
            // Deleting a socket that is in the set does not fail. It would stay there if another process holds it as well;
            // and without any interest in it, epoll would report that it was shut down again and again.
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
