//! echoctl as a program, against servers that the tests play.

mod hostile;
mod packets;
mod raw;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{TEST_TIMEOUT, now, skip_test};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, Signal, kill_process};

// --- Right answers -----------------------------------------------------------------------------------------------------

#[test]
fn replies_are_printed_as_they_came_without_the_delimiter() {
    let server = Server::tcp(echo);
    let output = echoctl(&["send", &server.address, "aaaa", "", "it's", "b c"]);
    output.check(0, "server got:aaaa\nserver got:\nserver got:it's\nserver got:b c\n", "");
    server.expect_received("aaaa\t\tit's\tb c\t");
}

#[test]
fn client_connects_to_unix_sockets_by_path_and_by_abstract_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let server = Server::unix(UnixListener::bind(&path).unwrap(), path.to_str().unwrap(), echo);
    echoctl(&["send", &server.address, "aaaa"]).check(0, "server got:aaaa\n", "");
    server.expect_received("aaaa\t");

    let name = format!("echoctl-test-{}", std::process::id());
    let address = unix::SocketAddr::from_abstract_name(&name).unwrap();
    let server = Server::unix(UnixListener::bind_addr(&address).unwrap(), &format!("unix:@{name}"), echo);
    echoctl(&["send", &server.address, "aaaa"]).check(0, "server got:aaaa\n", "");
    server.expect_received("aaaa\t");
}

#[test]
fn client_connects_over_ipv6_if_the_machine_has_it() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        return skip_test("this machine has no ::1");
    };
    let port = listener.local_addr().unwrap().port();
    let server = Server::tcp_on(listener, echo);
    echoctl(&["send", &format!("tcp6:[::1]:{port}"), "aaaa"]).check(0, "server got:aaaa\n", "");
    server.expect_received("aaaa\t");
    let output = echoctl(&["send", &format!("tcp4:[::1]:{port}"), "aaaa"]);
    output.check(2, "", "the host has no address of that family");
}

#[test]
fn all_addresses_of_a_host_are_tried() {
    // If localhost has two addresses, the one without a listener may come first.
    let server = Server::tcp(echo);
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    echoctl(&["send", &format!("localhost:{port}"), "aaaa"]).check(0, "server got:aaaa\n", "");
    server.expect_received("aaaa\t");
}

#[test]
fn lines_of_stdin_are_messages_and_the_last_needs_no_line_feed() {
    let server = Server::tcp(echo);
    let output = echoctl_with(&["send", &server.address], b"aaaa\n\nb\r\nlast");
    output.check(0, "server got:aaaa\nserver got:\nserver got:b\r\nserver got:last\n", "");
    server.expect_received("aaaa\t\tb\r\tlast\t");
}

#[test]
fn empty_stdin_sends_no_message() {
    let server = Server::tcp(echo);
    echoctl_with(&["send", &server.address], b"").check(0, "", "");
    server.expect_received("");
}

#[test]
fn bytes_of_any_value_go_through() {
    let bytes: Vec<u8> = (1..=255).filter(|byte| !b"\t\n".contains(byte)).collect();
    let replies = [b"server got:", &bytes[..], b"\n"].concat();
    let server = Server::tcp(echo);
    let mut command = command(&["send", &server.address]);
    let output = run(command.arg(std::ffi::OsString::from_vec(bytes.clone())), Vec::new());
    assert_eq!(output.stdout, replies, "{output:?}");
    let server = Server::tcp(echo);
    let output = echoctl_with(&["send", &server.address], &bytes);
    assert_eq!(output.stdout, replies, "{output:?}");
}

#[test]
fn a_reply_is_printed_while_stdin_is_still_open() {
    let server = Server::tcp(echo);
    let mut child = command(&["send", &server.address]).spawn().unwrap();
    let _watch = Watchdog::start(&child);
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..3 {
        stdin.write_all(b"aaaa\n").unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "server got:aaaa\n");
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_hundred_thousand_lines_are_pipelined_without_a_deadlock() {
    let server = Server::tcp(echo);
    let padding = "x".repeat(100);
    let (mut lines, mut replies) = (String::new(), String::new());
    for number in 0..100_000 {
        lines.push_str(&format!("{number}{padding}\n"));
        replies.push_str(&format!("server got:{number}{padding}\n"));
    }
    let output = echoctl_with(&["send", &server.address], lines.as_bytes());
    assert!(output.stdout == replies.as_bytes(), "{} bytes, {}", output.stdout.len(), output.stderr);
    assert_eq!(output.code, Some(0));
    server.expect_received(&lines.replace('\n', "\t"));
}

#[test]
fn a_message_larger_than_all_buffers_is_answered() {
    let server = Server::tcp(echo);
    let message = "x".repeat(20_000_000);
    let output = echoctl_with(&["send", &server.address], message.as_bytes());
    assert!(output.stdout == format!("server got:{message}\n").as_bytes(), "{}", output.stderr);
    assert_eq!(output.code, Some(0));
}

#[test]
fn delimiter_and_prefix_take_escapes() {
    let server = Server::tcp(|stream| echo_with(stream, b"\r\n", b"=> \xff\t"));
    let arguments = ["send", "--delimiter", r"\r\x0a", "--prefix", r"=> \xff\t", &server.address, "a\tb", "\r"];
    let output = echoctl(&arguments);
    assert_eq!(output.stdout, b"=> \xff\ta\tb\n=> \xff\t\r\n", "{output:?}");
    assert_eq!(output.code, Some(0));
    server.expect_received("a\tb\r\n\r\r\n");
}

#[test]
fn json_is_one_object_per_reply() {
    let server = Server::tcp(echo);
    let output = echoctl(&["send", "--json", &server.address, "a\"b", "c"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{output:?}");
    for (line, message) in lines.iter().zip([r#"a\"b"#, "c"]) {
        let start = format!(r#"{{"reply":"server got:{message}","message":"{message}","ok":true,"rtt_us":"#);
        let rest = line.strip_prefix(&start).unwrap_or_else(|| panic!("{line}"));
        let number = rest.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
        assert!(number.parse::<u64>().is_ok(), "{line}");
    }
    assert_eq!(output.code, Some(0));
}

#[test]
fn without_replies_the_client_waits_until_the_server_has_read_everything() {
    let server = Server::tcp(|mut stream| {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    });
    let lines = "a line for a sink\n".repeat(50_000);
    echoctl_with(&["send", "--no-reply", &server.address], lines.as_bytes()).check(0, "", "");
    server.expect_received(&lines.replace('\n', "\t"));
}

// --- Wrong answers, late answers, none ---------------------------------------------------------------------------------

#[test]
fn wrong_reply_is_shown_with_the_expected_one() {
    let reply = |stream| reply_and_wait(stream, "a\tb\t", b"server got:a\tserver got:x\t");
    let server = Server::tcp(reply);
    let error = r#"reply 2 is wrong: expected "server got:b", got "server got:x""#;
    let output = echoctl(&["send", &server.address, "a", "b"]);
    output.check(1, "server got:a\n", &format!("echoctl: {}: {error}\n", server.address));

    let server = Server::tcp(reply);
    let output = echoctl(&["send", "--json", &server.address, "a", "b"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let wrong = r#"{"reply":"server got:x","message":"b","ok":false,"rtt_us":"#;
    assert!(text.lines().nth(1).is_some_and(|line| line.starts_with(wrong)), "{output:?}");
    assert_eq!(output.code, Some(1));
}

#[test]
fn another_prefix_is_a_wrong_reply() {
    let server = Server::tcp(echo);
    let output = echoctl(&["send", "--prefix", "", &server.address, "a"]);
    output.check(1, "", r#"reply 1 is wrong: expected "a", got "server got:a""#);
}

#[test]
fn a_late_reply_ends_the_command() {
    let server = Server::tcp(|stream| reply_and_wait(stream, "a\tb\t", b"server got:a\tserver g"));
    let start = now();
    let output = echoctl(&["send", "--timeout", "200ms", &server.address, "a", "b"]);
    output.check(
        1,
        "server got:a\n",
        r#"no reply to message 2, "b", within 200ms (--timeout); so far "server g" has come"#,
    );
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[test]
fn a_server_that_reads_nothing_is_late() {
    let server = Server::tcp(wait_for_end);
    let lines = "x".repeat(99) + "\n";
    let output = echoctl_with(&["send", "--timeout", "200ms", &server.address], lines.repeat(300_000).as_bytes());
    output.check(1, "", "no reply to message 1, ");
}

#[test]
fn time_while_the_client_was_stopped_does_not_count_for_the_reply() {
    let (stop, stopped) = mpsc::channel();
    let (sent, received) = mpsc::channel();
    let server = Server::tcp(move |mut stream| {
        let mut message = vec![0; 1];
        stream.read_exact(&mut message).unwrap();
        sent.send("the first byte is here").unwrap();
        stopped.recv().unwrap();
        // Now there is room for more, but no sender.
        message.resize(10_000_000, 0);
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut len = 1;
        while let Ok(count) = stream.read(&mut message[len..]) {
            len += count;
        }
        sent.send("all that was sent is here").unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.read_exact(&mut message[len..]).unwrap();
        expect_bytes(&mut stream, "\t");
        stream.write_all(&[b"server got:", &message[..], b"\t"].concat()).unwrap();
        message
    });
    let message = "x".repeat(10_000_000);
    let child = command(&["send", "--timeout", "1s", &server.address]).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let stdin = message.clone().into_bytes();
    let child = thread::spawn(move || finish(child, stdin));
    received.recv().unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let since = now();
    stop.send(()).unwrap();
    received.recv().unwrap();
    thread::sleep(Duration::from_millis(1200).saturating_sub(since.elapsed()));
    kill_process(pid, Signal::CONT).unwrap();
    let output = child.join().unwrap();
    assert_eq!((output.code, output.stdout.len(), &*output.stderr), (Some(0), message.len() + 12, ""));
    server.expect_received(&message);
}

#[test]
fn a_connection_that_ends_early_leaves_messages_unanswered() {
    let server = Server::tcp(|mut stream| {
        expect_bytes(&mut stream, "a\tb\tc\t");
        stream.write_all(b"server got:a\tserver").unwrap();
        Vec::new()
    });
    let output = echoctl(&["send", &server.address, "a", "b", "c"]);
    let error = r#"the server ended the connection, 2 messages are unanswered; the last that came was "server""#;
    output.check(1, "server got:a\n", error);
}

#[test]
fn a_connection_that_breaks_is_an_error() {
    let server = Server::tcp(|mut stream| {
        expect_bytes(&mut stream, "a\t");
        // Closing with unread input resets the connection.
        let mut one = [0];
        assert_eq!(stream.peek(&mut one).unwrap(), 1);
        Vec::new()
    });
    let output = echoctl(&["send", &server.address, "a", "b"]);
    output.check(1, "", "the connection broke (Connection reset by peer), 2 messages are unanswered");
}

#[test]
fn end_of_an_idle_connection_is_an_error_only_if_messages_follow() {
    for (more, code, error) in [("", 0, ""), ("b\n", 1, ", 1 message is unanswered\n")] {
        let server = Server::tcp(|mut stream| {
            expect_bytes(&mut stream, "a\t");
            stream.write_all(b"server got:a\t").unwrap();
            Vec::new()
        });
        let mut child = command(&["send", &server.address]).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"a\n").unwrap();
        // It has ended the connection when its thread ends.
        server.expect_received("");
        stdin.write_all(more.as_bytes()).unwrap();
        drop(stdin);
        finish(child, Vec::new()).check(code, "server got:a\n", error);
    }
}

#[test]
fn server_error_is_shown() {
    let server =
        Server::tcp(|stream| reply_and_wait(stream, "a\tb\t", b"server got:a\tserver error:message exceeds 1 bytes\t"));
    let output = echoctl(&["send", &server.address, "a", "b"]);
    let error = format!("echoctl: {}: the server says: message exceeds 1 bytes\n", server.address);
    output.check(1, "server got:a\n", &error);
}

#[test]
fn server_error_is_shown_while_messages_are_being_sent() {
    let server = Server::tcp(|mut stream| {
        stream.write_all(b"server error:too many connections from this source (limit 1)\t").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        Vec::new()
    });
    let lines = "x\n".repeat(100_000);
    let output = echoctl_with(&["send", &server.address], lines.as_bytes());
    output.check(1, "", "the server says: too many connections from this source (limit 1)\n");
}

#[test]
fn server_error_is_shown_if_it_ends_in_another_delimiter() {
    let server = Server::tcp(|mut stream| {
        expect_bytes(&mut stream, "a\n");
        stream.write_all(b"server error:message not finished within 2s\t").unwrap();
        Vec::new()
    });
    let output = echoctl(&["send", "--delimiter", r"\n", &server.address, "a"]);
    output.check(1, "", r"the server says: message not finished within 2s\t (and then not ");
}

#[test]
fn client_ends_at_a_server_error_while_stdin_is_open() {
    let server = Server::tcp(|mut stream| {
        stream.write_all(b"server error:no message within 5min\t").unwrap();
        Vec::new()
    });
    let mut child = command(&["send", &server.address]).spawn().unwrap();
    let _watch = Watchdog::start(&child);
    let stdin = child.stdin.take();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{stderr}");
    assert!(stderr.ends_with("the server says: no message within 5min\n"), "{stderr}");
    drop(stdin);
}

#[test]
fn without_replies_a_server_that_does_not_end_its_stream_is_late() {
    let (release, released) = mpsc::channel();
    let server = Server::tcp(move |mut stream| {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        released.recv().unwrap();
        received
    });
    let output = echoctl(&["send", "--no-reply", "--timeout", "200ms", &server.address, "a"]);
    output.check(1, "", "the server has not ended its stream within 200ms after the last message (--timeout)");
    release.send(()).unwrap();
    server.expect_received("a\t");
}

#[test]
fn without_replies_an_error_of_the_server_is_shown() {
    let server = Server::tcp(|stream| reply_and_wait(stream, "aa\t", b"server error:message exceeds 1 bytes\t"));
    let output = echoctl(&["send", "--no-reply", &server.address, "aa"]);
    output.check(1, "", "the server says: message exceeds 1 bytes\n");
}

// --- Connecting --------------------------------------------------------------------------------------------------------

#[test]
fn refused_connection_error_asks_whether_a_server_listens() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hint = "does a server listen there?";
    let error = format!("echoctl: cannot connect to tcp:{address}: Connection refused; {hint}\n");
    echoctl(&["send", &address.to_string(), "a"]).check(2, "", &error);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    let path = path.to_str().unwrap();
    let error = format!("echoctl: cannot connect to unix:{path}: No such file or directory; {hint}\n");
    echoctl(&["send", path, "a"]).check(2, "", &error);
    drop(UnixListener::bind(path).unwrap());
    let error = format!("echoctl: cannot connect to unix:{path}: Connection refused; {hint}\n");
    echoctl(&["send", path, "a"]).check(2, "", &error);
}

#[test]
fn a_name_that_does_not_exist_is_an_error() {
    // RFC 6761: no resolver knows this one.
    let output = echoctl(&["send", "--connect-timeout", "20s", "tcp:echoed.invalid:8085", "a"]);
    output.check(2, "", "echoctl: cannot look up the host of tcp:echoed.invalid:8085: ");
}

#[test]
fn connecting_ends_after_the_connect_timeout() {
    let full = FullBacklog::tcp();
    let start = now();
    let output = echoctl(&["send", "--connect-timeout", "300ms", &full.address, "a"]);
    let error = format!("echoctl: cannot connect to {}: timed out after 300ms (--connect-timeout); ", full.address);
    output.check(2, "", &error);
    assert!((300..10_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());

    let full = FullBacklog::unix();
    let output = echoctl(&["send", "--connect-timeout", "300ms", &full.address, "a"]);
    let error = format!("echoctl: cannot connect to {}: timed out after 300ms (--connect-timeout); ", full.address);
    output.check(2, "", &error);
}

#[test]
fn client_waits_for_room_in_a_full_backlog() {
    let FullBacklog { address, listener, waiting, _directory } = FullBacklog::unix();
    let child = command(&["send", "--connect-timeout", "30s", &address, "aaaa"]).spawn().unwrap();
    let listener = UnixListener::from(listener);
    for _ in &waiting {
        listener.accept().unwrap();
    }
    let server = Server::unix(listener, &address, echo);
    finish(child, Vec::new()).check(0, "server got:aaaa\n", "");
    server.expect_received("aaaa\t");
}

// --- The command line --------------------------------------------------------------------------------------------------

#[test]
fn a_bad_command_line_is_one_line_on_stderr() {
    for (arguments, error) in [
        (&[][..], "requires a subcommand"),
        (&["sned"], "unrecognized subcommand 'sned'"),
        (&["send"], "required arguments were not provided: <ADDRESS>"),
        (&["send", "--no-replies", "127.0.0.1:1"], "unexpected argument '--no-replies' found; tip: "),
        (&["send", "8085", "a"], "write 127.0.0.1:8085"),
        (&["send", "--delimiter", "", "127.0.0.1:1", "a"], "a delimiter needs at least one byte"),
        (&["send", "--delimiter", r"\q", "127.0.0.1:1", "a"], r"unknown escape \q"),
        (&["send", "--prefix", r"\q", "127.0.0.1:1", "a"], r"unknown escape \q"),
        (&["send", "--prefix", r"a\tb", "127.0.0.1:1", "a"], r#"the prefix "a\tb" contains the delimiter "\t""#),
        (&["send", "--timeout", "5", "127.0.0.1:1", "a"], "write 5s if seconds are meant"),
        (&["send", "--connect-timeout", "0s", "127.0.0.1:1", "a"], "a time must be longer than 0"),
    ] {
        let output = echoctl(arguments);
        output.check(2, "", error);
        assert!(output.stderr.starts_with("echoctl: ") && output.stderr.matches('\n').count() == 1, "{output:?}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for (arguments, text) in [
        (&["--help"][..], "Send messages and print the replies"),
        (&["--version"], "echoctl "),
        (&["send", "--help"], "[default: \"server got:\"]"),
    ] {
        let output = echoctl(arguments);
        assert!(String::from_utf8_lossy(&output.stdout).contains(text), "{output:?}");
        assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    }
}

#[test]
fn a_message_with_the_delimiter_is_refused_before_anything_is_sent() {
    for (delimiter, message) in [(r"\t", "b\tc"), ("--", "b-")] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let arguments = ["send", &format!("--delimiter={delimiter}"), &address, "a", message];
        echoctl(&arguments).check(2, "", &format!("echoctl: message 2 contains the delimiter \"{delimiter}\", "));
        // No client has connected.
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn line_with_the_delimiter_is_refused_after_the_lines_before_it_are_answered() {
    let server = Server::tcp(echo);
    let output = echoctl_with(&["send", &server.address], b"a\nb\nc\td\ne\n");
    output.check(1, "server got:a\nserver got:b\n", "echoctl: line 3 contains the delimiter \"\\t\", ");
    server.expect_received("a\tb\t");

    let server = Server::tcp(echo);
    echoctl_with(&["send", &server.address], b"c\td\ne\n").check(2, "", "echoctl: line 1 contains the delimiter");
    server.expect_received("");
}

#[test]
fn a_stdin_that_cannot_be_read_is_an_error() {
    let server = Server::tcp(echo);
    let mut command = command(&["send", &server.address]);
    command.stdin(OpenOptions::new().read(true).open("/").unwrap());
    run(&mut command, Vec::new()).check(2, "", "echoctl: cannot read stdin: Is a directory\n");
}

// --- stdout ------------------------------------------------------------------------------------------------------------

#[test]
fn broken_pipe_at_stdout_is_not_an_error() {
    let server = Server::tcp(echo);
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let mut command = command(&["send", &server.address, "aaaa"]);
    run(command.stdout(OwnedFd::from(ours)), Vec::new()).check(0, "", "");
}

#[test]
fn a_stdout_that_cannot_be_written_is_an_error() {
    let server = Server::tcp(echo);
    let mut command = command(&["send", &server.address, "aaaa"]);
    command.stdout(OpenOptions::new().write(true).open("/dev/full").unwrap());
    run(&mut command, Vec::new()).check(1, "", "echoctl: cannot write to stdout: No space left on device\n");
}

// --- Running echoctl ---------------------------------------------------------------------------------------------------

/// What it did.
#[derive(Debug)]
struct Output {
    arguments: String,
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Output {
    /// Checks its exit code, all of its stdout, and that its stderr contains `error` (or is empty, if that is).
    #[track_caller]
    fn check(&self, code: i32, stdout: &str, error: &str) {
        let stderr = if error.is_empty() { self.stderr.is_empty() } else { self.stderr.contains(error) };
        let right = self.code == Some(code) && self.stdout == stdout.as_bytes() && stderr;
        assert!(
            right,
            "{}\n  exit code {:?}, expected {code}\n  stdout: \"{}\"\n  expected: \"{}\"\n  stderr: {}  expected: {error}",
            self.arguments,
            self.code,
            self.stdout.escape_ascii(),
            stdout.escape_debug(),
            self.stderr,
        );
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoctl"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn echoctl(arguments: &[&str]) -> Output {
    echoctl_with(arguments, b"")
}

fn echoctl_with(arguments: &[&str], stdin: &[u8]) -> Output {
    run(&mut command(arguments), stdin.to_vec())
}

fn run(command: &mut Command, stdin: Vec<u8>) -> Output {
    let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Output { arguments: format!("{command:?}"), ..finish(child, stdin) }
}

fn finish(mut child: Child, stdin: Vec<u8>) -> Output {
    let watchdog = Watchdog::start(&child);
    let writer = child.stdin.take().map(|mut pipe| {
        // It need not read everything.
        thread::spawn(move || drop(pipe.write_all(&stdin)))
    });
    let output = child.wait_with_output().expect("it can be waited for");
    drop(watchdog);
    if let Some(writer) = writer {
        writer.join().expect("writing does not panic");
    }
    let stderr = String::from_utf8(output.stderr).expect("its words are text");
    Output { arguments: String::new(), code: output.status.code(), stdout: output.stdout, stderr }
}

/// Kills a child that is not done under the ceiling.
struct Watchdog {
    done: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn start(child: &Child) -> Self {
        let pid = Pid::from_child(child);
        let (done, is_done) = mpsc::channel();
        let thread = thread::spawn(move || {
            if is_done.recv_timeout(TEST_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
                // It may have ended just now.
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Self { done: Some(done), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.done = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// --- Playing the server ------------------------------------------------------------------------------------------------

/// Serves one connection.
struct Server {
    address: String,
    thread: JoinHandle<Vec<u8>>,
}

impl Server {
    fn tcp(serve: impl FnOnce(TcpStream) -> Vec<u8> + Send + 'static) -> Self {
        Self::tcp_on(TcpListener::bind("127.0.0.1:0").expect("there is a free port"), serve)
    }

    fn tcp_on(listener: TcpListener, serve: impl FnOnce(TcpStream) -> Vec<u8> + Send + 'static) -> Self {
        let address = format!("tcp:{}", listener.local_addr().expect("it is bound"));
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client connects");
            stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("it can be set");
            stream.set_write_timeout(Some(TEST_TIMEOUT)).expect("it can be set");
            serve(stream)
        });
        Self { address, thread }
    }

    fn unix(listener: UnixListener, address: &str, serve: impl FnOnce(UnixStream) -> Vec<u8> + Send + 'static) -> Self {
        let thread = thread::spawn(move || serve(listener.accept().expect("a client connects").0));
        Self { address: address.to_owned(), thread }
    }

    /// Waits for its end, and checks what it received.
    #[track_caller]
    fn expect_received(self, expected: &str) {
        let received = self.thread.join().expect("the server is content");
        if received != expected.as_bytes() {
            let end = received.len().min(1000);
            panic!(
                "the server received {} bytes, not {}: \"{}\"",
                received.len(),
                expected.len(),
                received[..end].escape_ascii()
            );
        }
    }
}

/// Answers every message correctly, and returns what it received.
fn echo(stream: impl Read + Write + TryClone) -> Vec<u8> {
    echo_with(stream, b"\t", b"server got:")
}

fn echo_with(stream: impl Read + Write + TryClone, delimiter: &[u8], prefix: &[u8]) -> Vec<u8> {
    let mut reader = BufReader::with_capacity(65536, stream.try_clone());
    // While this writes, it does not read: a client that does not read meanwhile is stuck, and so is this.
    let mut writer = BufWriter::new(stream);
    let (mut received, mut message) = (Vec::new(), Vec::new());
    while reader.read_until(delimiter[delimiter.len() - 1], &mut message).is_ok_and(|count| count > 0) {
        if message.ends_with(delimiter) {
            received.extend_from_slice(&message);
            // A client that has seen enough may close the connection.
            let _ = writer.write_all(prefix).and_then(|()| writer.write_all(&message));
            message.clear();
        }
        if reader.buffer().is_empty() {
            let _ = writer.flush();
        }
    }
    received
}

/// Waits for these bytes.
fn expect_bytes(stream: &mut impl Read, expected: &str) {
    let mut received = vec![0; expected.len()];
    stream.read_exact(&mut received).expect("it comes");
    assert_eq!(received.escape_ascii().to_string(), expected.as_bytes().escape_ascii().to_string());
}

/// Waits for `received`, sends `sent`, and waits for the client to close the connection.
fn reply_and_wait(mut stream: TcpStream, received: &str, sent: &[u8]) -> Vec<u8> {
    expect_bytes(&mut stream, received);
    stream.write_all(sent).expect("it is taken");
    if sent.windows(13).any(|window| window == b"server error:") {
        stream.shutdown(Shutdown::Write).expect("it is open");
    }
    std::io::copy(&mut stream, &mut std::io::sink()).expect("it ends");
    Vec::new()
}

/// Reads nothing until the client is gone.
fn wait_for_end(stream: TcpStream) -> Vec<u8> {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut polled = [PollFd::new(&stream, PollFlags::RDHUP)];
    let ceiling = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(poll(&mut polled, Some(&ceiling)).expect("it can be waited for"), 1);
    Vec::new()
}

/// A second handle for the same stream.
trait TryClone: Sized {
    fn try_clone(&self) -> Self;
}

impl TryClone for TcpStream {
    fn try_clone(&self) -> Self {
        Self::try_clone(self).expect("there are descriptors")
    }
}

impl TryClone for UnixStream {
    fn try_clone(&self) -> Self {
        Self::try_clone(self).expect("there are descriptors")
    }
}

/// A listener that takes no more connections.
struct FullBacklog {
    address: String,
    listener: OwnedFd,
    /// The connections that wait.
    waiting: Vec<OwnedFd>,
    _directory: Option<tempfile::TempDir>,
}

impl FullBacklog {
    fn tcp() -> Self {
        let listener =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, rustix::net::SocketFlags::CLOEXEC, None)
                .expect("there are sockets");
        rustix::net::bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("there is a free port");
        rustix::net::listen(&listener, 0).expect("it is bound");
        let listener = TcpListener::from(listener);
        let address = listener.local_addr().expect("it is bound");
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            waiting.push(stream.into());
            assert!(waiting.len() < 10, "the backlog is never full");
        }
        Self { address: format!("tcp:{address}"), listener: listener.into(), waiting, _directory: None }
    }

    fn unix() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("echo.sock");
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, rustix::net::SocketFlags::CLOEXEC, None)
                .expect("there are sockets");
        let address = rustix::net::SocketAddrUnix::new(&path).expect("it is short enough");
        rustix::net::bind(&listener, &address).expect("the path is free");
        rustix::net::listen(&listener, 0).expect("it is bound");
        let mut waiting = Vec::new();
        loop {
            let flags = rustix::net::SocketFlags::NONBLOCK;
            let stream = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                .expect("there are sockets");
            match rustix::net::connect(&stream, &address) {
                Ok(()) => waiting.push(stream),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => panic!("{error}"),
            }
        }
        Self { address: format!("unix:{}", path.display()), listener, waiting, _directory: Some(directory) }
    }
}
