//! All connections of one worker, and an epoll set of their own that says which of them have news.
//!
//! It is one task of the worker's runtime. Connections could be tasks of that runtime as well; but a task, its timer and
//! its registration cost more than all else that we do for a small message, and many times the memory.
//!
//! ```text
//! runtime: epoll_wait ─► floor: epoll_wait ─► for each connection with news: turn (recv, session, send)
//! ```
//!
//! The set is edge-triggered: a level-triggered socket is looked at once more, in vain, after every message. So whoever
//! is told of news goes on until the socket has no more of them, or is put on the list of those who go on in the next
//! pass. Room for output is asked for only by those who wait for it: a Unix socket reports it after each read of its peer.

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
use slab::Slab;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{self, Sleep};

use super::accept::Listener;
use super::connection::{Connection, Progress, Readiness, clock};
use super::handover::DetachedConnection;
use super::timers::TimerQueue;
use super::worker::Worker;
use crate::protocol::Scratch;

/// How many connections with news have a turn before others are asked for.
const BATCH: usize = 64;

/// The farthest the timer is set, which is less than what timers can do. It is set again when it goes off.
const MAX_SLEEP: Duration = Duration::from_secs(86_400);

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// The connections of a worker. As a future it never ends.
pub(crate) struct EventLoop {
    worker: Arc<Worker>,
    /// The set, as something that the reactor can wait for ([`Worker::register`]).
    epoll: UnixStream,
    connections: Slab<Box<Connection>>,
    timers: TimerQueue,
    /// Goes off with the first alarm, or before.
    sleep: Pin<Box<Sleep>>,
    /// Connections that go on without news.
    run_queue: Vec<usize>,
    /// The buffers of this thread, made when its first connection is served.
    scratch: Option<Box<Scratch>>,
}

impl EventLoop {
    /// An empty floor. To be made in the runtime of its worker.
    ///
    /// # Errors
    /// There is no epoll set to be had.
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

    /// What other threads want of us. Returns how many times more than once news are to be asked for, and who waits for that.
    fn run_commands(&mut self, cx: &Context<'_>, now: Instant) -> (usize, Vec<oneshot::Sender<Infallible>>) {
        let commands = self.worker.take_commands(cx.waker());
        let accepted = commands.accepted.len();
        for connection in commands.accepted {
            self.worker.counters.count_accepted();
            self.insert(connection, Readiness::None, now);
        }
        for connection in commands.restored {
            self.worker.counters.count_resumed();
            // A deadline may have passed on the way, but not for input that came before.
            self.insert(connection, Readiness::ReadUntilBlocked, now);
        }
        for key in commands.woken {
            self.drive(key, Readiness::ReadUntilBlocked, now);
        }
        if commands.drain {
            let all: Vec<_> = self.connections.iter().map(|(key, _)| key).collect();
            for key in all {
                self.drive(key, Readiness::None, now);
            }
        }
        if !commands.close_listeners.is_empty() {
            self.close_listeners(&commands.close_listeners);
        }
        // Somebody who does not wait for them any more would lose them.
        if let Some(answer) = commands.detach.filter(|answer| !answer.is_closed()) {
            let _ = answer.send(self.detach(now));
        }
        // Who has left counts until we hear of it. So that they do not become ever more, no more come than may leave; and
        // who waits for them waits for any of all.
        let connections = if commands.barriers.is_empty() { accepted } else { self.connections.len() };
        (connections / BATCH, commands.barriers)
    }

    /// Takes all connections out of service, in the middle of whatever they do. Those that have nothing left to do after a
    /// last turn end.
    fn detach(&mut self, now: Instant) -> Vec<DetachedConnection> {
        let all: Vec<_> = self.connections.iter().map(|(key, _)| key).collect();
        for key in all {
            // Tries once more to send what is owed.
            self.drive(key, Readiness::None, now);
        }
        (self.timers, self.run_queue) = (TimerQueue::default(), Vec::new());
        let (epoll, worker) = (&self.epoll, &self.worker);
        let freeze = |connection: Box<Connection>| {
            // Its socket lives on, and would be heard of. There is no error that could befall one that is in the set.
            let _ = epoll::delete(epoll, connection.socket());
            connection.detach(worker, now)
        };
        self.connections.drain().map(freeze).collect()
    }

    /// Has the connections of these desks end, whatever they are owed.
    fn close_listeners(&mut self, listeners: &[Arc<Listener>]) {
        let is_closed = |connection: &Connection| listeners.iter().any(|listener| connection.belongs_to(listener));
        let closed: Vec<_> = self.connections.iter().filter(|(_, one)| is_closed(one)).map(|(key, _)| key).collect();
        for key in closed {
            self.remove(key);
        }
    }

    /// `news` is why it has its first turn.
    fn insert(&mut self, connection: Box<Connection>, readiness: Readiness, now: Instant) {
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let interest = connection.interest();
        match epoll::add(&self.epoll, connection.socket(), EventData::new_u64(key as u64), interest) {
            Ok(()) => {
                entry.insert(connection);
                self.drive(key, readiness, now);
            }
            Err(error) => connection.reject(&self.worker, error.into()),
        }
    }

    /// Hears of those that have news. Returns whether there may be more of them already.
    fn poll_events(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        // An error says that the runtime ends.
        if !matches!(self.epoll.poll_read_ready(cx), Poll::Ready(Ok(()))) {
            return false;
        }
        let mut events = [const { MaybeUninit::<Event>::uninit() }; BATCH];
        let mut ready: &[Event] = &[];
        let more = self.epoll.try_io(Interest::READABLE, || {
            ready = epoll::wait(&self.epoll, &mut events[..], Some(&NO_WAIT))?.0;
            // Then there are no more, and of whatever comes from now on the reactor hears anew.
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

    /// Gives a connection its turn, and sees to it that it has another when there is a reason for one.
    #[inline]
    fn drive(&mut self, key: usize, readiness: Readiness, now: Instant) {
        // It may have ended since there was a reason.
        let Some(connection) = self.connections.get_mut(key) else { return };
        let scratch = self.scratch.get_or_insert_with(Box::default);
        let progress = connection.drive(key, readiness, now, scratch, &self.worker);
        if progress == Progress::Closed {
            return self.remove(key);
        }
        // An alarm that goes off too early is cheaper than one that is set with each message.
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
            // What holds already is reported, too. There is no error that could befall a socket that is in the set.
            let _ = epoll::modify(&self.epoll, connection.socket(), EventData::new_u64(key as u64), interest);
        }
    }

    fn remove(&mut self, key: usize) {
        let connection = self.connections.remove(key);
        self.timers.cancel(key, connection.timer);
        connection.close(&self.worker);
    }
}

impl Future for EventLoop {
    type Output = ();

    /// One pass: a turn for everybody who has a reason for one.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let now = clock();
        let (extra_polls, barriers) =
            if this.worker.has_commands() { this.run_commands(cx, now) } else { (0, Vec::new()) };
        // Those who are calm come first.
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
        let commands = self.worker.take_commands(std::task::Waker::noop());
        for connection in self.connections.drain().chain(commands.accepted).chain(commands.restored) {
            connection.close(&self.worker);
        }
    }
}
