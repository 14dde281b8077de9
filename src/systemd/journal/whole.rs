//! Whole messages of peers, each an entry: never left out, never cut. When the journal is slow, who sends them waits.
//!
//! A message is taken when there is room for it in a bounded queue, and refused otherwise; who is refused is woken when
//! half of the queue is free. One thread writes, from the first message on, and tries the same one again until it is
//! written: journald may be busy, hang, or be started anew. Without the journal a message is a line, whole and escaped.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::native::{self, Journal};
use super::sink::{Style, line};
use super::text::{harmless, readable};
use super::{Entry, Flood, IDENTIFIER, Kind, Log, Priority, Target, now};

/// A message of a peer.
pub const MESSAGE: Kind = Kind { name: "whole-message", message_id: "d460f42094ba4f3184a826c2496d3caf" };

/// Messages cannot be written now.
pub const STUCK: Kind = Kind { name: "messages-stuck", message_id: "467276d27c804c67a5ba95e112125318" };

/// Messages are written again.
pub const UNSTUCK: Kind = Kind { name: "messages-unstuck", message_id: "752a73d870f34899b5084ebe5eb8a2a2" };

/// How many messages may wait to be written.
pub const MOST: usize = 1024;

/// How many bytes of them; one message may be longer, when it is alone.
pub const MOST_BYTES: usize = 4 * 1024 * 1024;

/// The first pause after a failure; each further one is twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often those who wait are woken even without room. Who is gone does not come back, so that they do not pile up
/// while nothing can be written.
const ROLL_CALL: Duration = Duration::from_secs(10);

/// A message, as it is given.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// CONNECTION, where there is one.
    pub connection: Option<u64>,
    /// LISTENER.
    pub listener: &'a Arc<str>,
    /// PEER.
    pub peer: &'a dyn fmt::Display,
    /// MESSAGE. Anything may be in it.
    pub bytes: &'a [u8],
}

/// The way in; cheap to clone.
#[derive(Debug, Clone)]
pub struct Messages {
    shared: Arc<Shared>,
}

/// The thread that writes, as soon as there is something to write.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    log: Log,
    state: Mutex<State>,
    /// There is something to do for the thread that writes.
    more: Condvar,
    /// There is nothing left to write.
    done: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Owned>,
    /// Messages taken and not written, those among them that are not in `waiting`.
    count: usize,
    /// Their bytes.
    bytes: usize,
    /// Who was refused.
    refused: Vec<Waker>,
    /// When they were woken last for the roll call.
    called: Option<Instant>,
    /// Written so far; says whom to wake first.
    written: usize,
    closing: bool,
    /// What is not written by now is lost.
    given_up: bool,
    /// Where they are written to, until there is a thread that does it.
    out: Option<Out>,
    thread: Option<JoinHandle<()>>,
    /// Whether it was said that the thread cannot be made.
    threadless: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// A message that waits.
#[derive(Debug)]
struct Owned {
    connection: Option<u64>,
    listener: Arc<str>,
    peer: String,
    bytes: Box<[u8]>,
}

/// Where messages go; what goes wrong is said in `log`.
#[must_use]
pub fn open(target: Target, log: Log) -> (Messages, Writer) {
    open_at(target, native::PATH.into(), log)
}

fn open_at(target: Target, path: PathBuf, log: Log) -> (Messages, Writer) {
    let out = match target {
        Target::Journal(_) => Out::Journal(Journal::at(path)),
        Target::Lines(out) => Out::Lines(out),
    };
    let state = Mutex::new(State { out: Some(out), ..State::default() });
    let shared = Arc::new(Shared { log, state, more: Condvar::default(), done: Condvar::default() });
    (Messages { shared: Arc::clone(&shared) }, Writer { shared })
}

impl Messages {
    /// Takes a message: it will be written. Or returns `false` when there is no room for it now; then `waker` is woken
    /// when it makes sense to try again. Never waits.
    #[must_use]
    pub fn take(&self, message: Message<'_>, waker: &Waker) -> bool {
        let taken = self.shared.reserve(message.bytes.len(), waker);
        let mut state = self.shared.state();
        if taken {
            state.waiting.push_back(Owned {
                connection: message.connection,
                listener: Arc::clone(message.listener),
                peer: message.peer.to_string(),
                bytes: message.bytes.into(),
            });
            self.shared.more.notify_one();
        }
        if state.thread.is_none() {
            self.shared.begin(&mut state);
        }
        taken
    }
}

impl Writer {
    /// Takes nothing more, and waits until everything is written; `within` so long, or else for ever. Returns how many
    /// messages are lost.
    pub fn close(self, within: Option<Duration>) -> usize {
        let lost = self.shared.close(within);
        let thread = self.shared.state().thread.take();
        if let Some(thread) = thread.filter(|_| lost == 0) {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
        lost
    }
}

impl Shared {
    /// Makes the thread that writes. If that fails, whoever has a message tries it again.
    fn begin(self: &Arc<Self>, state: &mut State) {
        let shared = Arc::clone(self);
        match thread::Builder::new().name("messages".to_owned()).spawn(move || shared.run()) {
            Ok(thread) => state.thread = Some(thread),
            Err(error) if !mem::replace(&mut state.threadless, true) => {
                let text = format!("cannot start the thread that writes messages of peers: {error}; they wait");
                say(&self.log, STUCK, Priority::Warning, text);
            }
            Err(_) => {}
        }
    }

    /// Writes, until the end.
    fn run(&self) {
        let Some(mut out) = self.state().out.take() else { return };
        while let Some(message) = self.next() {
            if !self.write(&mut out, &message) {
                break;
            }
            self.has_written(message.bytes.len());
        }
    }

    fn reserve(&self, bytes: usize, waker: &Waker) -> bool {
        let mut state = self.state();
        let fits = state.count < MOST && state.bytes.saturating_add(bytes) <= MOST_BYTES;
        if !state.closing && (fits || state.count == 0) {
            state.count += 1;
            state.bytes += bytes;
            return true;
        }
        let now = now();
        let called = *state.called.get_or_insert(now);
        let gone_too = now.duration_since(called) >= ROLL_CALL;
        let others = if gone_too { mem::take(&mut state.refused) } else { Vec::new() };
        if gone_too {
            state.called = Some(now);
        }
        if !state.refused.iter().any(|other| other.will_wake(waker)) {
            state.refused.push(waker.clone());
        }
        drop(state);
        others.into_iter().for_each(Waker::wake);
        false
    }

    /// The next message; `None` at the end.
    fn next(&self) -> Option<Owned> {
        let mut state = self.state();
        loop {
            if let Some(message) = state.waiting.pop_front() {
                return Some(message);
            }
            if state.closing && state.count == 0 || state.given_up {
                return None;
            }
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes a message, however long it takes. Returns `false` if this was given up.
    fn write(&self, out: &mut Out, message: &Owned) -> bool {
        let entry = out.entry(message);
        let (mut at, mut pause, mut stuck) = (0, FIRST_PAUSE, false);
        while let Err(error) = out.write(&entry, &mut at) {
            if !stuck {
                stuck = true;
                say(&self.log, STUCK, Priority::Warning, out.stuck(&error));
            }
            // Where there was a time limit, waiting has been done.
            let waited = matches!(out, Out::Journal(_)) && error.kind() == ErrorKind::WouldBlock;
            if self.pause(if waited { Duration::ZERO } else { pause }) {
                return false;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if stuck {
            say(&self.log, UNSTUCK, Priority::Info, "messages of peers are written again".to_owned());
        }
        true
    }

    /// Waits. Returns whether writing was given up.
    fn pause(&self, time: Duration) -> bool {
        let state = self.state();
        let wait = self.more.wait_timeout_while(state, time, |state| !state.given_up);
        wait.unwrap_or_else(PoisonError::into_inner).0.given_up
    }

    fn has_written(&self, bytes: usize) {
        let mut state = self.state();
        state.count -= 1;
        state.bytes -= bytes;
        state.written = state.written.wrapping_add(1);
        let mut woken = Vec::new();
        if state.count <= MOST / 2 && state.bytes <= MOST_BYTES / 2 && !state.refused.is_empty() {
            woken = mem::take(&mut state.refused);
            // The first to wake take what room there is. They should be others each time: a hash says who.
            let hash = state.written.wrapping_mul(0x9E37_79B9) >> 16;
            let first = hash % woken.len();
            woken.rotate_left(first);
            state.called = None;
        }
        if state.count == 0 {
            self.done.notify_all();
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    fn close(&self, within: Option<Duration>) -> usize {
        let ends = within.map(|within| now() + within);
        let mut state = self.state();
        state.closing = true;
        while state.count > 0 {
            state = match ends.map(|ends| ends.saturating_duration_since(now())) {
                None => self.done.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        state.given_up = true;
        self.more.notify_one();
        state.count
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn say(log: &Log, kind: Kind, priority: Priority, text: String) {
    log.write(kind, priority, Flood::Limited, || Entry { text, ..Entry::default() });
}

enum Out {
    Journal(Journal),
    Lines(Box<dyn Write + Send>),
}

impl Out {
    /// The bytes to write.
    fn entry(&self, message: &Owned) -> Vec<u8> {
        let Owned { connection, listener, peer, bytes } = message;
        match self {
            Self::Journal(_) => {
                let mut entry = Vec::with_capacity(bytes.len() + 320);
                native::put(&mut entry, "PRIORITY", (Priority::Info as u8).to_string().as_bytes());
                native::put(&mut entry, "SYSLOG_IDENTIFIER", IDENTIFIER.as_bytes());
                native::put(&mut entry, "MESSAGE_ID", MESSAGE.message_id.as_bytes());
                native::put(&mut entry, "LISTENER", listener.as_bytes());
                native::put(&mut entry, "PEER", peer.as_bytes());
                if let Some(connection) = connection {
                    native::put(&mut entry, "CONNECTION", connection.to_string().as_bytes());
                }
                native::put(&mut entry, "MESSAGE", bytes);
                entry
            }
            Self::Lines(_) => {
                let text = readable(bytes);
                let on = connection.map(|connection| format!("connection {connection} on ")).unwrap_or_default();
                let text = format!("message on {on}{listener} from {peer}: {text}");
                line(Style::Words, Priority::Info, &harmless(&text, false)).into_bytes()
            }
        }
    }

    /// Writes what is not written yet: from `at` on, which is moved on.
    fn write(&mut self, entry: &[u8], at: &mut usize) -> io::Result<()> {
        match self {
            Self::Journal(journal) => journal.send(entry),
            Self::Lines(out) => {
                while *at < entry.len() {
                    match out.write(&entry[*at..]) {
                        Ok(0) => return Err(ErrorKind::WriteZero.into()),
                        Ok(count) => *at += count,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        }
    }

    fn stuck(&self, error: &io::Error) -> String {
        let problem = match self {
            Self::Journal(journal) => match error.kind() {
                ErrorKind::WouldBlock => format!("the journal at {} takes nothing", journal.path().display()),
                _ => format!("cannot send to the journal at {}: {error}", journal.path().display()),
            },
            Self::Lines(_) => format!("cannot write to stderr: {error}"),
        };
        format!("{problem}; messages of peers wait until it works again, and who sends them waits")
    }
}

#[cfg(test)]
mod tests;
