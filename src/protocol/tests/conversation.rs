//! Two ends, a log and a fake clock: a session, served as a server would serve it, and its peer.
//!
//! What must hold at every moment is checked at every moment ([`Conversation::check`]); a failure prints all that
//! happened so far.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::reply::{ENOUGH, READ_SIZE};
use crate::protocol::rules::Reply;
use crate::protocol::session::Totals;
use crate::protocol::{Outlet, Rules, Scratch, Session, Snapshot, Verdict, Want, snapshot};

/// More than any error text has.
const LAST_WORDS: usize = 128;

/// A conversation. The peer and the log have room for everything unless a story says otherwise.
pub(super) struct Conversation {
    session: Session,
    scratch: Scratch,
    start: Instant,
    now: Instant,
    /// What the peer has sent and the session has not read: the kernel's receive buffer.
    unread: Vec<u8>,
    peer_ended: bool,
    end_told: bool,
    outside: Outside,
    /// The most that was sent in one call of the session.
    most_at_once: usize,
    /// All bytes that the session took before it had a verdict, and how many of them at a time.
    read: Vec<u8>,
    reads: Vec<usize>,
    /// Whether it then took the end of the peer's stream too.
    end_read: bool,
    last_read: usize,
    /// Whether the peer has seen the end of our stream.
    our_end: bool,
    verdict: Option<Verdict>,
    /// Whether it is put away and thawed after each call.
    restless: bool,
    log: Vec<String>,
}

/// Where bytes leave the session to: the peer's side of the connection, and the log.
struct Outside {
    /// How many bytes the peer's side takes: the kernel's send buffer.
    room: usize,
    heard: Vec<u8>,
    heard_total: usize,
    /// How many messages the log takes.
    log_room: usize,
    logged: Vec<Vec<u8>>,
    /// What replies are made by.
    rules: Rules,
    /// How many bytes may be sent by now: replies to messages that were logged, and last words.
    allowed: usize,
    /// Whether the peer took less than it was given, in this call of the session; or the log nothing.
    full: bool,
    refused: bool,
}

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Conversation {
    pub(super) fn new(rules: Rules) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an instant to count from; the clock is moved by hand")]
        let start = Instant::now();
        let log = vec![format!("{rules:?}")];
        let outside = Outside {
            room: usize::MAX,
            heard: Vec::new(),
            heard_total: 0,
            log_room: usize::MAX,
            logged: Vec::new(),
            rules: rules.clone(),
            allowed: 0,
            full: false,
            refused: false,
        };
        Self {
            session: Session::new(Arc::new(rules), start),
            scratch: Scratch::new(),
            start,
            now: start,
            unread: Vec::new(),
            peer_ended: false,
            end_told: false,
            outside,
            most_at_once: 0,
            read: Vec::new(),
            reads: Vec::new(),
            end_read: false,
            last_read: 0,
            our_end: false,
            verdict: None,
            restless: false,
            log,
        }
    }

    /// One that goes on from a snapshot.
    pub(super) fn thawed(bytes: &[u8], rules: Rules) -> Self {
        let mut talk = Self::new(rules);
        let snapshot = Snapshot::read(bytes).unwrap_or_else(|error| panic!("{error}"));
        talk.note(format_args!("{snapshot:?}"));
        talk.session = snapshot.thaw(Arc::clone(talk.session.shared_rules()), talk.start);
        talk.outside.heard_total = usize::try_from(talk.session.totals().bytes_out).unwrap();
        talk.outside.allowed = usize::MAX;
        talk.our_end = talk.session.wants() == Want::Read && talk.session.verdict().is_some();
        talk.serve();
        talk
    }

    /// The session as bytes.
    pub(super) fn frozen(&self) -> Vec<u8> {
        self.frozen_for(None)
    }

    /// The same behind a load balancer that has told this client.
    pub(super) fn frozen_for(&self, client: Option<SocketAddr>) -> Vec<u8> {
        snapshot::freeze(&self.session, "echo", 7, client, self.now)
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
        self.outside.room = 0;
    }

    /// It reads so many bytes more, as soon as there are any.
    pub(super) fn peer_takes(&mut self, count: usize) {
        self.note(format_args!("peer takes {count}"));
        self.outside.room = self.outside.room.saturating_add(count);
        self.serve();
    }

    pub(super) fn peer_takes_all(&mut self) {
        self.peer_takes(usize::MAX);
    }

    // --- What the log does ---

    pub(super) fn log_stops(&mut self) {
        self.note(format_args!("the log stops"));
        self.outside.log_room = 0;
    }

    /// It takes so many messages more, as soon as there are any.
    pub(super) fn log_takes(&mut self, count: usize) {
        self.note(format_args!("the log takes {count}"));
        self.outside.log_room = self.outside.log_room.saturating_add(count);
        self.serve();
    }

    pub(super) fn log_takes_all(&mut self) {
        self.log_takes(usize::MAX);
    }

    // --- What we do ---

    pub(super) fn breaks(&mut self) {
        self.note(format_args!("the connection breaks"));
        self.session.reset();
        self.serve();
    }

    pub(super) fn is_drained(&mut self) {
        self.note(format_args!("we drain"));
        self.session.drain(self.now);
        self.serve();
    }

    pub(super) fn is_refused(&mut self, verdict: Verdict) {
        self.note(format_args!("we refuse: {verdict}"));
        self.session.refuse(verdict, self.now);
        self.serve();
    }

    pub(super) fn is_out_of_memory(&mut self) {
        self.note(format_args!("we have no memory"));
        self.session.out_of_memory(self.now);
        self.serve();
    }

    /// It is put away and goes on in another process.
    pub(super) fn restarts(&mut self) {
        self.restarts_for(Duration::ZERO);
    }

    /// That takes so long, and nobody looks at the clock meanwhile.
    pub(super) fn restarts_for(&mut self, time: Duration) {
        self.note(format_args!("we restart within {time:?}"));
        self.moves(time, Arc::clone(self.session.shared_rules()));
        self.session.tick(self.now);
        self.serve();
    }

    /// Other rules hold afterwards.
    pub(super) fn restarts_with(&mut self, rules: Rules) {
        self.note(format_args!("we restart with {rules:?}"));
        self.outside.rules = rules.clone();
        // It may have to look again at the message in progress.
        self.last_read += self.session.memory();
        self.moves(Duration::ZERO, Arc::new(rules));
        self.serve();
    }

    /// From now on it is put away and thawed after each call.
    pub(super) fn is_restless(&mut self) {
        self.note(format_args!("we restart all the time"));
        self.restless = true;
    }

    /// The session is put away. Its bytes arrive in a process whose clock shows another time.
    fn moves(&mut self, time: Duration, rules: Arc<Rules>) {
        let bytes = self.frozen();
        let before = self.state();
        let away = self.now - self.start;
        self.start += secs(1_000_000);
        self.now = self.start + away;
        let snapshot = Snapshot::read(&bytes).unwrap_or_else(|error| panic!("{error}\n{self}"));
        assert_eq!((snapshot.listener(), snapshot.connection()), ("echo", 7));
        let same = rules == *self.session.shared_rules();
        self.session = snapshot.thaw(rules, self.now);
        if same {
            let (wants, deadline, verdict, totals, memory) = self.state();
            assert_eq!((wants, verdict, totals), (before.0, before.2, before.3), "{self}");
            assert_eq!(deadline, before.1.map(|deadline| deadline + secs(1_000_000)), "{self}");
            assert!(memory <= before.4, "{memory} bytes, before {}\n{self}", before.4);
            assert_eq!(self.frozen(), bytes, "{self}");
        }
        self.now += time;
    }

    /// A mistake of the server's.
    pub(super) fn end_is_sent_too_early(&mut self) {
        self.note(format_args!("our stream is said to have ended"));
        self.session.sent_end(self.now);
        self.serve();
    }

    // --- What time does ---

    /// Time passes, with a tick just before each deadline, which must do nothing, and one at it, which must do something.
    pub(super) fn passes(&mut self, time: Duration) {
        // Counted from the beginning, since the clock may be another one after each call.
        let until = self.now - self.start + time;
        while let Some(deadline) = self.session.deadline().filter(|deadline| *deadline - self.start <= until) {
            let before = deadline - Duration::from_nanos(1);
            if before >= self.now {
                let state = self.state();
                self.session.tick(before);
                assert_eq!(self.state(), state, "a tick before the deadline did something\n{self}");
            }
            self.now = self.now.max(deadline);
            self.note(format_args!("a deadline passes"));
            self.session.tick(self.now);
            assert_ne!(self.session.deadline(), Some(deadline), "a tick at the deadline did nothing\n{self}");
            self.serve();
        }
        self.now = self.start + until;
        self.session.tick(self.now);
        self.serve();
    }

    // --- What can be seen ---

    /// What the peer has received since it was last asked, exactly.
    #[track_caller]
    pub(super) fn peer_hears(&mut self, expected: impl AsRef<[u8]>) {
        let (heard, expected) = (std::mem::take(&mut self.outside.heard), expected.as_ref());
        if heard != expected {
            let same = heard.iter().zip(expected).take_while(|(heard, expected)| heard == expected).count();
            panic!(
                "the peer hears {} bytes: {}\n  instead of {} bytes: {}\n  different from byte {same} on\n{self}",
                heard.len(),
                shown(&heard),
                expected.len(),
                shown(expected),
            );
        }
    }

    #[track_caller]
    pub(super) fn goes_on(&self) {
        assert_eq!(self.session.verdict(), None, "it should go on\n{self}");
        assert!(!self.our_end, "it should go on, but our stream has ended\n{self}");
    }

    /// It is over by now: nothing is wanted, nothing kept, no time waited for.
    #[track_caller]
    pub(super) fn is_over(&self, verdict: Verdict) {
        assert_eq!(self.session.verdict(), Some(verdict), "{self}");
        assert_eq!(self.session.wants(), Want::Close, "{self}");
        assert_eq!(self.session.deadline(), None, "{self}");
    }

    /// Our stream has ended, and the peer's end of it is waited for.
    #[track_caller]
    pub(super) fn lingers(&self, verdict: Verdict) {
        assert_eq!(self.session.verdict(), Some(verdict), "{self}");
        assert!(self.our_end, "our stream should have ended\n{self}");
        assert_eq!(self.session.wants(), Want::Read, "{self}");
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// When it has to be looked at, from the beginning of the conversation.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.session.deadline().map(|deadline| deadline - self.start)
    }

    pub(super) fn heard(&self) -> &[u8] {
        &self.outside.heard
    }

    /// The messages that the log has taken, in its order.
    pub(super) fn logged(&self) -> &[Vec<u8>] {
        &self.outside.logged
    }

    pub(super) fn read(&self) -> &[u8] {
        &self.read
    }

    pub(super) fn reads(&self) -> &[usize] {
        &self.reads
    }

    pub(super) fn end_read(&self) -> bool {
        self.end_read
    }

    pub(super) fn most_at_once(&self) -> usize {
        self.most_at_once
    }

    pub(super) fn our_end(&self) -> bool {
        self.our_end
    }

    // --- What a server does ---

    fn serve(&mut self) {
        loop {
            if self.restless {
                self.moves(Duration::ZERO, Arc::clone(self.session.shared_rules()));
            }
            let heard_before = self.outside.heard_total;
            self.outside.begins(self.session.verdict().is_some());
            match self.session.wants() {
                Want::Read if !self.unread.is_empty() => {
                    let count = self.unread.len().min(READ_SIZE);
                    self.scratch.input_room()[..count].copy_from_slice(&self.unread[..count]);
                    if self.session.verdict().is_none() {
                        self.read.extend_from_slice(&self.unread[..count]);
                        self.reads.push(count);
                    }
                    self.unread.drain(..count);
                    self.last_read = count;
                    self.session.receive(self.now, &mut self.scratch, count, &mut self.outside);
                }
                Want::Read if self.peer_ended && !self.end_told => {
                    self.end_told = true;
                    self.end_read = self.session.verdict().is_none();
                    self.session.end_of_input(self.now);
                }
                Want::Write if self.outside.room > 0 => {
                    self.session.resume(self.now, &mut self.scratch, &mut self.outside);
                }
                Want::Log if self.outside.log_room > 0 => {
                    self.session.resume(self.now, &mut self.scratch, &mut self.outside);
                }
                Want::Shutdown => {
                    self.our_end = true;
                    self.session.sent_end(self.now);
                }
                Want::Read | Want::Write | Want::Log | Want::Pause | Want::Close => break,
            }
            self.most_at_once = self.most_at_once.max(self.outside.heard_total - heard_before);
            self.check();
        }
        self.check();
    }

    /// Holds at every moment.
    fn check(&mut self) {
        let (session, rules) = (&self.session, self.session.rules());
        let longest = rules.prefix.as_bytes().len() + rules.max_message + rules.delimiter.len();
        let most = match session.wants() {
            // The message in progress, and nothing else.
            Want::Read => longest,
            // What is owed, and what is left of one read: held, or with its prefix the message in progress.
            _ => {
                let prefix_or_text = rules.prefix.as_bytes().len().max(rules.text.len());
                ENOUGH + longest + LAST_WORDS + self.last_read + prefix_or_text
            }
        };
        assert!(session.memory() <= most, "keeps {} bytes, at most {most} allowed\n{self}", session.memory());
        if session.wants() == Want::Close {
            assert_eq!(session.memory(), 0, "over, but keeps something\n{self}");
            assert!(session.verdict().is_some(), "over without a verdict\n{self}");
        }
        let out = usize::try_from(session.totals().bytes_out).unwrap();
        assert_eq!(out, self.outside.heard_total, "bytes that the peer took\n{self}");
        if self.verdict.is_some() {
            assert_eq!(session.verdict(), self.verdict, "a verdict, once said, changed\n{self}");
        }
        self.verdict = session.verdict();
    }

    /// All that can be seen of the session.
    fn state(&self) -> (Want, Option<Instant>, Option<Verdict>, Totals, usize) {
        let session = &self.session;
        (session.wants(), session.deadline(), session.verdict(), session.totals(), session.memory())
    }

    fn note(&mut self, what: fmt::Arguments<'_>) {
        self.log.push(format!("{:?}: {what}", self.now - self.start));
    }
}

/// The story so far.
impl fmt::Display for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.log {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "  {:?}: wants {:?}, {:?}", self.now - self.start, self.session.wants(), self.session.totals())
    }
}

impl Outside {
    /// A call of the session begins.
    fn begins(&mut self, last_words: bool) {
        (self.full, self.refused) = (false, false);
        if last_words {
            self.allowed = usize::MAX;
        }
    }
}

impl Outlet for Outside {
    fn send(&mut self, bytes: &[u8]) -> usize {
        assert!(!bytes.is_empty(), "nothing was given to be sent");
        assert!(!self.full, "asked again, after fewer bytes were taken than were given");
        assert!(self.heard_total + bytes.len() <= self.allowed, "a message is answered that was not logged");
        let taken = bytes.len().min(self.room);
        self.full = taken < bytes.len();
        self.heard.extend_from_slice(&bytes[..taken]);
        self.heard_total += taken;
        self.room -= taken;
        taken
    }

    fn log(&mut self, message: &[u8]) -> bool {
        assert!(!self.refused, "asked again, after a message was not logged");
        self.refused = self.log_room == 0;
        if self.refused {
            return false;
        }
        self.log_room -= 1;
        self.logged.push(message.to_vec());
        self.allowed = self.allowed.saturating_add(reply_to(&self.rules, message).len());
        true
    }
}

/// What a message is answered with.
pub(super) fn reply_to(rules: &Rules, message: &[u8]) -> Vec<u8> {
    match rules.reply {
        Reply::Echo => [rules.prefix.as_bytes(), message, rules.ending()].concat(),
        Reply::Fixed => [&rules.text, rules.ending()].concat(),
        Reply::None => Vec::new(),
    }
}

/// Bytes for a person to read, cut when there are many.
pub(super) fn shown(bytes: &[u8]) -> String {
    let more = if bytes.len() > 120 { " …" } else { "" };
    format!("\"{}\"{more}", bytes[..bytes.len().min(120)].escape_ascii())
}
