//! What is handed over but cannot be served: each with what is said about it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use rustix::net::{AddressFamily, SocketType, bind, socket};

use crate::common::Daemon;
use crate::common::manager::hand_over;
use crate::{address_of, copy, spawn, tcp_connection, tcp_listener};

/// Waits for a daemon that cannot start, and returns the one line that says why.
fn refusal(mut daemon: Daemon) -> String {
    let status = daemon.wait();
    let log = daemon.log();
    assert!(status.code() == Some(71) && log.len() == 1, "{status}: {log:#?}");
    log.into_iter().next().expect("there is one")
}

/// What is said about descriptors that cannot be served; as for [`hand_over`].
fn refusal_of(redirections: &str, sockets: Vec<OwnedFd>, names: &str) -> String {
    refusal(spawn(hand_over(redirections, sockets, names), "", &[]))
}

pub(crate) fn netlink() -> OwnedFd {
    socket(AddressFamily::NETLINK, SocketType::RAW, None).expect("there are such sockets")
}

#[test]
fn what_is_no_socket_to_be_served_is_refused_with_what_it_is() {
    let of_packets = |family, kind| vec![socket(family, kind, None).unwrap()];
    for (redirection, sockets, said) in [
        ("3<&0", vec![netlink()], "a netlink socket; echoed serves ListenStream="),
        ("3<&0", of_packets(AddressFamily::INET, SocketType::DGRAM), "a UDP socket that is not bound"),
        ("3<&0", of_packets(AddressFamily::INET6, SocketType::DGRAM), "a UDP socket that is not bound"),
        ("3<&0", vec![UnixDatagram::unbound().unwrap().into()], "a Unix datagram socket that is not bound"),
        (
            "3<&0",
            of_packets(AddressFamily::UNIX, SocketType::SEQPACKET),
            "a Unix seqpacket socket that neither listens nor is connected",
        ),
        ("3<\"$0\"", vec![], "no socket"),
        ("3</dev/null", vec![], "no socket"),
        ("3<&2", vec![], "no socket"),
    ] {
        let refusal = refusal_of(redirection, sockets, "some.name");
        let expected = format!("echoed: descriptor 3 (some.name) from systemd: it is {said}");
        assert!(refusal.starts_with(&expected), "{refusal}, expected {expected}");
    }
}

#[test]
fn a_socket_that_neither_listens_nor_is_connected_is_refused() {
    let stream = |family| socket(family, SocketType::STREAM, None).unwrap();
    let bound = stream(AddressFamily::INET);
    bind(&bound, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    for (socket, said) in [
        (bound, "it is a TCP socket"),
        (stream(AddressFamily::INET), "it is a TCP socket"),
        (stream(AddressFamily::INET6), "it is a TCP socket"),
        (stream(AddressFamily::UNIX), "it is a Unix stream socket"),
    ] {
        let refusal = refusal_of("3<&0", vec![socket], "x");
        let expected = format!("echoed: descriptor 3 (x) from systemd: {said} that neither listens nor is connected");
        assert_eq!(refusal, expected);
    }
}

#[test]
fn one_that_cannot_be_served_among_others_that_can_is_named() {
    let listener = || OwnedFd::from(tcp_listener());
    let refusal = refusal_of("3<&0 4<&1", vec![listener(), netlink()], "good:bad");
    assert!(refusal.contains("descriptor 4 (bad) from systemd: it is a netlink socket"), "{refusal}");
    let refusal = refusal_of("3<&1 4<&0", vec![listener(), netlink()], "bad:good");
    assert!(refusal.contains("descriptor 3 (bad) from systemd: it is a netlink socket"), "{refusal}");
    let refusal = refusal_of("3<&0 4<&1", vec![listener(), listener()], "good:metrics");
    assert!(refusal.contains("descriptor 4 (metrics) from systemd: metrics are not built yet"), "{refusal}");
}

#[test]
fn a_connection_among_others_is_refused() {
    let (peer, connection) = tcp_connection();
    let connection = || connection.try_clone().unwrap().into();
    let refusal = refusal_of("3<&0 4<&1", vec![tcp_listener().into(), connection()], "good:bad");
    assert!(refusal.contains("descriptor 4 (bad) from systemd is a connection, but one of 2;"), "{refusal}");
    let refusal = refusal_of("3<&1 4<&0", vec![tcp_listener().into(), connection()], "bad:good");
    assert!(refusal.contains("descriptor 3 (bad) from systemd is a connection, but one of 2;"), "{refusal}");
    let (client, unix) = UnixStream::pair().unwrap();
    let refusal = refusal_of("3<&0 4<&1", vec![connection(), unix.into()], "one:other");
    assert!(refusal.contains("from systemd is a connection, but one of 2;"), "{refusal}");
    drop((peer, client));
}

#[test]
fn variables_that_make_no_sense_are_refused() {
    for (variable, value) in [
        ("LISTEN_FDS", ""),
        ("LISTEN_FDS", "one"),
        ("LISTEN_FDS", "-1"),
        ("LISTEN_FDS", "1.5"),
        ("LISTEN_FDS", "4294967295"),
        ("LISTEN_FDS", "99999999999999999999"),
        ("LISTEN_FDS", "2"),
        ("LISTEN_FDS", "70000"),
        ("LISTEN_FDNAMES", "echo:echo"),
        ("LISTEN_PID", "me"),
        ("LISTEN_PID", ""),
    ] {
        let mut command = hand_over("3<&0 4<&-", vec![tcp_listener().into()], "echo");
        command.env(variable, value);
        let refusal = refusal(spawn(command, "", &[]));
        assert!(refusal.starts_with("echoed: ") && refusal.contains(variable), "{value}: {refusal}");
    }
    let missing = refusal_of("3<&0 4<&-", vec![tcp_listener().into()], "a:b");
    assert!(missing.contains("LISTEN_FDS=2, but not all of the descriptors from 3 on are open"), "{missing}");
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let listener = tcp_listener();
    for (variable, value) in [("LISTEN_PID", "1"), ("LISTEN_FDS", "0")] {
        let mut command = hand_over("3<&0", vec![copy(&listener)], "echo");
        command.env_remove("LISTEN_FDNAMES").env(variable, value);
        let daemon = spawn(command, "", &["--listen", "127.0.0.1:0"]);
        daemon.wait_for_log("listening on");
        daemon.connect().exchange("a");
        assert!(!daemon.addresses().contains(&format!("tcp:{}", address_of(&listener))));
        let log = daemon.stop();
        assert!(!log.iter().any(|line| line.contains("ignored")), "{log:#?}");
    }
}
