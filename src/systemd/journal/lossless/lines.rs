//! Messages that become lines on stderr. write(2) may block there, so a thread writes a copy; the sender waits until it
//! is written.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{ErrorKind, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::{Health, MAX_RETRY_DELAY, ReceivedMessage, STALL_TIMEOUT, StartThread, WakerQueue, key_of};
use crate::systemd::clock::now;
use crate::systemd::journal::Priority;
use crate::systemd::journal::sink::{PriorityStyle, format_line};
use crate::systemd::journal::text::{escape_bytes, escape_control};

/// How many bytes may be copied for the thread; one line may be longer, when it is alone.
pub(super) const MAX_BYTES: usize = 4 * 1024 * 1024;

/// How long a line that is being written may take until it is left alone.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(1);

/// The lossless log on stderr.
#[derive(Debug)]
pub(super) struct LineMessages {
    pub(super) health: Health,
    start_thread: StartThread,
    state: Mutex<State>,
    /// There is something to do for the thread that writes.
    more: Condvar,
    /// The thread has written a line.
    written: Condvar,
}

#[derive(Default)]
struct State {
    /// Lines to write, by their numbers, with the keys of their senders.
    queued: BTreeMap<u64, (usize, String)>,
    /// The number of the last line.
    last_number: u64,
    /// How long the lines are together, the one that is being written included.
    bytes: usize,
    /// Since when a line is being written, if one is.
    writing_since: Option<Instant>,
    /// The messages of senders that have not been told that theirs is written. Each sender has one at most, until it asks
    /// for it once more, or abandons it.
    tickets: HashMap<usize, Ticket>,
    /// Senders that wait for room for their message.
    refused: WakerQueue,
    frozen: bool,
    /// The target of lines, until the thread takes it.
    output: Option<Box<dyn Write + Send>>,
    thread_runs: bool,
}

#[derive(Debug)]
struct Ticket {
    /// Also keeps the key from being used for another sender.
    waker: Waker,
    /// The number of the line.
    number: u64,
    is_written: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl State {
    /// Takes the senders that may have room for their messages now.
    fn take_refused(&mut self) -> Vec<Waker> {
        if self.bytes <= MAX_BYTES / 2 && !self.frozen { self.refused.pop_up_to(usize::MAX) } else { Vec::new() }
    }
}

impl LineMessages {
    pub(super) fn new(output: Box<dyn Write + Send>, health: Health, start_thread: StartThread) -> Self {
        let state = Mutex::new(State { output: Some(output), ..State::default() });
        Self { health, start_thread, state, more: Condvar::new(), written: Condvar::new() }
    }

    /// Does what [`LosslessLog::try_append`](super::LosslessLog::try_append) does.
    pub(super) fn try_append(self: &Arc<Self>, message: ReceivedMessage<'_>, waker: &Waker) -> bool {
        let key = key_of(waker);
        let mut state = self.lock();
        match state.tickets.get(&key) {
            Some(Ticket { is_written: true, .. }) => {
                state.tickets.remove(&key);
                return true;
            }
            Some(Ticket { is_written: false, .. }) => {}
            // The line is about as long.
            None if state.frozen || state.bytes > 0 && state.bytes + message.bytes.len() > MAX_BYTES => {
                state.refused.push(waker);
            }
            None => {
                let line = format(&message);
                state.last_number += 1;
                let number = state.last_number;
                state.bytes += line.len();
                state.queued.insert(number, (key, line));
                state.tickets.insert(key, Ticket { waker: waker.clone(), number, is_written: false });
            }
        }
        if !state.frozen {
            self.run_thread(&mut state, waker);
        }
        self.more.notify_one();
        false
    }

    /// Does what [`LosslessLog::abandon`](super::LosslessLog::abandon) does.
    pub(super) fn abandon(&self, waker: &Waker) -> bool {
        let mut state = self.lock();
        let Some(ticket) = state.tickets.remove(&key_of(waker)) else { return false };
        if let Some((_, line)) = state.queued.remove(&ticket.number) {
            state.bytes -= line.len();
        }
        let woken = state.take_refused();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        ticket.is_written
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
        for (key, line) in mem::take(&mut state.queued).into_values() {
            state.bytes -= line.len();
            state.tickets.remove(&key);
        }
        let written = self.written.wait_timeout_while(state, FREEZE_TIMEOUT, |state| state.writing_since.is_some());
        drop(written);
    }

    /// Starts the thread that writes, unless it runs. If that fails, this sender tries it again later.
    fn run_thread(self: &Arc<Self>, state: &mut State, waker: &Waker) {
        if state.thread_runs {
            return;
        }
        let this = Arc::clone(self);
        match (self.start_thread)(Box::new(move || this.write_lines())) {
            Ok(()) => state.thread_runs = true,
            Err(error) => {
                self.health
                    .report_failure(format!("failed to start the thread that writes messages of peers: {error}"));
                self.health.wake_later(waker);
            }
        }
    }

    /// Writes, until the process ends.
    fn write_lines(&self) {
        let Some(mut output) = self.lock().output.take() else { return };
        loop {
            let waiting = self.more.wait_while(self.lock(), |state| state.queued.is_empty());
            let mut state = waiting.unwrap_or_else(PoisonError::into_inner);
            let Some((number, (key, line))) = state.queued.pop_first() else { continue };
            state.writing_since = Some(now());
            drop(state);
            self.write_line(&mut *output, line.as_bytes());
            self.finish(number, key, line.len());
        }
    }

    /// Writes a line, however long it takes.
    fn write_line(&self, output: &mut dyn Write, line: &[u8]) {
        self.health.log.line_lock.write(output, line, |error, delay| {
            // A reader that is only slow is not reported.
            if error.kind() != ErrorKind::WouldBlock || delay == MAX_RETRY_DELAY {
                self.health.report_failure(format!("failed to write to stderr: {error}"));
            }
            true
        });
        self.health.report_success();
    }

    /// Has the sender of a line told that it is written, unless it has abandoned it.
    fn finish(&self, number: u64, key: usize, len: usize) {
        let mut state = self.lock();
        state.writing_since = None;
        state.bytes -= len;
        let mut woken = state.take_refused();
        if let Some(ticket) = state.tickets.get_mut(&key).filter(|ticket| ticket.number == number) {
            ticket.is_written = true;
            woken.push(ticket.waker.clone());
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

    /// Returns how many senders have a message here.
    #[cfg(test)]
    pub(super) fn ticket_count(&self) -> usize {
        self.lock().tickets.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn format(message: &ReceivedMessage<'_>) -> String {
    let ReceivedMessage { connection_id, listener, peer, received_at, bytes } = message;
    let on = connection_id.map(|connection| format!("connection {connection} on ")).unwrap_or_default();
    let at = received_at.map(|time| format!(" at {}", humantime::format_rfc3339_nanos(time))).unwrap_or_default();
    let text = format!("message on {on}{listener} from {peer}{at}: {}", escape_bytes(bytes));
    format_line(PriorityStyle::Names, Priority::Info, &escape_control(&text, false))
}
