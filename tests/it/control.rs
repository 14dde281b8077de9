//! What administrators see and steer over the control socket, with echoctl and by Varlink.

mod calls;
mod close;
mod command;
mod connections;
mod hostile;
mod lame_duck;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Daemon, TEST_TIMEOUT};
use serde_json::Value;

/// The section of a control socket.
pub(crate) const SECTION: &str = "[listener.control]\nrole = 'control'\n";

/// Starts a daemon with a listener `echo` on TCP, and a control socket in its directory. Returns the path of that.
fn start(configuration: &str) -> (Daemon, String) {
    start_with(configuration, &[])
}

/// The same with more listeners, as for `--listen`.
fn start_with(configuration: &str, listen: &[&str]) -> (Daemon, String) {
    let path = tempfile::tempdir().expect("a directory can be made").keep().join("io.echoed");
    let path = path.to_str().expect("it is UTF-8").to_owned();
    let control = format!("control=unix:{path}");
    let mut arguments = vec!["--listen", "127.0.0.1:0", "--listen", &control];
    arguments.extend(listen.iter().flat_map(|address| ["--listen", address]));
    let daemon = Daemon::start_with(&format!("{SECTION}{configuration}"), &arguments);
    daemon.wait_for_log("(control)");
    (daemon, path)
}

/// A client that speaks Varlink by hand.
struct Varlink {
    stream: UnixStream,
}

impl Varlink {
    fn connect(path: &str) -> Self {
        let path = path.strip_prefix("unix:").unwrap_or(path);
        let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        stream.set_read_timeout(Some(TEST_TIMEOUT)).expect("it can be set");
        Self { stream }
    }

    /// Sends bytes as they are. The daemon may have ended the connection.
    fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Calls a method, and returns its replies.
    fn call(&mut self, call: &str) -> Vec<Value> {
        assert!(self.send(call.as_bytes()) && self.send(b"\0"), "{call}: the connection is broken");
        let mut replies = vec![self.next_reply().expect("a reply")];
        while replies.last().is_some_and(|reply| reply["continues"] == true) {
            replies.push(self.next_reply().expect("a further reply"));
        }
        replies
    }

    /// Waits for a reply; `None` at the end of the connection.
    fn next_reply(&mut self) -> Option<Value> {
        let mut bytes = Vec::new();
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return None,
                Ok(_) if byte == [0] => return Some(serde_json::from_slice(&bytes).expect("a reply is JSON")),
                Ok(_) => bytes.push(byte[0]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no reply: {error}"),
            }
        }
    }
}

/// Returns the open connections, all or those of one listener.
pub(crate) fn list(path: &str, listener: Option<&str>) -> Vec<Value> {
    let parameters = listener.map(|name| format!(r#","parameters":{{"listener":"{name}"}}"#)).unwrap_or_default();
    let replies =
        Varlink::connect(path).call(&format!(r#"{{"method":"io.echoed.Connections","more":true{parameters}}}"#));
    let connections = replies.iter().flat_map(|reply| reply["parameters"]["connections"].as_array().expect("a list"));
    connections.cloned().collect()
}

/// Waits until a listener has exactly these states of connections, in the order of their ids.
fn wait_for_states(path: &str, expected: &[&str]) {
    let mut states = Vec::new();
    common::wait_until(&format!("the states are {expected:?}"), || {
        let mut connections = list(path, None);
        connections.sort_by_key(|connection| connection["id"].as_u64());
        states = connections.iter().map(|one| one["state"].as_str().expect("a word").to_owned()).collect();
        states == expected
    });
}

/// A short time, in which nothing is to happen.
const SHORT: Duration = Duration::from_millis(300);
