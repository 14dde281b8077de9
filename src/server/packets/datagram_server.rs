//! The server of datagrams: a task for each listener. It checks whether each datagram is safe to answer
//! (`protocol/packet.rs`), where it comes from, and how many came from there. Then the datagram is a message, logged
//! and answered, or it is dropped and counted. Nothing is kept from one to the next.
//!
//! A reply goes to the sender only: `sender_socket.rs` finds its socket where it is bound to a path.

use std::future::pending;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use tokio::sync::watch;
use tokio::{task, time};

use crate::protocol::packet::{self, DropCause};
use crate::protocol::rules::ReplyMode;
use crate::protocol::session::Totals;
use crate::server::accept::{Dispatcher, Listener, ListenerHandle};
use crate::server::admission::Source;
use crate::server::connection::clock;
use crate::server::event::{Event, ReceivedMessage};
use crate::server::packets;
use crate::server::packets::datagram_socket::{Datagram, DatagramSocket, ReplyTo};
use crate::server::packets::drop_log::{DropLog, DropReport};
use crate::server::packets::sender_socket::{FoundSender, ReservedSockets, SenderSockets};
use crate::server::socket::Peer;
use crate::server::worker::Worker;
use crate::server::{AcceptMode, AcceptorStatus};

/// How many datagrams are received before other tasks of the same worker run.
const BATCH: usize = 32;

/// A datagram socket that is being served.
pub(crate) struct DatagramServer {
    socket: DatagramSocket,
    worker: Arc<Worker>,
    /// Where a datagram is received: as large as the longest message.
    buffer: Vec<u8>,
    senders: SenderSockets,
    drop_log: DropLog,
    totals: Totals,
}

impl DatagramServer {
    /// Creates a server for this socket, to be run on `worker`, which sends to none of the `reserved` sockets.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be prepared or registered.
    pub(crate) fn open(socket: OwnedFd, worker: &Arc<Worker>, reserved: ReservedSockets) -> io::Result<Self> {
        let socket = DatagramSocket::open(socket, worker)?;
        let (worker, senders) = (Arc::clone(worker), SenderSockets::new(reserved)?);
        let (drop_log, totals) = (DropLog::new(), Totals::default());
        Ok(Self { socket, worker, buffer: Vec::new(), senders, drop_log, totals })
    }

    /// Receives datagrams as the mode says, until it is [`AcceptMode::Stop`].
    ///
    /// # Errors
    /// Returns an error if the socket failed.
    pub(crate) async fn run(
        &mut self,
        listener: &ListenerHandle,
        dispatcher: &Dispatcher,
        status: &watch::Sender<AcceptorStatus>,
        mode: &mut watch::Receiver<AcceptMode>,
    ) -> io::Result<()> {
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
                FoundSender { peer, message, socket } = self.senders.next() => {
                    let listener = &*listener.load();
                    let answered = match socket {
                        Ok(socket) => self.log_and_reply(&message, peer, &ReplyTo::Sender(socket), listener).await,
                        Err(cause) => Err(cause),
                    };
                    self.count(answered, peer, listener);
                }
                ready = self.socket.readable(), if now == AcceptMode::Accept => {
                    // Not given up in between: a message may be waiting for the log.
                    let received = match ready {
                        Ok(()) => self.receive_batch(listener, dispatcher).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = received {
                        break Err(error);
                    }
                    task::yield_now().await;
                }
            }
        };
        // Those that still wait: what they wait for may never end.
        for _ in 0..self.senders.waiting() {
            self.count(Err(DropCause::NoRoom), Peer::Unknown, &listener.load());
        }
        let remaining = self.drop_log.take_all();
        self.report(&listener.load(), remaining);
        ended
    }

    /// Receives the datagrams that are there, [`BATCH`] at most.
    async fn receive_batch(&mut self, listener: &ListenerHandle, dispatcher: &Dispatcher) -> io::Result<()> {
        let size = self.socket.buffer_size(listener.load().settings.rules.max_message);
        if self.buffer.len() != size {
            self.buffer = vec![0; size];
        }
        // Put back below. After an error there is no next batch.
        let mut buffer = mem::take(&mut self.buffer);
        for _ in 0..BATCH {
            let datagram = match self.socket.receive(&mut buffer) {
                Ok(datagram) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if concerns_one_datagram(&error) => continue,
                Err(error) => return Err(error),
            };
            dispatcher.admission.note_use();
            let peer = datagram.peer;
            // As it is after the datagram came: a reload holds for those that are sent after it.
            let listener = &*listener.load();
            let answered = match buffer.get(..datagram.len) {
                Some(message) => self.answer(message, datagram, listener, dispatcher).await,
                None => Err(DropCause::TooLong),
            };
            self.count(answered, peer, listener);
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Logs and answers a datagram if it is safe to, or has its sender looked up first.
    async fn answer(
        &mut self,
        message: &[u8],
        datagram: Datagram,
        listener: &Listener,
        dispatcher: &Dispatcher,
    ) -> Result<(), DropCause> {
        let peer = datagram.peer;
        self.check(message, &datagram, listener, dispatcher)?;
        let reply_to = match datagram.reply_to {
            ReplyTo::Unix(address) if listener.settings.rules.reply != ReplyMode::None => match address.path() {
                Some(path) => match self.senders.open_cached(path, peer)? {
                    Some(socket) => ReplyTo::Sender(socket),
                    None => return self.senders.look_up(path, peer, message),
                },
                None => ReplyTo::Unix(address),
            },
            reply_to => reply_to,
        };
        self.log_and_reply(message, peer, &reply_to, listener).await
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
        dispatcher: &Dispatcher,
    ) -> Result<(), DropCause> {
        let Datagram { peer, sent_to, ref reply_to, .. } = *datagram;
        if let Some(reply) = packet::reply(&listener.settings.rules, message) {
            match reply_to {
                ReplyTo::Unnamed => return Err(DropCause::Nameless),
                ReplyTo::Ip(from, _) if packet::is_service_port(from.port()) => return Err(DropCause::ServicePort),
                reply_to if self.socket.is_own_address(reply_to) => return Err(DropCause::OwnAddress),
                ReplyTo::Unix(from) if !self.senders.is_allowed(from) => return Err(DropCause::UnsafeAddress),
                ReplyTo::Ip(..) | ReplyTo::Unix(_) | ReplyTo::Sender(_) => {}
            }
            if self.socket.is_broadcast(sent_to) {
                return Err(DropCause::Broadcast);
            }
            if let Some(cause) = packet::unsafe_to_answer(message, &reply) {
                return Err(cause);
            }
        }
        if !dispatcher.rate_limiter.admit(Source::of_datagram(peer), clock()) {
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
        packets::log(
            ReceivedMessage { connection_id: None, listener: &listener.name, peer, bytes: message },
            listener,
            &self.worker.sink,
        )
        .await;
        let before = self.totals;
        self.totals.messages += 1;
        self.totals.bytes_in += message.len() as u64;
        let sent = match packet::reply(&listener.settings.rules, message) {
            Some(reply) => {
                self.socket.send(&reply, reply_to).map(|()| reply.iter().map(|part| part.len() as u64).sum())
            }
            None => Ok(0),
        };
        self.totals.bytes_out += sent.unwrap_or(0);
        self.worker.counters.count_totals(before, self.totals);
        sent.map(|_| ()).map_err(|error| match error {
            Errno::EMSGSIZE => DropCause::ReplyTooLong,
            Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => DropCause::NoRoom,
            _ => DropCause::Unreachable,
        })
    }

    /// Counts a datagram that was dropped, and reports it if that is due.
    fn count(&mut self, answered: Result<(), DropCause>, peer: Peer, listener: &Listener) {
        if let Err(cause) = answered {
            self.worker.counters.count_dropped(cause);
            let report = self.drop_log.record(cause, peer, clock());
            self.report(listener, report);
        }
    }

    fn report(&self, listener: &Listener, reports: impl IntoIterator<Item = DropReport>) {
        for DropReport { cause, count, last_peer } in reports {
            let listener = Arc::clone(&listener.name);
            (self.worker.sink.handle_event)(Event::DatagramsDropped { listener, cause, count, last_peer });
        }
    }
}

async fn sleep_until(due: Option<std::time::Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => pending().await,
    }
}

/// Whether an error of recvmsg(2) is about one datagram: about the way back of one that was sent before (ICMP, as far
/// as it is reported: IP_RECVERR of ip(7)), or about something that passes by itself. The socket is well then.
fn concerns_one_datagram(error: &io::Error) -> bool {
    let Some(error) = rustix::io::Errno::from_io_error(error) else { return true };
    matches!(
        Errno::from_raw(error.raw_os_error()),
        Errno::ECONNREFUSED
            | Errno::ECONNRESET
            | Errno::EHOSTUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETUNREACH
            | Errno::ENETDOWN
            | Errno::ENONET
            | Errno::ENOPROTOOPT
            | Errno::EPROTO
            | Errno::EOPNOTSUPP
            | Errno::EMSGSIZE
            | Errno::EACCES
            | Errno::EPERM
            | Errno::EINTR
            | Errno::ENOBUFS
            | Errno::ENOMEM
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_about_one_datagram_do_not_break_the_socket() {
        let concerns_one = |error: Errno| concerns_one_datagram(&error.into());
        assert!(concerns_one(Errno::ECONNREFUSED) && concerns_one(Errno::EHOSTUNREACH) && concerns_one(Errno::ENOBUFS));
        assert!(!concerns_one(Errno::EBADF) && !concerns_one(Errno::ENOTSOCK) && !concerns_one(Errno::EINVAL));
    }
}
