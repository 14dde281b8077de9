//! Waits for the PROXY header of a connection, before the connection is served.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::{Notify, watch};
use tokio::time;

use super::input_stream::InputStream;
use crate::protocol::rules::end_of_limit;
use crate::protocol::session::{LINGER, LINGER_BYTES};
use crate::protocol::{Session, Verdict};
use crate::server::accepted_socket::AcceptedSocket;
use crate::server::admission::Permit;
use crate::server::clock::clock;
use crate::server::listener::ConnectionInfo;
use crate::server::peer::Peer;
use crate::server::proxy_header::{BadHeader, HeaderFault, HeaderParse, MAX_EXCERPT, MAX_HEADER};
use crate::server::socket_error;
use crate::server::unserved;
use crate::server::worker_state::WorkerState;

/// The deadline of a header if `deadlines.read` is off. The standard demands 3 s at least, to tolerate one lost packet.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of waiting for a header.
#[derive(Debug, PartialEq, Eq)]
enum HeaderOutcome {
    Header(Option<SocketAddr>),
    /// The header is invalid or missing, or did not come in time.
    Invalid(HeaderFault),
    /// The connection ended before its first byte. It is passed to a worker, which ends it.
    ClosedEarly,
    /// The connection broke with this error; `None` if the runtime ends.
    Broken(Option<Errno>),
    /// An administrator closes the connection.
    ClosedByAdmin,
    /// The server stops, so the wait was cancelled.
    Cancelled,
}

/// An accepted connection that waits for its header.
pub(crate) struct PendingHeader {
    pub(crate) socket: AcceptedSocket,
    pub(crate) session: Session,
    pub(crate) info: ConnectionInfo,
    pub(crate) permit: Permit,
}

/// A connection that has sent its header, or that a worker ends without one.
pub(crate) struct PresentedConnection {
    stream: InputStream,
    session: Session,
    info: ConnectionInfo,
    permit: Permit,
    /// Whether its source may be at its limit.
    is_undecided: bool,
}

impl PendingHeader {
    /// Waits for the header. Returns `None` if the connection is closed. `close` is notified if an administrator closes it.
    /// `state` is that of the calling thread.
    pub(crate) async fn read_header(
        self,
        close: &Notify,
        cancelled: &mut watch::Receiver<bool>,
        state: &WorkerState,
    ) -> Option<PresentedConnection> {
        let Self { socket, mut session, mut info, mut permit } = self;
        let mut stream = match InputStream::new(socket, &state.disposal) {
            Ok(stream) => stream,
            Err((error, socket)) => {
                unserved::close_failed(state, &info, session.opened(), error, socket, permit);
                return None;
            }
        };
        let mut header = Vec::new();
        let outcome = read_header_before(&mut stream, &mut header, deadline(&session), close, cancelled).await;
        let mut is_undecided = false;
        match outcome {
            HeaderOutcome::Header(client) => {
                // The connection may wait for its permit.
                stream.stop_reading();
                info.peer = client.map_or(info.peer, Peer::Proxied);
                is_undecided = !permit.claim(info.peer.source());
                session.note_activity(clock());
            }
            HeaderOutcome::Invalid(fault) => {
                let excerpt = header[..header.len().min(MAX_EXCERPT)].to_vec();
                let bad_header = BadHeader { fault, excerpt, len: header.len() as u64 };
                reject(stream, bad_header, &info, session.opened(), permit, cancelled, state).await;
                return None;
            }
            // Who closes it tells the session.
            HeaderOutcome::ClosedEarly | HeaderOutcome::ClosedByAdmin => {}
            HeaderOutcome::Broken(error) => {
                session.handle_reset();
                if let Some(error) = error {
                    socket_error::report(error.into(), &info, &state.sink);
                }
            }
            HeaderOutcome::Cancelled => session.drain(clock()),
        }
        Some(PresentedConnection { stream, session, info, permit, is_undecided })
    }
}

impl PresentedConnection {
    /// Returns the permit if it has to be decided whether the source has room.
    pub(crate) fn undecided(&mut self) -> Option<&mut Permit> {
        self.is_undecided.then_some(&mut self.permit)
    }

    /// Applies the decision about the source. Returns `None` if the connection is closed.
    pub(crate) fn decide(mut self, decision: Result<(), Verdict>, state: &WorkerState) -> Option<Self> {
        // The wait for the decision does not count against the idle deadline.
        self.session.note_activity(clock());
        if let Err(verdict) = decision {
            if !self.permit.refuse() {
                unserved::report(state, &self.info, self.session.opened(), verdict, None);
                self.stream.close(self.permit);
                return None;
            }
            self.session.refuse(verdict, clock());
        }
        Some(self)
    }

    /// Returns the parts of a connection that a worker serves; `None` if the connection has failed.
    pub(crate) fn into_parts(self, state: &WorkerState) -> Option<(AcceptedSocket, Session, ConnectionInfo, Permit)> {
        let Self { stream, session, info, mut permit, .. } = self;
        match stream.into_socket() {
            Ok(socket) => {
                permit.stop_awaiting_header();
                Some((socket, session, info, permit))
            }
            Err(error) => {
                unserved::close_failed(state, &info, session.opened(), error, None, permit);
                None
            }
        }
    }
}

/// Returns the deadline of a connection's header.
fn deadline(session: &Session) -> Instant {
    end_of_limit(session.rules().deadlines.read.as_ref(), DEFAULT_TIMEOUT, session.opened())
}

/// Waits for the header until the deadline, or until the wait is cancelled. Consumes it, and adds the consumed bytes to
/// `header`.
async fn read_header_before(
    stream: &mut InputStream,
    header: &mut Vec<u8>,
    until: Instant,
    close: &Notify,
    cancelled: &mut watch::Receiver<bool>,
) -> HeaderOutcome {
    tokio::select! {
        // Input that arrived while this process was stopped is in time.
        biased;
        outcome = read_header(stream, header) => outcome,
        () = time::sleep_until(until.into()) => HeaderOutcome::Invalid(HeaderFault::Timeout),
        () = close.notified() => HeaderOutcome::ClosedByAdmin,
        // An error means that the server has been dropped.
        _ = cancelled.wait_for(|cancelled| *cancelled) => HeaderOutcome::Cancelled,
    }
}

/// Waits for the header, consumes it, and adds the consumed bytes to `header`.
async fn read_header(stream: &mut InputStream, header: &mut Vec<u8>) -> HeaderOutcome {
    loop {
        if stream.readable().await.is_err() {
            return HeaderOutcome::Broken(None);
        }
        match read_available(stream, header) {
            Ok(Some(HeaderParse::Complete { client, .. })) => {
                // Messages are not read, either, before the descriptors of the header are closed.
                stream.unparked().await;
                return HeaderOutcome::Header(client);
            }
            Ok(Some(HeaderParse::Invalid(fault))) => return HeaderOutcome::Invalid(fault),
            // More bytes may already be queued.
            Ok(Some(HeaderParse::Incomplete)) => {}
            Ok(None) if header.is_empty() => return HeaderOutcome::ClosedEarly,
            // The stream ended inside the header.
            Ok(None) => return HeaderOutcome::Invalid(HeaderFault::Malformed),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return HeaderOutcome::Broken(Errno::from_io_error(&error)),
        }
    }
}

/// Consumes the available bytes of the header, adds them to `header`, and parses it. Returns `None` at the end of the stream.
/// Bytes behind the header are not consumed. The result is [`HeaderParse::Incomplete`] as long as a part of the header cannot
/// be consumed.
fn read_available(stream: &mut InputStream, header: &mut Vec<u8>) -> io::Result<Option<HeaderParse>> {
    let mut buffer = [0; MAX_HEADER];
    let consumed = header.len();
    let count = stream.peek(&mut buffer[..MAX_HEADER - consumed])?;
    if count == 0 {
        return Ok(None);
    }
    header.extend_from_slice(&buffer[..count]);
    let parsed = HeaderParse::parse(header);
    let len = if let HeaderParse::Complete { len, .. } = parsed { len } else { header.len() };
    header.truncate(consumed);
    // One call receives all of these bytes, unless descriptors come with a part.
    match stream.receive(&mut buffer[..len - consumed])? {
        Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
        received => header.extend_from_slice(&buffer[..received.unwrap_or(0)]),
    }
    Ok(Some(if header.len() < len { HeaderParse::Incomplete } else { parsed }))
}

/// Closes a connection without a valid header, and reports it. The connection no longer counts against the limit.
async fn reject(
    mut stream: InputStream,
    mut bad_header: BadHeader,
    info: &ConnectionInfo,
    opened: Instant,
    mut permit: Permit,
    cancelled: &mut watch::Receiver<bool>,
    state: &WorkerState,
) {
    // If too many refused connections are open, this one is closed without lingering.
    if permit.refuse() {
        bad_header.len += linger(&mut stream, cancelled).await;
    }
    unserved::report(state, info, opened, Verdict::BadProxyHeader, Some(bad_header));
    // Last, because the server may end when the permit is released, and the connection must be counted by then.
    stream.close(permit);
}

/// Shuts down the output, and drops input for [`LINGER`] at most, because closing with unread input would reset the connection.
/// Returns the number of dropped bytes.
async fn linger(stream: &mut InputStream, cancelled: &mut watch::Receiver<bool>) -> u64 {
    stream.shut_down_writes();
    let mut dropped = 0;
    let drop_input = async {
        while dropped < u64::from(LINGER_BYTES) && stream.readable().await.is_ok() {
            match stream.receive(&mut [0; MAX_HEADER]) {
                Ok(Some(0)) => break,
                Ok(received) => dropped += received.unwrap_or(0) as u64,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
        }
    };
    tokio::select! {
        biased;
        () = drop_input => {}
        () = time::sleep(LINGER) => {}
        // An error means that the server has been dropped.
        _ = cancelled.wait_for(|cancelled| *cancelled) => {}
    }
    dropped
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::AtomicU64;
    use std::sync::{Arc, Mutex};
    use std::task::Waker;

    use tokio::runtime::Handle;
    use tokio::task;

    use super::*;
    use crate::config::{Limits, Settings};
    use crate::protocol::rules::{Deadlines, Rules, TimeSpan};
    use crate::server::admission::Admission;
    use crate::server::awaiting_headers::AwaitingHeaders;
    use crate::server::counters::CounterRegistry;
    use crate::server::dispatch::Dispatcher;
    use crate::server::disposal::Disposal;
    use crate::server::event::EventSink;
    use crate::server::event::{MessageLog, ReceivedMessage};
    use crate::server::event_loop::EventLoop;
    use crate::server::listener::Listener;
    use crate::server::mailbox::Mailbox;
    use crate::server::packets::rate_limit::RateLimiter;
    use crate::server::peer::Source;
    use crate::server::peer_descriptors::PeerDescriptors;
    use crate::server::receive_buffer::ReceiveBuffer;
    use crate::server::reclaim::Reclaimer;
    use crate::server::services::Services;
    use crate::server::socket::SocketKind;
    use crate::server::worker::Worker;

    fn accepted(socket: UnixStream) -> AcceptedSocket {
        let (descriptors, receive_buffer) = (PeerDescriptors::None, ReceiveBuffer::Untouched);
        AcceptedSocket { socket: socket.into(), descriptors, receive_buffer }
    }

    /// Returns the time after which a connection without a header is given up.
    async fn header_timeout(read: Option<TimeSpan>) -> Duration {
        let (_silent, socket) = UnixStream::pair().unwrap();
        let (begun, cancelled) = (time::Instant::now(), watch::Sender::new(false));
        let rules = Rules { deadlines: Deadlines { read, ..Deadlines::default() }, ..Rules::default() };
        let session = Session::new(rules.into(), begun.into());
        let mut header = Vec::new();
        socket.set_nonblocking(true).unwrap();
        let socket = accepted(socket);
        let mut stream = InputStream::new(socket, &Disposal::default()).unwrap();
        let outcome = read_header_before(
            &mut stream,
            &mut header,
            deadline(&session),
            &Notify::new(),
            &mut cancelled.subscribe(),
        )
        .await;
        assert_eq!((outcome, header), (HeaderOutcome::Invalid(HeaderFault::Timeout), Vec::new()));
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_has_the_read_deadline_or_else_10_s() {
        for (read, expected) in [(Some(2), 2), (Some(60), 60), (None, 10)] {
            let took = header_timeout(read.map(|read| TimeSpan::new(Duration::from_secs(read), "so long"))).await;
            // The timer has a resolution of a millisecond.
            assert_eq!(took.as_secs(), expected, "{took:?}");
        }
    }

    struct NoLog;

    impl MessageLog for NoLog {
        fn try_append(&self, _: ReceivedMessage<'_>, _: &Waker) -> bool {
            true
        }
    }

    /// Returns a dispatcher with one worker. Its event loop runs in a task, so the clock can be paused.
    fn dispatcher(limits: &Limits) -> Arc<Dispatcher> {
        let sink = EventSink { handler: Arc::new(|_| {}), message_log: Arc::new(NoLog), unlogged: Arc::default() };
        let new_state = |number| WorkerState::new(number, sink.clone(), Disposal::default());
        let worker = Worker { state: Arc::new(new_state(0)), mailbox: Arc::new(Mailbox::new().unwrap()) };
        let mut event_loop = EventLoop::new(Arc::clone(&worker.mailbox), Arc::clone(&worker.state)).unwrap();
        tokio::spawn(async move {
            while event_loop.pass_once() {
                time::sleep(Duration::from_millis(10)).await;
            }
        });
        let acceptors = Waker::noop().clone();
        let dispatcher = Dispatcher {
            admission: Admission::new(limits, acceptors.clone()),
            workers: vec![worker],
            services: Arc::new(Services::on(Handle::current(), new_state(1))),
            sink,
            counters: CounterRegistry::new(2),
            last_id: AtomicU64::new(0),
            rate_limiter: RateLimiter::new(None),
            reclaimer: Reclaimer::new(None),
            acceptors,
            reclaim: Mutex::default(),
            pending_cancelled: watch::Sender::new(false),
            awaiting_headers: AwaitingHeaders::default(),
        };
        Arc::new(dispatcher)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_for_its_permit_is_not_idle_for_that() {
        let Settings { defaults: settings, limits, .. } = Settings::default();
        let idle = settings.rules.deadlines.idle.as_ref().unwrap().duration();
        let dispatcher = dispatcher(&Limits { connections: 2, connections_per_source: 1, ..limits });
        let admission = &dispatcher.admission;
        let source = |last| Source::of_ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)));
        let mut first = admission.try_acquire(false).unwrap();
        assert!(first.claim(source(1)));
        let permit = admission.try_acquire(true).unwrap();

        let (mut client, socket) = UnixStream::pair().unwrap();
        for one in [&client, &socket] {
            one.set_nonblocking(true).unwrap();
        }
        client.write_all(b"PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n").unwrap();
        let socket = accepted(socket);
        let session = Session::new(Arc::clone(&settings.rules), clock());
        let (kind, descriptors) = (SocketKind::Stream, PeerDescriptors::None);
        let counters = dispatcher.counters.of_listener("echo");
        let listener = Arc::new(Listener::new("echo", kind, descriptors, &settings, counters));
        let info = ConnectionInfo { id: 1, listener, peer: Peer::Unknown };
        dispatcher.await_header(PendingHeader { socket, session, info, permit }, &dispatcher.services.state);
        // The source is at its limit, so the connection releases its permit. Another connection acquires it, and then the
        // source has room.
        let another = loop {
            let given_back = admission.try_acquire(false);
            if let Some(permit) = given_back {
                break permit;
            }
            task::yield_now().await;
        };
        assert!(first.claim(source(2)));
        time::sleep(2 * idle).await;
        assert_eq!(admission.open(), 2);
        drop(another);
        time::sleep(idle / 2).await;
        assert_eq!(admission.open(), 2, "it is served");
        client.write_all(b"a\t").unwrap();
        time::sleep(Duration::from_secs(1)).await;
        let mut reply = [0; 100];
        let count = client.read(&mut reply).unwrap();
        assert_eq!(&reply[..count], b"server got:a\t");
    }
}
