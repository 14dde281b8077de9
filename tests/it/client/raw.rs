//! Streams without a delimiter, and replies of one's own choice.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use common::now;

use super::{Server, command, echoctl, echoctl_with, expect_bytes, finish, reply_and_wait, wait_for_end};

/// Hands over what comes, as it comes, until the end.
fn for_each_read(mut stream: TcpStream, mut answer: impl FnMut(&mut TcpStream, &[u8])) {
    let mut chunk = [0; 512];
    while let count @ 1.. = stream.read(&mut chunk).expect("it can be read") {
        answer(&mut stream, &chunk[..count]);
    }
}

/// Answers everything that comes at once with this, until the end.
fn answer_each_read(stream: TcpStream, answer: &str) -> Vec<u8> {
    let mut received = Vec::new();
    for_each_read(stream, |stream, chunk| {
        received.extend_from_slice(chunk);
        received.push(b'|');
        stream.write_all(answer.as_bytes()).expect("it is taken");
    });
    received
}

/// RFC 862.
fn echo(stream: TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    for_each_read(stream, |stream, chunk| {
        received.extend_from_slice(chunk);
        stream.write_all(chunk).expect("it is taken");
    });
    received
}

#[test]
fn raw_output_is_printed_as_it_comes() {
    let server = Server::tcp(|stream| answer_each_read(stream, "Hello, client!\n"));
    let output = echoctl(&["send", "--raw", &server.address, "hello", "a\tb"]);
    output.check(0, "Hello, client!\nHello, client!\n", "");
    server.expect_received("hello|a\tb|");

    let server = Server::tcp(echo);
    echoctl(&["send", "--raw", &server.address, "no line feed"]).check(0, "no line feed", "");
    server.expect_received("no line feed");
}

#[test]
fn everything_until_the_end_of_the_stream_is_printed() {
    let server = Server::tcp(|mut stream| {
        expect_bytes(&mut stream, "x");
        for part in ["one ", "two ", "three"] {
            stream.write_all(part.as_bytes()).expect("it is taken");
        }
        stream.read_to_end(&mut Vec::new()).expect("it ends");
        stream.write_all(b", and what it says at the end\n").expect("it is taken");
        Vec::new()
    });
    let output = echoctl(&["send", "--raw", &server.address, "x"]);
    output.check(0, "one two three, and what it says at the end\n", "");
}

#[test]
fn stdin_is_sent_as_it_is() {
    let server = Server::tcp(echo);
    let bytes: Vec<u8> = (0..=255).cycle().take(3_000_001).collect();
    let output = echoctl_with(&["send", "--raw", &server.address], &bytes);
    assert!(output.stdout == bytes, "{} bytes, {}", output.stdout.len(), output.stderr);
    assert_eq!((output.code, &*output.stderr), (Some(0), ""));
    let server = Server::tcp(echo);
    echoctl_with(&["send", "--raw", &server.address], b"").check(0, "", "");
    server.expect_received("");
}

#[test]
fn a_message_larger_than_all_buffers_comes_back_while_it_is_sent() {
    let message = "x".repeat(100_000);
    let expected = format!("--expect={message}");
    for option in ["--raw", &expected] {
        let server = Server::tcp(|mut stream| {
            rustix::net::sockopt::set_socket_send_buffer_size(&stream, 4096).expect("it can be set");
            stream.set_nodelay(true).expect("it can be set");
            let mut chunk = [0; 100];
            while let Ok(count @ 1..) = stream.read(&mut chunk) {
                stream.write_all(&chunk[..count]).expect("it is taken");
            }
            Vec::new()
        });
        let mut arguments = vec!["send", "--raw", &server.address, &message];
        if option != "--raw" {
            arguments.insert(2, option);
        }
        echoctl(&arguments).check(0, &message, "");
    }
}

#[test]
fn a_message_without_a_delimiter_may_be_answered_at_the_end_of_the_stream() {
    let server = Server::tcp(|mut stream| {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("it ends");
        stream.write_all(b"server got:a\t").expect("it is taken");
        received
    });
    echoctl(&["send", "--raw", &server.address, "a"]).check(0, "server got:a\t", "");
    server.expect_received("a");
}

#[test]
fn the_server_has_the_timeout_to_end_its_stream_after_the_last_message() {
    // What comes meanwhile is printed, and extends nothing.
    let (release, released) = mpsc::channel::<()>();
    let server = Server::tcp(move |mut stream| {
        stream.read_to_end(&mut Vec::new()).expect("it ends");
        stream.write_all(b"xxx").expect("it is taken");
        // Until the test is done.
        let _ = released.recv();
        Vec::new()
    });
    let output = echoctl(&["send", "--raw", "--timeout", "200ms", &server.address, "a"]);
    let late = "the server has not ended its stream within 200ms after the last message (--timeout), \
                so more replies may have been on their way\n";
    output.check(1, "xxx", late);
    drop(release);

    let server = Server::tcp(wait_for_end);
    let output = echoctl(&["send", "--raw", "--timeout", "200ms", &server.address, "a", "b"]);
    output.check(1, "", "no reply to message 1, \"a\", within 200ms (--timeout)\n");
}

#[test]
fn a_stream_that_ends_without_an_answer_leaves_the_message_unanswered() {
    let server = Server::tcp(|mut stream| {
        expect_bytes(&mut stream, "a");
        Vec::new()
    });
    let output = echoctl(&["send", "--raw", &server.address, "a", "b"]);
    output.check(1, "", "the server ended the connection, 2 messages are unanswered\n");
    let server = Server::tcp(|mut stream| {
        expect_bytes(&mut stream, "a");
        stream.write_all(b"bye").expect("it is taken");
        Vec::new()
    });
    // One that says it all and goes, as daytime does, has answered.
    echoctl(&["send", "--raw", &server.address, "a"]).check(0, "bye", "");
}

#[test]
fn raw_bytes_are_sent_unchanged_without_replies() {
    let server = Server::tcp(|mut stream| {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("it ends");
        received
    });
    echoctl_with(&["send", "--raw", "--no-reply", &server.address], b"a\tb\nc").check(0, "", "");
    server.expect_received("a\tb\nc");
    let server = Server::tcp(wait_for_end);
    let bytes = vec![b'x'; 30_000_000];
    let output = echoctl_with(&["send", "--raw", "--no-reply", "--timeout", "200ms", &server.address], &bytes);
    output.check(1, "", "the server has taken nothing of what we send for 200ms (--timeout)\n");
}

#[test]
fn a_reply_must_be_exactly_what_is_expected() {
    let arguments = ["send", "--raw", "--expect", r"Hello, client!\n", "ADDRESS", "a", "b"];
    let with = |server: &Server| {
        let mut arguments = arguments.map(str::to_owned);
        arguments[4].clone_from(&server.address);
        arguments
    };
    let run = |server: &Server| echoctl(&with(server).each_ref().map(String::as_str));
    let server = Server::tcp(|stream| answer_each_read(stream, "Hello, client!\n"));
    run(&server).check(0, "Hello, client!\nHello, client!\n", "");
    server.expect_received("a|b|");
    // In pieces it is the same.
    let server = Server::tcp(|mut stream| {
        stream.set_nodelay(true).expect("it can be set");
        for message in ["a", "b"] {
            expect_bytes(&mut stream, message);
            for byte in b"Hello, client!\n" {
                stream.write_all(&[*byte]).expect("it is taken");
            }
        }
        stream.read_to_end(&mut Vec::new()).expect("it ends");
        Vec::new()
    });
    run(&server).check(0, "Hello, client!\nHello, client!\n", "");
    for (answer, error) in [
        ("Hello, clown!\n", r#"reply 1 is wrong: expected "Hello, client!\n", got "Hello, clown!\n""#),
        ("Hello, client!\nx", r#"reply 1 is wrong: expected "Hello, client!\n", got "Hello, client!\nx""#),
    ] {
        let server = Server::tcp(move |stream| answer_each_read(stream, answer));
        run(&server).check(1, "", error);
    }
    // Input that is too short may continue.
    let server = Server::tcp(|stream| reply_and_wait(stream, "a", b"Hello"));
    let mut arguments = with(&server).to_vec();
    arguments.insert(1, "--timeout=200ms".to_owned());
    let output = echoctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    output.check(1, "", "no reply to message 1, \"a\", within 200ms (--timeout); so far \"Hello\" has come\n");
}

#[test]
fn expected_reply_excludes_the_delimiter() {
    let server = Server::tcp(|stream| reply_and_wait(stream, "a\tb\t", b"yes\tno\t"));
    let output = echoctl(&["send", "--expect", r"\x79es", &server.address, "a", "b"]);
    output.check(1, "yes\n", r#"reply 2 is wrong: expected "yes", got "no""#);
    let server = Server::tcp(|stream| reply_and_wait(stream, "a\t", b"server error:as announced\t"));
    echoctl(&["send", "--expect", "server error:as announced", &server.address, "a"]).check(
        0,
        "server error:as announced\n",
        "",
    );
}

#[test]
fn json_has_one_object_for_each_read() {
    let server = Server::tcp(|stream| answer_each_read(stream, "Hello\n"));
    let output = echoctl(&["send", "--raw", "--json", &server.address, "a"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(text.starts_with(r#"{"reply":"Hello\n","message":"a","ok":true,"rtt_us":"#), "{output:?}");
    assert_eq!(text.lines().count(), 1, "{output:?}");
}

#[test]
fn contradictory_options_are_refused_before_connecting() {
    for (arguments, error) in [
        (&["--raw", "--delimiter", "x", "ADDRESS", "a"][..], "cannot be used with"),
        (&["--raw", "--prefix", "x", "ADDRESS", "a"], "cannot be used with"),
        (&["--expect", "x", "--no-reply", "ADDRESS", "a"], "cannot be used with"),
        (&["--expect", "x", "--prefix", "y", "ADDRESS", "a"], "cannot be used with"),
        (&["--expect", r"\q", "ADDRESS", "a"], r"unknown escape \q"),
        (&["--expect", r"a\t", "ADDRESS", "a"], r#"--expect contains the delimiter "\t", so no reply can be that"#),
        (
            &["--raw", "--expect", "", "ADDRESS", "a"],
            "an empty reply cannot be recognized; use --no-reply to expect none",
        ),
        (&["--raw", "ADDRESS", "a", ""], "message 2 is empty: without a delimiter that is nothing to send"),
        (&["--count", "3", "ADDRESS"], "required arguments were not provided: <MESSAGE>"),
        (&["--interval", "1s", "ADDRESS"], "required arguments were not provided: <MESSAGE>"),
        (&["--interval", "1us", "ADDRESS", "a"], "at least 1ms is needed"),
        (&["--interval", "2", "ADDRESS", "a"], "write 2s if seconds are meant"),
        (&["--count", "0", "ADDRESS", "a"], "0 is not in 1.."),
        (&["--count", "9", "ADDRESS", "a", "%d\t"], "message 2 contains the delimiter"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let arguments = arguments.iter().map(|argument| if *argument == "ADDRESS" { &*address } else { argument });
        let output = echoctl(&["send"].into_iter().chain(arguments).collect::<Vec<_>>());
        output.check(2, "", error);
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

// --- Again and again ---------------------------------------------------------------------------------------------------

#[test]
fn count_option_repeats_the_messages_with_their_numbers() {
    let server = Server::tcp(super::echo);
    let output = echoctl(&["send", "--count", "5", &server.address, "%d Hello, server!", "100%"]);
    let replies = "server got:1 Hello, server!\nserver got:100%\nserver got:3 Hello, server!\n\
                   server got:100%\nserver got:5 Hello, server!\n";
    output.check(0, replies, "");
    server.expect_received("1 Hello, server!\t100%\t3 Hello, server!\t100%\t5 Hello, server!\t");
    // Without --count it is what it says.
    let server = Server::tcp(super::echo);
    echoctl(&["send", &server.address, "%d"]).check(0, "server got:%d\n", "");
    server.expect_received("%d\t");
}

#[test]
fn messages_keep_the_interval() {
    let server = Server::tcp(|stream| answer_each_read(stream, "Hello, client!\n"));
    let start = now();
    let arguments = ["send", "--raw", "-c", "3", "-i", "200ms", &server.address, "%d Hello, server!"];
    echoctl(&arguments).check(0, &"Hello, client!\n".repeat(3), "");
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    server.expect_received("1 Hello, server!|2 Hello, server!|3 Hello, server!|");
}

#[test]
fn messages_sent_before_ctrl_c_are_still_answered() {
    let (received, wait_received) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let server = Server::tcp(move |mut stream| {
        expect_bytes(&mut stream, "1\t");
        received.send(()).expect("the test waits");
        may_go.recv().expect("the test goes on");
        stream.write_all(b"server got:1\t").expect("it is taken");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("it ends");
        rest
    });
    let child = command(&["send", "--interval", "1h", &server.address, "%d"]).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    wait_received.recv().unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    go.send(()).unwrap();
    finish(child, Vec::new()).check(0, "server got:1\n", "");
    server.expect_received("");
}

#[test]
fn a_second_ctrl_c_does_not_wait() {
    let (received, wait_received) = mpsc::channel();
    let server = Server::tcp(move |mut stream| {
        expect_bytes(&mut stream, "1\t");
        received.send(()).expect("the test waits");
        wait_for_end(stream)
    });
    let child = command(&["send", "-i", "1h", "--timeout", "1h", &server.address, "%d"]).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    wait_received.recv().unwrap();
    let (done, is_done) = mpsc::channel();
    let child = std::thread::spawn(move || {
        let output = finish(child, Vec::new());
        done.send(()).expect("the test waits");
        output
    });
    // Two that come together are one.
    while is_done.try_recv().is_err() {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        std::thread::sleep(Duration::from_millis(10));
    }
    child.join().unwrap().check(1, "", "interrupted before all was answered\n");
}
