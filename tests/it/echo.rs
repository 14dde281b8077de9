//! What every client sees, and the addresses that it can use.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use common::{Daemon, Peer};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};

/// The longest message by default.
const LONGEST: usize = 65_536;

/// For tests that send a message bit by bit.
const PATIENT: &str = "[defaults.deadlines]\nread = '1min'\n";

#[test]
fn a_message_is_answered_over_tcp_and_over_a_unix_socket() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock", "--listen", "[::1]:0"]);
    for address in daemon.addresses() {
        let mut peer = Peer::connect(&address);
        peer.exchange("aaaa");
        peer.send("b\t\tcc\t");
        peer.expect("server got:b\tserver got:\tserver got:cc\t");
        peer.shutdown();
        peer.expect_close();
    }
    daemon.stop();
}

#[test]
fn every_byte_except_the_delimiter_is_echoed() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0"]);
    let message: Vec<u8> = (0..=255).filter(|byte| *byte != b'\t').collect();
    let mut peer = daemon.connect();
    peer.send([&message[..], b"\t"].concat());
    peer.expect([b"server got:", &message[..], b"\t"].concat());
    daemon.stop();
}

#[test]
fn a_message_of_exactly_the_limit_is_answered_and_one_byte_more_is_refused() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock"]);
    for address in daemon.addresses() {
        let mut peer = Peer::connect(&address);
        let longest = "x".repeat(LONGEST);
        peer.exchange(&longest);
        // What came before is still answered, what comes after is not.
        peer.send(format!("before\t{longest}x\tafter\t"));
        peer.expect("server got:before\tserver error:message exceeds 65536 bytes\t");
        peer.expect_close();
    }
    daemon.stop();
}

#[test]
fn the_limit_is_the_same_when_the_last_bytes_arrive_one_by_one() {
    let daemon = Daemon::start_with(PATIENT, &["--listen", "127.0.0.1:0"]);
    for last in ["\t", "x"] {
        let mut peer = daemon.connect();
        peer.send("x".repeat(LONGEST - 5));
        peer.wait_until_read();
        for _ in 0..5 {
            peer.send("x");
            peer.wait_until_read();
        }
        // That many bytes may still become a message.
        peer.expect_silence(Duration::from_millis(100));
        peer.send(last);
        if last == "\t" {
            peer.expect(format!("server got:{}\t", "x".repeat(LONGEST)));
            peer.exchange("next");
        } else {
            peer.expect("server error:message exceeds 65536 bytes\t");
            peer.expect_close();
        }
    }
    daemon.stop();
}

#[test]
fn the_beginning_of_a_delimiter_does_not_count_against_the_limit() {
    let config = format!("[defaults]\ndelimiter = \"\\r\\n\"\nmax_message = '4B'\n{PATIENT}");
    let daemon = Daemon::start_with(&config, &["--listen", "127.0.0.1:0"]);
    let mut peer = daemon.connect();
    peer.send("1234\r");
    peer.wait_until_read();
    peer.expect_silence(Duration::from_millis(100));
    peer.send("\n1234\r");
    peer.expect("server got:1234\r\n");
    peer.wait_until_read();
    peer.send("5");
    peer.expect("server error:message exceeds 4 bytes\r\n");
    peer.expect_close();
    daemon.stop();
}

#[test]
fn each_listener_has_its_own_prefix_and_delimiter() {
    let config = "
        [defaults]
        prefix = 'got '
        [listener.lines]
        delimiter = \"\\n\"
        prefix = ''
        [listener.marks]
        delimiter = 'aab'
    ";
    let listen = ["--listen", "127.0.0.1:0", "--listen", "lines=127.0.0.1:0", "--listen", "marks=DIR/marks.sock"];
    let daemon = Daemon::start_with(config, &listen);
    let addresses = daemon.addresses();
    for (address, sent, reply) in [
        (&addresses[0], "a\n\tb\t", "got a\n\tgot b\t"),
        (&addresses[1], "a\tb\n\nc\n", "a\tb\n\nc\n"),
        // The first occurrence wins where two overlap.
        (&addresses[2], "xaaabaabaaab", "got xaaabgot aabgot aaab"),
    ] {
        let mut peer = Peer::connect(address);
        peer.send(sent);
        peer.expect(reply);
        peer.shutdown();
        peer.expect_close();
    }
    daemon.stop();
}

#[test]
fn bytes_after_the_last_delimiter_are_a_message_only_with_unterminated_accept() {
    let config = "[listener.all]\nunterminated = 'accept'\n";
    let daemon = Daemon::start_with(config, &["--listen", "127.0.0.1:0", "--listen", "all=127.0.0.1:0"]);
    for (address, last) in daemon.addresses().iter().zip(["", "server got:b\t"]) {
        let mut peer = Peer::connect(address);
        peer.send("a\tb");
        peer.shutdown();
        peer.expect(format!("server got:a\t{last}"));
        peer.expect_close();
    }
    daemon.stop();
}

#[test]
fn without_error_replies_the_connection_is_closed_without_a_final_reply() {
    let daemon =
        Daemon::start_with("[defaults]\nerror_replies = false\nmax_message = '4B'\n", &["--listen", "127.0.0.1:0"]);
    let mut peer = daemon.connect();
    peer.send("1234\t12345");
    peer.expect("server got:1234\t");
    peer.expect_close();
    daemon.stop();
}

/// Whether the daemon's end of a TCP connection sends at once what it is given; `None` where we may not look.
fn has_nodelay(daemon: &Daemon, peer: &Peer) -> Option<bool> {
    let ours = rustix::net::getsockname(peer.fd()).expect("it is a socket");
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw).expect("it runs");
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    for entry in fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs") {
        let number = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let theirs = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
        if rustix::net::getpeername(&theirs).is_ok_and(|address| address.as_ref() == Some(&ours)) {
            return Some(sockopt::tcp_nodelay(&theirs).expect("it is TCP"));
        }
    }
    panic!("the daemon has no end of the connection");
}

#[test]
fn tcp_nodelay_is_set_unless_configured_otherwise() {
    let config = "[listener.delayed]\nnodelay = false\n";
    let daemon = Daemon::start_with(config, &["--listen", "127.0.0.1:0", "--listen", "delayed=127.0.0.1:0"]);
    for (address, expected) in daemon.addresses().iter().zip([true, false]) {
        let mut peer = Peer::connect(address);
        peer.exchange("a");
        let Some(nodelay) = has_nodelay(&daemon, &peer) else {
            return common::skip_test("sockets of other processes cannot be looked at (pidfd_getfd(2))");
        };
        assert_eq!(nodelay, expected, "{address}");
    }
    daemon.stop();
}

// --- Where it listens --------------------------------------------------------------------------------------------------

/// Starts it where it cannot listen; returns its one line on stderr.
fn startup_error(listen: &str) -> String {
    let mut daemon = Daemon::spawn_with(&mut Command::new(env!("CARGO_BIN_EXE_echoed")), "", &["--listen", listen]);
    let status = daemon.wait();
    let log = daemon.log();
    assert_eq!((status.code(), log.len()), (Some(71), 1), "{listen}: {log:#?}");
    log.into_iter().next().unwrap_or_default()
}

#[test]
fn the_log_names_the_port_that_the_kernel_chose() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", "other=[::1]:0"]);
    let lines = daemon.wait_for_log_times("listening on", 2);
    let address: std::net::SocketAddr = daemon.addresses()[0].strip_prefix("tcp:").unwrap().parse().unwrap();
    assert_ne!(address.port(), 0);
    assert_eq!(lines[0], format!("info: listening on tcp:{address} (echo)"));
    assert!(lines[1].starts_with("info: listening on tcp:[::1]:") && lines[1].ends_with(" (other)"), "{lines:#?}");
    daemon.stop();
}

/// Checks that a second daemon does not start where a first one listens, and leaves it alone.
fn check_taken(listen: &str) {
    let daemon = Daemon::start(&["--listen", listen]);
    let address = daemon.addresses().remove(0);
    let advice = "another process listens there; stop it or choose another address";
    assert_eq!(startup_error(&address), format!("echoed: cannot listen on {address}: {advice}"));
    daemon.connect().exchange("still there");
    daemon.stop();
}

#[test]
fn a_port_in_use_is_an_error_with_advice() {
    check_taken("127.0.0.1:0");
}

#[test]
fn an_abstract_socket_is_served_and_cannot_be_bound_twice() {
    let name = format!("unix:@echoed-test-{}", std::process::id());
    let daemon = Daemon::start(&["--listen", &name]);
    Peer::connect(&name).exchange("a");
    let line = startup_error(&name);
    assert!(line.starts_with(&format!("echoed: cannot listen on {name}: another process listens there")), "{line}");
    daemon.stop();
}

#[test]
fn the_socket_file_is_removed_when_the_daemon_exits() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&["--listen", "DIR/echo.sock"]);
        let path = daemon.directory().join("echo.sock");
        assert!(path.exists());
        daemon.signal(signal);
        assert!(daemon.wait().success());
        assert!(!path.exists(), "{} is still there", path.display());
    }
}

#[test]
fn a_socket_file_that_replaced_the_one_of_the_daemon_is_not_removed() {
    for address in ["DIR/echo.sock", "seqpacket:DIR/echo.sock", "unixgram:DIR/echo.sock"] {
        let mut daemon = Daemon::start(&["--listen", address]);
        let path = daemon.directory().join("echo.sock");
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        daemon.signal(Signal::TERM);
        assert!(daemon.wait().success());
        assert!(path.exists(), "{} of another process was removed", path.display());
    }
}

#[test]
fn log_lines_on_stderr_begin_with_the_time() {
    let started = SystemTime::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    command.args(["--config", "/dev/null", "--listen", "127.0.0.1:0"]).env_remove("JOURNAL_STREAM");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(rest.starts_with("info: listening on tcp:127.0.0.1:"), "{line}");
    let time = humantime::parse_rfc3339(time).unwrap_or_else(|error| panic!("{line}: {error}"));
    // It has milliseconds.
    assert!(time + Duration::from_millis(1) > started && time <= SystemTime::now(), "{line}");
}

#[test]
fn the_socket_file_of_a_killed_daemon_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let path = path.to_str().unwrap();
    let mut killed = Daemon::start(&["--listen", path]);
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(fs::exists(path).unwrap(), "the daemon cannot remove it");
    let daemon = Daemon::start(&["--listen", path]);
    daemon.connect().exchange("a");
    daemon.stop();
}

#[test]
fn the_socket_file_of_a_running_process_is_not_replaced() {
    check_taken("DIR/echo.sock");
}

#[test]
fn the_socket_file_of_a_process_with_a_full_backlog_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("busy.sock");
    let listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, rustix::net::SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _queued = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let line = startup_error(path.to_str().unwrap());
    assert!(line.contains("another process listens there"), "{line}");
    assert!(path.exists());
}

#[test]
fn a_file_that_is_not_a_socket_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("file"), "precious").unwrap();
    fs::create_dir(path("directory")).unwrap();
    symlink(path("nowhere"), path("link")).unwrap();
    for name in ["file", "directory", "link"] {
        let address = format!("unix:{}", path(name).display());
        let advice = "a file that is not a socket has this path; remove it";
        assert_eq!(startup_error(&address), format!("echoed: cannot listen on {address}: {advice}"));
        assert!(fs::symlink_metadata(path(name)).is_ok(), "{name} is gone");
    }
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "precious");
}

#[test]
fn a_missing_directory_is_named_in_the_error() {
    let line = startup_error("DIR/nowhere/echo.sock");
    assert!(line.ends_with("/nowhere/echo.sock: the directory does not exist"), "{line}");
}

#[test]
fn a_socket_file_is_removed_when_another_listener_fails_to_bind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let taken = directory.path().join("taken.sock");
    let _listener = UnixListener::bind(&taken).unwrap();
    let (path, taken) = (path.to_str().unwrap(), taken.to_str().unwrap());
    let mut daemon =
        Daemon::spawn_with(&mut Command::new(env!("CARGO_BIN_EXE_echoed")), "", &["--listen", path, "--listen", taken]);
    assert_eq!(daemon.wait().code(), Some(71));
    assert!(!fs::exists(path).unwrap());
}
