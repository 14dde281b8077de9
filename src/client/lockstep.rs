//! Exchanges messages in lockstep: sends a message when the previous one has its reply.
//!
//! ```text
//! Messages ──> one message ──> stream or packets ──> what comes ──> compared with it ──> ReplySink
//! ```
//!
//! That is how packets are exchanged, since more of them on the way may be lost, and streams without a delimiter, where
//! the replies to two messages could not be told apart. Reading goes on while a message is being written: so neither
//! side can be stuck with full buffers while the other is, too.

use std::io::{self, ErrorKind};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::select;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::connection::Connection;
use super::deadline;
use super::exchange_error::ExchangeError;
use super::expectation::{Expectation, ExpectedReply};
use super::input::Messages;
use super::message::Message;
use super::next_message::{InputError, Next};
use super::output::{Reply, ReplySink};
use crate::protocol::verdict::SERVER_ERROR;

/// How much may come while a deadline runs and still gain the server time, in bytes: the time that its printing takes, and
/// one more read after the deadline. More than the kernel's buffers hold, so that what came in time is read although this
/// process was stopped or its output was slow; a server that never ends gains no more than that.
const MAX_PATIENCE: usize = 16 * 1024 * 1024;

/// How many bytes a read counts as at least.
const MIN_READ: usize = 4096;

/// Sends all messages, and returns when all replies have come and were right. Where any reply is accepted
/// ([`ExpectedReply::Any`]), that is when something has come after each message, and on a stream the server has ended
/// it after the last.
///
/// When the input fails, what was sent before is still answered.
///
/// # Errors
/// Returns the first thing that goes wrong, see [`ExchangeError`].
pub async fn exchange_lockstep<R: ReplySink>(
    connection: Connection,
    messages: Messages,
    expectation: &Expectation,
    sink: &mut R,
) -> Result<(), ExchangeError> {
    let mut chunk = connection.allocate_buffer();
    let mut exchange = LockstepExchange::new(connection, messages, expectation, sink);
    loop {
        exchange.take_message()?;
        if exchange.is_done() {
            break;
        }
        exchange.shut_down_writes();
        let (interest, deadline) = (exchange.interest(), exchange.deadline());
        select! {
            () = ready(&exchange.connection, interest), if interest.is_some() => {
                exchange.transfer(&mut chunk)?;
                // There may always be more to read: timers run all the same.
                yield_now().await;
            }
            () = exchange.messages.wait(), if exchange.wants_message() => {}
            () = deadline::passed(deadline) => {
                // A reply that came while this process was stopped is not late: try once more before giving up.
                yield_now().await;
                let has_ended = exchange.server_ended.is_some();
                if has_ended || !exchange.transfer(&mut chunk)? || exchange.patience.is_exhausted() {
                    return Err(exchange.timeout_error());
                }
            }
        }
    }
    exchange.finish()
}

async fn ready(connection: &Connection, interest: Option<Interest>) {
    match interest {
        Some(interest) => connection.ready(interest).await,
        None => std::future::pending().await,
    }
}

/// The message that is being exchanged, or was last.
struct CurrentMessage {
    message: Message,
    written: usize,
    /// When its last byte was written, if it is: just before the call.
    sent_at: Option<Instant>,
    /// The received part of its reply.
    reply: Vec<u8>,
    answered: bool,
}

/// The input since the deadline began to run.
#[derive(Debug, Default)]
struct Patience {
    /// How many bytes were read.
    read: usize,
    /// How long it took to print them.
    printing: Duration,
}

impl Patience {
    /// Returns whether so much has come that it gains the server no more time.
    fn is_exhausted(&self) -> bool {
        self.read > MAX_PATIENCE
    }
}

/// The state of an exchange.
struct LockstepExchange<'a, R> {
    connection: Connection,
    expectation: &'a Expectation,
    sink: &'a mut R,
    messages: Messages,
    /// How the messages ended, when they have.
    messages_end: Option<Result<(), InputError>>,
    current: Option<CurrentMessage>,
    /// The message after the current one.
    next: Option<Message>,
    /// How many messages were taken, and how many are answered.
    taken: u64,
    answered: u64,
    /// When something of the current message was written last, or it became the current one.
    last_written: Instant,
    patience: Patience,
    /// The write error, after which nothing can be written.
    write_error: Option<io::Error>,
    /// When the server has ended its stream with nothing owed, while there may still be messages.
    server_ended: Option<Instant>,
    /// When we have ended ours.
    shut_down: Option<Instant>,
}

impl<'a, R: ReplySink> LockstepExchange<'a, R> {
    fn new(connection: Connection, messages: Messages, expectation: &'a Expectation, sink: &'a mut R) -> Self {
        Self {
            connection,
            expectation,
            sink,
            messages,
            messages_end: None,
            current: None,
            next: None,
            taken: 0,
            answered: 0,
            last_written: Instant::now(),
            patience: Patience::default(),
            write_error: None,
            server_ended: None,
            shut_down: None,
        }
    }

    // --- What comes next ---------------------------------------------------------------------------------------------

    /// Returns whether the current message is sent, and answered if a reply is expected.
    fn is_current_done(&self) -> bool {
        self.current.as_ref().is_none_or(|current| {
            current.sent_at.is_some() && (current.answered || !self.expectation.reply.is_expected())
        })
    }

    fn is_current_unsent(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.sent_at.is_none())
    }

    /// Returns whether to look for the next message: already while the previous one awaits its reply, to know which is the
    /// last.
    fn wants_message(&self) -> bool {
        self.messages_end.is_none() && self.next.is_none() && !self.is_current_unsent()
    }

    /// Returns whether all messages were sent and no more will come.
    fn is_all_sent(&self) -> bool {
        self.messages_end.is_some() && self.next.is_none() && !self.is_current_unsent()
    }

    /// Returns whether only the end of the server's stream shows that it has taken, or sent, everything.
    fn waits_for_end(&self) -> bool {
        match self.expectation.reply {
            ExpectedReply::None => self.connection.is_connection_oriented(),
            ExpectedReply::Any => !self.connection.is_packets(),
            ExpectedReply::Echo(_) | ExpectedReply::Exact(_) => false,
        }
    }

    fn is_done(&self) -> bool {
        let ended = !self.waits_for_end() || self.server_ended.is_some();
        self.is_all_sent() && self.is_current_done() && ended
    }

    fn interest(&self) -> Option<Interest> {
        let read = self.server_ended.is_none().then_some(Interest::READABLE);
        let write = (self.is_current_unsent() && self.write_error.is_none()).then_some(Interest::WRITABLE);
        match (read, write) {
            (Some(read), Some(write)) => Some(read | write),
            (read, write) => read.or(write),
        }
    }

    /// Returns when the exchange times out, unless something happens before.
    fn deadline(&self) -> Option<Instant> {
        let since = if let Some(ended) = self.server_ended {
            // If there are no more messages, the end is not an error. At a terminal, the end of the messages may never
            // come.
            ended
        } else if self.is_current_unsent() {
            self.last_written
        } else if !self.is_current_done() {
            self.current.as_ref()?.sent_at?
        } else {
            self.shut_down?
        };
        Some(since + self.expectation.timeout + self.patience.printing)
    }

    // --- What happens ------------------------------------------------------------------------------------------------

    /// Takes the next message if it is there, and makes it the current one if the previous one is done.
    fn take_message(&mut self) -> Result<(), ExchangeError> {
        if self.wants_message() {
            match self.messages.next() {
                Ok(Next::Message(message)) => {
                    self.taken += 1;
                    self.next = Some(message);
                    if self.server_ended.is_some() {
                        return Err(self.end_error(None));
                    }
                }
                Ok(Next::Pending) => {}
                Ok(Next::End) => self.messages_end = Some(Ok(())),
                Err(error) => self.messages_end = Some(Err(error)),
            }
        }
        if self.is_current_done() {
            if let Some(message) = self.next.take() {
                self.current =
                    Some(CurrentMessage { message, written: 0, sent_at: None, reply: Vec::new(), answered: false });
                self.last_written = Instant::now();
                self.patience = Patience::default();
            }
        }
        Ok(())
    }

    /// Ends our stream when all messages are sent, if the server is to end its own.
    fn shut_down_writes(&mut self) {
        if self.is_all_sent() && self.waits_for_end() && self.shut_down.is_none() {
            self.connection.shut_down_writes();
            self.shut_down = Some(Instant::now());
            self.patience = Patience::default();
        }
    }

    /// Writes and reads what is possible now. Returns whether anything was written or read.
    fn transfer(&mut self, chunk: &mut [u8]) -> Result<bool, ExchangeError> {
        let wrote = self.write()?;
        if self.server_ended.is_some() {
            return Ok(wrote);
        }
        let read = match self.connection.try_read(chunk) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(wrote),
            Ok(Some(count)) => {
                self.patience.read += count.max(MIN_READ);
                self.print_received(&chunk[..count])
            }
            Ok(None) if self.is_end_allowed() => {
                self.server_ended = Some(Instant::now());
                self.patience = Patience::default();
                Ok(())
            }
            Ok(None) => Err(self.end_error(None)),
            Err(error) => Err(self.end_error(Some(error))),
        };
        if read.is_err() {
            // The wrong reply is printed, too. If printing fails, the wrong reply is still the first error.
            let _ = self.sink.flush();
        }
        read.map(|()| true)
    }

    /// Handles what was received, and has it printed. The time that this takes is not the server's, unless too much has
    /// come.
    fn print_received(&mut self, bytes: &[u8]) -> Result<(), ExchangeError> {
        let before = Instant::now();
        self.handle_received(bytes)?;
        self.sink.flush().map_err(ExchangeError::Output)?;
        if !self.patience.is_exhausted() {
            self.patience.printing += before.elapsed();
        }
        Ok(())
    }

    fn write(&mut self) -> Result<bool, ExchangeError> {
        let Some(current) = self.current.as_mut().filter(|current| current.sent_at.is_none()) else { return Ok(false) };
        if self.write_error.is_some() {
            return Ok(false);
        }
        // A write to a server on the same machine may last until the reply is there: the round trip begins before it.
        let now = Instant::now();
        match self.connection.try_write(&current.message.terminated()[current.written..]) {
            Ok(count) => {
                current.written += count;
                self.last_written = now;
                self.patience = Patience::default();
                if current.written == current.message.terminated().len() {
                    current.sent_at = Some(now);
                } else if count == 0 {
                    self.write_error = Some(ErrorKind::WriteZero.into());
                }
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::MSGSIZE) => {
                let size = current.message.as_bytes().len();
                Err(ExchangeError::MessageTooLarge { number: self.taken, size })
            }
            // The server's final reply may still be on its way, and says more: so reading goes on.
            Err(error) => {
                self.write_error = Some(error);
                Ok(true)
            }
        }
    }

    /// Returns whether the server may end its stream now: it owes nothing, and has taken everything so far. If more
    /// messages follow, the end is an error.
    fn is_end_allowed(&self) -> bool {
        self.is_current_done()
    }

    /// Handles what was received: a packet, or a piece of a stream.
    fn handle_received(&mut self, bytes: &[u8]) -> Result<(), ExchangeError> {
        let now = Instant::now();
        let packets = self.connection.is_packets();
        let is_error = packets && self.expectation.reply != ExpectedReply::Any;
        let error_text = bytes.strip_prefix(SERVER_ERROR).filter(|_| is_error);
        let error = error_text.map(|text| ExchangeError::ServerError { text: text.to_vec(), other_delimiter: None });
        match self.expectation.reply {
            ExpectedReply::None => return error.map_or(Ok(()), Err),
            ExpectedReply::Any => return self.accept_any(bytes, now),
            ExpectedReply::Echo(_) | ExpectedReply::Exact(_) => {}
        }
        let current =
            self.current.as_mut().filter(|current| !current.answered && (current.sent_at.is_some() || !packets));
        let Some(current) = current else {
            self.report_reply(bytes, false, now)?;
            return Err(error.unwrap_or_else(|| ExchangeError::UnexpectedReply { got: bytes.to_vec() }));
        };
        current.reply.extend_from_slice(bytes);
        let message = current.message.as_bytes();
        let is_match = current.sent_at.is_some() && self.expectation.reply.matches(&current.reply, message);
        let expected = self.expectation.reply.expected_bytes(message).unwrap_or_default();
        if !is_match && !packets && current.reply.len() < expected.len() && expected.starts_with(&current.reply) {
            return Ok(());
        }
        let reply = std::mem::take(&mut current.reply);
        current.answered = is_match;
        self.report_reply(&reply, is_match, now)?;
        if is_match {
            self.answered += 1;
            return Ok(());
        }
        Err(error.unwrap_or(ExchangeError::WrongReply { number: self.answered + 1, expected, got: reply }))
    }

    /// Accepts any bytes as a reply.
    fn accept_any(&mut self, bytes: &[u8], now: Instant) -> Result<(), ExchangeError> {
        self.report_reply(bytes, true, now)?;
        if let Some(current) = self.current.as_mut().filter(|current| !current.answered) {
            current.answered = true;
            self.answered += 1;
        }
        Ok(())
    }

    fn report_reply(&mut self, bytes: &[u8], ok: bool, now: Instant) -> Result<(), ExchangeError> {
        // A wrong reply to a message that is answered already belongs to no message.
        let current = self.current.as_ref().filter(|current| ok || !current.answered);
        let round_trip = current.and_then(|current| current.sent_at).map(|sent| now - sent);
        let message = current.map(|current| current.message.as_bytes());
        self.sink.write_reply(Reply { bytes, message, ok, round_trip }).map_err(ExchangeError::Output)
    }

    // --- How it ends -------------------------------------------------------------------------------------------------

    /// Ends the exchange: all messages were sent, and all replies have come.
    fn finish(self) -> Result<(), ExchangeError> {
        // The exchange is done, whether or not the end of our stream can still be sent.
        self.connection.shut_down_writes();
        match self.messages_end {
            Some(Err(error)) => Err(ExchangeError::Input { error, sent: self.taken }),
            _ => Ok(()),
        }
    }

    /// Returns the error for a connection that the server has ended too early, or that broke.
    fn end_error(&mut self, error: Option<io::Error>) -> ExchangeError {
        let error = match error.map(|error| self.connection.take_connect_error(error)) {
            Some(Ok(refusal)) => return ExchangeError::Connect(refusal),
            Some(Err(error)) => Some(error),
            None => None,
        };
        let rest = self.current.as_mut().map(|current| std::mem::take(&mut current.reply)).unwrap_or_default();
        let unanswered = self.expectation.reply.is_expected().then(|| self.taken - self.answered);
        ExchangeError::ConnectionEnded { error, unanswered, rest }
    }

    /// Returns the error for a deadline that has passed.
    fn timeout_error(&mut self) -> ExchangeError {
        let timeout = self.expectation.timeout;
        if self.server_ended.is_some() {
            return self.end_error(None);
        }
        if let Some(error) = self.write_error.take() {
            return self.end_error(Some(error));
        }
        let is_done = self.is_current_done();
        match &mut self.current {
            Some(current) if current.sent_at.is_none() => ExchangeError::WriteTimeout { timeout },
            Some(current) if !is_done => ExchangeError::ReplyTimeout {
                number: self.answered + 1,
                message: current.message.as_bytes().to_vec(),
                timeout,
                delimiter: None,
                rest: std::mem::take(&mut current.reply),
            },
            _ => ExchangeError::EndTimeout { timeout, replies_expected: self.expectation.reply.is_expected() },
        }
    }
}
