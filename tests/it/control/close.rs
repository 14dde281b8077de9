//! Connections that an administrator closes.

use std::process;

use super::{Varlink, list, start, start_with, wait_for_states};
use common::echoctl::echoctl;
use common::fake_journald::FakeJournald;
use common::packets::PacketPeer;
use common::{Daemon, Peer, ensure_nofile_limit, wait_until};

const FINAL_REPLY: &str = "server error:connection closed by the administrator\t";

/// Each is logged, however many there are.
#[test]
fn no_close_is_suppressed_in_the_log_also_where_there_is_no_such_connection() {
    const CALLS: usize = 250;
    let (daemon, path) = start("");
    let mut client = Varlink::connect(&path);
    for id in 1000..1000 + CALLS {
        let replies = client.call(&format!(r#"{{"method":"io.echoed.Close","parameters":{{"id":{id}}}}}"#));
        assert_eq!(replies[0]["error"], "io.echoed.NoSuchConnection");
    }
    daemon.wait_for_log_times("called Close", CALLS);
    let log = daemon.stop();
    assert!(log.iter().all(|line| !line.contains("suppressed")), "{log:#?}");
}

/// The entries have the caller as fields, too.
#[test]
fn the_journal_has_the_user_and_the_process_of_each_caller() {
    let Some(journal) = FakeJournald::start() else { return };
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = directory.path().join("io.echoed").display().to_string();
    let control = format!("control=unix:{path}");
    let arguments = ["--listen", "127.0.0.1:0", "--listen", &control];
    let mut daemon = Daemon::spawn_with(&mut journal.command(), super::SECTION, &arguments);
    let addresses = journal.addresses(2);
    let mut peer = Peer::connect(addresses.iter().find(|address| address.starts_with("tcp:")).expect("one of them"));
    peer.exchange("a");
    for (method, parameters, text) in [
        ("Drain", "{}", "lame duck began: "),
        ("Resume", "{}", "lame duck ended: "),
        ("Close", r#"{"id":1}"#, "closing connection 1: "),
    ] {
        let call = format!(r#"{{"method":"io.echoed.{method}","parameters":{parameters}}}"#);
        assert!(Varlink::connect(&path).call(&call)[0].get("error").is_none());
        let entry = journal.expect(text, |entry| entry.text("MESSAGE").starts_with(text));
        let (uid, pid) = (rustix::process::getuid().as_raw().to_string(), process::id().to_string());
        assert!(entry.text("MESSAGE").contains(&format!("uid {uid} pid {pid} called {method}")), "{entry:?}");
        assert_eq!((entry.text("CALLER_UID"), entry.text("CALLER_PID")), (uid, pid));
    }
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.wait().success());
}

/// A search looks at few places of an event loop at a time; it must find each connection of each worker all the same.
#[test]
fn every_connection_of_many_can_be_closed() {
    const CONNECTIONS: usize = 1500;
    if !ensure_nofile_limit(4 * CONNECTIONS as u64) {
        return;
    }
    let (daemon, path) = start("[service]\nworkers = 3\n");
    let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| daemon.connect()).collect();
    wait_until("all are accepted", || list(&path, None).len() == CONNECTIONS);
    let mut client = Varlink::connect(&path);
    for id in (1..=CONNECTIONS).step_by(7).chain([CONNECTIONS]) {
        let replies = client.call(&format!(r#"{{"method":"io.echoed.Close","parameters":{{"id":{id}}}}}"#));
        assert!(replies[0].get("error").is_none(), "{id}: {replies:?}");
        peers[id - 1].expect(FINAL_REPLY);
        peers[id - 1].expect_close();
    }
    peers[1].exchange("as before");
    daemon.stop();
}

/// Closes the connection with this id.
fn close(path: &str, id: u64) {
    let output = echoctl(&["close", &id.to_string(), "--socket", path]);
    output.check(0);
    assert_eq!(output.stdout, format!("closed connection {id}\n"));
}

#[test]
fn a_closed_connection_gets_its_replies_a_final_reply_and_the_end() {
    let (daemon, path) = start("");
    let mut idle = daemon.connect();
    idle.exchange("a");
    let mut half = daemon.connect();
    half.send("whole\thalf");
    half.expect("server got:whole\t");
    let mut other = daemon.connect();
    other.exchange("a");
    for (id, peer) in [(1, &mut idle), (2, &mut half)] {
        close(&path, id);
        peer.expect(FINAL_REPLY);
        peer.expect_close();
        let uid = rustix::process::getuid().as_raw();
        daemon.wait_for_log(&format!("info: closing connection {id}: uid {uid} pid "));
        daemon.wait_for_log(&format!("connection {id} on echo from "));
    }
    other.exchange("as before");
    drop((idle, half));
    wait_for_states(&path, &["idle"]);
    let log = daemon.stop();
    assert_eq!(log.iter().filter(|line| line.contains("ended: closed-by-admin;")).count(), 2, "{log:#?}");
}

#[test]
fn a_connection_whose_peer_does_not_read_ends_when_its_final_reply_has_no_time_left() {
    let (daemon, path) = start("[defaults.deadlines]\nwrite = '500ms'\n");
    let mut peer = daemon.connect();
    while peer.send_what_fits(&[b'\t'; 4096]) > 0 {}
    wait_for_states(&path, &["sending"]);
    close(&path, 1);
    daemon.wait_for_log("ended: closed-by-admin;");
    drop(peer);
    daemon.stop();
}

#[test]
fn connections_of_packets_and_those_without_their_proxy_header_are_closed_as_well() {
    let sections = "[listener.proxied]\nproxy_protocol = 'required'\n";
    let address = format!("seqpacket:@echoed-control-{}", process::id());
    let (daemon, path) = start_with(sections, &[&format!("packets={address}"), "proxied=127.0.0.1:0"]);
    let packets = PacketPeer::connect(&address);
    packets.exchange("a");
    let line = daemon.wait_for_log("(proxied)");
    let proxied = line.split_once("listening on ").and_then(|(_, rest)| rest.split(' ').next()).expect("an address");
    let mut proxied = Peer::connect(proxied);
    wait_for_states(&path, &["idle", "header"]);
    close(&path, 2);
    proxied.expect(FINAL_REPLY);
    proxied.expect_close();
    close(&path, 1);
    packets.expect(FINAL_REPLY.trim_end());
    packets.expect_close();
    drop(packets);
    wait_until("both have ended", || list(&path, None).is_empty());
    let log = daemon.stop();
    assert_eq!(log.iter().filter(|line| line.contains("ended: closed-by-admin;")).count(), 2, "{log:#?}");
}

#[test]
fn closing_a_connection_twice_ends_it_once() {
    let (daemon, path) = start("");
    let mut peer = daemon.connect();
    peer.exchange("a");
    close(&path, 1);
    // It lingers until its peer ends it, too.
    let _ = echoctl(&["close", "1", "--socket", &path]);
    peer.expect(FINAL_REPLY);
    peer.expect_close();
    drop(peer);
    wait_for_states(&path, &[]);
    let log = daemon.stop();
    assert_eq!(log.iter().filter(|line| line.contains("ended: closed-by-admin;")).count(), 1, "{log:#?}");
}
