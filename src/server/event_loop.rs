//! All connections of one worker, and an epoll set of their own that reports which of them are ready.
//!
//! It is one task of the worker's runtime. Connections could be tasks of that runtime as well; but a task, its timer
//! and its registration cost more than all else that we do for a small message, and many times the memory.
//!
//! ```text
//! runtime: epoll_wait ─► event loop: epoll_wait ─► for each ready connection: drive (recv, session, send)
//! ```
//!
//! The set is edge-triggered: a level-triggered socket is looked at once more, in vain, after every message. So a
//! connection that is ready is driven until its socket has no more input, or goes into the run queue of the next pass.
//! EPOLLOUT is registered only while output is pending: a Unix socket reports it after each read of its peer.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::mem::{self, MaybeUninit};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData};
use rustix::io::retry_on_intr;
use slab::Slab;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{self, Sleep};

use super::accept::Listener;
use super::connection::{Connection, Progress, Readiness, clock};
use super::handover::DetachedConnection;
use super::reclaim::{ConnectionRef, IdleReport};
use super::timers::TimerQueue;
use super::worker::{Reclaim, Worker};
use crate::protocol::Scratch;

/// How many ready connections are driven before epoll is asked for more.
const BATCH: usize = 64;

/// How far ahead `sleep` is set at most, which is less than what timers can do. It is set again when it ends.
const MAX_SLEEP: Duration = Duration::from_secs(86_400);

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// The connections of a worker. As a future it never ends.
pub(crate) struct EventLoop {
    worker: Arc<Worker>,
    /// The epoll set, as something that the reactor can wait for ([`Worker::register`]).
    epoll: UnixStream,
    connections: Slab<Box<Connection>>,
    timers: TimerQueue,
    /// Ends when the first timer fires, or before.
    sleep: Pin<Box<Sleep>>,
    /// Keys of connections that are driven in the next pass even if epoll does not report them.
    run_queue: Vec<usize>,
    /// The scratch of this thread, made when its first connection is served.
    scratch: Option<Box<Scratch>>,
}

impl EventLoop {
    /// Creates an empty event loop. To be called in the runtime of its worker.
    ///
    /// # Errors
    /// Returns an error if the epoll set cannot be made or registered.
    pub(crate) fn new(worker: Arc<Worker>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&epoll, true)?;
        Ok(Self {
            epoll: worker.register(epoll)?,
            worker,
            connections: Slab::new(),
            timers: TimerQueue::default(),
            sleep: Box::pin(time::sleep(Duration::ZERO)),
            run_queue: Vec::new(),
            scratch: None,
        })
    }

    /// Runs the commands of other threads. Returns how many more times than once epoll is to be polled, and the
    /// barriers that wait for that.
    fn run_commands(&mut self, cx: &Context<'_>, now: Instant) -> (usize, Vec<oneshot::Sender<Infallible>>) {
        let commands = self.worker.take_commands(cx.waker());
        let accepted = commands.accepted.len();
        for connection in commands.accepted {
            self.worker.counters.count_accepted();
            self.insert(connection, Readiness::None, now);
        }
        for connection in commands.restored {
            self.worker.counters.count_resumed();
            // A deadline may have passed during the handover, but not for input that came before it.
            self.insert(connection, Readiness::ReadUntilBlocked, now);
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
            let _ = answer.send(self.detach(now));
        }
        // A closed connection counts until the close is processed. So that closed connections do not accumulate, as
        // many events are polled as connections were accepted; for a barrier, as many as there are connections.
        let connections = if commands.barriers.is_empty() { accepted } else { self.connections.len() };
        (connections / BATCH, commands.barriers)
    }

    fn report_idle(&self) -> IdleReport {
        let mut report = IdleReport::default();
        for (key, connection) in self.connections.iter().filter(|(_, connection)| connection.counts()) {
            let (id, source) = (connection.id(), connection.holder());
            report.add(source, connection.idle_since(), ConnectionRef::Stream { key, id });
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
        (self.timers, self.run_queue) = (TimerQueue::default(), Vec::new());
        let (epoll, worker) = (&self.epoll, &self.worker);
        let detach = |connection: Box<Connection>| {
            // Its socket stays open, so epoll would go on reporting it. Deleting a socket that is in the set does not
            // fail.
            let _ = epoll::delete(epoll, connection.socket());
            connection.detach(worker, now)
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
                entry.insert(connection);
                self.drive(key, readiness, now);
            }
            Err(error) => connection.fail(&self.worker, error.into()),
        }
    }

    /// Polls epoll, and drives the connections that are ready. Returns whether there may be more of them already.
    fn poll_events(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        // An error says that the runtime ends.
        if !matches!(self.epoll.poll_read_ready(cx), Poll::Ready(Ok(()))) {
            return false;
        }
        let mut events = [const { MaybeUninit::<Event>::uninit() }; BATCH];
        let mut ready: &[Event] = &[];
        let more = self.epoll.try_io(Interest::READABLE, || {
            ready = epoll::wait(&self.epoll, &mut events[..], Some(&NO_WAIT))?.0;
            // Then there are no more, and the reactor reports whatever comes from now on.
            if ready.len() < BATCH { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        for &Event { flags, data } in ready {
            #[expect(clippy::cast_possible_truncation, reason = "it was a usize")]
            let key = data.u64() as usize;
            self.drive(key, Readiness::from_epoll(flags), now);
        }
        // Leaves our waker with the reactor, if nothing came meanwhile.
        more.is_ok() || self.epoll.poll_read_ready(cx).is_ready()
    }

    fn fire_timers(&mut self, cx: &mut Context<'_>, now: Instant) {
        while let Some(key) = self.timers.pop_expired(now) {
            self.connections[key].timer = None;
            self.drive(key, Readiness::None, now);
        }
        let Some(next) = self.timers.next_deadline() else { return };
        let set_for = self.sleep.deadline().into_std();
        if next < set_for || set_for <= now {
            self.sleep.as_mut().reset(time::Instant::from_std(next.min(now + MAX_SLEEP)));
            if self.sleep.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Drives a connection, and arranges its next drive: by its timer, the run queue or epoll.
    #[inline]
    fn drive(&mut self, key: usize, readiness: Readiness, now: Instant) {
        // It may have ended since there was a reason to drive it.
        let Some(connection) = self.connections.get_mut(key) else { return };
        let scratch = self.scratch.get_or_insert_with(Box::default);
        let progress = connection.drive(key, readiness, now, scratch, &self.worker);
        if progress == Progress::Closed {
            return self.remove(key);
        }
        // A timer that fires too early is cheaper than one that is set with each message.
        if let Some(deadline) = connection.deadline() {
            if connection.timer.is_none_or(|at| deadline < at) {
                self.timers.set(key, connection.timer.replace(deadline), deadline);
            }
        }
        if progress == Progress::Yield {
            if !mem::replace(&mut connection.queued, true) {
                self.run_queue.push(key);
            }
        } else if let Some(interest) = connection.changed_interest() {
            // Readiness that exists already is reported, too.
            let data = EventData::new_u64(key as u64);
            if let Err(error) = retry_on_intr(|| epoll::modify(&self.epoll, connection.socket(), data, interest)) {
                // Nothing would ever report that it can go on.
                self.take(key).fail(&self.worker, error.into());
            }
        }
    }

    fn remove(&mut self, key: usize) {
        self.take(key).close(&self.worker);
    }

    fn take(&mut self, key: usize) -> Box<Connection> {
        let connection = self.connections.remove(key);
        self.timers.cancel(key, connection.timer);
        connection
    }
}

impl Future for EventLoop {
    type Output = ();

    /// Runs one pass: drives each connection that has a reason to be driven.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let now = clock();
        let (extra_polls, barriers) =
            if this.worker.has_commands() { this.run_commands(cx, now) } else { (0, Vec::new()) };
        // Connections with little to do come before those in the run queue.
        let run_queue = mem::take(&mut this.run_queue);
        let mut more = this.poll_events(cx, now);
        for _ in 0..extra_polls {
            if more {
                more = this.poll_events(cx, now);
            }
        }
        drop(barriers);
        for key in run_queue {
            if let Some(connection) = this.connections.get_mut(key) {
                connection.queued = false;
            }
            this.drive(key, Readiness::ReadUntilBlocked, now);
        }
        this.fire_timers(cx, now);
        if more || !this.run_queue.is_empty() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.log_remaining(|_| true, clock());
        let commands = self.worker.take_commands(std::task::Waker::noop());
        for connection in self.connections.drain().chain(commands.accepted).chain(commands.restored) {
            connection.close(&self.worker);
        }
    }
}

#[cfg(test)]
mod tests;
