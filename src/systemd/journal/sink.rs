//! Where entries end: the journal, or lines.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::time::SystemTime;

use rustix::fs::fstat;

use super::native::{self, JournalSocket};
use super::text::escape_control;
use super::{EntryKind, IDENTIFIER, LogEntry, LogTarget, Priority, STALL_TIMEOUT};

/// Whether stderr is the stream that systemd connected to the journal (systemd.exec(5), `$JOURNAL_STREAM`): it may have
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

/// Where entries end.
pub(super) enum Sink {
    Journal {
        journal: JournalSocket,
        /// Takes lines instead, as long as no entry has reached the journal: there may be none.
        fallback: Option<Lines>,
    },
    Lines(Lines),
}

/// Entries as lines.
pub(super) struct Lines {
    out: Box<dyn Write + Send>,
    style: PriorityStyle,
}

impl Sink {
    /// Opens the target. May block: without a journal, that is written to stderr.
    pub(super) fn open(target: LogTarget) -> Self {
        match target {
            LogTarget::Lines(out) => Self::Lines(Lines { out, style: PriorityStyle::Names }),
            LogTarget::Journal(out) => {
                let journal = JournalSocket::of_machine();
                let mut lines = Lines { out, style: PriorityStyle::Numbers };
                let fallback = journal.connect().err().map(|error| {
                    let path = journal.path();
                    let text = format!(
                        "cannot reach the journal at {}: {error}; until it can be reached, entries have no fields",
                        path.display()
                    );
                    // If this fails, so does what comes next.
                    let _ = lines.write(Priority::Warning, &text);
                    lines
                });
                Self::Journal { journal, fallback }
            }
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
            Self::Journal { journal, fallback } => {
                let result = send(journal, &encode(kind, priority, entry, &text));
                match (result, &mut *fallback) {
                    (Ok(()), _) => *fallback = None,
                    (Err(error), Some(lines)) if error.kind() != ErrorKind::WouldBlock => {
                        lines.write(priority, &text)?;
                    }
                    (Err(error), _) => return Err(error),
                }
            }
            Self::Lines(lines) => drop(lines.write(priority, &text)),
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
    fn write(&mut self, priority: Priority, text: &str) -> io::Result<()> {
        self.out.write_all(format_line(self.style, priority, text).as_bytes())
    }
}

/// Sends an entry, and waits for journald up to [`STALL_TIMEOUT`].
fn send(journal: &JournalSocket, entry: &[u8]) -> io::Result<()> {
    let entry = [IoSlice::new(entry)];
    match journal.try_send(&entry) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            journal.wait_for_room(STALL_TIMEOUT)?;
            journal.try_send(&entry)
        }
        result => result,
    }
}

/// Returns the bytes of an entry. All names of fields are here.
fn encode(kind: EntryKind, priority: Priority, entry: &LogEntry, text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    let mut put = |name, value: Option<&str>| {
        if let Some(value) = value {
            native::put_field(&mut bytes, name, value.as_bytes());
        }
    };
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let escaped = |text: Option<&str>| text.map(|text| escape_control(text, false).into_owned());
    put("PRIORITY", Some(&(priority as u8).to_string()));
    put("SYSLOG_IDENTIFIER", Some(IDENTIFIER));
    put("MESSAGE_ID", Some(kind.message_id));
    put("LISTENER", escaped(entry.listener.as_deref()).as_deref());
    put("PEER", escaped(entry.peer.as_deref()).as_deref());
    put("CONNECTION", number(entry.connection).as_deref());
    put("VERDICT", entry.verdict);
    put("REASON", entry.reason);
    put("BYTES_IN", number(entry.bytes_in).as_deref());
    put("BYTES_OUT", number(entry.bytes_out).as_deref());
    put("MESSAGES", number(entry.messages).as_deref());
    put("MESSAGE", Some(text));
    bytes
}

/// A line with its line feed. Where the text has several, the further ones are indented: none of them can be mistaken
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
