//! Listening sockets that another holder shuts down with shutdown(2): systemd holds them as well, and so may others.
//! The kernel reports such a socket as ready for ever, with nothing in it.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, listen, shutdown, socket_with,
};
use rustix::process::Signal;
use tempfile::TempDir;

use super::{address_of, spawn, tcp_listener};
use common::packets::{DatagramPeer, PacketPeer};
use common::service_manager::activated_command;
use common::{Daemon, Peer, wait_until};

const CURE: &str = "stop the service and its socket unit, then start the socket unit";

/// A socket of each kind that can be served, bound in `directory` if it is a Unix socket.
fn sockets(directory: &TempDir) -> Vec<(&'static str, OwnedFd)> {
    let path = |name: &str| directory.path().join(name);
    let seqpacket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("there are such sockets");
    let name = SocketAddrUnix::new(path("seqpacket")).expect("it is short");
    bind(&seqpacket, &name).and_then(|()| listen(&seqpacket, 10)).expect("the path is free");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("there is a free port");
    vec![
        ("TCP", tcp_listener().into()),
        ("Unix stream", UnixListener::bind(path("stream")).expect("the path is free").into()),
        ("Unix seqpacket", seqpacket),
        ("UDP", udp.into()),
        ("Unix datagram", UnixDatagram::bind(path("datagram")).expect("the path is free").into()),
    ]
}

fn copy(socket: &OwnedFd) -> OwnedFd {
    socket.try_clone().expect("it can be duplicated")
}

/// Shuts down the one socket that is behind all its descriptors.
fn shut_down(socket: &OwnedFd, how: Shutdown) {
    // The kernel does it also for a UDP socket that has no peer, and returns ENOTCONN all the same.
    let _ = shutdown(socket, how);
}

/// Exchanges a message with a socket of this kind.
fn exchange(kind: &str, address: &str) {
    match kind {
        "UDP" | "Unix datagram" => DatagramPeer::to(address).exchange("a"),
        "Unix seqpacket" => PacketPeer::connect(address).exchange("a"),
        _ => Peer::connect(address).exchange("a"),
    }
}

fn check_line(line: &str) {
    assert!(line.starts_with("error: failed to serve dead: another process shut the socket down; "), "{line}");
    assert!(line.contains(CURE), "{line}");
}

#[test]
fn the_last_listener_ends_when_its_socket_is_shut_down_and_the_daemon_exits_with_71() {
    for how in [Shutdown::Both, Shutdown::Read] {
        let directory = tempfile::tempdir().unwrap();
        for (kind, socket) in sockets(&directory) {
            let mut daemon = spawn(activated_command("3<&0", vec![copy(&socket)], "dead"), "", &[]);
            daemon.wait_for_log("listening on");
            exchange(kind, &daemon.addresses()[0]);
            shut_down(&socket, how);
            assert_eq!(daemon.wait().code(), Some(71), "{kind}");
            check_line(&daemon.wait_for_log("failed to serve"));
        }
    }
}

#[test]
fn the_other_listeners_are_served_without_busy_looping_when_a_socket_is_shut_down() {
    let directory = tempfile::tempdir().unwrap();
    for (kind, socket) in sockets(&directory) {
        let other = tcp_listener();
        let address = address_of(&other);
        let command = activated_command("3<&0 4<&1", vec![copy(&socket), other.into()], "dead:alive");
        let daemon = spawn(command, "", &[]);
        daemon.wait_for_log_times("listening on", 2);
        let mut connected = Peer::connect(&address);
        connected.exchange("before");
        exchange(kind, &daemon.addresses()[0]);
        shut_down(&socket, Shutdown::Both);
        check_line(&daemon.wait_for_log("failed to serve"));
        check_idle(&daemon, &mut connected);
        Peer::connect(&address).exchange("after");
        assert_eq!(daemon.log().iter().filter(|line| line.contains("failed to serve")).count(), 1);
        daemon.stop();
    }
}

#[test]
fn a_full_server_does_not_busy_loop_when_a_socket_is_shut_down_and_says_so_when_it_has_room() {
    let directory = tempfile::tempdir().unwrap();
    // Those that accept connections.
    for (_, socket) in sockets(&directory).into_iter().take(3) {
        let other = tcp_listener();
        let address = address_of(&other);
        let command = activated_command("3<&0 4<&1", vec![copy(&socket), other.into()], "dead:alive");
        let configuration = "[limits]\nconnections = 1\n[defaults]\ndeadlines.read = '1h'\n";
        let daemon = spawn(command, configuration, &[]);
        daemon.wait_for_log_times("listening on", 2);
        let mut connected = Peer::connect(&address);
        // In the middle of a message, it is not closed for another one.
        connected.send("before\tha");
        connected.expect("server got:before\t");
        shut_down(&socket, Shutdown::Both);
        check_idle(&daemon, &mut connected);
        drop(connected);
        check_line(&daemon.wait_for_log("failed to serve"));
        Peer::connect(&address).exchange("after");
        daemon.stop();
    }
}

/// Checks that the daemon uses next to no time of the processor while nothing happens.
fn check_idle(daemon: &Daemon, connected: &mut Peer) {
    // Unless something else needs its time meanwhile, twice at most.
    wait_until("the daemon is idle", || {
        let before = daemon.cpu_nanos();
        connected.expect_silence(Duration::from_millis(500));
        // There is none if a thread has ended meanwhile.
        daemon.cpu_nanos().checked_sub(before).is_some_and(|busy| busy < 100_000_000)
    });
}

#[test]
fn clients_that_connected_before_the_shutdown_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let socket = OwnedFd::from(UnixListener::bind(directory.path().join("stream")).unwrap());
    let address = format!("unix:{}", directory.path().join("stream").display());
    // With another listener, it does not end with this one.
    let passed = vec![copy(&socket), tcp_listener().into()];
    let daemon = spawn(activated_command("3<&0 4<&1", passed, "dead:alive"), "", &[]);
    daemon.wait_for_log_times("listening on", 2);
    let mut served = Peer::connect(&address);
    served.exchange("before");
    daemon.signal(Signal::STOP);
    let mut waiting: Vec<_> = (0..50).map(|_| Peer::connect(&address)).collect();
    shut_down(&socket, Shutdown::Both);
    daemon.signal(Signal::CONT);
    for peer in &mut waiting {
        peer.exchange("waiting");
    }
    served.exchange("after");
    check_line(&daemon.wait_for_log("failed to serve"));
    drop((served, waiting));
    daemon.stop();
}

#[test]
fn a_start_with_a_socket_that_was_shut_down_fails_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    for (kind, socket) in sockets(&directory) {
        shut_down(&socket, Shutdown::Both);
        for position in ["3<&0 4<&1", "3<&1 4<&0"] {
            let passed = vec![copy(&socket), tcp_listener().into()];
            let mut daemon = spawn(activated_command(position, passed, "one:other"), "", &[]);
            assert_eq!(daemon.wait().code(), Some(71), "{kind}");
            let log = daemon.log();
            let [line] = &log[..] else { panic!("{log:#?}") };
            assert!(line.contains(&format!(" from systemd: it is a {kind} socket that ")), "{line}");
            assert!(line.contains("shut") && line.ends_with(CURE), "{line}");
        }
    }
}
