//! Accepts connections: one acceptor for each listener, all on the first worker, for all workers. (If every worker polled a
//! listener, each connection would wake all of them.) An acceptor acquires a permit before it accepts, so connections beyond
//! the limit wait in the backlog. The exception is a connection for which an idle one may be closed (`reclaim.rs`): that
//! depends on its source, which is known only after accept(2).

use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};

use super::accept_mode::{AcceptControl, AcceptMode};
use super::admission::{Permit, Shortage, WaitingAcceptor};
use super::clock::clock;
use super::connection::Connection;
use super::dispatch::Dispatcher;
use super::event::{Event, Retry};
use super::listener::{Listener, ListenerHandle};
use super::listener_error::{self, Backoff, ListenerErrorKind, MAX_PAUSE};
use super::mailbox::{Acceptor, NextRun};
use super::peer_descriptors::PeerDescriptors;
use super::receive_buffer::ReceiveBuffer;
use super::reclaim;
use super::socket_options;
use super::worker_state::WorkerState;

/// The maximum number of connections that an acceptor accepts before the connections of the first worker are driven again.
const BATCH: usize = 32;

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Accepts the connections of one listener.
pub(crate) struct ListenerAcceptor {
    /// `None` only while it is dropped.
    socket: Option<OwnedFd>,
    listener: Arc<ListenerHandle>,
    dispatcher: Arc<Dispatcher>,
    /// The state of the worker that runs this acceptor.
    state: Arc<WorkerState>,
    control: AcceptControl,
    /// Whether the acceptor has been run.
    has_begun: bool,
    /// The settings whose options are set on the socket, and the receive buffer that connections inherit with them.
    applied: Option<(Arc<Listener>, Option<ReceiveBuffer>)>,
    /// Whether the next connection has inherited the options. Connections that were already in the backlog have not, and come
    /// first.
    inherits: bool,
    backoff: Backoff,
    /// The end of the pause after repeated errors.
    paused_until: Option<Instant>,
    /// Whether adding the socket to the epoll set failed the last time.
    watch_failed: bool,
    /// Set while a client waits for another connection to be closed.
    waiting: Option<WaitingAcceptor>,
    /// The error that ended the listener.
    failure: Option<io::Error>,
}

impl ListenerAcceptor {
    /// Creates the acceptor of a listening, non-blocking socket on which the options of its settings are set. `state` is that
    /// of the worker that will run the acceptor.
    pub(crate) fn new(
        socket: OwnedFd,
        listener: Arc<ListenerHandle>,
        dispatcher: Arc<Dispatcher>,
        state: Arc<WorkerState>,
        control: AcceptControl,
    ) -> Self {
        let settings = listener.load();
        let receive_buffer = ReceiveBuffer::inherited_from(&socket, settings.settings.receive_buffer);
        Self {
            socket: Some(socket),
            listener,
            dispatcher,
            state,
            control,
            has_begun: false,
            applied: Some((settings, receive_buffer)),
            inherits: false,
            backoff: Backoff::default(),
            paused_until: None,
            watch_failed: false,
            waiting: None,
            failure: None,
        }
    }

    fn socket(&self) -> &OwnedFd {
        let Some(socket) = &self.socket else { unreachable!("it is there until the drop") };
        socket
    }

    /// Accepts the connections in the backlog, at most [`BATCH`] of them, while permits are available.
    ///
    /// # Errors
    /// Returns an error if the listener failed.
    fn accept(
        &mut self,
        flags: EventFlags,
        now: Instant,
        serve: &mut dyn FnMut(Box<Connection>),
    ) -> io::Result<NextRun> {
        if let Some(until) = self.paused_until.filter(|until| now < *until) {
            return Ok(NextRun::Paused(Some(until)));
        }
        self.paused_until = None;
        let listener = self.listener.load();
        if !mem::replace(&mut self.has_begun, true) {
            self.apply_options(&listener);
            return Ok(NextRun::Ready);
        }
        if let Some(next) = self.wait_for_permit(&listener, flags, now) {
            return Ok(next);
        }
        if listener.descriptors != PeerDescriptors::None && !self.dispatcher.has_disposal_room() {
            return Ok(NextRun::Paused(None));
        }
        self.apply_options(&listener);
        let (mut accepting, mut ends_are_watched, mut failure) = (false, false, None);
        for _ in 0..BATCH {
            let Some(permit) = self.dispatcher.try_acquire(&listener) else { break };
            let error = match accept_one(self.socket()) {
                Ok((socket, from)) => {
                    self.backoff.record_success();
                    accepting = true;
                    self.admit(socket, from, &listener, self.inherited(), permit, serve);
                    continue;
                }
                Err(error) => error,
            };
            permit.release_unused();
            if error.kind() == ErrorKind::WouldBlock {
                self.inherits = self.applied.is_some();
                if listener_error::is_shut_down(flags) {
                    return Err(listener_error::shut_down_error());
                }
                self.backoff.record_success();
                // Linux allocates a descriptor before it checks the accept queue, so EAGAIN, too, means that there are enough.
                accepting = true;
                break;
            }
            listener.count_accept_error(&error);
            match ListenerErrorKind::of(&error) {
                ListenerErrorKind::Fatal => return Err(listener_error::explain(error, self.socket())),
                ListenerErrorKind::ResourcesExhausted if !ends_are_watched => {
                    // One more call follows, because a descriptor may have become free just before ends were watched.
                    self.dispatcher.admission.wake_acceptors_at_end();
                    ends_are_watched = true;
                    continue;
                }
                ListenerErrorKind::ResourcesExhausted => failure = Some((error, Retry::ConnectionEnded)),
                ListenerErrorKind::Transient => match self.backoff.record_error() {
                    Some(pause) => failure = Some((error, Retry::After(pause))),
                    None => continue,
                },
            }
            break;
        }
        self.watch_failed &= flags.is_empty();
        if accepting && failure.is_none() && !self.watch_failed && self.backoff.report_end() {
            let (listener, kind) = (Arc::clone(&listener.name), listener.kind);
            self.report(Event::AcceptResumed { listener, kind });
        }
        let Some((error, retry)) = failure else {
            if let Some(shortage) = self.dispatcher.admission.shortage(listener.awaits_header()) {
                self.dispatcher.admission.report_shortage(shortage, |event| self.report(event));
            }
            return Ok(NextRun::Ready);
        };
        Ok(self.pause(error, retry, now))
    }

    /// Serves or refuses a connection. Its deadlines count from now, because the client may have connected after the pass of
    /// the event loop began.
    fn admit(
        &self,
        socket: OwnedFd,
        from: Option<SocketAddrAny>,
        listener: &Arc<Listener>,
        inherited: Option<ReceiveBuffer>,
        permit: Permit,
        serve: &mut dyn FnMut(Box<Connection>),
    ) {
        let assigned = self.dispatcher.admit(socket, from, listener, inherited, permit, &self.state, clock());
        let Some(assigned) = assigned else { return };
        if Arc::ptr_eq(&assigned.worker.state, &self.state) {
            serve(assigned.connection);
        } else {
            assigned.deliver();
        }
    }

    /// Sets the options of the settings on the socket, if they are not set yet.
    fn apply_options(&mut self, listener: &Arc<Listener>) {
        if !self.applied.as_ref().is_some_and(|(applied, _)| Arc::ptr_eq(applied, listener)) {
            self.inherits = false;
            // If this fails, each connection sets the options itself, and reports the error.
            let set = socket_options::set(self.socket(), &listener.settings);
            let receive_buffer = ReceiveBuffer::inherited_from(self.socket(), listener.settings.receive_buffer);
            self.applied = set.is_ok().then(|| (Arc::clone(listener), receive_buffer));
        }
    }

    /// Returns the receive buffer that the next connection has inherited. `None`: the connection has to be asked, and needs the
    /// options set.
    fn inherited(&self) -> Option<ReceiveBuffer> {
        self.applied.as_ref().filter(|_| self.inherits).and_then(|(_, receive_buffer)| *receive_buffer)
    }

    /// Returns what to wait for if [`Dispatcher::try_acquire`] would return `None`. If all permits are taken and a client
    /// waits, starts to close an idle connection for it.
    fn wait_for_permit(&mut self, listener: &Listener, flags: EventFlags, now: Instant) -> Option<NextRun> {
        let admission = Arc::clone(&self.dispatcher.admission);
        let shortage = || admission.shortage(listener.awaits_header());
        // Stored again below if its client still waits.
        let waiting = self.waiting.take();
        let reason = shortage()?;
        admission.report_shortage(reason, |event| self.report(event));
        // Before the second check, so that no released permit goes unnoticed.
        admission.wake_acceptors_at_end();
        let is_shut_down = listener_error::is_shut_down(flags);
        if reason != Shortage::Connections || !self.dispatcher.reclaimer.is_on() || is_shut_down {
            return shortage().map(|_| NextRun::Paused(None));
        }
        if self.dispatcher.decides_before_reclaim(listener) {
            let must_wait = || shortage().is_some() && !admission.may_accept_undecided();
            return match client_waits(self.socket()) {
                _ if shortage().is_none() => None,
                // The client is accepted without a permit.
                true => must_wait().then_some(NextRun::Paused(None)),
                false => Some(NextRun::Ready),
            };
        }
        if !client_waits(self.socket()) {
            return shortage().map(|_| NextRun::Ready);
        }
        self.waiting = Some(waiting.unwrap_or_else(|| admission.wait_with_client()));
        shortage().map(|_| {
            self.dispatcher.start_reclaim();
            NextRun::Paused(Some(now + reclaim::RETRY))
        })
    }

    /// Pauses after an error, and reports the first pause of a series.
    fn pause(&mut self, error: io::Error, retry: Retry, now: Instant) -> NextRun {
        if self.backoff.report_pause() {
            let Listener { ref name, kind, .. } = *self.listener.load();
            self.report(Event::AcceptPaused { listener: Arc::clone(name), kind, error, retry });
        }
        match retry {
            // The cause may also pass without the end of a connection.
            Retry::ConnectionEnded => NextRun::Paused(Some(now + MAX_PAUSE)),
            Retry::After(pause) => {
                self.paused_until = Some(now + pause);
                NextRun::Paused(self.paused_until)
            }
        }
    }

    /// Probes the backlog, and accepts the first connection in it. Returns `false` if the backlog is empty, `true` if it is
    /// not, or if that could not be determined.
    fn probe(&self, serve: &mut dyn FnMut(Box<Connection>)) -> bool {
        let listener = self.listener.load();
        let Some(permit) = self.dispatcher.admission.try_acquire(listener.awaits_header()) else { return true };
        match accept_one(self.socket()) {
            Ok((socket, from)) => {
                self.admit(socket, from, &listener, None, permit, serve);
                true
            }
            Err(error) => {
                permit.release_unused();
                let is_empty = error.kind() == ErrorKind::WouldBlock;
                if !is_empty {
                    listener.count_accept_error(&error);
                }
                !is_empty
            }
        }
    }

    fn report(&self, event: Event) {
        self.state.sink.report(event);
    }
}

/// Closes the socket, and reports the error if the listener has failed.
impl Drop for ListenerAcceptor {
    fn drop(&mut self) {
        let listener = self.listener.load();
        let socket = self.socket.take();
        if listener.descriptors == PeerDescriptors::None {
            drop(socket);
        } else if let Some(socket) = socket {
            // If no other process holds the socket, closing it also closes the connections in its backlog, which may
            // have descriptors queued.
            self.state.disposal.close(socket, None);
        }
        self.waiting = None;
        let failure = self.failure.take();
        let has_failed = failure.is_some();
        if let Some(error) = failure {
            self.report(Event::ListenerFailed { listener: Arc::clone(&listener.name), error });
        }
        self.control.status.send_modify(|status| status.record_end(has_failed));
    }
}

impl Acceptor for ListenerAcceptor {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }

    fn run(&mut self, flags: EventFlags, now: Instant, serve: &mut dyn FnMut(Box<Connection>)) -> NextRun {
        // An error means that the server has been dropped.
        let Ok(is_new) = self.control.mode.has_changed() else { return NextRun::Never };
        let mode = *self.control.mode.borrow_and_update();
        match mode {
            AcceptMode::Accept => match self.accept(flags, now, serve) {
                Ok(next) => next,
                Err(error) => {
                    self.failure = Some(error);
                    NextRun::Never
                }
            },
            AcceptMode::Probe => {
                if is_new {
                    let found_client = self.probe(serve);
                    self.control.status.send_modify(|status| status.record_probe(found_client));
                }
                NextRun::Paused(None)
            }
            AcceptMode::Stop => NextRun::Never,
        }
    }

    fn watch_failed(&mut self, error: io::Error, now: Instant) -> Instant {
        self.dispatcher.admission.wake_acceptors_at_end();
        self.watch_failed = true;
        self.pause(error, Retry::ConnectionEnded, now);
        now + MAX_PAUSE
    }
}

/// A connection that another process accepted. It is dispatched in the first run of this acceptor.
pub(crate) struct AdoptedConnection {
    /// `None` once the connection is dispatched.
    pub(crate) accepted: Option<(OwnedFd, Permit)>,
    pub(crate) listener: Arc<Listener>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    /// The state of the worker that runs this acceptor.
    pub(crate) state: Arc<WorkerState>,
}

impl Acceptor for AdoptedConnection {
    fn socket(&self) -> BorrowedFd<'_> {
        unreachable!("it is run once")
    }

    fn run(&mut self, _: EventFlags, now: Instant, serve: &mut dyn FnMut(Box<Connection>)) -> NextRun {
        if let Some((socket, permit)) = self.accepted.take() {
            let assigned = self.dispatcher.admit(socket, None, &self.listener, None, permit, &self.state, now);
            match assigned {
                Some(assigned) if Arc::ptr_eq(&assigned.worker.state, &self.state) => serve(assigned.connection),
                Some(assigned) => assigned.deliver(),
                None => {}
            }
        }
        NextRun::Never
    }

    fn watch_failed(&mut self, _: io::Error, now: Instant) -> Instant {
        now
    }
}

/// Returns whether a client waits in the backlog. Returns `false` for a socket that was shut down.
fn client_waits(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::IN | PollFlags::RDHUP)];
    // After an error, a client may be waiting.
    match poll(&mut polled, Some(&NO_WAIT)) {
        Ok(0) => false,
        Ok(_) => !polled[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP),
        Err(_) => true,
    }
}

fn accept_one(socket: impl AsFd) -> io::Result<(OwnedFd, Option<SocketAddrAny>)> {
    Ok(acceptfrom_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;
    use std::task::Waker;

    use tokio::sync::watch;

    use super::*;
    use crate::config::Settings;
    use crate::protocol::rules::TimeSpan;
    use crate::server::accept_mode::AcceptorStatus;
    use crate::server::admission::Admission;
    use crate::server::awaiting_headers::AwaitingHeaders;
    use crate::server::counters::CounterRegistry;
    use crate::server::disposal::Disposal;
    use crate::server::event::{EventSink, MessageLog, ReceivedMessage};
    use crate::server::mailbox::Mailbox;
    use crate::server::packets::rate_limit::RateLimiter;
    use crate::server::reclaim::Reclaimer;
    use crate::server::services::Services;
    use crate::server::socket::SocketKind;
    use crate::server::worker::Worker;

    struct NoLog;

    impl MessageLog for NoLog {
        fn try_append(&self, _: ReceivedMessage<'_>, _: &Waker) -> bool {
            true
        }
    }

    #[test]
    fn a_connection_begins_when_it_is_accepted_and_not_with_the_pass_that_accepts_it() {
        let Settings { defaults: settings, limits, .. } = Settings::default();
        let idle = settings.rules.deadlines.idle.as_ref().map(TimeSpan::duration).unwrap();
        let sink = EventSink { handler: Arc::new(|_| {}), message_log: Arc::new(NoLog), unlogged: Arc::default() };
        let new_state = |number| WorkerState::new(number, sink.clone(), Disposal::default());
        let state = Arc::new(new_state(0));
        let dispatcher = Dispatcher {
            admission: Admission::new(&limits, Waker::noop().clone()),
            workers: vec![Worker { state: Arc::clone(&state), mailbox: Arc::new(Mailbox::new().unwrap()) }],
            services: Arc::new(Services::new(new_state(1))),
            sink: sink.clone(),
            counters: CounterRegistry::new(2),
            last_id: AtomicU64::new(0),
            rate_limiter: RateLimiter::new(None),
            reclaimer: Reclaimer::new(None),
            acceptors: Waker::noop().clone(),
            reclaim: Mutex::default(),
            pending_cancelled: watch::Sender::new(false),
            awaiting_headers: AwaitingHeaders::default(),
        };
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let counters = dispatcher.counters.of_listener("echo");
        let listener = Listener::new("echo", SocketKind::Stream, PeerDescriptors::None, &settings, counters);
        let listener = Arc::new(ListenerHandle::new(listener));
        let (mode, status) = (watch::Sender::new(AcceptMode::Accept), Arc::<watch::Sender<AcceptorStatus>>::default());
        status.send_modify(|status| status.serving += 1);
        let control = AcceptControl { mode: mode.subscribe(), status };
        let mut acceptor = ListenerAcceptor::new(socket.into(), listener, Arc::new(dispatcher), state, control);

        let pass_began = clock();
        // The first run only prepares the socket.
        acceptor.run(EventFlags::empty(), pass_began, &mut |_| {});
        let _client = TcpStream::connect(address).unwrap();
        let connected = clock();
        let mut accepted = Vec::new();
        acceptor.run(EventFlags::IN, pass_began, &mut |connection| accepted.push(connection));
        assert_eq!(accepted.len(), 1);
        assert!(accepted[0].deadline().unwrap() >= connected + idle);
    }
}
