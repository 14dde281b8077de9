//! Threads for tasks that may block for as long as a user of this machine likes. Only one thread at a time runs the tasks of
//! one UID, so a user can block one thread at most.
//!
//! ```text
//! user 1000   task task task ──► thread, which takes the tasks that wait, some at a time, and returns to the queue of users
//! user 1001   task ───────────► thread
//! ```
//!
//! Threads are created when they are needed, and end when they have been idle for a while. Their number is bounded, and so is
//! the memory of waiting tasks: in total, and for each UID.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::protocol::packet::DropCause;

/// The maximum number of threads. One user can block one thread.
pub(crate) const MAX_THREADS: usize = 8;

/// The maximum size of all tasks of one user, in bytes. A single task may have any size.
pub(crate) const MAX_USER_BYTES: usize = 1 << 20;

/// The maximum number of tasks that a thread takes at once.
const MAX_TASKS: usize = 64;

/// The maximum size of all tasks, in bytes. A single task may have any size.
const MAX_BYTES: usize = MAX_THREADS * MAX_USER_BYTES;

/// How long an idle thread waits for tasks before it ends.
const MAX_IDLE: Duration = Duration::from_secs(10);

/// A task that belongs to a user.
pub(crate) trait UserTask: Send + Sized + 'static {
    /// Runs tasks of one user, in the order in which they were queued, and removes them from `tasks`.
    fn run_all(uid: u32, tasks: &mut Vec<Self>);
}

/// Runs the tasks of users on threads. Cheap to clone.
pub(crate) struct UserThreads<Task>(Arc<Shared<Task>>);

struct Shared<Task> {
    state: Mutex<State<Task>>,
    /// Signalled when a user becomes ready.
    more: Condvar,
}

struct State<Task> {
    /// Users with a waiting or running task.
    queues: HashMap<u32, Queue<Task>>,
    /// Users with a waiting task and no running one.
    ready: VecDeque<u32>,
    /// The size of all waiting and running tasks, in bytes.
    bytes: usize,
    threads: usize,
    /// The number of threads that wait for a task.
    idle: usize,
    /// How many times a thread cannot be made.
    #[cfg(test)]
    failing_starts: u32,
}

/// The tasks of one user.
struct Queue<Task> {
    /// The waiting tasks, each with its size in bytes.
    tasks: VecDeque<(usize, Task)>,
    /// The size of the waiting and running tasks, in bytes.
    bytes: usize,
}

impl<Task> Clone for UserThreads<Task> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Task> Default for UserThreads<Task> {
    fn default() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), more: Condvar::new() }))
    }
}

impl<Task> Default for State<Task> {
    fn default() -> Self {
        Self {
            queues: HashMap::new(),
            ready: VecDeque::new(),
            bytes: 0,
            threads: 0,
            idle: 0,
            #[cfg(test)]
            failing_starts: 0,
        }
    }
}

impl<Task> fmt::Debug for UserThreads<Task> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserThreads")
    }
}

impl<Task: UserTask> UserThreads<Task> {
    /// Queues a task of a user. It runs after all earlier tasks of this user, or together with them. `size` is the memory that
    /// it occupies until then, in bytes.
    ///
    /// # Errors
    /// Returns [`DropCause::NoRoom`] if the waiting tasks are at a limit, or if no thread exists and none can be started.
    pub(crate) fn run(&self, uid: u32, size: usize, task: Task) -> Result<(), DropCause> {
        let mut state = self.0.lock();
        let waiting = state.queues.get(&uid).map(|queue| queue.bytes);
        let is_over = waiting.is_some_and(|waiting| waiting + size > MAX_USER_BYTES);
        if is_over || state.bytes > 0 && state.bytes + size > MAX_BYTES {
            return Err(DropCause::NoRoom);
        }
        // A user with other tasks has a thread already, or is in the queue for one.
        let is_new = waiting.is_none();
        let ready = state.ready.len() + usize::from(is_new);
        // Also for users who wait since an earlier thread could not be made.
        if state.idle < ready && state.threads < MAX_THREADS {
            match self.start(&mut state) {
                Ok(()) => state.threads += 1,
                Err(_) if state.threads == 0 => return Err(DropCause::NoRoom),
                // Another thread will run it, unless the next task finds a thread for it.
                Err(_) => {}
            }
        }
        state.bytes += size;
        let queue = state.queues.entry(uid).or_insert_with(|| Queue { tasks: VecDeque::new(), bytes: 0 });
        queue.bytes += size;
        queue.tasks.push_back((size, task));
        if is_new {
            state.ready.push_back(uid);
            drop(state);
            self.0.more.notify_one();
        }
        Ok(())
    }

    /// Makes a thread.
    fn start(&self, state: &mut State<Task>) -> io::Result<()> {
        state.check_start()?;
        let shared = Arc::clone(&self.0);
        thread::Builder::new().name("replies".to_owned()).spawn(move || shared.work()).map(drop)
    }
}

impl<Task: UserTask> Shared<Task> {
    /// Runs tasks until there have been none for [`MAX_IDLE`].
    fn work(&self) {
        let mut tasks = Vec::new();
        let mut state = self.lock();
        loop {
            let Some((uid, size)) = state.take(&mut tasks) else {
                state.idle += 1;
                let is_empty = |state: &mut State<Task>| state.ready.is_empty();
                let waited = self.more.wait_timeout_while(state, MAX_IDLE, is_empty);
                let timed_out;
                (state, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                if timed_out.timed_out() && state.ready.is_empty() {
                    state.threads -= 1;
                    return;
                }
                continue;
            };
            drop(state);
            Task::run_all(uid, &mut tasks);
            tasks.clear();
            state = self.lock();
            state.finish(uid, size);
        }
    }
}

impl<Task> Shared<Task> {
    fn lock(&self) -> MutexGuard<'_, State<Task>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Task> State<Task> {
    /// Returns the error of a thread that cannot be made, as far as a test decides that.
    fn check_start(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if self.failing_starts > 0 {
            self.failing_starts -= 1;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// Takes the next tasks of the user that has been ready for longest, [`MAX_TASKS`] at most. Returns the UID, and the size
    /// of the tasks.
    fn take(&mut self, tasks: &mut Vec<Task>) -> Option<(u32, usize)> {
        let uid = self.ready.pop_front()?;
        let waiting = &mut self.queues.get_mut(&uid)?.tasks;
        let mut size = 0;
        for (one, task) in waiting.drain(..waiting.len().min(MAX_TASKS)) {
            size += one;
            tasks.push(task);
        }
        Some((uid, size))
    }

    /// Records that tasks have run. The user becomes ready again if there are more.
    fn finish(&mut self, uid: u32, size: usize) {
        self.bytes -= size;
        let Some(queue) = self.queues.get_mut(&uid) else { return };
        queue.bytes -= size;
        if queue.tasks.is_empty() {
            self.queues.remove(&uid);
        } else {
            // This thread, or an idle one, takes the next tasks.
            self.ready.push_back(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;

    type Task = Box<dyn FnOnce() + Send>;

    impl UserTask for Task {
        fn run_all(_: u32, tasks: &mut Vec<Self>) {
            tasks.drain(..).for_each(|task| task());
        }
    }

    /// A ceiling that only a broken test reaches.
    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    /// Returns a task that blocks its thread until the returned sender is dropped.
    fn blocking_task() -> (Task, Sender<()>) {
        let (release, released) = mpsc::channel::<()>();
        let task = move || {
            let _ = released.recv();
        };
        (Box::new(task), release)
    }

    /// Runs a task that sends a number.
    fn send(threads: &UserThreads<Task>, uid: u32, number: usize, to: &Sender<usize>) -> Result<(), DropCause> {
        let to = to.clone();
        let task = move || {
            let _ = to.send(number);
        };
        threads.run(uid, 1, Box::new(task))
    }

    fn next(from: &Receiver<usize>) -> usize {
        from.recv_timeout(TEST_TIMEOUT).unwrap()
    }

    #[test]
    fn tasks_of_a_user_run_in_order_and_one_at_a_time() {
        let (threads, (to, from)) = (UserThreads::default(), mpsc::channel());
        let (task, release) = blocking_task();
        threads.run(1, 1, task).unwrap();
        for number in 0..1000 {
            send(&threads, 1, number, &to).unwrap();
        }
        // Tasks of other users start threads, which then are idle, but take no task of user 1.
        for uid in 2..5 {
            send(&threads, uid, 5000, &to).unwrap();
            assert_eq!(next(&from), 5000);
        }
        drop(release);
        assert_eq!((0..1000).map(|_| next(&from)).collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_user_with_many_tasks_does_not_keep_a_thread_from_others() {
        let threads = UserThreads::default();
        let (to, from) = mpsc::channel();
        let mut blocked = Vec::new();
        for uid in 1..=MAX_THREADS {
            let (task, release) = blocking_task();
            threads.run(uid.try_into().unwrap(), 1, task).unwrap();
            blocked.push(release);
        }
        // All threads are blocked, so these tasks wait.
        for number in 0..2 * MAX_TASKS {
            send(&threads, 1000, number, &to).unwrap();
        }
        send(&threads, 1001, 5000, &to).unwrap();
        blocked.pop();
        let order: Vec<_> = (0..=2 * MAX_TASKS).map(|_| next(&from)).collect();
        assert_eq!(order.iter().position(|number| *number == 5000), Some(MAX_TASKS));
    }

    #[test]
    fn users_who_block_all_threads_but_one_do_not_delay_another_user() {
        let (threads, (to, from)) = (UserThreads::default(), mpsc::channel());
        let mut blocked = Vec::new();
        for uid in 1..MAX_THREADS {
            // The number of tasks does not matter.
            for _ in 0..10 {
                let (task, release) = blocking_task();
                threads.run(uid.try_into().unwrap(), 1, task).unwrap();
                blocked.push(release);
            }
        }
        for number in 0..100 {
            send(&threads, 1000, number, &to).unwrap();
            assert_eq!(next(&from), number);
        }
        assert!(threads.0.lock().threads <= MAX_THREADS);
    }

    #[test]
    fn a_user_waits_while_others_block_all_threads_and_no_further_thread_is_made() {
        let (threads, (to, from)) = (UserThreads::default(), mpsc::channel());
        let mut blocked = Vec::new();
        for uid in 1..=MAX_THREADS {
            let (task, release) = blocking_task();
            threads.run(uid.try_into().unwrap(), 1, task).unwrap();
            blocked.push(release);
        }
        send(&threads, 1000, 1, &to).unwrap();
        assert_eq!(threads.0.lock().threads, MAX_THREADS);
        assert!(from.try_recv().is_err());
        blocked.pop();
        assert_eq!(next(&from), 1);
    }

    #[test]
    fn what_waits_is_bounded_for_each_user_and_in_all() {
        let threads = UserThreads::default();
        let mut blocked = Vec::new();
        let mut run = |uid, size| {
            let (task, release) = blocking_task();
            blocked.push(release);
            threads.run(uid, size, task)
        };
        for (size, expected) in
            [(MAX_USER_BYTES - 10, Ok(())), (11, Err(DropCause::NoRoom)), (10, Ok(())), (1, Err(DropCause::NoRoom))]
        {
            assert_eq!(run(1, size), expected, "{size}");
        }
        // A single task may have any size, unless others wait.
        assert_eq!(run(2, MAX_BYTES), Err(DropCause::NoRoom));
        assert_eq!(run(2, MAX_BYTES - MAX_USER_BYTES), Ok(()));
        assert_eq!(run(3, 1), Err(DropCause::NoRoom));
        blocked.clear();
        let until = crate::server::clock::clock() + TEST_TIMEOUT;
        while threads.0.lock().bytes > 0 {
            assert!(crate::server::clock::clock() < until, "what has run takes nothing");
            thread::yield_now();
        }
        assert!(threads.0.lock().queues.is_empty());
        assert_eq!(threads.run(1, 2 * MAX_BYTES, Box::new(|| {})), Ok(()));
    }

    #[test]
    fn a_user_for_whom_no_thread_could_be_made_gets_one_at_the_next_task() {
        // Of the same user, or of another one.
        for next_uid in [1000, 1001] {
            let (threads, (to, from)) = (UserThreads::default(), mpsc::channel());
            let (task, _release) = blocking_task();
            threads.run(1, 1, task).unwrap();
            threads.0.lock().failing_starts = 1;
            send(&threads, 1000, 0, &to).unwrap();
            assert!(from.try_recv().is_err());
            send(&threads, next_uid, 1, &to).unwrap();
            assert_eq!([next(&from), next(&from)], [0, 1]);
        }
    }
}
