//! Sockets from systemd: sockets of every family are served ([`families`]), others are refused with a reason
//! ([`refused`]), so are those that another process has shut down ([`shut_down`]), those for another process are left alone
//! ([`other_process`]), and the service manager is notified ([`notifications`]). First under
//! systemd-socket-activate, then with descriptors that the tests make.

mod families;
mod notifications;
mod other_process;
mod refused;
mod shut_down;

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::Command;

use common::service_manager::activated_command;
use common::{Daemon, Peer};
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::Signal;

// --- Under systemd-socket-activate -------------------------------------------------------------------------------------

const ECHOED: &str = env!("CARGO_BIN_EXE_echoed");

/// Runs the daemon under systemd-socket-activate, if that is installed, and waits until it listens on all its `sockets`.
fn spawn_under_socket_activate(sockets: usize, arguments: &[&str], configuration: &str) -> Option<Daemon> {
    let mut command = Command::new(common::program_or_skip("systemd-socket-activate")?);
    let daemon = Daemon::spawn_with(&mut command, configuration, arguments);
    daemon.wait_for_log_times("Listening on", sockets);
    Some(daemon)
}

fn connect(daemon: &Daemon, socket: &str) -> Peer {
    Peer::connect(&format!("unix:{}", daemon.directory().join(socket).display()))
}

#[test]
fn a_socket_with_an_empty_name_is_called_unknown_as_one_without_a_name() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = spawn(activated_command("3<&0", vec![listener.into()], ""), "", &[]);
    assert!(daemon.wait_for_log("listening on").ends_with(" (unknown)"));
    daemon.connect().exchange("a");
    let log = daemon.stop();
    assert!(log.iter().any(|line| line.contains("no section [listener.unknown]")), "{log:#?}");
}

#[test]
fn the_first_client_starts_the_daemon_and_is_served_over_tcp() {
    // systemd-socket-activate takes no port 0. This socket keeps the port and shares it (SO_REUSEPORT).
    let reserved =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, rustix::net::SocketFlags::CLOEXEC, None)
            .unwrap();
    sockopt::set_socket_reuseaddr(&reserved, true).unwrap();
    rustix::net::bind(&reserved, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = TcpListener::from(reserved.try_clone().unwrap()).local_addr().unwrap().to_string();

    let Some(daemon) = spawn_under_socket_activate(1, &["-l", &address, "--fdname=echo", ECHOED], "") else { return };
    let mut first = Peer::connect(&address);
    first.exchange("first");
    Peer::connect(&address).exchange("second");
    first.exchange("third");
    daemon.wait_for_log("listening on");
    assert_eq!(daemon.addresses(), [format!("tcp:{address}")]);
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.contains("no section")), "{log:#?}");
}

#[test]
fn each_socket_uses_the_settings_section_of_its_name() {
    let configuration = "[listener.one]\nprefix = \"one:\"\n[listener.two]\ndelimiter = \"\\n\"\n";
    let arguments = ["-l", "DIR/1", "-l", "DIR/2", "--fdname=one:two", ECHOED];
    let Some(daemon) = spawn_under_socket_activate(2, &arguments, configuration) else { return };
    let (mut one, mut two) = (connect(&daemon, "1"), connect(&daemon, "2"));
    one.send("a\nb\t");
    two.send("a\tb\n");
    one.expect("one:a\nb\t");
    two.expect("server got:a\tb\n");
    daemon.stop();
}

#[test]
fn several_sockets_can_share_one_name() {
    let arguments = ["-l", "DIR/1", "-l", "DIR/2", "-l", "DIR/3", "--fdname=one", ECHOED];
    let Some(daemon) = spawn_under_socket_activate(3, &arguments, "[listener.one]\nprefix = \"one:\"\n") else {
        return;
    };
    for socket in ["3", "1", "2"] {
        let mut peer = connect(&daemon, socket);
        peer.send("a\t");
        peer.expect("one:a\t");
    }
    daemon.wait_for_log_times("listening on", 3);
    daemon.stop();
}

#[test]
fn sockets_without_names_use_the_defaults() {
    let arguments = ["-l", "DIR/1", "-l", "DIR/2", ECHOED];
    let Some(daemon) = spawn_under_socket_activate(2, &arguments, "[defaults]\nprefix = \"d:\"\n") else { return };
    for socket in ["1", "2"] {
        let mut peer = connect(&daemon, socket);
        peer.send("a\t");
        peer.expect("d:a\t");
    }
    let log = daemon.stop();
    let said = log.iter().filter(|line| line.contains("no section [listener.unknown]")).count();
    assert_eq!(said, 1, "{log:#?}");
}

#[test]
fn with_accept_yes_each_connection_has_its_own_process() {
    let configuration = "[listener.one]\nprefix = \"one:\"\n";
    let arguments = ["-l", "DIR/1", "--accept", ECHOED, "--listener", "one"];
    let Some(daemon) = spawn_under_socket_activate(1, &arguments, configuration) else { return };
    let mut peers = [connect(&daemon, "1"), connect(&daemon, "1")];
    for (at, peer) in peers.iter_mut().enumerate() {
        peer.send(format!("{at}\t\t"));
        peer.expect(format!("one:{at}\tone:\t"));
    }
    for (at, peer) in peers.iter_mut().enumerate() {
        peer.shutdown();
        peer.expect_close();
        daemon.wait_for_log_times("died with code 0", at + 1);
    }
}

// --- With sockets of our own -------------------------------------------------------------------------------------------

/// Starts the daemon, and keeps nothing of what is handed over to it.
fn spawn(mut command: Command, configuration: &str, arguments: &[&str]) -> Daemon {
    Daemon::spawn_with_stdio(&mut command, configuration, arguments)
}

fn tcp_listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("there is a free port")
}

fn address_of(listener: &TcpListener) -> String {
    listener.local_addr().expect("it is bound").to_string()
}

/// A connection: the client's end, and the other one as it may be handed over.
fn tcp_connection() -> (Peer, TcpStream) {
    let listener = tcp_listener();
    let peer = Peer::connect(&address_of(&listener));
    (peer, listener.accept().expect("it was connected to").0)
}

fn copy(socket: impl AsFd) -> OwnedFd {
    socket.as_fd().try_clone_to_owned().expect("it can be duplicated")
}

#[test]
fn clients_that_connected_before_the_daemon_started_are_served() {
    let (tcp, directory) = (tcp_listener(), tempfile::tempdir().unwrap());
    let path = directory.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let addresses = [address_of(&tcp), format!("unix:{}", path.display())];
    let mut peers: Vec<_> = addresses.iter().cycle().take(6).map(|address| Peer::connect(address)).collect();
    peers[0].send("whole\thalf");
    peers[1].send("last\t");
    peers[1].shutdown();
    peers[2].send("last\t");
    peers[2].shutdown();
    peers[4].send("\t");

    let daemon = spawn(activated_command("3<&0 4<&1", vec![tcp.into(), unix.into()], "echo:echo"), "", &[]);
    peers[0].expect("server got:whole\t");
    peers[0].send("\t");
    peers[0].expect("server got:half\t");
    for ended in [1, 2] {
        peers[ended].expect("server got:last\t");
        peers[ended].expect_close();
    }
    for peer in [3, 5] {
        peers[peer].exchange("later");
    }
    peers[4].expect("server got:\t");
    daemon.stop();
}

#[test]
fn all_clients_in_a_long_backlog_are_served() {
    let listener = tcp_listener();
    rustix::net::listen(&listener, 400).unwrap();
    let mut peers: Vec<_> = (0..300).map(|_| Peer::connect(&address_of(&listener))).collect();
    for (at, peer) in peers.iter_mut().enumerate() {
        peer.send(format!("{at}\t"));
    }
    let daemon = spawn(activated_command("3<&0", vec![listener.into()], "echo"), "", &[]);
    for (at, peer) in peers.iter_mut().enumerate() {
        peer.expect(format!("server got:{at}\t"));
    }
    daemon.stop();
}

#[test]
fn a_client_that_connects_between_two_daemons_is_served_by_the_second() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (address, listener) = (format!("unix:{}", path.display()), UnixListener::bind(&path).unwrap());
    let start = || spawn(activated_command("3<&0", vec![listener.try_clone().unwrap().into()], "echo"), "", &[]);
    let daemon = start();
    Peer::connect(&address).exchange("first");
    daemon.stop();
    // The socket is systemd's, not the daemon's: it is still there, and so is its file.
    let mut peer = Peer::connect(&address);
    peer.send("second\t");
    let daemon = start();
    peer.expect("server got:second\t");
    daemon.stop();
}

#[test]
fn ipv6_and_abstract_sockets_are_served() {
    let v6 = TcpListener::bind("[::1]:0").expect("IPv6 is there");
    let name = format!("echoed-test-activation-{}", std::process::id());
    let abstract_listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let addresses = [format!("tcp:{}", address_of(&v6)), format!("unix:@{name}")];
    let daemon = spawn(activated_command("3<&0 4<&1", vec![v6.into(), abstract_listener.into()], "echo:echo"), "", &[]);
    for address in &addresses {
        Peer::connect(address).exchange("a");
    }
    daemon.wait_for_log_times("listening on", 2);
    assert_eq!(daemon.addresses(), addresses);
    daemon.stop();
}

#[test]
fn socket_options_are_applied_to_sockets_passed_by_systemd() {
    let listener = tcp_listener();
    sockopt::set_tcp_nodelay(&listener, true).unwrap();
    let configuration = "[defaults]\nnodelay = false\nreceive_buffer = \"32KiB\"\nsend_buffer = \"16KiB\"\n";
    let daemon = spawn(activated_command("3<&0", vec![copy(&listener)], "echo"), configuration, &[]);
    daemon.wait_for_log("listening on");
    assert!(!sockopt::tcp_nodelay(&listener).unwrap());
    // The kernel doubles what is asked for (socket(7)).
    assert_eq!(sockopt::socket_recv_buffer_size(&listener).unwrap(), 65536);
    assert_eq!(sockopt::socket_send_buffer_size(&listener).unwrap(), 32768);
    daemon.stop();

    let (mut peer, connection) = tcp_connection();
    assert!(!sockopt::tcp_nodelay(&connection).unwrap());
    let passed = vec![connection.try_clone().unwrap().into()];
    let daemon = spawn(activated_command("3<&0", passed, "connection"), "", &[]);
    peer.exchange("a");
    assert!(sockopt::tcp_nodelay(&connection).unwrap());
    assert_eq!(sockopt::socket_send_buffer_size(&connection).unwrap(), 2 * 64 * 1024);
    assert_eq!(sockopt::tcp_keepidle(&connection).unwrap().as_secs(), 60);
    assert!(sockopt::socket_keepalive(&connection).unwrap());
    drop(daemon);
}

#[test]
fn a_process_for_one_connection_exits_with_0_when_the_connection_ends() {
    let configuration = "[defaults]\nprefix = \"d:\"\n[listener.one]\nprefix = \"one:\"\n";
    for (arguments, prefix) in [(&["--listener", "one"][..], "one:"), (&[], "d:")] {
        let (mut peer, connection) = tcp_connection();
        let passed = activated_command("3<&0", vec![connection.into()], "connection");
        let mut daemon = spawn(passed, configuration, arguments);
        for _ in 0..2 {
            peer.send("a\t");
            peer.expect(format!("{prefix}a\t"));
        }
        // There is only one connection: no descriptor table is preallocated, after a reload neither.
        daemon.signal(Signal::HUP);
        daemon.wait_for_log("info: reloaded");
        assert!(daemon.status_number("FDSize") < 1000);
        peer.send("b\tc");
        peer.shutdown();
        peer.expect(format!("{prefix}b\t"));
        peer.expect_close();
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(!daemon.log().iter().any(|line| line.contains("listening on")), "{:#?}", daemon.log());
    }
}

#[test]
fn a_client_that_closed_before_the_process_started_is_not_an_error() {
    // Ended: its message still gets a reply, although no socket listens.
    let (client, connection) = UnixStream::pair().unwrap();
    rustix::io::write(&client, b"a\t").unwrap();
    drop(client);
    let mut daemon = spawn(activated_command("3<&0", vec![connection.into()], "connection"), "", &[]);
    assert_eq!(daemon.wait().code(), Some(0), "ended");

    // Reset, as by a port scanner.
    let (peer, connection) = tcp_connection();
    peer.reset();
    common::wait_until("the reset has come", || connection.peer_addr().is_err());
    let mut daemon = spawn(activated_command("3<&0", vec![connection.into()], "connection"), "", &[]);
    assert_eq!(daemon.wait().code(), Some(0), "broken off");
}

#[test]
fn a_connection_from_systemd_is_drained_when_the_process_is_stopped() {
    let (mut peer, connection) = tcp_connection();
    let mut daemon = spawn(activated_command("3<&0", vec![connection.into()], "connection"), "", &[]);
    peer.exchange("a");
    daemon.signal(Signal::TERM);
    peer.expect_close();
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn an_invalid_handover_descriptor_is_closed_and_not_served() {
    let (echo, (mut stored, bundle)) = (tcp_listener(), tcp_connection());
    let address = address_of(&echo);
    // "stored" is systemd's name for descriptors that were stored without one.
    let names = "handover:echo:handover:stored:stored";
    let passed = activated_command("3<&1 4<&0 5</dev/null 6<&1 7</dev/null", vec![echo.into(), bundle.into()], names);
    let daemon = spawn(passed, "", &[]);
    Peer::connect(&address).exchange("a");
    daemon.wait_for_log("listening on");
    assert_eq!(daemon.addresses(), [format!("tcp:{address}")]);
    stored.expect_close();
    daemon.wait_for_log_times("is not a Unix seqpacket socket", 4);
    daemon.stop();

    let (mut peer, connection) = tcp_connection();
    let passed = activated_command("3<&0 4</dev/null", vec![connection.into()], "connection:handover");
    let mut daemon = spawn(passed, "", &[]);
    peer.exchange("a");
    peer.shutdown();
    peer.expect_close();
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn addresses_in_the_file_and_on_the_command_line_are_ignored_and_logged_once() {
    let configuration = "[listener.echo]\nlisten = [\"unix:DIR/file\"]\n[listener.x]\nlisten = [\"unix:DIR/other\"]\n";
    for (configuration, arguments) in
        [(configuration, &["--listen", "DIR/line"][..]), (configuration, &[]), ("", &["--listen", "DIR/line"])]
    {
        let passed = vec![tcp_listener().into(), tcp_listener().into()];
        let daemon = spawn(activated_command("3<&0 4<&1", passed, "echo:echo"), configuration, arguments);
        daemon.wait_for_log_times("listening on", 2);
        daemon.connect().exchange("a");
        assert!(["file", "other", "line"].iter().all(|name| !daemon.directory().join(name).exists()));
        let log = daemon.stop();
        assert_eq!(log.iter().filter(|line| line.contains("ignoring")).count(), 1, "{log:#?}");
    }
}

#[test]
fn a_missing_section_is_logged_once_per_name_except_for_echo() {
    let passed = vec![tcp_listener().into(), tcp_listener().into()];
    let daemon = spawn(activated_command("3<&0 4<&1 5<&0 6<&1", passed, "lines:echo:lines:other"), "", &[]);
    daemon.wait_for_log_times("listening on", 4);
    let log = daemon.stop();
    let said = |name: &str| log.iter().filter(|line| line.contains(&format!("[listener.{name}]"))).count();
    assert_eq!([said("lines"), said("other"), said("echo")], [1, 1, 0], "{log:#?}");
}
