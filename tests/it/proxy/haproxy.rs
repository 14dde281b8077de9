//! Against the program that the PROXY protocol comes from.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use super::{start_daemon, wait_for_end};
use common::{Daemon, Peer, program_or_skip};

/// A running HAProxy in front of a daemon, ended when it is dropped.
struct Haproxy {
    child: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Haproxy {
    /// With these options of its server (or servers), whose addresses are `TCP` and `UNIX`; if it is installed.
    fn start(daemon: &Daemon, backend: &str) -> Option<Self> {
        let program = program_or_skip("haproxy")?;
        let directory = tempfile::tempdir().expect("a directory can be made");
        let addresses = daemon.addresses();
        let tcp = addresses[0].strip_prefix("tcp:").expect("it is TCP");
        let unix = addresses[1].replace("unix:", "unix@");
        let backend = backend.replace("TCP", tcp).replace("UNIX", &unix);
        // The listening socket is its standard input: so there is no port that another process could take before it.
        let configuration = format!(
            "defaults\n  mode tcp\n  timeout connect 20s\n  timeout client 30s\n  timeout server 30s\n\
             frontend front\n  bind fd@0\n  default_backend back\nbackend back\n{backend}\n"
        );
        let file = directory.path().join("haproxy.cfg");
        fs::write(&file, configuration).expect("it can be written");
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = format!("tcp:{}", listener.local_addr().expect("it is bound"));
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(file).stdin(Stdio::from(OwnedFd::from(listener)));
        let child = command.stdout(Stdio::null()).spawn().expect("it can be started");
        Some(Self { child, address, _directory: directory })
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of `haproxy` is known to the daemon by its own address.
fn check_client(daemon: &Daemon, haproxy: &Haproxy) {
    let mut peer = Peer::connect(&haproxy.address);
    peer.send("aaaa\t");
    peer.expect("server got:aaaa\t");
    let ours = rustix::net::getsockname(peer.fd()).expect("it is connected");
    let ours = std::net::SocketAddr::try_from(ours).expect("it is TCP");
    peer.shutdown();
    peer.expect_close();
    let line = daemon.wait_for_log(&format!("from {ours} ended: peer-closed; 1 messages"));
    assert!(line.starts_with("debug: connection "), "{line}");
}

#[test]
fn haproxy_sends_the_client_address_in_both_versions() {
    for options in [
        "TCP send-proxy",
        "TCP send-proxy-v2",
        "UNIX send-proxy",
        "UNIX send-proxy-v2",
        "TCP send-proxy-v2 proxy-v2-options crc32c,unique-id",
    ] {
        let daemon = start_daemon("");
        let Some(haproxy) = Haproxy::start(&daemon, &format!("  server echo {options}")) else { return };
        check_client(&daemon, &haproxy);
        daemon.stop();
    }
}

#[test]
fn health_checks_of_haproxy_are_answered() {
    for version in ["send-proxy", "send-proxy-v2"] {
        let daemon = start_daemon("");
        let backend = format!(
            "  option tcp-check\n  tcp-check send check\\t\n  \
             tcp-check expect string server\\ got:check\n  \
             server echo TCP check inter 100ms {version} check-send-proxy\n"
        );
        let Some(haproxy) = Haproxy::start(&daemon, &backend) else { return };
        let ends = daemon.wait_for_log_times("; 1 messages, 6 bytes in, 17 bytes out", 3);
        // They come from HAProxy itself.
        assert!(ends.iter().all(|line| line.contains(" from 127.0.0.1:")), "{ends:#?}");
        check_client(&daemon, &haproxy);
        let log = daemon.stop();
        assert!(!log.iter().any(|line| line.contains("bad-proxy-header")), "{log:#?}");
    }
}

#[test]
fn the_health_check_in_the_readme_is_answered() {
    let (_, check) = include_str!("../../../README.md").split_once("\nbackend echo\n").expect("it is there");
    let check = check.split("```").next().unwrap_or_default();
    let daemon =
        Daemon::start_with("[log]\nlevel = \"debug\"\n", &["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock"]);
    daemon.wait_for_log_times("listening on", 2);
    let backend = check.replace("127.0.0.1:8085", "TCP").replace("inter 2s", "inter 100ms");
    assert!(backend.contains(" TCP check inter 100ms"), "{backend}");
    let Some(_haproxy) = Haproxy::start(&daemon, &backend) else { return };
    daemon.wait_for_log_times("; 1 messages, 6 bytes in, 17 bytes out", 3);
    daemon.stop();
}

#[test]
fn haproxy_without_the_header_is_rejected() {
    let daemon = start_daemon("");
    let Some(haproxy) = Haproxy::start(&daemon, "  server echo TCP") else { return };
    let mut peer = Peer::connect(&haproxy.address);
    peer.send("aaaa\t");
    assert_eq!(peer.read_to_end(), b"");
    assert!(wait_for_end(&daemon, 1).contains("ended: bad-proxy-header"));
    daemon.stop();
}
