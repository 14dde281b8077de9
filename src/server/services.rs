//! The services thread, for work that peers can cause and event loops do not do. It has a tokio runtime, is started when it is
//! first needed, and runs tasks: connections that await their PROXY header or a decision on their source, and the closing of
//! idle connections. So no work that a peer can cause runs on the main thread, which handles signals and the service manager.

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

/// Runs tasks on the services thread.
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

/// The running thread, and its runtime.
#[derive(Debug)]
struct ServicesThread {
    handle: Handle,
    /// The means to end the thread; `None` if a test owns the runtime.
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
    /// Creates services without a thread.
    pub(crate) fn new(state: WorkerState) -> Self {
        Self { state: Arc::new(state), thread: Mutex::default() }
    }

    /// Creates services that run their tasks on this runtime.
    #[cfg(test)]
    pub(crate) fn on(handle: Handle, state: WorkerState) -> Self {
        let services = Self::new(state);
        *services.lock_thread() = ThreadState::Running(ServicesThread { handle, end: None });
        services
    }

    /// Returns the runtime, and starts the thread if it is not running yet.
    ///
    /// # Errors
    /// Returns an error if the thread or its reactor cannot be created, or if it has ended with the server.
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

    /// Runs a task, and starts the thread for it if necessary.
    ///
    /// # Errors
    /// Returns the errors of [`Services::start`]; the task is dropped then.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        self.start()?.spawn(task);
        Ok(())
    }

    /// Waits until all tasks that are ready now have run. Afterwards, connections that their peers had closed have ended.
    pub(crate) async fn barrier(&self) {
        self.run(async {
            // The runtime polls the reactor, and the tasks that are ready run before this one.
            task::yield_now().await;
            task::yield_now().await;
        })
        .await;
    }

    /// Waits until the thread has run a task. Returns at once if the thread is not running.
    pub(crate) async fn ping(&self) {
        self.run(async {}).await;
    }

    /// Runs a task to its end, if the thread is running.
    async fn run(&self, run: impl Future<Output = ()> + Send + 'static) {
        let handle = match &*self.lock_thread() {
            ThreadState::Running(thread) => Some(thread.handle.clone()),
            ThreadState::NotStarted | ThreadState::Ended => None,
        };
        if let Some(handle) = handle {
            // An error means that the thread is gone, with everything else.
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
            // Created on this thread, so that it is dropped on this thread: a runtime panics if it is dropped inside another
            // one.
            match Builder::new_current_thread().enable_io().enable_time().build() {
                Ok(runtime) => {
                    let _ = started.send(Ok(runtime.handle().clone()));
                    // A dropped sender ends the wait, too.
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
