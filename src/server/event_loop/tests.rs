//! Tests of the commands of other threads, and of the fairness between connections.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Waker;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt};
use tokio::sync::oneshot;

use super::*;
use crate::config::{Limits, Settings};
use crate::protocol::rules::ReplyMode;
use crate::protocol::{Rules, Session, Verdict};
use crate::server::accepted_socket::AcceptedSocket;
use crate::server::admission::Admission;
use crate::server::counters::ListenerCounters;
use crate::server::disposal::Disposal;
use crate::server::event::{Event as ServerEvent, EventSink, MessageLog, ReceivedMessage};
use crate::server::listener::{ConnectionInfo, Listener};
use crate::server::listing::{CloseOutcome, SLICE};
use crate::server::packet_socket;
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

/// An event loop with one connection, which has been idle since it was accepted.
struct OneConnection {
    event_loop: EventLoop,
    client: UnixStream,
    since: Instant,
    /// The verdict of the connection once it has ended.
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
        let state = Arc::new(WorkerState::new(0, sink, Disposal::default()));
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let mut event_loop = EventLoop::new(mailbox, Arc::clone(&state)).unwrap();

        let now = clock();
        let client = connect(&mut event_loop, &state, now);
        Self { event_loop, client, since: now, verdict }
    }

    /// Asks the event loop to reclaim the connection; `id` and `since` may be wrong.
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
    let (client, server) = UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    server.set_nonblocking(true).unwrap();
    insert(event_loop, state, now, (server.into(), SocketKind::Stream), &admission(), Rules::default());
    client
}

fn admission() -> Arc<Admission> {
    Admission::new(&Settings::default().limits, Waker::noop().clone())
}

/// Makes the event loop serve this socket.
fn insert(
    event_loop: &mut EventLoop,
    state: &WorkerState,
    now: Instant,
    (socket, kind): (OwnedFd, SocketKind),
    admission: &Arc<Admission>,
    rules: Rules,
) {
    let Settings { defaults, .. } = Settings::default();
    let (descriptors, receive_buffer) = (PeerDescriptors::None, ReceiveBuffer::Untouched);
    let socket = AcceptedSocket { socket, descriptors, receive_buffer };
    let permit = admission.try_acquire(false).unwrap();
    let rules = Rules { packets: kind == SocketKind::Seqpacket, ..rules };
    let session = Session::new(Arc::new(rules), now);
    let listener = Arc::new(Listener::new("echo", kind, descriptors, &defaults, Arc::new(ListenerCounters::new(1))));
    let info = ConnectionInfo { id: ID, listener, peer: Peer::Unknown };
    let connection = Box::new(Connection::new(socket, session, info, state, permit));
    event_loop.insert(connection, Readiness::None, now);
}

/// A client that sends packets, with a duplicate of the served socket, as another process might hold it.
struct PacketClient {
    socket: OwnedFd,
    served: OwnedFd,
}

impl PacketClient {
    fn connect(event_loop: &mut EventLoop, state: &WorkerState, admission: &Arc<Admission>) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, server) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        packet_socket::prepare(&server).unwrap();
        sockopt::set_socket_send_buffer_size(&socket, 1 << 20).unwrap();
        let served = server.try_clone().unwrap();
        insert(event_loop, state, clock(), (server, SocketKind::Seqpacket), admission, Rules::default());
        Self { socket, served }
    }

    /// Sends a packet. Returns whether there was room.
    fn send(&self, packet: &[u8]) -> bool {
        send(&self.socket, packet, SendFlags::NOSIGNAL).is_ok()
    }

    /// Receives a packet, if one is queued.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 17];
        let (_, count) = recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT).ok()?;
        buffer.truncate(count);
        Some(buffer)
    }
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
    // The key now belongs to another connection; the chosen one has ended.
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
    // The event loop learns from its reads which connections have much input.
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

#[test]
fn a_client_that_sends_little_waits_for_one_drive_of_those_that_send_many_packets() {
    let OneConnection { mut event_loop, client: mut calm, .. } = OneConnection::new();
    let (state, admission) = (Arc::clone(&event_loop.state), admission());
    // More than epoll reports at once.
    const FLOODS: usize = 100;
    let floods: Vec<_> = (0..FLOODS).map(|_| PacketClient::connect(&mut event_loop, &state, &admission)).collect();
    let much = [b'x'; 8 * 1024];
    let exchange = |flood: &PacketClient| {
        let answered = std::iter::from_fn(|| flood.receive()).count();
        while flood.send(&much) {}
        answered
    };
    for _ in 0..8 * FLOODS {
        floods.iter().for_each(|flood| _ = exchange(flood));
        event_loop.pass_once();
    }

    let mut served = [0; FLOODS];
    let mut buffer = [0; 100];
    for round in 0..5 * FLOODS {
        floods.iter().for_each(|flood| _ = exchange(flood));
        calm.write_all(b"aaaa\t").unwrap();
        event_loop.pass_once();
        let count = calm.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"server got:aaaa\t", "round {round}");
        let answered: Vec<_> = (0..FLOODS).filter(|at| exchange(&floods[*at]) > 0).collect();
        assert!(answered.len() <= 1, "round {round}: {answered:?}");
        answered.iter().for_each(|at| served[*at] += 1);
    }
    assert!(served.iter().all(|times| *times >= 4), "{served:?}");
}

#[test]
fn a_connection_of_packets_keeps_few_replies_however_many_packets_wait() {
    let mut event_loop = OneConnection::new().event_loop;
    let (state, admission) = (Arc::clone(&event_loop.state), admission());
    let client = PacketClient::connect(&mut event_loop, &state, &admission);
    // Room for one or two replies.
    sockopt::set_socket_send_buffer_size(&client.served, 64 * 1024).unwrap();
    let packet = vec![b'x'; 60_000];
    let mut sent = 0;
    for _ in 0..8 {
        sent += std::iter::repeat_with(|| client.send(&packet)).take_while(|sent| *sent).count();
        event_loop.pass_once();
        // 64 KiB and one reply, with the length prefixes of both.
        let memory = admission.buffer_memory();
        assert!(memory <= 64 * 1024 + packet.len() + 100, "{memory} bytes");
    }
    assert!(sent > 4, "{sent} fit into the buffer");
    for reply in 0..sent {
        let received = client.receive().or_else(|| {
            event_loop.pass_once();
            client.receive()
        });
        assert_eq!(received.map(|reply| reply.len()), Some(packet.len() + 11), "reply {reply}");
    }
    assert_eq!(admission.buffer_memory(), 0);
}

#[test]
fn a_connection_of_packets_keeps_one_reply_while_memory_is_scarce() {
    let mut event_loop = OneConnection::new().event_loop;
    let limits = Limits { buffer_memory: 1 << 20, ..Settings::default().limits };
    let admission = Admission::new(&limits, Waker::noop().clone());
    let state = Arc::clone(&event_loop.state);
    let client = PacketClient::connect(&mut event_loop, &state, &admission);
    sockopt::set_socket_send_buffer_size(&client.served, 64 * 1024).unwrap();
    let other_memory = limits.buffer_memory / 2 + 1;
    let mut other = admission.try_acquire(false).unwrap();
    let packet = vec![b'x'; 60_000];
    for (is_scarce, most) in [(false, 32), (true, 1)] {
        other.set_memory(if is_scarce { other_memory } else { 0 });
        // Many short packets make the next call ask for many.
        for _ in 0..4 {
            (0..32).for_each(|_| assert!(client.send(b"a")));
            let mut answered = 0;
            while answered < 32 {
                event_loop.pass_once();
                answered += std::iter::from_fn(|| client.receive()).count();
            }
        }
        while client.send(&packet) {}
        event_loop.pass_once();
        event_loop.pass_once();
        let memory = admission.buffer_memory() - if is_scarce { other_memory } else { 0 };
        assert!(memory > 0 && memory <= most * (packet.len() + 100), "{memory} bytes, {is_scarce}");
        assert!(is_scarce || memory > 2 * packet.len(), "{memory} bytes: the test shows nothing");
        while client.receive().is_some() {
            event_loop.pass_once();
        }
    }
}

#[test]
fn a_connection_of_packets_that_has_ended_is_not_reported_though_another_process_holds_it() {
    let OneConnection { mut event_loop, client: _client, .. } = OneConnection::new();
    let (state, admission) = (Arc::clone(&event_loop.state), admission());
    let PacketClient { socket, served } = PacketClient::connect(&mut event_loop, &state, &admission);
    drop(socket);
    let connected = event_loop.connections.len();
    event_loop.pass_once();
    assert_eq!(event_loop.connections.len(), connected - 1);
    // The next connection gets the same key, and events of the old one do not disturb it.
    let next = PacketClient::connect(&mut event_loop, &state, &admission);
    for _ in 0..2 {
        let mut events = [const { MaybeUninit::uninit() }; BATCH];
        let (reported, _) = epoll::wait(&event_loop.epoll, &mut events[..], Some(&NO_WAIT)).unwrap();
        assert_eq!(reported.len(), 0);
        assert!(next.send(b"a"));
        event_loop.pass_once();
        assert_eq!(next.receive().as_deref(), Some(&b"server got:a"[..]));
    }
    drop(served);
}

#[test]
fn other_threads_wait_for_connections_that_have_ended_and_not_for_those_that_send_much() {
    let OneConnection { mut event_loop, .. } = OneConnection::new();
    let state = Arc::clone(&event_loop.state);
    let mut floods: Vec<_> = (0..4).map(|_| connect(&mut event_loop, &state, clock())).collect();
    let much = b"aaaa\t".repeat(20_000);
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..8 {
        floods.iter_mut().for_each(|flood| _ = flood.write(&much));
        event_loop.pass_once();
        floods.iter_mut().for_each(|flood| _ = flood.read(&mut buffer));
    }

    for round in 0..10 {
        floods.iter_mut().for_each(|flood| _ = flood.write(&much));
        let (barrier, mut passed) = oneshot::channel();
        event_loop.barriers.add(vec![barrier], BATCH);
        event_loop.pass_once();
        assert_eq!(passed.try_recv(), Err(oneshot::error::TryRecvError::Closed), "round {round}");
        let mut is_answered = |mut flood: &UnixStream| flood.read(&mut buffer).is_ok_and(|count| count > 0);
        let answered = floods.iter().filter(|flood| is_answered(flood)).count();
        assert!(answered <= 1, "round {round}: {answered}");
    }

    // The connections end although they are in the run queue.
    let connected = event_loop.connections.len();
    while floods.iter_mut().any(|flood| flood.read(&mut buffer).is_ok_and(|count| count > 0)) {
        event_loop.pass_once();
    }
    floods.iter_mut().for_each(|flood| _ = flood.write(&much));
    floods.iter_mut().for_each(|flood| flood.shutdown(std::net::Shutdown::Both).unwrap());
    let (barrier, _passed) = oneshot::channel();
    event_loop.barriers.add(vec![barrier], BATCH);
    event_loop.pass_once();
    assert_eq!(event_loop.connections.len(), connected - floods.len());
}

#[test]
fn other_threads_wait_for_a_connection_that_has_ended_until_all_its_input_is_read() {
    let OneConnection { mut event_loop, client: _client, .. } = OneConnection::new();
    let state = Arc::clone(&event_loop.state);
    let (mut client, server) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    sockopt::set_socket_send_buffer_size(&client, 1 << 20).unwrap();
    client.set_nonblocking(true).unwrap();
    // Without replies, there is no error that ends the connection earlier.
    let rules = Rules { reply: ReplyMode::None, ..Rules::default() };
    insert(&mut event_loop, &state, clock(), (server.into(), SocketKind::Stream), &admission(), rules);
    let connected = event_loop.connections.len();
    // More than one drive reads.
    let sent = std::iter::from_fn(|| client.write(&b"aaaa\t".repeat(8000)).ok()).sum::<usize>();
    assert!(sent > 2 * 128 * 1024, "{sent}");
    drop(client);
    let (barrier, mut passed) = oneshot::channel();
    event_loop.barriers.add(vec![barrier], BATCH);
    let is_waiting = |passed: &mut oneshot::Receiver<_>| passed.try_recv() == Err(oneshot::error::TryRecvError::Empty);
    let mut passes = 0;
    while is_waiting(&mut passed) {
        event_loop.pass_once();
        passes += 1;
        assert!(passes < 100);
    }
    assert_eq!(event_loop.connections.len(), connected - 1);
}

#[test]
fn a_list_is_made_of_slices_that_look_at_few_connections_and_a_search_as_well() {
    const CONNECTIONS: usize = 2 * SLICE + 5;
    let mut one = OneConnection::new();
    let state = Arc::clone(&one.event_loop.state);
    let clients: Vec<_> = (1..CONNECTIONS).map(|_| connect(&mut one.event_loop, &state, one.since)).collect();
    let (mut from, mut slices) = (0, Vec::new());
    loop {
        let slice = one.event_loop.list(from, clock());
        slices.push(slice.connections.len());
        assert!(slice.connections.len() <= SLICE, "{slices:?}");
        match slice.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(slices.iter().sum::<usize>(), CONNECTIONS, "{slices:?}");
    // All have the same id here: one that has another is found only where it is.
    assert_eq!(one.event_loop.close_connection(ID + 1, 0, clock()), CloseOutcome::Continue(SLICE));
    assert_eq!(one.event_loop.close_connection(ID + 1, SLICE, clock()), CloseOutcome::Continue(2 * SLICE));
    assert_eq!(one.event_loop.close_connection(ID + 1, usize::MAX, clock()), CloseOutcome::NotFound);
    assert_eq!(one.event_loop.close_connection(ID, SLICE, clock()), CloseOutcome::Closed);
    assert_eq!(one.verdict(), None, "it lingers until its client has ended it");
    drop(clients);
    one.client.shutdown(std::net::Shutdown::Write).unwrap();
}

#[test]
fn a_connection_that_an_administrator_closes_answers_what_was_read_and_says_why_it_ends() {
    let mut one = OneConnection::new();
    one.client.write_all(b"aaaa\tbbbb").unwrap();
    one.event_loop.pass_once();
    assert_eq!(one.event_loop.close_connection(ID, 0, clock()), CloseOutcome::Closed);
    assert_eq!(one.received(), "server got:aaaa\tserver error:connection closed by the administrator\t");
    one.client.shutdown(std::net::Shutdown::Write).unwrap();
    one.event_loop.pass_once();
    assert_eq!(one.verdict(), Some(Verdict::ClosedByAdmin));
    assert_eq!(one.event_loop.close_connection(ID, 0, clock()), CloseOutcome::NotFound);
}
