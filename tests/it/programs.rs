//! Programs that other people wrote, talking to the daemon as their users would.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use common::{Daemon, TEST_TIMEOUT};

/// A daemon, and how these programs name its sockets.
struct EchoServer {
    daemon: Daemon,
    port: String,
    path: String,
}

impl EchoServer {
    fn start() -> Self {
        let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock"]);
        daemon.wait_for_log_times("listening on", 2);
        let addresses = daemon.addresses();
        let port = addresses[0].rsplit_once(':').expect("it has a port").1.to_owned();
        let path = addresses[1].strip_prefix("unix:").expect("it is a path").to_owned();
        Self { daemon, port, path }
    }
}

/// A running program, ended when it is dropped.
struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    received: Vec<u8>,
}

impl Program {
    /// Starts it, if it is installed; `PORT` and `PATH` in its arguments are those of `echo`.
    fn start(echo: &EchoServer, name: &str, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(common::program_or_skip(name)?);
        for argument in arguments {
            command.arg(argument.replace("PORT", &echo.port).replace("PATH", &echo.path));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it can be started");
        let mut stdout = child.stdout.take().expect("it is piped");
        let input = child.stdin.take();
        let (sender, output) = channel();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut chunk) {
                if sender.send(chunk[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Some(Self { child, input, output, received: Vec::new() })
    }

    fn type_in(&mut self, text: &str) {
        let input = self.input.as_mut().expect("it was not ended");
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).expect("it reads");
    }

    /// Waits until what it has printed since the start is exactly this.
    fn expect(&mut self, text: &str) {
        while self.received.len() < text.len() {
            match self.output.recv_timeout(TEST_TIMEOUT) {
                Ok(chunk) => self.received.extend(chunk),
                Err(error) => panic!("{error}, it printed \"{}\"", self.received.escape_ascii()),
            }
        }
        assert_eq!(self.received.escape_ascii().to_string(), text.as_bytes().escape_ascii().to_string());
    }

    /// Checks that it prints nothing for this long, and does not end.
    fn expect_silence(&mut self, time: Duration) {
        let next = self.output.recv_timeout(time);
        assert_eq!(next, Err(RecvTimeoutError::Timeout), "expected silence");
    }

    /// Ends its input, and waits until it has ended by itself, with success. What it printed in all.
    fn end(mut self) -> Vec<u8> {
        self.input = None;
        loop {
            match self.output.recv_timeout(TEST_TIMEOUT) {
                Ok(chunk) => self.received.extend(chunk),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end by itself"),
            }
        }
        let status = self.child.wait().expect("it can be waited for");
        assert!(status.success(), "{status}, it printed \"{}\"", self.received.escape_ascii());
        std::mem::take(&mut self.received)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `printf INPUT | NAME ARGUMENTS` prints exactly `printed`, and ends.
fn check(name: &str, arguments: &[&str], input: &str, printed: &str) {
    let echo = EchoServer::start();
    let Some(mut program) = Program::start(&echo, name, arguments) else { return };
    program.type_in(input);
    let output = program.end();
    assert_eq!(output.escape_ascii().to_string(), printed.as_bytes().escape_ascii().to_string());
    echo.daemon.stop();
}

/// A program that sends what it reads gets its reply, and ends after it.
fn check_pipe(name: &str, arguments: &[&str]) {
    check(name, arguments, "aaaa\t", "server got:aaaa\t");
}

// How long socat (-t) and nc.traditional (-q) wait for the reply after the end of their input is longer here than
// anyone would write, for busy machines. They end when the daemon does, which is at once.

#[test]
fn socat_gets_its_reply_over_tcp() {
    check_pipe("socat", &["-t30", "-", "TCP:127.0.0.1:PORT"]);
}

#[test]
fn socat_gets_its_reply_over_a_unix_socket() {
    check_pipe("socat", &["-t30", "-", "UNIX-CONNECT:PATH"]);
}

#[test]
fn netcat_of_openbsd_gets_its_reply_over_tcp() {
    check_pipe("nc.openbsd", &["-N", "127.0.0.1", "PORT"]);
}

#[test]
fn netcat_of_openbsd_gets_its_reply_over_a_unix_socket() {
    check_pipe("nc.openbsd", &["-NU", "PATH"]);
}

#[test]
fn traditional_netcat_gets_its_reply() {
    check_pipe("nc.traditional", &["-q30", "127.0.0.1", "PORT"]);
}

#[test]
fn ncat_gets_its_reply_over_tcp() {
    check_pipe("ncat", &["127.0.0.1", "PORT"]);
}

#[test]
fn ncat_gets_its_reply_over_a_unix_socket() {
    check_pipe("ncat", &["-U", "PATH"]);
}

#[test]
fn a_message_without_its_tab_gets_no_reply() {
    check("socat", &["-t30", "-", "TCP:127.0.0.1:PORT"], "hi\n", "");
    check("nc.openbsd", &["-N", "127.0.0.1", "PORT"], "hi\n", "");
}

#[test]
fn a_user_at_a_terminal_can_press_enter_and_wait_between_messages() {
    let echo = EchoServer::start();
    let Some(mut netcat) = Program::start(&echo, "nc.openbsd", &["-N", "127.0.0.1", "PORT"]) else { return };
    netcat.type_in("aaaa\t\n");
    netcat.expect("server got:aaaa\t");
    // Longer than a message may take, which the line feed is not the beginning of.
    netcat.expect_silence(Duration::from_millis(2500));
    netcat.type_in("b\t\n");
    netcat.expect("server got:aaaa\tserver got:\nb\t");
    assert_eq!(netcat.end(), b"server got:aaaa\tserver got:\nb\t");
    echo.daemon.stop();
}

#[test]
fn a_user_who_does_not_finish_a_message_gets_an_error() {
    let echo = EchoServer::start();
    let Some(mut netcat) = Program::start(&echo, "nc.openbsd", &["-N", "127.0.0.1", "PORT"]) else { return };
    netcat.type_in("aaaa\n");
    netcat.expect("server error:message not finished within 2s\t");
    echo.daemon.stop();
}

#[test]
fn bash_gets_its_reply_over_dev_tcp() {
    let script = r#"exec 3<>/dev/tcp/127.0.0.1/PORT && printf 'aaaa\t' >&3 &&
        IFS= read -r -d $'\t' -t 30 reply <&3 && printf '%s\t' "$reply""#;
    check("bash", &["-c", script], "", "server got:aaaa\t");
}

#[test]
fn python_gets_its_replies_with_asyncio() {
    let script = r#"
import asyncio, sys

async def main(opened):
    reader, writer = await opened
    for message in b"aaaa", b"", b"\xff\x00":
        writer.write(message + b"\t")
    for _ in range(3):
        sys.stdout.buffer.write(await asyncio.wait_for(reader.readuntil(b"\t"), 30))
    writer.write_eof()
    assert await reader.read() == b"", "expected the end of the stream"
    writer.close()

asyncio.run(main(asyncio.open_connection("127.0.0.1", PORT)))
asyncio.run(main(asyncio.open_unix_connection("PATH")))
"#;
    let echo = EchoServer::start();
    let Some(python) = Program::start(&echo, "python3", &["-c", script]) else { return };
    let once = b"server got:aaaa\tserver got:\tserver got:\xff\0\t";
    assert_eq!(python.end().escape_ascii().to_string(), once.repeat(2).escape_ascii().to_string());
    echo.daemon.stop();
}

#[test]
fn perl_gets_its_replies_with_io_socket() {
    let script = r#"
use IO::Socket::INET;
my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => PORT, Timeout => 30) or die $@;
$/ = "\t";
for my $message ("aaaa", "", "\xff") {
    print $socket "$message\t";
    $socket->flush;
    print scalar(<$socket>);
}
shutdown($socket, 1);
defined(<$socket>) and die "expected the end of the stream";
"#;
    let echo = EchoServer::start();
    let Some(perl) = Program::start(&echo, "perl", &["-e", script]) else { return };
    assert_eq!(perl.end().escape_ascii().to_string(), r"server got:aaaa\tserver got:\tserver got:\xff\t");
    echo.daemon.stop();
}
