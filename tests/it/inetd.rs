//! A socket on stdin: a connection (inetd's `nowait`) is served until it ends, a listening socket (`wait`) until it is
//! idle, and nothing but replies is written to either. Here with sockets that the tests make; [`starters`] has the
//! programs that pass such sockets.

mod starters;

use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use common::packets::{DatagramPeer, PacketPeer};
use common::service_manager::activated_command;
use common::{Daemon, Peer, ServiceManager, TEST_TIMEOUT, find_program, now, wait_until};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, shutdown, socket_with,
    socketpair,
};
use rustix::process::Signal;
use tempfile::TempDir;

const ECHOED: &str = env!("CARGO_BIN_EXE_echoed");

/// With these, each line of the log that goes to a client would be seen there.
const LOG_ALL: &[&str] = &["--log-level", "trace"];

/// A process that the test has started, ended when it is dropped.
struct Process(Child);

impl Process {
    /// Waits for its end.
    fn wait(&mut self) -> ExitStatus {
        let until = now() + TEST_TIMEOUT;
        loop {
            if let Some(status) = self.0.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn copy(socket: impl AsFd) -> OwnedFd {
    socket.as_fd().try_clone_to_owned().expect("it can be duplicated")
}

/// The command of the daemon, without settings of this machine and without sockets from systemd.
fn daemon_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(ECHOED);
    command.args(arguments).env_remove("LISTEN_FDS").env_remove("NOTIFY_SOCKET");
    if !arguments.contains(&"--config") {
        command.args(["--config", "/dev/null"]);
    }
    command
}

/// Starts the daemon as inetd does: stdin, stdout and stderr are this socket.
fn spawn_on(socket: impl AsFd, arguments: &[&str]) -> Process {
    let mut command = daemon_command(arguments);
    command.stdin(copy(&socket)).stdout(copy(&socket)).stderr(copy(&socket));
    Process(command.spawn().expect("it can be started"))
}

/// Starts the daemon as tcpserver does: stdin and stdout are this socket, stderr is a log.
fn spawn_with_log(socket: impl AsFd, configuration: &str, arguments: &[&str]) -> Daemon {
    let mut command = Command::new(ECHOED);
    command.env_remove("LISTEN_FDS").stdin(copy(&socket)).stdout(copy(&socket));
    Daemon::spawn_with_stdio(&mut command, configuration, arguments)
}

fn tcp_listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    (listener, address)
}

/// A connection: the client's end, and the other one.
fn tcp_connection() -> (Peer, TcpStream) {
    let (listener, address) = tcp_listener();
    let peer = Peer::connect(&address);
    (peer, listener.accept().expect("it was connected to").0)
}

fn unix_connection(directory: &TempDir) -> (Peer, UnixStream) {
    let path = directory.path().join("stream");
    let listener = UnixListener::bind(&path).expect("the path is free");
    let peer = Peer::connect(&format!("unix:{}", path.display()));
    // An accepted socket has the name of the listener, also after its file has gone.
    fs::remove_file(&path).expect("it is there");
    (peer, listener.accept().expect("it was connected to").0)
}

fn seqpacket_listener(path: &Path) -> OwnedFd {
    let seqpacket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("there are such sockets");
    bind(&seqpacket, &SocketAddrUnix::new(path).expect("it is short")).expect("the path is free");
    listen(&seqpacket, 10).expect("it can listen");
    seqpacket
}

/// Says hello, half closes, and checks that nothing comes but the replies.
fn check_connection(mut peer: Peer, mut process: Process, prefix: &str) {
    for _ in 0..2 {
        peer.send("aaaa\t");
        peer.expect(format!("{prefix}aaaa\t"));
    }
    peer.send("last\tunfinished");
    peer.shutdown();
    peer.expect(format!("{prefix}last\t"));
    peer.expect_close();
    assert_eq!(process.wait().code(), Some(0));
}

// --- Connections -------------------------------------------------------------------------------------------------------

#[test]
fn a_connection_on_stdin_is_served_and_the_process_ends_with_it() {
    let (peer, connection) = tcp_connection();
    let process = spawn_on(&connection, LOG_ALL);
    // The process has the only descriptors of it: the client sees its end when the process has closed it.
    drop(connection);
    check_connection(peer, process, "server got:");

    let directory = tempfile::tempdir().unwrap();
    let (peer, connection) = unix_connection(&directory);
    let process = spawn_on(&connection, LOG_ALL);
    drop(connection);
    check_connection(peer, process, "server got:");
}

#[test]
fn a_seqpacket_connection_on_stdin_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("seqpacket");
    let listener = seqpacket_listener(&path);
    let peer = PacketPeer::connect(&format!("seqpacket:{}", path.display()));
    let mut process = spawn_on(accept_with(&listener, SocketFlags::CLOEXEC).unwrap(), LOG_ALL);
    peer.exchange("a");
    peer.shutdown();
    peer.expect_close();
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn the_listener_option_chooses_the_section_of_a_socket_on_stdin() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, "[listener.echo]\nprefix = 'e:'\n[listener.one]\nprefix = 'one:'\n").unwrap();
    let config = ["--config", file.path().to_str().unwrap()];
    for (option, prefix) in [(&[][..], "e:"), (&["--listener", "one"], "one:"), (&["--listener=one"], "one:")] {
        let (peer, connection) = tcp_connection();
        let process = spawn_on(&connection, &[&config, option].concat());
        drop(connection);
        check_connection(peer, process, prefix);

        let (listener, address) = tcp_listener();
        let _process = spawn_on(&listener, &[&config, option].concat());
        let mut peer = Peer::connect(&address);
        peer.send("a\t");
        peer.expect(format!("{prefix}a\t"));
    }
}

#[test]
fn the_log_on_stderr_stays_where_stderr_is_not_the_connection() {
    let (mut peer, connection) = tcp_connection();
    let mut daemon = spawn_with_log(&connection, "", &["--log-level", "debug"]);
    drop(connection);
    peer.exchange("a");
    // stdin and stdout are no longer the connection, so that nothing keeps it open when it ends.
    if let Some(connections) = daemon.connections() {
        assert_eq!(connections.len(), 1);
    }
    peer.shutdown();
    peer.expect_close();
    assert_eq!(daemon.wait().code(), Some(0));
    daemon.wait_for_log("ended: peer-closed; 1 messages");
}

#[test]
fn a_connection_on_stdin_that_was_reset_is_not_an_error() {
    let (peer, connection) = tcp_connection();
    peer.reset();
    wait_until("the reset has come", || connection.peer_addr().is_err());
    assert_eq!(spawn_on(&connection, &[]).wait().code(), Some(0));
}

#[test]
fn a_signal_ends_the_process_of_a_connection() {
    for signal in [Signal::TERM, Signal::INT] {
        let (mut peer, connection) = tcp_connection();
        let mut daemon = spawn_with_log(&connection, "", &[]);
        drop(connection);
        peer.exchange("a");
        daemon.signal(signal);
        peer.expect_close();
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

/// Runtimes like Node give such pairs to their children as stdin; stunnel's `exec` passes the option.
#[test]
fn an_unnamed_unix_socket_on_stdin_is_served_only_with_the_listener_option() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let process = spawn_on(&theirs, &["--log-level", "trace", "--listener", "echo"]);
    drop(theirs);
    check_connection(Peer::from_stream(ours), process, "server got:");

    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let mut process = spawn_on(&theirs, &["--listener", "echo"]);
    drop(theirs);
    let peer = PacketPeer::from_fd(ours);
    peer.exchange("a");
    peer.shutdown();
    assert_eq!(process.wait().code(), Some(0));

    // Without the option, it is started by hand, and stderr is a log, whatever it is. In a network of its own, where no
    // daemon of this machine is in its way, if there can be one.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = match find_program("unshare").filter(|_| rustix::process::getuid().is_root()) {
        Some(unshare) => Command::new(unshare),
        None => Command::new("env"),
    };
    if rustix::process::getuid().is_root() {
        command.arg("--net");
    }
    command.arg(ECHOED).args(["--config", "/dev/null"]).env_remove("LISTEN_FDS");
    command.stdin(copy(&theirs)).stdout(copy(&theirs)).stderr(copy(&theirs));
    let _process = Process(command.spawn().unwrap());
    drop(theirs);
    let mut peer = Peer::from_stream(ours);
    let said = peer.next_line();
    assert!(said.contains("listening on tcp:127.0.0.1:8085") || said.contains("cannot listen on tcp:"), "{said}");
}

// --- Listening sockets -------------------------------------------------------------------------------------------------

/// A socket of each kind that listens, with its kind and its address.
fn listening_sockets(directory: &TempDir) -> Vec<(&'static str, String, OwnedFd)> {
    let path = |name: &str| directory.path().join(name);
    let address = |scheme: &str, name: &str| format!("{scheme}:{}", path(name).display());
    let (tcp, tcp_address) = tcp_listener();
    let udp = UdpSocket::bind("127.0.0.1:0").expect("there is a free port");
    let udp_address = format!("udp:{}", udp.local_addr().expect("it is bound"));
    let stream = UnixListener::bind(path("stream")).expect("the path is free");
    let datagram = UnixDatagram::bind(path("datagram")).expect("the path is free");
    vec![
        ("stream", format!("tcp:{tcp_address}"), tcp.into()),
        ("stream", address("unix", "stream"), stream.into()),
        ("seqpacket", address("seqpacket", "seqpacket"), seqpacket_listener(&path("seqpacket"))),
        ("datagram", udp_address, udp.into()),
        ("datagram", address("unixgram", "datagram"), datagram.into()),
    ]
}

fn exchange(kind: &str, address: &str) {
    match kind {
        "stream" => Peer::connect(address).exchange("a"),
        "seqpacket" => PacketPeer::connect(address).exchange("a"),
        _ => DatagramPeer::to(address).exchange("a"),
    }
}

#[test]
fn a_listening_socket_on_stdin_is_served_until_it_is_idle() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("echoed.toml");
    fs::write(&file, "[service]\nidle_exit = '200ms'\n").unwrap();
    let arguments = ["--config", file.to_str().unwrap(), "--log-level", "trace"];
    for (kind, address, socket) in listening_sockets(&directory) {
        // The starter keeps the socket, and starts the daemon again with the next client.
        for _ in 0..2 {
            let mut process = spawn_on(&socket, &arguments);
            exchange(kind, &address);
            assert_eq!(process.wait().code(), Some(0), "{address}");
        }
    }
}

#[test]
fn a_listening_socket_whose_file_has_gone_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stream");
    let listener = UnixListener::bind(&path).unwrap();
    let mut peer = Peer::connect(&format!("unix:{}", path.display()));
    fs::remove_file(&path).unwrap();
    let _process = spawn_on(&listener, LOG_ALL);
    peer.exchange("a");
}

#[test]
fn connections_of_a_listening_socket_on_stdin_are_drained_and_not_stored() {
    let manager = ServiceManager::start();
    let (listener, address) = tcp_listener();
    let mut command = Command::new(ECHOED);
    manager.set_fd_store(&mut command, 4).env_remove("LISTEN_FDS").stdin(OwnedFd::from(listener)).stdout(Stdio::null());
    let mut daemon = Daemon::spawn_with_stdio(&mut command, "", &[]);
    manager.expect("READY=1");
    let mut peer = Peer::connect(&address);
    peer.exchange("a");
    daemon.signal(Signal::TERM);
    peer.expect_close();
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(manager.stored_descriptors().is_empty());
    assert_eq!(manager.state_changes(), ["READY=1", "STOPPING=1"]);
}

// --- Errors ------------------------------------------------------------------------------------------------------------

#[test]
fn no_error_is_written_to_the_connection() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, "[defaults]\nprefix = 1\n").unwrap();
    let invalid = ["--config", file.path().to_str().unwrap()];
    for (arguments, code) in [
        (&invalid[..], 78),
        (&["--config", "/no such file"], 78),
        (&["--no-such-option"], 2),
        (&["--listener", "no name"], 2),
    ] {
        let (mut peer, connection) = tcp_connection();
        let mut process = spawn_on(&connection, arguments);
        drop(connection);
        assert_eq!(process.wait().code(), Some(code), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&peer.read_to_end()), "", "{arguments:?}");
    }
}

#[test]
fn what_is_asked_for_is_printed_on_a_connection() {
    for (option, said) in [("--version", "echoed "), ("--help", "Usage: echoed"), ("--print-config", "[log]")] {
        let (mut peer, connection) = tcp_connection();
        let mut process = spawn_on(&connection, &[option]);
        drop(connection);
        assert_eq!(process.wait().code(), Some(0), "{option}");
        let printed = String::from_utf8_lossy(&peer.read_to_end()).into_owned();
        assert!(printed.contains(said), "{option}: {printed}");
    }
}

#[test]
fn a_socket_on_stdin_that_cannot_be_served_is_refused() {
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
    let unbound = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
    let unconnected = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let (shut_down, _) = tcp_listener();
    shutdown(&shut_down, Shutdown::Both).unwrap();
    let (_other, datagram_pair) = UnixDatagram::pair().unwrap();
    for (socket, arguments, code, said) in [
        (netlink, &[][..], 78, "the socket on stdin is a netlink socket; echoed serves stream, "),
        (unbound, &[], 71, "the socket on stdin: it is a UDP socket that is not bound"),
        (unconnected, &[], 71, "the socket on stdin: it is a TCP socket that neither listens nor is connected"),
        (shut_down.into(), &[], 71, "the socket on stdin: it is a TCP socket that neither listens nor is connected"),
        (datagram_pair.into(), &["--listener", "x"], 71, "it is a Unix datagram socket that is not bound"),
    ] {
        let mut daemon = spawn_with_log(&socket, "", arguments);
        assert_eq!(daemon.wait().code(), Some(code), "{said}");
        let log = daemon.log();
        assert!(log.len() == 1 && log[0].starts_with("echoed: ") && log[0].contains(said), "{log:#?}");
    }
}

#[test]
fn the_listener_option_without_a_socket_that_it_could_be_for_is_refused() {
    let check = |mut command: Command, configuration: &str, arguments: &[&str], said: &str| {
        let mut daemon = Daemon::spawn_with_stdio(&mut command, configuration, arguments);
        let (status, log) = (daemon.wait(), daemon.log());
        assert!(status.code() == Some(2) && log.len() == 1, "{status}: {log:#?}");
        assert!(log[0].starts_with("echoed: --listener one: ") && log[0].contains(said), "{log:#?}");
    };
    let on = |stdin: Stdio| {
        let mut command = Command::new(ECHOED);
        command.env_remove("LISTEN_FDS").stdin(stdin).stdout(Stdio::null());
        command
    };
    let option = &["--listener", "one"];
    let not_a_socket = "no connection was handed over, and stdin is not a socket";
    check(on(Stdio::null()), "", option, not_a_socket);
    check(on(Stdio::piped()), "", option, not_a_socket);
    check(on(fs::File::open(ECHOED).unwrap().into()), "", option, not_a_socket);
    // Listening sockets from systemd have names.
    let (listener, _) = tcp_listener();
    check(activated_command("3<&0", vec![copy(&listener)], "echo"), "", option, "FileDescriptorName=");
    // With addresses of its own, the daemon does not look at stdin.
    let listen = ["--listener", "one", "--listen", "127.0.0.1:0"];
    check(on(Stdio::null()), "", &listen, "--listen or listen keys");
    check(on(copy(&listener).into()), "", &listen, "--listen or listen keys");
    check(on(copy(&listener).into()), "[listener.one]\nlisten = ['127.0.0.1:0']\n", option, "--listen or listen keys");
    // It does not matter where nothing is served.
    for print in ["--check-config", "--print-config"] {
        let mut daemon = Daemon::spawn_with_stdio(&mut on(Stdio::null()), "", &["--listener", "one", print]);
        assert_eq!(daemon.wait().code(), Some(0), "{print}");
    }
    // A name that no listener can have.
    for reserved in ["handover", "stored"] {
        let (_peer, connection) = tcp_connection();
        let mut daemon = spawn_with_log(&connection, "", &["--listener", reserved]);
        assert_eq!(daemon.wait().code(), Some(2), "{reserved}");
    }
}

// --- Sockets that are left alone ---------------------------------------------------------------------------------------

#[test]
fn a_socket_on_stdin_is_left_alone_where_there_is_an_address_to_listen_on() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, file) = (directory.path().join("socket"), directory.path().join("echoed.toml"));
    let address = format!("unix:{}", socket.display());
    fs::write(&file, format!("[listener.echo]\nlisten = ['{address}']\n")).unwrap();
    for arguments in [["--config", file.to_str().unwrap()], ["--listen", &address]] {
        let (mut peer, connection) = tcp_connection();
        let _process = spawn_on(&connection, &arguments);
        drop(connection);
        // stderr is a log, as for any other program.
        let said = peer.next_line();
        assert!(said.contains(&format!("listening on {address} (echo)")), "{said}");
        Peer::connect(&address).exchange("a");
        peer.send("a\t");
        peer.expect_silence(Duration::from_millis(200));
    }
}

#[test]
fn a_socket_on_stdin_is_left_alone_where_systemd_passed_sockets() {
    let ((listener, address), (mut peer, connection)) = (tcp_listener(), tcp_connection());
    let mut command = Command::new("sh");
    command.args(["-c", "export LISTEN_PID=$$; exec 3<&1 >&2; exec \"$0\" \"$@\"", ECHOED]);
    command
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "echo")
        .stdin(copy(&connection))
        .stdout(OwnedFd::from(listener));
    let daemon = Daemon::spawn_with_stdio(&mut command, "", &[]);
    drop((command, connection));
    daemon.wait_for_log("listening on");
    Peer::connect(&address).exchange("a");
    peer.send("a\t");
    peer.expect_silence(Duration::from_millis(200));
    daemon.stop();
}

/// A starter that was itself activated by systemd leaves its variables to its children.
#[test]
fn a_socket_on_stdin_is_served_where_the_variables_are_those_of_another_process() {
    let (mut peer, connection) = tcp_connection();
    let mut command = Command::new(ECHOED);
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "https");
    command.stdin(copy(&connection)).stdout(copy(&connection));
    let mut daemon = Daemon::spawn_with_stdio(&mut command, "", &[]);
    drop((command, connection));
    peer.exchange("a");
    peer.shutdown();
    peer.expect_close();
    assert_eq!(daemon.wait().code(), Some(0));
}
