//! The thread of services: what peers can make busy, and event loops do not serve. It is a runtime, made when it is first
//! needed, on which tasks run: connections that await their PROXY header or a decision on their source, and the closing of idle
//! connections. Once the process has started, nothing of a peer runs on the thread that handles signals and the service manager.

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

/// Runs tasks on the thread of services.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) state: Arc<WorkerState>,
    thread: Mutex<ThreadState>,
}

/// Whether there is a thread.
#[derive(Debug, Default)]
enum ThreadState {
    #[default]
    NotStarted,
    Running(ServicesThread),
    Ended,
}

/// The thread, and its runtime.
#[derive(Debug)]
struct ServicesThread {
    handle: Handle,
    /// What is needed to end it, unless it is the test's.
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    stop: oneshot::Sender<()>,
    /// There is an error when it is done.
    done: mpsc::Receiver<Infallible>,
    thread: JoinHandle<()>,
}

impl Services {
    /// Creates services without a thread.
    pub(crate) fn new(state: WorkerState) -> Self {
        Self { state: Arc::new(state), thread: Mutex::default() }
    }

    /// Creates services whose tasks run in this runtime.
    #[cfg(test)]
    pub(crate) fn on(handle: Handle, state: WorkerState) -> Self {
        let services = Self::new(state);
        *services.lock_thread() = ThreadState::Running(ServicesThread { handle, end: None });
        services
    }

    /// Returns the runtime, which is made if there is none yet.
    ///
    /// # Errors
    /// Returns an error if the thread or its reactor cannot be made, or if it has ended with the server.
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

    /// Runs a task.
    ///
    /// # Errors
    /// Returns the errors of [`Services::start`]; the task is dropped then.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        self.start()?.spawn(task);
        Ok(())
    }

    /// Waits until all tasks that are ready by now have run. So connections that their peers have closed have ended.
    pub(crate) async fn barrier(&self) {
        self.run(async {
            // The runtime polls the reactor, and the tasks that are ready run before this one.
            task::yield_now().await;
            task::yield_now().await;
        })
        .await;
    }

    /// Waits until a task has run for this; not at all if there is no thread.
    pub(crate) async fn ping(&self) {
        self.run(async {}).await;
    }

    /// Runs a task to its end, if there is a thread.
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

    /// Ends the thread, and with it all tasks. If it hangs, it is left running.
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
            // Made here, so that it is dropped here whatever fails: a runtime panics if it is dropped inside another one.
            match Builder::new_current_thread().enable_io().enable_time().build() {
                Ok(runtime) => {
                    let _ = started.send(Ok(runtime.handle().clone()));
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
        let handle = result.recv().map_err(|_| io::Error::other("the thread ended"))??;
        Ok(Self { handle, end: Some(End { stop, done, thread }) })
    }
}
