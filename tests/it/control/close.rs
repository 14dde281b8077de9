//! Connections that an administrator closes.

use std::process;

use super::{list, start, start_with, wait_for_states};
use common::echoctl::echoctl;
use common::packets::PacketPeer;
use common::{Peer, wait_until};

const FINAL_REPLY: &str = "server error:connection closed by the administrator\t";

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
        daemon.wait_for_log(&format!("info: uid {} pid ", rustix::process::getuid().as_raw()));
        daemon.wait_for_log(&format!(" closed connection {id}"));
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
