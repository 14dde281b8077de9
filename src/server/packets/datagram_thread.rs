//! The thread of a datagram socket: how it waits, and what other threads ask of it.
//!
//! Each datagram socket has a thread of its own, so sockets that share a port (SO_REUSEPORT) are served on as many CPUs.

use std::convert::Infallible;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::Wake;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, retry_on_intr};
use tokio::sync::oneshot;

use crate::server::clock::clock;
use crate::server::worker;
use crate::server::worker_state::WorkerState;

/// How long to wait after poll(2) has failed, so that an error that lasts does not take all time.
const ERROR_PAUSE: Duration = Duration::from_millis(1);

/// Wakes the thread of a datagram socket, from any thread.
#[derive(Debug)]
pub(crate) struct ThreadControl {
    /// Readable when the thread was woken and has not noticed it.
    eventfd: OwnedFd,
    woken: AtomicBool,
    /// Whether the thread is to end at once.
    has_ended: AtomicBool,
    /// Whether it is to wait for the log no longer than [`END_WAIT`](super::END_WAIT).
    ends_log_wait: AtomicBool,
    /// Dropped when the thread notices that it was woken; `None` when it is done.
    pings: Mutex<Option<Vec<oneshot::Sender<Infallible>>>>,
}

impl ThreadControl {
    /// Creates one for a thread.
    ///
    /// # Errors
    /// Returns the errors of eventfd(2).
    pub(crate) fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let [woken, has_ended, ends_log_wait] = [const { AtomicBool::new(false) }; 3];
        Ok(Self { eventfd, woken, has_ended, ends_log_wait, pings: Mutex::new(Some(Vec::new())) })
    }

    /// Ends the thread's wait: what it is to do may have changed.
    pub(crate) fn notify(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // It fails only when the counter is full, and then it is readable.
            let _ = retry_on_intr(|| rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes()));
        }
    }

    /// Has a message wait for the log no longer than [`END_WAIT`](super::END_WAIT) from now on.
    pub(crate) fn end_log_wait(&self) {
        self.ends_log_wait.store(true, Ordering::Release);
        self.notify();
    }

    /// Waits until the thread responds, or has ended.
    pub(crate) async fn ping(&self) {
        let (answer, answered) = oneshot::channel();
        match &mut *self.pings.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(pings) => pings.push(answer),
            None => return,
        }
        self.notify();
        // There is an error when it is done.
        let _ = answered.await;
    }

    /// Returns whether the thread was woken since the last call. For its thread.
    pub(crate) fn take_wakeup(&self) -> bool {
        if !self.woken.load(Ordering::Relaxed) || !self.woken.swap(false, Ordering::AcqRel) {
            return false;
        }
        self.pings.lock().unwrap_or_else(PoisonError::into_inner).iter_mut().for_each(Vec::clear);
        true
    }

    /// Returns whether the thread is to end at once.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Returns whether a message is to wait for the log no longer than [`END_WAIT`](super::END_WAIT).
    pub(crate) fn ends_log_wait(&self) -> bool {
        self.ends_log_wait.load(Ordering::Acquire)
    }

    /// Waits until `socket` is ready, if there is one, until the thread is woken, or until a time. Returns the readiness of
    /// the socket, as far as it is known.
    pub(crate) fn wait(&self, socket: Option<BorrowedFd<'_>>, until: Option<Instant>) -> PollFlags {
        let timeout = until.map(|until| {
            let remaining = until.saturating_duration_since(clock());
            // What does not fit is as good as never.
            Timespec::try_from(remaining).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
        });
        let wakeup = PollFd::new(&self.eventfd, PollFlags::IN);
        // The socket first: when it is ready, nothing is registered for the wakeup.
        let mut polled = match socket {
            Some(ref socket) => [PollFd::new(socket, PollFlags::IN | PollFlags::RDHUP), wakeup],
            None => [wakeup.clone(), wakeup],
        };
        let [readiness, wakeup] = match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => polled.map(|polled| polled.revents()),
            // An interrupted call is a wakeup for nothing.
            Err(Errno::INTR) => [PollFlags::empty(); 2],
            Err(_) => {
                thread::sleep(ERROR_PAUSE);
                [PollFlags::empty(); 2]
            }
        };
        if !wakeup.is_empty() {
            // Here and not where the flag is taken: the flag may be set before this is written. A thread that has waited looks
            // at the flag before it waits again.
            let _ = retry_on_intr(|| rustix::io::read(&self.eventfd, &mut [0_u8; 8]));
        }
        if socket.is_some() { readiness } else { PollFlags::empty() }
    }
}

impl Wake for ThreadControl {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}

/// The thread of a datagram socket. It ends when this is dropped. If it hangs, it is left running.
pub(crate) struct DatagramThread {
    pub(crate) control: Arc<ThreadControl>,
    pub(crate) state: Arc<WorkerState>,
    handle: Option<JoinHandle<()>>,
    /// There is an error when it is done.
    done: mpsc::Receiver<Infallible>,
}

impl DatagramThread {
    /// Starts a thread that serves, with this state.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be made.
    pub(crate) fn start(
        control: Arc<ThreadControl>,
        state: Arc<WorkerState>,
        serve: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (running, done) = mpsc::channel();
        let control_of_thread = Arc::clone(&control);
        let handle = thread::Builder::new().name("datagrams".to_owned()).spawn(move || {
            // Also if it panics: nothing waits for it then.
            let _done = NoPings(control_of_thread);
            serve();
            drop(running);
        })?;
        Ok(Self { control, state, handle: Some(handle), done })
    }
}

/// Drops all pings of a thread when it is dropped.
struct NoPings(Arc<ThreadControl>);

impl Drop for NoPings {
    fn drop(&mut self) {
        *self.0.pings.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for DatagramThread {
    fn drop(&mut self) {
        self.control.has_ended.store(true, Ordering::Release);
        self.control.notify();
        worker::join(&self.done, self.handle.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wakeup_ends_one_wait_whenever_it_comes() {
        let control = Arc::new(ThreadControl::new().unwrap());
        let waker = Arc::clone(&control);
        let other = thread::spawn(move || (0..100_000).for_each(|_| waker.notify()));
        // As a thread that is busy: it never waits.
        while !other.is_finished() {
            control.take_wakeup();
        }
        other.join().unwrap();
        let (mut wakeups, start) = (0, clock());
        let until = start + Duration::from_millis(50);
        while clock() < until {
            control.wait(None, Some(until));
            control.take_wakeup();
            wakeups += 1;
        }
        assert!(wakeups <= 3, "{wakeups} waits in 50 ms");
    }

    #[test]
    fn a_wakeup_before_a_wait_is_not_lost() {
        let control = ThreadControl::new().unwrap();
        control.notify();
        control.wait(None, None);
        assert!(control.take_wakeup());
        assert!(!control.take_wakeup());
    }
}
