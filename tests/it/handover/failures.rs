//! What cannot be handed over is closed and logged. The daemon starts and serves, whatever is in the fd store.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::process::{Signal, geteuid};

use super::{Peer, connection_outcomes};
use common::program_or_skip;
use common::service::Service;
use common::service_manager::bundle_of;
use common::strace::Strace;

#[test]
fn the_daemon_starts_and_serves_whatever_is_in_the_fd_store() {
    let file = |text: &str| {
        let mut file = tempfile::tempfile().expect("a file can be made");
        file.write_all(text.as_bytes()).expect("it can be written");
        OwnedFd::from(file)
    };
    let stream = || OwnedFd::from(UnixStream::pair().expect("a pair can be made").0);
    let (text, connection) = (file("this is not a manifest"), stream());
    let stores = [
        ("nothing in it", bundle_of(&[])),
        ("no descriptor", bundle_of(&[&[]])),
        ("no manifest", bundle_of(&[&[text.as_fd()]])),
        ("no manifest, but a connection", bundle_of(&[&[text.as_fd()], &[connection.as_fd()]])),
        ("only a connection", bundle_of(&[&[connection.as_fd()]])),
        ("not-a-bundle", stream()),
    ];
    let mut service = Service::start("");
    for (what, store) in stores {
        // Not TERM: the daemon would store connections whose close it has not processed yet.
        service.stop(Signal::INT);
        service.manager.store("handover", store);
        service.start_next("");
        println!("{what}: {:?}", service.daemon.log());
        service.connect().exchange("new");
        assert!(service.manager.stored_descriptors().is_empty(), "{what}");
        service.daemon.wait_for_log("warn: failed to restore some connections from the previous process: ");
    }
    service.daemon.stop();
}

#[test]
fn connections_that_a_failed_start_cuts_are_counted_with_their_messages() {
    let Some(strace) = Strace::new("setsockopt", &["setsockopt:error=ENOBUFS".to_owned()]) else { return };
    let mut service = Service::start("");
    let [mut first, mut second] = [service.connect(), service.connect()];
    first.exchange("a");
    second.exchange("a");
    service.stop(Signal::TERM);
    service.spawn_next_with("", |command| {
        command.env("TEST_WRAPPER", strace.wrapper());
    });
    assert_eq!(service.daemon.wait().code(), Some(71));
    let log = service.daemon.log();
    let cut = "error: cut 2 connections, because the start failed";
    assert!(log.iter().any(|line| line == cut), "{log:#?}");
    for peer in [&mut first, &mut second] {
        peer.expect_close();
    }
}

#[test]
fn connections_wait_in_the_fd_store_while_threads_cannot_be_started() {
    let two_workers = "[service]\nworkers = 2\n";
    let mut service = Service::start(two_workers);
    let mut peer = service.connect();
    peer.exchange("a");
    service.stop(Signal::TERM);
    // The log, and two workers.
    for number in 1..=3 {
        let Some(strace) = Strace::new("clone3", &[format!("clone3:error=EAGAIN:when={number}")]) else { return };
        service.spawn_next_with(two_workers, |command| {
            command.env("TEST_WRAPPER", strace.wrapper());
        });
        assert_eq!(service.daemon.wait().code(), Some(71), "thread {number}");
    }
    service.start_next(two_workers);
    peer.exchange("b");
    service.daemon.stop();
}

#[test]
fn a_bundle_that_was_restored_is_not_restored_again() {
    let mut service = Service::start("");
    let mut peer = service.connect();
    peer.send("a\thalf");
    peer.expect("server got:a\t");
    service.stop(Signal::TERM);
    // As if the bundle had not been removed from the fd store.
    let (name, stale) = service.manager.stored_descriptors().remove(0);
    service.start_next("");
    peer.send("\t");
    peer.expect("server got:half\t");
    service.stop(Signal::INT);
    service.manager.store(&name, stale);
    service.start_next("");
    service.connect().exchange("new");
    assert!(service.manager.stored_descriptors().is_empty());
    service.daemon.stop();
}

#[test]
fn a_connection_reset_during_a_restart_ends_and_others_survive() {
    let debug = "[log]\nlevel = 'debug'\n";
    let mut service = Service::start(debug);
    let (mut one, mut other) = (service.connect(), service.connect());
    one.exchange("a");
    other.exchange("a");
    service.stop(Signal::TERM);
    one.reset();
    service.start_next(debug);
    service.daemon.wait_for_log("ended: peer-reset");
    other.exchange("b");
    service.daemon.stop();
}

#[test]
fn a_crashed_process_loses_its_connections_and_the_next_one_serves() {
    let mut service = Service::start("");
    let mut peer = service.connect();
    peer.exchange("a");
    service.restart("");
    service.daemon.signal(Signal::KILL);
    service.daemon.wait();
    peer.read_to_end();
    let mut new = service.connect();
    new.send("waits\t");
    service.start_next("");
    new.expect("server got:waits\t");
    assert!(service.manager.stored_descriptors().is_empty());
    service.daemon.stop();
}

/// How many connections one of two services has, and the other.
const FIRST_CONNECTIONS: usize = 120;
const SECOND_CONNECTIONS: usize = 300;

/// What the second one may have open: enough for all its connections, but not for those in flight together with the
/// first one's.
const SECOND_NOFILE_LIMIT: &str = "340";

#[test]
fn connections_beyond_the_limit_on_descriptors_in_flight_are_cut_and_logged() {
    if !common::ensure_nofile_limit(2 * SECOND_CONNECTIONS as u64) || program_or_skip("setpriv").is_none() {
        return;
    }
    let mut first = Service::start("");
    let mut stored: Vec<_> = (0..FIRST_CONNECTIONS).map(|_| first.connect()).collect();
    stored.iter_mut().for_each(|peer| peer.exchange("a"));
    assert_eq!(connection_outcomes(&first.stop(Signal::TERM)), [FIRST_CONNECTIONS, 0, 0]);

    let mut second = Service::start("");
    second.stop(Signal::INT);
    second.start_next_with("", |command| {
        // These capabilities lift the limit. Only root has them.
        let privileges = "setpriv --bounding-set=-sys_resource,-sys_admin --inh-caps=-sys_resource,-sys_admin";
        let privileges = if geteuid().is_root() { privileges } else { "" };
        command.env("TEST_WRAPPER", format!("prlimit --nofile={SECOND_NOFILE_LIMIT} {privileges}"));
        // As many as the next process can be handed here.
        command.env("FDSTORE", "1");
    });
    let mut peers: Vec<_> = (0..SECOND_CONNECTIONS).map(|_| second.connect()).collect();
    for peer in &mut peers {
        peer.send("a\thalf");
        peer.expect("server got:a\t");
    }
    let log = second.restart("");
    let [handed_over, _, cut] = connection_outcomes(&log);
    assert!(handed_over > 0 && cut > 0 && handed_over + cut == SECOND_CONNECTIONS, "{log:#?}");
    let said = format!("failed to store {cut} of {SECOND_CONNECTIONS} connections, cutting them: ");
    let line = log.iter().find(|line| line.contains(&said)).unwrap_or_else(|| panic!("not said: {log:#?}"));
    assert!(line.contains("LimitNOFILE="), "{line}");
    // The end of the stream, not a reset.
    let survives = |peer: &mut Peer| {
        peer.send_what_fits(b"\t");
        let reply = peer.next_reply();
        assert!(reply == b"server got:half\t" || reply.is_empty(), "{}", reply.escape_ascii());
        !reply.is_empty()
    };
    assert_eq!(peers.iter_mut().map(survives).filter(|survives| *survives).count(), handed_over);
    first.start_next("");
    stored.iter_mut().for_each(|peer| peer.exchange("b"));
    first.daemon.stop();
    second.daemon.stop();
}
