//! The sinks of entries: the journal, through tracing-journald, or lines.

use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::fstat;
use rustix::io::fcntl_dupfd_cloexec;
use tracing::{Dispatch, Level, dispatcher, event};
use tracing_journald::{Layer, Priority as Syslog, PriorityMappings};
use tracing_subscriber::layer::SubscriberExt;

use super::line_lock::LineLock;
use super::native::{JOURNAL_PATH, Probe};
use super::text::escape_control;
use super::{EntryKind, IDENTIFIER, LogEntry, LogTarget, Priority, STALL_TIMEOUT, nanos_since_1970};

/// Returns whether stderr is the stream that systemd connected to the journal (systemd.exec(5), `$JOURNAL_STREAM`): it may have
/// been redirected since, so the numbers must be its own.
#[must_use]
pub fn is_stderr(journal_stream: Option<&str>) -> bool {
    let Some((device, inode)) = journal_stream.and_then(|stream| stream.split_once(':')) else { return false };
    fstat(io::stderr()).is_ok_and(|stat| device == stat.st_dev.to_string() && inode == stat.st_ino.to_string())
}

/// How a line says its priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PriorityStyle {
    /// `2026-11-30T08:09:37.123Z info: `
    Names,
    /// `<6>`, as systemd reads it from the stderr of a service (sd-daemon(3)).
    Numbers,
}

/// The sink of entries.
pub(super) enum Sink {
    Journal(Journal),
    Lines(Lines),
}

/// Entries in the journal, through tracing-journald.
pub(super) struct Journal {
    probe: Probe,
    /// Keeps a descriptor for the socket that tracing-journald opens with the first entry: by then, clients may have taken
    /// all others.
    reserved: Option<OwnedFd>,
    /// The layer that hands entries to tracing-journald; `None` until the journal could be reached.
    dispatch: Option<Dispatch>,
    /// Takes lines instead, as long as the journal has not been reached: there may be none.
    fallback: Option<Lines>,
}

/// Entries as lines.
pub(super) struct Lines {
    out: Box<dyn Write + Send>,
    style: PriorityStyle,
    lock: Arc<LineLock>,
}

impl Sink {
    /// Creates the sink of this target, with the descriptors that it will need; `lock` is held while a line is written. Never
    /// waits.
    pub(super) fn new(target: LogTarget, lock: Arc<LineLock>) -> Self {
        match target {
            LogTarget::Lines(out) => Self::Lines(Lines { out, style: PriorityStyle::Names, lock }),
            LogTarget::Journal(out) => {
                let fallback = Some(Lines { out, style: PriorityStyle::Numbers, lock });
                Self::Journal(Journal { probe: Probe::new(), reserved: reserve_descriptor(), dispatch: None, fallback })
            }
        }
    }

    /// Connects to the journal. May block: if the journal cannot be reached, a line on stderr says so.
    pub(super) fn open(&mut self) {
        if let Self::Journal(journal) = self {
            journal.open();
        }
    }

    /// Writes an entry. May block.
    ///
    /// # Errors
    /// Returns an error if the entry should be written again later. Lines never are: a log that cannot be written to is
    /// not a reason to stop serving, and there is nowhere to say so.
    pub(super) fn write(&mut self, kind: EntryKind, priority: Priority, entry: &LogEntry) -> io::Result<()> {
        let text = escape_control(&entry.text, entry.multiline);
        match self {
            Self::Journal(journal) => return journal.write(kind, priority, entry, &text),
            Self::Lines(lines) => lines.write(priority, &text),
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) {
        if let Self::Lines(lines) = self {
            let _ = lines.out.flush();
        }
    }
}

impl Lines {
    /// Writes a line. If this fails, so does what comes next. An output that only has no room is waited for, whether or not
    /// its writes block.
    fn write(&mut self, priority: Priority, text: &str) {
        let line = format_line(self.style, priority, text);
        self.lock.write(&mut *self.out, line.as_bytes(), |error, _| error.kind() == ErrorKind::WouldBlock);
    }
}

impl Journal {
    fn open(&mut self) {
        match (self.reach(), &mut self.fallback) {
            (Err(error), Some(lines)) if error.kind() != ErrorKind::WouldBlock => {
                let text = format!(
                    "failed to reach the journal at {JOURNAL_PATH}: {error}; entries have no fields until it is reached"
                );
                lines.write(Priority::Warning, &text);
            }
            _ => self.fallback = None,
        }
    }

    fn write(&mut self, kind: EntryKind, priority: Priority, entry: &LogEntry, text: &str) -> io::Result<()> {
        match (self.reach(), &mut self.fallback) {
            (Ok(dispatch), _) => {
                self.fallback = None;
                dispatcher::with_default(&dispatch, || send(kind, priority, entry, text));
            }
            (Err(error), Some(lines)) if error.kind() != ErrorKind::WouldBlock => lines.write(priority, text),
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }

    /// Returns what hands entries to tracing-journald, at a moment when journald takes them.
    ///
    /// tracing-journald throws errors away: an entry that it cannot send is lost, so it gets none while journald cannot
    /// be reached. What can still be lost is the one entry for which this was asked, if journald's socket is closed
    /// before it is sent, some microseconds later. If only the room is taken by another sender meanwhile,
    /// tracing-journald waits.
    ///
    /// # Errors
    /// Returns an error if journald takes nothing now.
    fn reach(&mut self) -> io::Result<Dispatch> {
        self.probe.wait_until_writable(STALL_TIMEOUT)?;
        let dispatch = match &mut self.dispatch {
            // tracing-journald looks up the path for each entry, so it finds a socket that was made anew.
            Some(dispatch) => dispatch,
            // It sends an empty entry, to see whether journald is there.
            none => {
                self.reserved = None;
                let layer = tracing_journald::layer().inspect_err(|_| self.reserved = reserve_descriptor())?;
                let layer = configure(layer);
                none.insert(Dispatch::new(tracing_subscriber::registry().with(layer)))
            }
        };
        Ok(dispatch.clone())
    }
}

fn reserve_descriptor() -> Option<OwnedFd> {
    fcntl_dupfd_cloexec(io::stderr(), 3).ok()
}

/// Returns a line with its line feed. Further lines of the text are indented: none of them can be mistaken
/// for an entry of its own. Without systemd to read it, the line has the time at which it is written.
pub(super) fn format_line(style: PriorityStyle, priority: Priority, text: &str) -> String {
    format_line_at(SystemTime::now(), style, priority, text)
}

fn format_line_at(time: SystemTime, style: PriorityStyle, priority: Priority, text: &str) -> String {
    match style {
        PriorityStyle::Names => {
            let time = humantime::format_rfc3339_millis(time);
            format!("{time} {}: {}\n", priority.name(), text.replace('\n', "\n  "))
        }
        PriorityStyle::Numbers => {
            let prefix = format!("<{}>", priority as u8);
            format!("{prefix}{}\n", text.replace('\n', &format!("\n{prefix}  ")))
        }
    }
}

fn configure(layer: Layer) -> Layer {
    let priorities = PriorityMappings {
        error: Syslog::Error,
        warn: Syslog::Warning,
        info: Syslog::Informational,
        debug: Syslog::Debug,
        trace: Syslog::Debug,
    };
    // Without a prefix, so that MESSAGE_ID is what it says. All names of fields are in `send`.
    layer.with_field_prefix(None).with_priority_mappings(priorities).with_syslog_identifier(IDENTIFIER.to_owned())
}

fn send(kind: EntryKind, priority: Priority, entry: &LogEntry, text: &str) {
    let listener = entry.listener.as_deref().map(|name| escape_control(name, false));
    let peer = entry.peer.as_deref().map(|peer| escape_control(peer, false));
    let received_nsec = entry.received_at.and_then(nanos_since_1970);
    // The level must be known when this is compiled.
    macro_rules! send_at {
        ($level:expr) => {
            event!(
                target: "echoed",
                $level,
                MESSAGE_ID = kind.message_id,
                LISTENER = listener.as_deref(),
                PEER = peer.as_deref(),
                CONNECTION = entry.connection,
                VERDICT = entry.verdict,
                REASON = entry.reason,
                BYTES_IN = entry.bytes_in,
                BYTES_OUT = entry.bytes_out,
                MESSAGES = entry.messages,
                RECEIVED_NSEC = received_nsec,
                CALLER_UID = entry.caller_uid,
                CALLER_PID = entry.caller_pid,
                message = text,
            )
        };
    }
    match priority {
        Priority::Error => send_at!(Level::ERROR),
        Priority::Warning => send_at!(Level::WARN),
        Priority::Info => send_at!(Level::INFO),
        Priority::Debug => send_at!(Level::DEBUG),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn stderr_is_the_journal_only_if_device_and_inode_match() {
        let stat = fstat(io::stderr()).unwrap();
        let (device, inode) = (stat.st_dev, stat.st_ino);
        assert!(is_stderr(Some(&format!("{device}:{inode}"))));
        for other in [None, Some(""), Some(":"), Some("8:1"), Some(&*format!("{device}:{}", inode + 1))] {
            assert!(!is_stderr(other), "{other:?}");
        }
        assert!(!is_stderr(Some(&format!("{}:{inode}", device + 1))));
    }

    #[test]
    fn further_lines_cannot_be_mistaken_for_entries() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_796_026_177_023);
        let line = format_line_at(time, PriorityStyle::Names, Priority::Error, "one\nwarn: two");
        assert_eq!(line, "2026-11-30T08:09:37.023Z error: one\n  warn: two\n");
        assert_eq!(format_line(PriorityStyle::Numbers, Priority::Info, "one\n<3>two"), "<6>one\n<6>  <3>two\n");
    }
}
