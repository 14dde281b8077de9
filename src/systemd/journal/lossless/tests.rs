use std::collections::HashMap;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::task::Wake;

use tempfile::TempDir;

use super::*;

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Counts how often it is woken, and says so.
struct Counter {
    count: AtomicUsize,
    woken: Sender<()>,
}

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.count.fetch_add(1, Ordering::SeqCst);
        let _ = self.woken.send(());
    }
}

/// A fake journal that takes an entry when the test reads one, the lossless log that writes to it, and the lines of the
/// other log.
struct Setup {
    journal: UnixDatagram,
    messages: LosslessLog,
    writer: LosslessWriter,
    log_writer: crate::systemd::journal::LogWriter,
    lines: Arc<Mutex<Vec<u8>>>,
    directory: TempDir,
}

struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn set_up() -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let lines = Arc::new(Mutex::default());
    let (log, log_writer) =
        crate::systemd::journal::start(LogTarget::Lines(Box::new(Lines(Arc::clone(&lines))))).unwrap();
    let (messages, writer) = open_at(LogTarget::Journal(Box::new(io::sink())), path, log);
    Setup { journal, messages, writer, log_writer, lines, directory }
}

impl Setup {
    fn try_append(&self, bytes: &[u8], waker: &Waker) -> bool {
        let listener = "echo".into();
        self.messages.try_append(
            ReceivedMessage { connection_id: Some(7), listener: &listener, peer: &"somebody", bytes },
            waker,
        )
    }

    fn text(&self) -> String {
        String::from_utf8(self.lines.lock().unwrap().clone()).unwrap()
    }

    fn wait_for_line(&self, text: &str) {
        let until = now() + TEST_TIMEOUT;
        while !self.text().contains(text) {
            assert!(now() < until, "no \"{text}\": {}", self.text());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The fields of an entry, all in the form for any bytes.
fn fields(mut entry: &[u8]) -> HashMap<String, Vec<u8>> {
    let mut fields = HashMap::new();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let name = String::from_utf8(entry[..end].to_vec()).unwrap();
        let (length, rest) = entry[end + 1..].split_at(8);
        let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
        assert_eq!(rest[length], b'\n');
        assert!(fields.insert(name, rest[..length].to_vec()).is_none());
        entry = &rest[length + 1..];
    }
    assert!(entry.is_empty());
    fields
}

/// The next message, after what only filled the queue.
fn next(journal: &UnixDatagram) -> Vec<u8> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = journal.recv(&mut buffer).expect("an entry comes");
        if let Some(message) = fields(&buffer[..count]).remove("MESSAGE") {
            return message;
        }
    }
}

#[test]
fn a_message_is_one_entry_whatever_bytes_it_has() {
    let setup = set_up();
    let hostile = b"a\nPRIORITY=0\nMESSAGE_ID\n\x01\0\0\0\0\0\0\0x\n\xff\0";
    assert!(setup.try_append(hostile, Waker::noop()));
    assert!(setup.try_append(b"", Waker::noop()));
    let mut buffer = [0; 4096];
    let count = setup.journal.recv(&mut buffer).unwrap();
    let found = fields(&buffer[..count]);
    let expected: HashMap<_, _> = [
        ("PRIORITY", &b"6"[..]),
        ("SYSLOG_IDENTIFIER", b"echoed"),
        ("MESSAGE_ID", MESSAGE.message_id.as_bytes()),
        ("LISTENER", b"echo"),
        ("PEER", b"somebody"),
        ("CONNECTION", b"7"),
        ("MESSAGE", hostile),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_vec()))
    .into();
    assert_eq!(found, expected);
    assert_eq!(next(&setup.journal), b"");
    assert_eq!(setup.writer.close(None), 0);
    setup.log_writer.close();
    assert_eq!(setup.lines.lock().unwrap().len(), 0);
}

#[test]
fn refused_senders_are_woken_when_half_of_the_queue_is_free_and_no_message_is_lost() {
    let setup = set_up();
    let (woken, wakes) = channel();
    let counter = Arc::new(Counter { count: AtomicUsize::new(0), woken });
    let waker = Waker::from(Arc::clone(&counter));
    let total = 10 * MAX_MESSAGES;
    // So that nothing is written until we read.
    fill(&setup.journal);
    thread::scope(|scope| {
        let (setup, waker) = (&setup, &waker);
        scope.spawn(move || {
            for number in 0..total {
                while !setup.try_append(number.to_string().as_bytes(), waker) {
                    // Trying again changes nothing: each waker is stored once.
                    wakes.recv_timeout(TEST_TIMEOUT).expect("somebody wakes us");
                }
            }
        });
        // It waits, and what waits is bounded.
        let until = now() + TEST_TIMEOUT;
        while setup.messages.queue.state().wakers.is_empty() {
            assert!(now() < until);
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(setup.messages.queue.state().unwritten, MAX_MESSAGES);
        assert!(!setup.try_append(b"no", waker) && !setup.try_append(b"no", waker));
        assert_eq!(setup.messages.queue.state().wakers.len(), 1);
        assert_eq!(counter.count.load(Ordering::SeqCst), 0);
        for number in 0..total {
            assert_eq!(next(&setup.journal), number.to_string().as_bytes());
        }
    });
    // Not for each message: each time half of the queue was free.
    let wakes = counter.count.load(Ordering::SeqCst);
    assert!((1..=4 * total / MAX_MESSAGES).contains(&wakes), "{wakes}");
    assert_eq!(setup.writer.close(None), 0);
}

#[test]
fn queued_bytes_are_bounded_but_a_single_message_may_be_longer() {
    let setup = set_up();
    // The journal is busy with this one.
    let large = vec![b'x'; MAX_BYTES + 1];
    fill(&setup.journal);
    assert!(setup.try_append(&large, Waker::noop()));
    assert!(!setup.try_append(b"", Waker::noop()));
    let lost = setup.writer.close(Some(Duration::from_millis(10)));
    assert_eq!(lost, 1);
    assert!(!setup.messages.queue.reserve(1, Waker::noop()));
}

/// Fills the queue of the journal's socket.
fn fill(journal: &UnixDatagram) {
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    filler.connect_addr(&journal.local_addr().unwrap()).unwrap();
    while filler.send(b"FILLED\n\0\0\0\0\0\0\0\0\n").is_ok() {}
}

#[test]
fn a_hanging_journal_is_reported_once_and_queued_messages_are_written_in_the_end() {
    let setup = set_up();
    fill(&setup.journal);
    assert!(setup.try_append(b"one", Waker::noop()) && setup.try_append(b"two", Waker::noop()));
    setup.wait_for_line("takes nothing; messages of peers wait until it works again");
    assert_eq!(next(&setup.journal), b"one");
    assert_eq!(next(&setup.journal), b"two");
    setup.wait_for_line("messages of peers are written again");
    assert_eq!(setup.writer.close(None), 0);
    assert_eq!(setup.lines.lock().unwrap().iter().filter(|byte| **byte == b'\n').count(), 2);
}

#[test]
fn a_journal_that_goes_away_and_comes_back_gets_every_message() {
    let setup = set_up();
    assert!(setup.try_append(b"before", Waker::noop()));
    assert_eq!(next(&setup.journal), b"before");
    let path = setup.directory.path().join("socket");
    // Closing it refuses; without the path there is nobody at all.
    rustix::net::shutdown(&setup.journal, rustix::net::Shutdown::Both).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(setup.try_append(b"meanwhile", Waker::noop()));
    setup.wait_for_line("cannot send to the journal at");
    let anew = UnixDatagram::bind(&path).unwrap();
    anew.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    assert_eq!(next(&anew), b"meanwhile");
    assert!(setup.try_append(b"after", Waker::noop()));
    assert_eq!(next(&anew), b"after");
    assert_eq!(setup.writer.close(None), 0);
    setup.log_writer.close();
}

#[test]
fn stale_wakers_do_not_accumulate_while_the_journal_is_stuck() {
    let setup = set_up();
    fill(&setup.journal);
    while setup.try_append(b"x", Waker::noop()) {}
    let (woken, _wakes) = channel();
    let gone: Vec<_> =
        (0..100).map(|_| Arc::new(Counter { count: AtomicUsize::new(0), woken: woken.clone() })).collect();
    for counter in &gone {
        assert!(!setup.try_append(b"x", &Waker::from(Arc::clone(counter))));
    }
    assert_eq!(setup.messages.queue.state().wakers.len(), 101);
    // As if it were long ago.
    setup.messages.queue.state().last_wake_all = now().checked_sub(WAKE_ALL_INTERVAL);
    assert!(!setup.try_append(b"x", Waker::noop()));
    assert_eq!(setup.messages.queue.state().wakers.len(), 1);
    for counter in &gone {
        assert_eq!((counter.count.load(Ordering::SeqCst), Arc::strong_count(counter)), (1, 1));
    }
    assert!(setup.writer.close(Some(Duration::ZERO)) > 0);
}

#[test]
fn without_the_journal_each_message_is_a_whole_line_even_with_partial_writes() {
    /// Takes three bytes at a time, and often an error.
    struct Tight(Arc<Mutex<Vec<u8>>>, usize);

    impl Write for Tight {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1 % 40 == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(3);
            self.0.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let (log, log_writer) = crate::systemd::journal::start(LogTarget::Lines(Box::new(io::sink()))).unwrap();
    let written = Arc::new(Mutex::default());
    let (messages, writer) = open(LogTarget::Lines(Box::new(Tight(Arc::clone(&written), 0))), log);
    let listener = "echo".into();
    for bytes in ["two\nerror: lines\x1b[2J".as_bytes(), &[b'y'; 1000]] {
        let message = ReceivedMessage { connection_id: Some(7), listener: &listener, peer: &"some\nbody", bytes };
        assert!(messages.try_append(message, Waker::noop()));
    }
    assert_eq!(writer.close(None), 0);
    log_writer.close();
    let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
    // Each line begins with its time.
    let written: String = written.split_inclusive('\n').map(|line| line.split_once("Z ").unwrap().1).collect();
    let start = "info: message on connection 7 on echo from some\\nbody: \"";
    assert_eq!(written, format!("{start}two\\nerror: lines\\x1b[2J\"\n{start}{}\"\n", "y".repeat(1000)));
}
