//! Control of a load from other threads while it runs: stop requests and progress.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::poll::Waker;

/// Ends a load early, and reports its progress. For any thread.
#[derive(Debug)]
pub struct Control {
    stop_count: AtomicU8,
    /// Whether any thread has received a reply.
    answered: AtomicBool,
    /// Whether no socket listened before that.
    refused: AtomicBool,
    threads: Vec<ThreadControl>,
}

#[derive(Debug)]
struct ThreadControl {
    waker: Waker,
    answered: AtomicU64,
    errors: AtomicU64,
}

/// The progress of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BenchProgress {
    /// Messages that were answered, in the warm-up too. At most a tenth of a second old.
    pub answered: u64,
    /// The failures.
    pub errors: u64,
}

/// Whether a load is to stop early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopRequest {
    None,
    /// Stop, but wait for replies on their way.
    Graceful,
    Immediate,
}

impl Control {
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let thread_control =
            |_| Ok(ThreadControl { waker: Waker::new()?, answered: AtomicU64::new(0), errors: AtomicU64::new(0) });
        Ok(Self {
            stop_count: AtomicU8::new(0),
            answered: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            threads: (0..threads).map(thread_control).collect::<io::Result<_>>()?,
        })
    }

    /// Ends the load: nothing more is sent, and replies on their way have a second. The second time it ends at once.
    pub fn stop(&self) {
        self.stop_count.fetch_add(1, Ordering::Relaxed);
        self.wake_all();
    }

    fn wake_all(&self) {
        for thread_control in &self.threads {
            thread_control.waker.wake();
        }
    }

    /// Notes that a server has answered.
    pub(super) fn note_answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Ends the load at once if no server has answered: the address is one at which no socket listens.
    pub(super) fn report_refusal(&self) {
        if !self.answered.load(Ordering::Relaxed) {
            self.refused.store(true, Ordering::Relaxed);
            self.wake_all();
        }
    }

    /// Returns whether a refusal has ended the load, and takes it back.
    pub(super) fn take_refusal(&self) -> bool {
        self.refused.swap(false, Ordering::Relaxed)
    }

    /// Returns whether a stop was requested.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop_count.load(Ordering::Relaxed) > 0
    }

    /// Returns the progress of the load.
    #[must_use]
    pub fn progress(&self) -> BenchProgress {
        let sum = |count: fn(&ThreadControl) -> &AtomicU64| {
            self.threads.iter().map(|thread_control| count(thread_control).load(Ordering::Relaxed)).sum()
        };
        BenchProgress {
            answered: sum(|thread_control| &thread_control.answered),
            errors: sum(|thread_control| &thread_control.errors),
        }
    }

    pub(super) fn stop_request(&self) -> StopRequest {
        match self.stop_count.load(Ordering::Relaxed) {
            _ if self.refused.load(Ordering::Relaxed) => StopRequest::Immediate,
            0 => StopRequest::None,
            1 => StopRequest::Graceful,
            _ => StopRequest::Immediate,
        }
    }

    pub(super) fn waker(&self, thread: usize) -> &Waker {
        &self.threads[thread].waker
    }

    pub(super) fn set_progress(&self, thread: usize, answered: u64, errors: u64) {
        self.threads[thread].answered.store(answered, Ordering::Relaxed);
        self.threads[thread].errors.store(errors, Ordering::Relaxed);
    }
}
