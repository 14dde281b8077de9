//! What the daemon and its server have to tell, and what becomes of it: lines of the log, up to a level.

use std::env;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Waker;

use echoed::config::Level;
use echoed::server::event::{Events, Message, Messages};
use echoed::systemd::journal;

/// What the daemon itself has to tell; what its server tells is an [`echoed::server::event::Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// A listener is being served.
    Listening,
    /// Addresses to listen on are ignored, since systemd holds the sockets.
    ListenIgnored,
    /// A listener has no section of its own.
    NoSection,
    /// The service manager could not be told something.
    NotNotified,
    /// The end begins.
    Stopping,
    /// The last replies are not waited for any longer.
    NotWaiting,
    /// The end: what was finished and what was cut.
    Stopped,
    /// New settings hold.
    Reloaded,
    /// Some of the new settings hold only after a restart.
    NeedsRestart,
    /// New settings are wrong; the old ones stay.
    NotReloaded,
    /// A worker does not answer.
    Hung,
    /// All workers answer again.
    Answered,
}

impl Note {
    pub(crate) fn level(self) -> Level {
        match self {
            Self::NotReloaded | Self::Hung => Level::Error,
            Self::NotNotified | Self::NeedsRestart => Level::Warn,
            Self::Listening
            | Self::ListenIgnored
            | Self::NoSection
            | Self::Stopping
            | Self::NotWaiting
            | Self::Stopped
            | Self::Reloaded
            | Self::Answered => Level::Info,
        }
    }
}

/// The log, up to a level.
#[derive(Clone)]
pub(crate) struct LeveledLog {
    log: journal::Log,
    level: Arc<AtomicU8>,
}

impl LeveledLog {
    pub(crate) fn new(log: journal::Log, level: Level) -> Self {
        Self { log, level: Arc::new(AtomicU8::new(level as u8)) }
    }

    /// From now on, this level holds.
    pub(crate) fn set_level(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
    }

    fn takes(&self, level: Level) -> bool {
        level as u8 <= self.level.load(Ordering::Relaxed)
    }

    pub(crate) fn note(&self, note: Note, text: &str) {
        self.write(note.level(), text);
    }

    fn write(&self, level: Level, text: &str) {
        if self.takes(level) {
            self.log.write(format!("{level}: {text}"));
        }
    }

    /// What becomes of the server's events. This runs on its workers, so it only formats what is really logged.
    pub(crate) fn events(&self) -> Events {
        let log = self.clone();
        Arc::new(move |event| {
            if log.takes(event.level()) {
                log.write(event.level(), &event.to_string());
            }
        })
    }

    /// Where whole messages go.
    pub(crate) fn messages(&self) -> Arc<dyn Messages> {
        Arc::new(Untaken)
    }

    /// Says when systemd could not be told something.
    pub(crate) fn told(&self, result: io::Result<()>) {
        if let Err(error) = result {
            let socket = env::var("NOTIFY_SOCKET").unwrap_or_default();
            self.note(Note::NotNotified, &format!("cannot notify the service manager on {socket}: {error}, ignoring"));
        }
    }
}

/// Stands in for a log of whole messages, which no configuration can ask for yet.
struct Untaken;

impl Messages for Untaken {
    fn take(&self, _: Message<'_>, _: &Waker) -> bool {
        true
    }
}
