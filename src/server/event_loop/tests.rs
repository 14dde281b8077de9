//! Tests of what other threads ask of the event loop.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Waker;

use super::*;
use crate::config::Settings;
use crate::protocol::{Session, Verdict};
use crate::server::accepted_socket::AcceptedSocket;
use crate::server::admission::Admission;
use crate::server::disposal::Disposal;
use crate::server::event::{Event as ServerEvent, EventSink, MessageLog, ReceivedMessage};
use crate::server::listener::ConnectionInfo;
use crate::server::peer::Peer;
use crate::server::peer_descriptors::PeerDescriptors;
use crate::server::receive_buffer::ReceiveBuffer;
use crate::server::socket::SocketKind;

struct NoLog;

impl MessageLog for NoLog {
    fn try_append(&self, _: ReceivedMessage<'_>, _: &Waker) -> bool {
        true
    }
}

/// An event loop with one connection, which has been idle from the beginning.
struct OneConnection {
    event_loop: EventLoop,
    client: UnixStream,
    since: Instant,
    /// Why it ended.
    verdict: Arc<Mutex<Option<Verdict>>>,
}

const ID: u64 = 7;

impl OneConnection {
    fn new() -> Self {
        let verdict = Arc::new(Mutex::new(None));
        let ended = Arc::clone(&verdict);
        let handler = Arc::new(move |event| {
            if let ServerEvent::Closed { verdict, .. } = event {
                *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
            }
        });
        let sink = EventSink { handler, message_log: Arc::new(NoLog), unlogged: Arc::default() };
        let state = Arc::new(WorkerState::new(sink, Disposal::default()));
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let mut event_loop = EventLoop::new(mailbox, Arc::clone(&state)).unwrap();

        let now = clock();
        let client = connect(&mut event_loop, &state, now);
        Self { event_loop, client, since: now, verdict }
    }

    /// Asks for the end of the connection, with what may be wrong about it.
    fn reclaim(&mut self, id: u64, since: Instant) -> bool {
        self.event_loop.reclaim(0, id, since, clock())
    }

    fn received(&mut self) -> String {
        let mut buffer = [0; 1000];
        let count = self.client.read(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    fn verdict(&self) -> Option<Verdict> {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects a client to the event loop.
fn connect(event_loop: &mut EventLoop, state: &WorkerState, now: Instant) -> UnixStream {
    let Settings { defaults, limits, .. } = Settings::default();
    let (client, server) = UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    server.set_nonblocking(true).unwrap();
    let (descriptors, receive_buffer) = (PeerDescriptors::None, ReceiveBuffer::Untouched);
    let socket = AcceptedSocket { socket: server.into(), descriptors, receive_buffer };
    let permit = Admission::new(&limits, Waker::noop().clone()).try_acquire(false).unwrap();
    let session = Session::new(Arc::clone(&defaults.rules), now);
    let (kind, descriptors) = (SocketKind::Stream, PeerDescriptors::None);
    let listener = Arc::new(Listener { name: "echo".into(), kind, descriptors, settings: defaults });
    let info = ConnectionInfo { id: ID, listener, peer: Peer::Unknown };
    let connection = Box::new(Connection::new(socket, session, info, state, permit));
    event_loop.insert(connection, Readiness::None, now);
    client
}

#[test]
fn an_idle_connection_is_reclaimed_and_told_so() {
    let mut one = OneConnection::new();
    assert!(one.reclaim(ID, one.since));
    assert_eq!(one.received(), "server error:connection reclaimed, the server is full\t");
}

#[test]
fn a_message_that_no_event_has_reported_yet_is_answered_and_its_connection_is_not_reclaimed() {
    for (sent, reply) in [("aaaa\t", "server got:aaaa\t"), ("aaaa", "")] {
        let mut one = OneConnection::new();
        one.client.write_all(sent.as_bytes()).unwrap();
        assert!(!one.reclaim(ID, one.since), "{sent}");
        assert_eq!(one.verdict(), None, "{sent}");
        if reply.is_empty() {
            one.client.read(&mut [0]).unwrap_err();
        } else {
            assert_eq!(one.received(), reply);
        }
    }
}

#[test]
fn a_connection_that_its_client_has_ended_meanwhile_counts_as_reclaimed() {
    let mut one = OneConnection::new();
    one.client.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(one.reclaim(ID, one.since));
    assert_eq!(one.verdict(), Some(Verdict::PeerClosed));
}

#[test]
fn only_the_connection_that_was_chosen_is_reclaimed() {
    let mut one = OneConnection::new();
    // Another one has its key by now: the one that was chosen has ended.
    assert!(one.reclaim(ID - 1, one.since));
    assert!(!one.reclaim(ID, one.since - Duration::from_secs(1)));
    one.client.write_all(b"aaaa\t").unwrap();
    one.event_loop.drive(0, Readiness::Ready, clock());
    assert_eq!(one.received(), "server got:aaaa\t");
}

#[test]
fn a_client_that_sends_little_waits_for_one_drive_of_those_that_send_much_and_all_of_them_are_served_in_turn() {
    let OneConnection { mut event_loop, client: mut calm, .. } = OneConnection::new();
    let state = Arc::clone(&event_loop.state);
    let mut floods: Vec<_> = (0..4).map(|_| connect(&mut event_loop, &state, clock())).collect();
    let much = b"aaaa\t".repeat(20_000);
    let mut buffer = vec![0; 1 << 20];
    // The event loop learns who sends much from what it has read.
    let send = |flood: &mut UnixStream| flood.write(&much).unwrap_or_default();
    for _ in 0..8 {
        floods.iter_mut().for_each(|flood| _ = send(flood));
        event_loop.pass_once();
        floods.iter_mut().for_each(|flood| _ = flood.read(&mut buffer));
    }

    let mut served = [0; 4];
    for round in 0..20 {
        floods.iter_mut().for_each(|flood| _ = send(flood));
        calm.write_all(b"aaaa\t").unwrap();
        event_loop.pass_once();
        let count = calm.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"server got:aaaa\t", "round {round}");
        let answered: Vec<_> = (0..4).filter(|at| floods[*at].read(&mut buffer).is_ok_and(|count| count > 0)).collect();
        assert!(answered.len() <= 1, "round {round}: {answered:?}");
        answered.iter().for_each(|at| served[*at] += 1);
    }
    assert!(served.iter().all(|times| *times >= 4), "{served:?}");
}
