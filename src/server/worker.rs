//! Workers: each a thread with an event loop and its connections. A connection lives and ends on its worker; nothing on its
//! way from socket to socket is shared with another thread.

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
use super::mailbox::{Acceptor, Mailbox, Reclaim};
use super::worker_state::WorkerState;

/// A thread that does not respond for so long at the end hangs. A drive takes far less than a millisecond, so this is
/// time for a machine that is very busy.
pub(crate) const HANG_TIMEOUT: Duration = Duration::from_secs(2);

/// What can be asked of a worker, from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub(crate) state: Arc<WorkerState>,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Worker {
    /// Has the event loop serve a connection.
    pub(crate) fn serve(&self, connection: Box<Connection>) {
        self.mailbox.post(|commands| commands.accepted.push(connection));
    }

    /// Has the event loop serve connections that were restored from the previous process.
    #[expect(clippy::vec_box, reason = "where they are now is where they stay")]
    pub(crate) fn restore(&self, connections: Vec<Box<Connection>>) {
        self.mailbox.post(|commands| commands.restored.extend(connections));
    }

    /// Has the event loop run an acceptor.
    pub(crate) fn accept(&self, acceptor: Box<dyn Acceptor>) {
        self.mailbox.post(|commands| commands.acceptors.push(acceptor));
    }

    /// Has the event loop run all its acceptors.
    pub(crate) fn run_acceptors(&self) {
        self.mailbox.post(|commands| commands.run_acceptors = true);
    }

    /// Has the event loop detach all its connections, including those that are still in the mailbox.
    pub(crate) fn detach(&self) -> oneshot::Receiver<Vec<DetachedConnection>> {
        let (answer, detached) = oneshot::channel();
        self.mailbox.post(|commands| commands.detach = Some(answer));
        detached
    }

    /// Has the event loop end the connections of these listeners.
    pub(crate) fn close_listeners(&self, listeners: &[Arc<Listener>]) {
        self.mailbox.post(|commands| commands.close_listeners.extend_from_slice(listeners));
    }

    /// Waits until the event loop has driven all connections that are ready by now. So connections that their peers have
    /// closed have ended.
    pub(crate) async fn barrier(&self) {
        let (answer, answered) = oneshot::channel();
        self.mailbox.post(|commands| commands.barriers.push(answer));
        // There is an error when it is done.
        let _ = answered.await;
    }

    /// Waits until the event loop runs commands, which it does in each pass.
    pub(crate) async fn ping(&self) {
        let (answer, answered) = oneshot::channel();
        self.mailbox.post(|commands| commands.pings.push(answer));
        // There is an error when it is done, and when the worker is gone, with everything else.
        let _ = answered.await;
    }

    /// Returns which connections are idle; nothing if the worker is gone.
    pub(crate) async fn report_idle(&self) -> IdleReport {
        let (answer, answered) = oneshot::channel();
        self.mailbox.post(|commands| commands.idle_reports.push(answer));
        answered.await.unwrap_or_default()
    }

    /// Closes a connection that has been idle since then, if it still is. Returns whether it ends: its permit is free now, or
    /// as soon as the descriptors that its peer sent are closed.
    pub(crate) async fn reclaim(&self, key: usize, id: u64, since: Instant) -> bool {
        let (answer, answered) = oneshot::channel();
        self.mailbox.post(|commands| commands.reclaims.push(Reclaim { key, id, since, answer }));
        answered.await.unwrap_or(false)
    }

    /// Drains every connection.
    pub(crate) fn drain(&self) {
        self.state.drain();
        self.mailbox.post(|commands| commands.drain = true);
    }

    /// Gives up the connections whose peers do not read, so that their messages are not logged: they are logged, and not answered.
    pub(crate) fn give_up_blocked(&self) {
        self.mailbox.post(|commands| commands.give_up_blocked = true);
    }
}

/// The thread of a worker. It ends, and with it all that still runs on it, when this is dropped. If the thread hangs,
/// it is left running.
pub(crate) struct WorkerThread {
    pub(crate) worker: Worker,
    /// There until the thread has it.
    event_loop: Option<Box<EventLoop>>,
    thread: Option<Thread>,
}

/// A thread that runs.
struct Thread {
    handle: JoinHandle<()>,
    /// There is an error when it is done.
    done: mpsc::Receiver<Infallible>,
}

impl WorkerThread {
    /// Makes a worker, whose thread is to be started.
    ///
    /// # Errors
    /// Returns an error if its epoll set or its mailbox cannot be made.
    pub(crate) fn new(sink: &EventSink, disposal: &Disposal) -> io::Result<Self> {
        let (state, mailbox) = (WorkerState::new(sink.clone(), disposal.clone()), Mailbox::new()?);
        let worker = Worker { state: Arc::new(state), mailbox: Arc::new(mailbox) };
        let event_loop = EventLoop::new(Arc::clone(&worker.mailbox), Arc::clone(&worker.state))?;
        Ok(Self { worker, event_loop: Some(Box::new(event_loop)), thread: None })
    }

    /// Runs one pass of the event loop on this thread, without waiting, if its own is not started.
    pub(crate) fn pass_once(&mut self) {
        if let Some(event_loop) = &mut self.event_loop {
            // No command to stop can be in its mailbox yet.
            event_loop.pass_once();
        }
    }

    /// Starts the thread, if it is not started.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be made. The event loop stays here then.
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
            // The thread waits for it.
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

/// Waits for the end of a thread that was told to end, unless it hangs. `done` is disconnected by its end.
pub(crate) fn join(done: &mpsc::Receiver<Infallible>, thread: Option<JoinHandle<()>>) {
    if done.recv_timeout(HANG_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
        return;
    }
    if let Some(thread) = thread {
        // A panic was reported where it happened.
        let _ = thread.join();
    }
}
