//! The lossless log: whole messages of peers, each an entry, never suppressed, never cut. **A message is accepted when
//! it is written**: when the kernel has queued its entry at journald's socket. Until then its sender keeps it and
//! waits, so nothing waits here that could be lost.
//!
//! ```text
//! journal   try_append ── sendmsg(2), without waiting ──► accepted
//!                └─ no room, or no journal ─► the sender waits; a thread waits for the journal, and wakes senders
//! stderr    try_append ─► a copy for a thread, since write(2) may block ─► written ─► sender woken ─► accepted
//! ```
//!
//! A copy is a promise: when it is written, its sender hears of it the next time that it asks, however late that is. A sender
//! that does not ask again says so ([`LosslessLog::abandon`]).

mod journal;
mod lines;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::thread;
use std::time::SystemTime;

use super::native::{JOURNAL_PATH, JournalSocket};
use super::{
    EntryKind, FIRST_RETRY_DELAY, Log, LogEntry, LogTarget, MAX_RETRY_DELAY, Priority, RateLimit, STALL_TIMEOUT,
};
use journal::JournalMessages;
use lines::LineMessages;

/// A message of a peer.
pub const MESSAGE: EntryKind = EntryKind { name: "peer-message", message_id: "d460f42094ba4f3184a826c2496d3caf" };

/// Messages cannot be written now.
pub const WRITE_FAILED: EntryKind =
    EntryKind { name: "messages-write-failed", message_id: "467276d27c804c67a5ba95e112125318" };

/// Messages are written again.
pub const WRITE_RESUMED: EntryKind =
    EntryKind { name: "messages-write-resumed", message_id: "752a73d870f34899b5084ebe5eb8a2a2" };

/// A message to append.
#[derive(Clone, Copy)]
pub struct ReceivedMessage<'a> {
    /// CONNECTION, where there is one.
    pub connection_id: Option<u64>,
    /// LISTENER.
    pub listener: &'a Arc<str>,
    /// PEER.
    pub peer: &'a dyn fmt::Display,
    /// RECEIVED_NSEC, where it is known.
    pub received_at: Option<SystemTime>,
    /// MESSAGE. Anything may be in it.
    pub bytes: &'a [u8],
}

/// The handle for appending messages; cheap to clone.
#[derive(Debug, Clone)]
pub struct LosslessLog {
    target: Target,
}

#[derive(Debug, Clone)]
enum Target {
    Journal(Arc<JournalMessages>),
    Lines(Arc<LineMessages>),
}

/// Opens the lossless log on this target. Failures are reported in `log`.
#[must_use]
pub fn open(target: LogTarget, log: Log) -> LosslessLog {
    open_at(target, Path::new(JOURNAL_PATH), log, start_thread)
}

fn open_at(target: LogTarget, journal: &Path, log: Log, start_thread: StartThread) -> LosslessLog {
    let health = Health { log, failing: AtomicBool::new(false) };
    let target = match target {
        LogTarget::Journal(_) => {
            let journal = JournalSocket::at(journal);
            Target::Journal(Arc::new(JournalMessages::new(journal, health, start_thread)))
        }
        LogTarget::Lines(output) => Target::Lines(Arc::new(LineMessages::new(output, health, start_thread))),
    };
    LosslessLog { target }
}

/// Starts the thread of a log.
type StartThread = fn(Box<dyn FnOnce() + Send>) -> io::Result<()>;

fn start_thread(run: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    thread::Builder::new().name("messages".to_owned()).spawn(run).map(drop)
}

impl LosslessLog {
    /// Appends a message. Returns `true` when it is written. Otherwise `waker` is woken when it makes sense to try
    /// again, with the same message and the same waker. Never waits.
    #[must_use]
    pub fn try_append(&self, message: ReceivedMessage<'_>, waker: &Waker) -> bool {
        match &self.target {
            Target::Journal(journal) => journal.try_append(message, waker),
            Target::Lines(lines) => lines.try_append(message, waker),
        }
    }

    /// Forgets the message of a sender that was refused and does not ask again: it is not written from now on. Returns whether
    /// it was written already. (One that is being written at this moment may be written and was not.)
    pub fn abandon(&self, waker: &Waker) -> bool {
        match &self.target {
            // Nothing of it is kept but the waker.
            Target::Journal(_) => false,
            Target::Lines(lines) => lines.abandon(waker),
        }
    }

    /// Returns whether messages become entries of the journal.
    #[must_use]
    pub fn writes_to_journal(&self) -> bool {
        matches!(self.target, Target::Journal(_))
    }

    /// Returns whether messages cannot be written now.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        match &self.target {
            Target::Journal(journal) => journal.health.is_failing(),
            Target::Lines(lines) => lines.is_failing(),
        }
    }

    /// Stops writing behind the backs of the senders: from now on, a message that is not accepted is not written
    /// either, so another process may append it.
    pub fn freeze(&self) {
        match &self.target {
            Target::Journal(_) => {}
            Target::Lines(lines) => lines.freeze(),
        }
    }
}

/// Whether messages can be written, and what the log says about that.
struct Health {
    log: Log,
    failing: AtomicBool,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("failing", &self.failing).finish_non_exhaustive()
    }
}

impl Health {
    fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Reports a failure, unless it was reported already.
    fn report_failure(&self, problem: impl fmt::Display) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            let text = format!("{problem}; messages of peers and their senders wait until it works again");
            self.note(WRITE_FAILED, Priority::Warning, text);
        }
    }

    /// Reports that a message was written, if that failed before.
    fn report_success(&self) {
        if self.is_failing() && self.failing.swap(false, Ordering::Relaxed) {
            self.note(WRITE_RESUMED, Priority::Info, "writing messages of peers again".to_owned());
        }
    }

    /// Wakes a sender in a while: for one that no thread of the log can wake. The thread that writes entries does it. If that
    /// cannot write either, waking the sender would not help.
    fn wake_later(&self, waker: &Waker) {
        self.log.wake_later(waker);
    }

    fn note(&self, kind: EntryKind, priority: Priority, text: String) {
        self.log.write(kind, priority, RateLimit::Enforced, || LogEntry { text, ..LogEntry::default() });
    }
}

/// The senders that were refused, in the order in which they were. Each is in it once.
#[derive(Debug, Default)]
pub(super) struct WakerQueue {
    wakers: VecDeque<Waker>,
    /// What tells them apart: each is kept above, so the memory that it points to is not used for another.
    keys: HashSet<usize>,
}

impl WakerQueue {
    pub(super) fn push(&mut self, waker: &Waker) {
        if self.keys.insert(key_of(waker)) {
            self.wakers.push_back(waker.clone());
        }
    }

    pub(super) fn pop_up_to(&mut self, count: usize) -> Vec<Waker> {
        let wakers: Vec<_> = self.wakers.drain(..count.min(self.wakers.len())).collect();
        for waker in &wakers {
            self.keys.remove(&key_of(waker));
        }
        wakers
    }

    fn is_empty(&self) -> bool {
        self.wakers.is_empty()
    }
}

fn key_of(waker: &Waker) -> usize {
    waker.data().addr()
}

#[cfg(test)]
mod tests;
