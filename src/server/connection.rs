//! One connection: the way of a message from the socket through its session back to the socket.
//!
//! THE HOT PATH. A connection is one hand-written future over the buffers of its thread. In one turn it reads once or
//! a few times, answers at once from where the input lies, and goes back to sleep; it owns no buffer unless something
//! is unfinished. Per message nothing happens here but the session's work: no lock, no log, no shared counter, no
//! timer. There is one timer per connection; it is set again when it fires, or when a deadline comes nearer than it.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{self, Sleep};

use super::accept::Desk;
use super::admission::Place;
use super::event::{Event, Message, summary};
use super::socket::Peer;
use super::worker::Worker;
use crate::protocol::rules::LogMessages;
use crate::protocol::{Outlet, Scratch, Session, Verdict, Want};

/// How many times one turn may read, or go on with what is held; then the others have theirs.
const STEPS: u32 = 2;

/// The farthest a timer is set, which is less than what timers can do. It is set again when it fires.
const LONGEST_NAP: Duration = Duration::from_secs(86_400);

thread_local! {
    /// The buffers of this thread, made when its first connection is served.
    static SCRATCH: RefCell<Option<Box<Scratch>>> = const { RefCell::new(None) };
}

pin_project! {
    /// A connection that is served until it ends.
    pub(crate) struct Connection {
        // Dropped from top to bottom: the descriptor is closed before its place is given back.
        stream: UnixStream,
        session: Session,
        #[pin]
        alarm: Option<Sleep>,
        worker: Arc<Worker>,
        papers: Box<Papers>,
    }

    impl PinnedDrop for Connection {
        fn drop(this: Pin<&mut Self>) {
            this.leave();
        }
    }
}

/// What is not needed in every turn. Apart from the rest, because of the allocator: the future with what tokio adds
/// then fits into three blocks of 128 bytes, and this into what remains free between two of such.
struct Papers {
    caller: Caller,
    seat: Option<usize>,
    place: Place,
}

/// Who a connection is with.
pub(crate) struct Caller {
    /// Counted from 1 over all listeners.
    pub(crate) connection: u64,
    pub(crate) desk: Arc<Desk>,
    pub(crate) peer: Peer,
}

/// How a turn ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// Until the socket has news, or the alarm goes off.
    Wait,
    /// Until the others have had their turn.
    Yield,
    /// For good.
    End,
}

impl Connection {
    /// A connection on `stream`, which is registered with the reactor of `worker`; to be spawned there.
    pub(crate) fn new(stream: UnixStream, session: Session, caller: Caller, worker: Arc<Worker>, place: Place) -> Self {
        worker.open.fetch_add(1, Ordering::Relaxed);
        Self { stream, session, alarm: None, worker, papers: Box::new(Papers { caller, seat: None, place }) }
    }

    /// Does what the session wants, as far as the socket goes along.
    #[inline]
    fn steps(self: Pin<&mut Self>, cx: &mut Context<'_>, now: Instant, scratch: &mut Scratch) -> Pause {
        let this = self.project();
        let session = this.session;
        let mut wire = Wire { stream: this.stream, cx, blocked: false, broken: false };
        let log = session.rules().log_messages;
        let mut steps = 0;
        loop {
            let kept = session.memory();
            match session.wants() {
                Want::Close => return Pause::End,
                Want::Read | Want::Write | Want::Log if steps == STEPS => return Pause::Yield,
                Want::Read => match wire.read(scratch.input_room()) {
                    Some(0) => session.end_of_input(now),
                    Some(count) if log == LogMessages::Off => session.receive(now, scratch, count, &mut wire),
                    Some(count) => {
                        let logged = Logged { wire: &mut wire, worker: this.worker, caller: &this.papers.caller, log };
                        logged.receive(session, now, scratch, count);
                    }
                    None => {}
                },
                Want::Write | Want::Log if log == LogMessages::Off => session.resume(now, scratch, &mut wire),
                Want::Write | Want::Log => {
                    let logged = Logged { wire: &mut wire, worker: this.worker, caller: &this.papers.caller, log };
                    logged.resume(session, now, scratch);
                }
                Want::Shutdown => {
                    wire.end();
                    session.sent_end(now);
                }
            }
            steps += 1;
            if wire.broken {
                session.reset();
            }
            if session.memory() != kept && !this.papers.place.keeps(session.memory()) {
                session.out_of_memory(now);
                this.papers.place.keeps(session.memory());
            }
            if wire.blocked {
                return Pause::Wait;
            }
        }
    }

    /// Sees to it that the task is woken no later than its session's next deadline. Returns `false` if that has passed.
    #[inline]
    fn set_alarm(self: Pin<&mut Self>, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut this = self.project();
        let Some(deadline) = this.session.deadline() else { return true };
        if deadline <= now {
            return false;
        }
        let set_for = this.alarm.as_ref().as_pin_ref().map(|alarm| alarm.deadline().into_std());
        if set_for.is_some_and(|at| now < at && at <= deadline) {
            return true;
        }
        let at = time::Instant::from_std(deadline.min(now + LONGEST_NAP));
        match this.alarm.as_mut().as_pin_mut() {
            Some(alarm) => alarm.reset(at),
            None => this.alarm.set(Some(time::sleep_until(at))),
        }
        // Leaves our waker with the timer.
        this.alarm.as_pin_mut().is_none_or(|alarm| alarm.poll(cx).is_pending())
    }

    /// The connection is over: says why, and gives back what does not give itself back.
    fn leave(self: Pin<&mut Self>) {
        let this = self.project();
        let worker = this.worker;
        let Papers { caller, seat, .. } = &mut **this.papers;
        if let Some(seat) = seat.take() {
            worker.sign_off(seat);
        }
        worker.open.fetch_sub(1, Ordering::Relaxed);
        // Without a verdict, it is we who stop before it was done.
        let verdict = this.session.verdict().unwrap_or(Verdict::Shutdown);
        worker.counters.count_end(verdict);
        (worker.outside.events)(Event::Closed {
            connection: caller.connection,
            listener: Arc::clone(&caller.desk.name),
            peer: caller.peer,
            verdict,
            totals: this.session.totals(),
            age: clock().saturating_duration_since(this.session.opened()),
        });
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut now = clock();
        let before = self.session.totals();
        let this = self.as_mut().project();
        if this.alarm.is_none() {
            let papers = &mut **this.papers;
            papers.seat.get_or_insert_with(|| this.worker.sign_up(cx.waker().clone()));
        }
        if this.worker.is_draining() {
            this.session.drain(now);
        }
        // The alarm is never set for later than the session's deadline.
        if self.alarm.as_ref().is_some_and(|alarm| alarm.deadline().into_std() <= now) {
            self.as_mut().project().session.tick(now);
        }
        let pause = loop {
            let pause = SCRATCH.with_borrow_mut(|scratch| {
                let scratch = scratch.get_or_insert_with(Box::default);
                self.as_mut().steps(cx, now, scratch)
            });
            if pause == Pause::End || self.as_mut().set_alarm(cx, now) {
                break pause;
            }
            now = clock();
            self.as_mut().project().session.tick(now);
        };
        self.worker.counters.count_totals(before, self.session.totals());
        match pause {
            Pause::Wait => Poll::Pending,
            Pause::Yield => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Pause::End => Poll::Ready(()),
        }
    }
}

/// The socket, during one turn.
struct Wire<'a, 'c> {
    stream: &'a mut UnixStream,
    cx: &'a mut Context<'c>,
    /// The socket had no room or no input, or the log no room; the task is woken when it has.
    blocked: bool,
    /// The connection broke.
    broken: bool,
}

impl Wire<'_, '_> {
    /// How many bytes came; 0 at the end of the stream, `None` when nothing did.
    #[inline]
    fn read(&mut self, room: &mut [u8]) -> Option<usize> {
        let mut room = ReadBuf::new(room);
        // After a short read tokio knows that nothing is left, and makes no second system call to find out.
        match Pin::new(&mut *self.stream).poll_read(self.cx, &mut room) {
            Poll::Ready(Ok(())) => return Some(room.filled().len()),
            Poll::Ready(Err(_)) => self.broken = true,
            Poll::Pending => self.blocked = true,
        }
        None
    }

    /// Ends our stream.
    fn end(&mut self) {
        // A peer that is gone does not mind; the next read says so.
        let _ = Pin::new(&mut *self.stream).poll_shutdown(self.cx);
    }
}

/// No message is logged.
impl Outlet for Wire<'_, '_> {
    #[inline]
    fn send(&mut self, bytes: &[u8]) -> usize {
        match Pin::new(&mut *self.stream).poll_write(self.cx, bytes) {
            Poll::Ready(Ok(sent)) => return sent,
            Poll::Ready(Err(_)) => self.broken = true,
            Poll::Pending => self.blocked = true,
        }
        0
    }

    #[inline]
    fn log(&mut self, _: &[u8]) -> bool {
        true
    }
}

/// The socket, and the log of what comes over it.
struct Logged<'w, 'a, 'c> {
    wire: &'w mut Wire<'a, 'c>,
    worker: &'w Worker,
    caller: &'w Caller,
    log: LogMessages,
}

/// Apart from the hot path: connections whose messages are logged have one of their own.
impl Logged<'_, '_, '_> {
    #[inline(never)]
    fn receive(mut self, session: &mut Session, now: Instant, scratch: &mut Scratch, count: usize) {
        session.receive(now, scratch, count, &mut self);
    }

    #[inline(never)]
    fn resume(mut self, session: &mut Session, now: Instant, scratch: &mut Scratch) {
        session.resume(now, scratch, &mut self);
    }
}

impl Outlet for Logged<'_, '_, '_> {
    fn send(&mut self, bytes: &[u8]) -> usize {
        self.wire.send(bytes)
    }

    fn log(&mut self, message: &[u8]) -> bool {
        let Caller { connection, ref desk, peer } = *self.caller;
        let outside = &self.worker.outside;
        match self.log {
            LogMessages::Off => true,
            LogMessages::Summary => {
                let listener = Arc::clone(&desk.name);
                (outside.events)(Event::Message { connection, listener, peer, text: summary(message) });
                true
            }
            LogMessages::Full => {
                let message = Message { connection, listener: &desk.name, peer, bytes: message };
                let taken = outside.messages.take(message, self.wire.cx.waker());
                self.wire.blocked |= !taken;
                taken
            }
        }
    }
}

/// The server's one clock, which tests can stop.
pub(crate) fn clock() -> Instant {
    time::Instant::now().into_std()
}
#[cfg(test)]
mod tests {
    use super::*;

    /// tokio adds 96 bytes and aligns to 128: with one byte more, every idle connection would cost 128 more.
    #[test]
    fn a_connection_and_what_tokio_adds_fill_three_blocks_of_128_bytes() {
        assert!(size_of::<Connection>() + 96 <= 384, "{} bytes", size_of::<Connection>());
        // glibc keeps 8 bytes of the 112 that are left over between two of such.
        assert!(size_of::<Papers>() <= 104, "{} bytes", size_of::<Papers>());
    }
}
