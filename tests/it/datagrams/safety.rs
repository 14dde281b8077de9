//! What keeps a datagram service from being used against others: each rule by itself.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, UCred, sendmsg_addr};
use rustix::process::{Gid, Uid, getgid, getpid, getuid};

use super::{datagram_peer, start, start_on};
use common::packets::{DatagramPeer, count_dropped, unix_address};
use common::{Daemon, skip_test};

/// Sends it and something harmless after it, which is what comes back: the other one is dropped, for this cause alone.
fn expect_dropped(daemon: Daemon, peer: &DatagramPeer, datagram: &[u8], cause: &str) {
    let other = datagram_peer(&daemon);
    peer.send(datagram);
    other.exchange("harmless");
    assert_eq!(peer.count_until_silent(Duration::from_millis(100)), 0);
    let log = daemon.stop();
    assert_eq!(count_dropped(&log, cause), 1, "{log:#?}");
    assert_eq!(log.iter().filter(|line| line.contains("dropped")).count(), 1, "{log:#?}");
}

#[test]
fn datagrams_from_service_ports_are_dropped() {
    let daemon = start("", "udp:127.0.0.1:0");
    let address = daemon.addresses()[0].clone();
    let Ok(_) = UdpSocket::bind("127.0.0.1:1023") else {
        return skip_test("ports below 1024 cannot be bound");
    };
    expect_dropped(daemon, &DatagramPeer::bind("127.0.0.1:1023", &address), b"a", "service-port");
    // The first that is one of clients.
    let daemon = start("", "udp:127.0.0.1:0");
    DatagramPeer::bind("127.0.0.1:1024", &daemon.addresses()[0]).exchange("a");
    daemon.stop();
}

#[test]
fn datagrams_that_begin_like_our_replies_are_dropped() {
    for (prefix, datagram) in [
        ("server got:", "server got:a"),
        ("server got:", "server got:"),
        ("server got:", "server error:no message within 5min"),
        ("", "server error:"),
        ("x", "xa"),
    ] {
        let daemon = start(&format!("[defaults]\nprefix = '{prefix}'\n"), "udp:127.0.0.1:0");
        let peer = datagram_peer(&daemon);
        peer.send(datagram);
        peer.send("harmless");
        peer.expect(format!("{prefix}harmless"));
        let log = daemon.stop();
        assert_eq!(count_dropped(&log, "own-reply"), 1, "{datagram}: {log:#?}");
    }
}

#[test]
fn datagrams_whose_reply_is_over_three_times_as_large_are_dropped() {
    // 28 bytes of headers on both: 84 for nothing at all.
    for (prefix, answered) in [(56, true), (57, false)] {
        let prefix = "p".repeat(prefix);
        let daemon = start(&format!("[defaults]\nprefix = '{prefix}'\n"), "udp:127.0.0.1:0");
        let peer = datagram_peer(&daemon);
        peer.send("");
        if answered {
            peer.expect(&prefix);
        }
        peer.send("longer");
        peer.expect(format!("{prefix}longer"));
        let log = daemon.stop();
        assert_eq!(count_dropped(&log, "amplifies"), u64::from(!answered), "{log:#?}");
    }
}

#[test]
fn datagrams_from_our_own_address_are_dropped() {
    for (bound, to) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("[::1]:0", "[::1]"),
        // Whichever of the machine's.
        ("0.0.0.0:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.9"),
        ("[::]:0", "[::1]"),
        ("[::]:0", "127.0.0.9"),
    ] {
        let socket = UdpSocket::bind(bound).unwrap();
        let daemon = start_on("[defaults]\nprefix = ''\n", &socket);
        let to = format!("{to}:{}", socket.local_addr().unwrap().port());
        // Forged, as it were: from the very socket, which is ours, too.
        socket.send_to(b"a", &to).unwrap();
        let other = DatagramPeer::to(&format!("udp:{to}"));
        other.send("harmless");
        other.expect("harmless");
        let log = daemon.stop();
        assert_eq!(count_dropped(&log, "own-address"), 1, "{bound} {to}: {log:#?}");
        assert_eq!(count_dropped(&log, "rate"), 0, "it talked to itself: {log:#?}");
    }
}

#[test]
fn our_port_at_another_address_is_not_our_own_address() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let daemon = start_on("", &socket);
    let port = socket.local_addr().unwrap().port();
    DatagramPeer::bind(&format!("127.0.0.2:{port}"), &daemon.addresses()[0]).exchange("a");
    daemon.stop();
}

#[test]
fn datagrams_from_unnamed_unix_sockets_are_dropped() {
    let daemon = start("", "unixgram:DIR/socket");
    let unnamed = DatagramPeer::unnamed(&daemon.addresses()[0]);
    expect_dropped(daemon, &unnamed, b"a", "nameless");
}

#[test]
fn two_daemons_pointed_at_each_other_exchange_only_one_reply() {
    let sockets = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let daemons = sockets.each_ref().map(|socket| start_on("[limits]\ndatagrams_per_source = 'off'\n", socket));
    // Forged: from the one to the other.
    sockets[0].send_to(b"hello", sockets[1].local_addr().unwrap()).unwrap();
    daemons[0].wait_for_log("1 datagram dropped on echo: own-reply; from 127.0.0.1:");
    let logs = daemons.map(Daemon::stop);
    let said = logs.map(|log| log.into_iter().find(|line| line.contains("stopped:")).unwrap());
    assert!(said[0].contains("; 0 messages, ") && said[1].contains("; 1 messages, "), "{said:#?}");
}

#[test]
fn two_daemons_with_different_prefixes_loop_no_faster_than_the_rate_limit() {
    let sockets = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let settings = ["a:", "b:"]
        .map(|prefix| format!("[limits]\ndatagrams_per_source = '20/s'\n[defaults]\nprefix = '{prefix}'\n"));
    let daemons = [start_on(&settings[0], &sockets[0]), start_on(&settings[1], &sockets[1])];
    sockets[0].send_to(b"hello", sockets[1].local_addr().unwrap()).unwrap();
    // The first that is too much ends it.
    super::wait_until("it has ended", || daemons.iter().any(|daemon| count_dropped(&daemon.log(), "rate") == 1));
    for daemon in daemons {
        let log = daemon.stop();
        let messages = log.iter().find_map(|line| line.split_once("cut; ")?.1.split_once(" messages")?.0.parse().ok());
        assert!(messages.is_some_and(|messages: u64| (15..1000).contains(&messages)), "{log:#?}");
    }
}

#[test]
fn a_flooding_source_is_rate_limited_while_another_is_served() {
    let daemon = start("[limits]\ndatagrams_per_source = '5/s'\n", "udp:127.0.0.1:0");
    let address = daemon.addresses()[0].clone();
    // All ports of an address are one source.
    let flood = [0, 1].map(|_| DatagramPeer::bind("127.0.0.1:0", &address));
    let other = DatagramPeer::bind("127.0.0.2:0", &address);
    let start = super::now();
    for _ in 0..4 {
        for _ in 0..25 {
            flood.iter().for_each(|flood| flood.send("a"));
        }
        other.exchange("b");
    }
    let answered: usize = flood.iter().map(|flood| flood.count_until_silent(Duration::from_millis(100))).sum();
    let most = 5 + 5 * (usize::try_from(start.elapsed().as_secs()).unwrap() + 1);
    assert!((5..=most).contains(&answered), "{answered} of 200 answered, {most} are allowed");
    // It is not locked out: after a while it is served again.
    thread::sleep(Duration::from_millis(1200));
    flood[0].exchange("c");
    let log = daemon.stop();
    assert_eq!(count_dropped(&log, "rate"), 200 - answered as u64, "{log:#?}");
}

#[test]
fn ipv6_and_ipv4_clients_of_one_socket_are_separate_sources() {
    let daemon = start("[limits]\ndatagrams_per_source = '1/s'\n", "udp:[::]:0");
    let port = daemon.addresses()[0].rsplit_once(':').unwrap().1.to_owned();
    // IPv4 over such a socket is a source of its own.
    let (v6, v4) = (DatagramPeer::to(&format!("udp:[::1]:{port}")), DatagramPeer::to(&format!("udp:127.0.0.1:{port}")));
    v6.exchange("a");
    v4.exchange("a");
    v6.send("b");
    v4.send("b");
    // Datagrams that are unread at the end are lost, and not counted: this one comes after both.
    DatagramPeer::bind("127.0.0.2:0", &format!("udp:127.0.0.1:{port}")).exchange("c");
    let log = daemon.stop();
    assert_eq!(count_dropped(&log, "rate"), 2, "{log:#?}");
}

#[test]
fn each_user_is_one_source_on_a_unix_socket() {
    if !getuid().is_root() {
        return skip_test("only root can send in the name of other users");
    }
    let daemon = start("[limits]\ndatagrams_per_source = '3/s'\n", "unixgram:DIR/socket");
    let address = daemon.addresses()[0].clone();
    let peer = DatagramPeer::to(&address);
    let send_as = |uid: u32| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let credentials = UCred { pid: getpid(), uid: Uid::from_raw(uid), gid: Gid::from_raw(getgid().as_raw()) };
        assert!(control.push(SendAncillaryMessage::ScmCredentials(credentials)));
        let sent =
            sendmsg_addr(peer.fd(), &unix_address(&address), &[IoSlice::new(b"a")], &mut control, SendFlags::empty());
        assert_eq!(sent, Ok(1));
    };
    for _ in 0..3 {
        send_as(1000);
        send_as(1001);
    }
    for _ in 0..6 {
        peer.expect("server got:a");
    }
    (0..100).for_each(|_| send_as(1000));
    assert!(daemon.wait_for_log("rate; from").contains("from uid 1000 pid"));
    (0..3).for_each(|_| send_as(1002));
    assert!(peer.count_until_silent(Duration::from_millis(300)) >= 3);
    daemon.stop();
}

#[test]
fn log_lines_about_drops_are_limited_and_count_every_drop() {
    let daemon = start("[defaults]\nmax_message = '10B'\n", "udp:127.0.0.1:0");
    let peer = datagram_peer(&daemon);
    for _ in 0..10 {
        for _ in 0..50 {
            peer.send("longer than that");
        }
        // So that none is lost for want of room in the kernel.
        peer.exchange("end");
    }
    let said = |log: &[String]| log.iter().filter(|line| line.contains("dropped")).count();
    daemon.wait_for_log("1 datagram dropped on echo: too-long; from 127.0.0.1:");
    assert_eq!(said(&daemon.log()), 1, "{:#?}", daemon.log());
    let log = daemon.stop();
    assert_eq!((said(&log), count_dropped(&log, "too-long")), (2, 500), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("499 datagrams dropped on echo: too-long; the last from 127.0.0.1:")));
}
