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

use super::accept::Desk;
use super::alarms::Alarms;
use super::carry::Frozen;
use super::connection::{Connection, News, Pause, clock};
use super::worker::Worker;
use crate::protocol::Scratch;

/// How many connections with news have a turn before others are asked for.
const BATCH: usize = 64;

/// The farthest the timer is set, which is less than what timers can do. It is set again when it goes off.
const LONGEST_NAP: Duration = Duration::from_secs(86_400);

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// The connections of a worker. As a future it never ends.
pub(crate) struct Floor {
    worker: Arc<Worker>,
    /// The set, as something that the reactor can wait for ([`Worker::register`]).
    epoll: UnixStream,
    connections: Slab<Box<Connection>>,
    alarms: Alarms,
    /// Goes off with the first alarm, or before.
    timer: Pin<Box<Sleep>>,
    /// Connections that go on without news.
    again: Vec<usize>,
    /// The buffers of this thread, made when its first connection is served.
    scratch: Option<Box<Scratch>>,
}

impl Floor {
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
            alarms: Alarms::default(),
            timer: Box::pin(time::sleep(Duration::ZERO)),
            again: Vec::new(),
            scratch: None,
        })
    }

    /// What other threads want of us. Returns how many times more than once news are to be asked for, and who waits for that.
    fn read_mail(&mut self, cx: &Context<'_>, now: Instant) -> (usize, Vec<oneshot::Sender<Infallible>>) {
        let mail = self.worker.take_mail(cx.waker());
        let newcomers = mail.arrived.len();
        for connection in mail.arrived {
            self.worker.counters.count_connection();
            self.enter(connection, News::None, now);
        }
        for connection in mail.resumed {
            self.worker.counters.count_resumed();
            // A deadline may have passed on the way, but not for input that came before.
            self.enter(connection, News::More, now);
        }
        for key in mail.rung {
            self.turn(key, News::More, now);
        }
        if mail.drain {
            let all: Vec<_> = self.connections.iter().map(|(key, _)| key).collect();
            for key in all {
                self.turn(key, News::None, now);
            }
        }
        if !mail.cut.is_empty() {
            self.cut(&mail.cut);
        }
        // Somebody who does not wait for them any more would lose them.
        if let Some(answer) = mail.freeze.filter(|answer| !answer.is_closed()) {
            let _ = answer.send(self.freeze(now));
        }
        // Who has left counts until we hear of it. So that they do not become ever more, no more come than may leave; and
        // who waits for them waits for any of all.
        let connections = if mail.behind.is_empty() { newcomers } else { self.connections.len() };
        (connections / BATCH, mail.behind)
    }

    /// Takes all connections out of service, in the middle of whatever they do. Those that have nothing left to do after a
    /// last turn end.
    fn freeze(&mut self, now: Instant) -> Vec<Frozen> {
        let all: Vec<_> = self.connections.iter().map(|(key, _)| key).collect();
        for key in all {
            // Tries once more to send what is owed.
            self.turn(key, News::None, now);
        }
        (self.alarms, self.again) = (Alarms::default(), Vec::new());
        let (epoll, worker) = (&self.epoll, &self.worker);
        let freeze = |connection: Box<Connection>| {
            // Its socket lives on, and would be heard of. There is no error that could befall one that is in the set.
            let _ = epoll::delete(epoll, connection.socket());
            connection.freeze(worker, now)
        };
        self.connections.drain().map(freeze).collect()
    }

    /// Has the connections of these desks end, whatever they are owed.
    fn cut(&mut self, desks: &[Arc<Desk>]) {
        let is_cut = |connection: &Connection| desks.iter().any(|desk| connection.is_of(desk));
        let cut: Vec<_> = self.connections.iter().filter(|(_, one)| is_cut(one)).map(|(key, _)| key).collect();
        for key in cut {
            self.end(key);
        }
    }

    /// `news` is why it has its first turn.
    fn enter(&mut self, connection: Box<Connection>, news: News, now: Instant) {
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let interest = connection.interest();
        match epoll::add(&self.epoll, connection.socket(), EventData::new_u64(key as u64), interest) {
            Ok(()) => {
                entry.insert(connection);
                self.turn(key, news, now);
            }
            Err(error) => connection.turn_away(&self.worker, error.into()),
        }
    }

    /// Hears of those that have news. Returns whether there may be more of them already.
    fn hear_news(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        // An error says that the runtime ends.
        if !matches!(self.epoll.poll_read_ready(cx), Poll::Ready(Ok(()))) {
            return false;
        }
        let mut events = [const { MaybeUninit::<Event>::uninit() }; BATCH];
        let mut heard: &[Event] = &[];
        let more = self.epoll.try_io(Interest::READABLE, || {
            heard = epoll::wait(&self.epoll, &mut events[..], Some(&AT_ONCE))?.0;
            // Then there are no more, and of whatever comes from now on the reactor hears anew.
            if heard.len() < BATCH { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        for &Event { flags, data } in heard {
            #[expect(clippy::cast_possible_truncation, reason = "it was a usize")]
            let key = data.u64() as usize;
            self.turn(key, News::of(flags), now);
        }
        // Leaves our waker with the reactor, if nothing came meanwhile.
        more.is_ok() || self.epoll.poll_read_ready(cx).is_ready()
    }

    fn ring_alarms(&mut self, cx: &mut Context<'_>, now: Instant) {
        while let Some(key) = self.alarms.due(now) {
            self.connections[key].alarm = None;
            self.turn(key, News::None, now);
        }
        let Some(next) = self.alarms.next() else { return };
        let set_for = self.timer.deadline().into_std();
        if next < set_for || set_for <= now {
            self.timer.as_mut().reset(time::Instant::from_std(next.min(now + LONGEST_NAP)));
            if self.timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Gives a connection its turn, and sees to it that it has another when there is a reason for one.
    #[inline]
    fn turn(&mut self, key: usize, news: News, now: Instant) {
        // It may have ended since there was a reason.
        let Some(connection) = self.connections.get_mut(key) else { return };
        let scratch = self.scratch.get_or_insert_with(Box::default);
        let pause = connection.turn(key, news, now, scratch, &self.worker);
        if pause == Pause::End {
            return self.end(key);
        }
        // An alarm that goes off too early is cheaper than one that is set with each message.
        if let Some(deadline) = connection.deadline() {
            if connection.alarm.is_none_or(|at| deadline < at) {
                self.alarms.set(key, connection.alarm.replace(deadline), deadline);
            }
        }
        if pause == Pause::Yield {
            if !mem::replace(&mut connection.queued, true) {
                self.again.push(key);
            }
        } else if let Some(interest) = connection.change_of_interest() {
            // What holds already is reported, too. There is no error that could befall a socket that is in the set.
            let _ = epoll::modify(&self.epoll, connection.socket(), EventData::new_u64(key as u64), interest);
        }
    }

    fn end(&mut self, key: usize) {
        let connection = self.connections.remove(key);
        self.alarms.remove(key, connection.alarm);
        connection.leave(&self.worker);
    }
}

impl Future for Floor {
    type Output = ();

    /// One pass: a turn for everybody who has a reason for one.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let now = clock();
        let (passes, behind) = if this.worker.has_mail() { this.read_mail(cx, now) } else { (0, Vec::new()) };
        // Those who are calm come first.
        let again = mem::take(&mut this.again);
        let mut more = this.hear_news(cx, now);
        for _ in 0..passes {
            if more {
                more = this.hear_news(cx, now);
            }
        }
        drop(behind);
        for key in again {
            if let Some(connection) = this.connections.get_mut(key) {
                connection.queued = false;
            }
            this.turn(key, News::More, now);
        }
        this.ring_alarms(cx, now);
        if more || !this.again.is_empty() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let mail = self.worker.take_mail(std::task::Waker::noop());
        for connection in self.connections.drain().chain(mail.arrived).chain(mail.resumed) {
            connection.leave(&self.worker);
        }
    }
}
