//! One connection of packets (SOCK_SEQPACKET), as a task: it reads from top to bottom. Deadlines, limits, logging and
//! the verdict are those of a stream; there is no read deadline, since a packet is there as a whole.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::{task, time};

use super::seqpacket_socket::{self, NextPacket};
use crate::protocol::Verdict;
use crate::protocol::packet::{self, Reply};
use crate::protocol::peer_wait::PeerWait;
use crate::protocol::rules::{Deadlines, Rules, TimeSpan};
use crate::protocol::session::{FINAL_REPLY_TIMEOUT, LINGER, LINGER_BYTES, Totals};
use crate::server::accepted_socket::{self, AcceptedSocket};
use crate::server::admission::Permit;
use crate::server::clock::clock;
use crate::server::disposal::{Disposal, Unparked};
use crate::server::event::{Event, ReceivedMessage};
use crate::server::idleness::TaskIdleness;
use crate::server::listener::ConnectionInfo;
use crate::server::packets;
use crate::server::peer::Source;
use crate::server::peer_descriptors::PeerDescriptors;
use crate::server::peer_input::Input;
use crate::server::peer_progress;
use crate::server::services::{Services, StopRequest};
use crate::server::socket_error;
use crate::server::unserved;
use crate::server::worker_state::WorkerState;

/// How many packets are taken and dropped at most before a socket is closed: more than wait, unless there are ever new
/// ones.
const MAX_DISCARDED: u32 = 1024;

/// A seqpacket connection that is served until it ends.
struct SeqpacketConnection {
    /// There until the drop, which closes it before it releases the permit.
    socket: Option<UnixStream>,
    permit: Option<Permit>,
    descriptors: PeerDescriptors,
    /// Notified when descriptors that the peer sent are closed, and when there is room for further ones.
    unparked: Arc<Unparked>,
    /// Whether that is awaited: nothing is read then.
    parked: bool,
    info: ConnectionInfo,
    services: Arc<Services>,
    opened: Instant,
    /// When a packet last went in either direction.
    last_packet: Instant,
    totals: Totals,
    /// Why it ended. Without a reason, it is we who stop before it was done.
    verdict: Verdict,
    /// Whether something that was sent was not taken in time, or nothing more is sent.
    send_abandoned: bool,
    idleness: Arc<TaskIdleness>,
}

/// A deadline, and what passing it comes to.
type Deadline = Option<(Instant, Verdict)>;

/// Serves a connection in a task, or refuses it. `state` is that of the thread that runs this.
pub(crate) fn spawn(
    socket: AcceptedSocket,
    info: ConnectionInfo,
    services: &Arc<Services>,
    permit: Permit,
    refused: Option<Verdict>,
    state: &WorkerState,
) {
    let runtime = match services.start() {
        Ok(runtime) => runtime,
        Err(error) => return unserved::close_failed(state, &info, clock(), error, Some(socket), permit),
    };
    let services = Arc::clone(services);
    runtime.spawn(async move {
        let state = &services.state;
        if let Err(error) = seqpacket_socket::prepare(&socket) {
            return unserved::close_failed(state, &info, clock(), error, Some(socket), permit);
        }
        match socket.register(|socket| services.register(socket)) {
            Ok((socket, descriptors)) => {
                SeqpacketConnection::new(socket, descriptors, info, services, permit).run(refused).await;
            }
            Err((error, socket)) => unserved::close_failed(state, &info, clock(), error, socket, permit),
        }
    });
}

impl SeqpacketConnection {
    /// Creates a connection on `socket`, and counts it.
    fn new(
        socket: UnixStream,
        descriptors: PeerDescriptors,
        info: ConnectionInfo,
        services: Arc<Services>,
        permit: Permit,
    ) -> Self {
        let now = clock();
        services.state.add_connection();
        let idleness = Arc::<TaskIdleness>::default();
        if permit.counts() {
            services.add_task(info.id, Source::of_holder(info.peer), &idleness);
        }
        Self {
            socket: Some(socket),
            permit: Some(permit),
            descriptors,
            unparked: Arc::default(),
            parked: false,
            info,
            services,
            opened: now,
            last_packet: now,
            totals: Totals::default(),
            verdict: Verdict::Shutdown,
            send_abandoned: false,
            idleness,
        }
    }

    /// Serves the connection until it ends. If it is refused, it is closed at once.
    async fn run(mut self, refused: Option<Verdict>) {
        self.services.state.counters.count_accepted();
        self.verdict = match refused {
            Some(verdict) => verdict,
            None => self.serve().await,
        };
        self.close().await;
    }

    fn socket(&self) -> &UnixStream {
        let Some(socket) = &self.socket else { unreachable!("it is there until the drop") };
        socket
    }

    /// Sets how many bytes it keeps: [`Permit::set_memory`].
    fn set_memory(&mut self, bytes: usize) -> bool {
        self.permit.as_mut().is_some_and(|permit| permit.set_memory(bytes))
    }

    fn rules(&self) -> &Rules {
        &self.info.listener.settings.rules
    }

    fn deadlines(&self) -> &Deadlines {
        &self.rules().deadlines
    }

    async fn serve(&mut self) -> Verdict {
        loop {
            if let Err(verdict) = self.exchange().await {
                return verdict;
            }
            // Lets other tasks run.
            task::yield_now().await;
        }
    }

    /// Receives one message and sends its reply, or returns why there are no more.
    async fn exchange(&mut self) -> Result<(), Verdict> {
        let message = self.next_message().await;
        self.idleness.set_idle_since(None);
        let message = message?;
        let ConnectionInfo { id, ref listener, peer } = self.info;
        let (connection_id, received_at) = (Some(id), None);
        let logged = ReceivedMessage { connection_id, listener: &listener.name, peer, received_at, bytes: &message };
        if !packets::log(logged, listener, &self.services).await {
            return Err(Verdict::Shutdown);
        }
        let before = self.totals;
        self.totals.messages += 1;
        self.totals.bytes_in += message.len() as u64;
        let listener = Arc::clone(&self.info.listener);
        let sent = match packet::reply(&listener.settings.rules, &message) {
            Some(reply) => self.send_reply(&reply).await,
            None => {
                // The log may have taken its time.
                self.last_packet = clock();
                Ok(())
            }
        };
        self.set_memory(0);
        self.services.state.counters.count_totals(before, self.totals);
        sent?;
        let delay = listener.settings.rules.reply_delay.duration();
        if delay.is_zero() { Ok(()) } else { self.delay_next_message(delay).await }
    }

    /// Waits for the delay after a reply, in which no message is taken.
    async fn delay_next_message(&mut self, delay: Duration) -> Result<(), Verdict> {
        let lifetime = deadline_after(self.opened, self.deadlines().lifetime.as_ref(), Verdict::Lifetime);
        tokio::select! {
            biased;
            () = self.services.stop_requested(StopRequest::Graceful) => return Err(Verdict::Shutdown),
            verdict = expired(lifetime) => return Err(verdict),
            () = time::sleep(delay) => {}
        }
        // It was not the peer that was idle.
        self.last_packet = clock();
        Ok(())
    }

    /// Waits for the next packet.
    async fn next_message(&mut self) -> Result<Vec<u8>, Verdict> {
        let Deadlines { idle, lifetime, .. } = self.deadlines();
        let idle_deadline = deadline_after(self.last_packet, idle.as_ref(), Verdict::IdleDeadline);
        let mut idle = idle_deadline;
        let lifetime = deadline_after(self.opened, lifetime.as_ref(), Verdict::Lifetime);
        let may_be_reclaimed = idle.is_some();
        let idleness = Arc::clone(&self.idleness);
        loop {
            idleness.set_idle_since(Some(self.last_packet).filter(|_| may_be_reclaimed && !self.parked));
            tokio::select! {
                biased;
                () = self.services.stop_requested(StopRequest::Graceful) => return Err(Verdict::Shutdown),
                verdict = expired(lifetime) => return Err(verdict),
                verdict = expired(idle) => {
                    if self.parked || self.is_empty() {
                        return Err(verdict);
                    }
                    // What came in time is answered: it may be this process that is late.
                    idle = None;
                    continue;
                }
                request = idleness.requested() => {
                    // What has come meanwhile is answered.
                    if self.is_empty() {
                        self.reclaim();
                        // The one that asked may have stopped waiting.
                        let _ = request.send(true);
                        return Err(Verdict::Reclaimed);
                    }
                }
                () = self.unparked.wait(), if self.parked => {
                    self.parked = false;
                    continue;
                }
                ready = self.socket().readable(), if !self.parked => ready.map_err(|_| Verdict::Shutdown)?,
            }
            match self.peek() {
                Ok(None) => return Err(Verdict::PeerClosed),
                Ok(Some(next)) if next.len > self.rules().max_message => return Err(Verdict::TooLong),
                Ok(Some(next)) => {
                    if !self.set_memory(next.len) {
                        self.set_memory(0);
                        return Err(Verdict::Busy);
                    }
                    match self.receive(next, next.len) {
                        Ok(Some(packet)) => {
                            self.last_packet = clock();
                            return Ok(packet);
                        }
                        Ok(None) => {
                            self.set_memory(0);
                            // It cannot be received yet, and is not waited for longer than any other.
                            idle = idle_deadline;
                        }
                        // It is still there.
                        Err(error) if is_retryable(&error) => {
                            self.set_memory(0);
                        }
                        Err(error) => return Err(self.broken(error)),
                    }
                }
                Err(error) if is_retryable(&error) => {}
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    /// Frees the permit for a client that waits. If many wait for their final reply to arrive, nothing more is sent.
    fn reclaim(&mut self) {
        self.services.remove_task(self.info.id);
        let lingers = self.permit.as_mut().is_some_and(Permit::refuse);
        self.send_abandoned = !lingers;
    }

    /// Returns the verdict of a connection that broke, and reports the error if it is not the peer's.
    fn broken(&self, error: io::Error) -> Verdict {
        socket_error::report(error, &self.info, &self.services.state.sink);
        Verdict::PeerReset
    }

    /// Returns whether nothing has come: also nothing that the reactor does not know of.
    fn is_empty(&self) -> bool {
        seqpacket_socket::peek(self.socket()).is_err_and(|error| is_retryable(&error))
    }

    /// Returns the next packet, which stays in the socket; `None` at the end of the stream.
    fn peek(&mut self) -> io::Result<Option<NextPacket>> {
        // Without a call, the reactor knows of no packet: that says nothing.
        let mut asked = false;
        let next = self.socket().try_io(Interest::READABLE, || {
            asked = true;
            seqpacket_socket::peek(self.socket())
        });
        let is_empty = asked && next.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        if matches!(next, Ok(None)) || is_empty && self.descriptors == PeerDescriptors::Queued {
            self.descriptors = PeerDescriptors::None;
        }
        next
    }

    /// Receives the next packet, up to `len` bytes, and has its descriptors closed. The connection is parked until they are.
    /// Returns `None` if it is parked until there is room for them.
    fn receive(&mut self, next: NextPacket, len: usize) -> io::Result<Option<Vec<u8>>> {
        let mut packet = vec![0; len];
        let len = if next.has_descriptors {
            let make_waker = || Waker::from(Arc::clone(&self.unparked));
            let (socket, disposal) = (self.socket(), &self.services.state.disposal);
            let input = seqpacket_socket::receive_with_descriptors(socket, &mut packet, disposal, make_waker)?;
            self.parked = !matches!(input, Input::Bytes(_));
            match input {
                Input::Bytes(len) | Input::WithDescriptors(len) => len,
                Input::Parked => return Ok(None),
            }
        } else {
            seqpacket_socket::receive(self.socket(), &mut packet)?
        };
        packet.truncate(len);
        Ok(Some(packet))
    }

    /// Discards the next packet, and returns how long it was; `None` at the end of the stream, or if nothing is read.
    fn discard_next(&mut self) -> io::Result<Option<usize>> {
        if self.parked {
            return Ok(None);
        }
        let Some(next) = self.peek()? else { return Ok(None) };
        Ok(self.receive(next, 0)?.map(|_| next.len))
    }

    /// Sends a reply, as soon as there is room for it.
    async fn send_reply(&mut self, reply: &Reply<'_>) -> Result<(), Verdict> {
        let now = clock();
        let Deadlines { write, lifetime, .. } = self.deadlines();
        let write = write.as_ref().map(TimeSpan::duration);
        // The lifetime does not cut off a reply at once: the peer has as long as for a final reply.
        let lifetime_end = lifetime.as_ref().and_then(|lifetime| self.opened.checked_add(lifetime.duration()));
        let lifetime_end =
            lifetime_end.map(|lifetime_end| (lifetime_end.max(now) + self.final_reply_timeout(), Verdict::Lifetime));
        self.send(reply, lifetime_end, write).await
    }

    /// Returns how long the final reply may take.
    fn final_reply_timeout(&self) -> Duration {
        self.deadlines().write.as_ref().map_or(FINAL_REPLY_TIMEOUT, TimeSpan::duration)
    }

    /// Sends a packet as soon as there is room for it: until the deadline, or until the peer has taken nothing for `write`.
    async fn send(&mut self, reply: &Reply<'_>, deadline: Deadline, write: Option<Duration>) -> Result<(), Verdict> {
        let mut wait = PeerWait::new(clock());
        loop {
            match self.socket().try_io(Interest::WRITABLE, || seqpacket_socket::send(self.socket(), reply)) {
                Ok(()) => {
                    self.totals.bytes_out += reply.iter().map(|part| part.len() as u64).sum::<u64>();
                    self.last_packet = clock();
                    return Ok(());
                }
                Err(error) if is_retryable(&error) => {}
                // It is longer than our side's send buffer.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::MSGSIZE) => return Err(Verdict::TooLong),
                Err(error) => return Err(self.broken(error)),
            }
            let write_deadline = |wait: PeerWait| wait.since().checked_add(write?);
            // Without a deadline, there is nothing to look at.
            let next_check = write.and_then(|write| wait.next_check(Some(write)));
            let next_check = next_check.into_iter().chain(write_deadline(wait)).min();
            tokio::select! {
                biased;
                verdict = expired(deadline) => {
                    self.send_abandoned = true;
                    return Err(verdict);
                }
                _ = expired(next_check.map(|at| (at, Verdict::WriteDeadline))) => {
                    let now = clock();
                    if let Some(mark) = peer_progress::mark(self.socket()) {
                        wait.record_progress(now, mark);
                    }
                    if write_deadline(wait).is_some_and(|until| until <= now) {
                        self.send_abandoned = true;
                        return Err(Verdict::WriteDeadline);
                    }
                    wait.record_check(now);
                }
                () = self.services.stop_requested(StopRequest::Immediate) => {
                    self.send_abandoned = true;
                    return Err(Verdict::Shutdown);
                }
                ready = self.socket().writable() => ready.map_err(|_| Verdict::Shutdown)?,
            }
        }
    }

    /// Sends the final reply, if there is one, and then ends our side of the stream. A peer that did not take a reply
    /// gets neither.
    async fn close(&mut self) {
        let before = self.totals;
        if let Some(final_reply) = packet::final_reply(self.rules(), self.verdict).filter(|_| !self.send_abandoned) {
            let deadline = Some((clock() + self.final_reply_timeout(), self.verdict));
            // If it cannot be sent, there is no other way to report it to the peer.
            let _ = self.send(&[&final_reply, &[]], deadline, None).await;
        }
        self.services.state.counters.count_totals(before, self.totals);
        let silence = clock().saturating_duration_since(self.last_packet);
        // After a while of silence, nothing is on its way.
        if !self.send_abandoned && silence < LINGER {
            // A peer that is gone does not mind; the next read says so.
            let _ = rustix::net::shutdown(self.socket(), rustix::net::Shutdown::Write);
            self.linger().await;
        }
    }

    /// Reads and drops what still comes: closing with an unread packet would be reported to the peer as an error,
    /// before it could read what it was sent.
    async fn linger(&mut self) {
        let (mut until, mut remaining) = (clock() + LINGER, LINGER_BYTES as usize);
        loop {
            tokio::select! {
                biased;
                _ = expired(Some((until, self.verdict))) => return,
                () = self.services.stop_requested(StopRequest::Immediate) => return,
                ready = self.socket().readable() => if ready.is_err() { return },
            }
            match self.discard_next() {
                Ok(None) => return,
                // A peer whose connection we end did nothing wrong. The embedder limits how long the shutdown may take.
                Ok(Some(_)) if self.verdict == Verdict::Shutdown => until = clock() + LINGER,
                Ok(Some(len)) if len >= remaining => return,
                Ok(Some(len)) => remaining -= len,
                Err(error) if is_retryable(&error) => {}
                Err(_) => return,
            }
            task::yield_now().await;
        }
    }
}

impl Drop for SeqpacketConnection {
    /// Reports why the connection ended.
    fn drop(&mut self) {
        // Also when `close` did not linger.
        let _ = rustix::net::shutdown(self.socket(), rustix::net::Shutdown::Write);
        for _ in 0..MAX_DISCARDED {
            if !matches!(self.discard_next(), Ok(Some(_))) {
                break;
            }
        }
        self.services.remove_task(self.info.id);
        self.services.state.remove_connection();
        self.services.state.counters.count_ended(self.verdict);
        self.services.state.sink.report(Event::Closed {
            id: self.info.id,
            listener: Arc::clone(&self.info.listener.name),
            peer: self.info.peer,
            verdict: self.verdict,
            totals: self.totals,
            age: clock().saturating_duration_since(self.opened),
            bad_header: None,
        });
        // Last, since the server may end when the permit is released, and the connection has to be counted by then.
        if let (Some(socket), Some(permit)) = (self.socket.take(), self.permit.take()) {
            close(socket, permit, self.descriptors, &self.services.state.disposal);
        }
    }
}

/// Closes the socket, and then releases the permit: on the disposal thread, if the peer may have sent descriptors.
fn close(socket: UnixStream, permit: Permit, descriptors: PeerDescriptors, disposal: &Disposal) {
    if let Ok(socket) = socket.into_std() {
        accepted_socket::close(socket.into(), descriptors, disposal, permit);
    }
}

fn deadline_after(since: Instant, span: Option<&TimeSpan>, verdict: Verdict) -> Deadline {
    // A time beyond all times never comes.
    Some((since.checked_add(span?.duration())?, verdict))
}

async fn expired(deadline: Deadline) -> Verdict {
    let Some((at, verdict)) = deadline else { return pending().await };
    time::sleep_until(at.into()).await;
    verdict
}

fn is_retryable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
