//! Stops without a handover, what keeps connections for longer, and what is left afterwards.

use std::thread;
use std::time::Duration;

use super::{PATIENT, expect_empty_store, expect_no_warnings, restart, start};
use common::machines::machine::{Machine, TCP, UNIX};
use common::{Peer, wait_until};

tests![
    a_stop_closes_all_connections,
    with_handover_off_a_restart_drains,
    a_second_restart_right_after_the_first_also_hands_connections_over,
    a_killed_process_loses_its_connections_and_new_clients_are_served,
    connections_that_cannot_be_stored_are_closed_and_logged,
    restored_connections_prevent_the_idle_exit,
    a_process_for_one_connection_stores_nothing,
    with_the_preserve_example_connections_survive_a_stop since 254,
    with_the_preserve_example_connections_survive_a_soft_reboot since 254,
];

/// A client on each socket that has sent half a message, which was read.
fn connect_with_half_messages(machine: &Machine) -> [Peer; 2] {
    [TCP, UNIX].map(|address| {
        let mut peer = machine.connect(address);
        peer.send("first\tsec");
        peer.expect("server got:first\t");
        peer
    })
}

fn finish_messages(peers: &mut [Peer]) {
    for peer in peers {
        peer.send("ond\t");
        peer.expect("server got:second\t");
        peer.exchange("third");
    }
}

fn a_stop_closes_all_connections(machine: &Machine) {
    start(machine, PATIENT);
    for stop in ["systemctl stop echoed.service", "systemctl kill --signal=TERM echoed.service"] {
        let peers = connect_with_half_messages(machine);
        machine.sh(stop);
        peers.into_iter().for_each(|mut peer| peer.expect_close());
        machine.wait_for_property("echoed.service", "ActiveState", "inactive");
        assert_eq!(machine.property("echoed.service", "Result"), "success");
        expect_no_warnings(machine);
    }
    machine.connect(TCP).exchange("aaaa");
}

fn with_handover_off_a_restart_drains(machine: &Machine) {
    start(machine, &format!("{PATIENT}\n[service]\nhandover = false\n"));
    let peers = connect_with_half_messages(machine);
    restart(machine);
    peers.into_iter().for_each(|mut peer| peer.expect_close());
    machine.wait_for_journal("--identifier=echoed --grep='2 connections finished, 0 cut'");
    expect_no_warnings(machine);
}

fn a_second_restart_right_after_the_first_also_hands_connections_over(machine: &Machine) {
    start(machine, PATIENT);
    let mut peers = connect_with_half_messages(machine);
    machine.sh("systemctl restart echoed.service; systemctl restart echoed.service");
    finish_messages(&mut peers);
    // Two at once become one, or one after the other.
    let peers = [machine.connect(TCP), machine.connect(UNIX)];
    let mut peers = peers.map(|mut peer| {
        peer.send("first\tsec");
        peer.expect("server got:first\t");
        peer
    });
    machine.sh("systemctl restart --no-block echoed.service; systemctl restart echoed.service");
    finish_messages(&mut peers);
    expect_no_warnings(machine);
}

fn a_killed_process_loses_its_connections_and_new_clients_are_served(machine: &Machine) {
    start(machine, PATIENT);
    for signal in ["KILL", "ABRT"] {
        let peers = connect_with_half_messages(machine);
        let process = machine.daemon_pid();
        machine.sh(&format!("systemctl kill --kill-whom=main --signal={signal} echoed.service"));
        wait_until("the process is gone", || machine.daemon_pid() != process);
        let mut others = [TCP, UNIX, TCP, UNIX].map(|address| machine.connect(address));
        others.iter_mut().for_each(|peer| peer.exchange("aaaa"));
        peers.into_iter().for_each(|mut peer| assert_eq!(peer.read_to_end(), b""));
        expect_empty_store(machine);
        // The next restart hands connections over again.
        let mut peers = connect_with_half_messages(machine);
        restart(machine);
        finish_messages(&mut peers);
        expect_empty_store(machine);
    }
}

fn connections_that_cannot_be_stored_are_closed_and_logged(machine: &Machine) {
    start(machine, PATIENT);
    let peers: Vec<_> = (0..50).flat_map(|_| connect_with_half_messages(machine)).collect();
    let process = machine.pid_inside(machine.daemon_pid().expect("it runs"));
    // All below it stay in use: stdin, stdout and stderr.
    machine.sh(&format!("prlimit --pid={process} --nofile=3:20000"));
    restart(machine);
    for mut peer in peers {
        peer.expect_close();
    }
    machine.wait_for_journal(
        "--identifier=echoed --priority=warning --grep='failed to store 100 of 100 connections, cutting them: '",
    );
    machine.connect(TCP).exchange("aaaa");
    expect_empty_store(machine);
}

fn restored_connections_prevent_the_idle_exit(machine: &Machine) {
    start(machine, &format!("{PATIENT}\n[service]\nidle_exit = '200ms'\n"));
    let mut peers = connect_with_half_messages(machine);
    restart(machine);
    let process = machine.daemon_pid();
    // Longer than that.
    thread::sleep(Duration::from_millis(600));
    finish_messages(&mut peers);
    assert_eq!(machine.daemon_pid(), process);
    drop(peers);
    machine.wait_for_property("echoed.service", "ActiveState", "inactive");
    assert_eq!(machine.property("echoed.service", "Result"), "success");
    expect_no_warnings(machine);
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
    let log = machine.sh("journalctl --sync; journalctl --quiet --identifier=echoed");
    assert!(log.contains("1 connections finished, 0 cut"), "{log}");
    machine.connect(TCP).exchange("aaaa");
}

// --- Kept for longer ---------------------------------------------------------------------------------------------------

/// Installs the example.
fn start_with_preserve_example(machine: &Machine) {
    machine.sh("install -Dm644 -t /etc/systemd/system/echoed.service.d /usr/share/doc/echoed/examples/preserve.conf");
    // Else nothing would refer to the units when the socket is stopped, and systemd would forget them.
    machine.sh("systemctl enable echoed.socket");
    start(machine, PATIENT);
}

fn with_the_preserve_example_connections_survive_a_stop(machine: &Machine) {
    start_with_preserve_example(machine);
    for [stop, start] in [
        ["systemctl stop echoed.service", "systemctl start echoed.service"],
        ["systemctl stop echoed.socket", "systemctl start echoed.socket echoed.service"],
    ] {
        let mut peers = connect_with_half_messages(machine);
        machine.sh(stop);
        machine.wait_for_property("echoed.service", "ActiveState", "inactive");
        assert_eq!(machine.property("echoed.service", "NFileDescriptorStore"), "1");
        let listed = machine.sh("systemd-analyze fdstore echoed.service");
        assert!(listed.contains("handover"), "{listed}");
        peers.iter_mut().for_each(|peer| peer.expect_silence(Duration::from_millis(50)));
        machine.sh(start);
        finish_messages(&mut peers);
        expect_no_warnings(machine);
    }
    // The next client starts it, too.
    let mut peers = connect_with_half_messages(machine);
    machine.sh("systemctl stop echoed.service");
    machine.connect(TCP).exchange("aaaa");
    finish_messages(&mut peers);
    // And they can be had rid of.
    machine.sh("systemctl stop echoed.service; systemctl clean --what=fdstore echoed.service");
    peers.into_iter().for_each(|mut peer| peer.expect_close());
    machine.connect(TCP).exchange("aaaa");
    expect_no_warnings(machine);
}

fn with_the_preserve_example_connections_survive_a_soft_reboot(machine: &Machine) {
    start_with_preserve_example(machine);
    machine.sh("systemctl add-wants multi-user.target echoed.service");
    let mut peers = connect_with_half_messages(machine);
    let process = machine.daemon_pid();
    machine.sh("systemctl soft-reboot");
    wait_until("another process serves", || machine.daemon_pid().is_some_and(|now| Some(now) != process));
    finish_messages(&mut peers);
    machine.connect(TCP).exchange("aaaa");
    machine.wait_for_property("echoed.service", "NFileDescriptorStore", "0");
}
