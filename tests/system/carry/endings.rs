//! What does not carry connections, what keeps them for longer, and what is left afterwards.

use std::thread;
use std::time::Duration;

use super::{PATIENT, expect_empty_store, expect_in_order, restart, start};
use crate::common::{Peer, wait_until};
use crate::machine::{Machine, TCP, UNIX};

tests![
    a_stop_closes,
    without_carrying_a_restart_drains,
    a_second_restart_right_after_the_first_carries_too,
    a_killed_process_loses_its_connections_and_refuses_nobody,
    what_cannot_be_stored_is_closed_and_told,
    who_was_carried_is_missed_when_the_process_is_not_used,
    a_process_for_one_connection_stores_nothing,
    with_the_example_connections_outlive_a_stop since 254,
    with_the_example_connections_outlive_a_soft_reboot since 254,
];

/// A client on each socket that has sent half a message, which was read.
fn halves(machine: &Machine) -> [Peer; 2] {
    [TCP, UNIX].map(|address| {
        let mut peer = machine.connect(address);
        peer.send("first\tsec");
        peer.expect("server got:first\t");
        peer
    })
}

fn expect_the_rest(peers: &mut [Peer]) {
    for peer in peers {
        peer.send("ond\t");
        peer.expect("server got:second\t");
        peer.exchange("third");
    }
}

fn a_stop_closes(machine: &Machine) {
    start(machine, PATIENT);
    for stop in ["systemctl stop echoed.service", "systemctl kill --signal=TERM echoed.service"] {
        let peers = halves(machine);
        machine.sh(stop);
        peers.into_iter().for_each(|mut peer| peer.expect_close());
        machine.wait_for_property("echoed.service", "ActiveState", "inactive");
        assert_eq!(machine.property("echoed.service", "Result"), "success");
        expect_in_order(machine);
    }
    machine.connect(TCP).exchange("aaaa");
}

fn without_carrying_a_restart_drains(machine: &Machine) {
    start(machine, &format!("{PATIENT}\n[service]\ncarry_connections = false\n"));
    let peers = halves(machine);
    restart(machine);
    peers.into_iter().for_each(|mut peer| peer.expect_close());
    machine.wait_for_journal("--identifier=echoed --grep='2 connections finished, 0 cut'");
    expect_in_order(machine);
}

fn a_second_restart_right_after_the_first_carries_too(machine: &Machine) {
    start(machine, PATIENT);
    let mut peers = halves(machine);
    machine.sh("systemctl restart echoed.service; systemctl restart echoed.service");
    expect_the_rest(&mut peers);
    // Two at once become one, or one after the other.
    let peers = [machine.connect(TCP), machine.connect(UNIX)];
    let mut peers = peers.map(|mut peer| {
        peer.send("first\tsec");
        peer.expect("server got:first\t");
        peer
    });
    machine.sh("systemctl restart --no-block echoed.service; systemctl restart echoed.service");
    expect_the_rest(&mut peers);
    expect_in_order(machine);
}

fn a_killed_process_loses_its_connections_and_refuses_nobody(machine: &Machine) {
    start(machine, PATIENT);
    for signal in ["KILL", "ABRT"] {
        let peers = halves(machine);
        let process = machine.daemon();
        machine.sh(&format!("systemctl kill --kill-whom=main --signal={signal} echoed.service"));
        wait_until("the process is gone", || machine.daemon() != process);
        let mut others = [TCP, UNIX, TCP, UNIX].map(|address| machine.connect(address));
        others.iter_mut().for_each(|peer| peer.exchange("aaaa"));
        peers.into_iter().for_each(|mut peer| assert_eq!(peer.read_to_end(), b""));
        expect_empty_store(machine);
        // The next restart carries again.
        let mut peers = halves(machine);
        restart(machine);
        expect_the_rest(&mut peers);
        expect_empty_store(machine);
    }
}

fn what_cannot_be_stored_is_closed_and_told(machine: &Machine) {
    start(machine, PATIENT);
    let peers: Vec<_> = (0..50).flat_map(|_| halves(machine)).collect();
    let process = machine.inside(machine.daemon().expect("it runs"));
    // All below it are in use.
    machine.sh(&format!("prlimit --pid={process} --nofile=20:20000"));
    restart(machine);
    for mut peer in peers {
        peer.expect_close();
    }
    machine.wait_for_journal("--identifier=echoed --priority=warning --grep='100 of 100 connections are cut: '");
    machine.connect(TCP).exchange("aaaa");
    expect_empty_store(machine);
}

fn who_was_carried_is_missed_when_the_process_is_not_used(machine: &Machine) {
    start(machine, &format!("{PATIENT}\n[service]\nidle_exit = '200ms'\n"));
    let mut peers = halves(machine);
    restart(machine);
    let process = machine.daemon();
    // Longer than that.
    thread::sleep(Duration::from_millis(600));
    expect_the_rest(&mut peers);
    assert_eq!(machine.daemon(), process);
    drop(peers);
    machine.wait_for_property("echoed.service", "ActiveState", "inactive");
    assert_eq!(machine.property("echoed.service", "Result"), "success");
    expect_in_order(machine);
    machine.connect(UNIX).exchange("aaaa");
}

fn a_process_for_one_connection_stores_nothing(machine: &Machine) {
    machine.configure(PATIENT);
    machine.sh("install -D -t /etc/systemd/system/echoed.socket.d /usr/share/doc/echoed/examples/accept.conf");
    machine.sh("systemctl daemon-reload; systemctl start echoed.socket");
    // (Not the Unix socket: from 257 on, Accept= gives up when it cannot see the client's process, and ours is outside.)
    let mut peer = machine.connect(TCP);
    peer.send("first\tsec");
    peer.expect("server got:first\t");
    assert_eq!(machine.property("echoed@*.service", "FileDescriptorStoreMax"), "0");
    machine.sh("systemctl stop 'echoed@*.service'");
    peer.expect_close();
    let said = machine.sh("journalctl --sync; journalctl --quiet --identifier=echoed");
    assert!(said.contains("1 connections finished, 0 cut"), "{said}");
    machine.connect(TCP).exchange("aaaa");
}

// --- Kept for longer ---------------------------------------------------------------------------------------------------

/// Installs the example.
fn preserve(machine: &Machine) {
    machine.sh("install -Dm644 -t /etc/systemd/system/echoed.service.d /usr/share/doc/echoed/examples/preserve.conf");
    // Else nothing would refer to the units when the socket is stopped, and systemd would forget them.
    machine.sh("systemctl enable echoed.socket");
    start(machine, PATIENT);
}

fn with_the_example_connections_outlive_a_stop(machine: &Machine) {
    preserve(machine);
    for [stop, start] in [
        ["systemctl stop echoed.service", "systemctl start echoed.service"],
        ["systemctl stop echoed.socket", "systemctl start echoed.socket echoed.service"],
    ] {
        let mut peers = halves(machine);
        machine.sh(stop);
        machine.wait_for_property("echoed.service", "ActiveState", "inactive");
        assert_eq!(machine.property("echoed.service", "NFileDescriptorStore"), "1");
        let listed = machine.sh("systemd-analyze fdstore echoed.service");
        assert!(listed.contains("parcel"), "{listed}");
        peers.iter_mut().for_each(|peer| peer.expect_silence(Duration::from_millis(50)));
        machine.sh(start);
        expect_the_rest(&mut peers);
        expect_in_order(machine);
    }
    // The next client starts it, too.
    let mut peers = halves(machine);
    machine.sh("systemctl stop echoed.service");
    machine.connect(TCP).exchange("aaaa");
    expect_the_rest(&mut peers);
    // And they can be had rid of.
    machine.sh("systemctl stop echoed.service; systemctl clean --what=fdstore echoed.service");
    peers.into_iter().for_each(|mut peer| peer.expect_close());
    machine.connect(TCP).exchange("aaaa");
    expect_in_order(machine);
}

fn with_the_example_connections_outlive_a_soft_reboot(machine: &Machine) {
    preserve(machine);
    machine.sh("systemctl add-wants multi-user.target echoed.service");
    let mut peers = halves(machine);
    let process = machine.daemon();
    machine.sh("systemctl soft-reboot");
    wait_until("another process serves", || machine.daemon().is_some_and(|now| Some(now) != process));
    expect_the_rest(&mut peers);
    machine.connect(TCP).exchange("aaaa");
    machine.wait_for_property("echoed.service", "NFileDescriptorStore", "0");
}
