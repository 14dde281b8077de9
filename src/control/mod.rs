//! Steers the daemon over Varlink, interface `io.echoed`: lists and closes connections, begins and ends lame duck. Who can open the
//! socket may call every method; each call that changes something is logged with its caller.

mod varlink;

use std::io;
use std::pin::pin;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use tokio::time;

use crate::monitor::{RequestStream, Source, Status};
use crate::server::event::LameDuckCause;
use crate::server::peer::Peer;
use crate::server::{ConnectionControl, ConnectionService, ConnectionStatus, ServiceFuture, ServiceStream};
use varlink::{Call, CallError, Channel};

/// The interface, as it is described to clients.
const DESCRIPTION: &str = include_str!("io.echoed.varlink");

/// The description of `org.varlink.service`, which every Varlink service has (varlink.org/Service).
const SERVICE_DESCRIPTION: &str = include_str!("org.varlink.service.varlink");

/// How long a call may take. Only a worker that hangs takes longer.
const CALL_TIMEOUT: time::Duration = time::Duration::from_secs(10);

/// How long an answer may take that was asked for before the daemon ends.
const END_TIMEOUT: time::Duration = time::Duration::from_millis(100);

/// Serves control connections.
pub struct Control {
    source: Arc<Source>,
}

/// A connection in a reply.
#[derive(Serialize)]
struct ListedConnection<'a> {
    id: u64,
    listener: &'a str,
    peer: String,
    age_usec: u64,
    idle_usec: u64,
    messages: u64,
    bytes_in: u64,
    bytes_out: u64,
    state: &'static str,
}

#[derive(Serialize)]
struct Slice<'a> {
    connections: Vec<ListedConnection<'a>>,
}

impl Control {
    /// Creates the control of this source.
    #[must_use]
    pub fn new(source: Arc<Source>) -> Self {
        Self { source }
    }
}

impl ConnectionService for Control {
    fn serve(&self, stream: ServiceStream, mut control: ConnectionControl) -> ServiceFuture {
        let caller = stream.peer();
        let session = ControlSession { source: Arc::clone(&self.source), caller };
        Box::pin(async move {
            let mut channel = Channel::new(RequestStream::new(stream));
            loop {
                let call = tokio::select! {
                    call = channel.next() => call,
                    () = control.stopped() => return,
                };
                let Ok(Some(call)) = call else { return };
                let mut answer = pin!(time::timeout(CALL_TIMEOUT, session.answer(&call, &mut channel)));
                let answered = tokio::select! {
                    answered = &mut answer => answered,
                    () = control.stopped() => {
                        let _ = time::timeout(END_TIMEOUT, answer).await;
                        return;
                    }
                };
                // Another client may wait for this place.
                if !matches!(answered, Ok(Ok(()))) || control.is_crowded() {
                    return;
                }
            }
        })
    }
}

/// One connection to the control socket.
struct ControlSession {
    source: Arc<Source>,
    caller: Peer,
}

impl ControlSession {
    /// Answers a call.
    ///
    /// # Errors
    /// Returns an error if the connection breaks.
    async fn answer(&self, call: &Call, channel: &mut Channel<RequestStream<ServiceStream>>) -> io::Result<()> {
        match self.run(call, channel).await? {
            Err(error) if !call.is_oneway() => channel.reply_error(&error).await,
            _ => Ok(()),
        }
    }

    /// Runs the method, and sends its replies. An error in the result is for the client.
    ///
    /// # Errors
    /// Returns an error if the connection breaks.
    async fn run(
        &self,
        call: &Call,
        channel: &mut Channel<RequestStream<ServiceStream>>,
    ) -> io::Result<Result<(), CallError>> {
        let server = &self.source.server;
        let known: &[&str] = match &*call.method {
            "io.echoed.Connections" => &["listener"],
            "io.echoed.Close" => &["id"],
            "org.varlink.service.GetInterfaceDescription" => &["interface"],
            _ => &[],
        };
        if let Err(error) = call.check_names(known) {
            return Ok(Err(error));
        }
        match &*call.method {
            "io.echoed.Status" => reply(call, channel, &Status::of(&self.source)).await,
            "io.echoed.Connections" => match call.optional_string("listener") {
                Err(error) => Ok(Err(error)),
                Ok(Some(name)) if !server.has_listener(name) => Ok(Err(CallError::NoSuchListener(name.to_owned()))),
                Ok(_) if !call.takes_more() => Ok(Err(CallError::ExpectedMore)),
                Ok(listener) => self.list(listener, channel).await.map(Ok),
            },
            "io.echoed.Close" => match call.integer("id") {
                Err(error) => Ok(Err(error)),
                Ok(id) if server.close_connection(id, self.caller).await => reply(call, channel, &json!({})).await,
                Ok(id) => Ok(Err(CallError::NoSuchConnection(id))),
            },
            "io.echoed.Drain" => {
                server.begin_lame_duck(LameDuckCause::Caller(self.caller));
                reply(call, channel, &json!({})).await
            }
            "io.echoed.Resume" => {
                if !server.end_lame_duck(LameDuckCause::Caller(self.caller)) {
                    return Ok(Err(CallError::Stopping));
                }
                reply(call, channel, &json!({})).await
            }
            "org.varlink.service.GetInfo" => {
                let info = json!({
                    "vendor": "echoed",
                    "product": "echoed",
                    "version": env!("CARGO_PKG_VERSION"),
                    "url": env!("CARGO_PKG_HOMEPAGE"),
                    "interfaces": ["io.echoed", "org.varlink.service"],
                });
                reply(call, channel, &info).await
            }
            "org.varlink.service.GetInterfaceDescription" => match call.optional_string("interface") {
                Err(error) => Ok(Err(error)),
                Ok(None) => Ok(Err(CallError::InvalidParameter("interface".to_owned()))),
                Ok(Some(interface)) => {
                    let description = match interface {
                        "io.echoed" => DESCRIPTION,
                        "org.varlink.service" => SERVICE_DESCRIPTION,
                        unknown => return Ok(Err(CallError::InterfaceNotFound(unknown.to_owned()))),
                    };
                    reply(call, channel, &json!({ "description": description })).await
                }
            },
            unknown => Ok(Err(unknown_method(unknown))),
        }
    }

    /// Sends the open connections, of one listener if it is given: a reply for each slice.
    ///
    /// # Errors
    /// Returns an error if the connection breaks.
    async fn list(
        &self,
        listener: Option<&str>,
        channel: &mut Channel<RequestStream<ServiceStream>>,
    ) -> io::Result<()> {
        let mut lister = self.source.server.list_connections();
        while let Some(connections) = lister.next().await {
            let is_wanted = |one: &&ConnectionStatus| listener.is_none_or(|name| *one.listener == *name);
            let connections: Vec<_> = connections.iter().filter(is_wanted).map(ListedConnection::from).collect();
            if !connections.is_empty() {
                channel.reply(&Slice { connections }, true).await?;
            }
        }
        channel.reply(&Slice { connections: Vec::new() }, false).await
    }
}

/// Sends the one reply of a method, if its client wants it.
async fn reply(
    call: &Call,
    channel: &mut Channel<RequestStream<ServiceStream>>,
    parameters: &impl Serialize,
) -> io::Result<Result<(), CallError>> {
    if !call.is_oneway() {
        channel.reply(parameters, false).await?;
    }
    Ok(Ok(()))
}

fn unknown_method(method: &str) -> CallError {
    let interface = method.rsplit_once('.').map_or(method, |(interface, _)| interface);
    if matches!(interface, "io.echoed" | "org.varlink.service") {
        CallError::MethodNotFound(method.to_owned())
    } else {
        CallError::InterfaceNotFound(interface.to_owned())
    }
}

impl<'a> From<&'a ConnectionStatus> for ListedConnection<'a> {
    fn from(status: &'a ConnectionStatus) -> Self {
        let micros = |time: time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            id: status.id,
            listener: &status.listener,
            peer: status.peer.to_string(),
            age_usec: micros(status.age),
            idle_usec: micros(status.idle),
            messages: status.totals.messages,
            bytes_in: status.totals.bytes_in,
            bytes_out: status.totals.bytes_out,
            state: status.state,
        }
    }
}
