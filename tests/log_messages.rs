//! Messages for the log: what is to be logged whole is, every message once, in order, before it is answered; a log that
//! has no room makes peers wait. The server as a library, with a log of the test's own.

mod common;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::net::{Shutdown, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use common::packets::PacketPeer;
use common::{Peer, TEST_TIMEOUT, wait_until};
use echoed::address::Address;
use echoed::bind;
use echoed::config::{ListenerSettings, Settings};
use echoed::protocol::rules::{Deadlines, LogMessages, TimeSpan, Unterminated};
use echoed::protocol::{Rules, Verdict};
use echoed::server::Server;
use echoed::server::event::{Event, MessageLog, ReceivedMessage};

/// A log that takes as many messages as the test lets it.
#[derive(Default)]
struct SlowLog {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    capacity: usize,
    logged: Vec<LoggedMessage>,
    /// The wakers of connections whose messages were refused since the capacity was last raised.
    wakers: Vec<Waker>,
    /// How many wakers do not ask again.
    abandoned: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LoggedMessage {
    connection: u64,
    listener: String,
    bytes: Vec<u8>,
}

impl MessageLog for SlowLog {
    fn try_append(&self, message: ReceivedMessage<'_>, waker: &Waker) -> bool {
        let mut state = self.lock();
        let accepts = state.capacity > 0;
        if accepts {
            state.capacity -= 1;
            let ReceivedMessage { connection_id, listener, bytes, .. } = message;
            state.logged.push(LoggedMessage {
                // A datagram has none.
                connection: connection_id.unwrap_or_default(),
                listener: listener.to_string(),
                bytes: bytes.to_vec(),
            });
        } else {
            state.wakers.push(waker.clone());
        }
        self.changed.notify_all();
        accepts
    }

    fn abandon(&self, waker: &Waker) -> bool {
        let mut state = self.lock();
        state.abandoned += usize::from(state.wakers.iter().any(|refused| refused.data() == waker.data()));
        false
    }
}

impl SlowLog {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }

    fn add_capacity(&self, count: usize) {
        let woken = {
            let mut state = self.lock();
            state.capacity = state.capacity.saturating_add(count);
            std::mem::take(&mut state.wakers)
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// Waits until it is so.
    fn wait(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let (state, waited) = self
            .changed
            .wait_timeout_while(self.lock(), TEST_TIMEOUT, |state| !condition(state))
            .expect("no thread panicked");
        assert!(!waited.timed_out(), "not so after {TEST_TIMEOUT:?}: {what}; taken: {}", state.logged.len());
    }

    fn wait_for_refused(&self, count: usize) {
        self.wait(&format!("{count} refused"), |state| state.wakers.len() >= count);
    }

    fn wait_for_logged(&self, count: usize) {
        self.wait(&format!("{count} taken"), |state| state.logged.len() >= count);
    }

    /// What it has taken, as text.
    fn logged_texts(&self) -> Vec<String> {
        self.lock().logged.iter().map(|logged| String::from_utf8_lossy(&logged.bytes).into_owned()).collect()
    }
}

/// A server with one listener, and the events that it reported.
struct ServerFixture {
    server: Server,
    address: String,
    log: Arc<SlowLog>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl ServerFixture {
    fn start(rules: Rules) -> Self {
        Self::start_with(rules, |_| {})
    }

    fn start_with(rules: Rules, change: impl Fn(&mut Settings)) -> Self {
        let mut settings = Settings::default();
        settings.service.workers = 2;
        change(&mut settings);
        let (log, events) = (Arc::<SlowLog>::default(), Arc::<Mutex<Vec<Event>>>::default());
        let recorded = Arc::clone(&events);
        let server = Server::start(
            &settings,
            Arc::new(move |event| recorded.lock().expect("no thread panicked").push(event)),
            Arc::clone(&log) as _,
        );
        let server = server.expect("the workers start");
        let address = listen(&server, "main", rules);
        Self { server, address, log, events }
    }

    fn connect(&self) -> Peer {
        Peer::connect(&self.address)
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let events = self.events.lock().expect("no thread panicked");
        events
            .iter()
            .filter_map(|event| if let Event::Closed { verdict, .. } = event { Some(*verdict) } else { None })
            .collect()
    }

    fn wait_until_empty(&self) {
        wait_until("all connections have ended", || self.server.connection_count() == 0);
    }
}

/// Serves a listener by these rules. Returns its address.
fn listen(server: &Server, name: &str, rules: Rules) -> String {
    listen_on(server, "tcp:127.0.0.1:0", name, rules)
}

/// The same, on this address.
fn listen_on(server: &Server, address: &str, name: &str, rules: Rules) -> String {
    let address: Address = address.parse().expect("an address");
    let bound = bind::listen(&address).expect("it is free").remove(0);
    let address = bind::bound_to(&bound.socket);
    let listener = ListenerSettings { rules: Arc::new(rules), ..Settings::default().defaults };
    server.listen(bound.socket, name, &listener).expect("it can be served");
    address
}

fn full_logging() -> Rules {
    Rules { log_messages: LogMessages::Full, ..Rules::default() }
}

#[test]
fn a_peer_waits_until_its_message_is_logged_and_others_are_not_delayed() {
    let fixture = ServerFixture::start(full_logging());
    let others = listen(&fixture.server, "others", Rules::default());
    let mut peers: Vec<_> = (0..4).map(|_| fixture.connect()).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.send(format!("message {number}\t"));
    }
    fixture.log.wait_for_refused(4);
    for _ in 0..4 {
        Peer::connect(&others).exchange("not logged");
    }
    for peer in &mut peers {
        peer.expect_silence(Duration::from_millis(20));
    }
    assert!(fixture.log.logged_texts().is_empty());
    let attempts = fixture.log.lock().wakers.len();
    assert!(attempts < 50, "they do not wait to be woken, but have asked {attempts} times");
    fixture.log.add_capacity(4);
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.expect(format!("server got:message {number}\t"));
    }
    let mut logged = fixture.log.logged_texts();
    logged.sort_unstable();
    assert_eq!(logged, ["message 0", "message 1", "message 2", "message 3"]);
}

#[test]
fn a_message_is_logged_with_its_connection_and_its_listener() {
    let fixture = ServerFixture::start(full_logging());
    let second = listen(&fixture.server, "second", full_logging());
    fixture.log.add_capacity(2);
    fixture.connect().exchange("a");
    Peer::connect(&second).exchange("b");
    let logged = fixture.log.lock().logged.clone();
    let expected = [(1, "main", "a"), (2, "second", "b")];
    let expected = expected.map(|(connection, listener, text)| LoggedMessage {
        connection,
        listener: listener.to_owned(),
        bytes: text.as_bytes().to_vec(),
    });
    assert_eq!(logged, expected);
}

#[test]
fn a_slow_log_gets_every_message_of_many_peers_once_and_in_order() {
    const PEERS: usize = 20;
    const MESSAGES: usize = 300;
    let fixture = ServerFixture::start(full_logging());
    // Short ones, some in two pieces, and some of many reads.
    let text = |peer: usize, number: usize| {
        let fill = if number % 100 == 99 { 60_000 } else { number % 7 };
        format!("{peer}:{number}:{}", "x".repeat(fill))
    };
    thread::scope(|scope| {
        for number in 0..PEERS {
            let mut peer = fixture.connect();
            let mut sender = peer.stream();
            scope.spawn(move || {
                for message in 0..MESSAGES {
                    sender.write_all(text(number, message).as_bytes()).expect("it can be sent");
                    sender.write_all(b"\t").expect("it can be sent");
                }
                sender.shutdown(Shutdown::Write).expect("the stream can be shut down");
            });
            scope.spawn(move || {
                for message in 0..MESSAGES {
                    peer.expect(format!("server got:{}\t", text(number, message)));
                }
                peer.expect_close();
            });
        }
        scope.spawn(|| {
            for count in (0..7).cycle() {
                let logged = fixture.log.lock().logged.len();
                if logged == PEERS * MESSAGES {
                    break;
                }
                fixture.log.add_capacity(count);
                // Waits until one more message is taken, unless all are.
                if count > 0 {
                    fixture.log.wait_for_logged((logged + 1).min(PEERS * MESSAGES));
                }
            }
        });
    });
    fixture.wait_until_empty();
    let mut of_peers: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    for logged in fixture.log.lock().logged.drain(..) {
        of_peers.entry(logged.connection).or_default().push(logged.bytes);
    }
    let mut expected: Vec<Vec<Vec<u8>>> =
        (0..PEERS).map(|peer| (0..MESSAGES).map(|number| text(peer, number).into_bytes()).collect()).collect();
    let mut of_peers: Vec<_> = of_peers.into_values().collect();
    expected.sort_unstable();
    of_peers.sort_unstable();
    assert!(of_peers == expected, "messages were lost, doubled or exchanged");
    assert_eq!(fixture.server.counts().totals.messages, (PEERS * MESSAGES) as u64);
}

#[test]
fn deadlines_are_suspended_while_a_message_waits_for_the_log() {
    let short = || Some(TimeSpan::new(Duration::from_millis(50), "50ms"));
    let deadlines = Deadlines { idle: None, read: short(), write: short(), ..Deadlines::default() };
    let fixture = ServerFixture::start(Rules { deadlines, ..full_logging() });
    let mut peer = fixture.connect();
    peer.send("a\tb\thalf");
    fixture.log.wait_for_refused(1);
    peer.expect_silence(Duration::from_millis(300));
    fixture.log.add_capacity(1);
    peer.expect("server got:a\t");
    peer.expect_silence(Duration::from_millis(300));
    fixture.log.add_capacity(1);
    peer.expect("server got:b\tserver error:message not finished within 50ms\t");
    peer.expect_close();
}

#[test]
fn an_accepted_unterminated_message_is_logged_and_answered() {
    let fixture = ServerFixture::start(Rules { unterminated: Unterminated::Accept, ..full_logging() });
    let mut peer = fixture.connect();
    peer.send("a\trest");
    peer.shutdown();
    fixture.log.wait_for_refused(1);
    fixture.log.add_capacity(1);
    peer.expect("server got:a\t");
    fixture.log.wait_for_refused(1);
    fixture.log.add_capacity(1);
    peer.expect("server got:rest\t");
    peer.expect_close();
    assert_eq!(fixture.log.logged_texts(), ["a", "rest"]);
}

#[test]
fn messages_read_before_the_drain_are_logged_and_answered() {
    let fixture = ServerFixture::start(full_logging());
    let mut peer = fixture.connect();
    peer.send("a\tb\tc\thalf");
    fixture.log.wait_for_refused(1);
    block_on(fixture.server.drain());
    fixture.log.add_capacity(1);
    peer.expect("server got:a\t");
    fixture.log.wait_for_refused(1);
    assert_eq!(fixture.server.connection_count(), 1);
    fixture.log.add_capacity(2);
    peer.expect("server got:b\tserver got:c\t");
    peer.expect_close();
    drop(peer);
    fixture.wait_until_empty();
    assert_eq!(fixture.log.logged_texts(), ["a", "b", "c"]);
    assert_eq!(fixture.verdicts(), [Verdict::Shutdown]);
}

#[test]
fn a_dropped_server_does_not_wait_for_the_log() {
    let fixture = ServerFixture::start(full_logging());
    let mut peer = fixture.connect();
    peer.send("a\tb\thalf");
    fixture.log.wait_for_refused(1);
    let unlogged = fixture.server.unlogged_messages();
    wait_until("it is counted", || (unlogged.waiting(), unlogged.lost()) == (1, 0));
    drop(fixture.server);
    peer.expect_close();
    assert_eq!((unlogged.waiting(), unlogged.lost()), (0, 2));
    assert_eq!(fixture.log.lock().abandoned, 1);
    // The connection to wake is gone.
    fixture.log.add_capacity(1);
    assert!(fixture.log.logged_texts().is_empty());
}

/// A message on a seqpacket connection and a datagram, which wait for the log.
fn send_packets(fixture: &ServerFixture) -> PacketPeer {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("seqpacket:@echoed-log-messages-{}-{number}", std::process::id());
    let [seqpacket, datagrams] =
        [&*name, "udp:127.0.0.1:0"].map(|address| listen_on(&fixture.server, address, "packets", full_logging()));
    let peer = PacketPeer::connect(&seqpacket);
    peer.send("a");
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    sender.send_to(b"b", datagrams.strip_prefix("udp:").expect("it is UDP")).expect("it can be sent");
    fixture.log.wait_for_refused(2);
    wait_until("both are counted", || {
        let unlogged = fixture.server.unlogged_messages();
        (unlogged.waiting(), unlogged.lost()) == (2, 0)
    });
    peer
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, future).await }).expect("it ends")
}

#[test]
fn packets_that_wait_for_the_log_are_counted_and_lost_with_the_server() {
    let fixture = ServerFixture::start(full_logging());
    let _peer = send_packets(&fixture);
    let unlogged = fixture.server.unlogged_messages();
    drop(fixture.server);
    assert_eq!((unlogged.waiting(), unlogged.lost()), (0, 2));
    assert_eq!(fixture.log.lock().abandoned, 2);
}

#[test]
fn streams_are_drained_while_packets_wait_for_the_log() {
    let fixture = ServerFixture::start(full_logging());
    let packet_peer = send_packets(&fixture);
    let mut peer = fixture.connect();
    wait_until("it is accepted", || fixture.server.connection_count() == 2);
    let (log, unlogged) = (&fixture.log, fixture.server.unlogged_messages());
    thread::scope(|scope| {
        scope.spawn(|| {
            peer.expect_close();
            assert_eq!(unlogged.waiting(), 2);
            log.add_capacity(2);
        });
        block_on(fixture.server.drain());
    });
    packet_peer.expect("server got:a");
    assert_eq!(unlogged.lost(), 0);
}

#[test]
fn datagrams_that_wait_for_the_log_are_given_up_at_a_handover_and_no_worker_is_said_to_hang() {
    let fixture = ServerFixture::start(full_logging());
    let _packet_peer = send_packets(&fixture);
    let mut peer = fixture.connect();
    peer.send("c\t");
    fixture.log.wait_for_refused(3);
    let mut is_frozen = false;
    let detached = block_on(fixture.server.detach(|| {
        is_frozen = true;
        // They have had their time, and connections have not.
        assert_eq!(fixture.server.unlogged_messages().lost(), 1);
    }));
    assert!(is_frozen);
    assert_eq!((detached.connections.len(), detached.unresponsive), (2, 0));
    assert!(detached.connections.iter().all(|connection| connection.unlogged == 1));
    let unlogged = fixture.server.unlogged_messages();
    assert_eq!((unlogged.waiting(), unlogged.lost()), (0, 1));
    assert_eq!(fixture.log.lock().abandoned, 3);
}

#[test]
fn packets_that_the_log_accepts_soon_are_answered_at_a_handover() {
    let fixture = ServerFixture::start(full_logging());
    let packet_peer = send_packets(&fixture);
    let detached = block_on(async {
        // After it has begun.
        let accepts = async { fixture.log.add_capacity(2) };
        tokio::join!(biased; fixture.server.detach(|| ()), accepts).0
    });
    assert_eq!((detached.connections.len(), detached.unresponsive), (1, 0));
    assert_eq!(detached.connections[0].unlogged, 0);
    packet_peer.expect("server got:a");
    assert_eq!(fixture.server.unlogged_messages().lost(), 0);
}

#[test]
fn messages_of_a_peer_that_reset_its_connection_are_still_logged() {
    let fixture = ServerFixture::start(full_logging());
    let mut peer = fixture.connect();
    peer.send("a\tb\tc\t");
    peer.wait_until_read();
    fixture.log.wait_for_refused(1);
    peer.reset();
    // One at a time, so that replies are tried on a connection that is broken.
    for count in 1..=3 {
        fixture.log.add_capacity(1);
        fixture.log.wait_for_logged(count);
    }
    fixture.wait_until_empty();
    assert_eq!(fixture.log.logged_texts(), ["a", "b", "c"]);
    assert_eq!(fixture.verdicts(), [Verdict::PeerReset]);
}

#[test]
fn messages_that_wait_for_the_log_count_as_buffer_memory() {
    let fixture = ServerFixture::start_with(full_logging(), |settings| settings.limits.buffer_memory = 100_000);
    let mut first = fixture.connect();
    first.send("x".repeat(60_000) + "\t");
    fixture.log.wait_for_refused(1);
    let mut second = fixture.connect();
    second.send("x".repeat(60_000) + "\t");
    second.expect("server error:out of buffer memory\t");
    second.expect_close();
    fixture.log.add_capacity(1);
    first.expect(format!("server got:{}\t", "x".repeat(60_000)));
    assert_eq!(fixture.log.logged_texts().len(), 1);
}

#[test]
fn messages_that_are_lost_for_want_of_memory_are_counted_and_reported_at_once() {
    let fixture = ServerFixture::start_with(full_logging(), |settings| settings.limits.buffer_memory = 100_000);
    let mut first = fixture.connect();
    first.send("x".repeat(60_000) + "\t");
    fixture.log.wait_for_refused(1);
    let mut second = fixture.connect();
    second.send(format!("a\t{}\tb\thalf", "x".repeat(60_000)));
    second.expect("server error:out of buffer memory\t");
    let unlogged = fixture.server.unlogged_messages();
    let reported = || {
        let events = fixture.events.lock().expect("no thread panicked");
        let lost = |event: &Event| match event {
            Event::MessagesLost { id, listener, count, .. } => Some((*id, listener.to_string(), *count)),
            _ => None,
        };
        events.iter().filter_map(lost).collect::<Vec<_>>()
    };
    wait_until("it is reported", || !reported().is_empty());
    let lost = unlogged.lost();
    assert!((1..=3).contains(&lost), "{lost}");
    assert_eq!(fixture.log.lock().abandoned, 1);
    assert_eq!(reported(), [(2, "main".to_owned(), lost)]);
    second.expect_close();
}

#[test]
fn each_message_summary_is_one_event_on_one_line() {
    let fixture = ServerFixture::start(Rules { log_messages: LogMessages::Summary, ..Rules::default() });
    let mut peer = fixture.connect();
    peer.exchange("");
    peer.exchange("two\nlines");
    peer.exchange(&"x".repeat(1_000));
    peer.send("unfinished");
    peer.shutdown();
    peer.expect_close();
    fixture.wait_until_empty();
    let events = fixture.events.lock().expect("no thread panicked");
    let summary = |event: &Event| match event {
        Event::Message { connection_id: Some(1), listener, text, .. } if &**listener == "main" => Some(text.clone()),
        _ => None,
    };
    let texts: Vec<_> = events.iter().filter_map(summary).collect();
    let long = format!("\"{}\"… (744 bytes more)", "x".repeat(256));
    assert_eq!(texts, ["\"\"", r#""two\nlines""#, &long]);
    assert!(fixture.log.logged_texts().is_empty(), "a summary is for the log of events only");
}
