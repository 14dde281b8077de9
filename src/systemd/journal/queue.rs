//! What waits to be written, and what was left out.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{BURST, Entry, Flood, Kind, LEFT_OUT, LOST, Priority, QUEUE, now};

/// The queue between those who have something to say and the thread that writes.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something to do for the thread that writes.
    more: Condvar,
    /// It has ended.
    done: Condvar,
    interval: Duration,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Item>,
    /// How many did not fit.
    lost: u64,
    /// What came in this interval. As long as there are kinds.
    seen: Vec<Seen>,
    /// When the interval ends; `None` while nothing has come.
    interval_ends: Option<Instant>,
    /// Who was left out in the interval that has just ended.
    left_out: Vec<Seen>,
    closing: bool,
    done: bool,
}

/// How many entries of a kind there were.
#[derive(Debug)]
struct Seen {
    kind: Kind,
    priority: Priority,
    count: u64,
}

/// An entry that waits.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) kind: Kind,
    pub(super) priority: Priority,
    pub(super) entry: Entry,
}

/// What is to be written next.
pub(super) enum Task {
    Write(Box<Item>),
    /// Of the log itself.
    Report(Kind, Priority, String),
    /// Nothing any more.
    End,
}

impl Queue {
    pub(super) fn new(interval: Duration) -> Self {
        Self { state: Mutex::default(), more: Condvar::new(), done: Condvar::new(), interval }
    }

    /// Counts an entry. Returns whether it is to be written.
    pub(super) fn admits(&self, kind: Kind, priority: Priority, flood: Flood) -> bool {
        if flood == Flood::Wanted {
            return true;
        }
        let mut state = self.state();
        match state.seen.iter_mut().find(|seen| seen.kind.message_id == kind.message_id) {
            Some(seen) => {
                seen.count += 1;
                seen.count <= BURST
            }
            None => {
                state.seen.push(Seen { kind, priority, count: 1 });
                true
            }
        }
    }

    /// Has an entry written, if there is room.
    pub(super) fn push(&self, kind: Kind, priority: Priority, entry: Entry) {
        let mut state = self.state();
        if state.closing {
            return;
        }
        if state.waiting.len() >= QUEUE {
            state.lost += 1;
            return;
        }
        state.waiting.push_back(Item { kind, priority, entry });
        drop(state);
        self.more.notify_one();
    }

    /// Has the interval end now: what was left out is reported before anything else.
    pub(super) fn end_interval(&self) {
        let mut state = self.state();
        if !state.seen.is_empty() {
            state.interval_ends = Some(now());
        }
    }

    /// Waits for something to do.
    pub(super) fn next(&self) -> Task {
        let mut state = self.state();
        loop {
            if state.lost > 0 {
                let lost = std::mem::take(&mut state.lost);
                let text = format!("{lost} entries were left out here, the log was too slow");
                return Task::Report(LOST, Priority::Warning, text);
            }
            if let Some(Seen { kind, priority, count }) = state.left_out.pop() {
                let (left_out, time) = (count - BURST, self.interval.as_secs());
                let text = format!(
                    "{left_out} more entries of the kind {} were left out: only {BURST} of a kind are logged in {time}s",
                    kind.name
                );
                return Task::Report(LEFT_OUT, priority, text);
            }
            if state.interval_ends.is_none() && !state.seen.is_empty() {
                state.interval_ends = Some(now() + self.interval);
            }
            let ends = state.interval_ends;
            let ended = ends.is_some_and(|ends| ends <= now()) || state.closing && state.waiting.is_empty();
            if ended && !state.seen.is_empty() {
                state.interval_ends = None;
                let mut seen = std::mem::take(&mut state.seen);
                seen.retain(|seen| seen.count > BURST);
                state.left_out = seen;
                continue;
            }
            if let Some(item) = state.waiting.pop_front() {
                return Task::Write(Box::new(item));
            }
            if state.closing {
                return Task::End;
            }
            state = match ends {
                Some(ends) => {
                    let left = ends.saturating_duration_since(now());
                    self.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.more.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// The thread that writes has ended.
    pub(super) fn set_done(&self) {
        self.state().done = true;
        self.done.notify_all();
    }

    /// Takes nothing more, and waits until all is written, for so long. Returns whether it is.
    pub(super) fn close(&self, within: Duration) -> bool {
        let mut state = self.state();
        state.closing = true;
        self.more.notify_one();
        let ends = now() + within;
        while !state.done {
            let left = ends.saturating_duration_since(now());
            if left.is_zero() {
                break;
            }
            state = self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.done
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
