use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::task::Wake;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::systemd::clock::now;
use crate::systemd::journal::{LogWriter, start};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A sender that waits until it is woken.
struct TestSender {
    waker: Waker,
    counter: Arc<Counter>,
    wakes: Receiver<()>,
}

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

impl TestSender {
    fn new() -> Self {
        let (woken, wakes) = channel();
        let counter = Arc::new(Counter { count: AtomicUsize::new(0), woken });
        Self { waker: Waker::from(Arc::clone(&counter)), counter, wakes }
    }

    fn try_append(&self, log: &LosslessLog, bytes: &[u8]) -> bool {
        self.try_append_at(log, None, bytes)
    }

    fn try_append_at(&self, log: &LosslessLog, received_at: Option<SystemTime>, bytes: &[u8]) -> bool {
        let (connection_id, listener) = (Some(7), "echo".into());
        let message = ReceivedMessage { connection_id, listener: &listener, peer: &"uid 1000", received_at, bytes };
        log.try_append(message, &self.waker)
    }

    fn wait(&self) {
        self.wakes.recv_timeout(TEST_TIMEOUT).expect("it is woken");
    }

    /// Appends a message, and waits until it is accepted.
    fn append(&self, log: &LosslessLog, bytes: &[u8]) {
        while !self.try_append(log, bytes) {
            self.wait();
        }
    }
}

/// A fake journal that takes an entry when the test reads one, the lossless log that writes to it, and the lines of the
/// other log.
struct Setup {
    journal: UnixDatagram,
    log: LosslessLog,
    log_writer: LogWriter,
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
    let journal = UnixDatagram::bind(directory.path().join("socket")).unwrap();
    journal.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let lines = Arc::new(Mutex::default());
    let (other, log_writer) = start(LogTarget::Lines(Box::new(Lines(Arc::clone(&lines))))).unwrap();
    let socket = directory.path().join("socket");
    let log = open_at(LogTarget::Journal(Box::new(io::sink())), &socket, other, start_thread_in_the_end);
    Setup { journal, log, log_writer, lines, directory }
}

thread_local! {
    /// How many threads of logs cannot be started next.
    static FAILING_STARTS: Cell<usize> = const { Cell::new(0) };
}

fn start_thread_in_the_end(run: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    let failing = FAILING_STARTS.get();
    FAILING_STARTS.set(failing.saturating_sub(1));
    if failing > 0 { Err(ErrorKind::WouldBlock.into()) } else { start_thread(run) }
}

impl Setup {
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

    /// Fills the queue of the journal's socket.
    fn fill(&self) {
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        filler.connect_addr(&self.journal.local_addr().unwrap()).unwrap();
        while filler.send(b"FILLED\n\0\0\0\0\0\0\0\0\n").is_ok() {}
    }

    /// Returns the next message, after what only filled the queue.
    fn next(&self) -> Vec<u8> {
        next(&self.journal).expect("an entry comes")
    }

    /// Returns the messages that are in the socket by now.
    fn rest(&self) -> Vec<Vec<u8>> {
        self.journal.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| next(&self.journal)).collect()
    }
}

fn next(journal: &UnixDatagram) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = journal.recv(&mut buffer).ok()?;
        if let Some(message) = fields(&buffer[..count]).remove("MESSAGE") {
            return Some(message);
        }
    }
}

/// Returns the fields of an entry, all in the form for any bytes.
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

#[test]
fn a_message_is_one_entry_whatever_bytes_it_has() {
    let (setup, sender) = (set_up(), TestSender::new());
    let hostile = b"a\nPRIORITY=0\nMESSAGE_ID\n\x01\0\0\0\0\0\0\0x\n\xff\0";
    sender.append(&setup.log, hostile);
    sender.append(&setup.log, b"");
    let mut buffer = [0; 4096];
    let count = setup.journal.recv(&mut buffer).unwrap();
    let found = fields(&buffer[..count]);
    let expected: HashMap<_, _> = [
        ("PRIORITY", &b"6"[..]),
        ("SYSLOG_IDENTIFIER", b"echoed"),
        ("MESSAGE_ID", MESSAGE.message_id.as_bytes()),
        ("LISTENER", b"echo"),
        ("PEER", b"uid 1000"),
        ("CONNECTION", b"7"),
        ("MESSAGE", hostile),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_vec()))
    .into();
    assert_eq!(found, expected);
    assert_eq!(setup.next(), b"");
    setup.log_writer.close();
    assert_eq!(setup.lines.lock().unwrap().len(), 0);
}

#[test]
fn the_time_when_a_message_was_received_is_a_field_where_it_is_known() {
    let (setup, sender) = (set_up(), TestSender::new());
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_796_026_177_023_000_001);
    assert!(sender.try_append_at(&setup.log, Some(time), b"a"));
    let mut buffer = [0; 4096];
    let count = setup.journal.recv(&mut buffer).unwrap();
    assert_eq!(fields(&buffer[..count])["RECEIVED_NSEC"], b"1796026177023000001");
    setup.log_writer.close();
}

#[test]
fn an_accepted_message_is_in_the_socket_of_the_journal_and_a_refused_one_is_not() {
    let (setup, sender) = (set_up(), TestSender::new());
    assert!(sender.try_append(&setup.log, b"accepted"));
    // It is there already, whatever becomes of this process.
    setup.journal.set_nonblocking(true).unwrap();
    assert_eq!(setup.next(), b"accepted");
    setup.fill();
    assert!(!sender.try_append(&setup.log, b"refused"));
    assert_eq!(setup.rest(), [b""; 0]);
    sender.wait();
    sender.append(&setup.log, b"refused");
    assert_eq!(setup.rest(), [b"refused"]);
}

#[test]
fn every_refused_sender_gets_its_turn_and_none_is_woken_for_each_entry() {
    const SENDERS: usize = 500;
    const MESSAGES: usize = 4;
    let setup = set_up();
    setup.fill();
    let wakes = thread::scope(|scope| {
        let run = |number: usize| {
            let (sender, log) = (TestSender::new(), &setup.log);
            move || {
                for message in 0..MESSAGES {
                    sender.append(log, format!("{number}:{message}").as_bytes());
                }
                sender.counter.count.load(Ordering::SeqCst)
            }
        };
        let threads: Vec<_> = (0..SENDERS).map(|number| scope.spawn(run(number))).collect();
        let mut of_senders: HashMap<usize, Vec<usize>> = HashMap::new();
        for _ in 0..SENDERS * MESSAGES {
            let text = String::from_utf8(setup.next()).unwrap();
            let (sender, message) = text.split_once(':').unwrap();
            of_senders.entry(sender.parse().unwrap()).or_default().push(message.parse().unwrap());
        }
        assert_eq!(of_senders.len(), SENDERS);
        assert!(of_senders.values().all(|messages| messages.iter().copied().eq(0..MESSAGES)), "{of_senders:?}");
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    // If all of them were woken each time, there would be a hundred times as many.
    assert!(wakes < SENDERS * MESSAGES * 20, "{wakes}");
}

#[test]
fn senders_that_do_not_try_again_hold_up_no_other() {
    let setup = set_up();
    setup.fill();
    let gone: Vec<_> = (0..100).map(|_| TestSender::new()).collect();
    for sender in &gone {
        assert!(!sender.try_append(&setup.log, b"x") && !sender.try_append(&setup.log, b"x"));
    }
    let last = TestSender::new();
    assert!(!last.try_append(&setup.log, b"last"));
    assert_eq!(setup.rest(), [b""; 0]);
    last.wait();
    last.append(&setup.log, b"last");
    assert_eq!(setup.rest(), [b"last"]);
    for sender in &gone {
        // Nothing keeps it.
        assert_eq!(Arc::strong_count(&sender.counter), 2);
        assert_eq!(sender.counter.count.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_hanging_journal_is_reported_once_and_the_message_is_written_in_the_end() {
    let (setup, sender) = (set_up(), TestSender::new());
    setup.fill();
    assert!(!sender.try_append(&setup.log, b"one"));
    setup.wait_for_line("is not accepting entries; messages of peers and their senders wait");
    assert!(setup.log.is_failing());
    thread::scope(|scope| {
        let log = &setup.log;
        scope.spawn(move || sender.append(log, b"one"));
        assert_eq!(setup.next(), b"one");
    });
    setup.wait_for_line("writing messages of peers again");
    assert!(!setup.log.is_failing());
    assert_eq!(setup.lines.lock().unwrap().iter().filter(|byte| **byte == b'\n').count(), 2);
}

#[test]
fn a_journal_that_goes_away_and_comes_back_gets_every_message() {
    let (setup, sender) = (set_up(), TestSender::new());
    sender.append(&setup.log, b"before");
    assert_eq!(setup.next(), b"before");
    let path = setup.directory.path().join("socket");
    // A socket that is shut down refuses; without the path, there is none.
    rustix::net::shutdown(&setup.journal, rustix::net::Shutdown::Both).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(!sender.try_append(&setup.log, b"meanwhile"));
    setup.wait_for_line("failed to send to the journal at");
    let anew = UnixDatagram::bind(&path).unwrap();
    anew.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    sender.wait();
    sender.append(&setup.log, b"meanwhile");
    assert_eq!(next(&anew).unwrap(), b"meanwhile");
    sender.append(&setup.log, b"after");
    assert_eq!(next(&anew).unwrap(), b"after");
    // Made anew once more: no sender has to wait for that.
    drop(anew);
    std::fs::remove_file(&path).unwrap();
    let anew = UnixDatagram::bind(&path).unwrap();
    assert!(sender.try_append(&setup.log, b"at once"));
    assert_eq!(next(&anew).unwrap(), b"at once");
}

/// An output that takes three bytes at a time, and often none, once it is open.
#[derive(Clone, Default)]
struct Tight(Arc<(Mutex<TightState>, Condvar)>);

#[derive(Default)]
struct TightState {
    /// Whether something was to be written.
    has_begun: bool,
    is_open: bool,
    calls: usize,
    written: Vec<u8>,
}

impl Tight {
    fn open(&self) {
        self.0.0.lock().unwrap().is_open = true;
        self.0.1.notify_all();
    }

    /// Waits until something is being written.
    fn wait_until_begun(&self) {
        let state = self.0.0.lock().unwrap();
        let (state, _) = self.0.1.wait_timeout_while(state, TEST_TIMEOUT, |state| !state.has_begun).unwrap();
        assert!(state.has_begun, "nothing is written");
    }

    /// Returns the lines without their times.
    fn text(&self) -> String {
        let written = String::from_utf8(self.0.0.lock().unwrap().written.clone()).unwrap();
        let without_time = |line| str::split_once(line, "Z ").map_or(line, |(_, rest)| rest);
        written.split_inclusive('\n').map(without_time).collect()
    }
}

impl Write for Tight {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.0.lock().unwrap();
        state.has_begun = true;
        self.0.1.notify_all();
        let state = self.0.1.wait_while(state, |state| !state.is_open);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.calls += 1;
        if state.calls % 40 == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = bytes.len().min(3);
        state.written.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log_to(output: &Tight) -> LosslessLog {
    let (other, _) = start(LogTarget::Lines(Box::new(io::sink()))).unwrap();
    let journal = Path::new("/nonexistent");
    open_at(LogTarget::Lines(Box::new(output.clone())), journal, other, start_thread_in_the_end)
}

fn lines(log: &LosslessLog) -> &LineMessages {
    let Target::Lines(lines) = &log.target else { panic!("it goes to stderr") };
    lines
}

#[test]
fn without_the_journal_a_message_is_accepted_when_its_line_is_written_whole() {
    let (output, sender) = (Tight::default(), TestSender::new());
    let log = log_to(&output);
    let first = "two\nerror: lines\x1b[2J".as_bytes();
    assert!(!sender.try_append(&log, first) && !sender.try_append(&log, first));
    // Another one is not mistaken for it.
    let other = TestSender::new();
    assert!(!other.try_append(&log, b"other"));
    output.open();
    sender.append(&log, first);
    let start = "info: message on connection 7 on echo from uid 1000: \"";
    let first = format!("{start}two\\nerror: lines\\x1b[2J\"\n");
    assert!(output.text().starts_with(&first), "{}", output.text());
    other.append(&log, b"other");
    sender.append(&log, &[b'y'; 1000]);
    assert_eq!(output.text(), format!("{first}{start}other\"\n{start}{}\"\n", "y".repeat(1000)));
}

#[test]
fn lines_of_the_daemon_itself_do_not_cut_those_of_messages() {
    let (output, sender) = (Tight::default(), TestSender::new());
    output.open();
    let (other, writer) = start(LogTarget::Lines(Box::new(output.clone()))).unwrap();
    let journal = Path::new("/nonexistent");
    let log = open_at(LogTarget::Lines(Box::new(output.clone())), journal, other.clone(), start_thread);
    let note = |number: usize| format!("{number} {}", "n".repeat(50));
    let message = |number: usize| format!("{number} {}", "m".repeat(200));
    for number in 0..5 {
        let entry = || LogEntry { text: note(number), ..LogEntry::default() };
        other.write(WRITE_RESUMED, Priority::Info, RateLimit::Enforced, entry);
        sender.append(&log, message(number).as_bytes());
    }
    assert_eq!(writer.close(), 0);
    let text = output.text();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    let start = "info: message on connection 7 on echo from uid 1000: ";
    let notes = (0..5).map(|number| format!("info: {}", note(number)));
    let messages = (0..5).map(|number| format!("{start}\"{}\"", message(number)));
    assert_eq!(lines, notes.chain(messages).collect::<Vec<_>>());
}

#[test]
fn copies_for_stderr_are_bounded_but_a_single_message_may_be_longer() {
    let output = Tight::default();
    let log = log_to(&output);
    let senders: Vec<_> = (0..10).map(|_| TestSender::new()).collect();
    let large = vec![b'x'; lines::MAX_BYTES / 4];
    for sender in &senders {
        assert!(!sender.try_append(&log, &large));
    }
    assert_eq!(lines(&log).copied_count(), 3);
    let single = TestSender::new();
    let log = log_to(&output);
    assert!(!single.try_append(&log, &vec![b'x'; lines::MAX_BYTES + 1]));
    assert_eq!(lines(&log).copied_count(), 1);
}

#[test]
fn a_frozen_log_writes_no_line_that_its_sender_still_has() {
    let (output, [first, second]) = (Tight::default(), [TestSender::new(), TestSender::new()]);
    let log = log_to(&output);
    assert!(!first.try_append(&log, b"first"));
    assert!(!second.try_append(&log, b"second"));
    output.wait_until_begun();
    thread::scope(|scope| {
        scope.spawn(|| log.freeze());
        let until = now() + TEST_TIMEOUT;
        while lines(&log).copied_count() > 1 {
            assert!(now() < until, "it is not frozen");
            thread::sleep(Duration::from_millis(2));
        }
        output.open();
    });
    first.wait();
    assert!(first.try_append(&log, b"first"));
    assert!(!second.try_append(&log, b"second"));
    assert!(output.text().ends_with(": \"first\"\n"), "{}", output.text());
}

#[test]
fn an_abandoned_message_is_not_written_and_leaves_nothing() {
    let (output, [first, second, third]) = (Tight::default(), [(); 3].map(|()| TestSender::new()));
    let log = log_to(&output);
    assert!(!first.try_append(&log, b"first"));
    output.wait_until_begun();
    assert!(!second.try_append(&log, b"second"));
    assert!(!log.abandon(&second.waker), "it is not written");
    assert!(!log.abandon(&third.waker), "there is none");
    output.open();
    third.append(&log, b"third");
    first.wait();
    assert!(log.abandon(&first.waker), "it is written");
    let start = "info: message on connection 7 on echo from uid 1000: \"";
    assert_eq!(output.text(), format!("{start}first\"\n{start}third\"\n"));
    assert_eq!((lines(&log).ticket_count(), lines(&log).copied_count()), (0, 0));
}

#[test]
fn a_message_is_not_mistaken_for_one_that_its_sender_abandoned_while_it_was_written() {
    let (output, sender) = (Tight::default(), TestSender::new());
    let log = log_to(&output);
    assert!(!sender.try_append(&log, b"first"));
    output.wait_until_begun();
    assert!(!log.abandon(&sender.waker));
    assert!(!sender.try_append(&log, b"second"));
    output.open();
    sender.append(&log, b"second");
    assert!(output.text().ends_with(": \"second\"\n"), "{}", output.text());
}

#[test]
fn room_that_an_abandoned_message_leaves_is_for_those_that_were_refused() {
    let (output, [first, second, third]) = (Tight::default(), [(); 3].map(|()| TestSender::new()));
    let log = log_to(&output);
    assert!(!first.try_append(&log, b"first"));
    output.wait_until_begun();
    let large = vec![b'x'; lines::MAX_BYTES - 1000];
    assert!(!second.try_append(&log, &large));
    assert!(!third.try_append(&log, &large));
    log.abandon(&second.waker);
    third.wait();
    assert!(!third.try_append(&log, &large));
    assert_eq!(lines(&log).copied_count(), 2);
}

#[test]
fn a_sender_is_woken_again_but_not_at_once_if_the_thread_that_writes_cannot_be_started() {
    let (output, sender, start) = (Tight::default(), TestSender::new(), now());
    output.open();
    let log = log_to(&output);
    FAILING_STARTS.set(2);
    sender.append(&log, b"in the end");
    assert!(output.text().ends_with(": \"in the end\"\n"));
    assert!(now() - start >= Duration::from_secs(2));
    assert_eq!(sender.counter.count.load(Ordering::SeqCst), 3);
}

#[test]
fn a_sender_is_woken_again_but_not_at_once_if_the_thread_that_waits_for_the_journal_cannot_be_started() {
    let (setup, sender, start) = (set_up(), TestSender::new(), now());
    setup.fill();
    FAILING_STARTS.set(2);
    assert!(!sender.try_append(&setup.log, b"in the end"));
    setup.wait_for_line("failed to start the thread that waits for the journal");
    sender.wait();
    assert!(!sender.try_append(&setup.log, b"in the end"));
    sender.wait();
    assert!(now() - start >= Duration::from_secs(2));
    assert_eq!(sender.counter.count.load(Ordering::SeqCst), 2);
    thread::scope(|scope| {
        let log = &setup.log;
        assert!(!sender.try_append(log, b"in the end"));
        scope.spawn(move || sender.append(log, b"in the end"));
        assert_eq!(setup.next(), b"in the end");
    });
}
