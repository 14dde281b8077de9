//! Packets and a restart: connections of them are handed over like streams, datagrams need nothing.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::connection_outcomes;
use common::now;
use common::packets::{DatagramPeer, PacketPeer};
use common::service::{FdStore, Service};

/// A service on seqpacket connections, with these settings for them.
fn start(settings: &str) -> Service {
    Service::start_on(&["seqpacket:echo"], FdStore::Enabled, settings)
}

fn connect(service: &Service) -> PacketPeer {
    PacketPeer::connect(service.address(0))
}

/// Sends numbered messages until the daemon is stuck: it has a message whose reply finds no room, and more lie unread. Returns how
/// many.
fn send_until_stuck(peer: &PacketPeer) -> usize {
    let mut count = 0;
    loop {
        let before = count;
        while peer.try_send(message(count).as_bytes()) {
            count += 1;
        }
        if count == before {
            return count;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn message(number: usize) -> String {
    format!("{number:01000}")
}

#[test]
fn seqpacket_connections_go_on_after_restarts() {
    let mut service = start("");
    let (silent, busy, ended) = (connect(&service), connect(&service), connect(&service));
    for restart in 0..3 {
        for peer in [&silent, &busy, &ended] {
            peer.exchange("before");
        }
        assert_eq!(connection_outcomes(&service.stop(Signal::TERM)), [3, 0, 0]);
        // An empty packet is not the end, whichever process receives it.
        for packet in ["", "a\tb\t", ""] {
            busy.send(packet);
        }
        if restart == 2 {
            ended.send("last");
            ended.send("");
            ended.shutdown();
        }
        let new = connect(&service);
        new.send("waits");
        service.start_next("");
        for reply in ["", "a\tb\t", ""] {
            busy.expect(format!("server got:{reply}"));
        }
        new.expect("server got:waits");
        // Otherwise the next process would count it as well.
        new.shutdown();
        new.expect_close();
    }
    ended.expect("server got:last");
    ended.expect("server got:");
    ended.expect_close();
    silent.exchange("after");
    let log = service.daemon.stop();
    assert!(log.iter().any(|line| line.contains("restored 3 connections from the previous process")), "{log:#?}");
}

#[test]
fn a_client_of_packets_that_stopped_reading_gets_all_its_replies_after_restarts() {
    const PATIENT: &str = "[defaults.deadlines]\nwrite = 'off'\n";
    let mut service = start(PATIENT);
    let peer = connect(&service);
    let sent = send_until_stuck(&peer);
    assert!(sent > 50, "{sent}");
    for _ in 0..2 {
        assert_eq!(connection_outcomes(&service.restart(PATIENT)), [1, 0, 0]);
    }
    for number in 0..sent {
        peer.expect(format!("server got:{}", message(number)));
    }
    peer.exchange("after");
    service.daemon.stop();
}

#[test]
fn a_connection_of_packets_that_is_being_closed_gets_its_replies_and_the_final_reply_after_a_restart() {
    const LIFETIME: Duration = Duration::from_secs(2);
    const SETTINGS: &str = "[defaults.deadlines]\nwrite = '1min'\nlifetime = '2s'\n";
    let mut service = start(SETTINGS);
    let (peer, start) = (connect(&service), now());
    let sent = send_until_stuck(&peer);
    // From then on it takes no further message.
    thread::sleep((start + LIFETIME + Duration::from_millis(100)).saturating_duration_since(now()));
    assert_eq!(connection_outcomes(&service.restart(SETTINGS)), [1, 0, 0]);
    let mut received = 0;
    let end = loop {
        match peer.receive() {
            reply if reply == format!("server got:{}", message(received)).as_bytes() => received += 1,
            end => break end,
        }
    };
    assert_eq!(end, b"server error:connection older than 2s");
    peer.expect_close();
    assert!(received > 20 && received < sent, "{received} replies to {sent} messages");
    service.daemon.stop();
}

#[test]
fn the_reply_delay_of_packets_keeps_running_between_two_processes() {
    const REPLY_DELAY: Duration = Duration::from_secs(3);
    const SETTINGS: &str = "[defaults]\nreply_delay = '3s'\n";
    let mut service = start(SETTINGS);
    let (peer, start) = (connect(&service), now());
    peer.exchange("a");
    service.stop(Signal::TERM);
    peer.send("b");
    service.start_next(SETTINGS);
    peer.expect("server got:b");
    assert!(start.elapsed() >= REPLY_DELAY, "{:?}", start.elapsed());
    assert!(start.elapsed() < 2 * REPLY_DELAY, "not as if it had just begun: {:?}", start.elapsed());
    service.daemon.stop();
}

#[test]
fn connections_of_packets_whose_socket_is_no_longer_passed_are_drained() {
    let mut service = Service::start_on(&["tcp:other", "seqpacket:echo"], FdStore::Enabled, "");
    let peer = PacketPeer::connect(service.address(1));
    peer.exchange("before");
    service.stop(Signal::TERM);
    service.remove_socket("echo");
    service.start_next("");
    peer.expect_close();
    service.daemon.stop();
}

#[test]
fn datagrams_that_arrive_between_two_processes_are_answered_by_the_next_one() {
    let settings = "[listener.datagrams]\n";
    let mut service = Service::start_on(&["tcp:echo", "unixgram:datagrams"], FdStore::Enabled, settings);
    let peer = DatagramPeer::to(service.address(1));
    peer.exchange("before");
    service.stop(Signal::TERM);
    for number in 0..5 {
        peer.send(format!("{number}"));
    }
    service.start_next(settings);
    for number in 0..5 {
        peer.expect(format!("server got:{number}"));
    }
    service.daemon.stop();
}
