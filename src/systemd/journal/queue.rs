//! The entries that wait to be written, and the counts of suppressed ones.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::lossless::WakerQueue;
use super::{BURST, EntryKind, LOST, LogEntry, MAX_QUEUED, Priority, RateLimit, STALL_TIMEOUT, SUPPRESSED};
use crate::systemd::clock::now;

/// How long senders of messages wait that no other thread can wake.
const WAKE_DELAY: Duration = Duration::from_secs(1);

/// The queue between the threads that log and the thread that writes.
#[derive(Debug)]
pub(super) struct LogQueue {
    state: Mutex<QueueState>,
    /// There is something to do for the thread that writes.
    more: Condvar,
    /// It has ended.
    done: Condvar,
    interval: Duration,
}

#[derive(Debug, Default)]
struct QueueState {
    queued: VecDeque<QueuedEntry>,
    /// How many did not fit.
    lost: u64,
    /// How many were suppressed in all.
    suppressed_total: u64,
    /// The counts of this interval, one for each kind.
    counts: Vec<KindCount>,
    /// When the interval ends; `None` while nothing has come.
    interval_ends: Option<Instant>,
    /// Kinds with suppressed entries in the interval that has just ended.
    suppressed: Vec<KindCount>,
    /// Since when an entry is being written, if one is.
    writing_since: Option<Instant>,
    /// Whether it cannot be written, and is tried again and again.
    unavailable: bool,
    /// The wakers to wake, and when, if there are any.
    wakers: WakerQueue,
    wake_at: Option<Instant>,
    closing: bool,
    done: bool,
}

impl QueueState {
    /// Returns how many entries wait, the one that is being written included.
    fn waiting(&self) -> usize {
        self.queued.len() + usize::from(self.writing_since.is_some())
    }
}

/// How many entries of a kind there were.
#[derive(Debug)]
struct KindCount {
    kind: EntryKind,
    priority: Priority,
    count: u64,
}

/// An entry that waits.
#[derive(Debug)]
pub(super) struct QueuedEntry {
    pub(super) kind: EntryKind,
    pub(super) priority: Priority,
    pub(super) entry: LogEntry,
}

/// The next task of the writer.
pub(super) enum WriterTask {
    Write(Box<QueuedEntry>),
    /// An entry of the log itself.
    Report(EntryKind, Priority, String),
    /// Wake them.
    Wake(Vec<Waker>),
    /// Nothing; the queue is closed.
    End,
}

impl LogQueue {
    pub(super) fn new(interval: Duration) -> Self {
        Self { state: Mutex::default(), more: Condvar::new(), done: Condvar::new(), interval }
    }

    /// Counts an entry. Returns whether it is to be written.
    pub(super) fn admit(&self, kind: EntryKind, priority: Priority, rate_limit: RateLimit) -> bool {
        if rate_limit == RateLimit::Exempt {
            return true;
        }
        let mut state = self.state();
        match state.counts.iter_mut().find(|counts| counts.kind.message_id == kind.message_id) {
            Some(counts) => {
                counts.count += 1;
                let is_admitted = counts.count <= BURST;
                state.suppressed_total += u64::from(!is_admitted);
                is_admitted
            }
            None => {
                state.counts.push(KindCount { kind, priority, count: 1 });
                true
            }
        }
    }

    /// Has an entry written, if there is room.
    pub(super) fn push(&self, kind: EntryKind, priority: Priority, entry: LogEntry) {
        let mut state = self.state();
        if state.closing {
            return;
        }
        if state.queued.len() >= MAX_QUEUED {
            state.lost += 1;
            return;
        }
        state.queued.push_back(QueuedEntry { kind, priority, entry });
        drop(state);
        self.more.notify_one();
    }

    /// Has this woken in [`WAKE_DELAY`].
    pub(super) fn wake_later(&self, waker: &Waker) {
        let mut state = self.state();
        state.wakers.push(waker);
        state.wake_at.get_or_insert_with(|| now() + WAKE_DELAY);
        drop(state);
        self.more.notify_one();
    }

    /// Ends the interval now: what was suppressed is reported before anything else.
    pub(super) fn end_interval(&self) {
        let mut state = self.state();
        if !state.counts.is_empty() {
            state.interval_ends = Some(now());
        }
    }

    /// Waits for something to do.
    pub(super) fn next(&self) -> WriterTask {
        let mut state = self.state();
        state.writing_since = None;
        loop {
            if state.lost > 0 {
                state.writing_since = Some(now());
                let lost = std::mem::take(&mut state.lost);
                let entries = if lost == 1 { "entry" } else { "entries" };
                let text = format!("dropped {lost} log {entries} here: writing the log was too slow");
                return WriterTask::Report(LOST, Priority::Warning, text);
            }
            if let Some(KindCount { kind, priority, count: counts }) = state.suppressed.pop() {
                state.writing_since = Some(now());
                let (suppressed, time) = (counts - BURST, self.interval.as_secs());
                let text = format!(
                    "suppressed {suppressed} {} message{} (limit: {BURST} per {time}s)",
                    kind.name,
                    if suppressed == 1 { "" } else { "s" }
                );
                return WriterTask::Report(SUPPRESSED, priority, text);
            }
            if state.interval_ends.is_none() && !state.counts.is_empty() {
                state.interval_ends = Some(now() + self.interval);
            }
            let interval_ends = state.interval_ends;
            let ended = interval_ends.is_some_and(|interval_ends| interval_ends <= now())
                || state.closing && state.queued.is_empty();
            if ended && !state.counts.is_empty() {
                state.interval_ends = None;
                let mut counts = std::mem::take(&mut state.counts);
                counts.retain(|counts| counts.count > BURST);
                state.suppressed = counts;
                continue;
            }
            if state.wake_at.is_some_and(|at| at <= now()) {
                state.wake_at = None;
                return WriterTask::Wake(state.wakers.pop_up_to(usize::MAX));
            }
            if let Some(queued) = state.queued.pop_front() {
                state.writing_since = Some(now());
                return WriterTask::Write(Box::new(queued));
            }
            if state.closing {
                return WriterTask::End;
            }
            state = match interval_ends.into_iter().chain(state.wake_at).min() {
                Some(until) => {
                    let left = until.saturating_duration_since(now());
                    self.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.more.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Records whether entries cannot be written now.
    pub(super) fn set_unavailable(&self, unavailable: bool) {
        self.state().unavailable = unavailable;
    }

    /// Returns how many entries wait because none can be written, or one takes very long; `None` if they can be.
    pub(super) fn backlog(&self) -> Option<usize> {
        let stalls = |since| now().saturating_duration_since(since) >= STALL_TIMEOUT;
        let state = self.state();
        (state.unavailable || state.writing_since.is_some_and(stalls)).then(|| state.waiting())
    }

    /// Returns how many entries were suppressed so far.
    pub(super) fn suppressed_total(&self) -> u64 {
        self.state().suppressed_total
    }

    /// Notes that the writer thread has ended.
    pub(super) fn set_done(&self) {
        self.state().done = true;
        self.done.notify_all();
    }

    /// Takes nothing more, and waits until all is written, for so long. Returns how many entries are not.
    pub(super) fn close(&self, within: Duration) -> usize {
        let mut state = self.state();
        state.closing = true;
        self.more.notify_one();
        let interval_ends = now() + within;
        while !state.done {
            let left = interval_ends.saturating_duration_since(now());
            if left.is_zero() {
                break;
            }
            state = self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.done { 0 } else { state.waiting() + usize::try_from(state.lost).unwrap_or(usize::MAX) }
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
