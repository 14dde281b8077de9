//! `echoctl bench` as a program: against the daemon, and against servers that the tests play; over packets in `packets`.

mod packets;
mod terminal;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::echoctl::{
    ExpectJson, Running, command, each_message, echoctl, reset_when_closed, start_server, try_send, try_send_bytewise,
    unused_address,
};
use common::{Daemon, TEST_TIMEOUT};
use serde_json::Value;

/// Runs it with --json and checks its exit code.
#[track_caller]
fn bench(code: i32, arguments: &[&str]) -> Value {
    let output = echoctl(&[&["bench", "--json"], arguments].concat());
    let json = output.check(code).json();
    assert_eq!(json["ok"].is_true(), code == 0);
    json
}

/// How many times a cause has occurred, how many messages it has cost, and its example.
fn cause(json: &Value, name: &str) -> (f64, f64, String) {
    let found = json["causes"].list().iter().find(|cause| cause["cause"].text() == name);
    let Some(cause) = found else { return (0.0, 0.0, String::new()) };
    (cause["times"].number(), cause["messages"].number(), cause["example"].text().to_owned())
}

#[track_caller]
fn check_count(json: &Value, answered: f64) {
    assert_eq!((json["sent"].number(), json["answered"].number()), (answered, answered), "{json:?}");
    assert!(json["causes"].list().iter().all(|cause| cause["cause"].text() == "ended-idle"), "{json:?}");
    let bars: f64 = json["histogram"].list().iter().map(|bar| bar["count"].number()).sum();
    assert_eq!(bars, answered);
}

fn correct_server() -> String {
    start_server(|_, stream| each_message(stream, |_, reply, stream| try_send(stream, reply)))
}

// --- Everything is answered --------------------------------------------------------------------------------------------

#[test]
fn every_message_is_answered_over_tcp_and_unix() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock"]);
    for address in daemon.addresses() {
        for load in [
            &["--count", "1"][..],
            &["--count", "1000", "--connections", "7"],
            &["--count", "10007", "--connections", "13", "--depth", "16", "--threads", "3"],
            &["--count", "5000", "--connections", "3", "--depth", "1000", "--size", "0B"],
            &["--count", "300", "--connections", "4", "--depth", "9", "--size", "60KiB"],
            &["--count", "500", "--connections", "10", "--depth", "3", "--rate", "100000/s", "--threads", "2"],
        ] {
            let json = bench(0, &[load, &[&*address]].concat());
            let count: f64 = load[1].parse().unwrap();
            check_count(&json, count);
            let size = json["load"]["size"].number();
            let bytes = ["bytes_sent", "bytes_received"].map(|key| json[key].number());
            assert_eq!(bytes, [count * (size + 1.0), count * (size + 12.0)]);
        }
    }
    daemon.stop();
}

#[test]
fn bench_uses_the_given_delimiter_and_prefix() {
    let settings = "[defaults]\ndelimiter = \"aab\"\nprefix = \"a=\"";
    let daemon = Daemon::start_with(settings, &["--listen", "127.0.0.1:0"]);
    let address = &daemon.addresses()[0];
    let options = ["--count", "1000", "--depth", "10", "--size", "500B", "--delimiter", "aab", "--prefix", "a="];
    check_count(&bench(0, &[&options[..], &[&**address]].concat()), 1000.0);
    let json = bench(1, &["--count", "10", "--delimiter", "aab", address]);
    let (times, messages, example) = cause(&json, "wrong-reply");
    assert_eq!((times, messages), (10.0, 10.0));
    assert!(example.starts_with("expected \"server got:"), "{example}");
}

#[test]
fn report_is_plain_ascii_if_stdout_is_not_a_terminal() {
    let address = correct_server();
    let output = echoctl(&["bench", "--count", "200", "--connections", "2", "--depth", "5", &address]);
    let text = &output.check(0).stdout;
    assert!(text.starts_with(&format!("{address}: 2 connections, 5 messages of 16 B at once, 1 thread\n")), "{text}");
    for part in
        ["messages   200 answered in ", "errors     none\n", "\nlatency\n", "  p50 ", "  p99.99 ", "\nhistogram\n", "#"]
    {
        assert!(text.contains(part), "no \"{part}\" in {text}");
    }
    assert!(text.is_ascii() && text.lines().all(|line| line.len() <= 80), "{text}");
}

#[test]
fn json_names_its_schema_and_its_keys_are_documented() {
    let json = bench(0, &["--count", "100", "--warm-up", "1ms", &correct_server()]);
    assert_eq!((json["schema"].text(), json["version"].number()), ("echoctl-bench", 1.0));
    let latency = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"].map(|key| json["latency_us"][key].number());
    assert!(latency[0] > 0.0 && latency.is_sorted(), "{latency:?}");
    let wrong = bench(1, &["--count", "1", &start_server(|_, stream| each_message(stream, |_, _, _| false))]);
    let page = include_str!("../../docs/echoctl-json.md");
    for key in [json.keys(), wrong.keys()].concat() {
        assert!(page.contains(&format!("`{key}`")), "{key} is not in docs/echoctl-json.md");
    }
    assert!(wrong.is_null_at("latency_us"), "{wrong}");
}

#[test]
fn bench_ends_after_its_duration_and_counts_the_warm_up_apart() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0"]);
    let address = &daemon.addresses()[0];
    let json = bench(0, &["--duration", "300ms", "--warm-up", "200ms", "--connections", "4", address]);
    let seconds = json["seconds"].number();
    assert!((0.3..20.0).contains(&seconds), "{seconds}");
    let (answered, warm) = (json["answered"].number(), json["warm_up"]["answered"].number());
    assert!(answered > 0.0 && warm > 0.0, "{json:?}");
    assert_eq!((json["sent"].number(), json["warm_up"]["sent"].number()), (answered, warm));
    assert!((json["messages_per_second"].number() - answered / seconds).abs() < 1.0);
    daemon.stop();
}

#[test]
fn replies_may_come_in_pieces() {
    let address = start_server(|_, stream| each_message(stream, |_, reply, stream| try_send_bytewise(stream, reply)));
    check_count(&bench(0, &["--count", "200", "--connections", "2", "--depth", "7", &address]), 200.0);
}

#[test]
fn bench_raises_the_soft_limit_on_descriptors() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0"]);
    let limited = |limit: &str| {
        let script =
            format!("ulimit {limit}; exec \"$0\" bench --json --count 400 --connections 200 {}", daemon.addresses()[0]);
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_echoctl")]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        Running::start(&mut command).wait()
    };
    check_count(&limited("-Sn 64").check(0).json(), 400.0);
    limited("-n 64").check_failure(2, "--connections 200 needs 235 descriptors, and this process may open 64");
}

// --- A rate ------------------------------------------------------------------------------------------------------------

#[test]
fn rate_is_reached_and_not_exceeded() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0"]);
    let address = &daemon.addresses()[0];
    let arguments = ["--rate", "400/s", "--duration", "500ms", "--connections", "3", "--depth", "100", address];
    let json = bench(0, &arguments);
    let slots = json["answered"].number() + json["unsent"].number();
    assert_eq!(slots, 200.0, "{json:?}");
    assert!(json["messages_per_second"].number() < 405.0, "{json:?}");
}

/// Answers at once, but stands still for a second when half of 200 messages have come.
fn stalling_server() -> String {
    let seen = AtomicUsize::new(0);
    start_server(move |_, stream| {
        each_message(stream, |_, reply, stream| {
            if seen.fetch_add(1, Ordering::Relaxed) == 100 {
                thread::sleep(Duration::from_secs(1));
            }
            try_send(stream, reply)
        });
    })
}

#[test]
fn stall_of_the_server_shows_in_the_percentiles() {
    // Half of the messages are due while it stands still; it had seen the other half before that.
    let json = bench(0, &["--rate", "100/s", "--count", "200", &stalling_server()]);
    check_count(&json, 200.0);
    let latency = |key| json["latency_us"][key].number();
    assert!(latency("max") >= 999_000.0, "{json:?}");
    assert!(latency("p90") >= 600_000.0, "{json:?}");
    // Without a rate, only the one message that waits sees it.
    let json = bench(0, &["--count", "200", &stalling_server()]);
    let latency = |key| json["latency_us"][key].number();
    assert!(latency("max") >= 999_000.0 && latency("p99") < 600_000.0, "{json:?}");
}

#[test]
fn messages_due_but_not_sent_are_reported() {
    // It never answers the second message.
    let address =
        start_server(|_, stream| each_message(stream, |number, reply, stream| number > 0 || try_send(stream, reply)));
    let json = bench(1, &["--rate", "100/s", "--duration", "300ms", "--timeout", "500ms", &address]);
    assert!(json["unsent"].number() >= 28.0, "{json:?}");
    assert_eq!(cause(&json, "late").1, 1.0);
}

// --- Servers that misbehave --------------------------------------------------------------------------------------------

#[test]
fn one_wrong_byte_is_found_and_the_replies_before_it_count() {
    let flip = || {
        start_server(|connection, stream| {
            let mut all = Vec::new();
            each_message(stream, |number, reply, stream| {
                all.extend_from_slice(reply);
                if number % 10 < 9 {
                    return true;
                }
                if connection == 0 && number == 19 {
                    // In the fourth reply of the second ten.
                    let at = all.len() - 6 * reply.len() - 3;
                    all[at] ^= 1;
                }
                let said = try_send(stream, &all);
                all.clear();
                said
            });
        })
    };
    let json = bench(1, &["--count", "50", "--depth", "10", &flip()]);
    let (times, messages, example) = cause(&json, "wrong-reply");
    assert_eq!((times, messages, json["answered"].number()), (1.0, 7.0, 43.0), "{json:?}");
    assert!(example.starts_with("expected \"server got:") && example.contains(", got \"server got:"), "{example}");
    check_count(&bench(0, &["--count", "50", "--depth", "10", "--no-verify", &flip()]), 50.0);
}

#[test]
fn a_server_that_sends_without_end_is_read_no_further_than_a_wrong_reply_is_shown() {
    for (first, name) in [(&b""[..], "wrong-reply"), (b"server error:", "server-error")] {
        let (sender, written) = mpsc::channel();
        let sender = Mutex::new(sender);
        let address = start_server(move |_, mut stream| {
            let (mut total, chunk) = (0, [b'x'; 65_536]);
            if stream.read_exact(&mut [0; 17]).is_ok() && try_send(&mut stream, first) {
                while let Ok(count) = stream.write(&chunk) {
                    total += count;
                }
            }
            // The test takes the first.
            let _ = sender.lock().unwrap().send(total);
        });
        let json = bench(1, &["--count", "1", &address]);
        let (times, messages, example) = cause(&json, name);
        assert_eq!((times, messages), (1.0, 1.0), "{json:?}");
        assert!(example.contains("xxx…") && example.len() < 1000, "{example}");
        // The kernel's buffers, and one read of the client.
        let written = written.recv_timeout(TEST_TIMEOUT).unwrap();
        assert!(written < 16 * 1024 * 1024, "{written} bytes were taken");
    }
}

#[test]
fn unrequested_reply_is_an_error() {
    let address = start_server(|connection, stream| {
        let surplus = |number| connection == 0 && number == 2;
        each_message(stream, |number, reply, stream| {
            try_send(stream, &reply.repeat(if surplus(number) { 2 } else { 1 }))
        });
    });
    let json = bench(1, &["--count", "6", "--rate", "50/s", &address]);
    let (times, messages, example) = cause(&json, "wrong-reply");
    assert_eq!((times, messages, json["answered"].number()), (1.0, 0.0, 6.0), "{json:?}");
    assert!(
        example.starts_with("got \"server got:") && example.ends_with("which no message had asked for"),
        "{example}"
    );
}

#[test]
fn server_error_is_reported() {
    let address = start_server(|_, stream| {
        each_message(stream, |number, reply, stream| {
            number < 5 && try_send(stream, reply)
                || !(try_send_bytewise(stream, b"server error:out of buffer memory\t") && try_send(stream, reply))
        });
    });
    let json = bench(1, &["--count", "6", &address]);
    let (times, messages, example) = cause(&json, "server-error");
    assert_eq!((times, messages, json["answered"].number()), (1.0, 1.0, 5.0), "{json:?}");
    assert_eq!(example, "the server says: out of buffer memory");
}

#[test]
fn missing_replies_are_late_and_bench_still_ends() {
    for partly in [false, true] {
        let address = start_server(move |_, stream| {
            each_message(stream, |_, _, stream| !partly || try_send(stream, b"server got:"))
        });
        let json = bench(1, &["--count", "4", "--connections", "2", "--timeout", "100ms", &address]);
        let (times, messages, example) = cause(&json, "late");
        assert_eq!((times, messages, json["answered"].number()), (4.0, 4.0, 0.0), "{json:?}");
        assert_eq!(example, "no reply within 100ms (--timeout)");
    }
}

#[test]
fn closed_connections_are_counted_and_replaced() {
    for breaks in [false, true] {
        let address = start_server(move |_, stream| {
            if breaks {
                reset_when_closed(&stream);
            }
            each_message(stream, |number, reply, stream| number == 0 && try_send(stream, reply));
        });
        let json = bench(1, &["--count", "20", "--connections", "2", &address]);
        let (times, messages, example) = cause(&json, if breaks { "reset" } else { "closed" });
        // Each connection has one answered and one lost; how many of them each of the two makes is left to chance.
        assert_eq!((times, messages + json["answered"].number()), (messages, 20.0), "{json:?}");
        assert!((9.0..=10.0).contains(&messages), "{json:?}");
        let why =
            if breaks { "the connection broke (Connection reset by peer)" } else { "the server ended the connection" };
        assert_eq!(example, why);
    }
}

#[test]
fn bench_reconnects_with_growing_delays() {
    for (limit, end) in [(["--duration", "1s"], true), (["--count", "1000000"], false)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tcp:{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            drop(listener);
            each_message(stream, |number, reply, stream| number < 9 && try_send(stream, reply));
        });
        let timeouts = ["--timeout", "300ms", "--connect-timeout", "300ms", &*address];
        let json = bench(1, &[&limit[..], &timeouts].concat());
        server.join().unwrap();
        assert_eq!((json["answered"].number(), cause(&json, "closed").1), (9.0, 1.0), "{json:?}");
        let (times, messages, example) = cause(&json, "connect-refused");
        assert_eq!((messages, &*example), (0.0, "cannot connect: Connection refused"));
        // Retry delays of 10, 20, 40, 80, 160, 320, 640 ms.
        assert!((2.0..=8.0).contains(&times), "{json:?}");
        assert_eq!(json["unsent"].number() > 0.0, !end);
    }
}

#[test]
fn server_that_closes_at_once_does_not_cause_a_busy_loop() {
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let address = start_server(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let json = bench(1, &["--duration", "500ms", &address]);
    assert_eq!(json["answered"].number(), 0.0);
    assert!((2..=8).contains(&accepted.load(Ordering::Relaxed)), "{accepted:?}, {json:?}");
}

#[test]
fn a_server_that_does_not_read_is_late() {
    let address = start_server(|_, stream| {
        thread::sleep(TEST_TIMEOUT);
        drop(stream);
    });
    let json = bench(1, &["--count", "64", "--depth", "64", "--size", "512KiB", "--timeout", "200ms", &address]);
    assert_eq!(cause(&json, "late").1, 64.0, "{json:?}");
}

#[test]
fn missing_server_is_one_line_on_stderr() {
    echoctl(&["bench", &unused_address()]).check_failure(2, "Connection refused; does a server listen there?");
    echoctl(&["bench", "unix:/nonexistent/echo.sock"]).check_failure(2, "No such file or directory");
}

// --- Ctrl-C ------------------------------------------------------------------------------------------------------------

#[test]
fn ctrl_c_ends_bench_with_the_report_so_far() {
    for (answers, rate, code) in [(true, None, 0), (true, Some("100/s"), 0), (false, None, 1)] {
        let (sender, seen) = mpsc::channel();
        let address = start_server(move |_, stream| {
            let sender = sender.clone();
            each_message(stream, |number, reply, stream| {
                if number == 0 {
                    sender.send(()).unwrap();
                }
                !answers || try_send(stream, reply)
            });
        });
        let mut arguments = vec!["bench", "--json", "--duration", "1h", "--connections", "2", &address];
        arguments.extend(rate.iter().flat_map(|rate| ["--rate", rate]));
        let running = Running::start(&mut command(&arguments));
        seen.recv_timeout(TEST_TIMEOUT).unwrap();
        seen.recv_timeout(TEST_TIMEOUT).unwrap();
        running.interrupt();
        let output = running.wait();
        let json = output.check(code).json();
        assert!(json["interrupted"].is_true());
        assert_eq!(json["answered"].number() >= 1.0, answers, "{json:?}");
        assert_eq!(cause(&json, "unanswered").1, if answers { 0.0 } else { 2.0 }, "{json:?}");
    }
}

// --- The command line --------------------------------------------------------------------------------------------------

#[test]
fn a_bad_command_line_is_one_line_on_stderr() {
    for (arguments, error) in [
        (&[][..], "<ADDRESS>"),
        (&["--size", "16", "127.0.0.1:1"], "write 16B"),
        (&["--rate", "100", "127.0.0.1:1"], "write 100/s"),
        (&["--duration", "10", "127.0.0.1:1"], "write 10s"),
        (&["--depth", "0", "127.0.0.1:1"], "at least 1"),
        (&["--threads", "2", "127.0.0.1:1"], "2 threads cannot share --connections 1"),
        (&["--prefix", "\\t", "127.0.0.1:1"], "contains the delimiter"),
    ] {
        echoctl(&[&["bench"], arguments].concat()).check_failure(2, error);
    }
    let arguments = ["bench", "--size", "1GiB", "--depth", "2", &correct_server()];
    echoctl(&arguments).check_failure(2, "would exceed 256 MiB; give a smaller --size or --depth");
}
