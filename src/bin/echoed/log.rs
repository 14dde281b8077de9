//! The log of the daemon: makes entries of its own notes and of its server's events, up to a level.

mod kinds;

use std::env;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Waker;
use std::time::Duration;

use echoed::config::Level;
use echoed::server::event::{Event, EventHandler, MessageLog, ReceivedMessage};
use echoed::systemd::journal::{self, EntryKind, LogEntry, LogTarget, Priority, RateLimit, lossless};

use crate::start_error::StartError;

pub(crate) use kinds::Note;

/// The log, up to a level; cheap to clone.
#[derive(Clone)]
pub(crate) struct LeveledLog {
    log: journal::Log,
    lossless_log: lossless::LosslessLog,
    level: Arc<AtomicU8>,
}

/// The threads that write. To be closed last.
pub(crate) struct LogWriters {
    log: journal::LogWriter,
    messages: lossless::LosslessWriter,
    final_log: LeveledLog,
}

/// Reports why the daemon does not start: in one entry, if stderr leads to the journal.
pub(crate) fn report_start_failure(error: &StartError) {
    match LogTarget::of_stderr() {
        LogTarget::Journal(_) => {
            // Without a thread to write there is nowhere to say it.
            if let Ok((log, writer)) = LeveledLog::start(Level::Error) {
                log.note(Note::StartFailed, &format!("not started: {error}"));
                drop(log);
                writer.close(None);
            }
        }
        LogTarget::Lines(_) => match error {
            // As compilers say it.
            StartError::Configuration(_) => eprintln!("{error}"),
            StartError::Usage(_) | StartError::Activation(_) | StartError::System { .. } => {
                eprintln!("echoed: {error}")
            }
        },
    }
}

impl LeveledLog {
    /// Begins to write: to the journal if stderr leads there, else to stderr.
    ///
    /// # Errors
    /// A thread cannot be made.
    pub(crate) fn start(level: Level) -> io::Result<(Self, LogWriters)> {
        let (log, log_writer) = journal::start(LogTarget::of_stderr())?;
        let (lossless_log, lossless_writer) = lossless::open(LogTarget::of_stderr(), log.clone());
        let log = Self { log, lossless_log, level: Arc::new(AtomicU8::new(level as u8)) };
        let final_log = log.clone();
        Ok((log, LogWriters { log: log_writer, messages: lossless_writer, final_log }))
    }

    /// Sets a new level.
    pub(crate) fn set_level(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
    }

    fn is_enabled(&self, level: Level) -> bool {
        level as u8 <= self.level.load(Ordering::Relaxed)
    }

    /// Logs a note of the daemon itself. The text may have several lines.
    pub(crate) fn note(&self, note: Note, text: &str) {
        if note == Note::Stopped {
            self.log.flush_suppressed();
        }
        let entry = || LogEntry { text: text.to_owned(), multiline: true, ..LogEntry::default() };
        self.write(note.kind(), note.level(), RateLimit::Enforced, entry);
    }

    /// The same, about a listener.
    pub(crate) fn note_on(&self, note: Note, listener: &str, text: &str) {
        let (text, listener) = (text.to_owned(), Some(listener.into()));
        let entry = || LogEntry { text, multiline: true, listener, ..LogEntry::default() };
        self.write(note.kind(), note.level(), RateLimit::Enforced, entry);
    }

    fn write(&self, kind: EntryKind, level: Level, rate_limit: RateLimit, entry: impl FnOnce() -> LogEntry) {
        if self.is_enabled(level) {
            // With the level set to debug, the user wants to see every entry.
            let rate_limit = if self.is_enabled(Level::Debug) { RateLimit::Exempt } else { rate_limit };
            self.log.write(kind, priority(level), rate_limit, entry);
        }
    }

    /// Returns the handler that logs the server's events. It runs on the workers, so it only formats what is really
    /// logged.
    pub(crate) fn event_handler(&self) -> EventHandler {
        let log = self.clone();
        Arc::new(move |event| {
            // If messages are logged, the user wants to see each of them.
            let rate_limit = if let Event::Message { .. } = event { RateLimit::Exempt } else { RateLimit::Enforced };
            log.write(kinds::of_event(&event), event.level(), rate_limit, || entry(&event));
        })
    }

    /// Returns the lossless log, for the messages of listeners that log them whole.
    pub(crate) fn message_log(&self) -> Arc<dyn MessageLog> {
        Arc::new(LosslessMessages(self.lossless_log.clone()))
    }

    /// Logs it if systemd could not be notified.
    pub(crate) fn check_notified(&self, result: io::Result<()>) {
        if let Err(error) = result {
            let socket = env::var("NOTIFY_SOCKET").unwrap_or_default();
            self.note(Note::NotifyFailed, &format!("cannot notify the service manager on {socket}: {error}, ignoring"));
        }
    }
}

impl LogWriters {
    /// Waits until everything is written: whole messages for `timeout`, or without one for ever; the rest of the log
    /// for a second. Returns how many messages are lost. All threads that log must have ended.
    pub(crate) fn close(self, timeout: Option<Duration>) -> usize {
        let lost = self.messages.close(timeout);
        if lost > 0 {
            let text = format!("{lost} messages of peers are lost, they could not be written before the end");
            self.final_log.note(Note::MessagesLost, &text);
        }
        self.log.close();
        lost
    }
}

/// The lossless log, as the server uses it.
struct LosslessMessages(lossless::LosslessLog);

impl MessageLog for LosslessMessages {
    fn try_append(&self, message: ReceivedMessage<'_>, waker: &Waker) -> bool {
        let ReceivedMessage { connection_id, listener, peer, bytes } = message;
        self.0.try_append(lossless::ReceivedMessage { connection_id, listener, peer: &peer, bytes }, waker)
    }
}

fn priority(level: Level) -> Priority {
    match level {
        Level::Error => Priority::Error,
        Level::Warn => Priority::Warning,
        Level::Info => Priority::Info,
        Level::Debug | Level::Trace => Priority::Debug,
    }
}

fn entry(event: &Event) -> LogEntry {
    let text = event.to_string();
    match event {
        Event::Opened { id, listener, peer } | Event::Resumed { id, listener, peer } => LogEntry {
            text,
            listener: Some(Arc::clone(listener)),
            peer: Some(peer.to_string()),
            connection: Some(*id),
            ..LogEntry::default()
        },
        Event::Message { connection_id, listener, peer, .. } => LogEntry {
            text,
            listener: Some(Arc::clone(listener)),
            peer: Some(peer.to_string()),
            connection: *connection_id,
            ..LogEntry::default()
        },
        Event::DatagramsDropped { listener, cause, last_peer, .. } => LogEntry {
            text,
            listener: Some(Arc::clone(listener)),
            peer: Some(last_peer.to_string()),
            verdict: Some(cause.name()),
            ..LogEntry::default()
        },
        Event::Closed { id, listener, peer, verdict, totals, bad_header, .. } => LogEntry {
            text,
            multiline: false,
            listener: Some(Arc::clone(listener)),
            peer: Some(peer.to_string()),
            connection: Some(*id),
            verdict: Some(verdict.name()),
            reason: bad_header.as_ref().map(|bad_header| bad_header.fault.name()),
            bytes_in: Some(totals.bytes_in),
            bytes_out: Some(totals.bytes_out),
            messages: Some(totals.messages),
        },
        Event::AcceptPaused { listener, .. }
        | Event::AcceptResumed { listener, .. }
        | Event::ListenerFailed { listener, .. } => {
            LogEntry { text, listener: Some(Arc::clone(listener)), ..LogEntry::default() }
        }
        Event::ConnectionFailed { listener, peer, .. } => {
            LogEntry { text, listener: Some(Arc::clone(listener)), peer: Some(peer.to_string()), ..LogEntry::default() }
        }
        _ => LogEntry { text, ..LogEntry::default() },
    }
}
