//! Clients in plain C, Go and Python that know nothing of echoed, and talk to each service as to the one that they know.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{DISCARD, GREETER, LINE_SINK, RAW_ECHO, TCP_AND_UNIX, logged_messages, serve};
use common::{now, program_or_skip};

/// What a client does at a service, over each of its addresses. The files of the clients say what the words mean.
struct Scenario {
    configuration: &'static str,
    addresses: &'static [&'static str],
    arguments: &'static [&'static str],
    expected_output: &'static str,
    /// The messages that are then in the log.
    expected_log: &'static [&'static str],
    /// It takes so long at least, in seconds.
    min_seconds: u64,
}

impl Scenario {
    const fn new(
        configuration: &'static str,
        addresses: &'static [&'static str],
        arguments: &'static [&'static str],
        expected_output: &'static str,
    ) -> Self {
        Self { configuration, addresses, arguments, expected_output, expected_log: &[], min_seconds: 0 }
    }
}

const HELLO: &[&str] = &["again", "3", "Hello, server!"];

const SCENARIOS: &[Scenario] = &[
    // The delimited echo.
    Scenario::new(
        "",
        TCP_AND_UNIX,
        &["until", "\t", "aaaa", "", "line\n"],
        "server got:aaaa\tserver got:\tserver got:line\n\t",
    ),
    // RFC 862.
    Scenario::new(RAW_ECHO, TCP_AND_UNIX, &["all", "no delimiter"], "no delimiter"),
    Scenario::new(
        RAW_ECHO,
        &["127.0.0.1:0", "DIR/socket", "udp:127.0.0.1:0", "seqpacket:DIR/packets"],
        HELLO,
        "0 Hello, server!1 Hello, server!2 Hello, server!",
    ),
    // RFC 863.
    Scenario::new(DISCARD, TCP_AND_UNIX, &["all", "whatever"], ""),
    // The line sink.
    Scenario {
        expected_log: &["one", "two", "no end"],
        ..Scenario::new(LINE_SINK, TCP_AND_UNIX, &["close", "one\ntwo\nno end"], "")
    },
    // The greeter: a client that sends again at once has to wait.
    Scenario {
        min_seconds: 2,
        ..Scenario::new(GREETER, TCP_AND_UNIX, HELLO, "Hello, client!\nHello, client!\nHello, client!\n")
    },
    // The delimited echo, in packets.
    Scenario::new("", &["seqpacket:DIR/socket", "udp:127.0.0.1:0"], &["again", "1", "aaaa"], "server got:0 aaaa"),
];

/// Runs every scenario with a client that is started by this command.
fn run_scenarios(client: &[PathBuf]) {
    for Scenario { configuration, addresses, arguments, expected_output, expected_log, min_seconds } in SCENARIOS {
        let daemon = serve(configuration, addresses);
        for (runs, address) in (1..).zip(daemon.addresses()) {
            let (scheme, address) = address.split_once(':').expect("it has a scheme");
            let network = if scheme == "seqpacket" { "unixpacket" } else { scheme };
            let start = now();
            let mut command = Command::new(&client[0]);
            command.args(&client[1..]).args([network, address]).args(*arguments).stderr(Stdio::inherit());
            let output = command.output().expect("it can be started");
            let printed = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && printed == *expected_output,
                "{command:?}: {}, {printed:?}",
                output.status
            );
            assert!(start.elapsed() >= Duration::from_secs(*min_seconds), "{command:?}: {:?}", start.elapsed());
            if let Some(last) = expected_log.last() {
                // It does not wait until the daemon has read it.
                daemon.wait_for_log_times(&format!("\"{last}\""), runs);
            }
        }
        let log = daemon.stop();
        assert_eq!(logged_messages(&log), expected_log.repeat(addresses.len()), "{log:#?}");
    }
}

/// Where the text of a client is.
fn source_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/services").join(name)
}

/// Makes a client of its text.
fn compile(command: &mut Command, name: &str) -> PathBuf {
    let client = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name.replace('.', "-"));
    let made = command.arg("-o").args([&client, &source_path(name)]).status().expect("it can be started");
    assert!(made.success(), "{command:?}: {made}");
    client
}

#[test]
fn clients_in_c_are_served() {
    let Some(cc) = program_or_skip("cc") else { return };
    run_scenarios(&[compile(Command::new(cc).args(["-std=c11", "-Wall", "-Wextra", "-Werror"]), "client.c")]);
}

#[test]
fn clients_in_go_are_served() {
    let Some(go) = program_or_skip("go") else { return };
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
    let mut command = Command::new(go);
    command
        .args(["build"])
        .env("GOCACHE", &cache)
        .env("GOPATH", &cache)
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", "0");
    run_scenarios(&[compile(&mut command, "client.go")]);
}

#[test]
fn clients_in_python_are_served() {
    let Some(python) = program_or_skip("python3") else { return };
    run_scenarios(&[python, source_path("client.py")]);
}
