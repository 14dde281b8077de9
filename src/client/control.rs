//! A client of the control socket: Varlink (varlink.org), interface `io.echoed`.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json as object};

use super::json;
use crate::escape::{Controls, escape_unsafe};

/// How long the daemon may take for each reply.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The longest reply, in bytes. The daemon's are far shorter.
const MAX_REPLY: u64 = 16 * 1024 * 1024;

/// How many characters of a text of the daemon an error shows.
const MAX_SHOWN: usize = 200;

/// A connection to the control socket.
pub struct ControlClient {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

/// Why a call failed.
#[derive(Debug)]
pub enum ControlError {
    /// There is no connection to the socket.
    Connect(PathBuf, io::Error),
    /// The connection broke, or what came is not a reply.
    Broken(PathBuf, io::Error),
    /// The daemon refused the call: a sentence.
    Refused(String),
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(default)]
    continues: bool,
    error: Option<String>,
}

impl ControlClient {
    /// Connects to the socket at this path.
    ///
    /// # Errors
    /// Returns an error if the connection cannot be made.
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            Ok(stream)
        };
        let stream = connect().map_err(|error| ControlError::Connect(path.to_owned(), error))?;
        Ok(Self { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    /// Calls a method of `io.echoed` that has one reply, and returns its parameters.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Result<Map<String, Value>, ControlError> {
        self.send(&object!({ "method": format!("io.echoed.{method}"), "parameters": parameters }))?;
        Ok(self.next_reply()?.parameters)
    }

    /// Calls a method of `io.echoed` that has several replies. Passes the parameters of each to `handle`, until that returns
    /// `false`.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub fn call_more(
        &mut self,
        method: &str,
        parameters: &Value,
        mut handle: impl FnMut(Map<String, Value>) -> bool,
    ) -> Result<(), ControlError> {
        self.send(&object!({ "method": format!("io.echoed.{method}"), "parameters": parameters, "more": true }))?;
        loop {
            let Reply { parameters, continues, .. } = self.next_reply()?;
            if !handle(parameters) || !continues {
                return Ok(());
            }
        }
    }

    fn send(&mut self, call: &Value) -> Result<(), ControlError> {
        let sent = self.stream.get_mut().write_all(format!("{call}\0").as_bytes());
        sent.map_err(|error| ControlError::Broken(self.path.clone(), error))
    }

    /// Waits for a reply.
    ///
    /// # Errors
    /// Returns an error if the connection breaks, or if the daemon has refused the call.
    fn next_reply(&mut self) -> Result<Reply, ControlError> {
        let mut bytes = Vec::new();
        let read = (&mut self.stream).take(MAX_REPLY).read_until(0, &mut bytes);
        let reply = read.and_then(|_| match bytes.pop() {
            Some(0) => serde_json::from_slice(&bytes)
                .map_err(|error| io::Error::other(format!("what came is not a reply of Varlink: {error}"))),
            Some(_) if bytes.len() as u64 + 1 >= MAX_REPLY => Err(io::Error::other("the reply is too long")),
            _ => Err(io::Error::new(ErrorKind::UnexpectedEof, "the daemon ended the connection")),
        });
        let reply: Reply = reply.map_err(|error| ControlError::Broken(self.path.clone(), error))?;
        match &reply.error {
            Some(error) => Err(ControlError::Refused(describe(error, &reply.parameters))),
            None => Ok(reply),
        }
    }
}

/// Writes a value of the daemon as JSON, on a line of its own.
///
/// # Errors
/// Returns an error if it cannot be written.
pub fn write_json(output: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    json::write_line(output, value)
}

/// Returns what an error of the daemon means.
fn describe(error: &str, parameters: &Map<String, Value>) -> String {
    let parameter = |name: &str| parameters.get(name).map(|value| shown(&value.to_string())).unwrap_or_default();
    match error {
        "io.echoed.NoSuchConnection" => format!("there is no connection {}", parameter("id")),
        "io.echoed.NoSuchListener" => format!("there is no listener of messages named {}", parameter("listener")),
        "io.echoed.Stopping" => "the daemon is about to stop".to_owned(),
        "org.varlink.service.MethodNotFound" => {
            format!("the daemon does not know {}: it is of another version", parameter("method"))
        }
        _ => {
            let parameters = Value::Object(parameters.clone()).to_string();
            format!("the daemon refused the call: {} {}", shown(error), shown(&parameters))
        }
    }
}

/// Returns a text of the daemon without characters that a terminal would interpret, and cut. Quotation marks stay.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(MAX_SHOWN).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{}{more}", escape_unsafe(&cut, Controls::Unicode, |_| false))
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(path, error) => {
                let hint = match error.kind() {
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                        "; is echoed-control.socket started (systemctl start echoed-control.socket)?"
                    }
                    ErrorKind::PermissionDenied => {
                        "; only root may use it, unless SocketMode= of its unit says otherwise"
                    }
                    _ => "",
                };
                write!(f, "cannot connect to {}: {error}{hint}", path.display())
            }
            Self::Broken(path, error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                write!(f, "{}: no reply within {} s", path.display(), TIMEOUT.as_secs())
            }
            Self::Broken(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}
