//! Workers: each is a thread with one event loop and its connections. A connection stays on its worker, and its messages touch
//! no data that other threads write.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::connection::{Connection, DetachedConnection};
use super::disposal::Disposal;
use super::event::EventSink;
use super::event_loop::EventLoop;
use super::idleness::IdleReport;
use super::listener::Listener;
use super::listing::{CloseOutcome, CloseRequest, Slice, SliceRequest};
use super::mailbox::{Acceptor, Mailbox, Reclaim};
use super::worker_state::WorkerState;

/// A thread that does not respond for this time hangs. A drive takes far less than a millisecond, so even a very busy machine
/// does not reach it.
pub(crate) const HANG_TIMEOUT: Duration = Duration::from_secs(2);

/// The interface of a worker for other threads. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub(crate) state: Arc<WorkerState>,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Worker {
    /// Passes a connection to the event loop.
    pub(crate) fn serve(&self, connection: Box<Connection>) {
        self.mailbox.post(|commands| commands.accepted.push(connection));
    }

    /// Passes connections that were restored from the previous process to the event loop.
    #[expect(clippy::vec_box, reason = "where they are now is where they stay")]
    pub(crate) fn restore(&self, connections: Vec<Box<Connection>>) {
        self.mailbox.post(|commands| commands.restored.extend(connections));
    }

    /// Passes an acceptor to the event loop.
    pub(crate) fn accept(&self, acceptor: Box<dyn Acceptor>) {
        self.mailbox.post(|commands| commands.acceptors.push(acceptor));
    }

    /// Makes the event loop run all its acceptors.
    pub(crate) fn run_acceptors(&self) {
        self.mailbox.post(|commands| commands.run_acceptors = true);
    }

    /// Makes the event loop detach all its connections, including those that are still in the mailbox. The receiver gets them.
    pub(crate) fn detach(&self) -> oneshot::Receiver<Vec<DetachedConnection>> {
        let (answer, detached) = oneshot::channel();
        self.mailbox.post(|commands| commands.detach = Some(answer));
        detached
    }

    /// Makes the event loop close the connections of these listeners.
    pub(crate) fn close_listeners(&self, listeners: &[Arc<Listener>]) {
        self.mailbox.post(|commands| commands.close_listeners.extend_from_slice(listeners));
    }

    /// Waits until the event loop has driven all connections that are ready now. Afterwards, connections that their peers had
    /// closed have ended.
    pub(crate) async fn barrier(&self) {
        let (answer, answered) = oneshot::channel();
        self.mailbox.post(|commands| commands.barriers.push(answer));
        // The event loop drops the sender, so an error means that the barrier is passed.
        let _ = answered.await;
    }

    /// Waits until the event loop has run its commands, which it does in each pass.
    pub(crate) async fn ping(&self) {
        let (answer, answered) = oneshot::channel();
        self.mailbox.post(|commands| commands.pings.push(answer));
        // The event loop drops the sender, so an error means that it has responded, or has ended.
        let _ = answered.await;
    }

    /// Returns the idle connections; none if the worker has ended.
    pub(crate) async fn report_idle(&self) -> IdleReport {
        let (answer, answered) = oneshot::channel();
        self.mailbox.post(|commands| commands.idle_reports.push(answer));
        answered.await.unwrap_or_default()
    }

    /// Closes a connection if it has been idle since `since`. Returns whether it did. The permit is released now, or when the
    /// descriptors that its peer sent are closed.
    pub(crate) async fn reclaim(&self, key: usize, id: u64, since: Instant) -> bool {
        let (answer, answered) = oneshot::channel();
        self.mailbox.post(|commands| commands.reclaims.push(Reclaim { key, id, since, answer }));
        answered.await.unwrap_or(false)
    }

    /// Returns a slice of the connections; an empty last one if the worker has ended.
    pub(crate) async fn list(&self, from: usize) -> Slice {
        let (answer, answered) = oneshot::channel();
        self.mailbox.post(|commands| commands.slices.push(SliceRequest { from, answer }));
        answered.await.unwrap_or_default()
    }

    /// Closes a connection for an administrator, if it is in the slice from `from` on.
    pub(crate) async fn close_connection(&self, id: u64, from: usize) -> CloseOutcome {
        let (answer, answered) = oneshot::channel();
        self.mailbox.post(|commands| commands.closes.push(CloseRequest { id, from, answer }));
        // An error means that the worker has ended.
        answered.await.unwrap_or(CloseOutcome::NotFound)
    }

    /// Drains every connection.
    pub(crate) fn drain(&self) {
        self.state.drain();
        self.mailbox.post(|commands| commands.drain = true);
    }

    /// Gives up the connections whose messages are not logged because their peers do not read. These messages are then logged,
    /// and not answered.
    pub(crate) fn give_up_blocked(&self) {
        self.mailbox.post(|commands| commands.give_up_blocked = true);
    }
}

/// The thread of a worker. Dropping this ends the thread and its connections. A thread that hangs is left running.
pub(crate) struct WorkerThread {
    pub(crate) worker: Worker,
    /// `None` once the thread has it.
    event_loop: Option<Box<EventLoop>>,
    thread: Option<Thread>,
}

/// A running thread.
struct Thread {
    handle: JoinHandle<()>,
    /// Disconnected when the thread has ended.
    done: mpsc::Receiver<Infallible>,
}

impl WorkerThread {
    /// Creates the worker with this number, whose thread is not started yet.
    ///
    /// # Errors
    /// Returns an error if the epoll set or the mailbox cannot be created.
    pub(crate) fn new(number: usize, sink: &EventSink, disposal: &Disposal) -> io::Result<Self> {
        let (state, mailbox) = (WorkerState::new(number, sink.clone(), disposal.clone()), Mailbox::new()?);
        let worker = Worker { state: Arc::new(state), mailbox: Arc::new(mailbox) };
        let event_loop = EventLoop::new(Arc::clone(&worker.mailbox), Arc::clone(&worker.state))?;
        Ok(Self { worker, event_loop: Some(Box::new(event_loop)), thread: None })
    }

    /// Runs one pass of the event loop on the calling thread, without waiting, if the worker's thread is not started.
    pub(crate) fn pass_once(&mut self) {
        if let Some(event_loop) = &mut self.event_loop {
            // The mailbox cannot contain a command to stop yet.
            event_loop.pass_once();
        }
    }

    /// Starts the thread, if it is not running.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be created. The event loop is kept for another attempt.
    pub(crate) fn start(&mut self, number: usize) -> io::Result<()> {
        if self.thread.is_some() {
            return Ok(());
        }
        let (give, take) = mpsc::channel::<Box<EventLoop>>();
        let (running, done) = mpsc::channel();
        let handle = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            if let Ok(event_loop) = take.recv() {
                event_loop.run();
            }
            drop(running);
        })?;
        if let Some(event_loop) = self.event_loop.take() {
            // Cannot fail: the thread waits for the event loop.
            let _ = give.send(event_loop);
        }
        self.thread = Some(Thread { handle, done });
        Ok(())
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        if let Some(Thread { handle, done }) = self.thread.take() {
            self.worker.mailbox.post(|commands| commands.stop = true);
            join(&done, Some(handle));
        }
    }
}

/// Waits for the end of a thread that was told to end, for [`HANG_TIMEOUT`] at most. The thread disconnects `done` when it
/// ends.
pub(crate) fn join(done: &mpsc::Receiver<Infallible>, thread: Option<JoinHandle<()>>) {
    if done.recv_timeout(HANG_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
        return;
    }
    if let Some(thread) = thread {
        // A panic has already been reported.
        let _ = thread.join();
    }
}
