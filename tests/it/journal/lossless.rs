//! The lossless log, `log_messages = "full"`; and summaries of messages.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::mem;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::io::ioctl_fionread as fionread;
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe_with};
use rustix::process::{Pid, Signal, kill_process};

use super::{has_subject, spawn, stable_fields, stop_and_collect, write_to};
use common::fake_journald::{Entry, FakeJournald};
use common::{Daemon, Peer, TEST_TIMEOUT, wait_until};

const FULL: &str = "
    [defaults]
    log_messages = 'full'
    max_message = '2MiB'
    [defaults.deadlines]
    read = '5min'
    write = '5min'
";

fn is_message(entry: &Entry) -> bool {
    has_subject("A message of @PEER@")(entry)
}

#[test]
fn a_message_is_one_entry_whatever_bytes_it_contains() {
    let Some(journal) = FakeJournald::start() else { return };
    let daemon = spawn(&journal, FULL, &["--listen", "sink=127.0.0.1:0"]);
    let mut peer = Peer::connect(&journal.addresses(1)[0]);
    let hostile = b"one\nPRIORITY=0\nMESSAGE=two\nMESSAGE_ID\n\x01\0\0\0\0\0\0\0x\n\xff\0\x1b";
    peer.send([hostile, &b"\t\t"[..]].concat());
    peer.expect([b"server got:", &hostile[..], b"\tserver got:\t"].concat());
    let messages = journal.expect_times("two messages", 2, is_message);
    assert_eq!(messages[0].fields["MESSAGE"], hostile);
    assert_eq!(messages[1].fields["MESSAGE"], b"");
    let fields = stable_fields(&messages[0]);
    let expected = [("CONNECTION", "1"), ("LISTENER", "sink"), ("PRIORITY", "6"), ("SYSLOG_IDENTIFIER", "echoed")];
    for (name, value) in expected {
        assert_eq!(fields[name], value, "{name}");
    }
    assert!(fields["PEER"].starts_with("127.0.0.1:"));
    assert_eq!(fields.len(), expected.len() + 1);
    drop(peer);
    stop_and_collect(daemon, journal);
}

#[test]
fn a_message_of_one_mebibyte_is_logged_completely() {
    let Some(journal) = FakeJournald::start() else { return };
    let daemon = spawn(&journal, FULL, &["--listen", "127.0.0.1:0"]);
    let address = &journal.addresses(1)[0];
    let descriptors = daemon.descriptor_count();
    let mut peer = Peer::connect(address);
    let mebibyte = 1024 * 1024;
    let bytes = (0..mebibyte).map(|at: u32| at.wrapping_mul(0x9E37_79B9).to_le_bytes()[3]);
    let message: Vec<u8> = bytes.map(|byte| if byte == b'\t' { b' ' } else { byte }).collect();
    thread::scope(|scope| {
        let sender = &peer;
        let sent = [&message[..], b"\t"].concat();
        scope.spawn(move || write_to(sender, &sent));
    });
    peer.expect([b"server got:", &message[..], b"\t"].concat());
    let entry = journal.expect("the message", is_message);
    assert!(entry.fields["MESSAGE"] == message, "{} bytes, or others", entry.fields["MESSAGE"].len());
    assert!(entry.in_memory);
    peer.exchange("small");
    let entries = journal.expect_times("both", 2, is_message);
    assert!(!entries[1].in_memory);
    // The connection is one, and the first message needed a socket, which is kept; its memory is not.
    assert!(daemon.descriptor_count() <= descriptors + 2);
    drop(peer);
    stop_and_collect(daemon, journal);
}

/// The replies on a connection, as they come.
struct Replies {
    reader: BufReader<UnixStream>,
    /// The beginning of the next.
    partial: Vec<u8>,
}

impl Replies {
    fn new(peer: &Peer) -> Self {
        Self { reader: BufReader::new(peer.stream()), partial: Vec::new() }
    }

    /// The next reply, if it comes in time.
    fn next_within(&mut self, time: Duration) -> Option<String> {
        self.reader.get_ref().set_read_timeout(Some(time)).expect("the timeout can be set");
        match self.reader.read_until(b'\t', &mut self.partial) {
            Ok(_) => {
                assert_eq!(self.partial.last(), Some(&b'\t'), "the stream ended");
                Some(String::from_utf8(mem::take(&mut self.partial)).expect("it is text"))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// How many connections send at once, and how many messages each of them.
const CONNECTIONS: usize = 4;
const MESSAGES: usize = 2500;

#[test]
fn no_message_is_lost_and_clients_wait_while_the_journal_does_not_read() {
    let Some(journal) = FakeJournald::start() else { return };
    let daemon = spawn(&journal, FULL, &["--listen", "127.0.0.1:0"]);
    let address = journal.addresses(1).remove(0);
    journal.suspend();
    let peers: Vec<_> = (0..CONNECTIONS).map(|_| Peer::connect(&address)).collect();
    let mut replies: Vec<_> = peers.iter().map(Replies::new).collect();
    let mut early = 0;
    thread::scope(|scope| {
        for peer in &peers {
            scope.spawn(move || {
                let messages: String = (0..MESSAGES).map(|number| format!("message {number}\t")).collect();
                write_to(peer, messages.as_bytes());
            });
        }
        // Every message is logged before it is answered, so only so many can be answered as the socket holds.
        let mut answered = [0; CONNECTIONS];
        for (replies, answered) in replies.iter_mut().zip(&mut answered) {
            while replies.next_within(Duration::from_millis(500)).is_some() {
                *answered += 1;
            }
        }
        early = answered.iter().sum();
        for _ in 0..3 {
            journal.resume();
            let count = journal.count();
            journal.expect_times("some more", count + 500, |_| true);
            journal.suspend();
        }
        journal.resume();
        for (replies, answered) in replies.iter_mut().zip(answered) {
            for number in answered..MESSAGES {
                assert_eq!(replies.next_within(TEST_TIMEOUT), Some(format!("server got:message {number}\t")));
            }
        }
    });
    // What the socket holds (net.unix.max_dgram_qlen=10, 512 under systemd).
    assert!(0 < early && early <= 600, "{early} were answered while nothing was read");
    drop((replies, peers));
    let entries = stop_and_collect(daemon, journal);
    let mut by_connection: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| is_message(entry)) {
        by_connection.entry(entry.text("CONNECTION")).or_default().push(entry.text("MESSAGE"));
    }
    let expected: Vec<_> = (0..MESSAGES).map(|number| format!("message {number}")).collect();
    assert_eq!(by_connection.len(), CONNECTIONS);
    for (connection, messages) in by_connection {
        assert!(messages == expected, "connection {connection}: {} messages, or another order", messages.len());
    }
}

#[test]
fn messages_that_wait_for_the_journal_are_logged_and_answered_before_the_daemon_exits() {
    let Some(journal) = FakeJournald::start() else { return };
    let configuration = format!("{FULL}[service]\ndrain_timeout = '100ms'\n");
    let mut daemon = spawn(&journal, &configuration, &["--listen", "127.0.0.1:0"]);
    let mut peer = Peer::connect(&journal.addresses(1)[0]);
    journal.suspend();
    write_to(&peer, (0..2000).map(|number| format!("{number}\t")).collect::<String>().as_bytes());
    let answered = receive_until_silent(&peer);
    assert!(answered < 2000, "{answered}");
    daemon.signal(Signal::TERM);
    // Longer than the drain would take: messages that wait for the log have more time.
    peer.expect_silence(Duration::from_millis(1500));
    journal.resume();
    for number in answered..2000 {
        peer.expect(format!("server got:{number}\t"));
    }
    peer.expect_close();
    assert!(daemon.wait().success());
    let entries = journal.stop_and_collect();
    assert_eq!(entries.iter().filter(|entry| is_message(entry)).count(), 2000);
    assert!(entries.iter().any(has_subject("The daemon has stopped")));
}

#[test]
fn a_large_message_that_waited_for_a_full_journal_is_logged_and_answered_though_the_drain_is_over() {
    let Some(journal) = FakeJournald::start() else { return };
    let settings = FULL.replacen("log_messages", "send_buffer = '4KiB'\nlog_messages", 1);
    let configuration = format!("{settings}[service]\ndrain_timeout = '100ms'\n");
    let mut daemon = spawn(&journal, &configuration, &["--listen", "127.0.0.1:0"]);
    let address = &journal.addresses(1)[0];
    let (filler, mut peer) = (Peer::connect(address), Peer::connect(address));
    journal.suspend();
    // Until the journal's socket is full.
    write_to(&filler, (0..2000).map(|number| format!("{number}\t")).collect::<String>().as_bytes());
    receive_until_silent(&filler);
    let large = "x".repeat(1024 * 1024);
    write_to(&peer, format!("{large}\t").as_bytes());
    peer.wait_until_read();
    daemon.signal(Signal::TERM);
    // Longer than the drain would take.
    peer.expect_silence(Duration::from_millis(1500));
    journal.resume();
    let entry = journal.expect("the large message", |entry| is_message(entry) && entry.fields["MESSAGE"].len() > 2000);
    assert!(entry.in_memory && entry.fields["MESSAGE"] == large.as_bytes());
    journal.expect_times("all messages", 2001, is_message);
    // The reply does not fit into the socket at once, and the client takes its time.
    thread::sleep(Duration::from_millis(200));
    peer.expect(format!("server got:{large}\t"));
    peer.expect_close();
    assert!(daemon.wait().success());
    let entries = journal.stop_and_collect();
    assert_eq!(entries.iter().filter(|entry| is_message(entry)).count(), 2001);
}

/// Receives replies until no more come. Returns how many there were.
fn receive_until_silent(peer: &Peer) -> usize {
    let mut replies = Replies::new(peer);
    std::iter::from_fn(|| replies.next_within(Duration::from_millis(500))).count()
}

#[test]
fn every_answered_message_is_in_the_journal_even_if_the_daemon_is_killed() {
    let Some(journal) = FakeJournald::start() else { return };
    let mut daemon = spawn(&journal, FULL, &["--listen", "127.0.0.1:0"]);
    let peer = Peer::connect(&journal.addresses(1)[0]);
    journal.suspend();
    write_to(&peer, (0..2000).map(|number| format!("{number}\t")).collect::<String>().as_bytes());
    let answered = receive_until_silent(&peer);
    assert!(answered > 0);
    daemon.signal(Signal::KILL);
    assert!(!daemon.wait().success());
    journal.resume();
    let entries = journal.stop_and_collect();
    let logged: Vec<_> = entries.iter().filter(|entry| is_message(entry)).map(|entry| entry.text("MESSAGE")).collect();
    assert!(logged.len() >= answered, "{} of {answered} answered messages are in the journal", logged.len());
    assert!(logged.iter().enumerate().all(|(number, text)| *text == number.to_string()), "{logged:?}");
}

#[test]
fn without_the_journal_a_message_is_a_line_on_stderr() {
    let daemon = Daemon::start_with(FULL, &["--listen", "127.0.0.1:0"]);
    let mut peer = daemon.connect();
    let long = "long ".repeat(20_000);
    peer.send(format!("two\nerror: lines\x1b\t{long}\t"));
    peer.expect(format!("server got:two\nerror: lines\x1b\tserver got:{long}\t"));
    daemon.wait_for_log_times("info: message on connection 1 on echo from 127.0.0.1:", 2);
    drop(peer);
    let log = daemon.stop();
    let messages: Vec<_> = log.iter().filter(|line| line.starts_with("info: message on ")).collect();
    assert!(messages[0].ends_with(": \"two\\nerror: lines\\x1b\""), "{}", messages[0]);
    assert!(messages[1].ends_with(&format!(": \"{long}\"")));
}

#[test]
fn message_summaries_are_never_suppressed() {
    let Some(journal) = FakeJournald::start() else { return };
    let daemon = spawn(&journal, "[defaults]\nlog_messages = 'summary'\n", &["--listen", "127.0.0.1:0"]);
    let mut peer = Peer::connect(&journal.addresses(1)[0]);
    for number in 1..=300 {
        peer.exchange(&format!("{number}\n"));
        // One after the other, so that the queue is not the limit.
        journal.expect_times("a summary", number, has_subject("A message of @PEER@, in short"));
    }
    drop(peer);
    let entries = stop_and_collect(daemon, journal);
    let summary = entries.iter().find(|entry| has_subject("in short")(entry)).unwrap();
    assert!(summary.text("MESSAGE").ends_with(": \"1\\n\""), "{summary:?}");
    assert_eq!((summary.text("CONNECTION"), summary.text("PRIORITY")), ("1".to_owned(), "6".to_owned()));
    assert!(!entries.iter().any(has_subject("suppressed")));
}

#[test]
fn messages_of_a_client_that_does_not_read_are_logged_when_it_is_cut_off_at_the_end() {
    let Some(journal) = FakeJournald::start() else { return };
    let configuration = format!("{FULL}[service]\ndrain_timeout = '100ms'\n[log]\nlevel = 'debug'\n");
    let mut daemon = spawn(&journal, &configuration, &["--listen", "DIR/socket"]);
    let mut peer = Peer::connect(&journal.addresses(1)[0]);
    // More than fits: it is the client's own replies that are in the way of its messages.
    peer.send_what_fits(&b"a message\t".repeat(1_000_000));
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().code(), Some(0));
    let entries = journal.stop_and_collect();
    let logged = entries.iter().filter(|entry| is_message(entry)).count();
    let ended = entries.iter().find(|entry| entry.text("VERDICT") == "shutdown").expect("it is logged");
    let read: usize = ended.text("BYTES_IN").parse().expect("it is a number");
    // The last message may be incomplete.
    assert_eq!(logged, read / 10);
    assert!(logged > 1000, "{logged}");
}

#[test]
fn a_message_that_is_counted_as_lost_at_the_end_is_not_written_to_stderr_afterwards() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = |name: &str| directory.path().join(name).to_str().expect("it is text").to_owned();
    let (socket, configuration) = (path("socket"), path("echoed.toml"));
    std::fs::write(&configuration, FULL).expect("it can be written");
    let (stderr, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe can be made");
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    command.args(["--config", &configuration, "--listen", &socket]).stderr(writer);
    let mut daemon = command.spawn().expect("it can be started");
    // The parent's copy of the pipe.
    drop(command);
    wait_until("it listens", || UnixStream::connect(&socket).is_ok());
    let [mut first, mut second] = [(); 2].map(|()| Peer::connect(&format!("unix:{socket}")));
    // A little more than a pipe takes.
    let long = "x".repeat(70 * 1024);
    write_to(&first, format!("{long}\t").as_bytes());
    // The line before it may leave most of a page.
    let capacity = fcntl_getpipe_size(&stderr).expect("it can be asked") as u64;
    wait_until("it is stuck", || fionread(&stderr).expect("it can be asked") + 4096 > capacity);
    second.send("second\t");
    second.expect_silence(Duration::from_millis(20));
    let pid = Pid::from_child(&daemon);
    kill_process(pid, Signal::INT).expect("it can be signalled");
    // Once the drain has begun, the next signal ends it.
    first.expect_silence(Duration::from_millis(100));
    kill_process(pid, Signal::TERM).expect("it can be signalled");
    second.expect_close();
    let mut written = String::new();
    File::from(stderr).read_to_string(&mut written).expect("it is text");
    assert_eq!(daemon.wait().expect("it ends").code(), Some(74));
    assert!(!written.contains("second"), "{}", written.replace(&long, "..."));
}
