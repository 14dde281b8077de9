//! Messages that go to journald's socket, from the threads of their senders.

use std::cmp;
use std::fmt::Write;
use std::io::{self, ErrorKind, IoSlice};
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use super::{
    FIRST_RETRY_DELAY, Health, MAX_RETRY_DELAY, MESSAGE, ReceivedMessage, STALL_TIMEOUT, StartThread, WakerQueue,
};
use crate::systemd::journal::native::{self, JournalSocket};
use crate::systemd::journal::{IDENTIFIER, Priority, nanos_since_1970};

/// How many senders are woken at first when the journal has room; twice as many each time it still has room then.
const MIN_BATCH: usize = 16;

/// How many are woken at once at most.
const MAX_BATCH: usize = 256;

/// The time between two batches. The senders that were woken use it, and so does journald: less than it takes to empty
/// its queue, and more than it takes to make room for one entry, so that senders are not woken for each entry.
const BATCH_INTERVAL: Duration = Duration::from_micros(100);

/// The lossless log in the journal.
#[derive(Debug)]
pub(super) struct JournalMessages {
    pub(super) health: Health,
    start_thread: StartThread,
    journal: JournalSocket,
    /// Whether the journal has taken an entry since the last batch of senders was woken.
    took_entry: AtomicBool,
    waiting: Mutex<Waiting>,
    /// There is a sender to wake.
    more: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    senders: WakerQueue,
    /// Whether the journal had no room since the last batch was woken.
    was_full: bool,
    /// The last error since then.
    error: Option<io::Error>,
    /// Whether the thread that wakes them runs.
    thread_runs: bool,
}

impl JournalMessages {
    pub(super) fn new(journal: JournalSocket, health: Health, start_thread: StartThread) -> Self {
        Self {
            health,
            start_thread,
            journal,
            took_entry: AtomicBool::new(false),
            waiting: Mutex::default(),
            more: Condvar::new(),
        }
    }

    /// Does what [`LosslessLog::try_append`](super::LosslessLog::try_append) does.
    pub(super) fn try_append(self: &Arc<Self>, message: ReceivedMessage<'_>, waker: &Waker) -> bool {
        let head = encode_head(&message);
        let entry = [IoSlice::new(&head), IoSlice::new(message.bytes), IoSlice::new(b"\n")];
        match self.journal.try_send(&entry) {
            Ok(()) => {
                self.health.report_success();
                // Mostly it is set already, so that workers do not take the memory from each other.
                if !self.took_entry.load(Ordering::Relaxed) {
                    self.took_entry.store(true, Ordering::Relaxed);
                }
                true
            }
            Err(error) => {
                self.refuse(error, waker);
                false
            }
        }
    }

    /// Has a sender woken when it makes sense to try again.
    fn refuse(self: &Arc<Self>, error: io::Error, waker: &Waker) {
        let mut waiting = self.lock();
        waiting.senders.push(waker);
        if error.kind() == ErrorKind::WouldBlock {
            waiting.was_full = true;
        } else {
            waiting.error = Some(error);
        }
        if !waiting.thread_runs {
            let this = Arc::clone(self);
            match (self.start_thread)(Box::new(move || this.wake_senders())) {
                Ok(()) => waiting.thread_runs = true,
                Err(error) => {
                    let problem = format!("failed to start the thread that waits for the journal: {error}");
                    self.health.report_failure(problem);
                    self.health.wake_later(waker);
                }
            }
        }
        self.more.notify_one();
    }

    /// Waits for the journal and wakes senders, until the process ends.
    fn wake_senders(&self) {
        let (mut delay, mut batch) = (FIRST_RETRY_DELAY, MIN_BATCH);
        // For how long there has been room, and nothing was taken.
        let mut refusing = Duration::ZERO;
        loop {
            let (error, was_full) = self.next();
            if self.took_entry.swap(false, Ordering::Relaxed) {
                refusing = Duration::ZERO;
            } else if was_full {
                refusing += BATCH_INTERVAL;
            }
            match error.map_or_else(|| self.journal.wait_for_room(STALL_TIMEOUT), Err) {
                // The kernel has no memory for an entry (ENOBUFS), say.
                Ok(true) if refusing >= STALL_TIMEOUT => {
                    self.report_stall();
                    thread::sleep(delay);
                    delay = cmp::min(delay * 2, MAX_RETRY_DELAY);
                }
                Ok(true) => delay = FIRST_RETRY_DELAY,
                Ok(false) => {
                    self.report_stall();
                    batch = MIN_BATCH;
                    continue;
                }
                Err(error) => {
                    let path = self.journal.path();
                    self.health.report_failure(format!("failed to send to the journal at {}: {error}", path.display()));
                    thread::sleep(delay);
                    delay = cmp::min(delay * 2, MAX_RETRY_DELAY);
                    // If there is no journal yet, no sender needs to find that out.
                    if self.journal.connect().is_err() {
                        continue;
                    }
                }
            }
            batch = if was_full { MIN_BATCH } else { cmp::min(batch * 2, MAX_BATCH) };
            let woken = self.lock().senders.pop_up_to(batch);
            woken.into_iter().for_each(Waker::wake);
            thread::sleep(BATCH_INTERVAL);
        }
    }

    /// Waits until a sender waits. Returns what went wrong since the last time, and whether the journal had no room.
    fn next(&self) -> (Option<io::Error>, bool) {
        let waiting = self.more.wait_while(self.lock(), |waiting| waiting.senders.is_empty());
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        (waiting.error.take(), mem::take(&mut waiting.was_full))
    }

    fn report_stall(&self) {
        self.health
            .report_failure(format!("the journal at {} is not accepting entries", self.journal.path().display()));
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the entry up to the bytes of the message. After those comes a line feed.
fn encode_head(message: &ReceivedMessage<'_>) -> Vec<u8> {
    let ReceivedMessage { connection_id, listener, peer, received_at, bytes } = message;
    let mut head = Vec::with_capacity(384);
    native::put_field(&mut head, "PRIORITY", (Priority::Info as u8).to_string().as_bytes());
    native::put_field(&mut head, "SYSLOG_IDENTIFIER", IDENTIFIER.as_bytes());
    native::put_field(&mut head, "MESSAGE_ID", MESSAGE.message_id.as_bytes());
    native::put_field(&mut head, "LISTENER", listener.as_bytes());
    let mut text = String::with_capacity(64);
    // Writing to a String cannot fail.
    let _ = write!(text, "{peer}");
    native::put_field(&mut head, "PEER", text.as_bytes());
    if let Some(connection) = connection_id {
        text.clear();
        let _ = write!(text, "{connection}");
        native::put_field(&mut head, "CONNECTION", text.as_bytes());
    }
    if let Some(received) = received_at.and_then(nanos_since_1970) {
        native::put_field(&mut head, "RECEIVED_NSEC", received.to_string().as_bytes());
    }
    native::put_field_start(&mut head, "MESSAGE", bytes.len());
    head
}
