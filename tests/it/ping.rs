//! `echoctl ping` as a program: against the daemon, and against servers that the tests play.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::echoctl::{
    ExpectJson, Running, command, each_message, echoctl, reset_when_closed, start_server, try_send, try_send_bytewise,
    unused_address,
};
use common::{Daemon, now, wait_until};

/// The lines before the summary, without the first.
fn lines(stdout: &str) -> Vec<&str> {
    stdout.lines().skip(1).take_while(|line| !line.is_empty()).collect()
}

/// The line of the summary that counts.
fn summary(stdout: &str) -> &str {
    let (_, summary) = stdout.split_once(" ping statistics ---\n").unwrap_or_else(|| panic!("no summary: {stdout}"));
    summary.lines().next().expect("there is one")
}

/// A server that answers everything.
fn correct_server() -> String {
    start_server(|_, stream| each_message(stream, |_, reply, stream| try_send(stream, reply)))
}

// --- Everything is answered --------------------------------------------------------------------------------------------

#[test]
fn every_reply_is_a_line_and_the_summary_counts_them() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock"]);
    for address in daemon.addresses() {
        let output = echoctl(&["ping", "-c", "3", "-i", "1ms", &address]);
        output.check(0);
        assert_eq!(output.stdout.lines().next(), Some(&*format!("ping {address}: messages of 16 B")));
        let lines = lines(&output.stdout);
        assert_eq!(lines.len(), 3, "{output:#?}");
        for (number, line) in (1..).zip(&lines) {
            let start = format!("reply from {address}: seq={number} bytes=27 time=");
            let time = line.strip_prefix(&start).and_then(|rest| rest.strip_suffix(" ms"));
            assert!(time.is_some_and(|time| time.parse::<f64>().is_ok_and(|time| time > 0.0)), "{line}");
        }
        assert!(
            output
                .stdout
                .contains(&format!("\n\n--- {address} ping statistics ---\n3 sent, 3 received, 0% loss, time "))
        );
        let (_, trips) = output.stdout.split_once("\nrtt min/avg/max/mdev = ").expect("replies have times");
        let trips: Vec<f64> = trips.trim_end_matches(" ms\n").split('/').map(|time| time.parse().unwrap()).collect();
        assert!(trips.len() == 4 && trips[0] > 0.0 && trips[0] <= trips[1] && trips[1] <= trips[2], "{trips:?}");
    }
}

#[test]
fn json_is_one_object_per_line() {
    let address = correct_server();
    let output = echoctl(&["ping", "--json", "-D", "-c", "2", "-i", "1ms", "-s", "100B", &address]);
    let lines = output.check(0).json_lines();
    assert_eq!(lines.len(), 3, "{output:#?}");
    for (number, line) in [(1.0, &lines[0]), (2.0, &lines[1])] {
        assert_eq!((line["type"].text(), line["seq"].number(), line["bytes"].number()), ("reply", number, 111.0));
        assert!(line["rtt_us"].number() > 0.0 && line["time"].number() > 1.6e9);
    }
    let summary = &lines[2];
    assert_eq!((summary["type"].text(), summary["schema"].text()), ("summary", "echoctl-ping"));
    assert_eq!((summary["version"].number(), summary["address"].text()), (1.0, &*address));
    assert!(summary["ok"].is_true() && summary["rtt_us"]["mdev"].number() >= 0.0);
    assert_eq!(["sent", "received", "lost", "loss_percent"].map(|key| summary[key].number()), [2.0, 2.0, 0.0, 0.0]);
    // Every key is in its page, and the page has an example of each.
    let page = include_str!("../../docs/echoctl-json.md");
    for key in lines.iter().flat_map(ExpectJson::keys) {
        assert!(page.contains(&format!("`{key}`")), "{key} is not in docs/echoctl-json.md");
    }
}

#[test]
fn quiet_prints_only_the_summary_and_timestamps_precede_each_line() {
    let address = correct_server();
    let output = echoctl(&["ping", "-q", "-c", "2", "-i", "1ms", &address]);
    assert!(lines(&output.check(0).stdout).is_empty() && summary(&output.stdout).starts_with("2 sent, 2 received"));
    let output = echoctl(&["ping", "-D", "-c", "1", &address]);
    let line = lines(&output.check(0).stdout)[0].strip_prefix('[').and_then(|line| line.split_once("] "));
    let (time, rest) = line.unwrap_or_else(|| panic!("{output:#?}"));
    assert!(time.parse::<f64>().unwrap() > 1.6e9 && rest.starts_with("reply from "), "{output:#?}");
}

#[test]
fn messages_keep_the_interval_and_do_not_wait_for_replies() {
    // It answers nothing until it has three.
    let address = start_server(|_, stream| {
        let mut owed = Vec::new();
        each_message(stream, |number, reply, stream| {
            owed.extend_from_slice(reply);
            number < 2 || try_send(stream, &owed)
        });
    });
    let start = now();
    let output = echoctl(&["ping", "-c", "3", "-i", "100ms", "-W", "20s", &address]);
    assert_eq!(lines(&output.check(0).stdout).len(), 3);
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
}

#[test]
fn replies_may_come_in_pieces_and_messages_may_be_long() {
    let address = start_server(|_, stream| each_message(stream, |_, reply, stream| try_send_bytewise(stream, reply)));
    echoctl(&["ping", "-c", "3", "-i", "1ms", &address]).check(0);
    let address = correct_server();
    let output = echoctl(&["ping", "-c", "2", "-i", "1ms", "-s", "5MiB", &address]);
    assert!(output.check(0).stdout.contains("seq=2 bytes=5242891 "), "{output:#?}");
}

#[test]
fn the_number_never_contains_the_delimiter() {
    let daemon = Daemon::start_with("[defaults]\ndelimiter = \"01\"\nprefix = \"=\"", &["--listen", "127.0.0.1:0"]);
    let address = &daemon.addresses()[0];
    let arguments = ["ping", "-c", "12", "-i", "1ms", "--delimiter", "01", "--prefix", "=", address];
    assert!(summary(&echoctl(&arguments).check(0).stdout).starts_with("12 sent, 12 received"));
}

// --- Late, wrong, never ------------------------------------------------------------------------------------------------

#[test]
fn late_reply_is_a_loss_and_is_not_taken_for_the_next_reply() {
    // The first is answered when the second is there.
    let address = start_server(|_, stream| {
        let mut owed = Vec::new();
        each_message(stream, |number, reply, stream| {
            owed.extend_from_slice(reply);
            number == 0 || try_send(stream, &owed)
        });
    });
    let output = echoctl(&["ping", "-c", "2", "-i", "1500ms", "-W", "1s", &address]);
    let lines = lines(&output.check(1).stdout);
    assert_eq!(lines[0], "lost: seq=1: no reply within 1s (--timeout)");
    assert!(lines[1].starts_with(&format!("late reply from {address}: seq=1 time=")), "{lines:#?}");
    assert!(lines[2].starts_with(&format!("reply from {address}: seq=2 ")), "{lines:#?}");
    assert!(summary(&output.stdout).starts_with("2 sent, 1 received, 1 late, 50% loss, "), "{output:#?}");
}

#[test]
fn a_server_that_never_answers_is_all_loss() {
    let address = start_server(|_, stream| each_message(stream, |_, _, _| true));
    let output = echoctl(&["ping", "-c", "3", "-i", "50ms", "-W", "100ms", &address]);
    assert_eq!(lines(&output.check(1).stdout).len(), 3);
    assert!(summary(&output.stdout).starts_with("3 sent, 0 received, 100% loss, "), "{output:#?}");
    assert!(!output.stdout.contains("rtt"), "{output:#?}");
    let output = echoctl(&["ping", "-q", "--json", "-c", "1", "-W", "50ms", &address]);
    let json = output.check(1).json();
    assert!(json.is_null_at("rtt_us") && json["loss_percent"].number() == 100.0 && !json["ok"].is_true());
}

#[test]
fn wrong_reply_is_shown_with_the_expected_one() {
    for (wrong, shown) in [
        ("server got:0000000000000002\t", "0002"),
        ("server got:000000000000001\t", "got \"server got:000000000000001\""),
        ("server got:x\t", "got \"server got:x\""),
        ("\t", "got \"\""),
    ] {
        let address = start_server(|_, stream| {
            each_message(stream, |number, reply, stream| {
                try_send(stream, if number == 0 { wrong.as_bytes() } else { reply })
            });
        });
        let output = echoctl(&["ping", "-c", "2", "-i", "100ms", &address]);
        let lines = lines(&output.check(1).stdout);
        let expected = "lost: seq=1: wrong reply: expected \"server got:0000000000000001\", got \"";
        assert!(lines[0].starts_with(expected) && lines[0].contains(shown), "{lines:#?}");
        assert!(lines[1].contains("reply from") && lines[1].contains("seq=2 "), "{lines:#?}");
        assert!(summary(&output.stdout).starts_with("2 sent, 1 received, 1 wrong, 50% loss"), "{output:#?}");
    }
}

#[test]
fn duplicate_reply_makes_ping_fail() {
    let address = start_server(|_, stream| {
        each_message(stream, |number, reply, stream| try_send(stream, &reply.repeat(if number == 0 { 2 } else { 1 })));
    });
    let output = echoctl(&["ping", "-c", "2", "-i", "100ms", &address]);
    assert_eq!(lines(&output.check(1).stdout)[1], format!("duplicate reply from {address}: seq=1"));
    assert!(summary(&output.stdout).starts_with("2 sent, 2 received, 1 duplicate, 0% loss"), "{output:#?}");
}

#[test]
fn too_long_reply_without_a_delimiter_is_an_error() {
    let address = start_server(|_, stream| each_message(stream, |_, _, stream| try_send(stream, &[b'x'; 100_000])));
    let output = echoctl(&["ping", "-c", "1", &address]);
    assert!(lines(&output.check(1).stdout)[0].contains("a reply exceeds 27 bytes"), "{output:#?}");
}

// --- Connections -------------------------------------------------------------------------------------------------------

#[test]
fn closed_connection_loses_its_unanswered_messages_and_is_replaced() {
    for breaks in [false, true] {
        let address = start_server(move |connection, stream| {
            if breaks {
                reset_when_closed(&stream);
            }
            each_message(stream, |_, reply, stream| connection > 0 && try_send(stream, reply));
        });
        let output = echoctl(&["ping", "-c", "3", "-i", "400ms", &address]);
        let lines = lines(&output.check(1).stdout);
        let why =
            if breaks { "the connection broke (Connection reset by peer)" } else { "the server ended the connection" };
        assert_eq!(lines[0], format!("lost: seq=1: {why}"));
        assert!(lines[1].contains("seq=2 bytes") && lines[2].contains("seq=3 bytes"), "{lines:#?}");
        assert!(summary(&output.stdout).starts_with("3 sent, 2 received, 33.3% loss"), "{output:#?}");
    }
}

#[test]
fn end_of_an_idle_connection_is_printed_and_loses_nothing() {
    let address = start_server(|_, stream| {
        each_message(stream, |_, reply, stream| {
            try_send(stream, reply);
            try_send(stream, b"server error:no message within 1us\t");
            false
        });
    });
    let output = echoctl(&["ping", "-c", "2", "-i", "500ms", &address]);
    let lines = lines(&output.check(0).stdout);
    assert!(lines[0].contains("seq=1 bytes") && lines[2].contains("seq=2 bytes"), "{lines:#?}");
    assert_eq!(lines[1], "the server says: no message within 1us");
}

#[test]
fn server_error_is_the_reason_of_the_loss() {
    let address = start_server(|_, stream| {
        each_message(stream, |_, _, stream| {
            try_send_bytewise(stream, b"server error:out of buffer memory\t");
            false
        });
    });
    let output = echoctl(&["ping", "-c", "1", &address]);
    assert_eq!(lines(&output.check(1).stdout), ["lost: seq=1: the server says: out of buffer memory"]);
}

/// Sends something without end to each client, from its first message on.
fn flooding_server(flood: &'static [u8]) -> String {
    start_server(move |_, mut stream| {
        let chunk = flood.repeat(65_536 / flood.len());
        let came = stream.read_exact(&mut [0; 17]).is_ok();
        while came && try_send(&mut stream, &chunk) {}
    })
}

#[test]
fn a_server_that_sends_without_end_delays_neither_the_end_nor_ctrl_c() {
    for (flood, what) in [
        (&b"server got:0000000000000001\t"[..], "1 received, "),
        (b"server got:0000000000000009\t", "0 received, "),
        (b"\t", "0 received, "),
        (b"x", "0 received, "),
    ] {
        let address = flooding_server(flood);
        let output = echoctl(&["ping", "-q", "-c", "1", "-W", "200ms", &address]);
        let summary = summary(&output.stdout);
        assert!(output.stderr.is_empty() && summary.starts_with(&format!("1 sent, {what}")), "{output:#?}");
        let mut running = Running::start(&mut command(&["ping", "-i", "1h", &address]));
        running.expect("seq=1");
        running.interrupt();
        assert!(running.wait().stdout.contains("1 sent, "));
    }
}

#[test]
fn connection_with_too_many_replies_that_no_message_had_asked_for_ends() {
    let address = flooding_server(b"server got:0000000000000001\t");
    let mut running = Running::start(&mut command(&["ping", "-c", "2", "-i", "1s", &address]));
    running.expect("got 1025 replies that no message had asked for");
    let output = running.wait();
    assert_eq!(output.code, Some(1), "{output:#?}");
    assert!(output.stdout.lines().count() < 5000);
}

#[test]
fn sigterm_ends_each_command_with_what_there_is_as_ctrl_c_does() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0"]);
    let address = &daemon.addresses()[0];
    let mut ping = Running::start(&mut command(&["ping", "-i", "1h", address]));
    ping.expect("seq=1");
    ping.terminate();
    let output = ping.wait();
    assert!(output.check(0).stdout.contains("1 sent, 1 received, 0% loss"), "{output:?}");
    let mut send = Running::start(&mut command(&["send", "--interval", "1h", address, "%d of 100%%"]));
    send.expect("server got:1 of 100%");
    send.terminate();
    send.wait().check(0);
    let before = daemon.cpu_nanos();
    let bench = Running::start(&mut command(&["bench", "--json", "--duration", "1h", address]));
    wait_until("messages are answered", || daemon.cpu_nanos() > before + 50_000_000);
    bench.terminate();
    let json = bench.wait().check(0).json();
    assert!(json["interrupted"] == true && json["answered"].as_u64() > Some(0), "{json}");
    daemon.stop();
}

#[test]
fn messages_are_lost_while_no_server_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let address = format!("unix:{}", path.display());
    let mut running = Running::start(&mut command(&["ping", "-i", "50ms", &address]));
    let (mut stream, _) = listener.accept().unwrap();
    drop(listener);
    std::fs::remove_file(&path).unwrap();
    stream.read_exact(&mut [0; 17]).unwrap();
    drop(stream);
    running.expect("lost: seq=1: the server ended the connection");
    running.expect("lost: seq=2: cannot connect to unix:");
    let daemon = Daemon::start(&["--listen", &address]);
    running.expect("reply from");
    running.interrupt();
    let output = running.wait();
    assert_eq!((output.code, output.stderr.as_str()), (Some(1), ""), "{output:#?}");
    daemon.stop();
}

#[test]
fn ping_does_not_start_without_a_first_connection() {
    echoctl(&["ping", &unused_address()]).check_failure(2, "Connection refused; does a server listen there?");
    echoctl(&["ping", "unix:/nonexistent/echo.sock"]).check_failure(2, "No such file or directory");
}

// --- Ctrl-C ------------------------------------------------------------------------------------------------------------

#[test]
fn ctrl_c_ends_ping_with_the_summary() {
    let mut running = Running::start(&mut command(&["ping", "-i", "10ms", &correct_server()]));
    running.expect("seq=3 ");
    running.interrupt();
    let output = running.wait();
    let count = lines(&output.check(0).stdout).len();
    assert!(summary(&output.stdout).starts_with(&format!("{count} sent, {count} received, 0% loss")), "{output:#?}");
}

#[test]
fn ctrl_c_does_not_wait_for_a_server_that_never_answered() {
    let address = start_server(|_, stream| each_message(stream, |_, _, _| true));
    let mut running = Running::start(&mut command(&["ping", "-i", "10ms", "-W", "1h", &address]));
    running.expect("ping ");
    let start = now();
    // There is no line to wait for.
    std::thread::sleep(Duration::from_millis(200));
    running.interrupt();
    let output = running.wait();
    assert!(output.check(1).stdout.contains("100% loss"), "{output:#?}");
    assert!(lines(&output.stdout).iter().all(|line| line.ends_with("interrupted before its reply came")));
    assert!(start.elapsed() < common::TEST_TIMEOUT);
}

#[test]
fn reply_shortly_after_ctrl_c_still_counts() {
    // The second reply comes when the client has been interrupted.
    let (resume, wait_resume) = std::sync::mpsc::channel::<()>();
    let (reached, wait_reached) = std::sync::mpsc::channel::<()>();
    let channels = Mutex::new((wait_resume, reached));
    let slow = AtomicBool::new(false);
    let address = start_server(move |_, stream| {
        each_message(stream, |number, reply, stream| {
            if number == 0 {
                // So that there is a longest round trip, twice which is enough.
                std::thread::sleep(Duration::from_millis(1500));
            } else if !slow.swap(true, Ordering::Relaxed) {
                let channels = channels.lock().unwrap();
                channels.1.send(()).unwrap();
                channels.0.recv().unwrap();
            }
            try_send(stream, reply)
        });
    });
    let running = Running::start(&mut command(&["ping", "-i", "2s", "-W", "20s", &address]));
    wait_reached.recv_timeout(common::TEST_TIMEOUT).unwrap();
    running.interrupt();
    std::thread::sleep(Duration::from_millis(50));
    resume.send(()).unwrap();
    let output = running.wait();
    assert!(summary(&output.check(0).stdout).starts_with("2 sent, 2 received, 0% loss"), "{output:#?}");
}

// --- The command line and stdout ---------------------------------------------------------------------------------------

#[test]
fn a_bad_command_line_is_one_line_on_stderr() {
    for (arguments, error) in [
        (&[][..], "<ADDRESS>"),
        (&["-i", "1", "127.0.0.1:1"], "write 1s if seconds are meant"),
        (&["-i", "500us", "127.0.0.1:1"], "at least 1ms is needed"),
        (&["-c", "0", "127.0.0.1:1"], "0 is not in 1.."),
        (&["-s", "4B", "127.0.0.1:1"], "a size from 12B"),
        (&["-s", "64", "127.0.0.1:1"], "write 64B"),
        (&["--prefix", "\\t", "127.0.0.1:1"], "contains the delimiter"),
    ] {
        echoctl(&[&["ping"], arguments].concat()).check_failure(2, error);
    }
}

#[test]
fn closed_stdout_ends_ping_without_an_error() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let mut command = command(&["ping", &correct_server()]);
    let output = Running::start(command.stdout(OwnedFd::from(ours))).wait();
    output.check(0);
}
