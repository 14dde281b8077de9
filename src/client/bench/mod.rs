//! A load: many connections that send messages and check the replies, at the least cost for each.
//!
//! ```text
//! BenchSettings ──> Bench ──> Worker (one each thread) ──> Outcome ──> report
//!                               connection   what one connection is owed     workload   the messages and their replies
//!                               traffic      receive, compare, count, send   schedule   when, where there is a rate
//!                               poll         the epoll set, the timer        target     new connections
//! ```
//!
//! No async runtime: for each wake-up of a connection there is one receive, one comparison, one look at the clock and
//! one send. What is measured should be the server.

mod connection;
mod control;
mod latencies;
mod poll;
pub mod report;
mod schedule;
mod stats;
mod target;
mod traffic;
mod worker;
mod workload;

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use super::connect::Stream;
use crate::address::Address;
use crate::protocol::Delimiter;
use crate::protocol::reply::Prefix;

pub use control::{BenchProgress, Control};
pub use latencies::{HistogramBar, LatencyHistogram};
pub use stats::{Cause, Failures, Stats};
pub use workload::{MAX_BATCH, TooLarge};

use poll::Clock;
use target::Target;
use worker::{LoadThread, ThreadResult};
use workload::Workload;

/// The settings of a load.
#[derive(Debug, Clone)]
pub struct BenchSettings {
    /// Connections at once, at least 1.
    pub connections: usize,
    /// Messages of a connection on their way at once, at least 1.
    pub depth: usize,
    /// The size of each message in bytes, its delimiter not counted.
    pub size: usize,
    /// Threads, from 1 to the number of connections.
    pub threads: usize,
    /// How long messages are sent, after the warm-up.
    pub duration: Option<Duration>,
    /// How many messages are sent, those of the warm-up among them. Without a duration, the load also ends when for
    /// `connect_timeout` and `timeout` together there were nothing but failures.
    pub count: Option<u64>,
    /// What happens in this time is counted apart.
    pub warm_up: Duration,
    /// Messages a second, more than 0; latencies then count from when a message was due. `None`: each connection sends
    /// its next `depth` messages when all before are answered.
    pub rate: Option<f64>,
    /// Whether each byte of the replies is compared. Otherwise they are only counted.
    pub verify: bool,
    /// Ends messages and replies.
    pub delimiter: Delimiter,
    /// What replies begin with.
    pub prefix: Prefix,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a reply may take, from when it is the next one awaited and its message was sent.
    pub timeout: Duration,
}

/// Why a load cannot be started.
#[derive(Debug)]
#[non_exhaustive]
pub enum BenchError {
    /// See [`TooLarge`].
    TooLarge(TooLarge),
    /// A setting is zero (connections, depth, rate or threads), or there are more threads than connections.
    InvalidSettings,
    /// The system refuses something that it should not.
    System(io::Error),
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(error) => error.fmt(f),
            Self::InvalidSettings => {
                f.write_str("a load needs connections, a depth, a rate, and no more threads than connections")
            }
            Self::System(error) => write!(f, "cannot run a load: {}", super::quote::reason(error)),
        }
    }
}

impl std::error::Error for BenchError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooLarge(error) => Some(error),
            Self::System(error) => Some(error),
            Self::InvalidSettings => None,
        }
    }
}

impl From<io::Error> for BenchError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// A load that is ready to begin.
pub struct Bench {
    settings: BenchSettings,
    workload: Workload,
    target: Target,
    first: OwnedFd,
    control: Arc<Control>,
}

/// The outcome of a load.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was counted after the warm-up.
    pub measured: Stats,
    /// What was counted in it.
    pub warm_up: Stats,
    /// The measured time: until nothing more was sent, or until the last reply, whichever was later.
    pub time: Duration,
    /// Messages that were due, or left of the count, when nothing more was sent.
    pub unsent: u64,
    /// Whether it was stopped early.
    pub interrupted: bool,
}

impl Outcome {
    /// Whether messages were answered and nothing went wrong, in the warm-up neither.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.measured.answered + self.warm_up.answered > 0 && self.measured.errors() + self.warm_up.errors() == 0
    }

    /// Answered messages a second; 0 if there was no time.
    #[must_use]
    pub fn rate(&self) -> f64 {
        per_second(self.measured.answered, self.time)
    }
}

/// So many in a time; 0 in none.
fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

impl Bench {
    /// Prepares a load on `address`. `first` is a connection to it, which becomes one of the load's; all others go to
    /// where that one went, so that a name is looked up only once.
    ///
    /// # Errors
    /// See [`BenchError`].
    pub fn new(settings: BenchSettings, address: &Address, first: Stream) -> Result<Self, BenchError> {
        let is_valid = NonZeroUsize::new(settings.threads).is_some_and(|threads| threads.get() <= settings.connections)
            && settings.depth > 0
            && settings.rate.is_none_or(|rate| rate.is_finite() && rate > 0.0);
        if !is_valid {
            return Err(BenchError::InvalidSettings);
        }
        let workload = Workload::new(settings.size, settings.depth, &settings.delimiter, &settings.prefix)
            .map_err(BenchError::TooLarge)?;
        let first = first.into_std()?;
        let target = Target::from_connected(address, &first)?;
        let control = Arc::new(Control::new(settings.threads)?);
        Ok(Self { settings, workload, target, first: first.into(), control })
    }

    /// Returns the control of the load, which ends it early and reports its progress.
    #[must_use]
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Runs it to its end. This blocks.
    ///
    /// # Errors
    /// The system refuses to wait for sockets or to make a thread. What peers do is never an error, it is counted.
    pub fn run(self) -> Result<Outcome, BenchError> {
        let Self { settings, workload, target, first, control } = self;
        let barrier = Barrier::new(settings.threads);
        let mut first = Some(first);
        let results: Vec<io::Result<ThreadResult>> = thread::scope(|scope| {
            let (settings, workload, target, control, barrier) = (&settings, &workload, &target, &*control, &barrier);
            let clock = Clock::start();
            let start = |number| {
                let first = first.take();
                scope.spawn(move || match LoadThread::new(number, settings, workload, target, control, clock, first) {
                    Ok(worker) => worker.run(barrier),
                    Err(error) => {
                        // The others wait there for all.
                        barrier.wait();
                        Err(error)
                    }
                })
            };
            let threads: Vec<_> = (0..settings.threads).map(start).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|results| results.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        let mut outcome = Outcome {
            measured: Stats::default(),
            warm_up: Stats::default(),
            time: Duration::ZERO,
            unsent: 0,
            interrupted: control.is_stopped(),
        };
        for results in results {
            let ThreadResult { measured, warm_up, time, unsent } = results?;
            outcome.measured.merge(measured);
            outcome.warm_up.merge(warm_up);
            outcome.time = outcome.time.max(time);
            outcome.unsent += unsent;
        }
        Ok(outcome)
    }
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").field("load", &self.settings).field("target", &self.target).finish_non_exhaustive()
    }
}

/// In nanoseconds; beyond 584 years it is 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
