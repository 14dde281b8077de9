//! The log: native entries in the journal, with fields and a MESSAGE_ID, where stderr is the journal; else readable
//! lines on stderr.
//!
//! Writing may block for as long as the reader likes, so no thread that serves connections does it: one thread does
//! nothing else, behind a bounded queue. What does not fit is counted, and the number is written as soon as there is
//! room again. While the journal cannot be reached, entries wait, and the thread tries again ([`Log::backlog`]).
//!
//! **Rate limit.** Of each [`EntryKind`] at most [`BURST`] entries are queued in [`INTERVAL`], whatever their priority.
//! Further ones are suppressed: counted, and not formatted. When the interval is over, one entry says how many of which
//! kind were suppressed. Some 30 kinds at their limit stay below what journald takes of one service by default (10,000
//! entries in 30 s). Entries that the user asked for are exempt ([`RateLimit::Exempt`]).
//!
//! **Hostile text.** The names of fields are fixed here, values are sent with their lengths, and control characters are
//! escaped; so nothing that comes from a peer can make a field, an entry or a line.
//!
//! **Whole messages** ([`lossless`]) are the exception to all of this: they are never suppressed nor queued, and their
//! senders wait.

mod line_lock;
pub mod lossless;
mod native;
mod queue;
mod sink;
mod text;

use std::env;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use line_lock::LineLock;
use queue::{LogQueue, WriterTask};
use sink::Sink;

pub use native::JOURNAL_PATH;
pub use sink::is_stderr;

/// How many entries may wait to be written.
const MAX_QUEUED: usize = 1024;

/// How many entries of one kind are written in one [`INTERVAL`].
pub const BURST: u64 = 100;

/// The time that [`BURST`] is counted in. It begins with the first entry after a calm.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// How long the journal may have no room, before it is an error.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The first retry delay after a failure; each further one is twice as long, up to [`MAX_RETRY_DELAY`].
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(10);

/// The longest retry delay.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);

/// How long the last entries may take to be written when the log is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The SYSLOG_IDENTIFIER of entries.
const IDENTIFIER: &str = "echoed";

/// A kind of entries. Each has its own rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryKind {
    /// Its name where entries of it were suppressed.
    pub name: &'static str,
    /// MESSAGE_ID: 32 lower case hexadecimal digits; what the catalog explains.
    pub message_id: &'static str,
}

/// Entries of some kind were suppressed.
pub const SUPPRESSED: EntryKind = EntryKind { name: "suppressed", message_id: "3b46abbb33834701a85bd7e385371fed" };

/// Entries did not fit into the queue.
pub const LOST: EntryKind = EntryKind { name: "lost", message_id: "c60cb380c451445a9c1783033806b8fa" };

/// How urgent an entry is, in the numbers of syslog(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Priority {
    /// A failure that an administrator has to look at.
    Error = 3,
    /// A problem that echoed works around.
    Warning = 4,
    /// Normal operation.
    Info = 6,
    /// Details for debugging.
    Debug = 7,
}

impl Priority {
    /// Returns its name at the beginning of a line.
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Whether the rate limit applies to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimit {
    /// It applies: the entry is counted.
    Enforced,
    /// It does not apply: the user asked for every entry. Only the queue limits these.
    Exempt,
}

/// The fields of an entry.
#[derive(Debug, Clone, Default)]
pub struct LogEntry {
    /// MESSAGE, the text for people.
    pub text: String,
    /// Whether `text` may have several lines. If not, line feeds in it are escaped.
    pub multiline: bool,
    /// LISTENER.
    pub listener: Option<Arc<str>>,
    /// PEER.
    pub peer: Option<String>,
    /// CONNECTION.
    pub connection: Option<u64>,
    /// VERDICT.
    pub verdict: Option<&'static str>,
    /// REASON.
    pub reason: Option<&'static str>,
    /// BYTES_IN.
    pub bytes_in: Option<u64>,
    /// BYTES_OUT.
    pub bytes_out: Option<u64>,
    /// MESSAGES.
    pub messages: Option<u64>,
    /// RECEIVED_NSEC.
    pub received_at: Option<SystemTime>,
    /// CALLER_UID.
    pub caller_uid: Option<u32>,
    /// CALLER_PID.
    pub caller_pid: Option<i32>,
}

/// Returns a time as RECEIVED_NSEC has it; `None` if it does not fit.
fn nanos_since_1970(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok()?.as_nanos().try_into().ok()
}

/// The handle for writing to the log; cheap to clone.
#[derive(Debug, Clone)]
pub struct Log {
    queue: Arc<LogQueue>,
    /// Held while a line is written to stderr.
    line_lock: Arc<LineLock>,
}

/// The writer of the log: a thread, once it is started. Must be closed last.
pub struct LogWriter {
    queue: Arc<LogQueue>,
    /// The sink, until the thread takes it.
    sink: Arc<Mutex<Option<Sink>>>,
    thread: Option<JoinHandle<()>>,
}

/// The target of entries.
pub enum LogTarget {
    /// Into the journal. What is here takes lines instead if the journal cannot be reached.
    Journal(Box<dyn Write + Send>),
    /// A line each to this.
    Lines(Box<dyn Write + Send>),
}

impl LogTarget {
    /// Returns stderr: the journal, if stderr leads there. Where stderr is withheld, because it is a client's connection: the
    /// journal, if it can be reached, or nowhere.
    #[must_use]
    pub fn of_stderr(is_withheld: bool) -> Self {
        if is_withheld {
            let nowhere = Box::new(io::sink());
            return if native::is_reachable() { Self::Journal(nowhere) } else { Self::Lines(nowhere) };
        }
        let stderr = Box::new(io::stderr());
        if is_stderr(env::var("JOURNAL_STREAM").ok().as_deref()) { Self::Journal(stderr) } else { Self::Lines(stderr) }
    }
}

/// Starts the writer thread.
///
/// # Errors
/// Returns an error if the thread cannot be made.
pub fn start(target: LogTarget) -> io::Result<(Log, LogWriter)> {
    let (log, mut writer) = open(target);
    writer.start()?;
    Ok((log, writer))
}

/// Opens a log. Its entries wait until the writer is started.
#[must_use]
pub fn open(target: LogTarget) -> (Log, LogWriter) {
    open_with(target, INTERVAL)
}

/// Writes one entry on this thread, without starting another one. May block.
pub fn write_now(target: LogTarget, kind: EntryKind, priority: Priority, entry: &LogEntry) {
    let mut sink = Sink::new(target, Arc::default());
    sink.open();
    // If it cannot be written, there is no other place to report it.
    let _ = sink.write(kind, priority, entry);
    sink.flush();
}

fn open_with(target: LogTarget, interval: Duration) -> (Log, LogWriter) {
    let (queue, line_lock) = (Arc::new(LogQueue::new(interval)), Arc::<LineLock>::default());
    let writer = LogWriter {
        queue: Arc::clone(&queue),
        sink: Arc::new(Mutex::new(Some(Sink::new(target, Arc::clone(&line_lock))))),
        thread: None,
    };
    (Log { queue, line_lock }, writer)
}

/// Writes what is in the queue, until that is closed.
fn write_queue(queue: &LogQueue, mut sink: Sink) {
    loop {
        match queue.next() {
            WriterTask::Write(queued) => deliver(&mut sink, queue, queued.kind, queued.priority, &queued.entry),
            WriterTask::Report(kind, priority, text) => {
                let entry = LogEntry { text, ..LogEntry::default() };
                deliver(&mut sink, queue, kind, priority, &entry);
            }
            WriterTask::Wake(wakers) => wakers.into_iter().for_each(Waker::wake),
            WriterTask::End => break,
        }
    }
    sink.flush();
    queue.set_done();
}

/// Writes an entry, however long it takes: journald may be restarting.
fn deliver(sink: &mut Sink, queue: &LogQueue, kind: EntryKind, priority: Priority, entry: &LogEntry) {
    let mut delay = FIRST_RETRY_DELAY;
    while sink.write(kind, priority, entry).is_err() {
        queue.set_unavailable(true);
        thread::sleep(delay);
        delay = (delay * 2).min(MAX_RETRY_DELAY);
    }
    queue.set_unavailable(false);
}

impl Log {
    /// Returns how many entries wait because the journal cannot be reached; `None` if it can.
    #[must_use]
    pub fn backlog(&self) -> Option<usize> {
        self.queue.backlog()
    }

    /// Queues an entry. Never waits. `entry` is only called if the entry is not
    /// suppressed.
    pub fn write(&self, kind: EntryKind, priority: Priority, rate_limit: RateLimit, entry: impl FnOnce() -> LogEntry) {
        if self.queue.admit(kind, priority, rate_limit) {
            self.queue.push(kind, priority, entry());
        }
    }

    /// Returns how many entries were suppressed by the rate limit so far.
    #[must_use]
    pub fn suppressed_total(&self) -> u64 {
        self.queue.suppressed_total()
    }

    /// Wakes this waker in a second.
    fn wake_later(&self, waker: &Waker) {
        self.queue.wake_later(waker);
    }

    /// Reports suppressed entries now, so that the last entry of the process stays the last.
    pub fn flush_suppressed(&self) {
        self.queue.end_interval();
    }
}

impl LogWriter {
    /// Starts to write, if that has not begun.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be made.
    pub fn start(&mut self) -> io::Result<()> {
        if self.thread.is_some() {
            return Ok(());
        }
        let (queue, sink) = (Arc::clone(&self.queue), Arc::clone(&self.sink));
        let thread = thread::Builder::new().name("log".to_owned()).spawn(move || {
            let sink = sink.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mut sink) = sink {
                sink.open();
                write_queue(&queue, sink);
            }
        })?;
        self.thread = Some(thread);
        Ok(())
    }

    /// Waits until everything is written, but not for ever. Later entries are dropped. Returns how many
    /// entries are lost: all of them, if there can be no thread.
    pub fn close(mut self) -> usize {
        let within = if self.start().is_ok() { CLOSE_TIMEOUT } else { Duration::ZERO };
        let lost = self.queue.close(within);
        // If entries are left, the reader of the log is stuck. The thread ends with the process.
        if let Some(thread) = self.thread.filter(|_| lost == 0) {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
        lost
    }
}

#[cfg(test)]
mod tests;
