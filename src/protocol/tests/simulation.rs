//! A simulated connection: a session, a server that drives it, its peer, a log and a fake clock.
//!
//! The invariants are checked after every step ([`SimulatedConnection::check`]). A failure prints the history.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::simulated_outlet::SimulatedOutlet;
use crate::protocol::reply::{FLUSH_THRESHOLD, READ_SIZE};
use crate::protocol::session::Totals;
use crate::protocol::{Rules, Scratch, Session, Snapshot, Verdict, Want, snapshot};

/// More than the length of any error text.
const MAX_FINAL_REPLY: usize = 128;

/// A simulated connection. The peer and the log have room for everything unless a test says otherwise.
pub(super) struct SimulatedConnection {
    session: Session,
    scratch: Scratch,
    start: Instant,
    now: Instant,
    /// The kernel's receive buffer: bytes that the peer has sent and the session has not read.
    unread: Vec<u8>,
    peer_ended: bool,
    end_reported: bool,
    outlet: SimulatedOutlet,
    /// The maximum number of bytes that one call of the session has sent.
    max_sent_at_once: usize,
    /// All bytes that the session took before it had a verdict, and the number of bytes of each call.
    bytes_read: Vec<u8>,
    read_sizes: Vec<usize>,
    /// Whether it then also took the end of the peer's stream.
    end_read: bool,
    last_read: usize,
    /// Whether the peer has seen the end of the daemon's stream.
    shutdown_sent: bool,
    verdict: Option<Verdict>,
    /// The number of bytes that the peer's kernel has acknowledged, if it is known.
    acknowledged: Option<u64>,
    /// Whether the session is stored and restored after each call.
    restarts_after_each_call: bool,
    history: Vec<String>,
}

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl SimulatedConnection {
    pub(super) fn new(rules: Rules) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an instant to count from; the clock is moved by hand")]
        let start = Instant::now();
        let history = vec![format!("{rules:?}")];
        let outlet = SimulatedOutlet {
            send_capacity: usize::MAX,
            received: Vec::new(),
            received_total: 0,
            log_capacity: usize::MAX,
            logged: Vec::new(),
            logs: true,
            rules: rules.clone(),
            allowed: 0,
            full: false,
            log_refused: false,
        };
        Self {
            session: Session::new(Arc::new(rules), start),
            scratch: Scratch::new(),
            start,
            now: start,
            unread: Vec::new(),
            peer_ended: false,
            end_reported: false,
            outlet,
            max_sent_at_once: 0,
            bytes_read: Vec::new(),
            read_sizes: Vec::new(),
            end_read: false,
            last_read: 0,
            shutdown_sent: false,
            verdict: None,
            acknowledged: None,
            restarts_after_each_call: false,
            history,
        }
    }

    /// Restores a connection from a snapshot.
    pub(super) fn restored(bytes: &[u8], rules: Rules) -> Self {
        let mut conn = Self::new(rules);
        let snapshot = Snapshot::decode(bytes).unwrap_or_else(|error| panic!("{error}"));
        conn.note(format_args!("{snapshot:?}"));
        conn.session = snapshot.restore(Arc::clone(conn.session.shared_rules()), conn.start);
        conn.outlet.received_total = usize::try_from(conn.session.totals().bytes_out).unwrap();
        conn.outlet.allowed = usize::MAX;
        conn.shutdown_sent = conn.session.wants() == Want::Read && conn.session.verdict().is_some();
        conn.serve();
        conn
    }

    /// Returns the session as bytes.
    pub(super) fn snapshot(&self) -> Vec<u8> {
        self.snapshot_with_client(None)
    }

    /// Returns the session as bytes, with a client that a PROXY header named.
    pub(super) fn snapshot_with_client(&self, client: Option<SocketAddr>) -> Vec<u8> {
        snapshot::encode(&self.session, "echo", 7, client, self.now)
    }

    // --- What the peer does ---

    pub(super) fn peer_sends(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.note(format_args!("peer sends {} bytes: {}", bytes.len(), shown(bytes)));
        self.unread.extend_from_slice(bytes);
        self.serve();
    }

    pub(super) fn peer_ends(&mut self) {
        self.note(format_args!("peer ends its stream"));
        self.peer_ended = true;
        self.serve();
    }

    pub(super) fn peer_stops_reading(&mut self) {
        self.note(format_args!("peer stops reading"));
        self.outlet.send_capacity = 0;
    }

    /// Lets the peer read `count` bytes more, as soon as there are any.
    pub(super) fn peer_reads(&mut self, count: usize) {
        self.note(format_args!("peer takes {count}"));
        self.outlet.send_capacity = self.outlet.send_capacity.saturating_add(count);
        self.serve();
    }

    /// Lets the peer's kernel acknowledge data, which makes no room for output yet.
    pub(super) fn peer_acknowledges(&mut self) {
        self.note(format_args!("peer acknowledges"));
        *self.acknowledged.get_or_insert_default() += 1;
    }

    pub(super) fn peer_reads_all(&mut self) {
        self.peer_reads(usize::MAX);
    }

    // --- What the log does ---

    /// Logs nothing from now on, as where `log_messages` is off.
    pub(super) fn without_log(mut self) -> Self {
        self.note(format_args!("nothing is logged"));
        self.outlet.logs = false;
        self
    }

    pub(super) fn log_stops(&mut self) {
        self.note(format_args!("the log stops"));
        self.outlet.log_capacity = 0;
    }

    /// Lets the log accept `count` messages more, as soon as there are any.
    pub(super) fn log_accepts(&mut self, count: usize) {
        self.note(format_args!("the log takes {count}"));
        self.outlet.log_capacity = self.outlet.log_capacity.saturating_add(count);
        // The log wakes the connection, also while the connection waits for its peer.
        if self.session.wants() == Want::Write && self.session.has_unlogged_messages() {
            self.outlet.begin_call(self.session.verdict().is_some());
            self.session.process_buffers(self.now, &mut self.scratch, &mut self.outlet);
            self.check();
        }
        self.serve();
    }

    pub(super) fn log_accepts_all(&mut self) {
        self.log_accepts(usize::MAX);
    }

    // --- The daemon ---

    /// Reads ahead as many of `count` bytes of the peer as the session has room for. The rest is not read yet.
    pub(super) fn reads_ahead(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.note(format_args!("peer sends {} bytes, some of them read ahead: {}", bytes.len(), shown(bytes)));
        self.unread.extend_from_slice(bytes);
        let count = self.unread.len().min(self.session.read_ahead_room()).min(READ_SIZE);
        let ahead: Vec<_> = self.unread.drain(..count).collect();
        let before = self.session.totals().bytes_in;
        self.session.read_ahead(self.now, &ahead);
        if self.session.totals().bytes_in > before {
            self.bytes_read.extend_from_slice(&ahead);
            self.read_sizes.push(count);
        }
        self.last_read += count;
        self.serve();
    }

    pub(super) fn reset(&mut self) {
        self.note(format_args!("the connection breaks"));
        self.session.handle_reset();
        self.serve();
    }

    pub(super) fn drain(&mut self) {
        self.note(format_args!("we drain"));
        self.session.drain(self.now);
        self.serve();
    }

    pub(super) fn refuse(&mut self, verdict: Verdict) {
        self.note(format_args!("we refuse: {verdict}"));
        self.session.refuse(verdict, self.now);
        self.serve();
    }

    pub(super) fn run_out_of_memory(&mut self) {
        self.note(format_args!("we have no memory"));
        self.session.handle_out_of_memory(self.now);
        self.serve();
    }

    /// Hands the session over to another process.
    pub(super) fn restart(&mut self) {
        self.restart_for(Duration::ZERO);
    }

    /// Hands the session over to another process. This takes `time`, in which no deadline is handled.
    pub(super) fn restart_for(&mut self, time: Duration) {
        self.note(format_args!("we restart within {time:?}"));
        self.hand_over(time, Arc::clone(self.session.shared_rules()));
        self.session.handle_timeout(self.now);
        self.serve();
    }

    /// Hands the session over to another process, in which other rules apply.
    pub(super) fn restart_with(&mut self, rules: Rules) {
        self.note(format_args!("we restart with {rules:?}"));
        self.outlet.rules = rules.clone();
        // The session may have to process the message in progress again.
        self.last_read += self.session.memory();
        self.hand_over(Duration::ZERO, Arc::new(rules));
        self.serve();
    }

    /// Stores and restores the session after each call from now on.
    pub(super) fn restart_after_each_call(&mut self) {
        self.note(format_args!("we restart all the time"));
        self.restarts_after_each_call = true;
    }

    /// Stores the session, and restores it in a process with a different clock.
    fn hand_over(&mut self, time: Duration, rules: Arc<Rules>) {
        let bytes = self.snapshot();
        let before = self.state();
        let away = self.now - self.start;
        self.start += secs(1_000_000);
        self.now = self.start + away;
        let snapshot = Snapshot::decode(&bytes).unwrap_or_else(|error| panic!("{error}\n{self}"));
        assert_eq!((snapshot.listener_name(), snapshot.connection_id()), ("echo", 7));
        let same = rules == *self.session.shared_rules();
        self.session = snapshot.restore(rules, self.now);
        if same {
            let (wants, deadline, verdict, totals, memory) = self.state();
            assert_eq!((wants, verdict, totals), (before.0, before.2, before.3), "{self}");
            assert_eq!(deadline, before.1.map(|deadline| deadline + secs(1_000_000)), "{self}");
            assert!(memory <= before.4, "{memory} bytes, before {}\n{self}", before.4);
            assert_eq!(self.snapshot(), bytes, "{self}");
        }
        self.now += time;
    }

    /// Reports the end of the daemon's stream without a request of the session: a mistake of the server.
    pub(super) fn report_shutdown_too_early(&mut self) {
        self.note(format_args!("our stream is said to have ended"));
        self.session.handle_shutdown_sent(self.now);
        self.serve();
    }

    // --- What time does ---

    /// Advances the clock, with a call of `handle_timeout` just before each deadline, which must do nothing, and one at
    /// it, which must do something.
    pub(super) fn advance_time(&mut self, time: Duration) {
        // Counted from the beginning, because each call may change the clock.
        let until = self.now - self.start + time;
        while let Some(deadline) = self.session.deadline().filter(|deadline| *deadline - self.start <= until) {
            let before = deadline - Duration::from_nanos(1);
            if before >= self.now {
                let state = self.state();
                self.session.handle_timeout(before);
                assert_eq!(self.state(), state, "a timeout before the deadline did something\n{self}");
            }
            self.now = self.now.max(deadline);
            self.note(format_args!("a deadline passes"));
            self.handle_timeout();
            assert_ne!(self.session.deadline(), Some(deadline), "a timeout at the deadline did nothing\n{self}");
            self.serve();
        }
        self.now = self.start + until;
        self.handle_timeout();
        self.serve();
    }

    fn handle_timeout(&mut self) {
        if let Some(mark) = self.acknowledged.filter(|_| self.session.needs_peer_progress(self.now)) {
            self.session.record_peer_progress(self.now, mark);
        }
        self.session.handle_timeout(self.now);
    }

    // --- What can be seen ---

    /// Asserts what the peer has received since the last assertion, exactly.
    #[track_caller]
    pub(super) fn assert_peer_received(&mut self, expected: impl AsRef<[u8]>) {
        let (received, expected) = (std::mem::take(&mut self.outlet.received), expected.as_ref());
        if received != expected {
            let same = received.iter().zip(expected).take_while(|(received, expected)| received == expected).count();
            panic!(
                "the peer received {} bytes: {}\n  instead of {} bytes: {}\n  different from byte {same} on\n{self}",
                received.len(),
                shown(&received),
                expected.len(),
                shown(expected),
            );
        }
    }

    #[track_caller]
    pub(super) fn assert_open(&self) {
        assert_eq!(self.session.verdict(), None, "it should go on\n{self}");
        assert!(!self.shutdown_sent, "it should go on, but our stream has ended\n{self}");
    }

    /// Asserts that the session is closed: it wants nothing, keeps nothing, and has no deadline.
    #[track_caller]
    pub(super) fn assert_closed(&self, verdict: Verdict) {
        assert_eq!(self.session.verdict(), Some(verdict), "{self}");
        assert_eq!(self.session.wants(), Want::Close, "{self}");
        assert_eq!(self.session.deadline(), None, "{self}");
    }

    /// Asserts that the daemon's stream has ended, and that the session waits for the end of the peer's stream.
    #[track_caller]
    pub(super) fn assert_lingering(&self, verdict: Verdict) {
        assert_eq!(self.session.verdict(), Some(verdict), "{self}");
        assert!(self.shutdown_sent, "our stream should have ended\n{self}");
        assert_eq!(self.session.wants(), Want::Read, "{self}");
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Returns the deadline of the session, counted from the beginning of the connection.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.session.deadline_without_checks().map(|deadline| deadline - self.start)
    }

    pub(super) fn received(&self) -> &[u8] {
        &self.outlet.received
    }

    /// Returns the messages that the log has accepted, in its order.
    pub(super) fn logged(&self) -> &[Vec<u8>] {
        &self.outlet.logged
    }

    pub(super) fn bytes_read(&self) -> &[u8] {
        &self.bytes_read
    }

    pub(super) fn read_sizes(&self) -> &[usize] {
        &self.read_sizes
    }

    pub(super) fn end_read(&self) -> bool {
        self.end_read
    }

    pub(super) fn max_sent_at_once(&self) -> usize {
        self.max_sent_at_once
    }

    pub(super) fn shutdown_sent(&self) -> bool {
        self.shutdown_sent
    }

    // --- What a server does ---

    fn serve(&mut self) {
        loop {
            if self.restarts_after_each_call {
                self.hand_over(Duration::ZERO, Arc::clone(self.session.shared_rules()));
            }
            let received_before = self.outlet.received_total;
            self.outlet.begin_call(self.session.verdict().is_some());
            match self.session.wants() {
                Want::Read if !self.unread.is_empty() => {
                    let count = self.unread.len().min(READ_SIZE);
                    self.scratch.input_room()[..count].copy_from_slice(&self.unread[..count]);
                    if self.session.verdict().is_none() {
                        self.bytes_read.extend_from_slice(&self.unread[..count]);
                        self.read_sizes.push(count);
                    }
                    self.unread.drain(..count);
                    self.last_read = count;
                    self.session.receive(self.now, &mut self.scratch, count, &mut self.outlet);
                }
                Want::Read if self.peer_ended && !self.end_reported => {
                    self.end_reported = true;
                    self.end_read = self.session.verdict().is_none();
                    self.session.handle_end_of_input(self.now);
                }
                Want::Write if self.outlet.send_capacity > 0 => {
                    self.session.process_buffers(self.now, &mut self.scratch, &mut self.outlet);
                }
                Want::Log if self.outlet.log_capacity > 0 => {
                    self.session.process_buffers(self.now, &mut self.scratch, &mut self.outlet);
                }
                Want::Shutdown => {
                    self.shutdown_sent = true;
                    self.session.handle_shutdown_sent(self.now);
                }
                Want::Read | Want::Write | Want::Log | Want::Delay | Want::Close => break,
            }
            self.max_sent_at_once = self.max_sent_at_once.max(self.outlet.received_total - received_before);
            self.check();
        }
        self.check();
    }

    /// Checks the invariants.
    fn check(&mut self) {
        let (session, rules) = (&self.session, self.session.rules());
        let longest = rules.prefix.as_bytes().len() + rules.max_message + rules.delimiter.len();
        let most = match session.wants() {
            // Only the message in progress.
            Want::Read => longest,
            // `outbound`, and the rest of one read: `inbound`, or the message in progress with its prefix.
            _ => {
                let prefix_or_text = rules.prefix.as_bytes().len().max(rules.fixed_reply.len());
                FLUSH_THRESHOLD + longest + MAX_FINAL_REPLY + self.last_read + prefix_or_text
            }
        };
        assert!(session.memory() <= most, "keeps {} bytes, at most {most} allowed\n{self}", session.memory());
        if session.wants() == Want::Close {
            assert_eq!(session.memory(), 0, "over, but keeps something\n{self}");
            assert!(session.verdict().is_some(), "over without a verdict\n{self}");
        }
        let out = usize::try_from(session.totals().bytes_out).unwrap();
        assert_eq!(out, self.outlet.received_total, "bytes that the peer took\n{self}");
        if self.verdict.is_some() {
            assert_eq!(session.verdict(), self.verdict, "a verdict, once said, changed\n{self}");
        }
        self.verdict = session.verdict();
    }

    /// Returns everything that is visible of the session.
    fn state(&self) -> (Want, Option<Instant>, Option<Verdict>, Totals, usize) {
        let session = &self.session;
        (session.wants(), session.deadline_without_checks(), session.verdict(), session.totals(), session.memory())
    }

    fn note(&mut self, what: fmt::Arguments<'_>) {
        self.history.push(format!("{:?}: {what}", self.now - self.start));
    }
}

/// Formats the history.
impl fmt::Display for SimulatedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.history {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "  {:?}: wants {:?}, {:?}", self.now - self.start, self.session.wants(), self.session.totals())
    }
}

/// Formats bytes for failure messages, truncated if there are many.
pub(super) fn shown(bytes: &[u8]) -> String {
    let more = if bytes.len() > 120 { " …" } else { "" };
    format!("\"{}\"{more}", bytes[..bytes.len().min(120)].escape_ascii())
}
