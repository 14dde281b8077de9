//! Other framings and replies: the classic small services, as their clients see them.

mod clients;

use std::time::Duration;

use common::{Daemon, Peer, now};
use rustix::process::Signal;

pub(crate) const TCP_AND_UNIX: &[&str] = &["127.0.0.1:0", "DIR/socket"];

pub(crate) const RAW_ECHO: &str = "[defaults]\nframing = 'raw'\n";

pub(crate) const DISCARD: &str = "[defaults]\nframing = 'raw'\nreply = 'none'\n";

pub(crate) const LINE_SINK: &str = r#"
    [defaults]
    delimiter = "\n"
    reply = "none"
    unterminated = "accept"
    log_messages = "full"
    deadlines.idle = "off"
"#;

/// After each greeting it delays the next message by a second.
pub(crate) const GREETER: &str = r#"
    [defaults]
    framing = "raw"
    reply = "fixed"
    fixed_reply = "Hello, client!\n"
    reply_delay = "1s"
"#;

pub(crate) const GREETING: &str = "Hello, client!\n";

/// Starts a daemon on these addresses, which logs everything.
pub(crate) fn serve(configuration: &str, addresses: &[&str]) -> Daemon {
    let listen = addresses.iter().flat_map(|address| ["--listen", address]);
    Daemon::start_with(configuration, &["--log-level", "debug"].into_iter().chain(listen).collect::<Vec<_>>())
}

/// Starts a daemon on TCP and on a Unix socket, and runs a client over each.
fn run_client(configuration: &str, interact: impl Fn(Peer)) -> Daemon {
    let daemon = serve(configuration, TCP_AND_UNIX);
    daemon.addresses().iter().for_each(|address| interact(Peer::connect(address)));
    daemon
}

/// What the sink has logged, in its order.
pub(crate) fn logged_messages(log: &[String]) -> Vec<&str> {
    let message = |line: &'_ String| line.starts_with("info: message on ");
    log.iter().filter(|line| message(line)).filter_map(|line| line.split_once(": \"")?.1.strip_suffix('"')).collect()
}

#[test]
fn a_raw_echo_returns_every_byte() {
    let every: Vec<u8> = (0..=u8::MAX).cycle().take(100_000).collect();
    let daemon = run_client(RAW_ECHO, |mut peer| {
        for bytes in [&b"a"[..], b"no end, no TAB", b"\t\t\0\xff\r\n", &every] {
            peer.send(bytes);
            peer.expect(bytes);
        }
        peer.send("and the last");
        peer.shutdown();
        peer.expect("and the last");
        peer.expect_close();
    });
    daemon.stop();
}

#[test]
fn a_raw_echo_has_a_prefix_if_one_is_set() {
    let daemon = serve(
        "[defaults]\nprefix = '> '\n[listener.raw]\nframing = 'raw'\n[listener.other]\nprefix = 'other '\n",
        &["raw=127.0.0.1:0"],
    );
    let mut peer = daemon.connect();
    peer.send("a");
    peer.expect("> a");
    daemon.stop();
}

#[test]
fn a_raw_echo_closes_without_a_final_reply() {
    let daemon = run_client("[defaults]\nframing = 'raw'\ndeadlines.idle = '100ms'\n", |mut peer| {
        peer.send("half a message?");
        peer.expect("half a message?");
        peer.expect_close();
    });
    daemon.wait_for_log_times("ended: idle-deadline; 1 messages, 15 bytes in, 15 bytes out", 2);
    daemon.stop();
}

#[test]
fn discarded_bytes_are_read_and_counted_and_never_answered() {
    let daemon = run_client(DISCARD, |mut peer| {
        peer.send("x".repeat(1_000_000));
        peer.shutdown();
        peer.expect_close();
    });
    let ends = daemon.wait_for_log_times("ended: peer-closed;", 2);
    assert!(ends.iter().all(|line| line.contains(", 1000000 bytes in, 0 bytes out")), "{ends:#?}");
    daemon.stop();
}

#[test]
fn a_line_sink_logs_every_line_and_answers_none() {
    let daemon = run_client(LINE_SINK, |mut peer| {
        for piece in ["one\ntw", "o\n\nthr", "ee\nwithout an end"] {
            peer.send(piece);
        }
        peer.shutdown();
        peer.expect_close();
    });
    daemon.wait_for_log_times("without an end", 2);
    let log = daemon.stop();
    assert_eq!(logged_messages(&log), ["one", "two", "", "three", "without an end"].repeat(2), "{log:#?}");
}

#[test]
fn a_greeter_delays_its_replies_on_each_connection() {
    let daemon = serve(GREETER, TCP_AND_UNIX);
    for address in daemon.addresses() {
        let (mut peer, mut other) = (Peer::connect(&address), Peer::connect(&address));
        let start = now();
        peer.send("a");
        peer.expect(GREETING);
        // It comes during the delay, in two pieces that become one message.
        peer.send("b");
        peer.send("c");
        // No other connection has to wait for that.
        other.send("d");
        other.expect(GREETING);
        peer.expect(GREETING);
        assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
        peer.expect_silence(Duration::from_millis(1_500));
        // After a delay in which nothing came, it answers at once again.
        peer.send("e");
        peer.expect(GREETING);
    }
    daemon.stop();
}

#[test]
fn a_client_that_half_closes_during_the_reply_delay_gets_all_its_replies() {
    let daemon = run_client(GREETER, |mut peer| {
        let start = now();
        peer.send("a".repeat(1_025));
        peer.shutdown();
        peer.expect(GREETING.repeat(3));
        peer.expect_close();
        assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    });
    daemon.wait_for_log_times("ended: peer-closed; 3 messages, 1025 bytes in, 45 bytes out", 2);
    daemon.stop();
}

#[test]
fn a_stopping_daemon_does_not_wait_for_reply_delays() {
    let mut daemon = serve(&GREETER.replace("1s", "1h"), TCP_AND_UNIX);
    let mut peers: Vec<_> = daemon.addresses().iter().map(|address| Peer::connect(address)).collect();
    for peer in &mut peers {
        peer.send("a".repeat(513));
        peer.expect(GREETING);
    }
    daemon.signal(Signal::INT);
    for peer in &mut peers {
        // What was read is answered.
        peer.expect(GREETING);
        peer.expect_close();
    }
    assert!(daemon.wait().success());
}

#[test]
fn every_line_gets_the_same_reply() {
    let daemon = run_client("[defaults]\ndelimiter = \"\\n\"\nreply = 'fixed'\nfixed_reply = 'OK'\n", |mut peer| {
        peer.send("HELO\n\nQU");
        peer.expect("OK\nOK\n");
        peer.send("IT\n");
        peer.expect("OK\n");
    });
    daemon.stop();
}

#[test]
fn a_client_that_does_not_read_its_replies_does_not_affect_others() {
    let configuration =
        "[defaults]\nframing = 'raw'\nreply = 'fixed'\nfixed_reply = 'a rather long answer to a byte'\n";
    let daemon = serve(configuration, &["127.0.0.1:0"]);
    let mut flood = daemon.connect();
    flood.send_what_fits(&[b'x'; 1 << 20]);
    let mut peer = daemon.connect();
    peer.send("a");
    peer.expect("a rather long answer to a byte");
    daemon.stop();
}
