//! The figures are right after a story of connections, verdicts, drops, errors and reloads.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::Signal;

use super::http::Client;
use super::{address_of, metric, metrics, wait_for_metric};
use common::{Daemon, Peer, TEST_TIMEOUT, program_or_skip, python_with_or_skip};

const PAGE: &str = include_str!("../../../docs/monitoring.md");

/// The metrics of the page: the name and the kind of each.
fn documented_metrics() -> BTreeSet<(String, String)> {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter(|row| row.starts_with("echoed_") || row.starts_with("process_"));
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>();
    rows.map(cells).map(|cells| (cells[0].clone(), cells[1].clone())).collect()
}

const CONFIGURATION: &str = "[listener.monitor]\nrole = 'monitor'\n\
    [listener.header]\nproxy_protocol = 'required'\n\
    [service]\nworkers = 2\n[limits]\ndatagrams_per_source = '5/s'\n\
    [defaults]\nmax_message = '10B'\n[defaults.deadlines]\nread = '200ms'\nidle = '1min'\n";

fn start() -> Daemon {
    let listen = ["echo=127.0.0.1:0", "header=127.0.0.1:0", "udp=udp:127.0.0.1:0", "monitor=127.0.0.1:0"];
    let arguments: Vec<_> = listen.iter().flat_map(|listen| ["--listen", listen]).collect();
    Daemon::start_with(CONFIGURATION, &arguments)
}

fn ended(listener: &str, verdict: &str) -> String {
    format!("echoed_connections_ended_total{{listener=\"{listener}\",verdict=\"{verdict}\"}}")
}

#[test]
fn every_metric_is_there_and_right_after_a_story() {
    let daemon = start();
    let text = metrics(&daemon);
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let described: BTreeSet<_> = described.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
    assert_eq!(described, documented_metrics());
    // All have samples from the beginning but the one whose labels are not known before.
    for (name, _) in described.iter().filter(|(name, _)| name != "echoed_accept_errors_total") {
        let is_sample = |line: &str| line.strip_prefix(&**name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        assert!(text.lines().any(is_sample), "{name} has no sample:\n{text}");
    }
    let version = format!("echoed_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(metric(&text, &version), Some(1.0), "{text}");

    // On both workers.
    let (mut sent, mut received, mut messages) = (0, 0, 0);
    let mut peers: Vec<_> = (0..7).map(|_| daemon.connect()).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        for _ in 0..=number {
            peer.exchange("aaaa");
            (sent, received, messages) = (sent + 5, received + "server got:aaaa\t".len(), messages + 1);
        }
    }
    peers.drain(..3).for_each(Peer::close);
    wait_for_metric(&daemon, &ended("echo", "peer-closed"), 3.0);
    peers.remove(0).reset();
    wait_for_metric(&daemon, &ended("echo", "peer-reset"), 1.0);
    let mut too_long = daemon.connect();
    too_long.send("12345678901");
    sent += 11;
    received += "server error:message exceeds 10 bytes\t".len();
    too_long.expect("server error:message exceeds 10 bytes\t");
    too_long.shutdown();
    wait_for_metric(&daemon, &ended("echo", "too-long"), 1.0);
    let mut slow = daemon.connect();
    slow.send("half");
    sent += 4;
    slow.expect("server error:message not finished within 200ms\t");
    received += "server error:message not finished within 200ms\t".len();
    slow.shutdown();
    wait_for_metric(&daemon, &ended("echo", "read-deadline"), 1.0);
    let mut cut = daemon.connect();
    cut.send("cut");
    sent += 3;
    cut.shutdown();
    wait_for_metric(&daemon, &ended("echo", "unterminated"), 1.0);
    let mut bad = Peer::connect(&address_of(&daemon, "header"));
    bad.send("no header at all\r\n");
    bad.expect_close();
    wait_for_metric(&daemon, &ended("header", "bad-proxy-header"), 1.0);

    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    udp.set_read_timeout(Some(TEST_TIMEOUT)).expect("it is not zero");
    udp.connect(address_of(&daemon, "udp").trim_start_matches("udp:")).expect("it is an address");
    for _ in 0..3 {
        udp.send(b"a").expect("it can be sent");
        udp.recv(&mut [0; 100]).expect("it is answered");
    }
    // Each of these is dropped, or more than 5 are answered in a second.
    for _ in 0..20 {
        udp.send(b"a").expect("it can be sent");
    }
    udp.send(b"12345678901").expect("it can be sent");
    wait_for_metric(&daemon, "echoed_datagrams_received_total{listener=\"udp\"}", 24.0);

    let file = daemon.directory().join("echoed.toml");
    let good = std::fs::read_to_string(&file).expect("it is ours");
    for (text, said) in [("[log]\nlevel = 7\n", "failed to reload"), (&*good, "reloaded: ")] {
        std::fs::write(&file, text).expect("it is ours");
        daemon.signal(Signal::HUP);
        daemon.wait_for_log(said);
    }
    wait_for_metric(&daemon, "echoed_reloads_total{result=\"ok\"}", 1.0);

    let text = metrics(&daemon);
    let value = |name: &str| metric(&text, name).unwrap_or_else(|| panic!("{name} is missing:\n{text}"));
    #[expect(clippy::cast_precision_loss, reason = "they are small")]
    for (name, expected) in [
        ("echoed_connections{listener=\"echo\"}", peers.len()),
        ("echoed_connections_accepted_total{listener=\"echo\"}", 10),
        ("echoed_connections_resumed_total{listener=\"echo\"}", 0),
        ("echoed_messages_total{listener=\"echo\"}", messages),
        ("echoed_received_bytes_total{listener=\"echo\"}", sent),
        ("echoed_sent_bytes_total{listener=\"echo\"}", received),
        ("echoed_connections_accepted_total{listener=\"header\"}", 1),
        ("echoed_connections{listener=\"header\"}", 0),
        ("echoed_datagrams_dropped_total{listener=\"udp\",cause=\"too-long\"}", 1),
        ("echoed_reloads_total{result=\"failed\"}", 1),
        ("echoed_workers", 2),
        ("echoed_ready", 1),
    ] {
        assert_eq!(value(name), expected as f64, "{name}:\n{text}");
    }
    let (answered, rate) = (
        value("echoed_datagrams_answered_total{listener=\"udp\"}"),
        value("echoed_datagrams_dropped_total{listener=\"udp\",cause=\"rate\"}"),
    );
    assert_eq!(answered + rate + 1.0, 24.0, "{text}");
    assert!(answered >= 3.0 && rate > 0.0, "{text}");
    let all = text.lines().filter(|line| line.starts_with("echoed_connections_ended_total{listener=\"echo\""));
    let all: f64 = all.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap()).sum();
    assert_eq!(all, 7.0, "{text}");
    drop(peers);
    daemon.stop();
}

/// Errors of accept(2) are counted by their names.
#[test]
fn accept_errors_are_counted() {
    let daemon = start();
    daemon.connect().exchange("a");
    // One for the connection to the monitor, which is there before.
    let mut client = Client::connect(&address_of(&daemon, "monitor"));
    assert_eq!(client.get("/readyz", "").status, 200);
    daemon.leave_free_descriptors(0);
    let peers: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    daemon.wait_for_log("Too many open files");
    let text = client.get("/metrics", "").body;
    let errors = metric(&text, "echoed_accept_errors_total{listener=\"echo\",error=\"EMFILE\"}");
    assert!(errors >= Some(1.0), "{text}");
    drop(peers);
}

#[test]
fn suppressed_log_entries_are_counted() {
    let daemon = Daemon::start_with(
        "[log]\nlevel = 'info'\n[listener.monitor]\nrole = 'monitor'\n[defaults]\nmax_message = '1B'\n",
        &["--listen", "127.0.0.1:0", "--listen", "monitor=127.0.0.1:0"],
    );
    for _ in 0..120 {
        let mut peer = daemon.connect();
        peer.send("aa");
        peer.expect("server error:message exceeds 1 bytes\t");
    }
    wait_for_metric(&daemon, &ended("echo", "too-long"), 120.0);
    let suppressed = metric(&metrics(&daemon), "echoed_log_entries_suppressed_total").expect("it is there");
    assert!((1.0..=20.0).contains(&suppressed), "{suppressed}");
    daemon.stop();
}

/// Runs a checker with this text as its input, and expects that it finds nothing.
fn check(command: &mut Command, text: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = text.to_owned();
    let writer = thread::spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes()));
    let output = child.wait_with_output().expect("it can be waited for");
    writer.join().expect("it does not panic").expect("it is read");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{text}");
    assert!(said.trim().is_empty() || said.contains("families"), "{said}\n{text}");
}

#[test]
fn promtool_has_nothing_to_say_about_the_text() {
    let Some(promtool) = program_or_skip("promtool") else { return };
    let daemon = start();
    daemon.connect().exchange("a");
    check(Command::new(promtool).args(["check", "metrics"]), &metrics(&daemon));
    daemon.stop();
}

#[test]
fn the_python_client_parses_open_metrics() {
    let parser = "prometheus_client.openmetrics.parser";
    let Some(python) = python_with_or_skip(parser, "python3-prometheus-client") else { return };
    let daemon = start();
    daemon.connect().exchange("a");
    let mut client = Client::connect(&address_of(&daemon, "monitor"));
    let text = client.get("/metrics", "Accept: application/openmetrics-text\r\n").body;
    let script = "import sys\n\
                  from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
                  families = list(parse(sys.stdin.read()))\n\
                  assert any(family.name == 'echoed_messages' for family in families)\n\
                  print(len(families), 'families')\n";
    check(Command::new(python).args(["-c", script]), &text);
    daemon.stop();
}
