//! Waits for the PROXY header of a connection, in a task, before the connection is served.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::net as unix;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time;

use super::header::{BadHeader, HeaderFault, HeaderParse, MAX_EXCERPT, MAX_HEADER};
use crate::protocol::rules::TimeSpan;
use crate::protocol::session::{LINGER, LINGER_BYTES, Totals};
use crate::protocol::{Session, Verdict};
use crate::server::accept::Dispatcher;
use crate::server::admission::Permit;
use crate::server::connection::{Connection, ConnectionInfo, clock};
use crate::server::disposal::Disposal;
use crate::server::event::Event;
use crate::server::peer_descriptors::{self, PeerDescriptors};
use crate::server::socket::{AcceptedSocket, Peer};
use crate::server::worker::Worker;

/// How long a header may take where `deadlines.read` is off. The standard asks for 3 s at least, for one lost packet.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What came of waiting for a header.
#[derive(Debug, PartialEq, Eq)]
enum HeaderOutcome {
    Header(Option<SocketAddr>),
    /// There will be none that is right, or not in time.
    Invalid(HeaderFault),
    /// The connection ended before its first byte. The event loop sees that as well.
    ClosedEarly,
    /// The connection broke.
    Broken,
    /// The server stops.
    Cancelled,
}

/// A connection that was accepted and waits for its header.
pub(crate) struct PendingHeader {
    pub(crate) socket: AcceptedSocket,
    pub(crate) session: Session,
    pub(crate) info: ConnectionInfo,
    pub(crate) permit: Permit,
}

impl PendingHeader {
    /// Waits for the header in a task on one of the workers. Then the connection is served, or refused.
    pub(crate) fn spawn(self, dispatcher: &Arc<Dispatcher>) {
        let number = usize::try_from(self.info.id).unwrap_or_default();
        let Some(worker) = dispatcher.workers.get(number % dispatcher.workers.len().max(1)) else { return };
        let (cancelled, dispatcher) = (dispatcher.pending_cancelled.subscribe(), Arc::clone(dispatcher));
        let (task, worker) = (Arc::clone(worker), worker);
        worker.spawn(async move { self.wait(cancelled, &dispatcher, &task).await });
    }

    /// `cancelled` is kept to the end: [`Dispatcher::cancel_pending`] waits until it is dropped. `worker` runs this.
    async fn wait(self, mut cancelled: watch::Receiver<bool>, dispatcher: &Dispatcher, worker: &Worker) {
        let Self { socket: AcceptedSocket { socket, descriptors }, mut session, mut info, mut permit } = self;
        let stream = match UnixStream::from_std(unix::UnixStream::from(socket)) {
            Ok(stream) => InputStream { stream, descriptors, disposal: dispatcher.disposal.clone() },
            Err(error) => return setup_failed(&info, error, dispatcher),
        };
        let mut header = Vec::new();
        let outcome = read_header_before(&stream, &mut header, deadline(&session), &mut cancelled).await;
        let now = clock();
        match outcome {
            HeaderOutcome::Header(client) => {
                session.note_activity(now);
                info.peer = client.map_or(info.peer, Peer::Proxied);
                let held = permit.claim(info.peer.source());
                let claimed = if held { Ok(()) } else { dispatcher.claim_or_refuse(&mut permit, &mut cancelled).await };
                if let Err(verdict) = claimed {
                    permit = match permit.refuse() {
                        Ok(permit) => permit,
                        Err(permit) => return stream.close(permit),
                    };
                    session.refuse(verdict, now);
                }
            }
            HeaderOutcome::Invalid(fault) => {
                let excerpt = header[..header.len().min(MAX_EXCERPT)].to_vec();
                let bad_header = BadHeader { fault, excerpt, len: header.len() as u64 };
                return reject(stream, bad_header, &info, session.opened(), permit, &mut cancelled, worker).await;
            }
            HeaderOutcome::ClosedEarly => {}
            HeaderOutcome::Broken => session.handle_reset(),
            HeaderOutcome::Cancelled => session.drain(now),
        }
        let socket = match stream.into_socket() {
            Ok(socket) => socket,
            Err(error) => return setup_failed(&info, error, dispatcher),
        };
        permit.stop_awaiting_header();
        let Some(worker) = dispatcher.least_loaded_worker() else { return };
        worker.serve(Box::new(Connection::new(socket, session, info, worker, permit)));
    }
}

fn setup_failed(info: &ConnectionInfo, error: io::Error, dispatcher: &Dispatcher) {
    let listener = Arc::clone(&info.listener.name);
    (dispatcher.handle_event)(Event::SetupFailed { listener, peer: info.peer, error });
}

/// Until when the header of a connection that has just begun has to be there.
fn deadline(session: &Session) -> Instant {
    let limit = session.rules().deadlines.read.as_ref().map_or(DEFAULT_TIMEOUT, TimeSpan::duration);
    session.opened().checked_add(limit).unwrap_or_else(|| session.opened() + DEFAULT_TIMEOUT)
}

/// Waits for the header until the deadline, or until it is cancelled, and consumes it. What was consumed is in
/// `header`.
async fn read_header_before(
    stream: &InputStream,
    header: &mut Vec<u8>,
    until: Instant,
    cancelled: &mut watch::Receiver<bool>,
) -> HeaderOutcome {
    tokio::select! {
        // What came while this process was stopped is not late.
        biased;
        outcome = read_header(stream, header) => outcome,
        () = time::sleep_until(until.into()) => HeaderOutcome::Invalid(HeaderFault::Timeout),
        // An error means that the server is gone.
        _ = cancelled.wait_for(|cancelled| *cancelled) => HeaderOutcome::Cancelled,
    }
}

/// Waits for the header, and consumes it.
async fn read_header(stream: &InputStream, header: &mut Vec<u8>) -> HeaderOutcome {
    loop {
        if stream.stream.readable().await.is_err() {
            return HeaderOutcome::Broken;
        }
        match stream.stream.try_io(Interest::READABLE, || read_available(stream, header)) {
            Ok(Some(HeaderParse::Complete { client, .. })) => return HeaderOutcome::Header(client),
            Ok(Some(HeaderParse::Invalid(fault))) => return HeaderOutcome::Invalid(fault),
            // There may be more.
            Ok(Some(HeaderParse::Incomplete)) => {}
            Ok(None) if header.is_empty() => return HeaderOutcome::ClosedEarly,
            // It ended in the middle.
            Ok(None) => return HeaderOutcome::Invalid(HeaderFault::Malformed),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return HeaderOutcome::Broken,
        }
    }
}

/// Consumes what has come of the header, adds it to `header`, and parses that; `None` at the end of the stream. Bytes
/// behind a header are not consumed.
fn read_available(stream: &InputStream, header: &mut Vec<u8>) -> io::Result<Option<HeaderParse>> {
    let mut buffer = [0; MAX_HEADER];
    let room = MAX_HEADER - header.len();
    let (count, _) = retry_on_intr(|| recv(&stream.stream, &mut buffer[..room], RecvFlags::PEEK))?;
    if count == 0 {
        return Ok(None);
    }
    let consumed = header.len();
    header.extend_from_slice(&buffer[..count]);
    let parsed = HeaderParse::parse(header);
    if let HeaderParse::Complete { len, .. } = parsed {
        header.truncate(len);
    }
    consume(stream, header.len() - consumed)?;
    Ok(Some(parsed))
}

/// Consumes so many bytes of the stream, which are there already.
fn consume(stream: &InputStream, len: usize) -> io::Result<()> {
    let mut bytes = [0; MAX_HEADER];
    let mut consumed = 0;
    while consumed < len {
        let count = stream.receive(&mut bytes[consumed..len])?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        consumed += count;
    }
    Ok(())
}

/// A connection that is read before it is served.
struct InputStream {
    stream: UnixStream,
    descriptors: PeerDescriptors,
    disposal: Disposal,
}

impl InputStream {
    /// Receives bytes, and has descriptors closed that came with them.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.descriptors == PeerDescriptors::None {
            return Ok(retry_on_intr(|| recv(&self.stream, &mut *buffer, RecvFlags::empty()))?.0);
        }
        if self.disposal.is_full() {
            // There are none where there is no room for them: a peer that sends some is not waited for.
            let count = peer_descriptors::receive_before_descriptors(&self.stream, buffer)?;
            return count.ok_or_else(|| ErrorKind::ResourceBusy.into());
        }
        let (count, descriptors) = peer_descriptors::receive(&self.stream, buffer)?;
        if !descriptors.is_empty() {
            self.disposal.dispose(descriptors, Waker::noop().clone());
        }
        Ok(count)
    }

    fn into_socket(self) -> io::Result<AcceptedSocket> {
        Ok(AcceptedSocket { socket: self.stream.into_std()?.into(), descriptors: self.descriptors })
    }

    /// Closes the socket, and then releases the permit: [`AcceptedSocket::close`].
    fn close(self, permit: Permit) {
        let disposal = self.disposal.clone();
        if let Ok(socket) = self.into_socket() {
            socket.close(&disposal, permit);
        }
    }
}

/// Closes a connection without a header, and reports it. It holds no place any longer.
async fn reject(
    stream: InputStream,
    mut bad_header: BadHeader,
    info: &ConnectionInfo,
    opened: Instant,
    permit: Permit,
    cancelled: &mut watch::Receiver<bool>,
    worker: &Worker,
) {
    let permit = match permit.refuse() {
        Ok(permit) => {
            bad_header.len += linger(&stream, cancelled).await;
            permit
        }
        // There are many of them: it is closed at once.
        Err(permit) => permit,
    };
    let (verdict, totals) = (Verdict::BadProxyHeader, Totals { bytes_in: bad_header.len, ..Totals::default() });
    worker.counters.count_accepted();
    worker.counters.count_totals(Totals::default(), totals);
    worker.counters.count_ended(verdict);
    (worker.sink.handle_event)(Event::Closed {
        id: info.id,
        listener: Arc::clone(&info.listener.name),
        peer: info.peer,
        verdict,
        totals,
        age: clock().saturating_duration_since(opened),
        bad_header: Some(bad_header),
    });
    // Last, since the server may end when the permit is released, and the connection has to be counted by then.
    stream.close(permit);
}

/// Ends our stream, and drops what still comes: closing with unread input would reset the connection. Returns how many
/// bytes came.
async fn linger(stream: &InputStream, cancelled: &mut watch::Receiver<bool>) -> u64 {
    // A peer that is gone does not mind; the next read says so.
    let _ = shutdown(&stream.stream, Shutdown::Write);
    let mut dropped = 0;
    let drop_input = async {
        while dropped < u64::from(LINGER_BYTES) && stream.stream.readable().await.is_ok() {
            let mut buffer = [0; MAX_HEADER];
            let received = stream.stream.try_io(Interest::READABLE, || stream.receive(&mut buffer));
            match received {
                Ok(0) => break,
                Ok(count) => dropped += count as u64,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
        }
    };
    tokio::select! {
        biased;
        () = drop_input => {}
        () = time::sleep(LINGER) => {}
        // An error means that the server is gone.
        _ = cancelled.wait_for(|cancelled| *cancelled) => {}
    }
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::rules::{Deadlines, Rules};

    /// How long it takes until a connection without a header is given up.
    async fn header_timeout(read: Option<TimeSpan>) -> Duration {
        let (_silent, stream) = UnixStream::pair().unwrap();
        let (begun, cancelled) = (time::Instant::now(), watch::Sender::new(false));
        let rules = Rules { deadlines: Deadlines { read, ..Deadlines::default() }, ..Rules::default() };
        let session = Session::new(rules.into(), begun.into());
        let mut header = Vec::new();
        let stream = InputStream { stream, descriptors: PeerDescriptors::None, disposal: Disposal::default() };
        let outcome = read_header_before(&stream, &mut header, deadline(&session), &mut cancelled.subscribe()).await;
        assert_eq!((outcome, header), (HeaderOutcome::Invalid(HeaderFault::Timeout), Vec::new()));
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_has_the_read_deadline_or_else_10_s() {
        for (read, expected) in [(Some(2), 2), (Some(60), 60), (None, 10)] {
            let took = header_timeout(read.map(|read| TimeSpan::new(Duration::from_secs(read), "so long"))).await;
            // The timer is as fine as a millisecond.
            assert_eq!(took.as_secs(), expected, "{took:?}");
        }
    }
}
