//! The log of the daemon: makes entries of its own notes and of its server's events, up to a level.

mod events;
mod kinds;

use std::env;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use echoed::config::{Level, Settings};
use echoed::protocol::Verdict;
use echoed::server::event::{Event, EventHandler, MessageLog, ReceivedMessage};
use echoed::systemd::journal::{self, LogEntry, LogTarget, Priority, RateLimit, lossless};

use crate::start_error::StartError;

use kinds::Kind;
pub(crate) use kinds::Note;

/// The log, up to a level; cheap to clone.
#[derive(Clone)]
pub(crate) struct LeveledLog {
    log: journal::Log,
    lossless_log: lossless::LosslessLog,
    level: Arc<AtomicU8>,
    /// Why systemd could not be notified the last time.
    notify_error: Arc<Mutex<Option<String>>>,
}

/// Reports why the daemon does not start: in one entry, if stderr leads to the journal. Without a place for it, nothing is
/// said; stderr is none if it is withheld, because it is a client's connection.
pub(crate) fn report_start_failure(error: &StartError, is_stderr_withheld: bool) {
    let note = Note::StartFailed;
    match LogTarget::of_stderr(is_stderr_withheld) {
        target @ LogTarget::Journal(_) => {
            let text = format!("failed to start: {error}");
            let (log, mut writer) = LeveledLog::open(Level::Error, is_stderr_withheld);
            if writer.start().is_ok() {
                log.note(note, &text);
                drop(log);
                writer.close();
            } else {
                // There can be no further thread, which may be what the text says.
                let entry = LogEntry { text, multiline: true, ..LogEntry::default() };
                journal::write_now(target, note.kind().entry, priority(note.kind().level), &entry);
            }
        }
        LogTarget::Lines(mut stderr) => {
            // The text about settings begins with their file, as compilers have it.
            let program = if let StartError::Configuration(_) = error { "" } else { "echoed: " };
            let _ = writeln!(stderr, "{program}{error}");
        }
    }
}

impl LeveledLog {
    /// Opens the log: the journal if stderr leads there or is withheld, else stderr. Entries wait until the writer is started.
    pub(crate) fn open(level: Level, is_stderr_withheld: bool) -> (Self, journal::LogWriter) {
        let (log, writer) = journal::open(LogTarget::of_stderr(is_stderr_withheld));
        let lossless_log = lossless::open(LogTarget::of_stderr(is_stderr_withheld), log.clone());
        let level = Arc::new(AtomicU8::new(level as u8));
        (Self { log, lossless_log, level, notify_error: Arc::default() }, writer)
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
        self.write(note.kind(), RateLimit::Enforced, entry);
    }

    /// Logs a note about a listener.
    pub(crate) fn note_on(&self, note: Note, listener: &str, text: &str) {
        let (text, listener) = (text.to_owned(), Some(listener.into()));
        let entry = || LogEntry { text, multiline: true, listener, ..LogEntry::default() };
        self.write(note.kind(), RateLimit::Enforced, entry);
    }

    fn write(&self, kind: Kind, rate_limit: RateLimit, entry: impl FnOnce() -> LogEntry) {
        if self.is_enabled(kind.level) {
            // With the level set to debug, the user wants to see every entry.
            let rate_limit = if self.is_enabled(Level::Debug) { RateLimit::Exempt } else { rate_limit };
            self.log.write(kind.entry, priority(kind.level), rate_limit, entry);
        }
    }

    /// Returns the handler that logs the server's events. It runs on the threads that serve, so it only formats what is
    /// really logged.
    pub(crate) fn event_handler(&self) -> Arc<dyn EventHandler> {
        Arc::new(self.clone())
    }

    /// Returns the lossless log, for the messages of listeners that log them whole.
    pub(crate) fn message_log(&self) -> Arc<dyn MessageLog> {
        Arc::new(LosslessMessages(self.lossless_log.clone()))
    }

    /// Warns about settings that may not do what they say.
    pub(crate) fn warn_about(&self, settings: &Settings) {
        // Lines on stderr may be of any length.
        if self.lossless_log.writes_to_journal() {
            for warning in settings.warnings() {
                self.note(Note::LargeMessages, &warning);
            }
        }
    }

    /// Stops writing messages of peers behind the backs of their connections: [`lossless::LosslessLog::freeze`].
    pub(crate) fn freeze_messages(&self) {
        self.lossless_log.freeze();
    }

    /// Returns how many entries wait because the log cannot be written to; `None` if it can. `messages` of peers wait
    /// for it besides.
    pub(crate) fn backlog(&self, messages: usize) -> Option<usize> {
        let backlog = self.log.backlog();
        let is_failing = backlog.is_some() || self.lossless_log.is_failing() && messages > 0;
        is_failing.then(|| backlog.unwrap_or_default() + messages)
    }

    /// Returns how many entries were suppressed by the rate limit so far.
    pub(crate) fn suppressed_total(&self) -> u64 {
        self.log.suppressed_total()
    }

    /// Logs it if systemd could not be notified: once, until it can be notified again, or there is another error.
    pub(crate) fn check_notified(&self, result: io::Result<()>) {
        let error = result.err().map(|error| error.to_string());
        let mut last = self.notify_error.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == error {
            return;
        }
        if let Some(error) = &error {
            let socket = env::var_os("NOTIFY_SOCKET").unwrap_or_default();
            let socket = socket.to_string_lossy();
            self.note(
                Note::NotifyFailed,
                &format!("failed to notify the service manager on {socket}: {error}, ignoring"),
            );
        }
        *last = error;
    }
}

impl EventHandler for LeveledLog {
    fn handle(&self, event: Event) {
        let rate_limit = match event {
            // If messages are logged, the user wants to see each of them. What administrators do is always wanted.
            Event::Message { .. }
            | Event::CloseRequested { .. }
            | Event::LameDuckBegan { .. }
            | Event::LameDuckEnded { .. } => RateLimit::Exempt,
            _ => RateLimit::Enforced,
        };
        self.write(kinds::of_event(&event), rate_limit, || events::entry(&event));
    }

    fn wants_opened(&self) -> bool {
        self.is_enabled(kinds::OPENED.level)
    }

    fn wants_closed(&self, verdict: Verdict) -> bool {
        self.is_enabled(kinds::of_end(verdict).level)
    }
}

/// The lossless log, as the server uses it.
struct LosslessMessages(lossless::LosslessLog);

impl MessageLog for LosslessMessages {
    fn try_append(&self, message: ReceivedMessage<'_>, waker: &Waker) -> bool {
        let ReceivedMessage { connection_id, listener, peer, received_at, bytes } = message;
        let message = lossless::ReceivedMessage { connection_id, listener, peer: &peer, received_at, bytes };
        self.0.try_append(message, waker)
    }

    fn abandon(&self, waker: &Waker) -> bool {
        self.0.abandon(waker)
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

/// Returns the ending of a noun after its count.
pub(crate) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
