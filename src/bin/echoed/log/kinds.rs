//! Every kind of entry has a severity and a MESSAGE_ID, a random number for ever, which systemd/catalog/echoed.catalog
//! explains. A new one: `systemd-id128 new`, or /proc/sys/kernel/random/uuid without its hyphens.

use echoed::config::Level;
use echoed::protocol::Verdict;
use echoed::server::event::Event;
use echoed::systemd::journal::EntryKind;

/// A kind of entries, and how urgent they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(super) level: Level,
    pub(super) entry: EntryKind,
}

const fn kind(level: Level, name: &'static str, message_id: &'static str) -> Kind {
    Kind { level, entry: EntryKind { name, message_id } }
}

macro_rules! notes {
    ($($(#[$doc:meta])* $note:ident = $level:ident, $name:literal, $id:literal;)*) => {
        /// An entry of the daemon itself; its server reports an [`Event`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Note {
            $($(#[$doc])* $note,)*
        }

        impl Note {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$note,)*];

            pub(crate) fn kind(self) -> Kind {
                match self {
                    $(Self::$note => kind(Level::$level, $name, $id),)*
                }
            }
        }
    };
}

notes! {
    /// A listener is being served.
    Listening = Info, "listening", "13d58fdc96214753bccfd6c8208d569c";
    /// Addresses to listen on are ignored, because systemd passed the sockets.
    ListenIgnored = Info, "listen-ignored", "5fec47d1fa8d4594b462f352d376ec42";
    /// A listener has no section of its own.
    NoSection = Info, "no-section", "45c815dc38eb4772aa17ba0811358e92";
    /// There can be fewer descriptors than connections are allowed.
    LowNofile = Warn, "low-nofile", "cfcac218e4c24991b87c03b2a3647731";
    /// Whole messages may be larger than what the journal takes.
    LargeMessages = Warn, "large-messages", "96be8f99f57d4e84b285ef88492e4a6e";
    /// The service manager could not be notified.
    NotifyFailed = Warn, "notify-failed", "5a2e8712a7c746e0b51d8a61e5f2f5cb";
    /// It does not start.
    StartFailed = Error, "start-failed", "7fbae43138054f56ad783d68f90a858c";
    /// The end begins.
    Stopping = Info, "stopping", "90d6700c13224a668eabf66281562449";
    /// The last replies are not waited for any longer.
    DrainAborted = Info, "drain-aborted", "229acac2ace140d58c6d944dde9622c5";
    /// The end: what was finished and what was cut.
    Stopped = Info, "stopped", "a5b78d5defc24e4788ea54eeed27f183";
    /// Connections of the previous process were restored.
    ConnectionsRestored = Info, "connections-restored", "79f5e9ab315b4198b2e137701bb19060";
    /// Connections of the previous process could not be restored.
    RestoreFailed = Warn, "restore-failed", "c0095df6b42342e9abd10ad80724d593";
    /// Connections could not be handed over to the next process.
    StoreFailed = Warn, "store-failed", "f5f10bcdbceb40118c29818cce20aa80";
    /// New settings hold.
    Reloaded = Info, "reloaded", "c6e76186a409406fa1becd0924dcd062";
    /// Some of the new settings hold only after a restart.
    NeedsRestart = Warn, "needs-restart", "10d3232c44304b0b8a4600f3c5d85ea6";
    /// New settings are wrong; the old ones stay.
    ReloadFailed = Error, "reload-failed", "d6fdeeed241c4bb2a0a6970afa179744";
    /// Messages could not be logged whole before the end.
    MessagesLost = Error, "messages-lost", "85aa8511363c4110aec26f61f8b7f565";
    /// A worker does not respond.
    WorkerHung = Error, "worker-hung", "c23afd953c994d5faca7c84a4df579f4";
    /// All workers respond again.
    WorkersResponding = Info, "workers-responding", "d5f9dadb30ed4a7b8af0170053bc4be2";
}

/// The beginning of a connection.
pub(super) const OPENED: Kind = kind(Level::Debug, "opened", "5e6bb97ac5ed4e8b88b6ad89fce92c4f");

macro_rules! events {
    ($($event:ident = $kind:expr;)*) => {
        #[cfg(test)]
        const EVENTS: &[Kind] = &[$($kind,)*];

        /// Returns the kind of an event.
        pub(super) fn of_event(event: &Event) -> Kind {
            match event {
                Event::Closed { verdict, .. } => of_end(*verdict),
                $(Event::$event { .. } => $kind,)*
            }
        }
    };
}

events! {
    Opened = OPENED;
    Resumed = kind(Level::Debug, "resumed", "5dc55e438e4b4738b8509ecfa945dc3b");
    Message = kind(Level::Info, "message", "51a1cd7c305043978fb018e4cab91a97");
    MessagesLost = kind(Level::Warn, "messages-unlogged", "4eebff74ebaf445e8687edabd1bd86d1");
    LimitReached = kind(Level::Warn, "limit-reached", "57727963c3e2428fa10d2b030090ee72");
    AcceptPaused = kind(Level::Warn, "accept-paused", "4c9cd511bba14675b7ed0b3eb93226a9");
    AcceptResumed = kind(Level::Info, "accept-resumed", "f624e127eca1451d9dfe5e52ef97bc97");
    ListenerFailed = kind(Level::Error, "listener-failed", "da4ecab6446d4e33b70af5cba385c61b");
    ConnectionFailed = kind(Level::Warn, "connection-failed", "b4b07c3686db42608e24c362965647d7");
    DatagramsDropped = kind(Level::Info, "datagrams-dropped", "0f5e8ccafc8749e3bd4edac96c87c37b");
    CloseRequested = kind(Level::Info, "close-requested", "d60fc227751a490caee27aaa76d9579d");
    LameDuckBegan = kind(Level::Info, "lame-duck-began", "c98dad824abc40d2b19f6c682261b831");
    LameDuckEnded = kind(Level::Info, "lame-duck-ended", "d14e4d668b1845d38b4e691885fc3689");
}

/// Returns the kind of the end of a connection with this verdict. What a peer did is never more than `Info`; `Info` where it
/// broke a rule.
pub(super) fn of_end(verdict: Verdict) -> Kind {
    let (level, message_id) = match verdict {
        Verdict::TooLong => (Level::Info, "2c65cc4a3de146e491acc2c7fa4a4129"),
        Verdict::ReadDeadline => (Level::Info, "83f62f9c5578440d9af2ad15797375c0"),
        Verdict::IdleDeadline => (Level::Debug, "ab85662348b24a1393ed0791c7a41d06"),
        Verdict::Lifetime => (Level::Debug, "b8909dae482d41e581def363522fe7c4"),
        Verdict::TooMany { .. } => (Level::Info, "e9fbfdeb352b48e092ea20b62b117db3"),
        Verdict::Busy => (Level::Info, "f5790008f7584c4cbb750e747d276005"),
        Verdict::WriteDeadline => (Level::Info, "4dd793a4778c4c9aa5c398377814db9a"),
        Verdict::PeerClosed => (Level::Debug, "d1ac960d4f644c8a808b48f90e84cb07"),
        Verdict::PeerReset => (Level::Debug, "08c05d7bceb348ff9418bf4929ea58f2"),
        Verdict::Unterminated { .. } => (Level::Debug, "2b20a312ec4c4c839d365fdc35a57ab9"),
        Verdict::Shutdown => (Level::Debug, "8c32f471a7c64970824484a512e1f481"),
        Verdict::HandedOver => (Level::Debug, "71808cf8825d442689b4af39e6c51997"),
        Verdict::BadProxyHeader => (Level::Info, "860ddc49b93849c1b7fa544f1bd7a4a9"),
        Verdict::Reclaimed => (Level::Info, "d674eebdcae4427db21347ba14f414db"),
        Verdict::ClosedByAdmin => (Level::Info, "3faf768c37a54e278e34627ad7674e46"),
    };
    kind(level, verdict.name(), message_id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use echoed::systemd::journal::{self, lossless};

    use super::*;

    const CATALOG: &str = include_str!("../../../../systemd/catalog/echoed.catalog");

    /// Returns every kind that the tables have.
    fn listed_kinds() -> Vec<Kind> {
        let notes = Note::ALL.iter().map(|note| note.kind());
        let ends = Verdict::ALL.iter().map(|verdict| of_end(*verdict));
        notes.chain(EVENTS.iter().copied()).chain(ends).collect()
    }

    /// Returns every kind that can be logged.
    fn all_kinds() -> Vec<EntryKind> {
        let journal =
            [journal::SUPPRESSED, journal::LOST, lossless::MESSAGE, lossless::WRITE_FAILED, lossless::WRITE_RESUMED];
        journal.into_iter().chain(listed_kinds().iter().map(|kind| kind.entry)).collect()
    }

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let names: BTreeSet<_> = all_kinds().iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), all_kinds().len());
    }

    #[test]
    fn the_catalog_explains_every_message_id_and_no_other() {
        let explained: Vec<_> = CATALOG.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
        for EntryKind { name, message_id } in all_kinds() {
            let digits = message_id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            assert!(message_id.len() == 32 && digits, "{name}: {message_id}");
            let times = explained.iter().filter(|id| **id == message_id).count();
            assert_eq!(times, 1, "systemd/catalog/echoed.catalog: entries for {name}, -- {message_id}");
        }
        assert_eq!(explained.len(), all_kinds().len(), "systemd/catalog/echoed.catalog explains something else, too");
    }

    #[test]
    fn the_catalog_has_the_severity_of_every_kind() {
        for Kind { level, entry } in listed_kinds() {
            // The severities in the comments before an explanation, which docs/messages.md has.
            let (before, _) = CATALOG.split_once(&format!("-- {}\n", entry.message_id)).unwrap_or_default();
            let comments = before.lines().rev().map_while(|line| line.strip_prefix("# "));
            let severities: BTreeSet<_> = comments.filter_map(|comment| comment.split(": ").next()).collect();
            let severity = match level {
                Level::Error => "error",
                Level::Warn => "warning",
                Level::Info => "info",
                Level::Debug | Level::Trace => "debug",
            };
            let hint = format!("systemd/catalog/echoed.catalog: the severity of {}", entry.name);
            assert_eq!(severities, BTreeSet::from([severity]), "{hint}");
        }
    }
}
