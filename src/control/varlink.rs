//! Varlink (varlink.org): calls and replies, each an object of JSON that a NUL ends.
//!
//! No crate: zlink reads calls of up to 100 MiB, varlink without a limit, and a call is one object of JSON.

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest call, in bytes.
const MAX_CALL: usize = 64 * 1024;

/// A call of a method.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Call {
    /// The interface and the method.
    pub(super) method: String,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
    /// Whether the client takes more than one reply.
    #[serde(default)]
    more: Option<bool>,
    /// Whether the client wants no reply.
    #[serde(default)]
    oneway: Option<bool>,
}

/// A reply with parameters.
#[derive(Serialize)]
struct Reply<'a, P> {
    parameters: &'a P,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    continues: bool,
}

#[derive(Serialize)]
struct ErrorReply<'a, P> {
    error: &'a str,
    parameters: P,
}

/// An error that a client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallError {
    /// There is no such interface.
    InterfaceNotFound(String),
    /// The interface has no such method.
    MethodNotFound(String),
    /// A parameter is missing, unknown, or of another type.
    InvalidParameter(String),
    /// The method has to be called with `more`.
    ExpectedMore,
    /// There is no listener of messages with this name.
    NoSuchListener(String),
    /// There is no connection with this id.
    NoSuchConnection(u64),
    /// The daemon is about to stop.
    Stopping,
}

impl CallError {
    fn name_and_parameters(&self) -> (&'static str, Value) {
        use serde_json::json;
        match self {
            Self::InterfaceNotFound(name) => ("org.varlink.service.InterfaceNotFound", json!({ "interface": name })),
            Self::MethodNotFound(name) => ("org.varlink.service.MethodNotFound", json!({ "method": name })),
            Self::InvalidParameter(name) => ("org.varlink.service.InvalidParameter", json!({ "parameter": name })),
            Self::ExpectedMore => ("org.varlink.service.ExpectedMore", json!({})),
            Self::NoSuchListener(name) => ("io.echoed.NoSuchListener", json!({ "listener": name })),
            Self::NoSuchConnection(id) => ("io.echoed.NoSuchConnection", json!({ "id": id })),
            Self::Stopping => ("io.echoed.Stopping", json!({})),
        }
    }
}

/// A connection on which calls come.
pub(super) struct Channel<S> {
    stream: S,
    /// What was read, from the beginning of the next call on.
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Waits for the next call; `None` at the end of the stream.
    ///
    /// # Errors
    /// Returns an error if the stream breaks, or if the client sends something else than a call.
    pub(super) async fn next(&mut self) -> io::Result<Option<Call>> {
        let mut searched = 0;
        loop {
            if let Some(end) = memchr::memchr(0, &self.buffer[searched..]).map(|at| searched + at) {
                let call = serde_json::from_slice(&self.buffer[..end])?;
                self.buffer.drain(..=end);
                return Ok(Some(call));
            }
            searched = self.buffer.len();
            if searched > MAX_CALL {
                return Err(io::Error::other("the call is too long"));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Sends a reply; `continues` if further ones follow.
    ///
    /// # Errors
    /// Returns an error if the stream breaks.
    pub(super) async fn reply(&mut self, parameters: &impl Serialize, continues: bool) -> io::Result<()> {
        self.send(serde_json::to_vec(&Reply { parameters, continues })?).await
    }

    /// Sends an error.
    ///
    /// # Errors
    /// Returns an error if the stream breaks.
    pub(super) async fn reply_error(&mut self, error: &CallError) -> io::Result<()> {
        let (error, parameters) = error.name_and_parameters();
        self.send(serde_json::to_vec(&ErrorReply { error, parameters })?).await
    }

    async fn send(&mut self, mut reply: Vec<u8>) -> io::Result<()> {
        reply.push(0);
        self.stream.write_all(&reply).await
    }
}

impl Call {
    pub(super) fn takes_more(&self) -> bool {
        self.more.unwrap_or(false)
    }

    pub(super) fn is_oneway(&self) -> bool {
        self.oneway.unwrap_or(false)
    }

    /// Checks that there are no other parameters than these.
    ///
    /// # Errors
    /// Returns an error if there are.
    pub(super) fn check_names(&self, known: &[&str]) -> Result<(), CallError> {
        let mut names = self.parameters.iter().flat_map(Map::keys);
        match names.find(|name| !known.contains(&&***name)) {
            Some(unknown) => Err(CallError::InvalidParameter(unknown.clone())),
            None => Ok(()),
        }
    }

    /// Returns a parameter that is a string; `None` if it is missing or null.
    ///
    /// # Errors
    /// Returns an error if it is of another type.
    pub(super) fn optional_string(&self, name: &str) -> Result<Option<&str>, CallError> {
        match self.parameter(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(CallError::InvalidParameter(name.to_owned())),
        }
    }

    /// Returns a parameter that is an integer from 0.
    ///
    /// # Errors
    /// Returns an error if it is missing or of another type.
    pub(super) fn integer(&self, name: &str) -> Result<u64, CallError> {
        let value = self.parameter(name).and_then(Value::as_u64);
        value.ok_or_else(|| CallError::InvalidParameter(name.to_owned()))
    }

    fn parameter(&self, name: &str) -> Option<&Value> {
        self.parameters.as_ref()?.get(name)
    }
}
