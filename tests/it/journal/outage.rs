//! The journal's socket goes away, and is made anew: the log goes on, what waits is in the status, and what is lost at
//! an end is in the exit code.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::Signal;

use super::has_subject;
use common::fake_journald::{Entry, FakeJournald};
use common::strace::Strace;
use common::{Daemon, Peer, ServiceManager, now, wait_until};

const DEBUG: &str = "[log]\nlevel = 'debug'\n";
const FULL: &str = "[defaults]\nlog_messages = 'full'\n";

/// A daemon with a service manager, on a socket from it, and the address of that.
fn start_activated(journal: &FakeJournald, manager: &ServiceManager, configuration: &str) -> (Daemon, String) {
    let (listener, address) = listen();
    (start_on(listener, journal, manager, configuration), address)
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it has one").to_string();
    (listener, address)
}

/// A daemon with a service manager, on this socket from it.
fn start_on(listener: TcpListener, journal: &FakeJournald, manager: &ServiceManager, configuration: &str) -> Daemon {
    let mut command = journal.command();
    manager.set_notify_socket(&mut command).env("LISTEN_FDNAMES", "echo").stdin(OwnedFd::from(listener));
    let daemon = Daemon::spawn_with_stdio(&mut command, configuration, &[]);
    manager.expect("READY=1");
    journal.addresses(1);
    daemon
}

fn is_message(entry: &Entry) -> bool {
    has_subject("A message of @PEER@")(entry)
}

/// How many entries wait, as the status says.
fn waiting(manager: &ServiceManager, condition: impl Fn(usize) -> bool) -> usize {
    let number = |status: &str| {
        let (_, rest) = status.split_once("; log unavailable, ")?;
        rest.split(' ').next()?.parse::<usize>().ok()
    };
    let status = manager.expect_matching("STATUS=", |status| number(status).is_some_and(&condition));
    number(&status).expect("it has a number")
}

#[test]
fn the_log_goes_on_after_an_outage_with_the_entries_that_waited() {
    let Some(journal) = FakeJournald::start() else { return };
    let manager = ServiceManager::start();
    let (mut daemon, address) = start_activated(&journal, &manager, DEBUG);
    journal.take_down();
    for _ in 0..5 {
        Peer::connect(&address).exchange("a");
    }
    // Two for each.
    waiting(&manager, |count| count == 10);
    journal.bring_up();
    let closed = |entry: &Entry| entry.text("VERDICT") == "peer-closed";
    journal.expect_times("those that waited", 5, closed);
    manager.expect_matching("STATUS=", |status| status.contains("5 messages") && !status.contains("unavailable"));
    Peer::connect(&address).exchange("a");
    journal.expect_times("the next one", 6, closed);
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    let entries = journal.stop_and_collect();
    let ids: Vec<_> = entries.iter().filter(|entry| closed(entry)).map(|entry| entry.text("CONNECTION")).collect();
    assert_eq!(ids, ["1", "2", "3", "4", "5", "6"]);
}

#[test]
fn a_message_waits_for_a_journal_that_went_away_and_is_logged_once() {
    let Some(journal) = FakeJournald::start() else { return };
    let manager = ServiceManager::start();
    let (mut daemon, address) = start_activated(&journal, &manager, FULL);
    let mut peer = Peer::connect(&address);
    peer.exchange("before");
    // It was read, and is not lost with the socket.
    journal.expect("the first message", is_message);
    journal.take_down();
    peer.send("one\ttwo\t");
    // The warning that messages cannot be written, and the next message.
    waiting(&manager, |count| count == 2);
    peer.expect_silence(Duration::from_millis(20));
    journal.bring_up();
    peer.expect("server got:one\tserver got:two\t");
    drop(peer);
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    let entries = journal.stop_and_collect();
    let logged: Vec<_> = entries.iter().filter(|entry| is_message(entry)).map(|entry| entry.text("MESSAGE")).collect();
    assert_eq!(logged, ["before", "one", "two"]);
    assert!(entries.iter().any(has_subject("Messages of clients are written again")));
}

#[test]
fn what_could_not_be_logged_before_the_end_is_in_the_status_and_in_the_exit_code() {
    let Some(journal) = FakeJournald::start() else { return };
    let manager = ServiceManager::start();
    let configuration = format!("{FULL}[service]\ndrain_timeout = '10ms'\n");
    let (mut daemon, address) = start_activated(&journal, &manager, &configuration);
    let mut peer = Peer::connect(&address);
    peer.exchange("before");
    journal.take_down();
    peer.send("one\ttwo\tthree\thalf");
    waiting(&manager, |count| count > 0);
    daemon.signal(Signal::INT);
    manager.expect("STOPPING=1");
    // Not for ever.
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(74));
    peer.expect_close();
    let lost = "stopped; could not be logged: 3 messages of peers, which were not answered; ";
    let entries = manager.expect_matching("STATUS=", |status| status.starts_with(lost));
    // That they cannot be written, that it stops, twice, that they are lost, and that it has stopped.
    assert_eq!(entries.strip_prefix(lost), Some("5 entries"));
}

#[test]
fn a_daemon_does_not_exit_for_idleness_while_entries_wait() {
    let Some(journal) = FakeJournald::start() else { return };
    let manager = ServiceManager::start();
    let configuration = format!("{DEBUG}[service]\nidle_exit = '50ms'\n");
    let (listener, address) = listen();
    // Before the daemon is there, so that it is not idle before it was used.
    let mut peer = Peer::connect(&address);
    let mut daemon = start_on(listener, &journal, &manager, &configuration);
    peer.exchange("a");
    journal.take_down();
    drop(peer);
    // The status is renewed every 5 s, so it has been idle for a hundred times as long.
    waiting(&manager, |count| count > 0);
    journal.bring_up();
    assert!(daemon.wait().success());
    let entries = journal.stop_and_collect();
    assert!(entries.iter().any(|entry| entry.text("VERDICT") == "peer-closed"));
    assert!(entries.iter().any(|entry| entry.text("MESSAGE").starts_with("stopping: no connection for 50ms")));
}

#[test]
fn whole_messages_larger_than_usual_journal_files_are_warned_about_at_the_start() {
    let Some(journal) = FakeJournald::start() else { return };
    let manager = ServiceManager::start();
    let configuration = "[defaults]\nlog_messages = 'full'\nmax_message = '9MiB'\n";
    let (mut daemon, _) = start_activated(&journal, &manager, configuration);
    let warning = journal.expect("a warning", has_subject("Messages may be larger than entries of the journal can be"));
    assert_eq!(warning.text("PRIORITY"), "4");
    assert!(warning.text("MESSAGE").starts_with("[defaults] logs messages of up to 9MiB "), "{warning:?}");
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    journal.stop_and_collect();
}

#[test]
fn a_journal_for_whose_entries_the_kernel_has_no_memory_is_reported_like_one_that_takes_nothing() {
    let Some(journal) = FakeJournald::start() else { return };
    let Some(strace) = Strace::new("sendmsg", &["sendmsg:error=ENOBUFS".to_owned()]) else { return };
    // Entries of the daemon itself are sent by another call.
    let mut command = journal.command();
    command.env("TEST_WRAPPER", strace.wrapper());
    let mut daemon = Daemon::spawn_with(&mut command, FULL, &["--listen", "127.0.0.1:0"]);
    let mut peer = Peer::connect(&journal.addresses(1)[0]);
    peer.send("a\t");
    let failed = journal.expect("a report", has_subject("Messages of clients cannot be written"));
    assert!(failed.text("MESSAGE").contains(" is not accepting entries"), "{failed:?}");
    // And nothing spins.
    let (before, start) = (strace.injected_count(), now());
    wait_until("it is tried again", || strace.injected_count() > before + 1);
    let per_second = (strace.injected_count() - before) as f64 / start.elapsed().as_secs_f64();
    assert!(per_second < 200.0, "{per_second}");
    daemon.signal(Signal::KILL);
    daemon.wait();
}
