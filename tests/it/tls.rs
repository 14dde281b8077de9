//! TLS in front of the daemon, with the configurations that docs/operations.md shows for HAProxy and stunnel.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Daemon, program_or_skip, wait_until};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use tempfile::TempDir;

const PAGE: &str = include_str!("../../docs/operations.md");

/// The block of the page that has this line.
fn block(line: &str) -> String {
    let blocks = PAGE.split("\n```").skip(1).step_by(2).map(|block| block.split_once('\n').expect("it has lines").1);
    let mut found = blocks.filter(|block| block.lines().any(|found| found == line));
    found.next().unwrap_or_else(|| panic!("the page has no {line}")).to_owned() + "\n"
}

/// A program, ended when this is dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon with the settings of the page, a certificate, and a port for what is in front of it.
struct Setup {
    daemon: Daemon,
    directory: TempDir,
    address: SocketAddr,
    /// Keeps the port, which others can share that allow it (SO_REUSEADDR).
    _reserved: OwnedFd,
}

impl Setup {
    /// If there is a program that makes certificates.
    fn start() -> Option<Self> {
        let openssl = program_or_skip("openssl")?;
        let settings = format!("{}[log]\nlevel = \"debug\"\n", block("[listener.tls]"));
        let daemon = Daemon::start_with(&settings, &["--listen", "tls=DIR/echoed-tls.sock"]);
        daemon.wait_for_log("listening on");
        let directory = tempfile::tempdir().expect("a directory can be made");
        let (key, certificate) = (directory.path().join("key"), directory.path().join("certificate"));
        let made = Command::new(openssl)
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .expect("openssl can be started");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let both = [certificate, key].map(|file| fs::read_to_string(file).expect("it was made"));
        fs::write(directory.path().join("echo.pem"), both.concat()).expect("the directory is ours");
        let reserved = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .expect("a socket can be made");
        sockopt::set_socket_reuseaddr(&reserved, true).expect("it can be shared");
        bind(&reserved, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("there is a free port");
        let address = getsockname(&reserved).ok().and_then(|name| name.try_into().ok()).expect("it is bound");
        Some(Self { daemon, directory, address, _reserved: reserved })
    }

    fn socket(&self) -> String {
        self.daemon.directory().join("echoed-tls.sock").display().to_string()
    }

    fn certificate(&self) -> String {
        self.directory.path().join("echo.pem").display().to_string()
    }

    /// Writes a configuration, and starts a program with it.
    fn run(&self, program: &Path, arguments: &[&str], configuration: &str) -> Program {
        let file = self.directory.path().join("configuration");
        fs::write(&file, configuration).expect("the directory is ours");
        let mut command = Command::new(program);
        command.args(arguments).arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Program(command.spawn().expect("it can be started"))
    }

    /// Sends a message as the page shows it, as soon as something listens, and expects the reply; the daemon knows the
    /// client's own address.
    fn check_client(&self) {
        wait_until("the program listens", || std::net::TcpStream::connect(self.address).is_ok());
        let command = block("printf 'aaaa\\t' | socat -t2 - OPENSSL:localhost:8443,cafile=echo.pem");
        let arguments = command.trim_end().split_once("| socat -t2 ").expect("it is socat").1;
        let arguments =
            arguments.replace("8443", &self.address.port().to_string()).replace("echo.pem", &self.certificate());
        let Some(socat) = program_or_skip("socat") else { return };
        let mut client = Command::new(socat);
        // Longer than the page says, for machines with much to do.
        client.arg("-t30").args(arguments.split(' ')).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Program(client.stderr(Stdio::null()).spawn().expect("socat can be started"));
        let mut input = client.0.stdin.take().expect("it is piped");
        input.write_all(b"aaaa\t").expect("socat reads");
        let mut reply = [0; b"server got:aaaa\t".len()];
        let mut output = client.0.stdout.take().expect("it is piped");
        output.read_exact(&mut reply).expect("socat writes the reply");
        assert_eq!(reply.escape_ascii().to_string(), r"server got:aaaa\t");
        drop((input, client));
        let line = self.daemon.wait_for_log("1 messages, 5 bytes in");
        assert!(line.contains(" on tls from 127.0.0.1:"), "{line}");
    }
}

#[test]
fn haproxy_passes_clients_with_tls_on_with_their_addresses() {
    let Some(haproxy) = program_or_skip("haproxy") else { return };
    let Some(setup) = Setup::start() else { return };
    let configuration = block("listen echo-tls")
        .replace(":8443", &setup.address.to_string())
        .replace("/etc/haproxy/echo.pem", &setup.certificate())
        // Without the root directory that the package has set.
        .replace("unix@/echoed-tls.sock", &format!("unix@{}", setup.socket()));
    // Of what stands before it in the configuration of Debian's package.
    let configuration = format!("global\n    log /dev/log local0\ndefaults\n    log global\n{configuration}");
    let check = setup.directory.path().join("checked");
    fs::write(&check, &configuration).expect("the directory is ours");
    let checked = Command::new(&haproxy).args(["-c", "-f"]).arg(&check).output().expect("it can be started");
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && !said.contains("WARNING"), "{said}");
    let _haproxy = setup.run(&haproxy, &["-db", "-f"], &configuration);
    setup.check_client();
}

#[test]
fn stunnel_passes_clients_with_tls_on_with_their_addresses() {
    let Some(stunnel) = program_or_skip("stunnel") else { return };
    let Some(setup) = Setup::start() else { return };
    let configuration = block("foreground = quiet")
        .replace("accept = 8443", &format!("accept = {}", setup.address))
        .replace("/etc/stunnel/echo.pem", &setup.certificate())
        .replace("/var/lib/haproxy/echoed-tls.sock", &setup.socket());
    let _stunnel = setup.run(&stunnel, &[], &format!("syslog = no\npid =\n{configuration}"));
    setup.check_client();
}
