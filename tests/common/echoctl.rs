//! echoctl as a child of the test, and servers that the test plays for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{TEST_TIMEOUT, program};

/// Returns an address on which no process listens.
pub fn unused_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    format!("tcp:{}", listener.local_addr().expect("it is bound"))
}

/// A server for any number of connections, each on a thread of its own, with its number.
pub fn start_server(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = format!("tcp:{}", listener.local_addr().expect("it is bound"));
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let (serve, stream) = (Arc::clone(&serve), stream.expect("a client connects"));
            stream.set_nodelay(true).expect("it can be set");
            thread::spawn(move || serve(number, stream));
        }
    });
    address
}

/// Takes messages one by one until the client is gone, and has something done for each: with its number, the right reply
/// to it (with the delimiter, one TAB) and the stream. The connection is closed when that returns false.
pub fn each_message(stream: TcpStream, mut reply: impl FnMut(usize, &[u8], &mut TcpStream) -> bool) {
    let mut writer = stream.try_clone().expect("there are descriptors");
    let mut reader = BufReader::new(stream);
    let mut message = Vec::new();
    for number in 0.. {
        message.clear();
        let is_whole = reader.read_until(b'\t', &mut message).is_ok_and(|count| count > 0);
        if !is_whole || !reply(number, &[b"server got:", &message[..]].concat(), &mut writer) {
            break;
        }
    }
}

/// Sends bytes to a client that may have closed the connection. Returns whether all were sent.
pub fn try_send(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).is_ok()
}

/// Sends the bytes one at a time, each in a packet of its own.
pub fn try_send_bytewise(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| try_send(stream, &[*byte]))
}

/// Makes closing this stream send a reset.
pub fn reset_when_closed(stream: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO)).expect("SO_LINGER can be set");
}

/// What echoctl did.
#[derive(Debug)]
pub struct Output {
    /// The command line.
    pub command: String,
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// Its errors.
    pub stderr: String,
}

impl Output {
    /// Checks its exit code, and that there is nothing on stderr.
    #[track_caller]
    pub fn check(&self, code: i32) -> &Self {
        assert!(self.code == Some(code) && self.stderr.is_empty(), "expected exit code {code}: {self:#?}");
        self
    }

    /// Checks that it failed with one line on stderr, with this in it, and nothing on stdout.
    #[track_caller]
    pub fn check_failure(&self, code: i32, error: &str) {
        let one_line = self.stderr.starts_with("echoctl: ") && self.stderr.matches('\n').count() == 1;
        let right = self.code == Some(code) && self.stdout.is_empty() && one_line && self.stderr.contains(error);
        assert!(right, "expected exit code {code} and \"{error}\": {self:#?}");
    }

    /// Its stdout as JSON: the last line.
    #[track_caller]
    pub fn json(&self) -> Value {
        self.json_lines().pop().unwrap_or_else(|| panic!("nothing was printed: {self:#?}"))
    }

    /// Its stdout as JSON, a value for each line.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.stdout.lines().map(parse).collect()
    }
}

/// What tests expect of JSON: each panics with the value if it is something else, as a key that is not there (null).
pub trait ExpectJson {
    /// Returns the number.
    fn number(&self) -> f64;
    /// Returns the text.
    fn text(&self) -> &str;
    /// Returns the elements of the array.
    fn list(&self) -> &[Value];
    /// Returns the truth value.
    fn is_true(&self) -> bool;
    /// Whether an object has this key, and its value is null.
    fn is_null_at(&self, key: &str) -> bool;
    /// All keys, those of inner objects too.
    fn keys(&self) -> Vec<&str>;
}

impl ExpectJson for Value {
    #[track_caller]
    fn number(&self) -> f64 {
        self.as_f64().unwrap_or_else(|| panic!("{self} is not a number"))
    }

    #[track_caller]
    fn text(&self) -> &str {
        self.as_str().unwrap_or_else(|| panic!("{self} is not a string"))
    }

    #[track_caller]
    fn list(&self) -> &[Value] {
        self.as_array().unwrap_or_else(|| panic!("{self} is not a list"))
    }

    #[track_caller]
    fn is_true(&self) -> bool {
        self.as_bool().unwrap_or_else(|| panic!("{self} is neither true nor false"))
    }

    fn is_null_at(&self, key: &str) -> bool {
        self.get(key) == Some(&Self::Null)
    }

    fn keys(&self) -> Vec<&str> {
        match self {
            Self::Object(object) => {
                object.iter().flat_map(|(key, value)| [vec![&**key], value.keys()].concat()).collect()
            }
            Self::Array(list) => list.iter().flat_map(ExpectJson::keys).collect(),
            _ => Vec::new(),
        }
    }
}

/// Returns a command that runs echoctl, with its output to be read.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("echoctl"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs echoctl to its end.
pub fn echoctl(arguments: &[&str]) -> Output {
    Running::start(&mut command(arguments)).wait()
}

/// A running one, ended under the ceiling.
pub struct Running {
    command: String,
    child: Child,
    lines: Receiver<String>,
    received: Vec<String>,
    errors: thread::JoinHandle<String>,
    _watch: Sender<()>,
}

impl Running {
    /// Starts a command that runs echoctl.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let stderr = child.stderr.take();
        let errors = thread::spawn(move || {
            let mut text = String::new();
            stderr.map(|mut stderr| stderr.read_to_string(&mut text));
            text
        });
        let (watch, done) = mpsc::channel();
        let pid = Pid::from_child(&child);
        thread::spawn(move || {
            if done.recv_timeout(TEST_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
                // It may have ended just now.
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Self { command: format!("{command:?}"), child, lines, received: Vec::new(), errors, _watch: watch }
    }

    /// Waits for a line with this in it.
    pub fn expect(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(TEST_TIMEOUT) {
                Ok(line) => {
                    self.received.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(error) => panic!("{}: {error}: no \"{text}\" in {:#?}", self.command, self.received),
            }
        }
    }

    /// Returns the process number.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        kill_process(self.pid(), Signal::INT).expect("it runs");
    }

    /// What timeout(1) and service managers send.
    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).expect("it runs");
    }

    /// Waits until it has ended by itself.
    pub fn wait(mut self) -> Output {
        let status = self.child.wait().expect("it can be waited for");
        assert!(status.signal().is_none(), "{}: {status}; {:#?}", self.command, self.received);
        let mut lines = self.received;
        lines.extend(self.lines.iter());
        let stdout = lines.iter().map(|line| format!("{line}\n")).collect();
        let stderr = self.errors.join().expect("it is text");
        Output { command: self.command, code: status.code(), stdout, stderr }
    }
}
