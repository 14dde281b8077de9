//! What reaches the journal, and how: entries with fields, the rate limit, the lossless log.

mod lossless;
mod outage;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Command;

use common::fake_journald::{Entry, FakeJournald};
use common::{Daemon, Peer};
use rustix::process::Signal;

/// All fields that there may be.
const FIELDS: [&str; 15] = [
    "BYTES_IN",
    "BYTES_OUT",
    "CODE_FILE",
    "CODE_LINE",
    "CONNECTION",
    "LISTENER",
    "MESSAGE",
    "MESSAGES",
    "MESSAGE_ID",
    "PEER",
    "PRIORITY",
    "REASON",
    "SYSLOG_IDENTIFIER",
    "TARGET",
    "VERDICT",
];

/// The subject of an entry in the catalog, as it is written there.
fn subject(entry: &Entry) -> String {
    let catalog = include_str!("../../systemd/catalog/echoed.catalog");
    let id = format!("-- {}\nSubject: ", entry.text("MESSAGE_ID"));
    let (_, found) = catalog.split_once(&id).unwrap_or_else(|| panic!("no explanation of {entry:?}"));
    found.lines().next().expect("a subject").to_owned()
}

fn has_subject(text: &str) -> impl Fn(&Entry) -> bool {
    move |entry| subject(entry).contains(text)
}

/// What can be said beforehand of an entry: all its fields but those that say where in the source it was made.
fn stable_fields(entry: &Entry) -> BTreeMap<&str, String> {
    for name in entry.fields.keys() {
        assert!(FIELDS.contains(&&**name), "{name} is none of ours");
    }
    let unknown = ["CODE_FILE", "CODE_LINE", "TARGET", "MESSAGE_ID", "MESSAGE"];
    let names = entry.fields.keys().map(|name| &**name).filter(|name| !unknown.contains(name));
    names.map(|name| (name, entry.text(name))).collect()
}

fn spawn(journal: &FakeJournald, configuration: &str, arguments: &[&str]) -> Daemon {
    Daemon::spawn_with(&mut journal.command(), configuration, arguments)
}

/// Ends a daemon, and returns all that it had to say.
fn stop_and_collect(mut daemon: Daemon, journal: FakeJournald) -> Vec<Entry> {
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    assert_eq!(daemon.log(), [""; 0], "something was written to stderr");
    journal.stop_and_collect()
}

#[test]
fn a_connection_is_logged_as_two_entries_with_all_their_fields() {
    let Some(journal) = FakeJournald::start() else { return };
    let daemon = spawn(&journal, "", &["--listen", "some.name=127.0.0.1:0", "--log-level", "debug"]);
    let mut peer = Peer::connect(&journal.addresses(1)[0]);
    let local = rustix::net::getsockname(peer.fd()).unwrap();
    let address = std::net::SocketAddr::try_from(local).unwrap().to_string();
    peer.exchange("aaaa");
    peer.exchange("b");
    drop(peer);
    let closed = journal.expect("the end", has_subject("@PEER@ ended its connection"));
    let entries = stop_and_collect(daemon, journal);
    let opened = entries.iter().find(|entry| has_subject("Connection @CONNECTION@ from @PEER@")(entry)).unwrap();
    let first = [("CONNECTION", "1"), ("LISTENER", "some.name"), ("PEER", &address), ("PRIORITY", "7")];
    let first = first.into_iter().chain([("SYSLOG_IDENTIFIER", "echoed")]);
    let first: BTreeMap<_, _> = first.map(|(name, value)| (name, value.to_owned())).collect();
    assert_eq!(stable_fields(opened), first);
    assert_eq!(opened.text("MESSAGE"), format!("connection 1 on some.name from {address}"));
    let more = [("VERDICT", "peer-closed"), ("BYTES_IN", "7"), ("BYTES_OUT", "29"), ("MESSAGES", "2")];
    let mut second = first;
    second.extend(more.map(|(name, value)| (name, value.to_owned())));
    assert_eq!(stable_fields(&closed), second);
}

#[test]
fn a_bad_proxy_header_is_logged_with_its_reason() {
    let Some(journal) = FakeJournald::start() else { return };
    let configuration = "[defaults]\nproxy_protocol = \"required\"\ndeadlines.read = \"300ms\"\n";
    let daemon = spawn(&journal, configuration, &["--listen", "127.0.0.1:0"]);
    let address = &journal.addresses(1)[0];
    for (number, (reason, sent)) in (1..).zip([
        ("missing", &b"GET / HTTP/1.1\r\n\r\n"[..]),
        ("malformed", b"PROXY TCP4 nobody\r\n"),
        ("too-long", &b"PROXY ".repeat(20)),
        ("timeout", b"PROXY TCP4 192.0.2.1 "),
    ]) {
        let mut peer = Peer::connect(address);
        peer.send(sent);
        peer.expect_close();
        drop(peer);
        let entry = journal.expect(reason, |entry| {
            has_subject("@PEER@ sent no valid PROXY header")(entry) && entry.text("CONNECTION") == format!("{number}")
        });
        let fields = stable_fields(&entry);
        assert_eq!((&*fields["VERDICT"], &*fields["REASON"]), ("bad-proxy-header", reason));
        assert_eq!(fields["BYTES_IN"], sent.len().to_string(), "{reason}");
    }
    stop_and_collect(daemon, journal);
}

#[test]
fn each_entry_has_the_priority_of_its_level_and_an_explanation_in_the_catalog() {
    let Some(journal) = FakeJournald::start() else { return };
    let configuration = "[limits]\nconnections = 1\n[defaults]\nmax_message = '1KiB'\n";
    let mut command = journal.command();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = listener.try_clone().unwrap();
    command.env("LISTEN_FDNAMES", "echo").stdin(OwnedFd::from(listener));
    let mut daemon = Daemon::spawn_with_stdio(&mut command, configuration, &["--log-level", "debug"]);
    let mut peer = Peer::connect(&journal.addresses(1)[0]);
    peer.send("x".repeat(2000));
    peer.expect("server error:message exceeds 1024 bytes\t");
    peer.expect_close();
    // Breaks the listener.
    rustix::net::shutdown(&ours, rustix::net::Shutdown::Both).unwrap();
    assert_eq!(daemon.wait().code(), Some(71));
    let entries = journal.stop_and_collect();
    for (subject, priority) in [
        ("Serving on a listener", "6"),
        ("Connection @CONNECTION@ from @PEER@", "7"),
        ("The limit on connections is reached", "4"),
        ("@PEER@ sent a message that is too long", "6"),
        ("Listener @LISTENER@ has failed", "3"),
        ("The daemon is stopping", "6"),
        ("The daemon has stopped", "6"),
    ] {
        let entry = entries.iter().find(|entry| has_subject(subject)(entry));
        let entry = entry.unwrap_or_else(|| panic!("no entry \"{subject}\": {entries:#?}"));
        assert_eq!(entry.text("PRIORITY"), priority, "{subject}");
        assert_eq!(entry.text("SYSLOG_IDENTIFIER"), "echoed");
        stable_fields(entry);
    }
}

#[test]
fn messages_of_one_kind_are_rate_limited_without_hiding_others() {
    let Some(journal) = FakeJournald::start() else { return };
    let configuration = "[defaults]\nmax_message = '1KiB'\nerror_replies = false\n";
    let daemon = spawn(&journal, configuration, &["--listen", "127.0.0.1:0"]);
    let address = &journal.addresses(1)[0];
    for _ in 0..250 {
        let mut peer = Peer::connect(address);
        peer.send("x".repeat(1025));
        peer.read_to_end();
    }
    let entries = stop_and_collect(daemon, journal);
    let count = |subject: &str| entries.iter().filter(|entry| has_subject(subject)(entry)).count();
    let suppressed: Vec<_> = entries.iter().filter(|entry| has_subject("of one kind were suppressed")(entry)).collect();
    // On a machine so slow that this took several intervals, more of them were logged. The sum tells.
    let numbers = suppressed.iter().map(|entry| entry.text("MESSAGE"));
    let numbers = numbers.filter(|text| text.contains(" too-long message"));
    let sum: usize = numbers.map(|text| text.split(' ').nth(1).unwrap().parse::<usize>().unwrap()).sum();
    let logged = count("sent a message that is too long");
    assert_eq!(logged + sum, 250);
    assert!(logged >= 100 && sum > 0, "{logged} logged, {sum} suppressed");
    assert!(suppressed.iter().all(|entry| entry.text("PRIORITY") == "6"));
    assert_eq!(count("The daemon has stopped"), 1);
}

#[test]
fn no_message_is_suppressed_at_level_debug() {
    let Some(journal) = FakeJournald::start() else { return };
    let daemon = spawn(&journal, "", &["--listen", "DIR/socket", "--log-level", "debug"]);
    let address = &journal.addresses(1)[0];
    for number in 1..=250 {
        drop(Peer::connect(address));
        // One after the other, so that the queue is not the limit.
        journal.expect_times("the end", number, |entry| entry.text("VERDICT") == "peer-closed");
    }
    assert!(!stop_and_collect(daemon, journal).iter().any(has_subject("suppressed")));
}

#[test]
fn a_listener_name_cannot_inject_journal_fields_or_entries() {
    let Some(journal) = FakeJournald::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let name = "evil\nPRIORITY=0\nMESSAGE=\u{1b}[2J";
    let mut command = journal.command();
    command.env("LISTEN_FDNAMES", name).stdin(OwnedFd::from(listener));
    let daemon = Daemon::spawn_with_stdio(&mut command, "", &["--log-level", "debug"]);
    journal.addresses(1);
    drop(Peer::connect(&format!("unix:{}", path.display())));
    journal.expect("the end", |entry| entry.text("VERDICT") == "peer-closed");
    let mut about = 0;
    for entry in stop_and_collect(daemon, journal) {
        let priority = stable_fields(&entry)["PRIORITY"].clone();
        assert!(["6", "7"].contains(&&*priority), "{entry:?}");
        assert!(!entry.text("MESSAGE").contains('\u{1b}') && !entry.text("LISTENER").contains(['\n', '\u{1b}']));
        about += usize::from(entry.text("LISTENER") == "evil\\nPRIORITY=0\\nMESSAGE=\\x1b[2J");
    }
    // No section, listening, opened, closed.
    assert_eq!(about, 4);
}

#[test]
fn a_listener_name_cannot_inject_lines_on_stderr() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let names = "evil\nwarn gotcha\u{1b}[2J";
    let mut command = common::service_manager::activated_command("3<&0", vec![OwnedFd::from(listener)], names);
    let daemon = Daemon::spawn_with_stdio(&mut command, "", &["--log-level", "debug"]);
    daemon.wait_for_log("listening on");
    drop(Peer::connect(&format!("unix:{}", path.display())));
    daemon.wait_for_log("peer-closed");
    for line in daemon.stop() {
        assert!(line.starts_with("info: ") || line.starts_with("debug: ") || line.starts_with("  "), "{line:?}");
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
}

#[test]
fn stderr_gets_plain_lines_if_journal_stream_does_not_match_it() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    command.env("JOURNAL_STREAM", "1:1");
    let daemon = Daemon::spawn_with(&mut command, "", &["--listen", "127.0.0.1:0"]);
    let line = daemon.wait_for_log("listening on");
    assert!(line.starts_with("info: listening on tcp:127.0.0.1:"), "{line}");
    daemon.stop();
}

#[test]
fn lines_with_priorities_go_to_stderr_if_the_journal_is_unreachable() {
    let Some(journal) = FakeJournald::start() else { return };
    let daemon = Daemon::spawn_with(&mut journal.command_without_journal(), "", &["--listen", "127.0.0.1:0"]);
    daemon.wait_for_log("<6>listening on");
    let log = daemon.stop();
    assert!(log[0].starts_with("<4>failed to reach the journal at /run/systemd/journal/socket: "), "{log:#?}");
    assert!(log.iter().all(|line| line.starts_with('<')), "{log:#?}");
}

#[test]
fn a_full_log_queue_delays_no_client_and_the_lost_entries_are_counted() {
    let Some(journal) = FakeJournald::start() else { return };
    let daemon = spawn(&journal, "", &["--listen", "DIR/socket", "--log-level", "debug"]);
    let address = &journal.addresses(1)[0];
    journal.suspend();
    // Two entries each, far more than wait in the queue.
    for _ in 0..1500 {
        let mut peer = Peer::connect(address);
        peer.exchange("a");
    }
    journal.resume();
    let lost = journal.expect("lost", has_subject("Entries of the log were lost"));
    assert_eq!(lost.text("PRIORITY"), "4");
    let entries = stop_and_collect(daemon, journal);
    let number = |entry: &Entry| entry.text("MESSAGE").split(' ').nth(1).unwrap().parse::<usize>().unwrap();
    let lost: usize = entries.iter().filter(|entry| has_subject("were lost")(entry)).map(number).sum();
    let logged = entries.iter().filter(|entry| !entry.text("CONNECTION").is_empty()).count();
    assert_eq!(lost + logged, 3000);
    assert!(lost > 1500, "{lost}");
}

/// Writes to a peer's connection from another thread than the one that reads from it.
fn write_to(peer: &Peer, bytes: &[u8]) {
    peer.stream().write_all(bytes).expect("it can be sent");
}
