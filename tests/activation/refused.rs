//! Sockets from systemd that cannot be served, each with its error message.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use rustix::net::{AddressFamily, SocketType, bind, socket};

use crate::common::Daemon;
use crate::common::service_manager::activated_command;
use crate::{address_of, copy, spawn, tcp_connection, tcp_listener};

/// Waits for a daemon that cannot start, and returns the one line that says why.
fn startup_error(mut daemon: Daemon) -> String {
    let status = daemon.wait();
    let log = daemon.log();
    assert!(status.code() == Some(71) && log.len() == 1, "{status}: {log:#?}");
    log.into_iter().next().expect("there is one")
}

/// Returns the error for descriptors that cannot be served. The arguments are those of [`activated_command`].
fn startup_error_for(redirections: &str, sockets: Vec<OwnedFd>, names: &str) -> String {
    startup_error(spawn(activated_command(redirections, sockets, names), "", &[]))
}

pub(crate) fn netlink() -> OwnedFd {
    socket(AddressFamily::NETLINK, SocketType::RAW, None).expect("there are such sockets")
}

#[test]
fn unsupported_descriptors_are_refused_and_their_type_is_named() {
    let unbound_socket = |family, kind| vec![socket(family, kind, None).unwrap()];
    for (redirection, sockets, said) in [
        ("3<&0", vec![netlink()], "a netlink socket; echoed serves ListenStream="),
        ("3<&0", unbound_socket(AddressFamily::INET, SocketType::DGRAM), "a UDP socket that is not bound"),
        ("3<&0", unbound_socket(AddressFamily::INET6, SocketType::DGRAM), "a UDP socket that is not bound"),
        ("3<&0", vec![UnixDatagram::unbound().unwrap().into()], "a Unix datagram socket that is not bound"),
        (
            "3<&0",
            unbound_socket(AddressFamily::UNIX, SocketType::SEQPACKET),
            "a Unix seqpacket socket that neither listens nor is connected",
        ),
        ("3<\"$0\"", vec![], "no socket"),
        ("3</dev/null", vec![], "no socket"),
        ("3<&2", vec![], "no socket"),
    ] {
        let error = startup_error_for(redirection, sockets, "some.name");
        let expected = format!("echoed: descriptor 3 (some.name) from systemd: it is {said}");
        assert!(error.starts_with(&expected), "{error}, expected {expected}");
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
        let error = startup_error_for("3<&0", vec![socket], "x");
        let expected = format!("echoed: descriptor 3 (x) from systemd: {said} that neither listens nor is connected; ");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn an_unsupported_socket_among_supported_ones_is_named() {
    let listener = || OwnedFd::from(tcp_listener());
    let error = startup_error_for("3<&0 4<&1", vec![listener(), netlink()], "good:bad");
    assert!(error.contains("descriptor 4 (bad) from systemd: it is a netlink socket"), "{error}");
    let error = startup_error_for("3<&1 4<&0", vec![listener(), netlink()], "bad:good");
    assert!(error.contains("descriptor 3 (bad) from systemd: it is a netlink socket"), "{error}");
    let error = startup_error_for("3<&0 4<&1", vec![listener(), listener()], "good:metrics");
    assert!(error.contains("descriptor 4 (metrics) from systemd: metrics are not built yet"), "{error}");
}

#[test]
fn a_connection_passed_together_with_other_sockets_is_refused() {
    let (peer, connection) = tcp_connection();
    let connection = || connection.try_clone().unwrap().into();
    let error = startup_error_for("3<&0 4<&1", vec![tcp_listener().into(), connection()], "good:bad");
    assert!(error.contains("descriptor 4 (bad) from systemd is a connection, but one of 2;"), "{error}");
    let error = startup_error_for("3<&1 4<&0", vec![tcp_listener().into(), connection()], "bad:good");
    assert!(error.contains("descriptor 3 (bad) from systemd is a connection, but one of 2;"), "{error}");
    let (client, unix) = UnixStream::pair().unwrap();
    let error = startup_error_for("3<&0 4<&1", vec![connection(), unix.into()], "one:other");
    assert!(error.contains("from systemd is a connection, but one of 2;"), "{error}");
    drop((peer, client));
}

#[test]
fn invalid_activation_variables_are_refused() {
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
        let mut command = activated_command("3<&0 4<&-", vec![tcp_listener().into()], "echo");
        command.env(variable, value);
        let error = startup_error(spawn(command, "", &[]));
        assert!(error.starts_with("echoed: ") && error.contains(variable), "{value}: {error}");
    }
    let missing = startup_error_for("3<&0 4<&-", vec![tcp_listener().into()], "a:b");
    assert!(missing.contains("LISTEN_FDS=2, but not all of the descriptors from 3 on are open"), "{missing}");
}

#[test]
fn sockets_passed_to_another_process_are_ignored() {
    let listener = tcp_listener();
    for (variable, value) in [("LISTEN_PID", "1"), ("LISTEN_FDS", "0")] {
        let mut command = activated_command("3<&0", vec![copy(&listener)], "echo");
        command.env_remove("LISTEN_FDNAMES").env(variable, value);
        let daemon = spawn(command, "", &["--listen", "127.0.0.1:0"]);
        daemon.wait_for_log("listening on");
        daemon.connect().exchange("a");
        assert!(!daemon.addresses().contains(&format!("tcp:{}", address_of(&listener))));
        let log = daemon.stop();
        assert!(!log.iter().any(|line| line.contains("ignored")), "{log:#?}");
    }
}
