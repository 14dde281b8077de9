//! The programs that pass a socket on stdin: inetd, TLS proxies, and the tools of daemontools.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use tempfile::TempDir;

use super::{ECHOED, Process};
use common::packets::DatagramPeer;
use common::{Peer, program_or_skip, wait_until};

/// The settings of a daemon that is started again and again.
const SETTINGS: &str = "[service]\nidle_exit = '200ms'\n[log]\nlevel = 'trace'\n[listener.one]\nprefix = 'one:'\n";

/// A directory with settings, and the path of these.
fn settings() -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let file = directory.path().join("echoed.toml");
    fs::write(&file, SETTINGS).expect("they can be written");
    let path = file.to_str().expect("it is text").to_owned();
    (directory, path)
}

/// A port of TCP or UDP for a program that cannot choose a free one. It stays ours, and a program that shares it as inetd does
/// (SO_REUSEADDR) can bind it.
struct Port {
    address: SocketAddr,
    _reserved: OwnedFd,
}

impl Port {
    fn reserve(socket_type: SocketType) -> Self {
        let reserved =
            socket_with(AddressFamily::INET, socket_type, SocketFlags::CLOEXEC, None).expect("a socket can be made");
        sockopt::set_socket_reuseaddr(&reserved, true).expect("it can be shared");
        bind(&reserved, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("there is a free port");
        let address = getsockname(&reserved).ok().and_then(|name| name.try_into().ok()).expect("it is bound");
        Self { address, _reserved: reserved }
    }
}

fn spawn(command: &mut Command) -> Process {
    command.env_remove("LISTEN_FDS").env_remove("LISTEN_PID").env_remove("NOTIFY_SOCKET");
    Process(command.spawn().expect("it can be started"))
}

/// Connects as soon as the program listens.
fn connect(address: &str) -> Peer {
    let mut peer = None;
    wait_until(&format!("{address} can be connected to"), || {
        peer = Peer::try_connect(address).ok();
        peer.is_some()
    });
    peer.expect("it is connected")
}

/// Checks that nothing but replies comes, from the first byte to the last.
fn check_peer(mut peer: Peer, prefix: &str) {
    peer.send("aaaa\tb");
    peer.expect(format!("{prefix}aaaa\t"));
    peer.send("\tunfinished");
    peer.shutdown();
    peer.expect(format!("{prefix}b\t"));
    peer.expect_close();
}

// --- xinetd ------------------------------------------------------------------------------------------------------------

/// Starts xinetd with one service, if it is installed.
fn start_xinetd(directory: &Path, config: &str, port: &Port, service: &str) -> Option<Process> {
    let xinetd = program_or_skip("xinetd")?;
    let file = directory.join("xinetd.conf");
    let user = rustix::process::getuid().as_raw();
    let configuration = format!(
        "defaults\n{{\n  log_type = FILE {log}\n}}\nservice echoed\n{{\n  type = UNLISTED\n  bind = 127.0.0.1\n  \
         port = {port}\n  user = {user}\n  server = {ECHOED}\n  server_args = --config {config}\n  {service}\n}}\n",
        log = directory.join("xinetd.log").display(),
        port = port.address.port(),
        service = service.replace(", ", "\n  "),
    );
    fs::write(&file, configuration).expect("it can be written");
    let mut command = Command::new(xinetd);
    command.arg("-dontfork").arg("-f").arg(file).arg("-pidfile").arg(directory.join("xinetd.pid"));
    Some(spawn(command.stdin(Stdio::null())))
}

#[test]
fn xinetd_starts_a_process_for_each_connection() {
    let ((directory, config), port) = (settings(), Port::reserve(SocketType::STREAM));
    let service = "socket_type = stream, protocol = tcp, wait = no";
    let Some(_xinetd) = start_xinetd(directory.path(), &config, &port, service) else { return };
    let (one, two) = (connect(&port.address.to_string()), connect(&port.address.to_string()));
    check_peer(two, "server got:");
    check_peer(one, "server got:");
}

#[test]
fn xinetd_starts_a_process_for_its_socket_again_and_again() {
    let ((directory, config), port) = (settings(), Port::reserve(SocketType::STREAM));
    let service = "socket_type = stream, protocol = tcp, wait = yes";
    let Some(_xinetd) = start_xinetd(directory.path(), &config, &port, service) else { return };
    for _ in 0..3 {
        let (one, two) = (connect(&port.address.to_string()), connect(&port.address.to_string()));
        check_peer(two, "server got:");
        check_peer(one, "server got:");
        // In this time the process may end, and the next client starts another one.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
}

#[test]
fn xinetd_starts_a_process_for_its_datagram_socket() {
    let ((directory, config), port) = (settings(), Port::reserve(SocketType::DGRAM));
    let service = "socket_type = dgram, protocol = udp, wait = yes";
    let Some(_xinetd) = start_xinetd(directory.path(), &config, &port, service) else { return };
    // Until xinetd shares the port, no reply comes.
    let asking = UdpSocket::bind("127.0.0.1:0").unwrap();
    asking.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    wait_until("it answers", || {
        asking.send_to(b"a", port.address).unwrap();
        asking.recv(&mut [0; 100]).is_ok()
    });
    DatagramPeer::to(&format!("udp:{}", port.address)).exchange("aaaa");
}

// --- stunnel -----------------------------------------------------------------------------------------------------------

/// stunnel starts the daemon for each connection, with an end of an unnamed Unix pair.
#[test]
fn stunnel_serves_the_daemon_over_tls() {
    let Some(stunnel) = program_or_skip("stunnel") else { return };
    let (directory, config) = settings();
    let (tls, plain) = (Port::reserve(SocketType::STREAM), Port::reserve(SocketType::STREAM));
    let (file, secrets) = (directory.path().join("stunnel.conf"), directory.path().join("secrets"));
    fs::write(&secrets, "test:00112233445566778899aabbccddeeff\n").unwrap();
    // One stunnel is both ends of TLS.
    let configuration = format!(
        "foreground = yes\nsyslog = no\npid =\nciphers = PSK\nPSKsecrets = {secrets}\n\
         [server]\naccept = {tls}\nexec = {ECHOED}\nexecArgs = echoed --config {config} --listener one\n\
         [client]\nclient = yes\naccept = {plain}\nconnect = {tls}\n",
        secrets = secrets.display(),
        tls = tls.address,
        plain = plain.address,
    );
    fs::write(&file, configuration).unwrap();
    let _stunnel = spawn(Command::new(stunnel).arg(file).stdin(Stdio::null()).stderr(Stdio::null()));
    let (one, two) = (connect(&plain.address.to_string()), connect(&plain.address.to_string()));
    check_peer(two, "one:");
    check_peer(one, "one:");
}

// --- Others ------------------------------------------------------------------------------------------------------------

#[test]
fn tcpserver_starts_a_process_for_each_connection() {
    let Some(tcpserver) = program_or_skip("tcpserver") else { return };
    let (_directory, config) = settings();
    let mut command = Command::new(tcpserver);
    // -1: it writes its port.
    command.args(["-1", "-H", "-R", "-l0", "127.0.0.1", "0", ECHOED, "--config", &config]);
    let mut tcpserver = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut port = String::new();
    BufReader::new(tcpserver.0.stdout.take().expect("it is piped")).read_line(&mut port).expect("it is written");
    for _ in 0..2 {
        check_peer(connect(&format!("127.0.0.1:{}", port.trim())), "server got:");
    }
}

#[test]
fn s6_ipcserver_starts_a_process_for_each_connection() {
    let Some(ipcserver) = program_or_skip("s6-ipcserver") else { return };
    let (directory, config) = settings();
    let path = directory.path().join("socket");
    let mut command = Command::new(ipcserver);
    command.arg(&path).args([ECHOED, "--config", &config]);
    let _ipcserver = spawn(command.stdin(Stdio::null()).stderr(Stdio::null()));
    for _ in 0..2 {
        check_peer(connect(&format!("unix:{}", path.display())), "server got:");
    }
}

#[test]
fn systemd_socket_activate_starts_a_process_as_inetd_does() {
    let Some(activate) = program_or_skip("systemd-socket-activate") else { return };
    let (directory, config) = settings();
    for (option, name) in [("--accept", "accept"), ("--inetd", "listen")] {
        let path = directory.path().join(name);
        let mut command = Command::new(&activate);
        // Both of them with --inetd; the option may be repeated.
        command.arg("--inetd").arg(option).arg("-l").arg(&path).args([ECHOED, "--config", &config]);
        let _activate = spawn(command.stdin(Stdio::null()).stderr(Stdio::null()));
        let (one, two) = (connect(&format!("unix:{}", path.display())), connect(&format!("unix:{}", path.display())));
        check_peer(two, "server got:");
        check_peer(one, "server got:");
    }
}
