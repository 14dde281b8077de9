//! Restoring connections, with the server as a library: the snapshots may contain anything.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use echoed::address::Address;
use echoed::bind;
use echoed::config::Settings;
use echoed::protocol::rules::LogMessages;
use echoed::protocol::{Rules, Session, Verdict, snapshot};
use echoed::server::event::{MessageLog, ReceivedMessage};
use echoed::server::{DetachedConnection, Restored, Server};
use tokio::runtime::{Builder, Runtime};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::Peer;
use common::packets::PacketPeer;
use common::{now, wait_until};

/// A log that takes nothing, or everything.
struct StubLog {
    accepts: bool,
    offered: Mutex<Vec<Vec<u8>>>,
}

impl StubLog {
    fn new(accepts: bool) -> Arc<Self> {
        Arc::new(Self { accepts, offered: Mutex::default() })
    }

    fn offered(&self) -> Vec<Vec<u8>> {
        self.offered.lock().expect("no thread panicked").clone()
    }
}

impl MessageLog for StubLog {
    fn try_append(&self, message: ReceivedMessage<'_>, _: &Waker) -> bool {
        self.offered.lock().expect("no thread panicked").push(message.bytes.to_vec());
        self.accepts
    }
}

fn server(settings: &Settings, log: Arc<StubLog>) -> Server {
    Server::start(settings, Arc::new(|_| {}), log).expect("the workers start")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Returns a detached connection with a snapshot of this session, and the other end of its stream.
fn detached(session: &Session, number: u64) -> (DetachedConnection, Peer) {
    let (ours, theirs) = UnixStream::pair().expect("a pair can be made");
    let snapshot = snapshot::encode(session, "main", number, None, now());
    (DetachedConnection { socket: ours.into(), snapshot, unlogged: 0 }, Peer::from_stream(theirs))
}

fn session() -> Session {
    Session::new(Arc::default(), now())
}

#[test]
fn connections_with_invalid_snapshots_are_closed_gracefully_and_the_rest_is_restored() {
    let settings = Settings::default();
    let server = server(&settings, StubLog::new(true));
    let (good, mut survivor) = detached(&session(), 1);
    let (mut all, mut peers) = (vec![good], Vec::new());
    let encoded = snapshot::encode(&session(), "main", 2, None, now());
    let newer = [&[0xff, 0xff], &encoded[2..]].concat();
    for snapshot in [Vec::new(), encoded[..encoded.len() - 1].to_vec(), newer, vec![b'x'; 1000]] {
        let (detached, mut peer) = detached(&session(), 2);
        // Unread, it would turn a close into a reset.
        peer.send("unread");
        all.push(DetachedConnection { snapshot, ..detached });
        peers.push(peer);
    }
    // No id could follow this one.
    let (highest, mut peer) = detached(&session(), u64::MAX);
    peer.send("unread");
    all.push(highest);
    peers.push(peer);
    let Restored { resumed, orphaned, rejected } = server.restore(all, Duration::ZERO, &settings, &["main"]);
    assert_eq!((resumed, orphaned, rejected.len()), (1, 0, 5), "{rejected:#?}");
    assert!(rejected[2].contains("65535"), "{}", rejected[2]);
    peers.iter_mut().for_each(Peer::expect_close);
    survivor.exchange("a");
    assert_eq!((server.connection_count(), server.counts().resumed), (1, 1));
}

#[test]
fn a_descriptor_that_is_not_a_connection_is_closed() {
    let settings = Settings::default();
    let server = server(&settings, StubLog::new(true));
    let encoded = || snapshot::encode(&session(), "main", 1, None, now());
    let file = tempfile::tempfile().expect("a file can be made");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let all = vec![
        DetachedConnection { socket: file.into(), snapshot: encoded(), unlogged: 0 },
        DetachedConnection { socket: listener.into(), snapshot: encoded(), unlogged: 0 },
        DetachedConnection {
            socket: UnixStream::pair().expect("a pair can be made").0.into(),
            snapshot: encoded(),
            unlogged: 0,
        },
    ];
    server.restore(all, Duration::ZERO, &settings, &["main"]);
    wait_until("all have ended", || server.connection_count() == 0);
}

/// Returns the two ends of a connection of packets.
fn packet_pair() -> (OwnedFd, PacketPeer) {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.expect("a pair can be made");
    (ours, PacketPeer::from_fd(theirs))
}

fn packet_session() -> Session {
    Session::new(Arc::new(Rules { packets: true, ..Rules::default() }), now())
}

#[test]
fn connections_of_packets_are_restored_on_sockets_of_packets_alone() {
    let settings = Settings::default();
    let server = server(&settings, StubLog::new(true));
    let snapshot = |number| snapshot::encode(&packet_session(), "main", number, None, now());
    let (ours, peer) = packet_pair();
    let (stream, mut other) = detached(&session(), 2);
    let (both, mut stream_peer) = detached(&session(), 3);
    let (without_stream, lost_peer) = packet_pair();
    // So that its other end learns of the end of the stream, and not of a reset.
    ["", "unread"].iter().for_each(|packet| lost_peer.send(packet));
    let all = vec![
        // It is non-blocking from now on, and tells an empty packet from the end.
        DetachedConnection { socket: ours, snapshot: snapshot(1), unlogged: 0 },
        DetachedConnection { snapshot: snapshot(2), ..stream },
        // Under the same name.
        both,
        DetachedConnection {
            socket: without_stream,
            snapshot: snapshot::encode(&session(), "main", 4, None, now()),
            unlogged: 0,
        },
    ];
    let Restored { resumed, rejected, .. } = server.restore(all, Duration::ZERO, &settings, &["main"]);
    let errors = ["its socket carries no packets", "its socket carries no stream"].map(str::to_owned);
    assert_eq!((resumed, &rejected[..]), (2, &errors[..]));
    other.expect_close();
    lost_peer.expect_close();
    for message in ["", "a\tb"] {
        peer.exchange(message);
    }
    stream_peer.exchange("a");
}

#[test]
fn packets_that_wait_for_the_log_are_handed_over_and_logged_once() {
    let mut settings = Settings::default();
    let rules = Rules { log_messages: LogMessages::Full, ..Rules::default() };
    settings.defaults.rules = Arc::new(rules);
    let full = StubLog::new(false);
    let before = server(&settings, Arc::clone(&full));
    let ((ours, peer), (gone_ours, gone)) = (packet_pair(), packet_pair());
    for (socket, peer) in [(ours, &peer), (gone_ours, &gone)] {
        before.adopt(socket, "main", &settings.defaults).expect("it can be served");
        peer.send("one");
        peer.send("two");
    }
    wait_until("both first messages wait for the log", || full.offered().len() >= 2);
    drop(gone);
    let detached = runtime().block_on(before.detach(|| ()));
    assert_eq!((detached.connections.len(), detached.unresponsive), (2, 0));
    assert_eq!(detached.connections.iter().map(|one| one.unlogged).collect::<Vec<_>>(), [1, 1]);
    drop(before);

    let empty = StubLog::new(true);
    let after = server(&settings, Arc::clone(&empty));
    after.restore(detached.connections, Duration::ZERO, &settings, &["main"]);
    peer.expect("server got:one");
    peer.expect("server got:two");
    wait_until("the other has ended", || after.connection_count() == 1);
    let mut offered = empty.offered();
    offered.sort();
    // Of the one that is gone, what was not read was not answered, so it need not be logged.
    offered.dedup();
    assert_eq!(offered, [b"one", b"two"]);
}

#[test]
fn a_socket_in_blocking_mode_does_not_block_the_worker() {
    let mut settings = Settings::default();
    settings.service.workers = 1;
    let server = server(&settings, StubLog::new(true));
    let ((one, mut first), (other, mut second)) = (detached(&session(), 1), detached(&session(), 2));
    server.restore(vec![one, other], Duration::ZERO, &settings, &["main"]);
    second.exchange("a");
    first.exchange("a");
}

#[test]
fn a_refused_connection_holds_no_permit_and_gets_its_final_reply() {
    let mut settings = Settings::default();
    settings.limits.connections = 1;
    let server = server(&settings, StubLog::new(true));
    let mut session = session();
    session.refuse(Verdict::TooMany { limit: 7 }, now());
    let (rejected, mut peer) = detached(&session, 1);
    let restored = server.restore(vec![rejected], Duration::ZERO, &settings, &["main"]);
    assert_eq!(restored, Restored { resumed: 1, ..Restored::default() });
    assert_eq!(
        (server.connection_count(), server.idle_for()),
        (0, None),
        "it is there, and does not count against the limit"
    );
    peer.expect("server error:too many connections from this source (limit 7)\t");
    peer.expect_close();
    drop(peer);
    runtime().block_on(server.wait_until_idle());
}

#[test]
fn messages_that_wait_for_the_log_are_handed_over_and_logged_once() {
    let mut settings = Settings::default();
    let rules = Rules { log_messages: LogMessages::Full, ..Rules::default() };
    settings.defaults.rules = Arc::new(rules);
    let full = StubLog::new(false);
    let before = server(&settings, Arc::clone(&full));
    let any: Address = "tcp:127.0.0.1:0".parse().expect("an address");
    let bound = bind::listen(&any).expect("a port is free").remove(0);
    let address = bind::bound_to(&bound.socket);
    before.listen(bound.socket, "main", &settings.defaults).expect("it can be served");
    let (mut peer, mut gone) = (Peer::connect(&address), Peer::connect(&address));
    for peer in [&mut peer, &mut gone] {
        peer.send("one\ttwo\tthr");
    }
    wait_until("both messages wait for the log", || full.offered().len() >= 2);
    gone.reset();
    wait_until("the reset is noticed", || full.offered().len() >= 3);
    let detached = runtime().block_on(before.detach(|| ()));
    assert_eq!((detached.connections.len(), detached.unresponsive), (2, 0));
    drop(before);

    let empty = StubLog::new(true);
    let after = server(&settings, Arc::clone(&empty));
    after.restore(detached.connections, Duration::ZERO, &settings, &["main"]);
    peer.expect("server got:one\tserver got:two\t");
    peer.send("ee\t");
    peer.expect("server got:three\t");
    wait_until("the other has ended", || after.connection_count() == 1);
    let mut offered = empty.offered();
    offered.sort();
    assert_eq!(offered, [&b"one"[..], b"one", b"three", b"two", b"two"]);
}
