//! Servers that never stop sending, and what they send to a terminal.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    recv, recvfrom, send, socket_with,
};

use super::{MAX_WAIT, Output, Server, Watchdog, command, echoctl, finish, now, reply_and_wait, run, skip_test};
use crate::descriptors::send_descriptors;
use crate::kernel;

/// What a flood may write beyond what the client is to read: the buffers of the kernel, and one read of the client.
const BUFFERS: usize = 1024 * 1024;

/// A server that waits for the first byte, sends one thing, and then another without end.
struct Flood {
    address: String,
    thread: JoinHandle<usize>,
    _directory: tempfile::TempDir,
}

impl Flood {
    fn start(first: &'static [u8], rest: &'static [u8]) -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("flood.sock");
        let listener = UnixListener::bind(&path).expect("the path is free");
        let address = format!("unix:{}", path.display());
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client connects");
            stream.set_read_timeout(Some(MAX_WAIT)).expect("it can be set");
            stream.set_write_timeout(Some(MAX_WAIT)).expect("it can be set");
            stream.read_exact(&mut [0]).expect("a message comes");
            stream.write_all(first).expect("it is taken");
            let chunk = rest.repeat(65_536 / rest.len());
            let mut written = first.len();
            loop {
                match stream.write(&chunk) {
                    Ok(count) => written += count,
                    Err(error) => {
                        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
                        return written;
                    }
                }
            }
        });
        Self { address, thread, _directory: directory }
    }

    /// Runs echoctl, with stdout to /dev/null.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = command(&[arguments, &[&self.address, "a"]].concat());
        run(command.stdout(Stdio::null()), Vec::new())
    }

    /// Returns how much it has written until the client was gone.
    fn written(self) -> usize {
        self.thread.join().expect("the server is content")
    }
}

// --- Without end -------------------------------------------------------------------------------------------------------

#[test]
fn an_endless_reply_is_read_no_further_than_a_wrong_one_may_go() {
    for (arguments, first, error) in [
        (&["send"][..], &b""[..], "reply 1 is too long: got \"xxx"),
        (&["send", "--json"], b"", "reply 1 is too long: got \"xxx"),
        (&["send"], b"server got:a", "reply 1 is too long: got \"server got:axxx"),
        (&["send"], b"server error:", "reply 1 is too long: got \"server error:xxx"),
        (&["send"], b"server got:a\t", "which no message had asked for\n"),
        (&["send", "--expect", "yes"], b"", "reply 1 is too long: got \"xxx"),
        (&["send", "--raw", "--expect", "yes"], b"", "reply 1 is wrong: expected \"yes\", got \"xxx"),
    ] {
        let flood = Flood::start(first, b"x");
        let output = if first.ends_with(b"\t") {
            // Its reply is right; what follows is seen while the client waits for another message.
            let mut child = command(&["send", &flood.address]).stdout(Stdio::null()).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(b"a\n").unwrap();
            let output = finish(child, Vec::new());
            drop(stdin);
            output
        } else {
            flood.run(arguments)
        };
        output.check(1, "", error);
        assert!(output.stderr.len() < 1000, "{}", output.stderr);
        let written = flood.written();
        assert!(written < BUFFERS, "{arguments:?}: {written} bytes were taken");
    }
}

#[test]
fn a_reply_that_is_too_long_is_an_object_with_its_beginning() {
    let flood = Flood::start(b"", b"x");
    let output = echoctl(&["send", "--json", &flood.address, "a"]);
    let start = format!(r#"{{"reply":"{}","message":"a","ok":false,"rtt_us":"#, "x".repeat(12 + 4096 + 1));
    assert!(output.code == Some(1) && output.stdout.starts_with(start.as_bytes()), "{output:?}");
}

#[test]
fn an_endless_stream_does_not_extend_the_timeout() {
    for (arguments, error) in [
        (&["--raw"][..], "the server has not ended its stream within 200ms after the last message (--timeout)"),
        (&["--raw", "--json"], "the server has not ended its stream within 200ms after the last message (--timeout)"),
        (
            &["--raw", "--no-reply"],
            "the server has not ended its stream within 200ms after the last message (--timeout)",
        ),
        (&["--no-reply"], "the server has not ended its stream within 200ms after the last message (--timeout)"),
    ] {
        let flood = Flood::start(b"x", b"Hello\n");
        flood.run(&[&["send", "--timeout", "200ms"], arguments].concat()).check(1, "", error);
        assert!(flood.written() > BUFFERS);
    }
}

#[test]
fn a_server_that_sends_without_end_and_takes_nothing_is_late() {
    for arguments in [&["--raw"][..], &["--raw", "--no-reply"], &["--no-reply"]] {
        let flood = Flood::start(b"x", b"Hello\n");
        let mut command = command(&[&["send", "--timeout", "200ms"], arguments, &[&flood.address]].concat());
        let output = run(command.stdout(Stdio::null()), vec![b'x'; 3_000_000]);
        output.check(1, "", "the server has taken nothing of what we send for 200ms (--timeout)\n");
    }
}

#[test]
fn packets_without_end_neither_extend_the_timeout_nor_the_exchange() {
    for (arguments, code, error) in [
        (&["--no-reply"][..], 1, "the server has not ended its stream within 200ms after the last message (--timeout)"),
        (&["--raw"], 0, ""),
        (&[], 1, "reply 1 is wrong: expected \"server got:a\", got \"x\""),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flood.sock");
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 1).unwrap();
        let flood = thread::spawn(move || {
            let client = accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
            recv(&client, &mut [0; 10], RecvFlags::empty()).unwrap();
            while send(&client, b"x", SendFlags::NOSIGNAL).is_ok() {}
        });
        let address = format!("seqpacket:{}", path.display());
        let mut command = command(&[&["send", "--timeout", "200ms"], arguments, &[&address, "a"]].concat());
        run(command.stdout(Stdio::null()), Vec::new()).check(code, "", error);
        flood.join().unwrap();
    }
}

#[test]
fn an_error_of_the_server_is_shown_cut_and_on_one_line() {
    let text = format!("no\u{9b}2J\u{202e}\n{}\t", "x".repeat(1000));
    let server = Server::tcp(move |stream| reply_and_wait(stream, "a\t", format!("server error:{text}").as_bytes()));
    let shown = format!(r"the server says: no\u{{9b}}2J\u{{202e}}\n{}… (1010 bytes)", "x".repeat(190));
    let error = format!("echoctl: {}: {shown}\n", server.address);
    let output = echoctl(&["send", &server.address, "a"]);
    output.check(1, "", &error);
    assert_eq!(output.stderr, error);
}

// --- Descriptors -------------------------------------------------------------------------------------------------------

/// Sends a byte and a descriptor to the other end of a connection.
fn send_stdin(socket: &OwnedFd) -> Result<(), Errno> {
    send_descriptors(socket, b"x", &[std::io::stdin()], SendFlags::empty())
}

/// What it receives may take long to close, whatever the timeout of the client.
#[test]
fn a_server_cannot_send_descriptors_if_the_kernel_can_refuse_them() {
    if !kernel::refuses_descriptors() {
        return skip_test("refusing descriptors: this kernel is older than 6.16");
    }
    for (kind, scheme) in
        [(SocketType::STREAM, "unix"), (SocketType::SEQPACKET, "seqpacket"), (SocketType::DGRAM, "unixgram")]
    {
        for arguments in [
            &["send", "--timeout", "1s"][..],
            &["ping", "--count", "1", "--timeout", "1s"],
            &["bench", "--duration", "200ms"],
        ] {
            if kind != SocketType::STREAM && arguments[0] == "bench" {
                continue;
            }
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("server.sock");
            let listener = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
            bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            if kind != SocketType::DGRAM {
                listen(&listener, 10).unwrap();
            }
            let server = thread::spawn(move || {
                if kind == SocketType::DGRAM {
                    let (_, _, from) = recvfrom(&listener, &mut [0; 100], RecvFlags::empty()).unwrap();
                    connect(&listener, &from.unwrap()).unwrap();
                    return send_stdin(&listener);
                }
                loop {
                    let client = accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
                    // The first connection of bench may only try whether the server is there.
                    if recv(&client, &mut [0; 100], RecvFlags::empty()).is_ok_and(|(count, _)| count > 0) {
                        return send_stdin(&client);
                    }
                }
            });
            let address = format!("{scheme}:{}", path.display());
            let message = if arguments[0] == "send" { &["a"][..] } else { &[] };
            // It gets no reply.
            echoctl(&[arguments, &[&address], message].concat());
            assert_eq!(server.join().unwrap(), Err(Errno::PERM), "{arguments:?} {scheme}");
        }
    }
}

// --- Slow readers of stdout --------------------------------------------------------------------------------------------

#[test]
fn the_time_that_a_slow_reader_of_stdout_takes_is_not_that_of_the_server() {
    // More than the pipe holds, and less than the kernel does.
    let first = "x".repeat(1_000_000);
    let sent = first.clone();
    let (resume, wait_resume) = mpsc::channel();
    let server = Server::tcp(move |mut stream| {
        stream.read_to_end(&mut Vec::new()).expect("it ends");
        stream.write_all(sent.as_bytes()).expect("it is taken");
        wait_resume.recv().expect("the test goes on");
        stream.write_all(b"and the rest").expect("it is taken");
        Vec::new()
    });
    let start = now();
    let mut child = command(&["send", "--raw", "--timeout", "1s", &server.address, "a"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let watchdog = Watchdog::start(&child);
    stdout.read_exact(&mut [0; 1]).unwrap();
    // stdout is not read until all of the timeout has passed.
    thread::sleep(Duration::from_millis(1500).saturating_sub(start.elapsed()));
    stdout.read_exact(&mut vec![0; first.len() - 1]).unwrap();
    resume.send(()).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = finish(child, Vec::new());
    drop(watchdog);
    assert_eq!((output.code, &*rest, &*output.stderr), (Some(0), "and the rest", ""));
}

#[test]
fn a_slow_reader_of_stdout_does_not_keep_an_endless_stream_alive() {
    let flood = Flood::start(b"x", b"Hello\n");
    let mut child = command(&["send", "--raw", "--timeout", "100ms", &flood.address, "a"]).spawn().unwrap();
    let watchdog = Watchdog::start(&child);
    let mut stdout = child.stdout.take().unwrap();
    // There is always more to read than was printed.
    let (mut chunk, mut printed) = (vec![0; 65_536], 0);
    while let Ok(count @ 1..) = stdout.read(&mut chunk) {
        printed += count;
        let since = now();
        while since.elapsed() < Duration::from_millis(1) {
            thread::yield_now();
        }
    }
    let output = finish(child, Vec::new());
    drop(watchdog);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("the server has not ended its stream within 100ms"), "{output:?}");
    // 16 MiB, and what comes within the timeout.
    assert!(printed < 64 * 1024 * 1024, "{printed} bytes were printed");
}

// --- Terminals ---------------------------------------------------------------------------------------------------------

/// What a terminal would obey, and how it is shown.
const OBEYED: &str = "a\x1b[2J\u{9b}2J\u{202e}\u{2066}\u{2028}\u{200b}\u{feff}\u{e0041}\x7fé";
const SHOWN: &str = r"a\u{1b}[2J\u{9b}2J\u{202e}\u{2066}\u{2028}\u{200b}\u{feff}\u{e0041}\u{7f}é";

/// Runs a command with a terminal as its stdout, and returns what that was sent.
fn run_on_a_terminal(command: &mut Command) -> (Output, String) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
    grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("it is ours");
    let name = ptsname(&terminal, Vec::new()).expect("it has a name").into_string().expect("it is text");
    let shown = OpenOptions::new().read(true).write(true).open(name).expect("it can be opened");
    let child = command.stdout(OwnedFd::from(shown)).spawn().expect("it can be started");
    // The command has another handle of the terminal.
    command.stdout(Stdio::null());
    let reader = thread::spawn(move || {
        let (mut bytes, mut terminal) = (Vec::new(), File::from(terminal));
        let mut chunk = [0; 4096];
        // At the end it is an error.
        while let Ok(count @ 1..) = terminal.read(&mut chunk) {
            bytes.extend_from_slice(&chunk[..count]);
        }
        // What a terminal makes of line feeds.
        String::from_utf8(bytes).expect("it is text").replace("\r\n", "\n")
    });
    let output = finish(child, Vec::new());
    (output, reader.join().expect("it is text"))
}

#[test]
fn a_terminal_is_not_sent_what_it_would_obey_and_a_pipe_is_sent_the_bytes() {
    for arguments in [&["send", "--raw"][..], &["send"]] {
        let is_raw = arguments.len() == 2;
        // In two pieces, the first of which ends in the middle of a character.
        let serve = move |mut stream: std::net::TcpStream| {
            stream.set_nodelay(true).expect("it can be set");
            let mut message = vec![0; OBEYED.len()];
            stream.read_exact(&mut message).expect("it comes");
            let reply = if is_raw { message } else { [b"server got:", &message[..], b"\t"].concat() };
            let (first, second) = reply.split_at(reply.len() - if is_raw { 1 } else { 2 });
            stream.write_all(first).expect("it is taken");
            stream.write_all(second).expect("it is taken");
            stream.shutdown(std::net::Shutdown::Write).expect("it is open");
            Vec::new()
        };
        let (prefix, end) = if is_raw { ("", "") } else { ("server got:", "\n") };
        let server = Server::tcp(serve);
        let (output, shown) = run_on_a_terminal(&mut command(&[arguments, &[&server.address, OBEYED]].concat()));
        output.check(0, "", "");
        assert_eq!(shown, format!("{prefix}{SHOWN}{end}"));
        let server = Server::tcp(serve);
        echoctl(&[arguments, &[&server.address, OBEYED]].concat()).check(0, &format!("{prefix}{OBEYED}{end}"), "");
    }
}

#[test]
fn json_and_errors_contain_nothing_that_a_terminal_obeys() {
    let reply = format!("{OBEYED}\t").into_bytes();
    let bytes = [&b"\x9b"[..], &reply].concat();
    let server = Server::tcp(move |stream| reply_and_wait(stream, "a\t", &bytes));
    let output = echoctl(&["send", "--json", &server.address, "a"]);
    let json = r#"{"reply":"\ufffda\u001b[2J\u009b2J\u202e\u2066\u2028\u200b\ufeff\udb40\udc41\u007fé","message":"a","#;
    let json = json.replace("\\ufffd", "\u{fffd}");
    let stdout = String::from_utf8(output.stdout).expect("it is text");
    assert!(stdout.starts_with(&json), "{stdout}");
    let error = format!(r#"reply 1 is wrong: expected "server got:a", got "\x9b{SHOWN}""#);
    assert!(output.code == Some(1) && output.stderr.ends_with(&format!("{error}\n")), "{}", output.stderr);
}
