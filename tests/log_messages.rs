//! Messages for the log: what is to be logged whole is, every message once, in order, before it is answered; a log that
//! has no room makes peers wait. The server as a library, with a log of the test's own.

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use common::{CEILING, Peer, wait_until};
use echoed::address::Address;
use echoed::config::{Level, ListenerSettings, Settings};
use echoed::protocol::rules::{Deadlines, LogMessages, TimeSpan, Unterminated};
use echoed::protocol::{Rules, Verdict};
use echoed::server::event::{Event, Message, MessageLog};
use echoed::server::{Server, socket};

/// A log that takes as many messages as the test lets it.
#[derive(Default)]
struct SlowLog {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    room: usize,
    taken: Vec<Taken>,
    /// Who was refused since there was room.
    waiting: Vec<Waker>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Taken {
    connection: u64,
    listener: String,
    bytes: Vec<u8>,
}

impl MessageLog for SlowLog {
    fn try_append(&self, message: Message<'_>, waker: &Waker) -> bool {
        let mut state = self.lock();
        let takes = state.room > 0;
        if takes {
            state.room -= 1;
            let Message { connection_id, listener, bytes, .. } = message;
            state.taken.push(Taken {
                connection: connection_id.expect("it is a stream"),
                listener: listener.to_string(),
                bytes: bytes.to_vec(),
            });
        } else {
            state.waiting.push(waker.clone());
        }
        self.changed.notify_all();
        takes
    }
}

impl SlowLog {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }

    fn takes(&self, count: usize) {
        let woken = {
            let mut state = self.lock();
            state.room = state.room.saturating_add(count);
            std::mem::take(&mut state.waiting)
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// Waits until it is so.
    fn wait(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let (state, waited) =
            self.changed.wait_timeout_while(self.lock(), CEILING, |state| !is_so(state)).expect("no thread panicked");
        assert!(!waited.timed_out(), "not so after {CEILING:?}: {what}; taken: {}", state.taken.len());
    }

    fn wait_for_refused(&self, count: usize) {
        self.wait(&format!("{count} refused"), |state| state.waiting.len() >= count);
    }

    fn wait_for_taken(&self, count: usize) {
        self.wait(&format!("{count} taken"), |state| state.taken.len() >= count);
    }

    /// What it has taken, as text.
    fn taken(&self) -> Vec<String> {
        self.lock().taken.iter().map(|taken| String::from_utf8_lossy(&taken.bytes).into_owned()).collect()
    }
}

/// A server with one listener, and what it told.
struct Served {
    server: Server,
    address: String,
    log: Arc<SlowLog>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Served {
    fn start(rules: Rules) -> Self {
        Self::start_with(rules, |_| {})
    }

    fn start_with(rules: Rules, change: impl Fn(&mut Settings)) -> Self {
        let mut settings = Settings::default();
        settings.service.workers = 2;
        change(&mut settings);
        let (log, events) = (Arc::<SlowLog>::default(), Arc::<Mutex<Vec<Event>>>::default());
        let told = Arc::clone(&events);
        let server = Server::start(
            &settings,
            Arc::new(move |event| told.lock().expect("no thread panicked").push(event)),
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
    let any: Address = "tcp:127.0.0.1:0".parse().expect("an address");
    let bound = socket::listen(&any).expect("a port is free").remove(0);
    let address = socket::bound_to(&bound.socket);
    let listener = ListenerSettings { rules: Arc::new(rules), ..Settings::default().defaults };
    server.listen(bound.socket, name, &listener).expect("it can be served");
    address
}

fn whole() -> Rules {
    Rules { log_messages: LogMessages::Full, ..Rules::default() }
}

#[test]
fn a_peer_waits_until_its_message_is_logged_and_others_do_not_wait_with_it() {
    let served = Served::start(whole());
    let others = listen(&served.server, "others", Rules::default());
    let mut peers: Vec<_> = (0..4).map(|_| served.connect()).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.send(format!("message {number}\t"));
    }
    served.log.wait_for_refused(4);
    for _ in 0..4 {
        Peer::connect(&others).exchange("not logged");
    }
    for peer in &mut peers {
        peer.expect_silence(Duration::from_millis(20));
    }
    assert!(served.log.taken().is_empty());
    let asked = served.log.lock().waiting.len();
    assert!(asked < 50, "they do not wait to be woken, but have asked {asked} times");
    served.log.takes(4);
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.expect(format!("server got:message {number}\t"));
    }
    let mut taken = served.log.taken();
    taken.sort_unstable();
    assert_eq!(taken, ["message 0", "message 1", "message 2", "message 3"]);
}

#[test]
fn a_message_is_logged_with_its_connection_and_its_listener() {
    let served = Served::start(whole());
    let second = listen(&served.server, "second", whole());
    served.log.takes(2);
    served.connect().exchange("a");
    Peer::connect(&second).exchange("b");
    let taken = served.log.lock().taken.clone();
    let expected = [(1, "main", "a"), (2, "second", "b")];
    let expected = expected.map(|(connection, listener, text)| Taken {
        connection,
        listener: listener.to_owned(),
        bytes: text.as_bytes().to_vec(),
    });
    assert_eq!(taken, expected);
}

#[test]
fn many_peers_and_a_log_with_little_room_lose_nothing_and_keep_the_order() {
    const PEERS: usize = 20;
    const MESSAGES: usize = 300;
    let served = Served::start(whole());
    // Short ones, some in two pieces, and some of many reads.
    let text = |peer: usize, number: usize| {
        let fill = if number % 100 == 99 { 60_000 } else { number % 7 };
        format!("{peer}:{number}:{}", "x".repeat(fill))
    };
    thread::scope(|scope| {
        for number in 0..PEERS {
            let mut peer = served.connect();
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
                let taken = served.log.lock().taken.len();
                if taken == PEERS * MESSAGES {
                    break;
                }
                served.log.takes(count);
                // Until somebody is refused, or has nothing to say.
                if count > 0 {
                    served.log.wait_for_taken((taken + 1).min(PEERS * MESSAGES));
                }
            }
        });
    });
    served.wait_until_empty();
    let mut of_peers: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    for taken in served.log.lock().taken.drain(..) {
        of_peers.entry(taken.connection).or_default().push(taken.bytes);
    }
    let mut expected: Vec<Vec<Vec<u8>>> =
        (0..PEERS).map(|peer| (0..MESSAGES).map(|number| text(peer, number).into_bytes()).collect()).collect();
    let mut of_peers: Vec<_> = of_peers.into_values().collect();
    expected.sort_unstable();
    of_peers.sort_unstable();
    assert!(of_peers == expected, "messages were lost, doubled or exchanged");
    assert_eq!(served.server.counts().totals.messages, (PEERS * MESSAGES) as u64);
}

#[test]
fn no_deadline_of_the_peer_runs_while_the_log_has_no_room() {
    let short = || Some(TimeSpan::new(Duration::from_millis(50), "50ms"));
    let deadlines = Deadlines { idle: None, read: short(), write: short(), lifetime: None };
    let served = Served::start(Rules { deadlines, ..whole() });
    let mut peer = served.connect();
    peer.send("a\tb\thalf");
    served.log.wait_for_refused(1);
    peer.expect_silence(Duration::from_millis(300));
    served.log.takes(1);
    peer.expect("server got:a\t");
    peer.expect_silence(Duration::from_millis(300));
    served.log.takes(1);
    peer.expect("server got:b\tserver error:message not finished within 50ms\t");
    peer.expect_close();
}

#[test]
fn an_accepted_rest_is_logged_and_answered_like_a_message() {
    let served = Served::start(Rules { unterminated: Unterminated::Accept, ..whole() });
    let mut peer = served.connect();
    peer.send("a\trest");
    peer.shutdown();
    served.log.wait_for_refused(1);
    served.log.takes(1);
    peer.expect("server got:a\t");
    served.log.wait_for_refused(1);
    served.log.takes(1);
    peer.expect("server got:rest\t");
    peer.expect_close();
    assert_eq!(served.log.taken(), ["a", "rest"]);
}

#[test]
fn what_was_read_before_we_drain_is_logged_and_answered() {
    let served = Served::start(whole());
    let mut peer = served.connect();
    peer.send("a\tb\tc\thalf");
    served.log.wait_for_refused(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(served.server.drain());
    served.log.takes(1);
    peer.expect("server got:a\t");
    served.log.wait_for_refused(1);
    assert_eq!(served.server.connection_count(), 1);
    served.log.takes(2);
    peer.expect("server got:b\tserver got:c\t");
    peer.expect_close();
    drop(peer);
    served.wait_until_empty();
    assert_eq!(served.log.taken(), ["a", "b", "c"]);
    assert_eq!(served.verdicts(), [Verdict::Shutdown]);
}

#[test]
fn a_server_that_ends_does_not_wait_for_the_log() {
    let served = Served::start(whole());
    let mut peer = served.connect();
    peer.send("a\t");
    served.log.wait_for_refused(1);
    drop(served.server);
    peer.expect_close();
    // Whom to wake is gone.
    served.log.takes(1);
    assert!(served.log.taken().is_empty());
}

#[test]
fn messages_of_a_peer_that_is_gone_are_logged_all_the_same() {
    let served = Served::start(whole());
    let mut peer = served.connect();
    peer.send("a\tb\tc\t");
    peer.wait_until_read();
    served.log.wait_for_refused(1);
    peer.reset();
    // One at a time, so that replies are tried on a connection that is broken.
    for count in 1..=3 {
        served.log.takes(1);
        served.log.wait_for_taken(count);
    }
    served.wait_until_empty();
    assert_eq!(served.log.taken(), ["a", "b", "c"]);
    assert_eq!(served.verdicts(), [Verdict::PeerReset]);
}

#[test]
fn what_waits_for_the_log_counts_as_buffer_memory() {
    let served = Served::start_with(whole(), |settings| settings.limits.buffer_memory = 100_000);
    let mut first = served.connect();
    first.send("x".repeat(60_000) + "\t");
    served.log.wait_for_refused(1);
    let mut second = served.connect();
    second.send("x".repeat(60_000) + "\t");
    second.expect("server error:out of buffer memory\t");
    second.expect_close();
    served.log.takes(1);
    first.expect(format!("server got:{}\t", "x".repeat(60_000)));
    assert_eq!(served.log.taken().len(), 1);
}

#[test]
fn a_summary_of_each_message_is_told_on_one_line() {
    let served = Served::start(Rules { log_messages: LogMessages::Summary, ..Rules::default() });
    let mut peer = served.connect();
    peer.exchange("");
    peer.exchange("two\nlines");
    peer.exchange(&"x".repeat(1_000));
    peer.send("unfinished");
    peer.shutdown();
    peer.expect_close();
    served.wait_until_empty();
    let events = served.events.lock().expect("no thread panicked");
    let told: Vec<_> = events.iter().filter(|event| matches!(event, Event::Message { .. })).collect();
    let told_text: Vec<_> = told.iter().map(|event| event.to_string()).collect();
    assert_eq!(told_text.len(), 3, "{told_text:?}");
    for (text, end) in
        told_text.iter().zip(["\"\"", r#""two\nlines""#, &format!("\"{}\"… (744 bytes more)", "x".repeat(256))])
    {
        assert!(text.starts_with("message on connection 1 on main from 127.0.0.1:"), "{text}");
        assert!(text.ends_with(&format!(": {end}")), "{text}");
    }
    assert!(told.iter().all(|event| event.level() == Level::Info));
    assert!(served.log.taken().is_empty(), "a summary is for the log of events only");
}
