//! Round trip times: numbered messages by the clock, over one connection or socket of packets, each compared with its
//! reply.
//!
//! ```text
//! clock ──> message 7 ──> stream ──> reply ──> Framer ──> which number? on its way:  Reply
//!                                                         lost already:              Late
//!                                                         answered already:          Duplicate
//!                                                         none: the oldest is lost, its reply is wrong
//! ```
//!
//! A message has its number in it, so that a reply is never taken for that of another message, however late it is.

mod link;
mod number;
pub mod report;
mod statistics;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::pin::Pin;
use std::time::Duration;

use tokio::select;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::connect::ConnectError;
use super::connection::Connection;
use super::failure::Difference;
use super::quote::{Escaped, Quoted, reason};
use crate::address::Address;
use crate::protocol::Delimiter;
use crate::protocol::reply::Prefix;
use crate::protocol::verdict::SERVER_ERROR;
use crate::units::format_time;

pub use number::{MAX_SIZE, MIN_SIZE};
pub use statistics::{RoundTrips, Statistics};

use link::{Link, Received};
use number::Numbers;
use report::{Event, Printer};

/// So many lost messages are remembered with the time when they were sent.
const REMEMBERED: usize = 1024;

/// The least time that replies on their way have after an interruption.
const LEAST_GRACE: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where to.
    pub address: Address,
    /// Ends messages and replies.
    pub delimiter: Delimiter,
    /// What replies begin with.
    pub prefix: Prefix,
    /// How long connecting may take, each time.
    pub connect_timeout: Duration,
    /// How long a reply may take.
    pub timeout: Duration,
    /// From one message to the next, more than 0.
    pub interval: Duration,
    /// How many messages; `None`: until it is interrupted.
    pub count: Option<u64>,
    /// The size of a message in bytes, from [`MIN_SIZE`] to [`MAX_SIZE`]; what is beyond that becomes it.
    pub size: usize,
}

/// Why pings ended before their time.
#[derive(Debug)]
#[non_exhaustive]
pub enum PingError {
    /// There was no first connection.
    Connect(ConnectError),
    /// What happened could not be printed.
    Report(io::Error),
}

impl fmt::Display for PingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Report(error) => write!(f, "cannot write to stdout: {}", reason(error)),
        }
    }
}

impl std::error::Error for PingError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(error) => Some(error),
            Self::Report(error) => Some(error),
        }
    }
}

impl From<io::Error> for PingError {
    fn from(error: io::Error) -> Self {
        Self::Report(error)
    }
}

/// Sends pings until all are answered or lost, prints what happens, and the summary at the end.
///
/// When `stop` is notified, no more are sent, and replies on their way have twice the longest round trip, but at least
/// 0.1 s; none if there was no reply yet. The second time it ends at once.
///
/// # Errors
/// See [`PingError`]. That later connections fail is no error here, but in the statistics.
pub async fn ping<W: Write>(plan: &Plan, printer: &mut Printer<W>, stop: &Notify) -> Result<Statistics, PingError> {
    let mut pings = Pings::new(plan, printer);
    let connected = select! {
        connected = Connection::to(&plan.address, plan.connect_timeout) => Some(connected.map_err(PingError::Connect)?),
        () = stop.notified() => None,
    };
    pings.printer.begin(pings.numbers.size())?;
    let start = Instant::now();
    if let Some(connection) = connected {
        pings.link = Some(Link::new(connection));
        pings.run(stop).await?;
    }
    pings.printer.summary(&pings.statistics, start.elapsed())?;
    Ok(pings.statistics)
}

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + 'a>>;

/// A message that was sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    seq: u64,
    at: Instant,
}

/// Everything that is known between two steps.
struct Pings<'a, W: Write> {
    plan: &'a Plan,
    printer: &'a mut Printer<W>,
    statistics: Statistics,
    numbers: Numbers,
    link: Option<Link>,
    /// An attempt to connect, and the message that it is for.
    connecting: Option<(Connecting<'a>, u64)>,
    /// On their way, the oldest first.
    awaited: VecDeque<Sent>,
    /// Lost on this connection, the newest last.
    lost: VecDeque<Sent>,
    /// The highest number whose reply has come.
    answered: u64,
    /// Whether no more are sent, and until when replies are still waited for.
    stopped: Option<Instant>,
}

impl<'a, W: Write> Pings<'a, W> {
    fn new(plan: &'a Plan, printer: &'a mut Printer<W>) -> Self {
        Self {
            plan,
            printer,
            statistics: Statistics::default(),
            numbers: Numbers::new(plan.size.clamp(MIN_SIZE, MAX_SIZE), &plan.delimiter),
            link: None,
            connecting: None,
            awaited: VecDeque::new(),
            lost: VecDeque::new(),
            answered: 0,
            stopped: None,
        }
    }

    async fn run(&mut self, stop: &Notify) -> io::Result<()> {
        let mut clock = interval(self.plan.interval);
        // By the clock: what was missed is left out, and those after it come when they would have come.
        clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while self.is_sending() || !self.awaited.is_empty() || self.connecting.is_some() {
            let deadline = self.deadline();
            select! {
                _ = clock.tick(), if self.is_sending() => self.send()?,
                () = ready(self.link.as_ref()), if self.link.is_some() => self.exchange()?,
                connected = attempt(self.connecting.as_mut()), if self.connecting.is_some() => self.connected(connected)?,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => self.pass()?,
                () = stop.notified() => self.stop()?,
            }
        }
        Ok(())
    }

    fn is_sending(&self) -> bool {
        self.stopped.is_none() && self.plan.count.is_none_or(|count| self.statistics.sent < count)
    }

    /// When the oldest is lost, or all of them.
    fn deadline(&self) -> Option<Instant> {
        let oldest = self.awaited.front().map(|sent| sent.at + self.plan.timeout);
        [oldest, self.stopped].into_iter().flatten().min()
    }

    // --- Sending -------------------------------------------------------------------------------------------------------

    fn send(&mut self) -> io::Result<()> {
        self.statistics.sent += 1;
        let seq = self.statistics.sent;
        if self.link.is_some() {
            return self.send_number(seq);
        }
        if self.connecting.is_some() {
            return self.lose(seq, "the attempt to connect is still going on".to_owned());
        }
        let plan = self.plan;
        self.connecting = Some((Box::pin(Connection::to(&plan.address, plan.connect_timeout)), seq));
        Ok(())
    }

    fn send_number(&mut self, seq: u64) -> io::Result<()> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let Some(bytes) = link.room(self.numbers.size()) else {
            return self.lose(seq, "the server takes nothing of what is sent".to_owned());
        };
        self.numbers.write(seq, bytes);
        if !self.plan.address.is_packets() {
            bytes.extend_from_slice(self.plan.delimiter.as_bytes());
        }
        self.awaited.push_back(Sent { seq, at: Instant::now() });
        match link.write() {
            Ok(()) => Ok(()),
            // The server's last words may have come before, and say more.
            Err(error) => self.exchange().and_then(|()| self.end(&broke(&error))),
        }
    }

    fn connected(&mut self, connected: Result<Connection, ConnectError>) -> io::Result<()> {
        let Some((_, seq)) = self.connecting.take() else { return Ok(()) };
        match connected {
            Ok(connection) => {
                self.link = Some(Link::new(connection));
                self.send_number(seq)
            }
            Err(error) => self.lose(seq, error.to_string()),
        }
    }

    // --- Receiving -----------------------------------------------------------------------------------------------------

    /// Writes and reads what is possible now.
    fn exchange(&mut self) -> io::Result<()> {
        let most = self.plan.prefix.as_bytes().len() + self.numbers.size();
        while let Some(link) = &mut self.link {
            let written = link.write();
            match link.read(&self.plan.delimiter, most) {
                Received::Reply(reply, at) => self.reply(&reply, at)?,
                Received::Nothing => {
                    return match written {
                        Ok(()) => Ok(()),
                        Err(error) => self.end(&broke(&error)),
                    };
                }
                Received::TooLong => {
                    let problem = format!("a reply exceeds {most} bytes, so it is wrong; is --delimiter right?");
                    self.statistics.wrong += 1;
                    return self.end(&problem);
                }
                Received::End(error) => {
                    let text =
                        error.map_or_else(|| "the server ended the connection".to_owned(), |error| broke(&error));
                    return self.end(&text);
                }
            }
        }
        Ok(())
    }

    fn reply(&mut self, reply: &[u8], at: Instant) -> io::Result<()> {
        if let Some(words) = reply.strip_prefix(SERVER_ERROR) {
            return self.end(&format!("the server says: {}", Escaped(words)));
        }
        let seq = reply.strip_prefix(self.plan.prefix.as_bytes()).and_then(|number| self.numbers.read(number));
        let Some(seq) = seq.filter(|seq| (1..=self.statistics.sent).contains(seq)) else { return self.wrong(reply) };
        if let Some(place) = self.awaited.iter().position(|sent| sent.seq == seq) {
            let Some(sent) = self.awaited.remove(place) else { return Ok(()) };
            let round_trip = at.saturating_duration_since(sent.at);
            self.answered = self.answered.max(seq);
            if round_trip > self.plan.timeout {
                // Nobody had looked at the clock meanwhile.
                self.lose(seq, self.too_late())?;
                self.statistics.late += 1;
                return self.printer.event(&Event::Late { seq, round_trip: Some(round_trip) });
            }
            self.statistics.receive(round_trip);
            return self.printer.event(&Event::Reply { seq, bytes: reply.len(), round_trip });
        }
        // Packets may overtake each other.
        let lost = self.lost.iter().position(|sent| sent.seq == seq).and_then(|place| self.lost.remove(place));
        if lost.is_none() && seq <= self.answered {
            self.statistics.duplicates += 1;
            return self.printer.event(&Event::Duplicate { seq });
        }
        self.answered = self.answered.max(seq);
        self.statistics.late += 1;
        let round_trip = lost.map(|sent| at.saturating_duration_since(sent.at));
        self.printer.event(&Event::Late { seq, round_trip })
    }

    /// Nobody can tell what it should be; most likely the reply to the oldest.
    fn wrong(&mut self, reply: &[u8]) -> io::Result<()> {
        self.statistics.wrong += 1;
        let Some(oldest) = self.awaited.pop_front() else {
            let text = format!("got {}, which no message had asked for", Quoted(reply));
            return self.printer.event(&Event::Note { text });
        };
        let mut expected = self.plan.prefix.as_bytes().to_vec();
        self.numbers.write(oldest.seq, &mut expected);
        self.lose(oldest.seq, format!("wrong reply: {}", Difference { expected: &expected, got: reply }))
    }

    // --- Losses --------------------------------------------------------------------------------------------------------

    fn lose(&mut self, seq: u64, reason: String) -> io::Result<()> {
        self.printer.event(&Event::Lost { seq, reason })
    }

    fn too_late(&self) -> String {
        format!("no reply within {} (--timeout)", format_time(self.plan.timeout))
    }

    /// A time has passed.
    fn pass(&mut self) -> io::Result<()> {
        let now = Instant::now();
        // What has come while this process was stopped is not late: a last look.
        self.exchange()?;
        while let Some(sent) = self.awaited.front().copied().filter(|sent| now >= sent.at + self.plan.timeout) {
            self.awaited.pop_front();
            self.lost.push_back(sent);
            if self.lost.len() > REMEMBERED {
                self.lost.pop_front();
            }
            self.lose(sent.seq, self.too_late())?;
        }
        if self.stopped.is_some_and(|until| now >= until) {
            self.give_up("interrupted before its reply came")?;
        }
        Ok(())
    }

    /// The connection is over, and so is everything on its way.
    fn end(&mut self, text: &str) -> io::Result<()> {
        if self.link.take().is_none() {
            return Ok(());
        }
        self.lost.clear();
        if self.awaited.is_empty() {
            return self.printer.event(&Event::Note { text: text.to_owned() });
        }
        self.give_up(text)
    }

    fn give_up(&mut self, text: &str) -> io::Result<()> {
        let connecting = self.connecting.take().map(|(_, seq)| seq);
        while let Some(sent) = self.awaited.pop_front() {
            self.lose(sent.seq, text.to_owned())?;
        }
        connecting.map_or(Ok(()), |seq| self.lose(seq, text.to_owned()))
    }

    /// No more are sent. The second time: no more are waited for.
    fn stop(&mut self) -> io::Result<()> {
        let longest = self.statistics.round_trips().map(|trips| trips.max);
        match (self.stopped, longest) {
            (None, Some(longest)) => {
                self.stopped = Some(Instant::now() + (longest * 2).max(LEAST_GRACE));
                Ok(())
            }
            _ => {
                let now = Instant::now();
                self.stopped = Some(now);
                self.pass()
            }
        }
    }
}

/// Until there is something to read, or room for what is unwritten.
async fn ready(link: Option<&Link>) {
    match link {
        Some(link) => link.ready().await,
        None => std::future::pending().await,
    }
}

async fn attempt(connecting: Option<&mut (Connecting<'_>, u64)>) -> Result<Connection, ConnectError> {
    match connecting {
        Some((connecting, _)) => connecting.as_mut().await,
        None => std::future::pending().await,
    }
}

fn broke(error: &io::Error) -> String {
    if error.kind() == ErrorKind::ConnectionRefused {
        // Of datagrams, this is told after they were sent.
        return format!("nobody listens there ({})", reason(error));
    }
    format!("the connection broke ({})", reason(error))
}
