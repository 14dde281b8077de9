//! Datagrams: a task for each listener. Each datagram that comes is looked at for what its answer could do (`protocol/packet.rs`),
//! where it comes from, and how many came from there; then it is a message, logged and answered, or it is dropped and
//! counted. Nothing is kept from one to the next.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use tokio::sync::watch;
use tokio::{task, time};

use super::accept::{CurrentDesk, Desk, Reception};
use super::admission::Source;
use super::connection::clock;
use super::event::{Event, Message};
use super::packets;
use super::packets::drops::{Drops, Report};
use super::packets::inbox::{Datagram, Inbox, Sender};
use super::socket::Peer;
use super::worker::Worker;
use super::{Acceptors, Door};
use crate::protocol::packet::{self, DropCause};
use crate::protocol::session::Totals;

/// How many datagrams are taken before the connections of the same worker have a turn.
const BATCH: usize = 32;

/// A datagram socket that is being served.
pub(crate) struct Datagrams {
    inbox: Inbox,
    worker: Arc<Worker>,
    /// Where a datagram is received: as large as the longest message.
    room: Vec<u8>,
    drops: Drops,
    totals: Totals,
}

/// What a datagram is, once it is known to be a message.
struct Accepted {
    len: usize,
    peer: Peer,
    sender: Sender,
}

impl Datagrams {
    /// To be served by `worker`.
    ///
    /// # Errors
    /// The socket cannot be prepared or registered.
    pub(crate) fn open(socket: OwnedFd, worker: &Arc<Worker>) -> io::Result<Self> {
        let inbox = Inbox::open(socket, worker)?;
        let worker = Arc::clone(worker);
        Ok(Self { inbox, worker, room: Vec::new(), drops: Drops::new(), totals: Totals::default() })
    }

    /// Serves it as the door says, until that is closed.
    ///
    /// # Errors
    /// The socket broke.
    pub(super) async fn attend(
        &mut self,
        desk: &CurrentDesk,
        reception: &Reception,
        acceptors: &watch::Sender<Acceptors>,
        door: &mut watch::Receiver<Door>,
    ) -> io::Result<()> {
        let ended = loop {
            let now = *door.borrow_and_update();
            match now {
                Door::Open => {}
                Door::LastLook => acceptors.send_modify(|acceptors| acceptors.has_looked(self.inbox.has_some())),
                Door::Closed => break Ok(()),
            }
            let due = self.drops.next();
            tokio::select! {
                biased;
                changed = door.changed() => {
                    if changed.is_err() {
                        // The server is gone.
                        break Ok(());
                    }
                }
                () = passed(due) => {
                    let reports = self.drops.due(clock());
                    self.tell(&desk.now(), reports);
                }
                ready = self.inbox.readable(), if now == Door::Open => {
                    // Not given up in between: a message may be waiting for the log.
                    let received = match ready {
                        Ok(()) => self.receive_some(desk, reception).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = received {
                        break Err(error);
                    }
                    task::yield_now().await;
                }
            }
        };
        let rest = self.drops.rest();
        self.tell(&desk.now(), rest);
        ended
    }

    /// Receives what there is, but not so much that others would have to wait.
    async fn receive_some(&mut self, desk: &CurrentDesk, reception: &Reception) -> io::Result<()> {
        let room = self.inbox.room(desk.now().settings.rules.max_message);
        if self.room.len() != room {
            self.room = vec![0; room];
        }
        for _ in 0..BATCH {
            let datagram = match self.inbox.receive(&mut self.room) {
                Ok(datagram) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_of_one(&error) => continue,
                Err(error) => return Err(error),
            };
            reception.admission.touch();
            let peer = datagram.peer;
            // As it is after the datagram came: a reload holds for those that are sent after it.
            let desk = &*desk.now();
            let answered = match self.accept(datagram, desk, reception) {
                Ok(accepted) => self.answer(&accepted, desk).await,
                Err(cause) => Err(cause),
            };
            if let Err(cause) = answered {
                self.worker.counters.count_drop(cause);
                let report = self.drops.count(cause, peer, clock());
                self.tell(desk, report);
            }
        }
        Ok(())
    }

    /// Whether a datagram is a message, to be answered; or else why not.
    fn accept(&self, datagram: Datagram, desk: &Desk, reception: &Reception) -> Result<Accepted, DropCause> {
        let Datagram { len, peer, sender } = datagram;
        let message = self.room.get(..len).ok_or(DropCause::TooLong)?;
        if let Some(reply) = packet::reply(&desk.settings.rules, message) {
            match &sender {
                Sender::Nobody => return Err(DropCause::Nameless),
                Sender::Ip(from, _) if packet::is_service_port(from.port()) => return Err(DropCause::ServicePort),
                sender if self.inbox.is_own(sender) => return Err(DropCause::OwnAddress),
                Sender::Ip(..) | Sender::Unix(_) => {}
            }
            if let Some(cause) = packet::harm(message, &reply) {
                return Err(cause);
            }
        }
        if !reception.rates.admit(Source::of_datagram(peer), clock()) {
            return Err(DropCause::Rate);
        }
        Ok(Accepted { len, peer, sender })
    }

    /// Logs a message and answers it.
    async fn answer(&mut self, accepted: &Accepted, desk: &Desk) -> Result<(), DropCause> {
        let Accepted { len, peer, ref sender } = *accepted;
        let message = &self.room[..len];
        // Those that come meanwhile wait in the kernel.
        packets::log(
            Message { connection: None, listener: &desk.name, peer, bytes: message },
            desk,
            &self.worker.outside,
        )
        .await;
        let before = self.totals;
        self.totals.messages += 1;
        self.totals.bytes_in += len as u64;
        let sent = match packet::reply(&desk.settings.rules, message) {
            Some(reply) => self.inbox.send(&reply, sender).map(|()| reply.iter().map(|part| part.len() as u64).sum()),
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

    fn tell(&self, desk: &Desk, reports: impl IntoIterator<Item = Report>) {
        for Report { cause, count, from } in reports {
            let listener = Arc::clone(&desk.name);
            (self.worker.outside.events)(Event::Unanswered { listener, cause, count, from });
        }
    }
}

async fn passed(due: Option<std::time::Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => pending().await,
    }
}

/// Whether an error of recvmsg(2) is about one datagram: about the way back of one that was sent before (ICMP, as far as it is
/// reported: IP_RECVERR of ip(7)), or about something that passes by itself. The socket is well then.
fn is_of_one(error: &io::Error) -> bool {
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
        let of_one = |error: Errno| is_of_one(&error.into());
        assert!(of_one(Errno::ECONNREFUSED) && of_one(Errno::EHOSTUNREACH) && of_one(Errno::ENOBUFS));
        assert!(!of_one(Errno::EBADF) && !of_one(Errno::ENOTSOCK) && !of_one(Errno::EINVAL));
    }
}
