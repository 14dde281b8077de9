//! What the daemon and its server have to tell, and what becomes of it: entries of the log, up to a level.

mod kinds;

use std::env;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Waker;
use std::time::Duration;

use echoed::config::Level;
use echoed::server::event::{Event, EventHandler, Message, MessageLog};
use echoed::systemd::journal::{self, Entry, Flood, Kind, Priority, Target, whole};

use crate::failure::Failure;

pub(crate) use kinds::Note;

/// The log, up to a level; cheap to clone.
#[derive(Clone)]
pub(crate) struct LeveledLog {
    log: journal::Log,
    messages: whole::Messages,
    level: Arc<AtomicU8>,
}

/// The threads that write. To be closed last.
pub(crate) struct Writer {
    log: journal::Writer,
    messages: whole::Writer,
    last_words: LeveledLog,
}

/// Says why the daemon does not start: in one entry, if stderr leads to the journal.
pub(crate) fn not_started(failure: &Failure) {
    match Target::of_stderr() {
        Target::Journal(_) => {
            // Without a thread to write there is nowhere to say it.
            if let Ok((log, writer)) = LeveledLog::start(Level::Error) {
                log.note(Note::NotStarted, &format!("not started: {failure}"));
                drop(log);
                writer.close(None);
            }
        }
        Target::Lines(_) => match failure {
            // As compilers say it.
            Failure::Configuration(_) => eprintln!("{failure}"),
            Failure::Inherited(_) | Failure::System { .. } => eprintln!("echoed: {failure}"),
        },
    }
}

impl LeveledLog {
    /// Begins to write: to the journal if stderr leads there, else to stderr.
    ///
    /// # Errors
    /// A thread cannot be made.
    pub(crate) fn start(level: Level) -> io::Result<(Self, Writer)> {
        let (log, log_writer) = journal::start(Target::of_stderr())?;
        let (messages, messages_writer) = whole::open(Target::of_stderr(), log.clone());
        let log = Self { log, messages, level: Arc::new(AtomicU8::new(level as u8)) };
        let last_words = log.clone();
        Ok((log, Writer { log: log_writer, messages: messages_writer, last_words }))
    }

    /// From now on, this level holds.
    pub(crate) fn set_level(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
    }

    fn takes(&self, level: Level) -> bool {
        level as u8 <= self.level.load(Ordering::Relaxed)
    }

    /// Says something of the daemon itself. The text may have several lines.
    pub(crate) fn note(&self, note: Note, text: &str) {
        if note == Note::Stopped {
            self.log.sum_up();
        }
        let entry = || Entry { text: text.to_owned(), lines: true, ..Entry::default() };
        self.write(note.kind(), note.level(), Flood::Limited, entry);
    }

    /// The same, about a listener.
    pub(crate) fn note_on(&self, note: Note, listener: &str, text: &str) {
        let (text, listener) = (text.to_owned(), Some(listener.into()));
        let entry = || Entry { text, lines: true, listener, ..Entry::default() };
        self.write(note.kind(), note.level(), Flood::Limited, entry);
    }

    fn write(&self, kind: Kind, level: Level, flood: Flood, entry: impl FnOnce() -> Entry) {
        if self.takes(level) {
            // Who sets the level to debug wants to see everything.
            let flood = if self.takes(Level::Debug) { Flood::Wanted } else { flood };
            self.log.write(kind, priority(level), flood, entry);
        }
    }

    /// What becomes of the server's events. This runs on its workers, so it only formats what is really logged.
    pub(crate) fn events(&self) -> EventHandler {
        let log = self.clone();
        Arc::new(move |event| {
            // Who has messages logged wants to see each.
            let flood = if let Event::Message { .. } = event { Flood::Wanted } else { Flood::Limited };
            log.write(kinds::of_event(&event), event.level(), flood, || entry(&event));
        })
    }

    /// What becomes of the messages of listeners that log them whole.
    pub(crate) fn messages(&self) -> Arc<dyn MessageLog> {
        Arc::new(Whole(self.messages.clone()))
    }

    /// Says when systemd could not be told something.
    pub(crate) fn told(&self, result: io::Result<()>) {
        if let Err(error) = result {
            let socket = env::var("NOTIFY_SOCKET").unwrap_or_default();
            self.note(Note::NotNotified, &format!("cannot notify the service manager on {socket}: {error}, ignoring"));
        }
    }
}

impl Writer {
    /// Waits until everything is written: whole messages for as long as is said, or else for ever; the rest of the log
    /// for a second. Returns how many messages are lost. Everybody who logs must have ended.
    pub(crate) fn close(self, messages_within: Option<Duration>) -> usize {
        let lost = self.messages.close(messages_within);
        if lost > 0 {
            let text = format!("{lost} messages of peers are lost, they could not be written before the end");
            self.last_words.note(Note::MessagesLost, &text);
        }
        self.log.close();
        lost
    }
}

/// Whole messages, as the server gives them.
struct Whole(whole::Messages);

impl MessageLog for Whole {
    fn try_append(&self, message: Message<'_>, waker: &Waker) -> bool {
        let Message { connection_id, listener, peer, bytes } = message;
        self.0.take(whole::Message { connection: connection_id, listener, peer: &peer, bytes }, waker)
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

fn entry(event: &Event) -> Entry {
    let text = event.to_string();
    match event {
        Event::Opened { id, listener, peer } | Event::Resumed { id, listener, peer } => Entry {
            text,
            listener: Some(Arc::clone(listener)),
            peer: Some(peer.to_string()),
            connection: Some(*id),
            ..Entry::default()
        },
        Event::Message { connection_id, listener, peer, .. } => Entry {
            text,
            listener: Some(Arc::clone(listener)),
            peer: Some(peer.to_string()),
            connection: *connection_id,
            ..Entry::default()
        },
        Event::DatagramsDropped { listener, cause, last_peer, .. } => Entry {
            text,
            listener: Some(Arc::clone(listener)),
            peer: Some(last_peer.to_string()),
            verdict: Some(cause.name()),
            ..Entry::default()
        },
        Event::Closed { id, listener, peer, verdict, totals, .. } => Entry {
            text,
            lines: false,
            listener: Some(Arc::clone(listener)),
            peer: Some(peer.to_string()),
            connection: Some(*id),
            verdict: Some(verdict.name()),
            bytes_in: Some(totals.bytes_in),
            bytes_out: Some(totals.bytes_out),
            messages: Some(totals.messages),
        },
        Event::AcceptPaused { listener, .. }
        | Event::AcceptResumed { listener }
        | Event::ListenerFailed { listener, .. } => {
            Entry { text, listener: Some(Arc::clone(listener)), ..Entry::default() }
        }
        Event::SetupFailed { listener, peer, .. } => {
            Entry { text, listener: Some(Arc::clone(listener)), peer: Some(peer.to_string()), ..Entry::default() }
        }
        _ => Entry { text, ..Entry::default() },
    }
}
