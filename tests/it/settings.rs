//! The configuration file and the command line: what is refused, where that is shown ([`refused`]), and that what is
//! accepted holds and can be printed ([`random`]).

mod random;
mod refused;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::{Daemon, Peer, ServiceManager};
use rustix::process::Signal;

/// Starts a daemon on Unix sockets in its directory, and waits until it is ready, however little it logs. The manager
/// has to live as long, or there would be something to log.
fn start_quiet(configuration: &str, arguments: &[&str]) -> (Daemon, ServiceManager) {
    let manager = ServiceManager::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    let daemon = Daemon::spawn_with(manager.set_notify_socket(&mut command), configuration, arguments);
    manager.expect("READY=1");
    (daemon, manager)
}

fn connect(daemon: &Daemon, name: &str) -> Peer {
    Peer::connect(&format!("unix:{}", daemon.directory().join(name).display()))
}

#[test]
fn sections_inherit_the_defaults_and_change_only_what_they_set() {
    let configuration = r#"
        # Before the defaults, and begins with them all the same.
        [listener.one]
        listen = ["unix:DIR/one", "unix:DIR/another"]
        prefix = "one:"
        error_replies = false

        [listener.two]
        listen = ["unix:DIR/two"]
        delimiter = "END"
        deadlines.idle = "200ms"

        [defaults]
        prefix = "all:"
        delimiter = "\n"
        unterminated = "accept"
        max_message = "0.01KiB"
        [defaults.deadlines]
        read = "300 ms"
        idle = "1min"
    "#;
    let (daemon, _manager) = start_quiet(configuration, &[]);
    for name in ["one", "another"] {
        let mut peer = connect(&daemon, name);
        peer.send("a\tb\nc");
        peer.expect("one:a\tb\n");
        peer.shutdown();
        peer.expect("one:c\n");
        peer.expect_close();
    }
    let mut too_long = connect(&daemon, "one");
    too_long.send("12345678901\n");
    too_long.expect_close();

    let mut peer = connect(&daemon, "two");
    peer.send("1234567890END");
    peer.expect("all:1234567890END");
    peer.expect("server error:no message within 200msEND");
    let mut peer = connect(&daemon, "two");
    peer.send("a");
    peer.expect("server error:message not finished within 300 msEND");
    let mut peer = connect(&daemon, "two");
    peer.send("12345678901");
    peer.expect("server error:message exceeds 10 bytesEND");

    // Its idle deadline is the one of all, not its neighbour's.
    connect(&daemon, "one").expect_silence(Duration::from_millis(600));
    daemon.stop();
}

#[test]
fn without_a_section_the_defaults_apply_and_deadlines_can_be_off() {
    let configuration = "[defaults]\nprefix = \"\"\n[defaults.deadlines]\nread = \"off\"\nidle = \"off\"\n";
    let daemon = Daemon::start_with(configuration, &["--listen", "other=unix:DIR/socket"]);
    let mut peer = connect(&daemon, "socket");
    peer.send("aaaa");
    peer.expect_silence(Duration::from_millis(2500));
    peer.send("\t");
    peer.expect("aaaa\t");
    daemon.stop();
}

#[test]
fn listen_options_override_the_file_and_their_name_selects_the_section() {
    let configuration = "[listener.one]\nlisten = [\"unix:DIR/file\"]\nprefix = \"one:\"\n";
    let daemon = Daemon::start_with(configuration, &["--listen", "one=DIR/line", "--listen", "DIR/a=b"]);
    daemon.wait_for_log_times("listening on", 2);
    let mut peer = connect(&daemon, "line");
    peer.send("a\t");
    peer.expect("one:a\t");
    connect(&daemon, "a=b").exchange("a");
    assert!(!daemon.directory().join("file").exists());
    let log = daemon.stop();
    let listening: Vec<_> = log.iter().filter(|line| line.contains("listening on")).collect();
    assert!(listening[0].ends_with("(one)") && listening[1].ends_with("(echo)"), "{log:#?}");
}

#[test]
fn the_log_level_option_overrides_the_file() {
    let level = |file: &str, line: &[&str]| {
        let arguments = [&["--listen", "DIR/socket"], line].concat();
        let (daemon, _manager) = start_quiet(file, &arguments);
        connect(&daemon, "socket").exchange("a");
        daemon.stop().iter().map(|line| line.split(':').next().unwrap_or("").to_owned()).collect::<Vec<_>>()
    };
    let (debug, error) = ("[log]\nlevel = \"debug\"\n", "[log]\nlevel = \"error\"\n");
    assert_eq!(level("", &["--log-level", "error"]), [""; 0]);
    assert_eq!(level(error, &[]), [""; 0]);
    assert_eq!(level(debug, &["--log-level", "warn"]), [""; 0]);
    assert!(level(debug, &[]).contains(&"debug".to_owned()));
    assert!(level(error, &["--log-level", "debug"]).contains(&"debug".to_owned()));
    let usual = level("", &[]);
    assert!(usual.contains(&"info".to_owned()) && !usual.contains(&"debug".to_owned()), "{usual:?}");
}

#[test]
fn the_configured_number_of_workers_is_started() {
    let threads = |workers: &str| {
        let (daemon, _manager) = start_quiet(&format!("[service]\nworkers = {workers}\n"), &["--listen", "DIR/socket"]);
        daemon.status_number("Threads")
    };
    let one = threads("1");
    assert_eq!(threads("7"), one + 6);
    assert_eq!(threads("0x1_0"), one + 15);
}

#[test]
fn limits_in_the_file_apply() {
    let configuration = "[limits]\nconnections_per_source = 2\n";
    let daemon = Daemon::start_with(configuration, &["--listen", "DIR/socket"]);
    let (mut first, mut second) = (connect(&daemon, "socket"), connect(&daemon, "socket"));
    first.exchange("a");
    second.exchange("b");
    let mut third = connect(&daemon, "socket");
    third.expect("server error:too many connections from this source (limit 2)\t");
    third.expect_close();
    daemon.stop();
}

#[test]
fn a_stop_waits_for_clients_that_do_not_read_until_the_drain_timeout() {
    let configuration = "[service]\ndrain_timeout = \"300ms\"\n[defaults.deadlines]\nwrite = \"off\"\n";
    let mut daemon = Daemon::start_with(configuration, &["--listen", "DIR/socket"]);
    let mut peer = connect(&daemon, "socket");
    // More replies than fit into the socket, so some are owed when nothing more is read.
    peer.send([b'\t'; 60_000]);
    peer.expect("server got:\t");
    let asked = common::now();
    daemon.signal(Signal::TERM);
    let status = daemon.wait();
    let waited = asked.elapsed();
    // The built-in time is 5 s.
    assert!((Duration::from_millis(300)..Duration::from_secs(5)).contains(&waited), "{waited:?}");
    assert!(status.success());
    assert!(daemon.log().iter().any(|line| line.contains("0 connections finished, 1 cut")), "{:#?}", daemon.log());
}

// --- The command line ------------------------------------------------------------------------------------------------

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_echoed")).args(arguments).output().expect("it can be started")
}

#[test]
fn an_invalid_command_line_is_refused_with_a_hint() {
    for (arguments, said) in [
        (&["--listen", "8085"][..], "write 127.0.0.1:8085"),
        (&["--listen", ":8085"], "write 127.0.0.1:8085"),
        (&["--listen", "localhost"], "write tcp:HOST:PORT"),
        (&["--listen", "::1:8085"], "write [IPv6]:PORT"),
        (&["--listen", "unix:echo.sock"], "write unix:/PATH"),
        (&["--listen", "127.0.0.1:99999"], "from 0 to 65535"),
        (&["--listen", "udp:7"], "write udp:127.0.0.1:7"),
        (&["--listen", "a b=127.0.0.1:0"], "invalid listener name \"a b\""),
        (&["--listen", "=127.0.0.1:0"], "invalid listener name"),
        (&["--listen", "stored=127.0.0.1:0"], "stored"),
        (&["--listen", "handover=127.0.0.1:0"], "handover"),
        (&["--listener", "a b", "--listen", "/no such directory/socket"], "invalid listener name \"a b\""),
        (&["--listen"], "value is required"),
        (&["--config"], "value is required"),
        (&["--log-level", "loud"], "write one of error, warn, info, debug, trace"),
        (&["--log-level", "DEBUG"], "write debug, in lower case"),
        (&["--listen", "0.0.0.0"], "the port is missing; write 0.0.0.0:PORT"),
        (&["--listen", "*:8085"], "write 0.0.0.0:8085 for every address of IPv4"),
        (&["--listen", "127.0.0.1:8085", "--listen", "a=tcp:127.0.0.1:8085"], "tcp:127.0.0.1:8085 is given twice"),
        (&["--listen", "udp:[::1]:7", "--listen", "a=udp:[::1]:7"], "only a socket unit with ReusePort=yes can have"),
        (&["--lisen", "127.0.0.1:0"], "--listen"),
        (&["--port", "8085"], "--port"),
        (&["127.0.0.1:0"], "127.0.0.1:0"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
        let mut daemon = Daemon::spawn_with(&mut command, "", &[arguments, &["--config", "/"]].concat());
        let status = daemon.wait();
        let log = daemon.log().join("\n");
        assert_eq!(status.code(), Some(2), "{arguments:?}: {log}");
        assert!(log.contains(said), "{arguments:?}: {log}");
    }
}

#[test]
fn help_and_version_are_printed_to_stdout_without_starting() {
    let help = run(&["--help"]);
    assert_eq!((help.status.code(), help.stderr.len()), (Some(0), 0));
    let help = String::from_utf8(help.stdout).unwrap();
    for part in [
        "--config",
        "--listen",
        "--listener",
        "--log-level",
        "tcp:127.0.0.1:8085",
        "echoctl send",
        "71",
        "78",
        "unix:/PATH",
    ] {
        assert!(help.contains(part), "{part} is not in:\n{help}");
    }
    let version = run(&["--version"]);
    assert_eq!((version.status.code(), version.stderr.len()), (Some(0), 0));
    assert_eq!(String::from_utf8(version.stdout).unwrap(), format!("echoed {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_unavailable_address_is_named_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let taken = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", "DIR/taken"]);
    taken.wait_for_log_times("listening on", 2);
    let addresses = taken.addresses();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let file = format!("unix:{}", file.display());
    for (address, said) in [
        (&*addresses[0], "another process listens there"),
        (&addresses[1], "another process listens there"),
        (&file, "not a socket has this path"),
        ("unix:/no such directory/socket", "the directory does not exist"),
        ("tcp:192.0.2.1:1", "no interface of this machine has that address"),
        ("tcp6:127.0.0.1:1", "no address of this kind"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
        let mut daemon = Daemon::spawn_with(&mut command, "", &["--listen", address]);
        let status = daemon.wait();
        let log = daemon.log();
        assert_eq!(status.code(), Some(71), "{log:#?}");
        let named = format!("echoed: cannot listen on {address}: ");
        assert!(log.len() == 1 && log[0].starts_with(&named) && log[0].contains(said), "{log:#?}");
    }
    assert!(Path::new(addresses[1].trim_start_matches("unix:")).exists());
    taken.stop();
}
