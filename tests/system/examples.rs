//! The example units: each is installed with its section as it says itself, started, and talked to by a client that knows
//! nothing of echoed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use echoed::systemd::journal::lossless::MESSAGE;

use crate::journal::entries::{Entry, journalctl, wait_for_entries};
use crate::journal::rate_limit::assert_in_order;
use common::machines::machine::{Machine, TCP};
use common::now;
use common::packets::{DatagramPeer, PacketPeer};

tests![
    lines_are_logged_completely_and_not_answered,
    no_line_is_suppressed_however_many_arrive_at_once,
    no_line_of_100000_is_lost_while_journald_hangs_for_10_s,
    a_greeter_delays_its_replies,
    rfc_862_echoes_over_tcp_and_udp,
    rfc_863_discards_over_tcp_and_udp,
    health_checkers_that_read_lines_are_answered,
    packets_are_echoed_over_a_seqpacket_connection,
    all_examples_are_served_side_by_side_by_one_process,
];

const EXAMPLES: [&str; 6] = ["lines", "greeter", "rfc862", "discard", "seqpacket", "health"];

/// Uses examples as they say themselves.
fn install(machine: &Machine, names: &[&str]) {
    machine.sh("mkdir -p /etc/echoed/echoed.toml.d; systemctl start echoed.socket");
    for name in names {
        let (unit, section) = (format!("echoed-{name}.socket"), format!("echoed-{name}.toml"));
        for (file, directory) in [(&unit, "/etc/systemd/system"), (&section, "/etc/echoed/echoed.toml.d")] {
            let example = format!("/usr/share/doc/echoed/examples/{file}");
            // It says that it belongs there.
            machine.sh(&format!(
                "grep -q '^# To be used as {directory}/{file}[,.]' {example} && cp {example} {directory}"
            ));
        }
    }
    machine.sh("echoed --check-config");
    machine.sh("systemctl stop echoed.socket; systemctl daemon-reload");
    for name in names {
        machine.sh(&format!("systemctl enable --quiet echoed-{name}.socket"));
    }
    machine.sh("systemctl start echoed.socket");
    for name in names {
        assert_eq!(machine.property(&format!("echoed-{name}.socket"), "ActiveState"), "active");
    }
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
}

/// The lines in the journal, once there are so many.
fn logged_lines(machine: &Machine, count: usize) -> Vec<Entry> {
    let id = MESSAGE.message_id;
    wait_for_entries(machine, &format!("--unit=echoed.service LISTENER=lines MESSAGE_ID={id}"), count)
}

fn lines_are_logged_completely_and_not_answered(machine: &Machine) {
    install(machine, &["lines"]);
    let long = "long ".repeat(10_000);
    for (before, address, peer) in [(0, "tcp:127.0.0.1:3000", "127.0.0.1:"), (5, "unix:/run/accu.sock", "")] {
        let mut client = machine.connect(address);
        client.send(format!("first\n\nwith a TAB\t\r\n{long}\nno end"));
        client.shutdown();
        // No reply before that.
        client.expect_close();
        let found = logged_lines(machine, before + 5);
        for (entry, line) in found[before..].iter().zip(["first", "", "with a TAB\t\r", &long, "no end"]) {
            assert_eq!(entry.text("MESSAGE"), line);
            let from = entry.text("PEER");
            assert!(!from.is_empty() && from.starts_with(peer), "{from}");
        }
    }
}

fn no_line_is_suppressed_however_many_arrive_at_once(machine: &Machine) {
    const LINES: usize = 5_000;
    // Of a service that does not say otherwise; by default it depends on how large the disk is.
    machine.write("/etc/systemd/journald.conf.d/50-test.conf", "[Journal]\nRateLimitBurst=10");
    machine.sh("systemctl restart systemd-journald");
    install(machine, &["lines"]);
    let mut client = machine.connect("unix:/run/accu.sock");
    client.send((0..LINES).map(|number| format!("{number}\n")).collect::<String>());
    client.shutdown();
    client.expect_close();
    assert_in_order(&logged_lines(machine, LINES));
}

fn no_line_of_100000_is_lost_while_journald_hangs_for_10_s(machine: &Machine) {
    const CLIENTS: [&str; 4] =
        ["tcp:127.0.0.1:3000", "unix:/run/accu.sock", "tcp:127.0.0.1:3000", "unix:/run/accu.sock"];
    const EACH: usize = 25_000;
    let sent = |client: usize| (0..EACH).map(move |line| format!("client {client} line {line:0>200}"));
    install(machine, &["lines"]);
    let mut clients = CLIENTS.map(|address| machine.connect(address));
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(sent(number).take(1).map(|line| line + "\n").collect::<String>());
    }
    logged_lines(machine, clients.len());
    let daemon = machine.daemon_pid();
    let suspended = machine.suspend("systemd-journal");
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (number, client) in clients.iter_mut().enumerate() {
            let (done, text) = (&done, sent(number).skip(1).map(|line| line + "\n").collect::<String>());
            scope.spawn(move || {
                // In pieces that end anywhere.
                text.as_bytes().chunks(4093).for_each(|piece| client.send(piece));
                // TCP may have room for all of it, in the kernel.
                done.fetch_add(usize::from(CLIENTS[number].starts_with("unix:")), Ordering::Relaxed);
                client.shutdown();
                // There is much to write yet.
                client.receive_for(Duration::from_secs(120));
                client.expect_close();
            });
        }
        thread::sleep(Duration::from_secs(10));
        assert_eq!(done.load(Ordering::Relaxed), 0, "a client that sends more than fits waits");
        drop(suspended);
    });
    assert_eq!(machine.daemon_pid(), daemon);
    // The process ends when everything is written.
    machine.sh("systemctl stop echoed.socket; journalctl --sync");
    let id = MESSAGE.message_id;
    let found = journalctl(machine, &format!("--output=cat --unit=echoed.service MESSAGE_ID={id}"));
    let found = String::from_utf8(found).expect("only text was sent");
    for number in 0..clients.len() {
        let client = format!("client {number} ");
        let logged: Vec<_> = found.lines().filter(|line| line.starts_with(&client)).collect();
        let differs = sent(number).zip(&logged).position(|(sent, logged)| sent != **logged);
        assert_eq!((logged.len(), differs), (EACH, None), "client {number}: how many lines, and the first wrong one");
    }
    assert_eq!(found.lines().count(), clients.len() * EACH);
}

fn a_greeter_delays_its_replies(machine: &Machine) {
    const GREETING: &str = "Hello, client!\n";
    install(machine, &["greeter"]);
    let mut client = machine.connect("tcp:127.0.0.1:8080");
    let start = now();
    for number in 0..3 {
        client.send(format!("{number} Hello, server!"));
        client.expect(GREETING);
    }
    assert!(start.elapsed() >= Duration::from_secs(4), "{:?}", start.elapsed());
    client.shutdown();
    client.expect_close();
}

fn rfc_862_echoes_over_tcp_and_udp(machine: &Machine) {
    install(machine, &["rfc862"]);
    let every: Vec<u8> = (0..=u8::MAX).cycle().take(1000).collect();
    let datagrams = DatagramPeer::to("udp:127.0.0.1:7");
    let mut stream = machine.connect("tcp:127.0.0.1:7");
    for bytes in [&b"a"[..], b"no end, no TAB", b"\t\t\r\n", &every] {
        datagrams.send(bytes);
        datagrams.expect(bytes);
        stream.send(bytes);
        stream.expect(bytes);
    }
    stream.shutdown();
    stream.expect_close();
}

fn rfc_863_discards_over_tcp_and_udp(machine: &Machine) {
    install(machine, &["discard"]);
    let datagrams = DatagramPeer::to("udp:127.0.0.1:9");
    for _ in 0..3 {
        datagrams.send("dropped");
    }
    // It took them.
    machine.wait_for_property("echoed.service", "ActiveState", "active");
    machine.wait_for_property("echoed.service", "StatusText", "0/4096 connections, 4 listeners, 3 messages");
    let mut stream = machine.connect("tcp:127.0.0.1:9");
    stream.send("x".repeat(1_000_000));
    stream.shutdown();
    stream.expect_close();
    assert_eq!(datagrams.count_until_silent(Duration::from_millis(50)), 0);
}

fn health_checkers_that_read_lines_are_answered(machine: &Machine) {
    install(machine, &["health"]);
    let mut client = machine.connect("tcp:127.0.0.1:8086");
    client.send("aaaa\nbbbb\tcccc\r\n");
    client.expect("server got:aaaa\nserver got:bbbb\tcccc\r\n");
    client.shutdown();
    client.expect_close();
}

fn packets_are_echoed_over_a_seqpacket_connection(machine: &Machine) {
    install(machine, &["seqpacket"]);
    let peer = PacketPeer::connect(&machine.address("seqpacket:/run/echoed-seqpacket.sock"));
    for packet in ["aaaa", "", "a\tb\t", &"x".repeat(65_536)] {
        peer.exchange(packet);
    }
    peer.send("x".repeat(65_537));
    peer.expect("server error:message exceeds 65536 bytes");
    peer.expect_close();
}

fn all_examples_are_served_side_by_side_by_one_process(machine: &Machine) {
    install(machine, &EXAMPLES);
    machine.connect(TCP).exchange("aaaa");
    let process = machine.daemon_pid();
    let mut greeter = machine.connect("tcp:127.0.0.1:8080");
    greeter.send("a");
    greeter.expect("Hello, client!\n");
    machine.connect("unix:/run/accu.sock").send("a line\n");
    logged_lines(machine, 1);
    assert_eq!(machine.daemon_pid(), process);
    let log = machine.wait_for_journal("--unit=echoed.service --grep='listening on|no section'");
    for name in EXAMPLES {
        assert!(log.contains(&format!("({name})")), "{name}: {log}");
    }
    assert!(!log.contains("no section"), "{log}");

    // They go with echoed.socket, and their files with them.
    machine.sh("systemctl stop echoed.socket");
    for name in EXAMPLES {
        assert_eq!(machine.property(&format!("echoed-{name}.socket"), "ActiveState"), "inactive");
    }
    machine.sh("test ! -e /run/accu.sock -a ! -e /run/echoed-seqpacket.sock");
}
