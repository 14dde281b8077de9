//! Replies to senders on Unix sockets that are bound to a path, for one listener.
//!
//! Opening a path and sending to it can take long: the kernel asks the file system for each directory and for the mode of
//! the socket, and the file system may be one of another machine or of another program (NFS, FUSE). A sender can name any
//! path. So no worker touches one: threads do ([`UserThreads`]), and the worker gets the results.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak};

use nix::sys::socket::{MsgFlags, UnixAddr};
use tokio::sync::mpsc;

use crate::protocol::packet::{DropCause, Reply};
use crate::server::packets::datagram_socket;
use crate::server::packets::sender_socket::{self, OwnerRules, ReservedSockets};
use crate::server::packets::user_threads::UserThreads;
use crate::server::socket::Peer;

/// What a reply takes besides its bytes while it waits.
const OVERHEAD: usize = 1024;

/// Sends the replies of a listener to paths.
#[derive(Debug)]
pub(crate) struct PathReplies {
    threads: UserThreads,
    /// A copy of the listener's socket. Threads use it only while it is here.
    socket: Arc<OwnedFd>,
    rules: Arc<OwnerRules>,
    results: (mpsc::UnboundedSender<SentReply>, mpsc::UnboundedReceiver<SentReply>),
    /// How many replies have no result yet.
    waiting: usize,
}

/// What became of a reply.
#[derive(Debug)]
pub(crate) struct SentReply {
    /// The sender of the datagram.
    pub(crate) peer: Peer,
    /// How many bytes were sent.
    pub(crate) sent: Result<u64, DropCause>,
}

impl PathReplies {
    /// Creates one for the listener with this socket. It refuses all `reserved` sockets.
    pub(crate) fn new(socket: OwnedFd, threads: UserThreads, reserved: ReservedSockets) -> Self {
        let (socket, rules) = (Arc::new(socket), Arc::new(OwnerRules::new(reserved)));
        Self { threads, socket, rules, results: mpsc::unbounded_channel(), waiting: 0 }
    }

    /// Returns whether a reply to `peer` may go to its address, as far as both say by themselves.
    pub(crate) fn is_allowed(&self, address: &UnixAddr, peer: Peer) -> bool {
        self.rules.is_allowed(address, peer)
    }

    /// Has a reply sent to the path of a sender, after earlier ones to the same user. [`PathReplies::next`] returns the result.
    ///
    /// # Errors
    /// Returns an error if it cannot be sent: too many replies wait, or the sender's user is not known.
    pub(crate) fn send(&mut self, path: &Path, peer: Peer, reply: &Reply<'_>) -> Result<(), DropCause> {
        let uid = self.rules.known_uid(peer).ok_or(DropCause::UnsafeAddress)?;
        let (path, reply) = (path.to_owned(), reply.concat());
        let (socket, rules, results) = (Arc::downgrade(&self.socket), Arc::clone(&self.rules), self.results.0.clone());
        self.threads.run(uid, OVERHEAD + reply.len(), move || {
            let sent = send(&socket, &path, uid, &rules, &reply);
            // There is an error if the listener has ended.
            let _ = results.send(SentReply { peer, sent });
        })?;
        self.waiting += 1;
        Ok(())
    }

    /// Waits for the next result; forever where no reply waits.
    pub(crate) async fn next(&mut self) -> SentReply {
        match self.results.1.recv().await {
            Some(result) => {
                self.waiting -= 1;
                result
            }
            // This one has a sender itself.
            None => std::future::pending().await,
        }
    }

    /// Returns how many replies have no result yet.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }
}

/// Sends a reply to the socket of a user at a path. May block for good. What it opened is closed here, too: that may also ask
/// the file system.
fn send(socket: &Weak<OwnedFd>, path: &Path, uid: u32, rules: &OwnerRules, reply: &[u8]) -> Result<u64, DropCause> {
    // Without the socket, the listener has ended, and has counted this reply.
    if socket.strong_count() == 0 {
        return Err(DropCause::NoRoom);
    }
    let to = sender_socket::open(path, uid, rules)?;
    let socket = socket.upgrade().ok_or(DropCause::NoRoom)?;
    let sent = to.address().and_then(|to| {
        datagram_socket::send_message(socket.as_fd(), &[IoSlice::new(reply)], &[], MsgFlags::empty(), &to)
    });
    sent.map(|()| reply.len() as u64).map_err(datagram_socket::drop_cause)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net::UnixDatagram;
    use std::sync::mpsc as channel;
    use std::time::Duration;

    use super::*;

    fn path_replies(threads: &UserThreads) -> PathReplies {
        PathReplies::new(UnixDatagram::unbound().unwrap().into(), threads.clone(), Arc::default())
    }

    fn own_uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[tokio::test]
    async fn each_reply_has_a_result() {
        const COUNT: usize = 16;
        let directory = tempfile::tempdir().unwrap();
        let path = |number: usize| directory.path().join(number.to_string());
        // Every other one is there.
        let bound: Vec<_> = (0..COUNT).step_by(2).map(|at| UnixDatagram::bind(path(at)).unwrap()).collect();
        let (mut replies, peer) = (path_replies(&UserThreads::default()), Peer::process(own_uid(), 1));
        for number in 0..COUNT {
            replies.send(&path(number), peer, &[b"prefix", &vec![b'x'; number]]).unwrap();
        }
        assert_eq!(replies.waiting(), COUNT);
        for number in 0..COUNT {
            let SentReply { peer: sent_to, sent } = replies.next().await;
            assert_eq!(sent_to, peer);
            assert_eq!(sent, if number % 2 == 0 { Ok(6 + number as u64) } else { Err(DropCause::UnsafeAddress) });
        }
        assert_eq!(replies.waiting(), 0);
        for (at, client) in bound.iter().enumerate() {
            assert_eq!(client.recv(&mut [0; 100]).unwrap(), 6 + 2 * at);
        }
        assert_eq!(replies.send(&path(0), Peer::Unknown, &[b"", b""]), Err(DropCause::UnsafeAddress));
    }

    #[test]
    fn replies_that_wait_when_their_listener_ends_are_not_sent() {
        let (threads, directory) = (UserThreads::default(), tempfile::tempdir().unwrap());
        let path = directory.path().join("client");
        let client = UnixDatagram::bind(&path).unwrap();
        let mut replies = path_replies(&threads);
        let (release, released) = channel::channel::<()>();
        threads
            .run(own_uid(), 1, move || {
                let _ = released.recv();
            })
            .unwrap();
        replies.send(&path, Peer::process(own_uid(), 1), &[b"a", b"b"]).unwrap();
        drop(replies);
        drop(release);
        // What comes after it has run, so it has, too.
        let (last, ran) = channel::channel();
        threads
            .run(own_uid(), 1, move || {
                let _ = last.send(());
            })
            .unwrap();
        ran.recv_timeout(Duration::from_secs(30)).unwrap();
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
