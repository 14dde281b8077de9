//! One connection: the way of a message from the socket through its session back to the socket.
//!
//! THE HOT PATH. In one turn a connection reads once or twice into the buffers of its thread, answers at once from where
//! the input lies, and waits for news; it owns no buffer unless something is unfinished. Per message nothing happens here
//! but the session's work: no lock, no log, no shared counter, no timer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Wake, Waker};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::time;

use super::accept::Desk;
use super::admission::Place;
use super::carry::Frozen;
use super::event::{Event, Message, summary};
use super::socket::Peer;
use super::worker::Worker;
use crate::protocol::rules::LogMessages;
use crate::protocol::snapshot;
use crate::protocol::{Outlet, Scratch, Session, Verdict, Want};

/// How many steps one turn may take: one that answers, and one that finds the end of the stream, or no more input. Then
/// the others have theirs.
const STEPS: u32 = 2;

/// A connection that is served until it ends.
pub(crate) struct Connection {
    // Dropped from top to bottom: the descriptor is closed before its place is given back.
    socket: OwnedFd,
    /// Whether it asked for news of room for output, and not of input.
    awaits_room: bool,
    /// Whether it is on the list of those who go on without news.
    pub(crate) queued: bool,
    /// What its alarm is set for: no later than its session's deadline.
    pub(crate) alarm: Option<Instant>,
    session: Session,
    place: Place,
    caller: Caller,
    /// Rings when the log has room; there is one once it had none.
    bell: Option<Waker>,
}

/// Who a connection is with.
pub(crate) struct Caller {
    /// Counted from 1 over all listeners.
    pub(crate) connection: u64,
    pub(crate) desk: Arc<Desk>,
    pub(crate) peer: Peer,
}

/// Why a connection has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// A deadline, or an order for all. Its socket has no news, or else will say so by itself.
    None,
    /// Input that one read finds, or room for output.
    Some,
    /// Something may be behind that: the end of the stream, or what its last turn had no time for.
    More,
}

impl News {
    /// What epoll_wait(2) says.
    pub(crate) fn of(flags: EventFlags) -> Self {
        // PRI: one recv(2) does not go beyond urgent data.
        let more = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR | EventFlags::PRI;
        if flags.intersects(more) { Self::More } else { Self::Some }
    }
}

/// How a turn ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    /// Until there are news, or the alarm goes off.
    Wait,
    /// Until the others have had their turn.
    Yield,
    /// For good.
    End,
}

impl Connection {
    /// A connection on `socket`, to be sent to `worker`.
    pub(crate) fn new(socket: OwnedFd, session: Session, caller: Caller, worker: &Worker, place: Place) -> Self {
        worker.open.fetch_add(1, Ordering::Relaxed);
        Self { socket, awaits_room: false, queued: false, alarm: None, session, place, caller, bell: None }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// When it has to have a turn at the latest.
    #[inline]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.session.deadline()
    }

    /// What it wants to hear of.
    pub(crate) fn interest(&self) -> EventFlags {
        let news =
            if self.awaits_room { EventFlags::OUT } else { EventFlags::IN | EventFlags::RDHUP | EventFlags::PRI };
        news | EventFlags::ET
    }

    /// What it wants to hear of from now on, if that is something else than before.
    #[inline]
    pub(crate) fn change_of_interest(&mut self) -> Option<EventFlags> {
        let awaits_room = self.session.wants() == Want::Write;
        (awaits_room != self.awaits_room).then(|| {
            self.awaits_room = awaits_room;
            self.interest()
        })
    }

    /// Its turn. `key` is what the worker knows it by.
    #[inline]
    pub(crate) fn turn(
        &mut self,
        key: usize,
        news: News,
        now: Instant,
        scratch: &mut Scratch,
        worker: &Arc<Worker>,
    ) -> Pause {
        let before = self.session.totals();
        if worker.is_draining() {
            self.session.drain(now);
        }
        if news == News::None || self.alarm.is_some_and(|at| at <= now) {
            self.session.tick(now);
        }
        let pause = loop {
            let pause = self.steps(key, news, now, scratch, worker);
            if pause == Pause::End || self.session.deadline().is_none_or(|deadline| now < deadline) {
                break pause;
            }
            self.session.tick(now);
        };
        worker.counters.count_totals(before, self.session.totals());
        pause
    }

    /// Does what the session wants, as far as the socket goes along.
    #[inline]
    fn steps(&mut self, key: usize, news: News, now: Instant, scratch: &mut Scratch, worker: &Arc<Worker>) -> Pause {
        let Self { socket, session, place, caller, bell, .. } = self;
        let mut wire = Wire { socket, blocked: false, broken: false };
        let log = session.rules().log_messages;
        // Whether another read would find nothing, or news will tell of what it would find.
        let mut drained = news == News::None;
        let mut steps = 0;
        loop {
            let kept = session.memory();
            match session.wants() {
                Want::Close => return Pause::End,
                Want::Pause => return Pause::Wait,
                Want::Read if drained => return Pause::Wait,
                Want::Read if steps == STEPS => return Pause::Yield,
                // One turn answers 64 KiB and one reply at most.
                Want::Write | Want::Log if steps > 0 => return Pause::Yield,
                Want::Read => {
                    let room = scratch.input_room();
                    let size = room.len();
                    match wire.read(room) {
                        Some(0) => session.end_of_input(now),
                        Some(count) => {
                            drained = count < size && news != News::More;
                            if count == size {
                                steps = STEPS - 1;
                            }
                            if log == LogMessages::Off {
                                session.receive(now, scratch, count, &mut wire);
                            } else {
                                let logged = Logged { wire: &mut wire, worker, caller, bell, key, log };
                                logged.receive(session, now, scratch, count);
                            }
                        }
                        None => drained = true,
                    }
                }
                Want::Write | Want::Log => {
                    // Whoever is behind does not hear of input.
                    drained = false;
                    if log == LogMessages::Off {
                        session.resume(now, scratch, &mut wire);
                    } else {
                        let logged = Logged { wire: &mut wire, worker, caller, bell, key, log };
                        logged.resume(session, now, scratch);
                    }
                }
                Want::Shutdown => {
                    // A peer that is gone does not mind; the next read says so.
                    let _ = rustix::net::shutdown(wire.socket, Shutdown::Write);
                    session.sent_end(now);
                }
            }
            steps += 1;
            if wire.broken {
                session.reset();
            }
            if session.memory() != kept && !place.keeps(session.memory()) {
                session.out_of_memory(now);
                place.keeps(session.memory());
                // What had no room, for output or in the log, is not what it wants now.
                wire.blocked = false;
            }
            if wire.blocked {
                return Pause::Wait;
            }
        }
    }

    /// Whether it came to this desk.
    pub(crate) fn is_of(&self, desk: &Arc<Desk>) -> bool {
        Arc::ptr_eq(&self.caller.desk, desk)
    }

    /// It is over: says why. The descriptor is closed, and what else it has is given back.
    pub(crate) fn leave(self: Box<Self>, worker: &Worker) {
        // Without a verdict, it is we who stop before it was done.
        self.end(worker, self.session.verdict().unwrap_or(Verdict::Shutdown));
    }

    /// It is over here, and goes on elsewhere.
    pub(crate) fn freeze(self: Box<Self>, worker: &Worker, now: Instant) -> Frozen {
        let Caller { connection, ref desk, peer } = self.caller;
        let client = if let Peer::Proxied(client) = peer { Some(client) } else { None };
        let state = snapshot::freeze(&self.session, &desk.name, connection, client, now);
        self.end(worker, Verdict::Carried);
        let Self { socket, .. } = *self;
        Frozen { socket, state }
    }

    fn end(&self, worker: &Worker, verdict: Verdict) {
        worker.open.fetch_sub(1, Ordering::Relaxed);
        worker.counters.count_end(verdict);
        (worker.outside.events)(Event::Closed {
            connection: self.caller.connection,
            listener: Arc::clone(&self.caller.desk.name),
            peer: self.caller.peer,
            verdict,
            totals: self.session.totals(),
            age: clock().saturating_duration_since(self.session.opened()),
        });
    }

    /// It cannot be served.
    pub(crate) fn turn_away(self: Box<Self>, worker: &Worker, error: io::Error) {
        worker.open.fetch_sub(1, Ordering::Relaxed);
        let listener = Arc::clone(&self.caller.desk.name);
        (worker.outside.events)(Event::Dropped { listener, peer: self.caller.peer, error });
    }
}

/// The socket, during one turn.
struct Wire<'a> {
    socket: &'a OwnedFd,
    /// The socket had no room for output, or the log no room; there will be news when it has.
    blocked: bool,
    /// The connection broke.
    broken: bool,
}

impl Wire<'_> {
    /// How many bytes came; 0 at the end of the stream, `None` when nothing did.
    #[inline]
    fn read(&mut self, room: &mut [u8]) -> Option<usize> {
        match retry_on_intr(|| rustix::net::recv(self.socket, &mut *room, RecvFlags::empty())) {
            Ok((count, _)) => Some(count),
            Err(Errno::AGAIN) => None,
            Err(_) => {
                self.broken = true;
                None
            }
        }
    }
}

/// No message is logged.
impl Outlet for Wire<'_> {
    #[inline]
    fn send(&mut self, bytes: &[u8]) -> usize {
        match retry_on_intr(|| rustix::net::send(self.socket, bytes, SendFlags::NOSIGNAL)) {
            Ok(sent) => return sent,
            Err(Errno::AGAIN) => self.blocked = true,
            Err(_) => self.broken = true,
        }
        0
    }

    #[inline]
    fn log(&mut self, _: &[u8]) -> bool {
        true
    }
}

/// The socket, and the log of what comes over it.
struct Logged<'a, 'w> {
    wire: &'a mut Wire<'w>,
    worker: &'a Arc<Worker>,
    caller: &'a Caller,
    bell: &'a mut Option<Waker>,
    key: usize,
    log: LogMessages,
}

/// Apart from the hot path: connections whose messages are logged have one of their own.
impl Logged<'_, '_> {
    #[inline(never)]
    fn receive(mut self, session: &mut Session, now: Instant, scratch: &mut Scratch, count: usize) {
        session.receive(now, scratch, count, &mut self);
    }

    #[inline(never)]
    fn resume(mut self, session: &mut Session, now: Instant, scratch: &mut Scratch) {
        session.resume(now, scratch, &mut self);
    }
}

impl Outlet for Logged<'_, '_> {
    fn send(&mut self, bytes: &[u8]) -> usize {
        self.wire.send(bytes)
    }

    fn log(&mut self, message: &[u8]) -> bool {
        let Caller { connection, ref desk, peer } = *self.caller;
        let connection = Some(connection);
        let outside = &self.worker.outside;
        match self.log {
            LogMessages::Off => true,
            LogMessages::Summary => {
                let listener = Arc::clone(&desk.name);
                (outside.events)(Event::Message { connection, listener, peer, text: summary(message) });
                true
            }
            LogMessages::Full => {
                let ring = || Waker::from(Arc::new(Bell { worker: Arc::clone(self.worker), key: self.key }));
                let bell = self.bell.get_or_insert_with(ring);
                let message = Message { connection, listener: &desk.name, peer, bytes: message };
                let taken = outside.messages.take(message, bell);
                self.wire.blocked |= !taken;
                taken
            }
        }
    }
}

/// Gives a connection a turn, from whatever thread. Should it have ended, somebody else may have one for nothing.
struct Bell {
    worker: Arc<Worker>,
    key: usize,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.worker.ring(self.key);
    }
}

/// The server's one clock, which tests can stop.
pub(crate) fn clock() -> Instant {
    time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With 8 bytes of the allocator's it fills a block of 256; with one byte more, every idle connection would cost 16
    /// more.
    #[test]
    fn a_connection_is_small() {
        assert!(size_of::<Connection>() <= 248, "{} bytes", size_of::<Connection>());
    }
}
