//! Packets and a restart: connections of them end, datagrams need none.

use rustix::process::Signal;

use crate::common::packets::{DatagramPeer, PacketPeer};
use crate::connection_outcomes;
use crate::service::{FdStore, Service};

#[test]
fn seqpacket_connections_are_closed_at_a_restart_without_waiting_for_slow_clients() {
    let settings = "[defaults.deadlines]\nwrite = 'off'\n[listener.packets]\n";
    let mut service = Service::start_on(&["tcp:echo", "seqpacket:packets"], FdStore::Enabled, settings);
    let mut stream = service.connect();
    stream.exchange("before");
    let [idle, stuck] = [0, 1].map(|_| PacketPeer::connect(service.address(1)));
    idle.exchange("a");
    // Until the daemon is stuck: it has a message whose reply finds no room, and more lie unread.
    while stuck.send_what_fits(&[b'x'; 1000]) > 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(connection_outcomes(&service.stop(Signal::TERM)), [1, 2, 0]);
    idle.expect_close();
    let mut replies = 0;
    while !stuck.receive().is_empty() {
        replies += 1;
    }
    assert!(replies > 50, "{replies}");
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
