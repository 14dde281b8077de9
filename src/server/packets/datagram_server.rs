//! The server of datagrams: a task for each listener. It checks whether each datagram is safe to answer
//! (`protocol/packet.rs`), where it comes from, and how many came from there. Then the datagram is a message, logged
//! and answered, or it is dropped and counted. Nothing is kept from one to the next.
//!
//! A reply goes to the sender only. Where its socket is bound to a path, a thread sends it (`path_replies.rs`).

use std::future::pending;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::UnixAddr;
use tokio::io::Ready;
use tokio::{task, time};

use crate::protocol::packet::{self, DropCause};
use crate::protocol::session::Totals;
use crate::server::accept_mode::{AcceptControl, AcceptMode};
use crate::server::admission::Admission;
use crate::server::clock::clock;
use crate::server::disposal::Unparked;
use crate::server::event::{Event, ReceivedMessage, Retry};
use crate::server::listener::{Listener, ListenerHandle};
use crate::server::listener_error::{self, Backoff, ListenerErrorKind};
use crate::server::packets::datagram_socket::{Datagram, DatagramSocket, ReplyTo};
use crate::server::packets::drop_log::{DropLog, DropReport};
use crate::server::packets::path_replies::{FailedReply, PathReplies};
use crate::server::packets::rate_limit::RateLimiter;
use crate::server::packets::sender_socket::ReservedSockets;
use crate::server::packets::user_threads::UserThreads;
use crate::server::packets::{self, END_WAIT, datagram_socket};
use crate::server::peer::{Peer, Source};
use crate::server::services::Services;

/// How many datagrams are received before other tasks run.
const BATCH: usize = 32;

/// The limits that datagrams of all listeners count against.
#[derive(Clone, Copy)]
pub(crate) struct Limits<'a> {
    pub(crate) admission: &'a Admission,
    pub(crate) rate_limiter: &'a RateLimiter,
}

/// A datagram socket that is being served.
pub(crate) struct DatagramServer {
    socket: DatagramSocket,
    services: Arc<Services>,
    /// Where a datagram is received: as large as the longest message.
    buffer: Vec<u8>,
    path_replies: PathReplies,
    /// Woken when there is room for descriptors that peers sent.
    unparked: Arc<Unparked>,
    /// Whether that is awaited: nothing is received then.
    parked: bool,
    drop_log: DropLog,
    totals: Totals,
    backoff: Backoff,
    /// Until when nothing is received, after an error that may pass.
    paused_until: Option<Instant>,
}

impl DatagramServer {
    /// Creates a server for this socket, to be run by `services`, which sends to none of the `reserved` sockets. Replies to
    /// paths are sent by `threads`.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be prepared or registered.
    pub(crate) fn open(
        socket: OwnedFd,
        services: &Arc<Services>,
        threads: UserThreads,
        reserved: ReservedSockets,
    ) -> io::Result<Self> {
        let socket = DatagramSocket::open(socket, services)?;
        let sent = services.state.counters.bytes_to_paths();
        let path_replies = PathReplies::new(socket.try_clone()?, threads, reserved, sent);
        let (drop_log, totals) = (DropLog::new(), Totals::default());
        let (unparked, parked) = (Arc::default(), false);
        let (backoff, paused_until) = (Backoff::default(), None);
        Ok(Self {
            socket,
            services: Arc::clone(services),
            buffer: Vec::new(),
            path_replies,
            unparked,
            parked,
            drop_log,
            totals,
            backoff,
            paused_until,
        })
    }

    /// Receives datagrams as the mode says, until it is [`AcceptMode::Stop`].
    ///
    /// # Errors
    /// Returns an error if the socket failed.
    pub(crate) async fn run(
        &mut self,
        listener: &ListenerHandle,
        limits: Limits<'_>,
        control: &mut AcceptControl,
    ) -> io::Result<()> {
        let AcceptControl { mode, status } = control;
        let ended = loop {
            let now = *mode.borrow_and_update();
            match now {
                AcceptMode::Accept => {}
                AcceptMode::Probe => status.send_modify(|status| status.record_probe(self.socket.has_datagram())),
                AcceptMode::Stop => break Ok(()),
            }
            let due = self.drop_log.next_report_at();
            tokio::select! {
                biased;
                changed = mode.changed() => {
                    if changed.is_err() {
                        // The server is gone.
                        break Ok(());
                    }
                }
                () = sleep_until(due) => {
                    let reports = self.drop_log.take_due(clock());
                    self.report(&listener.load(), reports);
                }
                failed = self.path_replies.next_failure() => self.count_failed(failed, &listener.load()),
                () = sleep_until(self.paused_until) => self.paused_until = None,
                () = self.unparked.wait(), if self.parked => self.parked = false,
                ready = self.socket.ready(),
                    if now == AcceptMode::Accept && self.paused_until.is_none() && !self.parked =>
                {
                    // Not given up in between: a message may be waiting for the log.
                    let received = match ready {
                        Ok(ready) => self.receive_batch(listener, limits, ready).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = received {
                        break Err(error);
                    }
                    task::yield_now().await;
                }
            }
        };
        self.finish_path_replies(&listener.load()).await;
        let remaining = self.drop_log.take_all();
        self.report(&listener.load(), remaining);
        ended
    }

    /// Closes the socket. Datagrams in it may have descriptors queued, if no other process holds it.
    pub(crate) fn close(self) {
        let Self { socket, mut path_replies, services, .. } = self;
        // Its copy of the socket goes first. The last one is closed by the disposal thread, or by one that sends a reply.
        path_replies.end();
        // The second descriptor is open still. If the disposal thread uses that, it closes it as well.
        if let Some(socket) = socket.close().and_then(Arc::into_inner) {
            services.state.disposal.close(socket, None);
        }
    }

    /// Receives one datagram, and has its descriptors closed. Returns `None` if nothing is to be received now: there is no
    /// room for its descriptors, or it is dropped, since the process cannot have them.
    fn receive_with_descriptors(&mut self, buffer: &mut [u8], listener: &Listener) -> io::Result<Option<Datagram>> {
        let make_waker = || Waker::from(Arc::clone(&self.unparked));
        let received = self.socket.receive_with_descriptors(buffer, &self.services.state.disposal, make_waker);
        if received.as_ref().is_err_and(|error| error.raw_os_error() == Some(Errno::EMFILE as i32)) {
            if let Some(socket) = self.socket.second_descriptor() {
                self.services.state.disposal.drop_packet(socket, make_waker());
                self.parked = true;
                self.count(Err(DropCause::NoRoom), Peer::Unknown, None, listener);
                return Ok(None);
            }
        }
        self.parked = matches!(received, Ok(None));
        received
    }

    /// Receives the datagrams that are there, [`BATCH`] at most. `ready` is the readiness of the socket.
    ///
    /// # Errors
    /// Returns an error if the socket failed.
    async fn receive_batch(&mut self, listener: &ListenerHandle, limits: Limits<'_>, ready: Ready) -> io::Result<()> {
        let size = self.socket.buffer_size(listener.load().settings.rules.max_message);
        if self.buffer.len() != size {
            self.buffer = vec![0; size];
        }
        // Put back below. After an error there is no next batch.
        let mut buffer = mem::take(&mut self.buffer);
        for _ in 0..BATCH {
            // Those that are left are for the next process.
            if self.services.is_stopping() {
                break;
            }
            let received = match self.socket.has_descriptors() {
                Ok(false) => self.socket.receive(&mut buffer),
                Ok(true) => match self.receive_with_descriptors(&mut buffer, &listener.load()) {
                    Ok(Some(datagram)) => Ok(datagram),
                    Ok(None) => break,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            let datagram = match received {
                Ok(datagram) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && ready.is_read_closed() => {
                    return Err(listener_error::shut_down_error());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.record_success(listener);
                    break;
                }
                Err(error) if ListenerErrorKind::of(&error) == ListenerErrorKind::Fatal => return Err(error),
                Err(error) => match self.backoff.record_error() {
                    Some(pause) => {
                        self.pause(listener, error, pause);
                        break;
                    }
                    None => continue,
                },
            };
            self.record_success(listener);
            limits.admission.note_use();
            let (peer, address) = (datagram.peer, datagram.unix_address());
            // As it is after the datagram came: a reload holds for those that are sent after it.
            let listener = &*listener.load();
            let answered = match buffer.get(..datagram.len) {
                Some(message) => self.answer(message, datagram, listener, limits).await,
                None => Err(DropCause::TooLong),
            };
            self.count(answered, peer, address, listener);
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Receives nothing for so long, after errors in a row.
    fn pause(&mut self, listener: &ListenerHandle, error: io::Error, pause: Duration) {
        self.paused_until = Some(clock() + pause);
        if self.backoff.report_pause() {
            let Listener { ref name, kind, .. } = *listener.load();
            let (listener, retry) = (Arc::clone(name), Retry::After(pause));
            self.services.state.sink.report(Event::AcceptPaused { listener, kind, error, retry });
        }
    }

    /// Notes that receiving works.
    fn record_success(&mut self, listener: &ListenerHandle) {
        self.backoff.record_success();
        if self.backoff.report_end() {
            let Listener { ref name, kind, .. } = *listener.load();
            self.services.state.sink.report(Event::AcceptResumed { listener: Arc::clone(name), kind });
        }
    }

    /// Logs and answers a datagram if it is safe to.
    async fn answer(
        &mut self,
        message: &[u8],
        datagram: Datagram,
        listener: &Listener,
        limits: Limits<'_>,
    ) -> Result<(), DropCause> {
        let peer = datagram.peer;
        self.check(message, &datagram, listener, limits)?;
        self.log_and_reply(message, peer, &datagram.reply_to, listener).await
    }

    /// Checks what can be told of a datagram without its sender's socket. Counts it for its source.
    ///
    /// # Errors
    /// Returns an error if it is to be dropped.
    fn check(
        &self,
        message: &[u8],
        datagram: &Datagram,
        listener: &Listener,
        limits: Limits<'_>,
    ) -> Result<(), DropCause> {
        let Datagram { peer, sent_to, ref reply_to, .. } = *datagram;
        if let Some(reply) = packet::reply(&listener.settings.rules, message) {
            match reply_to {
                ReplyTo::Unnamed => return Err(DropCause::Nameless),
                ReplyTo::Ip(from, _) if packet::is_service_port(from.port()) => return Err(DropCause::ServicePort),
                reply_to if self.socket.is_own_address(reply_to) => return Err(DropCause::OwnAddress),
                ReplyTo::Abstract(from) | ReplyTo::Path(from) if !self.path_replies.is_allowed(from, peer) => {
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
        if !limits.rate_limiter.admit(Source::of_datagram(peer), clock()) {
            return Err(DropCause::Rate);
        }
        Ok(())
    }

    /// Logs a message and answers it.
    async fn log_and_reply(
        &mut self,
        message: &[u8],
        peer: Peer,
        reply_to: &ReplyTo,
        listener: &Listener,
    ) -> Result<(), DropCause> {
        // Those that come meanwhile wait in the kernel.
        let logged = ReceivedMessage { connection_id: None, listener: &listener.name, peer, bytes: message };
        if !packets::log(logged, listener, &self.services).await {
            return Err(DropCause::NoRoom);
        }
        let before = self.totals;
        self.totals.messages += 1;
        self.totals.bytes_in += message.len() as u64;
        let sent = match packet::reply(&listener.settings.rules, message) {
            Some(reply) => match reply_to {
                // Counted when it is sent, or when it has failed.
                ReplyTo::Path(to) => self.path_replies.send(*to, peer, &reply).map(|()| 0),
                reply_to => match self.socket.send(&reply, reply_to) {
                    Ok(()) => Ok(reply.iter().map(|part| part.len() as u64).sum()),
                    Err(error) => Err(datagram_socket::drop_cause(error)),
                },
            },
            None => Ok(0),
        };
        self.totals.bytes_out += sent.unwrap_or(0);
        self.services.state.counters.count_totals(before, self.totals);
        sent.map(drop)
    }

    /// Waits for the replies to paths, for a while, and counts them.
    async fn finish_path_replies(&mut self, listener: &Listener) {
        let _ = time::timeout(END_WAIT, self.path_replies.finished()).await;
        let waiting = self.path_replies.end();
        for failed in self.path_replies.take_failures() {
            self.count_failed(failed, listener);
        }
        for _ in 0..waiting {
            self.count(Err(DropCause::NoRoom), Peer::Unknown, None, listener);
        }
    }

    fn count_failed(&mut self, FailedReply { to, peer, cause }: FailedReply, listener: &Listener) {
        self.count(Err(cause), peer, Some(to), listener);
    }

    /// Counts a datagram that was dropped, and reports it if that is due.
    fn count(&mut self, answered: Result<(), DropCause>, peer: Peer, address: Option<UnixAddr>, listener: &Listener) {
        if let Err(cause) = answered {
            self.services.state.counters.count_dropped(cause);
            let report = self.drop_log.record(cause, peer, address, clock());
            self.report(listener, report);
        }
    }

    fn report(&self, listener: &Listener, reports: impl IntoIterator<Item = DropReport>) {
        for DropReport { cause, count, last_peer, last_address } in reports {
            let listener = Arc::clone(&listener.name);
            let last_path = last_address.and_then(|address| address.path().map(Path::to_owned));
            self.services.state.sink.report(Event::DatagramsDropped { listener, cause, count, last_peer, last_path });
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => pending().await,
    }
}
