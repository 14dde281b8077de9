//! Messages that become lines on stderr. write(2) may block there, so a thread writes a copy; the sender waits until it
//! is written.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{ErrorKind, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use super::{FIRST_RETRY_DELAY, Health, MAX_RETRY_DELAY, ReceivedMessage, STALL_TIMEOUT, WakerQueue, key_of};
use crate::systemd::journal::sink::{PriorityStyle, format_line};
use crate::systemd::journal::text::{escape_bytes, escape_control};
use crate::systemd::journal::{Priority, now};

/// How many bytes may be copied for the thread; one line may be longer, when it is alone.
pub(super) const MAX_BYTES: usize = 4 * 1024 * 1024;

/// How long it is remembered that a message was written whose sender does not ask: its connection has ended.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a line that is being written may take until it is left alone.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(1);

/// The lossless log on stderr.
#[derive(Debug)]
pub(super) struct LineMessages {
    pub(super) health: Health,
    state: Mutex<State>,
    /// There is something to do for the thread that writes.
    more: Condvar,
    /// The thread has written a line.
    written: Condvar,
}

#[derive(Default)]
struct State {
    /// Lines to write, with the keys of their senders.
    queued: VecDeque<(usize, String)>,
    /// How long they are together, the one that is being written included.
    bytes: usize,
    /// Since when a line is being written, if one is.
    writing_since: Option<Instant>,
    /// The messages of senders that have not been told that theirs is written. Each sender has one at most.
    tickets: HashMap<usize, Ticket>,
    /// Which of them are written, the oldest first.
    written: VecDeque<(Instant, usize)>,
    /// Senders for whose message there was no room.
    refused: WakerQueue,
    frozen: bool,
    /// Where lines are written to, until the thread has it.
    output: Option<Box<dyn Write + Send>>,
    thread_runs: bool,
}

#[derive(Debug)]
struct Ticket {
    waker: Waker,
    written: Option<Instant>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl LineMessages {
    pub(super) fn new(output: Box<dyn Write + Send>, health: Health) -> Self {
        let state = Mutex::new(State { output: Some(output), ..State::default() });
        Self { health, state, more: Condvar::new(), written: Condvar::new() }
    }

    /// Does what [`LosslessLog::try_append`](super::LosslessLog::try_append) does.
    pub(super) fn try_append(self: &Arc<Self>, message: ReceivedMessage<'_>, waker: &Waker) -> bool {
        let key = key_of(waker);
        let mut state = self.lock();
        match state.tickets.get(&key) {
            Some(Ticket { written: Some(_), .. }) => {
                state.tickets.remove(&key);
                return true;
            }
            Some(Ticket { written: None, .. }) => return false,
            None => {}
        }
        // The line is about as long.
        if state.frozen || state.bytes > 0 && state.bytes + message.bytes.len() > MAX_BYTES {
            state.refused.push(waker);
            return false;
        }
        let line = format(&message);
        state.bytes += line.len();
        state.queued.push_back((key, line));
        state.tickets.insert(key, Ticket { waker: waker.clone(), written: None });
        if !state.thread_runs {
            self.start_thread(&mut state);
        }
        self.more.notify_one();
        false
    }

    /// Returns whether a line could not be written, or takes very long.
    pub(super) fn is_failing(&self) -> bool {
        let stalls = |since| now().saturating_duration_since(since) >= STALL_TIMEOUT;
        self.health.is_failing() || self.lock().writing_since.is_some_and(stalls)
    }

    /// Drops all lines that are not being written, whose senders have them still.
    pub(super) fn freeze(&self) {
        let mut state = self.lock();
        state.frozen = true;
        for (key, line) in mem::take(&mut state.queued) {
            state.bytes -= line.len();
            state.tickets.remove(&key);
        }
        let written = self.written.wait_timeout_while(state, FREEZE_TIMEOUT, |state| state.writing_since.is_some());
        drop(written);
    }

    /// Starts the thread that writes. If that fails, the next message tries it again.
    fn start_thread(self: &Arc<Self>, state: &mut State) {
        let this = Arc::clone(self);
        match thread::Builder::new().name("messages".to_owned()).spawn(move || this.write_lines()) {
            Ok(_) => state.thread_runs = true,
            Err(error) => {
                let problem = format!("cannot start the thread that writes messages of peers: {error}");
                self.health.report_failure(problem);
            }
        }
    }

    /// Writes, until the process ends.
    fn write_lines(&self) {
        let Some(mut output) = self.lock().output.take() else { return };
        loop {
            let waiting = self.more.wait_while(self.lock(), |state| state.queued.is_empty());
            let mut state = waiting.unwrap_or_else(PoisonError::into_inner);
            let Some((key, line)) = state.queued.pop_front() else { continue };
            state.writing_since = Some(now());
            drop(state);
            self.write_line(&mut *output, line.as_bytes());
            self.finish(key, line.len());
        }
    }

    /// Writes a line, however long it takes.
    fn write_line(&self, output: &mut dyn Write, line: &[u8]) {
        let (mut at, mut delay) = (0, FIRST_RETRY_DELAY);
        while at < line.len() {
            let error = match output.write(&line[at..]) {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(count) => {
                    (at, delay) = (at + count, FIRST_RETRY_DELAY);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            // A reader that is only slow is not reported.
            if error.kind() != ErrorKind::WouldBlock || delay == MAX_RETRY_DELAY {
                self.health.report_failure(format!("cannot write to stderr: {error}"));
            }
            thread::sleep(delay);
            delay = (delay * 2).min(MAX_RETRY_DELAY);
        }
        self.health.report_success();
    }

    /// Has the sender of a line told that it is written.
    fn finish(&self, key: usize, len: usize) {
        let now = now();
        let mut state = self.lock();
        state.writing_since = None;
        state.bytes -= len;
        let mut woken = Vec::new();
        if let Some(ticket) = state.tickets.get_mut(&key) {
            ticket.written = Some(now);
            woken.push(ticket.waker.clone());
            state.written.push_back((now, key));
        }
        while let Some(&(at, key)) = state.written.front().filter(|(at, _)| now.duration_since(*at) >= CLAIM_TIMEOUT) {
            state.written.pop_front();
            if state.tickets.get(&key).is_some_and(|ticket| ticket.written == Some(at)) {
                state.tickets.remove(&key);
            }
        }
        if state.bytes <= MAX_BYTES / 2 {
            woken.extend(state.refused.pop_up_to(usize::MAX));
        }
        self.written.notify_all();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Returns how many messages were copied and are not written.
    #[cfg(test)]
    pub(super) fn copied_count(&self) -> usize {
        let state = self.lock();
        state.queued.len() + usize::from(state.writing_since.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn format(message: &ReceivedMessage<'_>) -> String {
    let ReceivedMessage { connection_id, listener, peer, bytes } = message;
    let on = connection_id.map(|connection| format!("connection {connection} on ")).unwrap_or_default();
    let text = format!("message on {on}{listener} from {peer}: {}", escape_bytes(bytes));
    format_line(PriorityStyle::Names, Priority::Info, &escape_control(&text, false))
}
