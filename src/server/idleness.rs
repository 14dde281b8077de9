//! Which connections are idle, so that one of them may be closed for a client that waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, oneshot};

use super::peer::Source;

/// Which connections of a worker are idle.
#[derive(Debug, Default)]
pub(crate) struct IdleReport {
    /// How many connections each source has, idle or not.
    pub(crate) held: HashMap<Source, usize>,
    pub(crate) idle: Vec<IdleConnection>,
}

#[derive(Debug)]
pub(crate) struct IdleConnection {
    pub(crate) source: Source,
    pub(crate) since: Instant,
    /// Its id: of connections that have been idle equally long, the lowest is the oldest.
    pub(crate) id: u64,
    pub(crate) connection: ConnectionRef,
}

/// A connection of a worker.
#[derive(Debug, Clone)]
pub(crate) enum ConnectionRef {
    /// One in the event loop, where it has this key as long as it has this id.
    Stream { key: usize, id: u64 },
    /// One that is a task.
    Task(Arc<TaskIdleness>),
}

impl IdleReport {
    /// Adds a connection of this source with its id, which has been idle since then if it is.
    pub(crate) fn add(&mut self, id: u64, source: Source, idle_since: Option<Instant>, connection: ConnectionRef) {
        *self.held.entry(source).or_default() += 1;
        if let Some(since) = idle_since {
            self.idle.push(IdleConnection { source, since, id, connection });
        }
    }
}

/// Whether a connection that is a task of its own is idle, and the request to close it if it is.
#[derive(Debug, Default)]
pub(crate) struct TaskIdleness {
    state: Mutex<TaskState>,
    requested: Notify,
}

#[derive(Debug, Default)]
struct TaskState {
    idle_since: Option<Instant>,
    /// Answered with whether the connection ends.
    request: Option<oneshot::Sender<bool>>,
}

impl TaskIdleness {
    /// Records since when the connection is idle; `None` while it is not. A request is then denied.
    pub(crate) fn set_idle_since(&self, since: Option<Instant>) {
        let mut state = lock(&self.state);
        state.idle_since = since;
        state.request = None;
    }

    pub(crate) fn idle_since(&self) -> Option<Instant> {
        lock(&self.state).idle_since
    }

    /// Asks the connection to end, if it has been idle since then. Returns whether it does.
    pub(crate) async fn request(&self, since: Instant) -> bool {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = lock(&self.state);
            if state.idle_since != Some(since) {
                return false;
            }
            state.request = Some(answer);
        }
        self.requested.notify_one();
        // An error says that it is no longer idle.
        answered.await.unwrap_or(false)
    }

    /// Waits until the connection is asked to end.
    pub(crate) async fn requested(&self) -> oneshot::Sender<bool> {
        loop {
            self.requested.notified().await;
            if let Some(request) = lock(&self.state).request.take() {
                return request;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A value is stored in one step, so it is right even if a thread panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::server::clock::clock;

    #[tokio::test]
    async fn a_task_is_asked_only_while_it_is_idle() {
        let idleness = Arc::new(TaskIdleness::default());
        let now = clock();
        assert!(!idleness.request(now).await);
        idleness.set_idle_since(Some(now));
        assert!(!idleness.request(now + Duration::from_secs(1)).await);
        let task = Arc::clone(&idleness);
        let asked = tokio::spawn(async move { task.requested().await.send(true) });
        assert!(idleness.request(now).await);
        asked.await.unwrap().unwrap();
        let (asked, ()) = tokio::join!(idleness.request(now), async { idleness.set_idle_since(None) });
        assert!(!asked);
    }
}
