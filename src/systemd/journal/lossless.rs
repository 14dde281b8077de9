//! The lossless log: whole messages of peers, each an entry, never suppressed, never cut. When the journal is slow, the
//! clients wait.
//!
//! A message is appended if there is room for it in a bounded queue, and refused otherwise; a refused sender is woken
//! when half of the queue is free. One thread writes, from the first message on, and tries the same one again until it
//! is written: journald may be busy, hang, or be started anew. Without the journal a message is a line, whole and
//! escaped.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::native::{self, JournalSocket};
use super::sink::{PriorityStyle, format_line};
use super::text::{escape_bytes, escape_control};
use super::{EntryKind, IDENTIFIER, Log, LogEntry, LogTarget, Priority, RateLimit, now};

/// A message of a peer.
pub const MESSAGE: EntryKind = EntryKind { name: "peer-message", message_id: "d460f42094ba4f3184a826c2496d3caf" };

/// Messages cannot be written now.
pub const WRITE_FAILED: EntryKind =
    EntryKind { name: "messages-write-failed", message_id: "467276d27c804c67a5ba95e112125318" };

/// Messages are written again.
pub const WRITE_RESUMED: EntryKind =
    EntryKind { name: "messages-write-resumed", message_id: "752a73d870f34899b5084ebe5eb8a2a2" };

/// How many messages may wait to be written.
pub const MAX_MESSAGES: usize = 1024;

/// How many bytes of them; one message may be longer, when it is alone.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The first retry delay after a failure; each further one is twice as long, up to [`MAX_RETRY_DELAY`].
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(10);

/// The longest retry delay.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);

/// How often all wakers are woken even without room. Those of connections that have ended are not stored again, so that
/// stale wakers do not accumulate while nothing can be written.
const WAKE_ALL_INTERVAL: Duration = Duration::from_secs(10);

/// A message to append.
#[derive(Clone, Copy)]
pub struct ReceivedMessage<'a> {
    /// CONNECTION, where there is one.
    pub connection_id: Option<u64>,
    /// LISTENER.
    pub listener: &'a Arc<str>,
    /// PEER.
    pub peer: &'a dyn fmt::Display,
    /// MESSAGE. Anything may be in it.
    pub bytes: &'a [u8],
}

/// The handle for appending messages; cheap to clone.
#[derive(Debug, Clone)]
pub struct LosslessLog {
    queue: Arc<LosslessQueue>,
}

/// The thread that writes, as soon as there is something to write.
#[derive(Debug)]
pub struct LosslessWriter {
    queue: Arc<LosslessQueue>,
}

struct LosslessQueue {
    log: Log,
    state: Mutex<LosslessState>,
    /// There is something to do for the thread that writes.
    more: Condvar,
    /// There is nothing left to write.
    done: Condvar,
}

#[derive(Default)]
struct LosslessState {
    queued: VecDeque<QueuedMessage>,
    /// Messages appended and not written, including those that are not in `queued`.
    unwritten: usize,
    /// Their bytes.
    unwritten_bytes: usize,
    /// The wakers of senders that were refused.
    wakers: Vec<Waker>,
    /// When all of them were last woken without room ([`WAKE_ALL_INTERVAL`]).
    last_wake_all: Option<Instant>,
    /// Messages written so far; decides which waker is woken first.
    written: usize,
    closing: bool,
    /// What is not written by now is lost.
    abandoned: bool,
    /// Where they are written to, until there is a thread that does it.
    output: Option<MessageOutput>,
    thread: Option<JoinHandle<()>>,
    /// Whether it was reported that the thread cannot be made.
    spawn_failed: bool,
}

impl fmt::Debug for LosslessQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LosslessQueue").finish_non_exhaustive()
    }
}

/// A message that waits.
#[derive(Debug)]
struct QueuedMessage {
    connection_id: Option<u64>,
    listener: Arc<str>,
    peer: String,
    bytes: Box<[u8]>,
}

/// Opens the lossless log on this target. What goes wrong is reported in `log`.
#[must_use]
pub fn open(target: LogTarget, log: Log) -> (LosslessLog, LosslessWriter) {
    open_at(target, native::JOURNAL_PATH.into(), log)
}

fn open_at(target: LogTarget, path: PathBuf, log: Log) -> (LosslessLog, LosslessWriter) {
    let output = match target {
        LogTarget::Journal(_) => MessageOutput::Journal(JournalSocket::at(path)),
        LogTarget::Lines(output) => MessageOutput::Lines(output),
    };
    let state = Mutex::new(LosslessState { output: Some(output), ..LosslessState::default() });
    let queue = Arc::new(LosslessQueue { log, state, more: Condvar::default(), done: Condvar::default() });
    (LosslessLog { queue: Arc::clone(&queue) }, LosslessWriter { queue })
}

impl LosslessLog {
    /// Appends a message, which will be written. Returns `false` if there is no room for it now; then `waker` is woken
    /// when it makes sense to try again. Never waits.
    #[must_use]
    pub fn try_append(&self, message: ReceivedMessage<'_>, waker: &Waker) -> bool {
        let appended = self.queue.reserve(message.bytes.len(), waker);
        let mut state = self.queue.state();
        if appended {
            state.queued.push_back(QueuedMessage {
                connection_id: message.connection_id,
                listener: Arc::clone(message.listener),
                peer: message.peer.to_string(),
                bytes: message.bytes.into(),
            });
            self.queue.more.notify_one();
        }
        if state.thread.is_none() {
            self.queue.spawn_writer(&mut state);
        }
        appended
    }
}

impl LosslessWriter {
    /// Refuses further messages, and waits until everything is written: for `timeout`, or without one for ever. Returns
    /// how many messages are lost.
    pub fn close(self, timeout: Option<Duration>) -> usize {
        let lost = self.queue.close(timeout);
        let thread = self.queue.state().thread.take();
        if let Some(thread) = thread.filter(|_| lost == 0) {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
        lost
    }
}

impl LosslessQueue {
    /// Starts the thread that writes. If that fails, the next call of `try_append` tries it again.
    fn spawn_writer(self: &Arc<Self>, state: &mut LosslessState) {
        let queue = Arc::clone(self);
        match thread::Builder::new().name("messages".to_owned()).spawn(move || queue.run()) {
            Ok(thread) => state.thread = Some(thread),
            Err(error) if !mem::replace(&mut state.spawn_failed, true) => {
                let text = format!("cannot start the thread that writes messages of peers: {error}; they wait");
                log_note(&self.log, WRITE_FAILED, Priority::Warning, text);
            }
            Err(_) => {}
        }
    }

    /// Writes, until the end.
    fn run(&self) {
        let Some(mut output) = self.state().output.take() else { return };
        while let Some(message) = self.next() {
            if !self.write(&mut output, &message) {
                break;
            }
            self.finish_message(message.bytes.len());
        }
    }

    fn reserve(&self, bytes: usize, waker: &Waker) -> bool {
        let mut state = self.state();
        let fits = state.unwritten < MAX_MESSAGES && state.unwritten_bytes.saturating_add(bytes) <= MAX_BYTES;
        if !state.closing && (fits || state.unwritten == 0) {
            state.unwritten += 1;
            state.unwritten_bytes += bytes;
            return true;
        }
        let now = now();
        let last_wake_all = *state.last_wake_all.get_or_insert(now);
        let wake_all = now.duration_since(last_wake_all) >= WAKE_ALL_INTERVAL;
        let wakers = if wake_all { mem::take(&mut state.wakers) } else { Vec::new() };
        if wake_all {
            state.last_wake_all = Some(now);
        }
        if !state.wakers.iter().any(|other| other.will_wake(waker)) {
            state.wakers.push(waker.clone());
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        false
    }

    /// The next message; `None` at the end.
    fn next(&self) -> Option<QueuedMessage> {
        let mut state = self.state();
        loop {
            if let Some(message) = state.queued.pop_front() {
                return Some(message);
            }
            if state.closing && state.unwritten == 0 || state.abandoned {
                return None;
            }
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes a message, however long it takes. Returns `false` if this was abandoned.
    fn write(&self, output: &mut MessageOutput, message: &QueuedMessage) -> bool {
        let entry = output.encode(message);
        let (mut at, mut delay, mut failing) = (0, FIRST_RETRY_DELAY, false);
        while let Err(error) = output.write(&entry, &mut at) {
            if !failing {
                failing = true;
                log_note(&self.log, WRITE_FAILED, Priority::Warning, output.describe_error(&error));
            }
            // Where there was a time limit, waiting has been done.
            let waited = matches!(output, MessageOutput::Journal(_)) && error.kind() == ErrorKind::WouldBlock;
            if self.wait_or_abandon(if waited { Duration::ZERO } else { delay }) {
                return false;
            }
            delay = (delay * 2).min(MAX_RETRY_DELAY);
        }
        if failing {
            log_note(&self.log, WRITE_RESUMED, Priority::Info, "messages of peers are written again".to_owned());
        }
        true
    }

    /// Waits. Returns whether writing was abandoned.
    fn wait_or_abandon(&self, time: Duration) -> bool {
        let state = self.state();
        let wait = self.more.wait_timeout_while(state, time, |state| !state.abandoned);
        wait.unwrap_or_else(PoisonError::into_inner).0.abandoned
    }

    fn finish_message(&self, bytes: usize) {
        let mut state = self.state();
        state.unwritten -= 1;
        state.unwritten_bytes -= bytes;
        state.written = state.written.wrapping_add(1);
        let mut wakers = Vec::new();
        if state.unwritten <= MAX_MESSAGES / 2 && state.unwritten_bytes <= MAX_BYTES / 2 && !state.wakers.is_empty() {
            wakers = mem::take(&mut state.wakers);
            // The first wakers take what room there is. They should be others each time: a hash selects the first one.
            let hash = state.written.wrapping_mul(0x9E37_79B9) >> 16;
            let first = hash % wakers.len();
            wakers.rotate_left(first);
            state.last_wake_all = None;
        }
        if state.unwritten == 0 {
            self.done.notify_all();
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn close(&self, timeout: Option<Duration>) -> usize {
        let deadline = timeout.map(|timeout| now() + timeout);
        let mut state = self.state();
        state.closing = true;
        while state.unwritten > 0 {
            state = match deadline.map(|deadline| deadline.saturating_duration_since(now())) {
                None => self.done.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(remaining) => self.done.wait_timeout(state, remaining).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        state.abandoned = true;
        self.more.notify_one();
        state.unwritten
    }

    fn state(&self) -> MutexGuard<'_, LosslessState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log_note(log: &Log, kind: EntryKind, priority: Priority, text: String) {
    log.write(kind, priority, RateLimit::Enforced, || LogEntry { text, ..LogEntry::default() });
}

enum MessageOutput {
    Journal(JournalSocket),
    Lines(Box<dyn Write + Send>),
}

impl MessageOutput {
    /// The bytes to write.
    fn encode(&self, message: &QueuedMessage) -> Vec<u8> {
        let QueuedMessage { connection_id, listener, peer, bytes } = message;
        match self {
            Self::Journal(_) => {
                let mut entry = Vec::with_capacity(bytes.len() + 320);
                native::put_field(&mut entry, "PRIORITY", (Priority::Info as u8).to_string().as_bytes());
                native::put_field(&mut entry, "SYSLOG_IDENTIFIER", IDENTIFIER.as_bytes());
                native::put_field(&mut entry, "MESSAGE_ID", MESSAGE.message_id.as_bytes());
                native::put_field(&mut entry, "LISTENER", listener.as_bytes());
                native::put_field(&mut entry, "PEER", peer.as_bytes());
                if let Some(connection) = connection_id {
                    native::put_field(&mut entry, "CONNECTION", connection.to_string().as_bytes());
                }
                native::put_field(&mut entry, "MESSAGE", bytes);
                entry
            }
            Self::Lines(_) => {
                let text = escape_bytes(bytes);
                let on = connection_id.map(|connection| format!("connection {connection} on ")).unwrap_or_default();
                let text = format!("message on {on}{listener} from {peer}: {text}");
                format_line(PriorityStyle::Names, Priority::Info, &escape_control(&text, false)).into_bytes()
            }
        }
    }

    /// Writes what is not written yet: from `at` on, which is moved on.
    fn write(&mut self, entry: &[u8], at: &mut usize) -> io::Result<()> {
        match self {
            Self::Journal(journal) => journal.send(entry),
            Self::Lines(output) => {
                while *at < entry.len() {
                    match output.write(&entry[*at..]) {
                        Ok(0) => return Err(ErrorKind::WriteZero.into()),
                        Ok(count) => *at += count,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        }
    }

    fn describe_error(&self, error: &io::Error) -> String {
        let problem = match self {
            Self::Journal(journal) => match error.kind() {
                ErrorKind::WouldBlock => format!("the journal at {} takes nothing", journal.path().display()),
                _ => format!("cannot send to the journal at {}: {error}", journal.path().display()),
            },
            Self::Lines(_) => format!("cannot write to stderr: {error}"),
        };
        format!("{problem}; messages of peers wait until it works again, and who sends them waits")
    }
}

#[cfg(test)]
mod tests;
