//! The services thread: runs work that depends on peers but does not belong on an event loop. It has a tokio runtime,
//! started on first use. Its tasks read PROXY headers, decide on sources that may be at their limit, and close idle
//! connections. So no peer can delay the thread that handles signals and talks to the service manager.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task;

use super::worker;
use super::worker_state::WorkerState;

/// The services thread and its state. The thread starts on first use.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) state: Arc<WorkerState>,
    thread: Mutex<ThreadState>,
}

/// The state of the services thread.
#[derive(Debug, Default)]
enum ThreadState {
    #[default]
    NotStarted,
    Running(ServicesThread),
    Ended,
}

/// The running thread, and the handle of its runtime.
#[derive(Debug)]
struct ServicesThread {
    handle: Handle,
    /// How to end the thread; `None` if a test owns the runtime.
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    stop: oneshot::Sender<()>,
    /// Disconnected when the thread has ended.
    done: mpsc::Receiver<Infallible>,
    thread: JoinHandle<()>,
}

impl Services {
    /// Creates the services; the thread is not started.
    pub(crate) fn new(state: WorkerState) -> Self {
        Self { state: Arc::new(state), thread: Mutex::default() }
    }

    /// Creates services whose tasks run on an existing runtime.
    #[cfg(test)]
    pub(crate) fn on(handle: Handle, state: WorkerState) -> Self {
        let services = Self::new(state);
        *services.lock_thread() = ThreadState::Running(ServicesThread { handle, end: None });
        services
    }

    /// Returns the runtime, and starts its thread if needed.
    ///
    /// # Errors
    /// Returns an error if the thread or its reactor cannot be created, or if the server has ended the thread.
    pub(crate) fn start(&self) -> io::Result<Handle> {
        let mut thread = self.lock_thread();
        match &*thread {
            ThreadState::Running(thread) => Ok(thread.handle.clone()),
            ThreadState::Ended => Err(io::Error::other("the server ends")),
            ThreadState::NotStarted => {
                let started = ServicesThread::start()?;
                let handle = started.handle.clone();
                *thread = ThreadState::Running(started);
                Ok(handle)
            }
        }
    }

    /// Spawns a task.
    ///
    /// # Errors
    /// Returns the errors of [`Services::start`]; the task is then dropped.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        self.start()?.spawn(task);
        Ok(())
    }

    /// Waits until every task that is ready now has run, so that connections closed by their peers have ended.
    pub(crate) async fn barrier(&self) {
        self.run(async {
            // The first yield lets the runtime poll its reactor, the second lets the tasks that became ready run before
            // this one.
            task::yield_now().await;
            task::yield_now().await;
        })
        .await;
    }

    /// Waits until the thread has run a task. Returns at once if there is no thread.
    pub(crate) async fn ping(&self) {
        self.run(async {}).await;
    }

    /// Runs a task to completion, if there is a thread.
    async fn run(&self, run: impl Future<Output = ()> + Send + 'static) {
        let handle = match &*self.lock_thread() {
            ThreadState::Running(thread) => Some(thread.handle.clone()),
            ThreadState::NotStarted | ThreadState::Ended => None,
        };
        if let Some(handle) = handle {
            // An error means that the runtime has shut down.
            let _ = handle.spawn(run).await;
        }
    }

    /// Ends the thread and all its tasks. A thread that hangs is left running.
    pub(crate) fn end(&self) {
        let thread = std::mem::replace(&mut *self.lock_thread(), ThreadState::Ended);
        if let ThreadState::Running(ServicesThread { end: Some(End { stop, done, thread }), .. }) = thread {
            drop(stop);
            worker::join(&done, Some(thread));
        }
    }

    fn lock_thread(&self) -> MutexGuard<'_, ThreadState> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServicesThread {
    fn start() -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (running, done) = mpsc::channel();
        let (started, result) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("services".to_owned()).spawn(move || {
            // The runtime is created and dropped on this thread: dropping it inside another runtime would panic.
            match Builder::new_current_thread().enable_io().enable_time().build() {
                Ok(runtime) => {
                    let _ = started.send(Ok(runtime.handle().clone()));
                    // The sender is never used; dropping it is the signal to stop.
                    let _ = runtime.block_on(stopped);
                    drop(runtime);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
            drop(running);
        })?;
        let handle = result.recv().map_err(|_| io::Error::other("the thread ended"))??;
        Ok(Self { handle, end: Some(End { stop, done, thread }) })
    }
}
