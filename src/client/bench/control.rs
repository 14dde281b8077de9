//! What a load and those outside say to each other while it runs.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::poll::Waker;

/// Ends a load early, and tells how far it is. For any thread.
#[derive(Debug)]
pub struct Control {
    ending: AtomicU8,
    threads: Vec<Desk>,
}

#[derive(Debug)]
struct Desk {
    waker: Waker,
    answered: AtomicU64,
    errors: AtomicU64,
}

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Messages that were answered, in the warm-up too. At most a tenth of a second old.
    pub answered: u64,
    /// What went wrong.
    pub errors: u64,
}

/// Whether a load is to end before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    No,
    /// Replies on their way are waited for.
    Soon,
    Now,
}

impl Control {
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let desk = |_| Ok(Desk { waker: Waker::new()?, answered: AtomicU64::new(0), errors: AtomicU64::new(0) });
        Ok(Self { ending: AtomicU8::new(0), threads: (0..threads).map(desk).collect::<io::Result<_>>()? })
    }

    /// Ends the load: nothing more is sent, and replies on their way have a second. The second time it ends at once.
    pub fn stop(&self) {
        self.ending.fetch_add(1, Ordering::Relaxed);
        for desk in &self.threads {
            desk.waker.wake();
        }
    }

    /// Whether somebody has ended it.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.ending() != Ending::No
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let sum =
            |count: fn(&Desk) -> &AtomicU64| self.threads.iter().map(|desk| count(desk).load(Ordering::Relaxed)).sum();
        Progress { answered: sum(|desk| &desk.answered), errors: sum(|desk| &desk.errors) }
    }

    pub(super) fn ending(&self) -> Ending {
        match self.ending.load(Ordering::Relaxed) {
            0 => Ending::No,
            1 => Ending::Soon,
            _ => Ending::Now,
        }
    }

    pub(super) fn waker(&self, thread: usize) -> &Waker {
        &self.threads[thread].waker
    }

    pub(super) fn report(&self, thread: usize, answered: u64, errors: u64) {
        self.threads[thread].answered.store(answered, Ordering::Relaxed);
        self.threads[thread].errors.store(errors, Ordering::Relaxed);
    }
}
