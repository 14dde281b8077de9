//! `journalctl -x`: beneath each entry, what it means and what to do. Every kind that can be provoked is, for real.

use std::net::UdpSocket;

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::entries::{Entry, entries, journalctl};
use super::{SETTINGS, TCP, configure, listen};
use crate::handover::forger::tamper;
use common::hang::hang_thread;
use common::machines::machine::Machine;
use common::wait_until;

tests![
    events_at_the_start_are_explained,
    a_failed_start_is_explained,
    a_stop_and_its_reason_are_explained,
    reloads_are_explained,
    handed_over_connections_are_explained,
    events_caused_by_clients_are_explained,
    reached_limits_are_explained,
    datagrams_that_are_not_answered_are_explained,
    a_broken_listener_is_explained,
    a_hung_worker_is_explained,
];

const CATALOG: &str = include_str!("../../../systemd/catalog/echoed.catalog");

/// Waits for an entry with this subject in the catalog, and checks that its explanation is printed beneath it.
pub fn expect_explained(machine: &Machine, subject: &str) -> Entry {
    machine.sh("journalctl --update-catalog");
    let (before, after) = CATALOG.split_once(&format!("\nSubject: {subject}\n")).expect("it is in the catalog");
    let (_, id) = before.rsplit_once("-- ").expect("an ID comes before it");
    // Comments are not printed.
    let rest = after.split("\n\n# ").next().unwrap_or_default().trim_end();
    let mut found = Vec::new();
    wait_until(&format!("there is an entry \"{subject}\""), || {
        found = entries(machine, &format!("-u echoed MESSAGE_ID={id}"));
        !found.is_empty()
    });
    let entry = found.pop().expect("there is one");
    let mut explanation = format!("Subject: {subject}\n{rest}");
    for name in ["LISTENER", "PEER", "CONNECTION", "MESSAGES", "VERDICT"] {
        explanation = explanation.replace(&format!("@{name}@"), &entry.text(name));
    }
    let lines: String = explanation.lines().map(|line| format!("░░ {line}\n")).collect();
    let message = entry.text("MESSAGE");
    let expected = format!("{}\n{lines}", message.lines().last().unwrap_or_default());
    let printed = journalctl(machine, &format!("--catalog -u echoed MESSAGE_ID={id}"));
    let printed = String::from_utf8(printed).expect("it is text");
    assert!(printed.ends_with(&expected), "expected at the end:\n{expected}\nprinted:\n{printed}");
    entry
}

/// Starts the service with other settings.
fn restart(machine: &Machine, settings: &str) {
    configure(machine, settings);
    machine.sh("systemctl restart echoed");
}

fn drop_in(machine: &Machine, unit: &str, text: &str) {
    machine.write(&format!("/etc/systemd/system/{unit}.d/50-test.conf"), text);
    machine.sh("systemctl daemon-reload");
}

fn events_at_the_start_are_explained(machine: &Machine) {
    machine.sh("cp /usr/share/doc/echoed/examples/echoed-lines.socket /etc/systemd/system/");
    // The address of the manager leads nowhere.
    let unreachable_manager =
        "[Service]\nType=simple\nNotifyAccess=none\nWatchdogSec=0\nEnvironment=NOTIFY_SOCKET=/nowhere";
    drop_in(machine, "echoed.service", &format!("{unreachable_manager}\nLimitNOFILE=1000"));
    configure(machine, "[listener.echo]\nlisten = ['tcp:127.0.0.1:1']");
    machine.sh("systemctl start echoed.socket echoed-lines.socket echoed.service");
    for subject in [
        "Serving on a listener: @LISTENER@",
        "Addresses in the settings are ignored",
        "Listener @LISTENER@ has no section of its own",
        "Too few descriptors for limits.connections",
        "systemd could not be notified",
    ] {
        expect_explained(machine, subject);
    }
}

fn a_failed_start_is_explained(machine: &Machine) {
    configure(machine, "[limits]\nconnectons = 2\nbuffer_memory = 7");
    assert!(machine.run("systemctl start echoed").code != Some(0));
    let entry = expect_explained(machine, "The daemon cannot start");
    assert_eq!(entry.ours()["PRIORITY"], "3");
    let text = entry.text("MESSAGE");
    assert!(text.starts_with(&format!("failed to start: {SETTINGS}:2:1: there is no key connectons")), "{text}");
    assert!(text.contains("buffer_memory: 7 has no unit"), "{text}");
}

fn a_stop_and_its_reason_are_explained(machine: &Machine) {
    listen(machine, "[log]\nlevel = 'debug'\n[service]\ndrain_timeout = '1h'\n[defaults]\nsend_buffer = '4KiB'");
    let mut drained = machine.connect(TCP);
    drained.exchange("a");
    // Owed more than it takes.
    let mut non_reading = machine.connect("unix:/run/echoed.sock");
    while non_reading.send_what_fits(&[b'\t'; 4096]) > 0 {}
    wait_until("it is answered", || non_reading.readable_bytes() > 0);
    machine.sh("systemctl kill --signal=INT echoed.service");
    let entry = expect_explained(machine, "The daemon is stopping");
    assert_eq!(entry.text("MESSAGE"), "stopping: SIGINT");
    expect_explained(machine, "The connection of @PEER@ ended because the daemon stops");
    drained.expect_close();
    machine.sh("systemctl kill echoed.service");
    expect_explained(machine, "The drain was cut short");
    let entry = expect_explained(machine, "The daemon has stopped");
    assert!(entry.text("MESSAGE").starts_with("stopped: 1 connections finished, 1 cut; "), "{entry:?}");

    configure(machine, "[service]\nidle_exit = '10ms'");
    machine.connect(TCP).exchange("a");
    wait_until("it says that it was not used", || {
        let why = expect_explained(machine, "The daemon is stopping").text("MESSAGE");
        why == "stopping: no connection for 10ms (service.idle_exit)"
    });
}

fn reloads_are_explained(machine: &Machine) {
    listen(machine, "");
    machine.connect(TCP).exchange("a");
    configure(machine, "[service]\nworkers = 3");
    machine.sh("systemctl reload echoed");
    expect_explained(machine, "Some new settings need a restart");
    expect_explained(machine, "New settings are in use");
    configure(machine, "[service]\nworkers = 'many'");
    machine.run("systemctl reload echoed");
    let entry = expect_explained(machine, "The new settings are invalid and ignored");
    assert_eq!(entry.ours()["PRIORITY"], "3");
    assert!(entry.text("MESSAGE").contains(&format!("{SETTINGS}:2:11: ")), "{entry:?}");
}

fn handed_over_connections_are_explained(machine: &Machine) {
    listen(machine, "[log]\nlevel = 'debug'");
    let mut peer = machine.connect(TCP);
    peer.exchange("a");
    machine.sh("systemctl restart echoed");
    expect_explained(machine, "The connection of @PEER@ continues in the next process");
    expect_explained(machine, "Connection @CONNECTION@ from @PEER@ continues");
    expect_explained(machine, "Connections of the previous process were restored");
    tamper(machine, "empty");
    let entry = expect_explained(machine, "Connections of the previous process could not be restored");
    assert_eq!(entry.ours()["PRIORITY"], "4");
    let mut peers: Vec<_> = (0..20).map(|_| machine.connect(TCP)).collect();
    peers.iter_mut().for_each(|peer| peer.exchange("a"));
    let process = machine.pid_inside(machine.daemon_pid().expect("it runs"));
    machine.sh(&format!("prlimit --pid={process} --nofile=10:16384; systemctl restart echoed"));
    let entry = expect_explained(machine, "Connections could not be handed over to the next process");
    assert_eq!(entry.ours()["PRIORITY"], "4");
}

fn events_caused_by_clients_are_explained(machine: &Machine) {
    // Which is not a loopback address: those may have as many connections as they like.
    machine.sh("ip address add 192.0.2.1/32 dev lo");
    drop_in(machine, "echoed.socket", "[Socket]\nListenStream=192.0.2.1:8085");
    machine.sh("systemctl start echoed.socket");
    let address = "tcp:192.0.2.1:8085";
    let connect = || machine.connect(address);

    restart(machine, "[log]\nlevel = 'debug'\n[defaults]\nlog_messages = 'summary'");
    connect().exchange("a");
    expect_explained(machine, "Connection @CONNECTION@ from @PEER@");
    expect_explained(machine, "A message of @PEER@, in short");
    expect_explained(machine, "@PEER@ ended its connection");
    let peer = connect();
    peer.reset();
    expect_explained(machine, "The connection of @PEER@ broke");
    connect().send("half");
    expect_explained(machine, "@PEER@ ended in the middle of a message");

    restart(machine, "[defaults]\nmax_message = '4B'\nlog_messages = 'full'");
    let mut peer = connect();
    peer.exchange("a");
    peer.send("too long");
    expect_explained(machine, "@PEER@ sent a message that is too long");
    expect_explained(machine, "A message of @PEER@");

    let deadline = |key: &str, subject: &str| {
        restart(machine, &format!("[log]\nlevel = 'debug'\n[defaults.deadlines]\n{key} = '10ms'"));
        let mut peer = connect();
        let _ = peer.send_what_fits(b"half");
        expect_explained(machine, subject);
    };
    deadline("read", "@PEER@ did not finish a message in time");
    deadline("lifetime", "The connection of @PEER@ reached its lifetime");
    restart(machine, "[log]\nlevel = 'debug'\n[defaults.deadlines]\nidle = '10ms'");
    let _silent = connect();
    expect_explained(machine, "@PEER@ sent nothing for too long");
    restart(machine, "[defaults]\nsend_buffer = '4KiB'\n[defaults.deadlines]\nwrite = '100ms'");
    let mut non_reading = machine.connect("unix:/run/echoed.sock");
    while non_reading.send_what_fits(&[b'\t'; 4096]) > 0 {}
    expect_explained(machine, "@PEER@ does not take its replies");

    restart(machine, "[limits]\nconnections_per_source = 1\nbuffer_memory = '4KiB'\n[defaults]\nmax_message = '4KiB'");
    let mut first = connect();
    first.send("x".repeat(3000));
    first.wait_until_read();
    let _second = connect();
    expect_explained(machine, "@PEER@ has too many connections");
    let mut third = machine.connect(TCP);
    third.send("x".repeat(3000));
    expect_explained(machine, "No buffer memory for @PEER@");
}

fn reached_limits_are_explained(machine: &Machine) {
    drop_in(machine, "echoed.service", "[Service]\nLimitNOFILE=64");
    listen(machine, "[limits]\nconnections = 1\nreclaim_idle = 'off'");
    machine.connect(TCP).exchange("a");
    let entry = expect_explained(machine, "The limit on connections is reached");
    assert_eq!(entry.ours()["PRIORITY"], "4");
    restart(machine, "[limits]\nconnections = 80");
    let peers: Vec<_> = (0..80).map(|_| machine.connect(TCP)).collect();
    expect_explained(machine, "Accepting is paused on @LISTENER@");
    drop(peers);
    expect_explained(machine, "Clients are accepted on @LISTENER@ again");
}

fn datagrams_that_are_not_answered_are_explained(machine: &Machine) {
    drop_in(machine, "echoed.socket", "[Socket]\nListenDatagram=127.0.0.1:8085");
    listen(machine, "");
    let service = UdpSocket::bind("127.0.0.1:1000").expect("the port is free");
    service.send_to(b"a", "127.0.0.1:8085").expect("a socket listens there");
    let entry = expect_explained(machine, "Datagrams on @LISTENER@ are not answered (@VERDICT@)");
    let message = "1 datagram dropped on echo: service-port; from 127.0.0.1:1000";
    let expected = [("MESSAGE", message), ("PEER", "127.0.0.1:1000"), ("VERDICT", "service-port"), ("PRIORITY", "6")];
    for (name, value) in expected {
        assert_eq!(entry.text(name), value);
    }
}

fn a_broken_listener_is_explained(machine: &Machine) {
    // Sockets of several units come in any order.
    machine.sh("systemctl mask --quiet echoed-control.socket");
    listen(machine, "");
    machine.connect(TCP).exchange("a");
    // Nothing but a hand in its descriptors can do this: the first socket that it was handed is shut down.
    let daemon = machine.daemon_pid().expect("it runs");
    let daemon = Pid::from_raw(daemon.try_into().expect("it is small")).expect("it is not 0");
    let process = pidfd_open(daemon, PidfdFlags::empty()).expect("it runs");
    let listener = pidfd_getfd(process, 3, PidfdGetfdFlags::empty()).expect("it has sockets");
    assert!(matches!(shutdown(&listener, Shutdown::Both), Ok(()) | Err(Errno::NOTCONN)));
    let entry = expect_explained(machine, "Listener @LISTENER@ has failed");
    assert_eq!(entry.ours()["PRIORITY"], "3");
    // The other one is served.
    machine.connect("unix:/run/echoed.sock").exchange("a");
}

fn a_hung_worker_is_explained(machine: &Machine) {
    drop_in(machine, "echoed.service", "[Service]\nWatchdogSec=2s");
    listen(machine, "");
    machine.connect(TCP).exchange("a");
    if !hang_thread(machine.daemon_pid().expect("it runs"), "worker-0") {
        return;
    }
    expect_explained(machine, "A worker thread does not respond");
}
