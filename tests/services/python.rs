//! Clients in plain Python that know nothing of echoed, and talk to each service as to the one that they know.

use std::process::{Command, Stdio};

use super::{DISCARD, GREETER, GREETING, LINE_SINK, RAW_ECHO, TCP_AND_UNIX, lines};
use crate::common::{self, Daemon};

/// What clients have in common: `connect()` to the daemon's first address and then to its second.
const BEGINNING: &str = r#"
import socket, sys, time

def connect(address):
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        client = socket.socket(socket.AF_UNIX)
        client.connect(rest)
    else:
        host, _, port = rest.rpartition(":")
        client = socket.create_connection((host, int(port)))
    client.settimeout(30)
    return client

def rest_of(client):
    received = b""
    while chunk := client.recv(4096):
        received += chunk
    return received

for address in sys.argv[1:]:
    client = connect(address)
"#;

/// Runs what a client does, on one address after the other, and returns what it prints.
fn client(daemon: &Daemon, script: &str) -> Option<String> {
    let python = common::program_or_leave_out("python3")?;
    let indented: String = script.lines().map(|line| format!("    {line}\n")).collect();
    let mut command = Command::new(python);
    command.args(["-c", &(BEGINNING.to_owned() + &indented)]).args(daemon.addresses());
    let output = command.stderr(Stdio::inherit()).output().expect("python3 runs");
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stdout));
    Some(String::from_utf8(output.stdout).expect("it prints text"))
}

#[test]
fn a_client_of_an_echo_service_reads_what_it_wrote() {
    let daemon = Daemon::start_with(RAW_ECHO, &TCP_AND_UNIX);
    let script = r#"
for text in (b"hello", b"\0\t\xff", b"x" * 3000):
    client.sendall(text)
    received = b""
    while len(received) < len(text):
        received += client.recv(1024)
    assert received == text, received
client.sendall(b"the end")
client.shutdown(socket.SHUT_WR)
print(rest_of(client))
"#;
    let Some(printed) = client(&daemon, script) else { return };
    assert_eq!(printed, "b'the end'\n".repeat(2));
    daemon.stop();
}

#[test]
fn a_client_of_a_discard_service_hears_nothing() {
    let daemon = Daemon::start_with(DISCARD, &TCP_AND_UNIX);
    let script = r#"
client.sendall(b"x" * 1000000)
client.shutdown(socket.SHUT_WR)
print(rest_of(client))
"#;
    let Some(printed) = client(&daemon, script) else { return };
    assert_eq!(printed, "b''\n".repeat(2));
    daemon.stop();
}

#[test]
fn a_client_of_a_line_sink_writes_and_closes() {
    let daemon = Daemon::start_with(LINE_SINK, &TCP_AND_UNIX);
    let script = r#"
for line in range(100):
    client.sendall(b"line %d\n" % line)
client.sendall(b"without an end")
client.close()
"#;
    if client(&daemon, script).is_none() {
        return;
    }
    daemon.wait_for_log_times("without an end", 2);
    let log = daemon.stop();
    let mut expected: Vec<_> = (0..100).map(|line| format!("line {line}")).collect();
    expected.push("without an end".to_owned());
    assert_eq!(lines(&log), [&expected[..], &expected[..]].concat());
}

#[test]
fn a_client_of_a_greeter_writes_reads_waits_and_does_so_again() {
    let daemon = Daemon::start_with(GREETER, &TCP_AND_UNIX);
    let script = r#"
for number in range(3):
    begun = time.monotonic()
    client.sendall(b"%d Hello, server!" % number)
    print(client.recv(1024).decode(), end="")
    # Whoever asks again at once, waits.
    assert number == 0 or time.monotonic() - begun > 0.9
client.close()
"#;
    let Some(printed) = client(&daemon, script) else { return };
    assert_eq!(printed, GREETING.repeat(6));
    daemon.stop();
}
