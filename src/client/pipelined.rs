//! Exchanges pipelined messages: sends them and checks their replies, both at once.
//!
//! ```text
//! Messages ──> SendQueue ──> stream ──> Framer ──> compared with the oldest awaited ──> ReplySink
//! ```
//!
//! Messages are sent without waiting for replies, up to a bounded number of awaited ones, and reading never waits for
//! writing: so neither side can be stuck with full buffers while the other is, too. One deadline runs at any time, that
//! of the next reply.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::select;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use super::deadline;
use super::exchange_error::ExchangeError;
use super::expectation::{Expectation, MAX_EXCESS};
use super::input::Messages;
use super::next_message::{InputError, Next};
use super::output::{Reply, ReplySink};
use super::send_queue::SendQueue;
use crate::protocol::Delimiter;
use crate::protocol::framer::{Frame, Framer};
use crate::protocol::verdict::SERVER_ERROR;

/// How much is read at once, in bytes.
const READ_SIZE: usize = 64 * 1024;

/// The longest reply that is checked where none is expected, in bytes.
const MAX_UNEXPECTED: usize = 64 * 1024;

/// Sends all messages over a stream, each with the delimiter, and returns when all replies have come and were right.
///
/// When the input fails, what was sent before is still answered.
///
/// # Errors
/// Returns the first thing that goes wrong, see [`ExchangeError`].
pub async fn exchange_pipelined<S, R>(
    stream: S,
    messages: Messages,
    delimiter: &Delimiter,
    expectation: &Expectation,
    sink: &mut R,
) -> Result<(), ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: ReplySink,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut exchange = PipelinedExchange::new(messages, delimiter, expectation, sink);
    let mut chunk = vec![0; READ_SIZE];
    loop {
        exchange.take_messages()?;
        if exchange.is_done() {
            break;
        }
        if exchange.is_all_sent() && !exchange.expects_replies && exchange.shut_down.is_none() {
            // An error shows in what is read.
            let _ = writer.shutdown().await;
            exchange.shut_down = Some(Instant::now());
        }
        let deadline = exchange.deadline();
        select! {
            read = reader.read(&mut chunk), if exchange.server_ended.is_none() => {
                exchange.handle_read(read, &chunk)?;
            }
            (at, written) = write(&mut writer, exchange.send_queue.unwritten()), if exchange.can_write() => {
                exchange.handle_written(written, at);
            }
            () = exchange.messages.wait(), if exchange.wants_messages() => {}
            () = deadline::passed(deadline) => {
                if exchange.server_ended.is_some() {
                    return Err(exchange.end_error(None));
                }
                // A reply that came while this process was stopped is not late: read once more before giving up. Where
                // no replies are expected, they do not gain the server time.
                yield_now().await;
                match timeout(Duration::ZERO, reader.read(&mut chunk)).await {
                    Ok(read) if exchange.expects_replies || matches!(read, Ok(0)) => exchange.handle_read(read, &chunk)?,
                    _ if exchange.can_write() => {
                        let write = write(&mut writer, exchange.send_queue.unwritten());
                        match timeout(Duration::ZERO, write).await {
                            Ok((at, written)) => exchange.handle_written(written, at),
                            Err(_) => return Err(exchange.timeout_error()),
                        }
                    }
                    _ => return Err(exchange.timeout_error()),
                }
            }
        }
    }
    // The exchange is done, whether or not the end of our stream can still be sent.
    let _ = writer.shutdown().await;
    exchange.finish()
}

/// Writes, and returns the time just before. A write to a server on the same machine may last until the reply is there:
/// so the round trip begins before it.
async fn write(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> (Instant, io::Result<usize>) {
    poll_fn(|context| {
        let at = Instant::now();
        Pin::new(&mut *writer).poll_write(context, bytes).map(|written| (at, written))
    })
    .await
}

/// The state of an exchange.
struct PipelinedExchange<'a, R> {
    /// Ends messages and replies.
    delimiter: &'a Delimiter,
    expectation: &'a Expectation,
    /// Whether replies are expected.
    expects_replies: bool,
    sink: &'a mut R,
    messages: Messages,
    /// How the messages ended, when they have.
    messages_end: Option<Result<(), InputError>>,
    send_queue: SendQueue,
    /// The write error, after which nothing can be written.
    write_error: Option<io::Error>,
    framer: Framer,
    /// The reply in progress.
    partial: Vec<u8>,
    /// Whether the framer can still find the ends of replies.
    is_framing: bool,
    /// How many replies were right.
    answered: u64,
    /// Since when the next reply is awaited.
    next_reply_since: Instant,
    /// When the server has ended its stream with nothing owed, while there may still be messages.
    server_ended: Option<Instant>,
    /// When we have ended ours.
    shut_down: Option<Instant>,
}

impl<'a, R: ReplySink> PipelinedExchange<'a, R> {
    fn new(messages: Messages, delimiter: &'a Delimiter, expectation: &'a Expectation, sink: &'a mut R) -> Self {
        let now = Instant::now();
        let expects_replies = expectation.reply.is_expected();
        Self {
            delimiter,
            expectation,
            expects_replies,
            sink,
            messages,
            messages_end: None,
            send_queue: SendQueue::new(now),
            write_error: None,
            framer: Framer::default(),
            partial: Vec::new(),
            is_framing: true,
            answered: 0,
            next_reply_since: now,
            server_ended: None,
            shut_down: None,
        }
    }

    // --- What comes next ---------------------------------------------------------------------------------------------

    fn wants_messages(&self) -> bool {
        self.messages_end.is_none() && self.send_queue.has_room()
    }

    fn can_write(&self) -> bool {
        self.write_error.is_none() && !self.send_queue.unwritten().is_empty()
    }

    /// Returns whether all messages were sent and no more will come.
    fn is_all_sent(&self) -> bool {
        self.messages_end.is_some() && self.send_queue.unwritten().is_empty()
    }

    fn is_done(&self) -> bool {
        let replies_done =
            if self.expects_replies { !self.send_queue.has_awaited() } else { self.server_ended.is_some() };
        self.is_all_sent() && replies_done
    }

    /// Returns when the exchange times out, unless something happens before.
    fn deadline(&self) -> Option<Instant> {
        let since = if let Some(ended) = self.server_ended {
            // If there are no more messages, the end is not an error. At a terminal, the end of the messages may never
            // come.
            ended
        } else if let Some(sent) = self.send_queue.next_sent() {
            sent.max(self.next_reply_since)
        } else if !self.send_queue.unwritten().is_empty() {
            self.send_queue.last_progress().max(self.next_reply_since)
        } else {
            self.shut_down?
        };
        Some(since + self.expectation.timeout)
    }

    // --- What happens ------------------------------------------------------------------------------------------------

    /// Takes the messages that are there, as far as there is room for them.
    fn take_messages(&mut self) -> Result<(), ExchangeError> {
        while self.wants_messages() {
            match self.messages.next() {
                Ok(Next::Message(message)) => {
                    let now = Instant::now();
                    if self.expects_replies && !self.send_queue.has_awaited() {
                        self.next_reply_since = now;
                    }
                    self.send_queue.push(message, self.expects_replies, now);
                    if self.server_ended.is_some() {
                        return Err(self.end_error(None));
                    }
                }
                Ok(Next::Pending) => break,
                Ok(Next::End) => self.messages_end = Some(Ok(())),
                Err(error) => self.messages_end = Some(Err(error)),
            }
        }
        Ok(())
    }

    fn handle_written(&mut self, written: io::Result<usize>, at: Instant) {
        match written {
            Ok(0) => self.write_error = Some(ErrorKind::WriteZero.into()),
            Ok(count) => self.send_queue.note_written(count, at),
            // The server's final reply may still be on its way, and says more: so reading goes on.
            Err(error) => self.write_error = Some(error),
        }
    }

    fn handle_read(&mut self, read: io::Result<usize>, chunk: &[u8]) -> Result<(), ExchangeError> {
        match read {
            Ok(0) if self.is_end_allowed() => self.server_ended = Some(Instant::now()),
            Ok(0) => return Err(self.end_error(None)),
            Ok(count) => {
                let before = self.answered;
                let replies = self.split_replies(&chunk[..count]);
                let printed = self.sink.flush();
                replies?;
                printed.map_err(ExchangeError::Output)?;
                if self.answered > before {
                    // Printing may have taken its time, which is not the server's.
                    self.next_reply_since = Instant::now();
                }
            }
            Err(error) => return Err(self.end_error(Some(error))),
        }
        Ok(())
    }

    /// Returns whether the server may end its stream now: it owes nothing, and has taken everything so far. If more
    /// messages follow, the end is an error.
    fn is_end_allowed(&self) -> bool {
        let no_reply_begun =
            if self.expects_replies { self.partial.is_empty() } else { !self.partial.starts_with(SERVER_ERROR) };
        no_reply_begun && !self.send_queue.has_awaited() && self.send_queue.unwritten().is_empty()
    }

    fn split_replies(&mut self, chunk: &[u8]) -> Result<(), ExchangeError> {
        let now = Instant::now();
        let mut rest = chunk;
        while self.is_framing {
            match self.framer.next(self.delimiter, self.max_reply(), rest) {
                Frame::Complete(end) if self.partial.is_empty() => {
                    self.handle_reply(&rest[..end], now)?;
                    rest = &rest[end..];
                }
                Frame::Complete(end) => {
                    let mut reply = mem::take(&mut self.partial);
                    reply.extend_from_slice(&rest[..end]);
                    self.handle_reply(&reply, now)?;
                    reply.clear();
                    self.partial = reply;
                    rest = &rest[end..];
                }
                Frame::Incomplete => {
                    self.partial.extend_from_slice(rest);
                    break;
                }
                Frame::TooLong if self.expects_replies => return Err(self.too_long_error(rest, now)),
                Frame::TooLong => {
                    self.is_framing = false;
                    self.partial = Vec::new();
                }
            }
        }
        Ok(())
    }

    /// Returns the longest reply that is read to its end, in bytes. It does not fall while a reply is in progress, since
    /// the oldest awaited message stays the oldest until then.
    fn max_reply(&self) -> usize {
        if !self.expects_replies {
            return MAX_UNEXPECTED;
        }
        let message_len = self.send_queue.next_awaited().map(|(message, _)| message.as_bytes().len());
        message_len.map_or(0, |len| self.expectation.reply.expected_len(len)) + MAX_EXCESS
    }

    /// Returns the error for a reply that goes on with `rest` and is too long. The sink gets what has come of it.
    fn too_long_error(&mut self, rest: &[u8], now: Instant) -> ExchangeError {
        let mut got = mem::take(&mut self.partial);
        let len = self.max_reply() + 1;
        got.extend_from_slice(&rest[..rest.len().min(len.saturating_sub(got.len()))]);
        let awaited = self.send_queue.next_awaited();
        let message = awaited.map(|(message, _)| message.as_bytes());
        let sent = awaited.and_then(|(_, sent)| sent);
        let reply = Reply { bytes: &got, message, ok: false, round_trip: sent.map(|sent| now - sent) };
        if let Err(error) = self.sink.write_reply(reply) {
            return ExchangeError::Output(error);
        }
        let Some(message) = message.filter(|_| sent.is_some()) else { return ExchangeError::UnexpectedReply { got } };
        ExchangeError::ReplyTooLong {
            number: self.answered + 1,
            expected_len: self.expectation.reply.expected_len(message.len()),
            got,
            delimiter: Box::new(self.delimiter.clone()),
        }
    }

    /// Handles one reply, its delimiter included.
    fn handle_reply(&mut self, terminated: &[u8], now: Instant) -> Result<(), ExchangeError> {
        let bytes = &terminated[..terminated.len() - self.delimiter.len()];
        let awaited = self.send_queue.next_awaited();
        let message = awaited.map(|(message, _)| message.as_bytes());
        // A reply to a message that was not sent yet is wrong.
        let sent = awaited.and_then(|(_, sent)| sent);
        let is_match = |message| self.expectation.reply.matches(bytes, message);
        let expected = sent.is_some() && message.is_some_and(is_match);
        if self.expects_replies {
            let round_trip = sent.map(|sent| now - sent);
            let reply = Reply { bytes, message, ok: expected, round_trip };
            self.sink.write_reply(reply).map_err(ExchangeError::Output)?;
        }
        if expected {
            self.send_queue.pop_answered();
            self.answered += 1;
            return Ok(());
        }
        if let Some(text) = bytes.strip_prefix(SERVER_ERROR) {
            return Err(ExchangeError::ServerError { text: text.to_vec(), other_delimiter: None });
        }
        if !self.expects_replies {
            return Ok(());
        }
        let got = bytes.to_vec();
        Err(match message.filter(|_| sent.is_some()) {
            Some(message) => {
                let expected = self.expectation.reply.expected_bytes(message).unwrap_or_default();
                ExchangeError::WrongReply { number: self.answered + 1, expected, got }
            }
            None => ExchangeError::UnexpectedReply { got },
        })
    }

    // --- How it ends -------------------------------------------------------------------------------------------------

    /// Ends the exchange: all messages were sent, and all replies have come.
    fn finish(self) -> Result<(), ExchangeError> {
        if self.expects_replies && !self.partial.is_empty() {
            return Err(ExchangeError::UnexpectedReply { got: self.partial });
        }
        match self.messages_end {
            Some(Err(error)) => Err(ExchangeError::Input { error, sent: self.send_queue.message_count() }),
            _ => Ok(()),
        }
    }

    /// Returns the error for a connection that the server has ended too early, or that broke.
    fn end_error(&mut self, error: Option<io::Error>) -> ExchangeError {
        let rest = mem::take(&mut self.partial);
        if let Some(text) = rest.strip_prefix(SERVER_ERROR) {
            let other_delimiter = Some(self.delimiter.clone());
            return ExchangeError::ServerError { text: text.to_vec(), other_delimiter };
        }
        if self.expects_replies {
            ExchangeError::ConnectionEnded {
                error,
                unanswered: Some(self.send_queue.message_count() - self.answered),
                rest,
            }
        } else {
            ExchangeError::ConnectionEnded { error, unanswered: None, rest: Vec::new() }
        }
    }

    /// Returns the error for a deadline that has passed.
    fn timeout_error(&mut self) -> ExchangeError {
        let timeout = self.expectation.timeout;
        if let Some(error) = self.write_error.take() {
            return self.end_error(Some(error));
        }
        match self.send_queue.next_awaited() {
            Some((message, Some(_))) => ExchangeError::ReplyTimeout {
                number: self.answered + 1,
                message: message.as_bytes().to_vec(),
                timeout,
                delimiter: Some(Box::new(self.delimiter.clone())),
                rest: mem::take(&mut self.partial),
            },
            _ if self.shut_down.is_some() => ExchangeError::EndTimeout { timeout, replies_expected: false },
            _ => ExchangeError::WriteTimeout { timeout },
        }
    }
}
