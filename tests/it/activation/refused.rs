//! Sockets from systemd that cannot be served, each with its error message.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, socketpair};
use tempfile::TempDir;

use super::{copy, spawn, tcp_connection, tcp_listener};
use common::Daemon;
use common::service_manager::activated_command;

/// The exit code where the state of a socket is the problem, or a variable.
const SYSTEM: i32 = 71;

/// The exit code where only another unit, or another command, helps.
const CONFIGURATION: i32 = 78;

/// Waits for a daemon that cannot start, and returns the one line that says why.
pub(crate) fn startup_error(mut daemon: Daemon, code: i32) -> String {
    let status = daemon.wait();
    let log = daemon.log();
    assert!(status.code() == Some(code) && log.len() == 1, "{status}: {log:#?}");
    log.into_iter().next().expect("there is one")
}

/// Returns the error for descriptors that cannot be served. The arguments are those of [`activated_command`].
fn startup_error_for(redirections: &str, sockets: Vec<OwnedFd>, names: &str, code: i32) -> String {
    startup_error(spawn(activated_command(redirections, sockets, names), "", &[]), code)
}

pub(crate) fn netlink() -> OwnedFd {
    socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).expect("there are such sockets")
}

#[test]
fn unsupported_descriptors_are_refused_and_their_type_is_named() {
    let unbound_socket = |family, kind| vec![socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap()];
    let udp = |family| unbound_socket(family, SocketType::DGRAM);
    let seqpacket = unbound_socket(AddressFamily::UNIX, SocketType::SEQPACKET);
    let neither = "it is a Unix seqpacket socket that neither listens nor is connected";
    let no_socket = "unsupported socket type; check the Listen*= settings of the socket unit (ListenFIFO=";
    for (redirection, sockets, code, said) in [
        ("3<&0", vec![netlink()], CONFIGURATION, "it is a netlink socket; echoed serves ListenStream="),
        ("3<&0", udp(AddressFamily::INET), SYSTEM, "it is a UDP socket that is not bound"),
        ("3<&0", udp(AddressFamily::INET6), SYSTEM, "it is a UDP socket that is not bound"),
        (
            "3<&0",
            vec![UnixDatagram::unbound().unwrap().into()],
            SYSTEM,
            "it is a Unix datagram socket that is not bound",
        ),
        ("3<&0", seqpacket, SYSTEM, neither),
        ("3<\"$0\"", vec![], CONFIGURATION, no_socket),
        ("3</dev/null", vec![], CONFIGURATION, no_socket),
        ("3<&2", vec![], CONFIGURATION, no_socket),
    ] {
        let error = startup_error_for(redirection, sockets, "some.name", code);
        let expected = format!("echoed: descriptor 3 (some.name) from systemd: {said}");
        assert!(error.starts_with(&expected), "{error}, expected {expected}");
    }
}

#[test]
fn a_socket_that_neither_listens_nor_is_connected_is_refused() {
    let stream = |family| socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let bound = stream(AddressFamily::INET);
    bind(&bound, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    for (socket, said) in [
        (bound, "it is a TCP socket"),
        (stream(AddressFamily::INET), "it is a TCP socket"),
        (stream(AddressFamily::INET6), "it is a TCP socket"),
        (stream(AddressFamily::UNIX), "it is a Unix stream socket"),
    ] {
        let error = startup_error_for("3<&0", vec![socket], "x", SYSTEM);
        let expected = format!("echoed: descriptor 3 (x) from systemd: {said} that neither listens nor is connected; ");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn an_unsupported_socket_among_supported_ones_is_named() {
    let listener = || OwnedFd::from(tcp_listener());
    let error = startup_error_for("3<&0 4<&1", vec![listener(), netlink()], "good:bad", CONFIGURATION);
    assert!(error.contains("descriptor 4 (bad) from systemd: it is a netlink socket"), "{error}");
    let error = startup_error_for("3<&1 4<&0", vec![listener(), netlink()], "bad:good", CONFIGURATION);
    assert!(error.contains("descriptor 3 (bad) from systemd: it is a netlink socket"), "{error}");
}

#[test]
fn a_connection_passed_together_with_other_sockets_is_refused() {
    let (peer, connection) = tcp_connection();
    let connection = || connection.try_clone().unwrap().into();
    let error = startup_error_for("3<&0 4<&1", vec![tcp_listener().into(), connection()], "good:bad", SYSTEM);
    assert!(error.contains("descriptor 4 (bad) from systemd is a connection, but one of 2;"), "{error}");
    let error = startup_error_for("3<&1 4<&0", vec![tcp_listener().into(), connection()], "bad:good", SYSTEM);
    assert!(error.contains("descriptor 3 (bad) from systemd is a connection, but one of 2;"), "{error}");
    let (client, unix) = UnixStream::pair().unwrap();
    let error = startup_error_for("3<&0 4<&1", vec![connection(), unix.into()], "one:other", SYSTEM);
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
    ] {
        let mut command = activated_command("3<&0 4<&-", vec![tcp_listener().into()], "echo");
        command.env(variable, value);
        let error = startup_error(spawn(command, "", &[]), SYSTEM);
        assert!(error.starts_with("echoed: ") && error.contains(variable), "{value}: {error}");
    }
    let missing = startup_error_for("3<&0 4<&-", vec![tcp_listener().into()], "a:b", SYSTEM);
    assert!(missing.contains("LISTEN_FDS=2, but not all of the descriptors from 3 on are open"), "{missing}");
}

/// A listening socket that has the name of what is stored for the next process.
#[test]
fn a_listening_socket_under_a_reserved_name_is_refused() {
    let udp = || OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let unix_seqpacket = |directory: &TempDir| {
        let seqpacket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&seqpacket, &SocketAddrUnix::new(directory.path().join("socket")).unwrap()).unwrap();
        listen(&seqpacket, 10).unwrap();
        seqpacket
    };
    for name in ["handover", "stored"] {
        let directory = tempfile::tempdir().unwrap();
        for reserved in [tcp_listener().into(), udp(), unix_seqpacket(&directory)] {
            // Alone, and beside one that can be served.
            let error = startup_error_for("3<&0", vec![copy(&reserved)], name, CONFIGURATION);
            assert!(error.contains(&format!("descriptor 3 ({name}) from systemd: ")), "{error}");
            let passed = vec![tcp_listener().into(), reserved];
            let error = startup_error_for("3<&0 4<&1", passed, &format!("echo:{name}"), CONFIGURATION);
            assert!(error.contains(&format!("descriptor 4 ({name}) from systemd: ")), "{error}");
            assert!(error.contains("choose another FileDescriptorName="), "{error}");
        }
    }
}

#[test]
fn descriptors_of_the_fd_store_without_a_socket_do_not_open_the_default_port() {
    let bundle = || {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap().0
    };
    for (redirection, names) in
        [("3<&0", "handover"), ("3<&0 4</dev/null", "handover:stored"), ("3</dev/null", "stored")]
    {
        let error = startup_error_for(redirection, vec![bundle()], names, CONFIGURATION);
        assert!(error.contains("no socket to listen on") && error.contains("Sockets="), "{error}");
    }
    let daemon = spawn(activated_command("3<&0", vec![bundle()], "handover"), "", &["--listen", "127.0.0.1:0"]);
    daemon.wait_for_log("listening on");
    daemon.connect().exchange("a");
    daemon.stop();
}
