//! Round trip times: numbered messages at a fixed interval, over one connection or socket of packets, each compared
//! with its reply.
//!
//! ```text
//! ticker ──> message 7 ──> stream ──> reply ──> Framer ──> which number? on its way:  Reply
//!                                                          lost already:              Late
//!                                                          answered already:          Duplicate
//!                                                          none: the oldest is lost, its reply is wrong
//! ```
//!
//! A message has its number in it, so that a reply is never taken for that of another message, however late it is.

mod connection;
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
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::connect::ConnectError;
use super::connection::Connection;
use super::deadline;
use super::exchange_error::Difference;
use super::quote::{Cut, Quoted, reason};
use crate::address::Address;
use crate::protocol::Delimiter;
use crate::protocol::reply::Prefix;
use crate::protocol::verdict::SERVER_ERROR;
use crate::units::format_time;

pub use number::{MAX_SIZE, MIN_SIZE};
pub use statistics::{RoundTrips, Statistics};

use connection::{PingConnection, Received};
use number::NumberCodec;
use report::{Event, Printer};

/// So many lost messages are remembered with the time when they were sent.
const MAX_REMEMBERED: usize = 1024;

/// So many replies are handled before timers and Ctrl-C are looked at again: a server may send without end.
const MAX_REPLIES_AT_ONCE: usize = 1024;

/// How many more duplicates and other replies without a message than messages are taken from one connection.
const MAX_SURPLUS: u64 = 1024;

/// The least time that replies on their way have after an interruption.
const MIN_GRACE: Duration = Duration::from_millis(100);

/// The settings of a run.
#[derive(Debug, Clone)]
pub struct PingSettings {
    /// The address of the server.
    pub address: Address,
    /// Ends messages and replies.
    pub delimiter: Delimiter,
    /// The prefix of replies.
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
    /// The output could not be printed.
    Output(io::Error),
}

impl fmt::Display for PingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Output(error) => write!(f, "cannot write to stdout: {}", reason(error)),
        }
    }
}

impl std::error::Error for PingError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(error) => Some(error),
            Self::Output(error) => Some(error),
        }
    }
}

impl From<io::Error> for PingError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Sends pings until all are answered or lost, prints what happens, and the summary at the end.
///
/// When `stop` is notified, no more are sent, and replies on their way have twice the longest round trip, but at least
/// 0.1 s; none if there was no reply yet. The second time it ends at once.
///
/// # Errors
/// Returns an error if the first connection fails; see [`PingError`]. Failures of later connections are counted in the
/// statistics.
pub async fn ping<W: Write>(
    settings: &PingSettings,
    printer: &mut Printer<W>,
    stop: &Notify,
) -> Result<Statistics, PingError> {
    let mut pinger = Pinger::new(settings, printer);
    let connected = select! {
        connected = Connection::connect(&settings.address, settings.connect_timeout) => Some(connected.map_err(PingError::Connect)?),
        () = stop.notified() => None,
    };
    pinger.printer.print_header(pinger.codec.size())?;
    let start = Instant::now();
    if let Some(connection) = connected {
        pinger.connection = Some(PingConnection::new(connection));
        pinger.run(stop).await?;
    }
    pinger.printer.print_summary(&pinger.statistics, start.elapsed())?;
    Ok(pinger.statistics)
}

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + 'a>>;

/// A message that was sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    seq: u64,
    at: Instant,
}

/// The state of a run.
struct Pinger<'a, W: Write> {
    settings: &'a PingSettings,
    printer: &'a mut Printer<W>,
    statistics: Statistics,
    codec: NumberCodec,
    connection: Option<PingConnection>,
    /// An attempt to connect, and the message that it is for.
    connecting: Option<(Connecting<'a>, u64)>,
    /// On their way, the oldest first.
    awaited: VecDeque<Sent>,
    /// Lost on this connection, the newest last.
    lost: VecDeque<Sent>,
    /// The highest number whose reply has come.
    highest_answered: u64,
    /// Until when replies are still awaited after a stop, if there was one; then no more messages are sent.
    stop_deadline: Option<Instant>,
}

impl<'a, W: Write> Pinger<'a, W> {
    fn new(settings: &'a PingSettings, printer: &'a mut Printer<W>) -> Self {
        Self {
            settings,
            printer,
            statistics: Statistics::default(),
            codec: NumberCodec::new(settings.size.clamp(MIN_SIZE, MAX_SIZE), &settings.delimiter),
            connection: None,
            connecting: None,
            awaited: VecDeque::new(),
            lost: VecDeque::new(),
            highest_answered: 0,
            stop_deadline: None,
        }
    }

    async fn run(&mut self, stop: &Notify) -> io::Result<()> {
        let mut ticker = interval(self.settings.interval);
        // At a fixed interval: missed messages are skipped, and those after them keep their times.
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while self.is_sending() || !self.awaited.is_empty() || self.connecting.is_some() {
            let deadline = self.deadline();
            select! {
                _ = ticker.tick(), if self.is_sending() => self.send_next()?,
                () = ready(self.connection.as_ref()), if self.connection.is_some() => self.transfer()?,
                connected = wait_for_connect(self.connecting.as_mut()), if self.connecting.is_some() => self.handle_connected(connected)?,
                () = deadline::passed(deadline) => self.handle_timeout()?,
                () = stop.notified() => self.handle_stop()?,
            }
        }
        Ok(())
    }

    fn is_sending(&self) -> bool {
        self.stop_deadline.is_none() && self.settings.count.is_none_or(|count| self.statistics.sent < count)
    }

    /// Returns when the oldest awaited message is lost, or all of them.
    fn deadline(&self) -> Option<Instant> {
        let oldest = self.awaited.front().map(|sent| sent.at + self.settings.timeout);
        [oldest, self.stop_deadline].into_iter().flatten().min()
    }

    // --- Sending -----------------------------------------------------------------------------------------------------

    fn send_next(&mut self) -> io::Result<()> {
        self.statistics.sent += 1;
        let seq = self.statistics.sent;
        if self.connection.is_some() {
            return self.send_ping(seq);
        }
        if self.connecting.is_some() {
            return self.print_lost(seq, "the attempt to connect is still going on".to_owned());
        }
        let settings = self.settings;
        self.connecting = Some((Box::pin(Connection::connect(&settings.address, settings.connect_timeout)), seq));
        Ok(())
    }

    fn send_ping(&mut self, seq: u64) -> io::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let Some(bytes) = connection.write_buffer(self.codec.size()) else {
            return self.print_lost(seq, "the server takes nothing of what is sent".to_owned());
        };
        self.codec.encode(seq, bytes);
        if !self.settings.address.is_packets() {
            bytes.extend_from_slice(self.settings.delimiter.as_bytes());
        }
        self.awaited.push_back(Sent { seq, at: Instant::now() });
        match connection.write() {
            Ok(()) => Ok(()),
            // The server's final reply may have come before, and says more.
            Err(error) => self.transfer().and_then(|()| self.handle_connection_end(&connection_error_text(&error))),
        }
    }

    fn handle_connected(&mut self, connected: Result<Connection, ConnectError>) -> io::Result<()> {
        let Some((_, seq)) = self.connecting.take() else { return Ok(()) };
        match connected {
            Ok(connection) => {
                self.connection = Some(PingConnection::new(connection));
                self.send_ping(seq)
            }
            // Without the hint: it would be on every line.
            Err(error) => self.print_lost(seq, format!("{error:#}")),
        }
    }

    // --- Receiving ---------------------------------------------------------------------------------------------------

    /// Writes and reads what is possible now; of replies, at most [`MAX_REPLIES_AT_ONCE`].
    fn transfer(&mut self) -> io::Result<()> {
        let max_size = self.settings.prefix.as_bytes().len() + self.codec.size();
        for _ in 0..MAX_REPLIES_AT_ONCE {
            let Some(connection) = &mut self.connection else { break };
            let written = connection.write();
            match connection.read(&self.settings.delimiter, max_size) {
                Received::Reply(reply, at) => self.handle_reply(&reply, at)?,
                Received::Pending => {
                    return match written {
                        Ok(()) => Ok(()),
                        Err(error) => self.handle_connection_end(&connection_error_text(&error)),
                    };
                }
                Received::TooLong => {
                    let problem = format!("a reply exceeds {max_size} bytes, so it is wrong; is --delimiter right?");
                    self.statistics.wrong += 1;
                    return self.handle_connection_end(&problem);
                }
                Received::End(error) => {
                    let text = error.map_or_else(
                        || "the server ended the connection".to_owned(),
                        |error| connection_error_text(&error),
                    );
                    return self.handle_connection_end(&text);
                }
            }
        }
        Ok(())
    }

    fn handle_reply(&mut self, reply: &[u8], at: Instant) -> io::Result<()> {
        if let Some(error_text) = reply.strip_prefix(SERVER_ERROR) {
            return self.handle_connection_end(&format!("the server says: {}", Cut(error_text)));
        }
        let seq = reply.strip_prefix(self.settings.prefix.as_bytes()).and_then(|number| self.codec.decode(number));
        let Some(seq) = seq.filter(|seq| (1..=self.statistics.sent).contains(seq)) else {
            return self.handle_wrong_reply(reply);
        };
        if let Some(index) = self.awaited.iter().position(|sent| sent.seq == seq) {
            let Some(sent) = self.awaited.remove(index) else { return Ok(()) };
            let round_trip = at.saturating_duration_since(sent.at);
            self.highest_answered = self.highest_answered.max(seq);
            if round_trip > self.settings.timeout {
                // The timeout was not handled before.
                self.print_lost(seq, self.timeout_text())?;
                self.statistics.late += 1;
                return self.printer.print_event(&Event::Late { seq, round_trip: Some(round_trip) });
            }
            self.statistics.record(round_trip);
            return self.printer.print_event(&Event::Reply { seq, bytes: reply.len(), round_trip });
        }
        // Packets may overtake each other.
        let lost = self.lost.iter().position(|sent| sent.seq == seq).and_then(|index| self.lost.remove(index));
        if lost.is_none() && seq <= self.highest_answered {
            self.statistics.duplicates += 1;
            return self.handle_surplus(&Event::Duplicate { seq });
        }
        self.highest_answered = self.highest_answered.max(seq);
        self.statistics.late += 1;
        let round_trip = lost.map(|sent| at.saturating_duration_since(sent.at));
        self.printer.print_event(&Event::Late { seq, round_trip })
    }

    /// Handles a wrong reply. It is not known which message it belongs to; most likely to the oldest.
    fn handle_wrong_reply(&mut self, reply: &[u8]) -> io::Result<()> {
        self.statistics.wrong += 1;
        let Some(oldest) = self.awaited.pop_front() else {
            let text = format!("got {}, which no message had asked for", Quoted(reply));
            return self.handle_surplus(&Event::Note { text });
        };
        let mut expected = self.settings.prefix.as_bytes().to_vec();
        self.codec.encode(oldest.seq, &mut expected);
        self.print_lost(oldest.seq, format!("wrong reply: {}", Difference { expected: &expected, got: reply }))
    }

    /// Handles a reply that no message had asked for. After too many of them, the connection ends.
    fn handle_surplus(&mut self, event: &Event) -> io::Result<()> {
        self.printer.print_event(event)?;
        let Some(connection) = &mut self.connection else { return Ok(()) };
        connection.surplus += 1;
        let surplus = connection.surplus;
        if surplus < self.statistics.sent + MAX_SURPLUS {
            return Ok(());
        }
        self.handle_connection_end(&format!("got {surplus} replies that no message had asked for"))
    }

    // --- Losses ------------------------------------------------------------------------------------------------------

    fn print_lost(&mut self, seq: u64, reason: String) -> io::Result<()> {
        self.printer.print_event(&Event::Lost { seq, reason })
    }

    fn timeout_text(&self) -> String {
        format!("no reply within {} (--timeout)", format_time(self.settings.timeout))
    }

    /// Handles a deadline that has passed.
    fn handle_timeout(&mut self) -> io::Result<()> {
        let now = Instant::now();
        // A reply that came while this process was stopped is not late: read once more before giving up.
        self.transfer()?;
        while let Some(sent) = self.awaited.front().copied().filter(|sent| now >= sent.at + self.settings.timeout) {
            self.awaited.pop_front();
            self.lost.push_back(sent);
            if self.lost.len() > MAX_REMEMBERED {
                self.lost.pop_front();
            }
            self.print_lost(sent.seq, self.timeout_text())?;
        }
        if self.stop_deadline.is_some_and(|until| now >= until) {
            self.abandon_awaited("interrupted before its reply came")?;
        }
        Ok(())
    }

    /// Handles the end of the connection: all awaited messages are lost.
    fn handle_connection_end(&mut self, text: &str) -> io::Result<()> {
        if self.connection.take().is_none() {
            return Ok(());
        }
        self.lost.clear();
        if self.awaited.is_empty() {
            return self.printer.print_event(&Event::Note { text: text.to_owned() });
        }
        self.abandon_awaited(text)
    }

    fn abandon_awaited(&mut self, text: &str) -> io::Result<()> {
        let connecting = self.connecting.take().map(|(_, seq)| seq);
        while let Some(sent) = self.awaited.pop_front() {
            self.print_lost(sent.seq, text.to_owned())?;
        }
        connecting.map_or(Ok(()), |seq| self.print_lost(seq, text.to_owned()))
    }

    /// Handles a stop: no more messages are sent. At the second stop, no more replies are awaited.
    fn handle_stop(&mut self) -> io::Result<()> {
        let longest = self.statistics.round_trips().map(|trips| trips.max);
        match (self.stop_deadline, longest) {
            (None, Some(longest)) => {
                self.stop_deadline = Some(Instant::now() + (longest * 2).max(MIN_GRACE));
                Ok(())
            }
            _ => {
                let now = Instant::now();
                self.stop_deadline = Some(now);
                self.handle_timeout()
            }
        }
    }
}

/// Waits until there is something to read, or room for unwritten bytes.
async fn ready(connection: Option<&PingConnection>) {
    match connection {
        Some(connection) => connection.ready().await,
        None => std::future::pending().await,
    }
}

async fn wait_for_connect(connecting: Option<&mut (Connecting<'_>, u64)>) -> Result<Connection, ConnectError> {
    match connecting {
        Some((connecting, _)) => connecting.as_mut().await,
        None => std::future::pending().await,
    }
}

fn connection_error_text(error: &io::Error) -> String {
    if error.kind() == ErrorKind::ConnectionRefused {
        // With datagrams, this error is reported after they were sent.
        return format!("no socket listens there ({})", reason(error));
    }
    format!("the connection broke ({})", reason(error))
}
