//! The thread of a datagram socket: how it waits, and the requests of other threads.
//!
//! Each datagram socket has a thread of its own, so sockets that share a port (SO_REUSEPORT) use as many CPUs.

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

/// The pause after poll(2) has failed, so that a lasting error does not use all CPU time.
const ERROR_PAUSE: Duration = Duration::from_millis(1);

/// Wakes the thread of a datagram socket and tells it what to do, from any thread.
#[derive(Debug)]
pub(crate) struct ThreadControl {
    /// Readable while the thread has not noticed that it was woken.
    eventfd: OwnedFd,
    woken: AtomicBool,
    /// Whether the thread is to end at once.
    has_ended: AtomicBool,
    /// Whether a message may wait for the log for [`END_WAIT`](super::END_WAIT) at most.
    ends_log_wait: AtomicBool,
    /// Dropped when the thread notices that it was woken; `None` when the thread has ended.
    pings: Mutex<Option<Vec<oneshot::Sender<Infallible>>>>,
}

impl ThreadControl {
    /// Creates the control of a thread that is not started yet.
    ///
    /// # Errors
    /// Returns the errors of eventfd(2).
    pub(crate) fn new() -> io::Result<Self> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let [woken, has_ended, ends_log_wait] = [const { AtomicBool::new(false) }; 3];
        Ok(Self { eventfd, woken, has_ended, ends_log_wait, pings: Mutex::new(Some(Vec::new())) })
    }

    /// Ends the thread's wait. Call it after a request to the thread has changed.
    pub(crate) fn notify(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // It fails only if the counter is full, and the eventfd is readable then.
            let _ = retry_on_intr(|| rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes()));
        }
    }

    /// Limits the time that a message waits for the log to [`END_WAIT`](super::END_WAIT), from now on.
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
        // An error means that the thread has responded, or has ended.
        let _ = answered.await;
    }

    /// Returns whether the thread was woken since the last call. Only the thread itself calls this.
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

    /// Returns whether a message may wait for the log for [`END_WAIT`](super::END_WAIT) at most.
    pub(crate) fn ends_log_wait(&self) -> bool {
        self.ends_log_wait.load(Ordering::Acquire)
    }

    /// Waits until `socket` is ready, until the thread is woken, or until the time `until`. Returns the readiness of the
    /// socket; empty if it is unknown.
    pub(crate) fn wait(&self, socket: Option<BorrowedFd<'_>>, until: Option<Instant>) -> PollFlags {
        let timeout = until.map(|until| {
            let remaining = until.saturating_duration_since(clock());
            // A time that does not fit is practically never.
            Timespec::try_from(remaining).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
        });
        let wakeup = PollFd::new(&self.eventfd, PollFlags::IN);
        // The socket first: if it is ready, poll(2) does not have to register a wait for the eventfd.
        let mut polled = match socket {
            Some(ref socket) => [PollFd::new(socket, PollFlags::IN | PollFlags::RDHUP), wakeup],
            None => [wakeup.clone(), wakeup],
        };
        let [readiness, wakeup] = match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => polled.map(|polled| polled.revents()),
            // An interrupted call counts as a spurious wakeup.
            Err(Errno::INTR) => [PollFlags::empty(); 2],
            Err(_) => {
                thread::sleep(ERROR_PAUSE);
                [PollFlags::empty(); 2]
            }
        };
        if !wakeup.is_empty() {
            // Read here, and not in `take_wakeup`: `notify` sets the flag before it writes to the eventfd. A thread that has
            // waited checks the flag before it waits again.
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

/// The thread of a datagram socket. Dropping this ends the thread. A thread that hangs is left running.
pub(crate) struct DatagramThread {
    pub(crate) control: Arc<ThreadControl>,
    handle: Option<JoinHandle<()>>,
    /// Disconnected when the thread has ended.
    done: mpsc::Receiver<Infallible>,
}

impl DatagramThread {
    /// Starts a thread that runs `serve`.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be created.
    pub(crate) fn start(control: Arc<ThreadControl>, serve: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (running, done) = mpsc::channel();
        let control_of_thread = Arc::clone(&control);
        let handle = thread::Builder::new().name("datagrams".to_owned()).spawn(move || {
            // Dropped also if `serve` panics, so that no ping waits forever.
            let _done = NoPings(control_of_thread);
            serve();
            drop(running);
        })?;
        Ok(Self { control, handle: Some(handle), done })
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
        // Like a busy thread, which never waits.
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
