//! A worker: one thread, one runtime, one event loop with its connections, one set of counters. A connection lives and
//! ends on its worker; nothing on its way from socket to socket is shared with another thread.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::net as unix;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task;

use super::accept::Listener;
use super::admission::Source;
use super::connection::Connection;
use super::disposal::Disposal;
use super::event::{EventHandler, MessageLog, UnloggedMessages};
use super::event_loop::EventLoop;
use super::handover::DetachedConnection;
use super::reclaim::{ConnectionRef, IdleReport, TaskIdleness};
use crate::protocol::Verdict;
use crate::protocol::packet::{DROP_CAUSES, DropCause};
use crate::protocol::session::Totals;
use crate::protocol::verdict;

/// After how many polls of tasks, the event loop among them, the runtime polls its reactor for new connections and
/// timers.
const EVENT_INTERVAL: u32 = 2;

/// A worker that does not respond for so long at the end hangs. A drive takes far less than a millisecond, so this is
/// time for a machine that is very busy.
pub(crate) const HANG_TIMEOUT: Duration = Duration::from_secs(2);

/// What one worker and its connections share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) sink: EventSink,
    pub(crate) counters: Counters,
    pub(crate) disposal: Disposal,
    /// Connections of this worker.
    pub(crate) open: AtomicUsize,
    /// Whether connections are to drain.
    draining: AtomicBool,
    /// The same, for seqpacket connections, which are not in the event loop.
    stop_request: watch::Sender<StopRequest>,
    /// Each packet that waits for the log has a receiver.
    pub(crate) packets_awaiting_log: watch::Sender<()>,
    /// Seqpacket connections, by their ids.
    tasks: Mutex<HashMap<u64, (Source, Arc<TaskIdleness>)>>,
    mailbox: Mutex<Commands>,
    /// Whether the mailbox has commands.
    has_commands: AtomicBool,
    handle: Handle,
}

/// How connections that are not in the event loop are to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopRequest {
    None,
    /// As soon as they have finished what they owe.
    Graceful,
    Immediate,
}

/// What other threads ask of the event loop.
#[derive(Default)]
pub(crate) struct Commands {
    /// Connections to be served.
    #[expect(clippy::vec_box, reason = "where they are now is where they stay")]
    pub(crate) accepted: Vec<Box<Connection>>,
    /// Connections to be served that were restored from the previous process.
    #[expect(clippy::vec_box, reason = "where they are now is where they stay")]
    pub(crate) restored: Vec<Box<Connection>>,
    /// Keys of connections that are to be driven.
    pub(crate) woken: Vec<usize>,
    /// Keys and ids of connections that are to be read again, after descriptors that their peers sent were closed.
    pub(crate) unparked: Vec<(usize, u64)>,
    /// Where to send which connections are idle.
    pub(crate) idle_reports: Vec<oneshot::Sender<IdleReport>>,
    /// Connections that are to be closed if they have been idle since then, and where to send whether they are.
    pub(crate) reclaims: Vec<Reclaim>,
    /// Whether all connections are to be driven, since they are to drain.
    pub(crate) drain: bool,
    /// Whether connections whose messages are not logged since their peers do not read are to be given up.
    pub(crate) give_up_blocked: bool,
    /// Listeners whose connections are to end at once.
    pub(crate) close_listeners: Vec<Arc<Listener>>,
    /// Where to send all connections once they are detached.
    pub(crate) detach: Option<oneshot::Sender<Vec<DetachedConnection>>>,
    /// Dropped when all connections that are ready have been driven.
    pub(crate) barriers: Vec<oneshot::Sender<Infallible>>,
    /// Wakes the event loop.
    waker: Option<Waker>,
}

/// A connection that is to be closed if it is still idle.
pub(crate) struct Reclaim {
    pub(crate) key: usize,
    pub(crate) id: u64,
    /// Since when it was idle.
    pub(crate) since: Instant,
    /// Where to send whether it is closed.
    pub(crate) answer: oneshot::Sender<bool>,
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Commands")
    }
}

/// Where connections report their events and append their messages. Implements `Debug`, which its fields do not.
#[derive(Clone)]
pub(crate) struct EventSink {
    pub(crate) handle_event: EventHandler,
    pub(crate) message_log: Arc<dyn MessageLog>,
    pub(crate) unlogged: Arc<UnloggedMessages>,
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}

/// What a worker has done since it started. Only its own thread writes them, so a number is read and written back
/// without a lock on the bus.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    accepted: AtomicU64,
    resumed: AtomicU64,
    messages: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    ended: [AtomicU64; verdict::KINDS],
    dropped: [AtomicU64; DROP_CAUSES],
    /// What threads that send replies to paths have sent. They write it by atomic additions.
    bytes_to_paths: Arc<AtomicU64>,
}

/// What a server has done since it started: the counters of all its workers, added up.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted, the refused ones among them.
    pub accepted: u64,
    /// Connections that were restored from the previous process.
    pub resumed: u64,
    /// Messages, and bytes in both directions.
    pub totals: Totals,
    /// How many connections ended for each reason, in the order of [`verdict::NAMES`].
    pub ended: [u64; verdict::KINDS],
    /// How many datagrams were dropped for each cause, in the order of
    /// [`DROP_NAMES`](crate::protocol::packet::DROP_NAMES).
    pub dropped: [u64; DROP_CAUSES],
}

impl Counters {
    #[inline]
    pub(crate) fn count_totals(&self, before: Totals, after: Totals) {
        if before.bytes_in != after.bytes_in {
            add(&self.bytes_in, after.bytes_in - before.bytes_in);
        }
        // Not only with input: messages in the inbound buffer are answered later.
        if before.messages != after.messages {
            add(&self.messages, after.messages - before.messages);
        }
        if before.bytes_out != after.bytes_out {
            add(&self.bytes_out, after.bytes_out - before.bytes_out);
        }
    }

    pub(crate) fn count_accepted(&self) {
        add(&self.accepted, 1);
    }

    pub(crate) fn count_resumed(&self) {
        add(&self.resumed, 1);
    }

    pub(crate) fn count_ended(&self, verdict: Verdict) {
        add(&self.ended[verdict.index()], 1);
    }

    pub(crate) fn count_dropped(&self, cause: DropCause) {
        add(&self.dropped[cause.index()], 1);
    }

    /// Returns the counter of bytes that other threads send in replies to paths.
    pub(crate) fn bytes_to_paths(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes_to_paths)
    }

    pub(crate) fn add_to(&self, counts: &mut Counts) {
        counts.accepted += self.accepted.load(Ordering::Relaxed);
        counts.resumed += self.resumed.load(Ordering::Relaxed);
        counts.totals.messages += self.messages.load(Ordering::Relaxed);
        counts.totals.bytes_in += self.bytes_in.load(Ordering::Relaxed);
        counts.totals.bytes_out += self.bytes_out.load(Ordering::Relaxed);
        counts.totals.bytes_out += self.bytes_to_paths.load(Ordering::Relaxed);
        for (sum, ended) in counts.ended.iter_mut().zip(&self.ended) {
            *sum += ended.load(Ordering::Relaxed);
        }
        for (sum, dropped) in counts.dropped.iter_mut().zip(&self.dropped) {
            *sum += dropped.load(Ordering::Relaxed);
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

impl Worker {
    /// Creates a worker without connections, whose tasks run in this runtime.
    pub(crate) fn new(sink: EventSink, disposal: Disposal, handle: Handle) -> Self {
        Self {
            sink,
            counters: Counters::default(),
            disposal,
            open: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            stop_request: watch::Sender::new(StopRequest::None),
            packets_awaiting_log: watch::Sender::new(()),
            tasks: Mutex::default(),
            mailbox: Mutex::default(),
            // So that the event loop begins by storing its waker.
            has_commands: AtomicBool::new(true),
            handle,
        }
    }

    /// Registers a non-blocking descriptor with this worker's reactor, from any thread: a listening socket, or the
    /// epoll set of an event loop.
    ///
    /// The reactor does not care what it is. tokio's `UnixStream` can be made of any descriptor that epoll takes, and
    /// lets us wait for it and make the calls by ourselves.
    ///
    /// # Errors
    /// It cannot be registered with epoll.
    pub(crate) fn register(&self, descriptor: OwnedFd) -> io::Result<UnixStream> {
        let _reactor = self.handle.enter();
        UnixStream::from_std(unix::UnixStream::from(descriptor))
    }

    /// Runs a task on this worker, from any thread.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }

    /// Waits until this worker has processed all events that it has by now: its ready tasks have run, and its ready
    /// connections have been driven. So connections that their peers have closed have ended.
    pub(crate) async fn barrier(self: &Arc<Self>) {
        let (answer, answered) = oneshot::channel();
        let worker = Arc::clone(self);
        self.spawn(async move {
            // The runtime polls the reactor, and the tasks that are ready run before this one.
            task::yield_now().await;
            worker.post(|commands| commands.barriers.push(answer));
        });
        // There is an error when it is done.
        let _ = answered.await;
    }

    /// Has the event loop serve a connection.
    pub(crate) fn serve(&self, connection: Box<Connection>) {
        self.post(|commands| commands.accepted.push(connection));
    }

    /// Has the event loop serve connections that were restored from the previous process.
    #[expect(clippy::vec_box, reason = "where they are now is where they stay")]
    pub(crate) fn restore(&self, connections: Vec<Box<Connection>>) {
        self.post(|commands| commands.restored.extend(connections));
    }

    /// Has the event loop detach all its connections, including those that are still in the mailbox.
    pub(crate) fn detach(&self) -> oneshot::Receiver<Vec<DetachedConnection>> {
        let (answer, detached) = oneshot::channel();
        self.post(|commands| commands.detach = Some(answer));
        detached
    }

    /// Has the event loop end the connections of these listeners.
    pub(crate) fn close_listeners(&self, listeners: &[Arc<Listener>]) {
        self.post(|commands| commands.close_listeners.extend_from_slice(listeners));
    }

    /// Returns which connections are idle; nothing if the worker is gone.
    pub(crate) async fn report_idle(&self) -> IdleReport {
        let (answer, answered) = oneshot::channel();
        self.post(|commands| commands.idle_reports.push(answer));
        let mut report = answered.await.unwrap_or_default();
        for (source, idleness) in self.lock_tasks().values() {
            report.add(*source, idleness.idle_since(), ConnectionRef::Task(Arc::clone(idleness)));
        }
        report
    }

    /// Closes a connection that has been idle since then, if it still is. Returns whether it ends: its permit is free now, or
    /// as soon as the descriptors that its peer sent are closed.
    pub(crate) async fn reclaim(&self, connection: ConnectionRef, since: Instant) -> bool {
        match connection {
            ConnectionRef::Stream { key, id } => {
                let (answer, answered) = oneshot::channel();
                self.post(|commands| commands.reclaims.push(Reclaim { key, id, since, answer }));
                answered.await.unwrap_or(false)
            }
            ConnectionRef::Task(idleness) => idleness.request(since).await,
        }
    }

    /// Adds a connection that is a task, and that records there whether it is idle.
    pub(crate) fn add_task(&self, id: u64, source: Source, idleness: &Arc<TaskIdleness>) {
        self.lock_tasks().insert(id, (source, Arc::clone(idleness)));
    }

    /// Removes a connection that was a task.
    pub(crate) fn remove_task(&self, id: u64) {
        self.lock_tasks().remove(&id);
    }

    /// Has the event loop drive a connection.
    pub(crate) fn wake(&self, key: usize) {
        self.post(|commands| commands.woken.push(key));
    }

    /// Has the event loop read a parked connection again.
    pub(crate) fn unpark(&self, key: usize, id: u64) {
        self.post(|commands| commands.unparked.push((key, id)));
    }

    fn post(&self, put: impl FnOnce(&mut Commands)) {
        let mut commands = self.lock_mailbox();
        put(&mut commands);
        self.has_commands.store(true, Ordering::Release);
        if let Some(event_loop) = &commands.waker {
            event_loop.wake_by_ref();
        }
    }

    #[inline]
    pub(crate) fn has_commands(&self) -> bool {
        self.has_commands.load(Ordering::Acquire)
    }

    /// Takes all commands out of the mailbox. The next command wakes `event_loop`.
    pub(crate) fn take_commands(&self, event_loop: &Waker) -> Commands {
        let mut commands = self.lock_mailbox();
        self.has_commands.store(false, Ordering::Relaxed);
        mem::replace(&mut *commands, Commands { waker: Some(event_loop.clone()), ..Commands::default() })
    }

    #[inline]
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Drains every connection.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.stop_request.send_replace(StopRequest::Graceful);
        self.post(|commands| commands.drain = true);
    }

    /// Gives up the connections whose peers do not read, so that their messages are not logged: they are logged, and not answered.
    pub(crate) fn give_up_blocked(&self) {
        self.post(|commands| commands.give_up_blocked = true);
    }

    /// Has every connection that is not in the event loop end, without waiting for its peer, and for the log not for long.
    pub(crate) fn stop_now(&self) {
        self.stop_request.send_replace(StopRequest::Immediate);
    }

    /// Waits until connections are to end like this, or more quickly.
    pub(crate) async fn stop_requested(&self, how: StopRequest) {
        // The sender is here, so there is no error.
        let _ = self.stop_request.subscribe().wait_for(|request| *request >= how).await;
    }

    /// Returns whether connections that are not in the event loop are to end without waiting for their peers.
    pub(crate) fn stops_now(&self) -> bool {
        *self.stop_request.borrow() == StopRequest::Immediate
    }

    /// Returns whether it has connections that are tasks.
    pub(crate) fn has_tasks(&self) -> bool {
        !self.lock_tasks().is_empty()
    }

    /// Waits until no packet waits for the log.
    pub(crate) async fn packets_logged(&self) {
        self.packets_awaiting_log.closed().await;
    }

    fn lock_tasks(&self) -> MutexGuard<'_, HashMap<u64, (Source, Arc<TaskIdleness>)>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_mailbox(&self) -> MutexGuard<'_, Commands> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread of a worker. It ends, and with it all that still runs on it, when this is dropped. If the thread hangs,
/// it is left running.
#[derive(Debug)]
pub(crate) struct WorkerThread {
    pub(crate) worker: Arc<Worker>,
    stop: Option<oneshot::Sender<()>>,
    /// There is an error when it is done.
    done: mpsc::Receiver<Infallible>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerThread {
    /// Starts a worker.
    ///
    /// # Errors
    /// The thread or its reactor cannot be made.
    pub(crate) fn start(number: usize, sink: &EventSink, disposal: &Disposal) -> io::Result<Self> {
        let (sink, disposal) = (sink.clone(), disposal.clone());
        let (stop, stopped) = oneshot::channel();
        let (running, done) = mpsc::channel();
        let (started, result) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            // Made here, so that it is dropped here whatever fails: a runtime panics if it is dropped inside another one.
            match start_runtime(sink, disposal) {
                Ok((runtime, worker)) => {
                    let _ = started.send(Ok(worker));
                    // An error means that the sender is gone, which says the same.
                    let _ = runtime.block_on(stopped);
                    drop(runtime);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
            drop(running);
        })?;
        let worker = result.recv().map_err(|_| io::Error::other("the thread ended"))??;
        Ok(Self { worker, stop: Some(stop), done, thread: Some(thread) })
    }
}

/// Makes the runtime of a worker, in which its event loop runs.
fn start_runtime(sink: EventSink, disposal: Disposal) -> io::Result<(Runtime, Arc<Worker>)> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().event_interval(EVENT_INTERVAL).build()?;
    let worker = Arc::new(Worker::new(sink, disposal, runtime.handle().clone()));
    let entered = runtime.enter();
    let event_loop = EventLoop::new(Arc::clone(&worker))?;
    drop(entered);
    runtime.spawn(event_loop);
    Ok((runtime, worker))
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.done.recv_timeout(HANG_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            return;
        }
        if let Some(thread) = self.thread.take() {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}
