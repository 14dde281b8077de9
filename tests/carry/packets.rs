//! Packets and a restart: connections of them end, datagrams need none.

use rustix::process::Signal;

use crate::common::packets::{PacketPeer, Sender};
use crate::fates;
use crate::service::{Service, Store};

#[test]
fn connections_of_packets_end_with_what_they_were_sent_and_nobody_is_waited_for() {
    let settings = "[defaults.deadlines]\nwrite = 'off'\n[listener.packets]\n";
    let mut service = Service::start_on(&["tcp:echo", "seqpacket:packets"], Store::Some, settings);
    let mut stream = service.connect();
    stream.exchange("before");
    let [idle, stuck] = [0, 1].map(|_| PacketPeer::connect(service.address(1)));
    idle.exchange("a");
    // Until the daemon is stuck: it has a message whose reply finds no room, and more lie unread.
    while stuck.send_what_fits(&[b'x'; 1000]) > 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(fates(&service.end(Signal::TERM)), [1, 2, 0]);
    idle.expect_close();
    let mut replies = 0;
    while !stuck.receive().is_empty() {
        replies += 1;
    }
    assert!(replies > 50, "{replies}");
}

#[test]
fn datagrams_that_come_while_no_process_is_there_are_answered_by_the_next_one() {
    let settings = "[listener.datagrams]\n";
    let mut service = Service::start_on(&["tcp:echo", "unixgram:datagrams"], Store::Some, settings);
    let peer = Sender::to(service.address(1));
    peer.exchange("before");
    service.end(Signal::TERM);
    for number in 0..5 {
        peer.send(format!("{number}"));
    }
    service.begin(settings);
    for number in 0..5 {
        peer.expect(format!("server got:{number}"));
    }
    service.daemon.stop();
}
