//! A load: many connections that send messages and check the replies, at the least cost for each.
//!
//! ```text
//! BenchSettings ──> Bench ──> Worker (one each thread) ──> Outcome ──> report
//!                               connection   what one connection is owed     workload   the messages and their replies
//!                               traffic      receive, compare, count, send   schedule   when, where there is a rate
//!                               packets      the same of packets             window     which of them are awaited
//!                               poll         the epoll set, the timer        target     new connections
//! ```
//!
//! No async runtime: for each wake-up of a connection there is one receive, one comparison, one look at the clock and
//! one send. The benchmark should measure the server, not itself.

mod connection;
mod control;
mod destination;
mod latencies;
mod packet_format;
mod packet_traffic;
mod packets;
mod poll;
pub mod report;
mod schedule;
mod stats;
mod target;
mod traffic;
mod window;
mod worker;
mod workload;

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use super::connect::ConnectError;
use crate::protocol::Delimiter;
use crate::protocol::reply::Prefix;

pub use control::{BenchProgress, Control};
pub use destination::Destination;
pub use latencies::{HistogramBar, LatencyHistogram};
pub use packet_format::MIN_PACKET;
pub use stats::{Cause, Failures, Stats};
pub use workload::{MAX_BATCH, TooLarge};

use packet_format::PacketFormat;
use poll::Clock;
use target::Target;
use worker::{LoadThread, ThreadResult};
use workload::Workload;

/// The settings of a load.
#[derive(Debug, Clone)]
pub struct BenchSettings {
    /// Connections at once, or sources of datagrams; at least 1.
    pub connections: usize,
    /// Messages of a connection on their way at once, at least 1. `None`: as many as the rate has (packets), or 1.
    pub depth: Option<usize>,
    /// The size of each message in bytes, its delimiter not counted.
    pub size: usize,
    /// Threads, from 1 to the number of connections.
    pub threads: usize,
    /// How long messages are sent, after the warm-up.
    pub duration: Option<Duration>,
    /// How many messages are sent, those of the warm-up among them. Without a duration, the load also ends when for
    /// `connect_timeout` and `timeout` together there were nothing but failures.
    pub count: Option<u64>,
    /// Messages in this time are counted apart.
    pub warm_up: Duration,
    /// Messages a second, more than 0; latencies then count from when a message was due. `None`: each connection sends
    /// its next `depth` messages when all before are answered, and the next packet when one is answered or lost.
    pub rate: Option<f64>,
    /// Whether each byte of the replies is compared. Otherwise they are only counted.
    pub verify: bool,
    /// Ends messages and replies, except packets.
    pub delimiter: Delimiter,
    /// The prefix of replies.
    pub prefix: Prefix,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a reply may take, from when it is the next one awaited and its message was sent; that to a packet from
    /// when it was sent.
    pub timeout: Duration,
}

impl BenchSettings {
    /// Returns how many messages of a connection may be on their way at once; `None` if any number may.
    fn max_owed(&self, is_packets: bool) -> Option<usize> {
        let is_unlimited = is_packets && self.rate.is_some();
        self.depth.or(if is_unlimited { None } else { Some(1) })
    }
}

/// Why a load cannot be started.
#[derive(Debug)]
#[non_exhaustive]
pub enum BenchError {
    /// See [`TooLarge`].
    TooLarge(TooLarge),
    /// A packet is too short for the numbers that are in each (less than [`MIN_PACKET`] bytes).
    PacketTooShort {
        /// Its size in bytes.
        size: usize,
    },
    /// A message, or the reply to it, is longer than a packet can be. Sizes are in bytes.
    PacketTooLong {
        /// The size of a message.
        size: usize,
        /// The size of a reply.
        reply_size: usize,
        /// The size of the longest packet.
        max: usize,
        /// Whether that is the longest one that this side can send; the reply may be longer.
        is_send_limit: bool,
    },
    /// No socket listens at the address.
    Refused(ConnectError),
    /// A setting is zero (connections, depth, rate or threads), or there are more threads than connections.
    InvalidSettings,
    /// The system refuses something that it should not.
    System(io::Error),
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(error) => error.fmt(f),
            Self::PacketTooShort { size } => write!(
                f,
                "--size {size}B is too short: each packet has its number in it, so it has at least {MIN_PACKET} bytes"
            ),
            Self::PacketTooLong { size, max, is_send_limit: true, .. } => write!(
                f,
                "--size {size}B does not fit into one packet, which has at most {max} bytes here \
                 (net.core.wmem_default); give a smaller --size"
            ),
            Self::PacketTooLong { size, max, is_send_limit: false, .. } if size > max => write!(
                f,
                "--size {size}B does not fit into one datagram, which has at most {max} bytes; give a smaller --size"
            ),
            Self::PacketTooLong { size, reply_size, max, .. } => write!(
                f,
                "the reply to --size {size}B would have {reply_size} bytes with the prefix, and a datagram has at most \
                 {max}; give a smaller --size"
            ),
            Self::Refused(error) => error.fmt(f),
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
            Self::Refused(error) => Some(error),
            Self::InvalidSettings | Self::PacketTooShort { .. } | Self::PacketTooLong { .. } => None,
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
    /// How packets are told apart, if it is packets that are sent.
    packet_format: Option<PacketFormat>,
    destination: Destination,
    control: Arc<Control>,
}

/// The outcome of a load.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The counts after the warm-up.
    pub measured: Stats,
    /// The counts of the warm-up.
    pub warm_up: Stats,
    /// The measured time: until nothing more was sent, or until the last reply, whichever was later.
    pub time: Duration,
    /// Messages that were due, or left of the count, when nothing more was sent.
    pub unsent: u64,
    /// Whether it was stopped early.
    pub interrupted: bool,
}

impl Outcome {
    /// Returns whether messages were answered and nothing went wrong, including the warm-up.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.measured.answered + self.warm_up.answered > 0 && self.measured.errors() + self.warm_up.errors() == 0
    }

    /// Returns the answered messages a second; 0 if no time passed.
    #[must_use]
    pub fn rate(&self) -> f64 {
        per_second(self.measured.answered, self.time)
    }
}

/// Returns the rate of `count` in `time`; 0 if no time passed.
fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

impl Bench {
    /// Prepares a load on `destination`.
    ///
    /// # Errors
    /// Returns an error if a setting is zero or they contradict each other, or if a packet has no room for its
    /// content; see [`BenchError`].
    pub fn new(settings: BenchSettings, destination: Destination) -> Result<Self, BenchError> {
        let is_valid = NonZeroUsize::new(settings.threads).is_some_and(|threads| threads.get() <= settings.connections)
            && settings.depth.is_none_or(|depth| depth > 0)
            && settings.rate.is_none_or(|rate| rate.is_finite() && rate > 0.0);
        if !is_valid {
            return Err(BenchError::InvalidSettings);
        }
        let is_packets = destination.address.is_packets();
        if is_packets {
            check_packet_size(&settings, &destination)?;
        }
        let (depth, delimiter) = match settings.max_owed(is_packets) {
            Some(depth) if !is_packets => (depth, settings.delimiter.as_bytes()),
            // Each is written when it is sent.
            _ => (1, &[][..]),
        };
        let workload =
            Workload::new(settings.size, depth, delimiter, &settings.prefix).map_err(BenchError::TooLarge)?;
        let packet_format = is_packets.then(|| PacketFormat::new(&workload, &settings.prefix));
        let control = Arc::new(Control::new(settings.threads)?);
        Ok(Self { settings, workload, packet_format, destination, control })
    }

    /// Returns the control of the load, which ends it early and reports its progress.
    #[must_use]
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Runs it to its end. This blocks.
    ///
    /// # Errors
    /// Returns an error if the system refuses to create a thread or an epoll set, or, over UDP, if no socket listens at any
    /// address of the host. Anything else that peers do is counted, and is not an error.
    pub fn run(mut self) -> Result<Outcome, BenchError> {
        let mut first = self.destination.first.take();
        for target in &self.destination.targets {
            let outcome = run_threads(&self, target, first.take())?;
            if !self.control.take_refusal() || outcome.measured.answered + outcome.warm_up.answered > 0 {
                return Ok(outcome);
            }
        }
        let Destination { address, targets, failed, .. } = self.destination;
        Err(BenchError::Refused(Destination::refused(address, &targets, failed)))
    }
}

/// Runs the load with one address, in its threads.
fn run_threads(bench: &Bench, target: &Target, first: Option<OwnedFd>) -> Result<Outcome, BenchError> {
    let Bench { settings, control, .. } = bench;
    let barrier = Barrier::new(settings.threads);
    let mut first = first;
    let results: Vec<io::Result<ThreadResult>> = thread::scope(|scope| {
        let (clock, barrier) = (Clock::start(), &barrier);
        let start = |number| {
            let first = first.take();
            scope.spawn(move || match LoadThread::new(number, bench, target, clock, first) {
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

/// Checks that the messages fit into packets, and the numbers into the messages.
fn check_packet_size(settings: &BenchSettings, destination: &Destination) -> Result<(), BenchError> {
    let size = settings.size;
    if size < MIN_PACKET {
        return Err(BenchError::PacketTooShort { size });
    }
    let reply_size = size.saturating_add(settings.prefix.as_bytes().len());
    let first = destination.first.as_ref();
    let limits = destination.targets.iter().filter_map(|target| target.max_packet(first));
    let Some(max) = limits.min() else { return Ok(()) };
    // Of a Unix socket, only this side is known.
    let is_send_limit = first.is_some();
    let longest = if is_send_limit { size } else { reply_size };
    if longest > max { Err(BenchError::PacketTooLong { size, reply_size, max, is_send_limit }) } else { Ok(()) }
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench")
            .field("load", &self.settings)
            .field("destination", &self.destination)
            .finish_non_exhaustive()
    }
}

/// Returns a time in nanoseconds, at most 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
