//! What the threads of a server have done since it started.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::Verdict;
use crate::protocol::packet::{DROP_CAUSES, DropCause};
use crate::protocol::session::Totals;
use crate::protocol::verdict;

/// What a thread that serves has done since it started. Only its own thread writes them, so a number is read and written back
/// without a lock on the bus.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    accepted: AtomicU64,
    resumed: AtomicU64,
    messages: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    ended: [AtomicU64; verdict::KINDS],
    dropped: [AtomicU64; DROP_CAUSES],
    /// What threads that send replies to paths have sent. They write it by atomic additions.
    bytes_to_paths: Arc<AtomicU64>,
}

/// What a server has done since it started: the counters of all its workers, added up.
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
    /// How many datagrams were dropped for each cause, in the order of
    /// [`DROP_NAMES`](crate::protocol::packet::DROP_NAMES).
    pub dropped: [u64; DROP_CAUSES],
}

impl Counters {
    #[inline]
    pub(crate) fn count_totals(&self, before: Totals, after: Totals) {
        if before.bytes_in != after.bytes_in {
            add(&self.bytes_in, after.bytes_in - before.bytes_in);
        }
        // Not only with input: messages in the inbound buffer are answered later.
        if before.messages != after.messages {
            add(&self.messages, after.messages - before.messages);
        }
        if before.bytes_out != after.bytes_out {
            add(&self.bytes_out, after.bytes_out - before.bytes_out);
        }
    }

    pub(crate) fn count_accepted(&self) {
        add(&self.accepted, 1);
    }

    pub(crate) fn count_resumed(&self) {
        add(&self.resumed, 1);
    }

    pub(crate) fn count_ended(&self, verdict: Verdict) {
        add(&self.ended[verdict.index()], 1);
    }

    pub(crate) fn count_dropped(&self, cause: DropCause, more: u64) {
        add(&self.dropped[cause.index()], more);
    }

    /// Returns the counter of bytes that other threads send in replies to paths.
    pub(crate) fn bytes_to_paths(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes_to_paths)
    }

    pub(crate) fn add_to(&self, counts: &mut Counts) {
        counts.accepted += self.accepted.load(Ordering::Relaxed);
        counts.resumed += self.resumed.load(Ordering::Relaxed);
        counts.totals.messages += self.messages.load(Ordering::Relaxed);
        counts.totals.bytes_in += self.bytes_in.load(Ordering::Relaxed);
        counts.totals.bytes_out += self.bytes_out.load(Ordering::Relaxed);
        counts.totals.bytes_out += self.bytes_to_paths.load(Ordering::Relaxed);
        for (sum, ended) in counts.ended.iter_mut().zip(&self.ended) {
            *sum += ended.load(Ordering::Relaxed);
        }
        for (sum, dropped) in counts.dropped.iter_mut().zip(&self.dropped) {
            *sum += dropped.load(Ordering::Relaxed);
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}
