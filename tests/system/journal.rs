//! What an administrator finds in the journal.

pub mod catalog;
pub mod entries;
pub mod hostile;
pub mod journald;
pub mod rate_limit;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use common::Peer;
use common::machines::machine::Machine;
use entries::wait_for_entries;

tests![
    a_connection_closed_for_a_violation_is_logged_with_all_its_fields,
    at_level_debug_a_connection_closed_by_the_peer_is_logged_as_two_entries,
    journal_fields_match_exactly_the_right_entries,
    a_drop_in_and_a_reload_change_the_log_level_for_all_connections_at_once,
];

const TCP: &str = "tcp:127.0.0.1:8085";

/// The file of the settings of these tests.
const SETTINGS: &str = "/etc/echoed/echoed.toml.d/50-test.toml";

/// Writes the settings.
fn configure(machine: &Machine, settings: &str) {
    machine.write(SETTINGS, settings);
}

/// Writes the settings, and lets the sockets listen.
fn listen(machine: &Machine, settings: &str) {
    configure(machine, settings);
    machine.sh("systemctl start echoed.socket");
}

fn address(peer: &Peer) -> String {
    let local = rustix::net::getsockname(peer.fd()).expect("it has an address");
    SocketAddr::try_from(local).expect("an IP address").to_string()
}

fn fields<const N: usize>(expected: [(&'static str, &str); N]) -> BTreeMap<&'static str, String> {
    expected.map(|(name, value)| (name, value.to_owned())).into()
}

fn a_connection_closed_for_a_violation_is_logged_with_all_its_fields(machine: &Machine) {
    listen(machine, "[defaults.deadlines]\nread = '10ms'");
    let mut peer = machine.connect(TCP);
    peer.exchange("aaaa");
    peer.send("half");
    peer.expect("server error:message not finished within 10ms\t");
    peer.expect_close();
    let entry = wait_for_entries(machine, "-u echoed VERDICT=read-deadline", 1).remove(0);
    let mut ours = entry.ours();
    let message = ours.remove("MESSAGE").expect("there is a text");
    let address = address(&peer);
    let text =
        format!("connection 1 on echo from {address} ended: read-deadline; 1 messages, 9 bytes in, 62 bytes out, ");
    assert!(message.starts_with(&text), "{message}");
    let expected = [
        ("LISTENER", "echo"),
        ("PEER", &address),
        ("CONNECTION", "1"),
        ("VERDICT", "read-deadline"),
        ("BYTES_IN", "9"),
        ("BYTES_OUT", "62"),
        ("MESSAGES", "1"),
        ("MESSAGE_ID", "83f62f9c5578440d9af2ad15797375c0"),
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "echoed"),
    ];
    assert_eq!(ours, fields(expected));
    // These are journald's own, which cannot be forged.
    assert_eq!(entry.text("_SYSTEMD_UNIT"), "echoed.service");
    assert_eq!((entry.text("_TRANSPORT"), entry.text("_COMM")), ("journal".into(), "echoed".into()));
}

fn at_level_debug_a_connection_closed_by_the_peer_is_logged_as_two_entries(machine: &Machine) {
    listen(machine, "[log]\nlevel = 'debug'");
    let mut peer = machine.connect("unix:/run/echoed.sock");
    peer.exchange("aaaa");
    drop(peer);
    let both = wait_for_entries(machine, "-u echoed CONNECTION=1", 2);
    let start = [("LISTENER", "echo"), ("CONNECTION", "1"), ("PRIORITY", "7"), ("SYSLOG_IDENTIFIER", "echoed")];
    let end = [("VERDICT", "peer-closed"), ("BYTES_IN", "5"), ("BYTES_OUT", "16"), ("MESSAGES", "1")];
    for (entry, id, expected) in [
        (&both[0], "5e6bb97ac5ed4e8b88b6ad89fce92c4f", fields(start)),
        (&both[1], "d1ac960d4f644c8a808b48f90e84cb07", fields(start).into_iter().chain(fields(end)).collect()),
    ] {
        let mut ours = entry.ours();
        let [message, peer] = ["MESSAGE", "PEER"].map(|name| ours.remove(name).expect("it is there"));
        assert!(message.starts_with(&format!("connection 1 on echo from {peer}")), "{message}");
        assert_eq!(ours.remove("MESSAGE_ID").as_deref(), Some(id));
        assert_eq!(ours, expected);
    }
    // Where the user is known at all; the number of a process of another PID namespace is not.
    let peer = both[0].text("PEER");
    assert!(peer.starts_with("uid 0") || peer == "unknown", "{peer}");
}

fn journal_fields_match_exactly_the_right_entries(machine: &Machine) {
    listen(machine, "[defaults]\nmax_message = '4B'\n[defaults.deadlines]\nread = '10ms'");
    machine.sh("cp /usr/share/doc/echoed/examples/echoed-lines.socket /etc/systemd/system/");
    machine.sh("systemctl daemon-reload && systemctl start echoed-lines.socket");
    let late = |port| {
        let mut peer = machine.connect(&format!("tcp:127.0.0.1:{port}"));
        peer.send("x");
        peer.expect("server error:message not finished within 10ms\t");
        address(&peer)
    };
    let long = || {
        let mut peer = machine.connect(TCP);
        peer.send("too long");
        peer.expect("server error:message exceeds 4 bytes\t");
        address(&peer)
    };
    let peers = [late(8085), late(8085), late(3000), long(), late(8085), late(3000), long()];
    wait_for_entries(machine, "-u echoed VERDICT=read-deadline", 5);
    wait_for_entries(machine, "-u echoed VERDICT=too-long", 2);
    for (matches, expected) in [
        ("LISTENER=echo VERDICT=read-deadline", &[0, 1, 4][..]),
        ("LISTENER=lines VERDICT=read-deadline", &[2, 5]),
        ("VERDICT=too-long", &[3, 6]),
        ("VERDICT=read-deadline VERDICT=too-long", &[0, 1, 2, 3, 4, 5, 6]),
        (&format!("PEER={}", peers[5]), &[5]),
        ("LISTENER=lines VERDICT=too-long", &[]),
    ] {
        // Connections that end at the same time are logged in any order.
        let found: BTreeSet<_> =
            entries::entries(machine, &format!("-u echoed {matches}")).iter().map(|entry| entry.text("PEER")).collect();
        let expected: BTreeSet<_> = expected.iter().map(|at: &usize| peers[*at].clone()).collect();
        assert_eq!(found, expected, "{matches}");
    }
}

/// What `systemctl service-log-level` is for.
fn a_drop_in_and_a_reload_change_the_log_level_for_all_connections_at_once(machine: &Machine) {
    let drop_in = "/run/echoed/echoed.toml.d/90-level.toml";
    // The service sees this directory if it is there when it starts.
    machine.write(drop_in, "# Nothing yet");
    listen(machine, "");
    let mut early = machine.connect(TCP);
    early.exchange("a");
    let reload = |times| {
        machine.sh("systemctl reload echoed");
        // systemd 252 does not wait for it.
        wait_for_entries(machine, "-u echoed MESSAGE_ID=c6e76186a409406fa1becd0924dcd062", times);
    };

    machine.write(drop_in, "[log]\nlevel = 'debug'");
    reload(1);
    machine.connect(TCP).exchange("a");
    wait_for_entries(machine, "-u echoed CONNECTION=2", 2);
    drop(early);
    wait_for_entries(machine, "-u echoed CONNECTION=1 VERDICT=peer-closed", 1);

    machine.sh(&format!("rm {drop_in}"));
    reload(2);
    machine.connect(TCP).exchange("a");
    machine.sh("systemctl stop echoed");
    wait_for_entries(machine, "-u echoed MESSAGE_ID=a5b78d5defc24e4788ea54eeed27f183", 1);
    assert_eq!(entries::entries(machine, "-u echoed CONNECTION=3"), []);
}
