//! The server of a datagram socket, on a thread of its own. It checks for each datagram whether it is safe to answer
//! (`protocol/packet.rs`), where it comes from, and whether its source is within the rate. It then logs and answers the
//! datagram as a message, or drops and counts it. It keeps nothing of a datagram but counts.
//!
//! ```text
//! wait ─► receive a batch ─► check each, log it, add its reply to a batch ─► send the batch
//! ```
//!
//! A reply goes to the sender only. If the sender's socket is bound to a path, another thread sends the reply
//! (`path_replies.rs`).

use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::UnixAddr;
use rustix::event::PollFlags;

use crate::protocol::packet::{self, DropCause};
use crate::protocol::rules::LogMessages;
use crate::protocol::session::Totals;
use crate::server::accept_mode::{AcceptControl, AcceptMode};
use crate::server::admission::Admission;
use crate::server::clock::clock;
use crate::server::counters::DatagramCounters;
use crate::server::disposal::Disposal;
use crate::server::event::{Event, EventSink, ReceivedMessage, Retry};
use crate::server::listener::{Listener, ListenerHandle};
use crate::server::listener_error::{self, Backoff, ListenerErrorKind};
use crate::server::packets::END_WAIT;
use crate::server::packets::datagram_address::{Datagram, ReplyTo};
use crate::server::packets::datagram_batch::{Batch, ReplyBatch};
use crate::server::packets::datagram_log;
use crate::server::packets::datagram_socket::{self, DatagramSocket, MAX_BATCH};
use crate::server::packets::datagram_thread::ThreadControl;
use crate::server::packets::drop_log::{DropLog, DropReport};
use crate::server::packets::parking::Parking;
use crate::server::packets::path_replies::{FailedReply, PathReplies, ReplyThreads};
use crate::server::packets::rate_limit::RateLimiter;
use crate::server::packets::sender_socket::ReservedSockets;
use crate::server::peer::{Peer, Source};

/// The limits that datagrams of all listeners count against.
#[derive(Clone, Copy)]
pub(crate) struct Limits<'a> {
    pub(crate) admission: &'a Admission,
    pub(crate) rate_limiter: &'a RateLimiter,
}

/// The time from one datagram to the next one if that has descriptors. Clients that wait for the room that the first has left
/// send in this time, and not while the second is received: before Linux 6.16, a datagram that is sent at that moment has no
/// credentials (`peer_descriptors.rs`).
const DESCRIPTORS_PAUSE: Duration = Duration::from_micros(100);

/// The time after which another start of the disposal thread is tried.
const START_PAUSE: Duration = Duration::from_millis(100);

/// A datagram socket that is being served.
pub(crate) struct DatagramServer {
    socket: DatagramSocket,
    sink: EventSink,
    disposal: Disposal,
    counters: Arc<DatagramCounters>,
    control: Arc<ThreadControl>,
    batch: Batch,
    /// Set for a Unix socket.
    path_replies: Option<PathReplies>,
    parking: Parking,
    drop_log: DropLog,
    /// How many of the datagrams that the kernel has dropped are counted.
    lost: u32,
    totals: Totals,
    /// How many were answered, or would have been if the listener sent replies.
    answered: u64,
    backoff: Backoff,
    /// The end of the pause after repeated errors.
    paused_until: Option<Instant>,
    /// When the last datagram was received, if descriptors may come with the next.
    last_received: Option<Instant>,
    /// When a message that waits for the log is given up; `None` until the thread is told to end its waits.
    given_up_at: Option<Instant>,
}

impl DatagramServer {
    /// Creates a server for this socket. It never replies to the `reserved` sockets, sends replies to paths through `threads`,
    /// counts in `counters`, and is woken by `control`.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be prepared.
    pub(crate) fn open(
        socket: OwnedFd,
        threads: ReplyThreads,
        reserved: ReservedSockets,
        (sink, disposal): (EventSink, Disposal),
        counters: Arc<DatagramCounters>,
        control: &Arc<ThreadControl>,
    ) -> io::Result<Self> {
        let socket = DatagramSocket::open(socket)?;
        let path_replies = if socket.is_unix() {
            let (sent, waker) = (counters.to_paths(), Waker::from(Arc::clone(control)));
            Some(PathReplies::new(socket.try_clone()?, threads, reserved, sent, waker))
        } else {
            None
        };
        Ok(Self {
            lost: socket.lost().unwrap_or(0),
            socket,
            sink,
            disposal,
            counters,
            control: Arc::clone(control),
            batch: Batch::new(),
            path_replies,
            parking: Parking::new(control),
            drop_log: DropLog::new(),
            totals: Totals::default(),
            answered: 0,
            backoff: Backoff::default(),
            paused_until: None,
            last_received: None,
            given_up_at: None,
        })
    }

    /// Receives datagrams while the mode is [`AcceptMode::Accept`]. Returns when it is [`AcceptMode::Stop`], or when the thread
    /// is to end.
    ///
    /// # Errors
    /// Returns an error if the socket failed.
    pub(crate) fn run(
        &mut self,
        listener: &ListenerHandle,
        limits: Limits<'_>,
        accept: &mut AcceptControl,
    ) -> io::Result<()> {
        // Not marked as seen: a probe that was requested before this thread ran has to be recorded, too.
        let mut mode = *accept.mode.borrow();
        let mut readiness = PollFlags::empty();
        let ended = loop {
            if self.control.take_wakeup() {
                self.update_parking(&listener.load());
                self.count_failures(&listener.load());
                // An error means that the server is gone.
                if accept.mode.has_changed().unwrap_or(true) {
                    mode = *accept.mode.borrow_and_update();
                    if mode == AcceptMode::Probe {
                        let found = self.socket.has_datagram();
                        accept.status.send_modify(|status| status.record_probe(found));
                    }
                }
            }
            if mode == AcceptMode::Stop || self.control.has_ended() {
                break Ok(());
            }
            self.report_due(listener);
            let receives = mode == AcceptMode::Accept && !self.parking.is_parked() && self.paused_until.is_none();
            if receives {
                match self.serve_batch(listener, limits, readiness) {
                    // No poll(2): there may be more datagrams.
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => break Err(error),
                }
            }
            // The last batch may have changed the condition.
            let receives = receives && !self.parking.is_parked() && self.paused_until.is_none();
            let waits_for_thread = self.parking.is_parked() && !self.disposal.retry_start();
            let retry_at = waits_for_thread.then(|| clock() + START_PAUSE);
            let until = self.drop_log.next_report_at().into_iter().chain(self.paused_until).chain(retry_at).min();
            readiness = self.control.wait(receives.then(|| self.socket.as_fd()), until);
            if self.paused_until.is_some_and(|until| until <= clock()) {
                self.paused_until = None;
            }
        };
        let listener = listener.load();
        self.update_parking(&listener);
        self.finish_path_replies(&listener);
        if let Some(lost) = self.socket.lost() {
            self.count_lost(lost, &listener);
        }
        let remaining = self.drop_log.take_all();
        self.report(&listener, remaining);
        ended
    }

    /// Closes the socket. Datagrams in it may have descriptors queued, if no other process holds it.
    pub(crate) fn close(self) {
        let Self { socket, mut path_replies, disposal, .. } = self;
        // The copy for replies to paths goes first. The last descriptor is closed by the disposal thread, or by a thread that
        // sends a reply.
        path_replies.iter_mut().for_each(|path_replies| _ = path_replies.end());
        // The second descriptor is still open. If the disposal thread uses it, the disposal thread also closes it.
        if let Some(socket) = socket.close().and_then(Arc::into_inner) {
            disposal.close(socket, None);
        }
    }

    /// Receives one batch of datagrams and serves them. Returns whether there may be more. `readiness` is what the last poll(2)
    /// has reported for the socket.
    ///
    /// # Errors
    /// Returns an error if the socket failed.
    fn serve_batch(&mut self, listener: &ListenerHandle, limits: Limits<'_>, readiness: PollFlags) -> io::Result<bool> {
        // Put back below.
        let mut batch = mem::replace(&mut self.batch, Batch::new());
        let received = self.receive(&mut batch, &listener.load());
        let more = match received {
            Ok(more) => {
                self.record_success(listener);
                // The settings are loaded again: all but `max_message` already hold for datagrams that were sent after a
                // reload.
                self.serve(&batch, &listener.load(), limits);
                Ok(more)
            }
            Err(error) => self.handle_error(listener, error, readiness),
        };
        self.batch = batch;
        more
    }

    /// Receives one batch of datagrams. Returns whether there may be more.
    fn receive(&mut self, batch: &mut Batch, listener: &Listener) -> io::Result<bool> {
        let rules = &listener.settings.rules;
        batch.set_max_message(self.socket.buffer_size(rules.max_message));
        // While a message waits for the log, the rest of its batch waits with it. Left in the socket, those datagrams would be
        // served by the next process.
        let is_single = rules.log_messages == LogMessages::Full || self.socket.may_have_descriptors();
        let more = if self.socket.has_descriptors()? {
            self.paused_until = self.last_received.map(|at| at + DESCRIPTORS_PAUSE).filter(|until| *until > clock());
            if self.paused_until.is_some() {
                batch.clear();
                return Ok(false);
            }
            batch.receive_one(|buffer| self.receive_with_descriptors(buffer))?;
            !self.parking.is_parked()
        } else {
            batch.receive(&self.socket, if is_single { 1 } else { MAX_BATCH })?
        };
        if self.socket.may_have_descriptors() {
            self.last_received = Some(clock());
        }
        Ok(more)
    }

    /// Receives one datagram, and passes its descriptors to the disposal thread. Returns `None` if receiving has to wait,
    /// because there is no room for its descriptors, or because it is dropped: the process cannot have its descriptors.
    fn receive_with_descriptors(&mut self, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        let make_waker = || self.parking.room_waker();
        let received = self.socket.receive_with_descriptors(buffer, &self.disposal, make_waker);
        if received.as_ref().is_err_and(|error| error.raw_os_error() == Some(Errno::EMFILE as i32)) {
            if let Some(socket) = self.socket.second_descriptor() {
                let dropped = self.parking.await_drop();
                self.disposal.drop_packet(socket, dropped);
                return Ok(None);
            }
        }
        if matches!(received, Ok(None)) {
            self.parking.await_room();
        }
        received
    }

    /// Looks whether what is awaited has happened, and counts a datagram that was dropped: now and not when it was found, since the
    /// next process finds it as well if this one ends before.
    fn update_parking(&mut self, listener: &Listener) {
        if self.parking.update() {
            self.count_dropped(DropCause::NoRoom, 1, Peer::Unknown, None, listener);
        }
    }

    /// Handles an error of receiving. Returns whether to try again at once.
    fn handle_error(&mut self, listener: &ListenerHandle, error: io::Error, readiness: PollFlags) -> io::Result<bool> {
        if error.kind() == io::ErrorKind::WouldBlock {
            if readiness.contains(PollFlags::RDHUP) {
                return Err(listener_error::shut_down_error());
            }
            if readiness.contains(PollFlags::ERR) {
                self.socket.clear_errors();
            }
            self.record_success(listener);
            return Ok(false);
        }
        listener.load().count_accept_error(&error);
        if ListenerErrorKind::of(&error) == ListenerErrorKind::Fatal {
            return Err(error);
        }
        let Some(pause) = self.backoff.record_error() else { return Ok(true) };
        self.pause(listener, error, pause);
        Ok(false)
    }

    /// Pauses after repeated errors, and reports the first such pause.
    fn pause(&mut self, listener: &ListenerHandle, error: io::Error, pause: Duration) {
        self.paused_until = Some(clock() + pause);
        if self.backoff.report_pause() {
            let Listener { ref name, kind, .. } = *listener.load();
            let (listener, retry) = (Arc::clone(name), Retry::After(pause));
            self.sink.report(Event::AcceptPaused { listener, kind, error, retry });
        }
    }

    /// Records that a call succeeded, and reports the end of the pauses.
    fn record_success(&mut self, listener: &ListenerHandle) {
        self.backoff.record_success();
        if self.backoff.report_end() {
            let Listener { ref name, kind, .. } = *listener.load();
            self.sink.report(Event::AcceptResumed { listener: Arc::clone(name), kind });
        }
    }

    /// Logs and answers the datagrams of a batch. Those that must not be answered are dropped and counted.
    fn serve(&mut self, batch: &Batch, listener: &Listener, limits: Limits<'_>) {
        limits.admission.note_use();
        let (before, answered_before, now) = (self.totals, self.answered, clock());
        let mut replies = ReplyBatch::new();
        for (datagram, bytes) in batch.iter() {
            if let Some(lost) = datagram.lost_before {
                self.count_lost(lost, listener);
            }
            if listener.settings.rules.log_messages == LogMessages::Full {
                // This datagram may wait for the log. After a reload, earlier ones of its batch may already have replies.
                self.send(&mut replies, listener);
            }
            let taken = match bytes {
                Some(message) => self
                    .check(message, datagram, listener, limits, now)
                    .and_then(|()| self.log(message, datagram, listener))
                    .map(|()| message),
                None => Err(DropCause::TooLong),
            };
            let message = match taken {
                Ok(message) => message,
                Err(cause) => {
                    self.count_dropped(cause, 1, datagram.peer, datagram.unix_address(), listener);
                    continue;
                }
            };
            self.totals.messages += 1;
            self.totals.bytes_in += message.len() as u64;
            let Some(reply) = packet::reply(&listener.settings.rules, message) else {
                self.answered += 1;
                continue;
            };
            if let ReplyTo::Path(to) = datagram.reply_to {
                // The reply is counted when it is sent, or when it has failed.
                let path_replies = self.path_replies.as_ref().ok_or(DropCause::UnsafeAddress);
                if let Err(cause) = path_replies.and_then(|replies| replies.send(to, datagram.peer, &reply)) {
                    self.count_dropped(cause, 1, datagram.peer, Some(to), listener);
                }
                continue;
            }
            if !replies.has_room_for(datagram) {
                self.send(&mut replies, listener);
            }
            replies.push(datagram, &reply);
        }
        self.send(&mut replies, listener);
        self.counters.count_totals(before, self.totals);
        self.counters.count_answered(self.answered - answered_before);
    }

    /// Checks a datagram as far as that is possible without its sender's socket, and counts it for its source.
    ///
    /// # Errors
    /// Returns the cause if the datagram has to be dropped.
    fn check(
        &self,
        message: &[u8],
        datagram: &Datagram,
        listener: &Listener,
        limits: Limits<'_>,
        now: Instant,
    ) -> Result<(), DropCause> {
        let Datagram { peer, sent_to, ref reply_to, .. } = *datagram;
        if let Some(reply) = packet::reply(&listener.settings.rules, message) {
            match reply_to {
                ReplyTo::Unnamed => return Err(DropCause::Nameless),
                ReplyTo::Ip(from, _) if packet::is_service_port(from.port()) => return Err(DropCause::ServicePort),
                reply_to if self.socket.is_own_address(reply_to) => return Err(DropCause::OwnAddress),
                ReplyTo::Abstract(from) | ReplyTo::Path(from) if !self.is_allowed(from, peer) => {
                    return Err(DropCause::UnsafeAddress);
                }
                // The reply may go to the socket of another program, so it must not say what the sender chose.
                ReplyTo::Abstract(_)
                    if packet::says_only_what_the_sender_says(&listener.settings.rules)
                        && !self.socket.shares_names() =>
                {
                    return Err(DropCause::UnsafeAddress);
                }
                ReplyTo::Ip(..) | ReplyTo::Abstract(_) | ReplyTo::Path(_) => {}
            }
            if self.socket.is_broadcast(sent_to) {
                return Err(DropCause::Broadcast);
            }
            if let Some(cause) = packet::unsafe_to_answer(message, &reply) {
                return Err(cause);
            }
        }
        if !limits.rate_limiter.admit(Source::of_datagram(peer), now) {
            return Err(DropCause::Rate);
        }
        Ok(())
    }

    /// Returns whether a reply to `peer` may go to its address, judged by these two alone.
    fn is_allowed(&self, address: &UnixAddr, peer: Peer) -> bool {
        self.path_replies.as_ref().is_some_and(|path_replies| path_replies.is_allowed(address, peer))
    }

    /// Logs a message, if the listener logs messages. Later datagrams meanwhile wait in the kernel.
    fn log(&mut self, bytes: &[u8], datagram: &Datagram, listener: &Listener) -> Result<(), DropCause> {
        let Datagram { peer, received_at, .. } = *datagram;
        let message = ReceivedMessage { connection_id: None, listener: &listener.name, peer, received_at, bytes };
        let is_logged = datagram_log::log(message, listener, &self.sink, &self.control, &mut self.given_up_at);
        if is_logged { Ok(()) } else { Err(DropCause::NoRoom) }
    }

    /// Sends replies, and counts them.
    fn send(&mut self, replies: &mut ReplyBatch<'_>, listener: &Listener) {
        let mut failed = Vec::new();
        replies.send(&self.socket, |datagram, sent| match sent {
            Ok(bytes) => {
                self.totals.bytes_out += bytes;
                self.answered += 1;
            }
            Err(error) => failed.push((datagram, datagram_socket::drop_cause(error, &self.socket))),
        });
        for (datagram, cause) in failed {
            self.count_dropped(cause, 1, datagram.peer, datagram.unix_address(), listener);
        }
    }

    /// Waits for the replies to paths, [`END_WAIT`] at most, and counts them.
    fn finish_path_replies(&mut self, listener: &Listener) {
        let Some(path_replies) = &self.path_replies else { return };
        let until = clock() + END_WAIT;
        while !path_replies.finish() && clock() < until && !self.control.has_ended() {
            self.control.wait(None, Some(until));
            self.control.take_wakeup();
        }
        let waiting = self.path_replies.as_mut().map_or(0, PathReplies::end);
        self.count_failures(listener);
        if waiting > 0 {
            self.count_dropped(DropCause::NoRoom, waiting as u64, Peer::Unknown, None, listener);
        }
    }

    /// Counts replies to paths that could not be sent.
    fn count_failures(&mut self, listener: &Listener) {
        let failures = self.path_replies.as_mut().map(PathReplies::take_failures).unwrap_or_default();
        for FailedReply { to, peer, cause } in failures {
            self.count_dropped(cause, 1, peer, Some(to), listener);
        }
    }

    /// Counts datagrams that the kernel has dropped. `lost` counts since the socket was created. A datagram that was queued
    /// before this process started may have a count that is lower than `self.lost`.
    fn count_lost(&mut self, lost: u32, listener: &Listener) {
        let more = lost.wrapping_sub(self.lost);
        if (1..=u32::MAX / 2).contains(&more) {
            self.lost = lost;
            self.count_dropped(DropCause::Kernel, more.into(), Peer::Unknown, None, listener);
        }
    }

    /// Counts dropped datagrams, and reports them if a report is due.
    fn count_dropped(
        &mut self,
        cause: DropCause,
        count: u64,
        peer: Peer,
        address: Option<UnixAddr>,
        listener: &Listener,
    ) {
        self.counters.count_dropped(cause, count);
        let report = self.drop_log.record(cause, count, peer, address, clock());
        self.report(listener, report);
    }

    /// Reports the dropped datagrams of intervals that have ended.
    fn report_due(&mut self, listener: &ListenerHandle) {
        if self.drop_log.next_report_at().is_some() {
            let reports = self.drop_log.take_due(clock());
            self.report(&listener.load(), reports);
        }
    }

    fn report(&self, listener: &Listener, reports: impl IntoIterator<Item = DropReport>) {
        for DropReport { cause, count, last_peer, last_address } in reports {
            let listener = Arc::clone(&listener.name);
            let last_path = last_address.and_then(|address| address.path().map(Path::to_owned));
            self.sink.report(Event::DatagramsDropped { listener, cause, count, last_peer, last_path });
        }
    }
}
