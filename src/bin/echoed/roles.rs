//! The listeners that workers do not serve, each by its role: monitor, agent, control.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use echoed::bind;
use echoed::config::{Role, Settings};
use echoed::control::Control;
use echoed::monitor::{Agent, Monitor, Source};
use echoed::server::socket::SocketKind;
use echoed::server::{ConnectionService, Server};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

use crate::log::{LeveledLog, Note};
use crate::start_error::StartError;

/// Serves these listening sockets, each with the name of its listener. `source` has the figures.
///
/// # Errors
/// Returns an error if a socket cannot be served in the role of its listener.
pub(crate) fn serve(
    server: &Server,
    settings: &Settings,
    named: Vec<(String, OwnedFd)>,
    source: Source,
    log: &LeveledLog,
) -> Result<(), StartError> {
    let source = Arc::new(source);
    for (name, socket) in named {
        let (address, listener) = (bind::bound_to(&socket), settings.listener_settings(&name));
        let role = listener.role;
        let refuse = |problem: &str| {
            let role = role.as_str();
            StartError::Role(format!("cannot serve {address} ({name}) with role = \"{role}\": {problem}"))
        };
        if !SocketKind::of(&socket).is_ok_and(|kind| kind == SocketKind::Stream) {
            return Err(refuse("it is not a stream; check the Listen*= settings of the socket unit"));
        }
        let service: Arc<dyn ConnectionService> = match role {
            Role::Monitor => Arc::new(Monitor::new(Arc::clone(&source))),
            Role::Agent => Arc::new(Agent::new(server.handle(), listener)),
            Role::Control if !is_unix(&socket) => {
                return Err(refuse("each process that can connect may close connections, so it takes a Unix socket"));
            }
            Role::Control => Arc::new(Control::new(Arc::clone(&source))),
            Role::Messages => unreachable!("workers serve it"),
        };
        let served = server.listen_service(socket, &name, role, service);
        served.map_err(|error| StartError::system(&format!("cannot serve {address} ({name})"), error))?;
        log.note_on(Note::Listening, &name, &format!("listening on {address} ({name})"));
    }
    Ok(())
}

/// Returns whether a socket is a Unix socket.
pub(crate) fn is_unix(socket: &OwnedFd) -> bool {
    socket_domain(socket).is_ok_and(|domain| domain == AddressFamily::UNIX)
}
