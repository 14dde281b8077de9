//! Listeners that workers do not serve: monitor, agent, control. Tasks of the services accept and serve their connections, so they
//! answer also while a worker hangs or all permits of connections are taken.
//!
//! They accept until they are told to stop, also while the server drains.

use std::future::{Future, pending};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net as unix;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Waker;

use rustix::io::retry_on_intr;
use rustix::net::{SocketFlags, accept_with};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time;

use super::accept_mode::{AcceptMode, AcceptorStatus};
use super::accepted_socket::AcceptedSocket;
use super::admission::Admission;
use super::disposal::Disposal;
use super::event::{Event, EventSink, Retry};
use super::listener_error::{Backoff, ListenerErrorKind, MAX_PAUSE, explain};
use super::peer_descriptors::{self, PeerDescriptors};
use super::receive_buffer::ReceiveBuffer;
use super::service_stream::ServiceStream;
use super::socket::SocketKind;
use crate::config::ListenerSettings;

/// What a connection that a task serves comes to.
pub type ServiceFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves the connections of a listener.
pub trait ConnectionService: Send + Sync {
    /// Serves a connection to its end, which is to come soon after [`ConnectionControl::stopped`].
    fn serve(&self, stream: ServiceStream, control: ConnectionControl) -> ServiceFuture;

    /// Applies new settings of the listener.
    fn reload(&self, settings: &ListenerSettings) {
        let _ = settings;
    }
}

/// Tells a connection that it is to end. The server waits until all of these are dropped.
#[derive(Debug, Clone)]
pub struct ConnectionControl {
    stop: watch::Receiver<bool>,
    permits: Arc<Semaphore>,
}

impl ConnectionControl {
    /// Waits until the connection is to end.
    pub async fn stopped(&mut self) {
        // An error means that the server is gone.
        let _ = self.stop.wait_for(|stops| *stops).await;
    }

    /// Returns whether all permits are taken: further clients may wait for this connection to end.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.permits.available_permits() == 0
    }
}

/// A listener whose connections are served by tasks.
pub(crate) struct ServiceListener {
    pub(crate) name: Arc<str>,
    pub(crate) socket: OwnedFd,
    pub(crate) service: Arc<dyn ConnectionService>,
    /// How many connections there may be at once.
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) disposal: Disposal,
    pub(crate) sink: EventSink,
    pub(crate) mode: watch::Receiver<AcceptMode>,
    pub(crate) status: Arc<watch::Sender<AcceptorStatus>>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// Accepts the connections of a listener.
struct ServiceAcceptor {
    name: Arc<str>,
    /// The listening socket: a stream is what tokio can wait for. There until the drop.
    socket: Option<UnixStream>,
    descriptors: PeerDescriptors,
    service: Arc<dyn ConnectionService>,
    permits: Arc<Semaphore>,
    admission: Arc<Admission>,
    disposal: Disposal,
    sink: EventSink,
    stop: watch::Receiver<bool>,
    backoff: Backoff,
}

impl ServiceListener {
    /// Serves until it is told to stop, or the listener fails. To be run in the runtime of the services.
    pub(crate) async fn run(self) {
        let Self { name, socket, service, permits, admission, disposal, sink, mode, status, mut stop } = self;
        let descriptors = PeerDescriptors::refuse(&socket);
        let failure = match UnixStream::from_std(unix::UnixStream::from(socket)) {
            Ok(socket) => {
                let (socket, backoff, stop_of_all) = (Some(socket), Backoff::default(), stop.clone());
                let (name, sink) = (Arc::clone(&name), sink.clone());
                let mut acceptor = ServiceAcceptor {
                    name,
                    socket,
                    descriptors,
                    service,
                    permits,
                    admission,
                    disposal,
                    sink,
                    stop: stop_of_all,
                    backoff,
                };
                acceptor.run(mode, &status, &mut stop).await.err()
            }
            Err(error) => Some(error),
        };
        status.send_modify(|status| {
            status.services -= 1;
            status.failed += usize::from(failure.is_some());
        });
        if let Some(error) = failure {
            sink.report(Event::ListenerFailed { listener: name, error });
        }
    }
}

impl ServiceAcceptor {
    /// Accepts connections until it is told to stop.
    ///
    /// # Errors
    /// Returns an error if the listener failed.
    async fn run(
        &mut self,
        mode: watch::Receiver<AcceptMode>,
        status: &watch::Sender<AcceptorStatus>,
        stop: &mut watch::Receiver<bool>,
    ) -> io::Result<()> {
        let (mut mode, mut accepts) = (Some(mode), true);
        // A probe that was asked for before this runs has to be recorded, too.
        mode.iter_mut().for_each(watch::Receiver::mark_changed);
        loop {
            tokio::select! {
                biased;
                // An error means that the server is gone.
                _ = stop.wait_for(|stops| *stops) => return Ok(()),
                () = changed(&mut mode) => {
                    let new = mode.as_mut().map(|mode| *mode.borrow_and_update());
                    accepts = new != Some(AcceptMode::Probe);
                    match new {
                        Some(AcceptMode::Probe) => {
                            let found_client = self.probe();
                            status.send_modify(|status| status.record_probe(found_client));
                        }
                        // The server waits until this receiver is dropped.
                        Some(AcceptMode::Stop) => mode = None,
                        Some(AcceptMode::Accept) | None => {}
                    }
                }
                result = self.accept(), if accepts => result?,
            }
        }
    }

    /// Waits for a permit and a client, and begins to serve it. Pauses after errors that may pass.
    ///
    /// # Errors
    /// Returns an error if the listener failed.
    async fn accept(&mut self) -> io::Result<()> {
        // It is never closed.
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return pending().await };
        let Some(socket) = &self.socket else { return Ok(()) };
        socket.readable().await?;
        if self.descriptors != PeerDescriptors::None && !self.disposal.has_room(Waker::noop()) {
            time::sleep(MAX_PAUSE).await;
            return Ok(());
        }
        let accepted = socket.try_io(Interest::READABLE, || accept_one(socket));
        let error = match accepted {
            Ok(accepted) => {
                self.backoff.record_success();
                if self.backoff.report_end() {
                    let listener = Arc::clone(&self.name);
                    self.sink.report(Event::AcceptResumed { listener, kind: SocketKind::Stream });
                }
                self.spawn(accepted, permit);
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => error,
        };
        let pause = match ListenerErrorKind::of(&error) {
            ListenerErrorKind::Fatal => return Err(explain(error, socket)),
            ListenerErrorKind::ResourcesExhausted => MAX_PAUSE,
            ListenerErrorKind::Transient => match self.backoff.record_error() {
                Some(pause) => pause,
                None => return Ok(()),
            },
        };
        drop(permit);
        if self.backoff.report_pause() {
            let (listener, kind, retry) = (Arc::clone(&self.name), SocketKind::Stream, Retry::After(pause));
            self.sink.report(Event::AcceptPaused { listener, kind, error, retry });
        }
        time::sleep(pause).await;
        Ok(())
    }

    /// Probes the backlog, and serves the first connection in it. Returns whether the listener must be served further: also when
    /// that could not be determined.
    fn probe(&self) -> bool {
        let (Ok(permit), Some(socket)) = (Arc::clone(&self.permits).try_acquire_owned(), &self.socket) else {
            return true;
        };
        match accept_one(socket) {
            Ok(accepted) => {
                self.spawn(accepted, permit);
                true
            }
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    }

    /// Serves a connection in a task.
    fn spawn(&self, socket: OwnedFd, permit: OwnedSemaphorePermit) {
        let descriptors = match self.descriptors {
            PeerDescriptors::None => PeerDescriptors::None,
            _ => {
                peer_descriptors::include_urgent_data(&socket);
                PeerDescriptors::refuse(&socket)
            }
        };
        let socket = AcceptedSocket { socket, descriptors, receive_buffer: ReceiveBuffer::Untouched };
        let stream = match ServiceStream::new(socket, &self.disposal) {
            Ok(stream) => stream,
            // There is no memory for it. Its client sees the end of the connection.
            Err((_, None)) => return,
            Err((_, Some(AcceptedSocket { socket, .. }))) => return self.disposal.close(socket, None),
        };
        let (in_use, control) = (
            self.admission.use_by_service(),
            ConnectionControl { stop: self.stop.clone(), permits: Arc::clone(&self.permits) },
        );
        let service = self.service.serve(stream, control);
        tokio::spawn(async move {
            service.await;
            // Only now: until then, the connection is a use of the server and has its permit.
            drop((in_use, permit));
        });
    }
}

/// Closes the socket. Connections in its backlog may have descriptors queued, if no other process holds it.
impl Drop for ServiceAcceptor {
    fn drop(&mut self) {
        if self.descriptors != PeerDescriptors::None {
            if let Some(Ok(socket)) = self.socket.take().map(UnixStream::into_std) {
                self.disposal.close(OwnedFd::from(socket), None);
            }
        }
    }
}

/// Waits until the mode changes.
async fn changed(mode: &mut Option<watch::Receiver<AcceptMode>>) {
    let has_changed = match mode {
        Some(mode) => mode.changed().await.is_ok(),
        None => false,
    };
    if !has_changed {
        pending().await
    }
}

fn accept_one(socket: &UnixStream) -> io::Result<OwnedFd> {
    Ok(retry_on_intr(|| accept_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC))?)
}
