use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::systemd::clock::now;

const KIND: EntryKind = EntryKind { name: "some", message_id: "0" };
const OTHER: EntryKind = EntryKind { name: "other", message_id: "1" };

/// Says that it writes, and then waits until it may.
struct Slow {
    begins: Sender<()>,
    may: Receiver<()>,
    written: Written,
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    /// Returns the lines without their times.
    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        let without_time = |line: &str| line.split_once("Z ").map_or(line, |(_, rest)| rest).to_owned();
        String::from_utf8(bytes).unwrap().lines().map(without_time).collect()
    }

    /// Waits until there are so many lines.
    fn wait_for(&self, count: usize) -> Vec<String> {
        let until = now() + Duration::from_secs(30);
        loop {
            let lines = self.lines();
            if lines.len() >= count {
                return lines;
            }
            assert!(now() < until, "{lines:#?}");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.begins.send(());
        let _ = self.may.recv();
        self.written.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn say(log: &Log, kind: EntryKind, rate_limit: RateLimit, text: &str) {
    log.write(kind, Priority::Info, rate_limit, || LogEntry { text: text.to_owned(), ..LogEntry::default() });
}

#[test]
fn a_slow_reader_blocks_no_writer_and_lost_entries_are_counted() {
    let (begins, begun) = channel();
    let (go, may) = channel();
    let written = Written::default();
    let (log, writer) = start(LogTarget::Lines(Box::new(Slow { begins, may, written: written.clone() }))).unwrap();
    say(&log, KIND, RateLimit::Exempt, "first");
    begun.recv().unwrap();
    for number in 0..MAX_QUEUED + 7 {
        say(&log, KIND, RateLimit::Exempt, &format!("line {number}"));
    }
    drop(go);
    writer.close();
    let lines = written.lines();
    let lost = "warn: dropped 7 log entries here: writing the log was too slow";
    assert_eq!(lines[..3], ["info: first", lost, "info: line 0"]);
    assert_eq!(lines.len(), MAX_QUEUED + 2);
}

#[test]
fn closing_a_log_without_a_reader_does_not_block() {
    let (begins, begun) = channel();
    let (_go, may) = channel();
    let (log, writer) = start(LogTarget::Lines(Box::new(Slow { begins, may, written: Written::default() }))).unwrap();
    say(&log, KIND, RateLimit::Enforced, "first");
    begun.recv().unwrap();
    writer.close();
}

#[test]
fn entries_behind_one_that_takes_very_long_are_a_backlog_until_it_is_written() {
    let (begins, begun) = channel();
    let (go, may) = channel();
    let slow = Slow { begins, may, written: Written::default() };
    let (log, writer) = start(LogTarget::Lines(Box::new(slow))).unwrap();
    say(&log, KIND, RateLimit::Exempt, "first");
    begun.recv().unwrap();
    say(&log, KIND, RateLimit::Exempt, "second");
    let wait_for = |backlog| {
        let until = now() + Duration::from_secs(30);
        while log.backlog() != backlog {
            assert!(now() < until, "{:?}", log.backlog());
            thread::sleep(Duration::from_millis(2));
        }
    };
    wait_for(Some(2));
    drop(go);
    wait_for(None);
    assert_eq!(writer.close(), 0);
}

#[test]
fn entries_of_one_kind_are_rate_limited_and_the_suppressed_ones_counted_at_the_end() {
    let written = Written::default();
    let (log, writer) = start(LogTarget::Lines(Box::new(written.clone()))).unwrap();
    for number in 0..BURST + 23 {
        // So that the queue is not the limit.
        written.wait_for(usize::try_from(number.min(BURST)).unwrap());
        say(&log, KIND, RateLimit::Enforced, &number.to_string());
    }
    say(&log, OTHER, RateLimit::Enforced, "rare");
    say(&log, KIND, RateLimit::Exempt, "wanted");
    writer.close();
    let lines = written.lines();
    let some = format!("info: suppressed 23 some messages (limit: {BURST} per 10s)");
    let expected: Vec<_> = (0..BURST)
        .map(|number| format!("info: {number}"))
        .chain(["info: rare".to_owned(), "info: wanted".to_owned(), some])
        .collect();
    assert_eq!(lines, expected);
}

#[test]
fn suppressed_entries_are_neither_formatted_nor_queued() {
    let (begins, begun) = channel();
    let (go, may) = channel();
    let written = Written::default();
    let (log, writer) = start(LogTarget::Lines(Box::new(Slow { begins, may, written: written.clone() }))).unwrap();
    let mut formatted = 0;
    for _ in 0..10 * MAX_QUEUED {
        log.write(KIND, Priority::Error, RateLimit::Enforced, || {
            formatted += 1;
            LogEntry::default()
        });
    }
    begun.recv().unwrap();
    assert_eq!(formatted, BURST);
    // Another kind is queued, though nothing could be written.
    say(&log, OTHER, RateLimit::Enforced, "rare");
    drop(go);
    writer.close();
    let lines = written.lines();
    assert!(lines.contains(&"info: rare".to_owned()), "{lines:#?}");
    assert!(lines.last().unwrap().starts_with("error: suppressed 10140 some messages"), "{lines:#?}");
}

#[test]
fn the_number_of_suppressed_entries_is_logged_at_the_end_of_the_interval() {
    let (begins, begun) = channel();
    let (go, may) = channel();
    let written = Written::default();
    let slow = Slow { begins, may, written: written.clone() };
    let (log, mut writer) = open_with(LogTarget::Lines(Box::new(slow)), Duration::from_millis(50));
    writer.start().unwrap();
    say(&log, KIND, RateLimit::Enforced, "first");
    begun.recv().unwrap();
    // While the first is being written, no interval ends.
    for _ in 0..BURST + 4 {
        say(&log, KIND, RateLimit::Enforced, "x");
    }
    drop(go);
    let all = usize::try_from(BURST).unwrap() + 1;
    let lines = written.wait_for(all);
    assert!(lines.iter().any(|line| line.starts_with("info: suppressed 5 some messages")), "{lines:#?}");
    // In the next interval there is room again.
    say(&log, KIND, RateLimit::Enforced, "later");
    assert_eq!(written.wait_for(all + 1).last().unwrap(), "info: later");
    writer.close();
}

#[test]
fn suppressed_entries_can_be_reported_before_the_last_entry() {
    let (begins, begun) = channel();
    let (go, may) = channel();
    let written = Written::default();
    let (log, writer) = start(LogTarget::Lines(Box::new(Slow { begins, may, written: written.clone() }))).unwrap();
    for _ in 0..BURST + 3 {
        say(&log, KIND, RateLimit::Enforced, "x");
    }
    begun.recv().unwrap();
    log.flush_suppressed();
    say(&log, OTHER, RateLimit::Enforced, "last");
    drop(go);
    writer.close();
    let lines = written.lines();
    assert_eq!(lines.last().unwrap(), "info: last");
    assert!(lines.iter().any(|line| line.starts_with("info: suppressed 3 some messages")), "{lines:#?}");
}
