//! One connection of packets (SOCK_SEQPACKET), as a task: it reads from top to bottom. Deadlines, limits, logging and the
//! verdict are those of a stream; there is no read deadline, since a packet is there as a whole.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::Shutdown;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::{task, time};

use super::wire;
use crate::protocol::Verdict;
use crate::protocol::packet::{self, Reply};
use crate::protocol::rules::{Deadlines, Rules, Span};
use crate::protocol::session::{LAST_WORDS, LINGER, LINGER_BYTES, Totals};
use crate::server::admission::Place;
use crate::server::connection::{Caller, clock};
use crate::server::event::{Event, Message};
use crate::server::packets;
use crate::server::worker::{Departure, Worker};

/// How many packets are taken and dropped at most before a socket is closed: more than wait, unless there are ever new ones.
const UNREAD: u32 = 1024;

/// A connection of packets that is served until it ends.
pub(crate) struct Conversation {
    // Dropped from top to bottom: the descriptor is closed before its place is given back.
    socket: UnixStream,
    place: Place,
    caller: Caller,
    worker: Arc<Worker>,
    opened: Instant,
    /// When a packet last went in either direction.
    last_packet: Instant,
    totals: Totals,
    /// Why it ended. Without a reason, it is we who stop before it was done.
    verdict: Verdict,
    /// Whether something that was sent was not taken in time.
    given_up: bool,
}

/// A deadline, and what passing it comes to.
type Limit = Option<(Instant, Verdict)>;

impl Conversation {
    /// A connection on `socket`, to be served by `worker`.
    ///
    /// # Errors
    /// It cannot be prepared or registered.
    pub(crate) fn new(socket: OwnedFd, caller: Caller, worker: Arc<Worker>, place: Place) -> io::Result<Self> {
        wire::prepare(&socket)?;
        let (socket, now) = (worker.register(socket)?, clock());
        worker.open.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            socket,
            place,
            caller,
            worker,
            opened: now,
            last_packet: now,
            totals: Totals::default(),
            verdict: Verdict::Shutdown,
            given_up: false,
        })
    }

    /// Serves it until it ends; at once, if it is refused.
    pub(crate) async fn hold(mut self, refused: Option<Verdict>) {
        self.worker.counters.count_connection();
        self.verdict = match refused {
            Some(verdict) => verdict,
            None => self.converse().await,
        };
        self.part().await;
    }

    fn rules(&self) -> &Rules {
        &self.caller.desk.settings.rules
    }

    fn deadlines(&self) -> &Deadlines {
        &self.rules().deadlines
    }

    async fn converse(&mut self) -> Verdict {
        loop {
            if let Err(verdict) = self.exchange().await {
                return verdict;
            }
            // Others want their turn.
            task::yield_now().await;
        }
    }

    /// One message and its reply; or why there are no more.
    async fn exchange(&mut self) -> Result<(), Verdict> {
        let message = self.next_message().await?;
        let Caller { connection, ref desk, peer } = self.caller;
        let logged = Message { connection: Some(connection), listener: &desk.name, peer, bytes: &message };
        packets::log(logged, desk, &self.worker.outside).await;
        let before = self.totals;
        self.totals.messages += 1;
        self.totals.bytes_in += message.len() as u64;
        let desk = Arc::clone(&self.caller.desk);
        let sent = match packet::reply(&desk.settings.rules, &message) {
            Some(reply) => self.send_before_deadline(&reply).await,
            None => {
                // The log may have taken its time.
                self.last_packet = clock();
                Ok(())
            }
        };
        self.place.keeps(0);
        self.worker.counters.count_totals(before, self.totals);
        sent?;
        let delay = desk.settings.rules.reply_delay.length();
        if delay.is_zero() { Ok(()) } else { self.pause(delay).await }
    }

    /// Takes no message for so long.
    async fn pause(&mut self, delay: Duration) -> Result<(), Verdict> {
        let lifetime = after(self.opened, self.deadlines().lifetime.as_ref(), Verdict::Lifetime);
        tokio::select! {
            biased;
            () = self.worker.departs(Departure::Drained) => return Err(Verdict::Shutdown),
            verdict = passed(lifetime) => return Err(verdict),
            () = time::sleep(delay) => {}
        }
        // It was not the peer that was idle.
        self.last_packet = clock();
        Ok(())
    }

    /// Waits for the next packet.
    async fn next_message(&mut self) -> Result<Vec<u8>, Verdict> {
        let Deadlines { idle, lifetime, .. } = self.deadlines();
        let idle = after(self.last_packet, idle.as_ref(), Verdict::IdleDeadline);
        let limit = earlier(idle, after(self.opened, lifetime.as_ref(), Verdict::Lifetime));
        loop {
            tokio::select! {
                biased;
                () = self.worker.departs(Departure::Drained) => return Err(Verdict::Shutdown),
                verdict = passed(limit) => return Err(verdict),
                ready = self.socket.readable() => ready.map_err(|_| Verdict::Shutdown)?,
            }
            match self.socket.try_io(Interest::READABLE, || wire::next_len(&self.socket)) {
                Ok(None) => return Err(Verdict::PeerClosed),
                Ok(Some(len)) if len > self.rules().max_message => return Err(Verdict::TooLong),
                Ok(Some(len)) => {
                    if !self.place.keeps(len) {
                        self.place.keeps(0);
                        return Err(Verdict::Busy);
                    }
                    self.last_packet = clock();
                    return wire::receive(&self.socket, len).map_err(|_| Verdict::PeerReset);
                }
                Err(error) if is_for_later(&error) => {}
                Err(_) => return Err(Verdict::PeerReset),
            }
        }
    }

    /// Sends a reply, as soon as there is room for it.
    async fn send_before_deadline(&mut self, reply: &Reply<'_>) -> Result<(), Verdict> {
        let now = clock();
        let Deadlines { write, lifetime, .. } = self.deadlines();
        let limit = after(now, write.as_ref(), Verdict::WriteDeadline);
        // The lifetime does not cut off a reply at once: the peer has as long as for last words.
        let ends = lifetime.as_ref().and_then(|lifetime| self.opened.checked_add(lifetime.length()));
        let ends = ends.map(|ends| (ends.max(now) + self.patience(), Verdict::Lifetime));
        self.send(reply, earlier(limit, ends)).await
    }

    /// How long the last words may take.
    fn patience(&self) -> Duration {
        self.deadlines().write.as_ref().map_or(LAST_WORDS, Span::length)
    }

    async fn send(&mut self, reply: &Reply<'_>, limit: Limit) -> Result<(), Verdict> {
        loop {
            match self.socket.try_io(Interest::WRITABLE, || wire::send(&self.socket, reply)) {
                Ok(()) => {
                    self.totals.bytes_out += reply.iter().map(|part| part.len() as u64).sum::<u64>();
                    self.last_packet = clock();
                    return Ok(());
                }
                Err(error) if is_for_later(&error) => {}
                // It is longer than our side's send buffer.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::MSGSIZE) => return Err(Verdict::TooLong),
                Err(_) => return Err(Verdict::PeerReset),
            }
            tokio::select! {
                biased;
                verdict = passed(limit) => {
                    self.given_up = true;
                    return Err(verdict);
                }
                () = self.worker.departs(Departure::AtOnce) => {
                    self.given_up = true;
                    return Err(Verdict::Shutdown);
                }
                ready = self.socket.writable() => ready.map_err(|_| Verdict::Shutdown)?,
            }
        }
    }

    /// The last words, if there are any, and then our end of the stream. A peer that did not take a reply gets neither.
    async fn part(&mut self) {
        let before = self.totals;
        if let Some(words) = packet::last_words(self.rules(), self.verdict).filter(|_| !self.given_up) {
            let limit = Some((clock() + self.patience(), self.verdict));
            // If they did not get through, nobody is there who could be told.
            let _ = self.send(&[&words, &[]], limit).await;
        }
        self.worker.counters.count_totals(before, self.totals);
        let passed = clock().saturating_duration_since(self.last_packet);
        // After a while of silence, nothing is on its way.
        if !self.given_up && passed < LINGER {
            // A peer that is gone does not mind; the next read says so.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
            self.linger().await;
        }
    }

    /// Takes and drops what still comes: to close with a packet unread would be told to the peer as an error, before it
    /// could read what it was sent.
    async fn linger(&self) {
        let (mut until, mut room) = (clock() + LINGER, LINGER_BYTES as usize);
        loop {
            tokio::select! {
                biased;
                _ = passed(Some((until, self.verdict))) => return,
                () = self.worker.departs(Departure::AtOnce) => return,
                ready = self.socket.readable() => if ready.is_err() { return },
            }
            match self.socket.try_io(Interest::READABLE, || wire::drop_next(&self.socket)) {
                Ok(None) => return,
                // A peer that we leave did no wrong. How long all that may take is limited by who stops us.
                Ok(Some(_)) if self.verdict == Verdict::Shutdown => until = clock() + LINGER,
                Ok(Some(len)) if len >= room => return,
                Ok(Some(len)) => room -= len,
                Err(error) if is_for_later(&error) => {}
                Err(_) => return,
            }
            task::yield_now().await;
        }
    }
}

impl Drop for Conversation {
    /// Says why it is over.
    fn drop(&mut self) {
        // Also when nobody waited for the peer: see `part`.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        for _ in 0..UNREAD {
            if !matches!(wire::drop_next(&self.socket), Ok(Some(_))) {
                break;
            }
        }
        self.worker.open.fetch_sub(1, Ordering::Relaxed);
        self.worker.counters.count_end(self.verdict);
        (self.worker.outside.events)(Event::Closed {
            connection: self.caller.connection,
            listener: Arc::clone(&self.caller.desk.name),
            peer: self.caller.peer,
            verdict: self.verdict,
            totals: self.totals,
            age: clock().saturating_duration_since(self.opened),
        });
    }
}

fn after(since: Instant, span: Option<&Span>, verdict: Verdict) -> Limit {
    // A time beyond all times never comes.
    Some((since.checked_add(span?.length())?, verdict))
}

fn earlier(one: Limit, other: Limit) -> Limit {
    one.into_iter().chain(other).min_by_key(|(at, _)| *at)
}

async fn passed(limit: Limit) -> Verdict {
    let Some((at, verdict)) = limit else { return pending().await };
    time::sleep_until(at.into()).await;
    verdict
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
