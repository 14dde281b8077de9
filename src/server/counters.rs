//! What the threads of a server have done since it started, for each listener.
//!
//! Each thread has counters of its own in each listener, so that no message writes what another thread writes. A connection reaches
//! them through its listener and the number of its thread ([`Listener::counters`](super::listener::Listener::counters)).

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::socket::SocketKind;
use crate::protocol::Verdict;
use crate::protocol::packet::{DROP_CAUSES, DROP_NAMES, DropCause};
use crate::protocol::session::Totals;
use crate::protocol::verdict;

/// What a thread that serves has done for one listener since it started. Only this thread writes them, so a number is read and
/// written back without a lock on the bus. They share no cache line with those of another thread.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Counters {
    accepted: AtomicU64,
    resumed: AtomicU64,
    messages: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    ended: [AtomicU64; verdict::KINDS],
}

/// What the thread of a datagram socket has done since it started. Only this thread writes them, but for those of replies to paths.
#[derive(Debug, Default)]
pub(crate) struct DatagramCounters {
    counters: Counters,
    answered: AtomicU64,
    dropped: [AtomicU64; DROP_CAUSES],
    to_paths: Arc<PathCounters>,
}

/// What threads that send replies to paths have sent for one socket. They write it by atomic additions.
#[derive(Debug, Default)]
pub(crate) struct PathCounters {
    replies: AtomicU64,
    bytes: AtomicU64,
}

/// The counters of all listeners with one name.
#[derive(Debug)]
pub(crate) struct ListenerCounters {
    /// By the numbers of the threads that serve connections.
    threads: Arc<[Counters]>,
    /// Of each datagram socket.
    datagrams: Mutex<Vec<Arc<DatagramCounters>>>,
    /// How often accept(2) or recvmmsg(2) has failed with each error.
    accept_errors: Mutex<BTreeMap<i32, u64>>,
    has_connections: AtomicBool,
    has_datagrams: AtomicBool,
}

/// The counters of all listeners.
#[derive(Debug)]
pub(crate) struct CounterRegistry {
    /// How many threads serve connections.
    threads: usize,
    listeners: Mutex<BTreeMap<String, Arc<ListenerCounters>>>,
    /// What previous processes have counted.
    inherited: Mutex<BTreeMap<String, ListenerCounts>>,
}

/// What a server has done since it started: the counters of all its listeners, added up.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted, the refused ones among them.
    pub accepted: u64,
    /// Connections that were restored from the previous process.
    pub resumed: u64,
    /// Messages, and bytes in both directions.
    pub totals: Totals,
    /// How many connections ended for each reason, in the order of [`verdict::NAMES`].
    pub ended: [u64; verdict::KINDS],
    /// Datagrams that were answered, or whose listener answers none.
    pub answered: u64,
    /// How many datagrams were dropped for each cause, in the order of
    /// [`DROP_NAMES`](crate::protocol::packet::DROP_NAMES).
    pub dropped: [u64; DROP_CAUSES],
}

/// What all listeners with one name have done, in this process and in those before it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerCounts {
    /// Connections accepted, the refused ones among them.
    pub accepted: u64,
    /// Connections that were restored from a previous process.
    pub resumed: u64,
    /// How many connections ended with each verdict: those of this version, and others that previous processes have counted.
    pub ended: BTreeMap<String, u64>,
    /// Messages that were received whole.
    pub messages: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Datagrams that were answered, or whose listener answers none.
    pub datagrams_answered: u64,
    /// How many datagrams were dropped for each cause.
    pub datagrams_dropped: BTreeMap<String, u64>,
    /// How often accepting failed with each error of errno(3).
    pub accept_errors: BTreeMap<String, u64>,
    /// Whether it accepts connections, or a previous process has.
    pub has_connections: bool,
    /// Whether it receives datagrams, or a previous process has.
    pub has_datagrams: bool,
}

impl Counters {
    /// Counts what a connection has received and sent since `before`: on the way of each message, so without a branch and
    /// without checks of overflow. No total ever becomes smaller, and 64 bits are enough.
    #[inline]
    pub(crate) fn count_totals(&self, before: Totals, after: Totals) {
        add(&self.bytes_in, after.bytes_in.wrapping_sub(before.bytes_in));
        add(&self.messages, after.messages.wrapping_sub(before.messages));
        add(&self.bytes_out, after.bytes_out.wrapping_sub(before.bytes_out));
    }

    pub(crate) fn count_accepted(&self) {
        add(&self.accepted, 1);
    }

    pub(crate) fn count_resumed(&self) {
        add(&self.resumed, 1);
    }

    pub(crate) fn count_ended(&self, verdict: Verdict) {
        let counter = &self.ended[verdict.index()];
        // So that a thread that sees this end sees the beginning, which another thread may have counted.
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    fn add_to(&self, counts: &mut Counts) {
        for (sum, ended) in counts.ended.iter_mut().zip(&self.ended) {
            *sum += ended.load(Ordering::Acquire);
        }
        counts.totals.messages += self.messages.load(Ordering::Relaxed);
        counts.totals.bytes_in += self.bytes_in.load(Ordering::Relaxed);
        counts.totals.bytes_out += self.bytes_out.load(Ordering::Relaxed);
    }
}

impl DatagramCounters {
    pub(crate) fn count_totals(&self, before: Totals, after: Totals) {
        self.counters.count_totals(before, after);
    }

    pub(crate) fn count_answered(&self, more: u64) {
        add(&self.answered, more);
    }

    pub(crate) fn count_dropped(&self, cause: DropCause, more: u64) {
        add(&self.dropped[cause.index()], more);
    }

    /// Returns the counters of what other threads send in replies to paths.
    pub(crate) fn to_paths(&self) -> Arc<PathCounters> {
        Arc::clone(&self.to_paths)
    }

    fn add_to(&self, counts: &mut Counts) {
        self.counters.add_to(counts);
        counts.answered += self.answered.load(Ordering::Relaxed) + self.to_paths.replies.load(Ordering::Relaxed);
        counts.totals.bytes_out += self.to_paths.bytes.load(Ordering::Relaxed);
        for (sum, dropped) in counts.dropped.iter_mut().zip(&self.dropped) {
            *sum += dropped.load(Ordering::Relaxed);
        }
    }
}

impl PathCounters {
    /// Counts a reply of so many bytes.
    pub(crate) fn count_reply(&self, bytes: usize) {
        self.replies.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl ListenerCounters {
    /// Creates the counters of a listener whose connections so many threads serve.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads: (0..threads).map(|_| Counters::default()).collect(),
            datagrams: Mutex::default(),
            accept_errors: Mutex::default(),
            has_connections: AtomicBool::new(false),
            has_datagrams: AtomicBool::new(false),
        }
    }

    /// Returns the counters of the threads that serve connections, by their numbers.
    pub(crate) fn of_threads(&self) -> &Arc<[Counters]> {
        &self.threads
    }

    /// Notes that there is a socket of this kind.
    pub(crate) fn note_kind(&self, kind: SocketKind) {
        let has = if kind == SocketKind::Datagram { &self.has_datagrams } else { &self.has_connections };
        has.store(true, Ordering::Relaxed);
    }

    /// Adds the counters of one more datagram socket.
    pub(crate) fn add_datagram_socket(&self) -> Arc<DatagramCounters> {
        let counters = Arc::<DatagramCounters>::default();
        lock(&self.datagrams).push(Arc::clone(&counters));
        counters
    }

    /// Counts an error of accept(2) or recvmmsg(2).
    pub(crate) fn count_accept_error(&self, error: &io::Error) {
        if let Some(code) = error.raw_os_error() {
            *lock(&self.accept_errors).entry(code).or_default() += 1;
        }
    }

    fn add_to(&self, counts: &mut Counts) {
        self.threads.iter().for_each(|counters| counters.add_to(counts));
        lock(&self.datagrams).iter().for_each(|counters| counters.add_to(counts));
        // After the ends: so no end is there without its beginning.
        for counters in &*self.threads {
            counts.accepted += counters.accepted.load(Ordering::Relaxed);
            counts.resumed += counters.resumed.load(Ordering::Relaxed);
        }
    }

    /// Adds what was counted here.
    fn add_to_listener(&self, sum: &mut ListenerCounts) {
        let mut counts = Counts::default();
        self.add_to(&mut counts);
        sum.accepted += counts.accepted;
        sum.resumed += counts.resumed;
        sum.messages += counts.totals.messages;
        sum.received_bytes += counts.totals.bytes_in;
        sum.sent_bytes += counts.totals.bytes_out;
        sum.datagrams_answered += counts.answered;
        sum.has_connections |= self.has_connections.load(Ordering::Relaxed);
        sum.has_datagrams |= self.has_datagrams.load(Ordering::Relaxed);
        if sum.has_connections {
            add_named(&mut sum.ended, &verdict::NAMES, &counts.ended);
        }
        if sum.has_datagrams {
            add_named(&mut sum.datagrams_dropped, &DROP_NAMES, &counts.dropped);
        }
        for (code, count) in &*lock(&self.accept_errors) {
            *sum.accept_errors.entry(format!("{:?}", Errno::from_raw(*code))).or_default() += count;
        }
    }
}

impl CounterRegistry {
    /// Creates the counters of a server in which so many threads serve connections.
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads, listeners: Mutex::default(), inherited: Mutex::default() }
    }

    /// Returns the counters of the listeners with this name.
    pub(crate) fn of_listener(&self, name: &str) -> Arc<ListenerCounters> {
        let mut listeners = lock(&self.listeners);
        if let Some(counters) = listeners.get(name) {
            return Arc::clone(counters);
        }
        let counters = Arc::new(ListenerCounters::new(self.threads));
        listeners.insert(name.to_owned(), Arc::clone(&counters));
        counters
    }

    /// Returns whether there is a listener with this name.
    pub(crate) fn has_listener(&self, name: &str) -> bool {
        lock(&self.listeners).contains_key(name)
    }

    /// Returns what was counted in this process, added up.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        lock(&self.listeners).values().for_each(|counters| counters.add_to(&mut counts));
        counts
    }

    /// Returns what was counted for each listener, in this process and in those before it.
    pub(crate) fn counts_by_listener(&self) -> BTreeMap<String, ListenerCounts> {
        let mut all = lock(&self.inherited).clone();
        for (name, counters) in &*lock(&self.listeners) {
            counters.add_to_listener(all.entry(name.clone()).or_default());
        }
        all
    }

    /// Adds what the previous process has counted.
    pub(crate) fn inherit(&self, counts: BTreeMap<String, ListenerCounts>) {
        *lock(&self.inherited) = counts;
    }
}

impl ListenerCounts {
    /// Returns how many connections there are.
    #[must_use]
    pub fn connections(&self) -> u64 {
        (self.accepted + self.resumed).saturating_sub(self.ended.values().sum())
    }

    /// Returns how many datagrams were received.
    #[must_use]
    pub fn datagrams_received(&self) -> u64 {
        self.datagrams_answered + self.datagrams_dropped.values().sum::<u64>()
    }
}

/// Adds counts to those with the same names.
fn add_named(sums: &mut BTreeMap<String, u64>, names: &[&str], counts: &[u64]) {
    for (name, count) in names.iter().zip(counts) {
        match sums.get_mut(*name) {
            Some(sum) => *sum += count,
            None => _ = sums.insert((*name).to_owned(), *count),
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn counters_of_threads_do_not_share_cache_lines() {
        assert_eq!(align_of::<Counters>(), 64);
        assert_eq!(size_of::<Counters>() % 64, 0);
    }

    #[test]
    fn what_threads_count_is_added_up_for_each_listener_and_to_what_was_inherited() {
        let registry = CounterRegistry::new(2);
        let (echo, other) = (registry.of_listener("echo"), registry.of_listener("other"));
        echo.note_kind(SocketKind::Stream);
        other.note_kind(SocketKind::Seqpacket);
        for (number, messages) in [(0, 3), (1, 5)] {
            let totals = Totals { bytes_in: 10 * messages, bytes_out: 20 * messages, messages };
            echo.of_threads()[number].count_accepted();
            echo.of_threads()[number].count_totals(Totals::default(), totals);
        }
        // One thread accepts, and another one serves.
        other.of_threads()[0].count_accepted();
        other.of_threads()[1].count_ended(Verdict::PeerClosed);
        registry.of_listener("echo").of_threads()[1].count_resumed();
        registry.of_listener("echo").of_threads()[1].count_ended(Verdict::HandedOver);
        let ended = [("handed-over".to_owned(), 4), ("of-a-later-version".to_owned(), 1)];
        let inherited = ListenerCounts { accepted: 5, messages: 100, ended: ended.into(), ..ListenerCounts::default() };
        registry.inherit([("echo".to_owned(), inherited.clone()), ("gone".to_owned(), inherited)].into());

        let counts = registry.counts();
        assert_eq!((counts.accepted, counts.resumed, counts.totals.messages), (3, 1, 8));
        assert_eq!(counts.ended.iter().sum::<u64>(), 2);
        let all = registry.counts_by_listener();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["echo", "gone", "other"]);
        let echo = &all["echo"];
        assert_eq!((echo.accepted, echo.resumed, echo.messages), (7, 1, 108));
        assert_eq!((echo.received_bytes, echo.sent_bytes), (80, 160));
        assert_eq!((echo.ended["handed-over"], echo.ended["of-a-later-version"], echo.ended["busy"]), (5, 1, 0));
        assert_eq!(echo.ended.len(), verdict::KINDS + 1);
        assert_eq!(echo.connections(), 2);
        assert_eq!((all["other"].accepted, all["other"].connections()), (1, 0));
        assert_eq!((all["gone"].accepted, all["gone"].connections()), (5, 0));
        assert!(!echo.has_datagrams && echo.datagrams_dropped.is_empty());
    }

    #[test]
    fn datagrams_received_are_answered_and_dropped_ones() {
        let listener = ListenerCounters::new(1);
        listener.note_kind(SocketKind::Datagram);
        let sockets = [listener.add_datagram_socket(), listener.add_datagram_socket()];
        sockets[0].count_answered(3);
        sockets[1].count_answered(4);
        sockets[1].to_paths().count_reply(7);
        sockets[1].count_dropped(DropCause::Rate, 5);
        let mut counts = ListenerCounts::default();
        listener.add_to_listener(&mut counts);
        assert_eq!((counts.datagrams_answered, counts.datagrams_dropped["rate"]), (8, 5));
        assert_eq!((counts.datagrams_received(), counts.sent_bytes), (13, 7));
        assert!(counts.ended.is_empty());
    }

    #[test]
    fn errors_of_accept_have_the_names_of_errno() {
        let listener = ListenerCounters::new(1);
        for code in [Errno::EMFILE as i32, Errno::EMFILE as i32, Errno::ECONNABORTED as i32] {
            listener.count_accept_error(&io::Error::from_raw_os_error(code));
        }
        listener.count_accept_error(&ErrorKind::Other.into());
        let mut counts = ListenerCounts::default();
        listener.add_to_listener(&mut counts);
        assert_eq!(counts.accept_errors, [("ECONNABORTED".to_owned(), 1), ("EMFILE".to_owned(), 2)].into());
    }
}
