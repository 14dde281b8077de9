//! Sends messages and checks their replies, both at once.
//!
//! ```text
//! Messages ──> Outbox ──> stream ──> Framer ──> compared with the oldest awaited ──> Report
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
use tokio::time::{Instant, sleep_until, timeout};

use super::failure::Failure;
use super::input::{InputError, Messages, Next};
use super::message::MAX_MESSAGE;
use super::outbox::Outbox;
use super::report::{Reply, Report};
use super::terms::Terms;
use crate::protocol::Delimiter;
use crate::protocol::framer::{Frame, Framer};
use crate::protocol::reply::MAX_PREFIX;
use crate::protocol::verdict::SERVER_ERROR;

/// How much is read at once, in bytes.
const READ_SIZE: usize = 64 * 1024;

/// The longest reply, in bytes. Beyond it, what comes cannot be the reply to anything.
const MAX_REPLY: usize = MAX_PREFIX + MAX_MESSAGE;

/// The longest reply that is looked at where none is expected, in bytes.
const MAX_UNEXPECTED: usize = 64 * 1024;

/// Sends all messages over a stream, each with the delimiter, and returns when all replies have come and were right.
///
/// When the input fails, what was sent before is still answered.
///
/// # Errors
/// The first thing that goes wrong, see [`Failure`].
pub async fn exchange<S, R>(
    stream: S,
    messages: Messages,
    delimiter: &Delimiter,
    terms: &Terms,
    report: &mut R,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
    R: Report,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut exchange = Exchange::new(messages, delimiter, terms, report);
    let mut chunk = vec![0; READ_SIZE];
    loop {
        exchange.take_messages()?;
        if exchange.is_done() {
            break;
        }
        if exchange.is_sent() && !exchange.replies && exchange.shut_down.is_none() {
            // An error shows in what is read.
            let _ = writer.shutdown().await;
            exchange.shut_down = Some(Instant::now());
        }
        let deadline = exchange.deadline();
        select! {
            read = reader.read(&mut chunk), if exchange.server_ended.is_none() => {
                exchange.received(read, &chunk)?;
            }
            (at, written) = write(&mut writer, exchange.outbox.unwritten()), if exchange.can_write() => {
                exchange.wrote(written, at);
            }
            () = exchange.messages.wait(), if exchange.wants_messages() => {}
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                if exchange.server_ended.is_some() {
                    return Err(exchange.ended(None));
                }
                // What was possible all the time while this process was stopped is not late: a last look. Where no
                // replies are expected, they do not gain the server time.
                yield_now().await;
                match timeout(Duration::ZERO, reader.read(&mut chunk)).await {
                    Ok(read) if exchange.replies || matches!(read, Ok(0)) => exchange.received(read, &chunk)?,
                    _ if exchange.can_write() => {
                        let write = write(&mut writer, exchange.outbox.unwritten());
                        match timeout(Duration::ZERO, write).await {
                            Ok((at, written)) => exchange.wrote(written, at),
                            Err(_) => return Err(exchange.late()),
                        }
                    }
                    _ => return Err(exchange.late()),
                }
            }
        }
    }
    // We are done, whether the server can still be told so or not.
    let _ = writer.shutdown().await;
    exchange.finish()
}

/// Writes, and tells when. A write to a server on the same machine may last until the reply is there: so the round trip
/// begins before it.
async fn write(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> (Instant, io::Result<usize>) {
    poll_fn(|context| {
        let at = Instant::now();
        Pin::new(&mut *writer).poll_write(context, bytes).map(|written| (at, written))
    })
    .await
}

/// Everything that is known between two steps.
struct Exchange<'a, R> {
    /// Ends messages and replies.
    delimiter: &'a Delimiter,
    terms: &'a Terms,
    /// Whether messages are answered.
    replies: bool,
    report: &'a mut R,
    messages: Messages,
    /// How the messages ended, when they have.
    messages_end: Option<Result<(), InputError>>,
    outbox: Outbox,
    /// Why nothing can be written any more.
    write_error: Option<io::Error>,
    framer: Framer,
    /// The reply in progress.
    partial: Vec<u8>,
    /// Whether replies can still be told apart.
    following: bool,
    /// How many replies were right.
    answered: u64,
    /// Since when the next reply is the next.
    next_since: Instant,
    /// When the server has ended its stream with nothing owed, while there may still be messages.
    server_ended: Option<Instant>,
    /// When we have ended ours.
    shut_down: Option<Instant>,
}

impl<'a, R: Report> Exchange<'a, R> {
    fn new(messages: Messages, delimiter: &'a Delimiter, terms: &'a Terms, report: &'a mut R) -> Self {
        let now = Instant::now();
        let replies = terms.answer.is_expected();
        Self {
            delimiter,
            terms,
            replies,
            report,
            messages,
            messages_end: None,
            outbox: Outbox::new(now),
            write_error: None,
            framer: Framer::default(),
            partial: Vec::new(),
            following: true,
            answered: 0,
            next_since: now,
            server_ended: None,
            shut_down: None,
        }
    }

    // --- What comes next -----------------------------------------------------------------------------------------------

    fn wants_messages(&self) -> bool {
        self.messages_end.is_none() && self.outbox.has_room()
    }

    fn can_write(&self) -> bool {
        self.write_error.is_none() && !self.outbox.unwritten().is_empty()
    }

    /// Whether everything was sent that ever will be.
    fn is_sent(&self) -> bool {
        self.messages_end.is_some() && self.outbox.unwritten().is_empty()
    }

    fn is_done(&self) -> bool {
        let replies_done = if self.replies { !self.outbox.awaits() } else { self.server_ended.is_some() };
        self.is_sent() && replies_done
    }

    /// When to give up, unless something happens before.
    fn deadline(&self) -> Option<Instant> {
        let since = if let Some(ended) = self.server_ended {
            // Where nobody has more to say, this is no fault. At a terminal, nobody may ever say so.
            ended
        } else if let Some(sent) = self.outbox.next_sent() {
            sent.max(self.next_since)
        } else if !self.outbox.unwritten().is_empty() {
            self.outbox.last_progress().max(self.next_since)
        } else {
            self.shut_down?
        };
        Some(since + self.terms.timeout)
    }

    // --- What happens --------------------------------------------------------------------------------------------------

    /// Takes the messages that are there, as far as there is room for them.
    fn take_messages(&mut self) -> Result<(), Failure> {
        while self.wants_messages() {
            match self.messages.next() {
                Ok(Next::Message(message)) => {
                    let now = Instant::now();
                    if self.replies && !self.outbox.awaits() {
                        self.next_since = now;
                    }
                    self.outbox.push(message, self.replies, now);
                    if self.server_ended.is_some() {
                        return Err(self.ended(None));
                    }
                }
                Ok(Next::NotYet) => break,
                Ok(Next::End) => self.messages_end = Some(Ok(())),
                Err(error) => self.messages_end = Some(Err(error)),
            }
        }
        Ok(())
    }

    fn wrote(&mut self, written: io::Result<usize>, at: Instant) {
        match written {
            Ok(0) => self.write_error = Some(ErrorKind::WriteZero.into()),
            Ok(count) => self.outbox.wrote(count, at),
            // What the server said last may still be on its way, and says more: so reading goes on.
            Err(error) => self.write_error = Some(error),
        }
    }

    fn received(&mut self, read: io::Result<usize>, chunk: &[u8]) -> Result<(), Failure> {
        match read {
            Ok(0) if self.may_end() => self.server_ended = Some(Instant::now()),
            Ok(0) => return Err(self.ended(None)),
            Ok(count) => {
                let before = self.answered;
                let replies = self.replies(&chunk[..count]);
                let printed = self.report.pause();
                replies?;
                printed.map_err(Failure::Report)?;
                if self.answered > before {
                    // Printing may have taken its time, which is not the server's.
                    self.next_since = Instant::now();
                }
            }
            Err(error) => return Err(self.ended(Some(error))),
        }
        Ok(())
    }

    /// Whether the server may end its stream now: it owes nothing, and has taken everything so far. Should there be more
    /// messages, that is another matter.
    fn may_end(&self) -> bool {
        let nothing_begun =
            if self.replies { self.partial.is_empty() } else { !self.partial.starts_with(SERVER_ERROR) };
        nothing_begun && !self.outbox.awaits() && self.outbox.unwritten().is_empty()
    }

    fn replies(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        let now = Instant::now();
        let max = if self.replies { MAX_REPLY } else { MAX_UNEXPECTED };
        let mut rest = chunk;
        while self.following {
            match self.framer.next(self.delimiter, max, rest) {
                Frame::Complete(end) if self.partial.is_empty() => {
                    self.reply(&rest[..end], now)?;
                    rest = &rest[end..];
                }
                Frame::Complete(end) => {
                    let mut reply = mem::take(&mut self.partial);
                    reply.extend_from_slice(&rest[..end]);
                    self.reply(&reply, now)?;
                    reply.clear();
                    self.partial = reply;
                    rest = &rest[end..];
                }
                Frame::Incomplete => {
                    self.partial.extend_from_slice(rest);
                    break;
                }
                Frame::TooLong if self.replies => return Err(Failure::TooLong { max }),
                Frame::TooLong => {
                    self.following = false;
                    self.partial = Vec::new();
                }
            }
        }
        Ok(())
    }

    /// One reply, its delimiter included.
    fn reply(&mut self, terminated: &[u8], now: Instant) -> Result<(), Failure> {
        let bytes = &terminated[..terminated.len() - self.delimiter.len()];
        let awaited = self.outbox.next_awaited();
        let message = awaited.map(|(message, _)| message.as_bytes());
        // What answers a message that is not even sent yet, answers none.
        let sent = awaited.and_then(|(_, sent)| sent);
        let is_right = |message| self.terms.answer.is_right(bytes, message);
        let expected = sent.is_some() && message.is_some_and(is_right);
        if self.replies {
            let round_trip = sent.map(|sent| now - sent);
            let reply = Reply { bytes, message, ok: expected, round_trip };
            self.report.reply(reply).map_err(Failure::Report)?;
        }
        if expected {
            self.outbox.answered();
            self.answered += 1;
            return Ok(());
        }
        if let Some(text) = bytes.strip_prefix(SERVER_ERROR) {
            return Err(Failure::ServerError { text: text.to_vec(), other_delimiter: None });
        }
        if !self.replies {
            return Ok(());
        }
        let got = bytes.to_vec();
        Err(match message.filter(|_| sent.is_some()) {
            Some(message) => {
                let expected = self.terms.answer.right(message).unwrap_or_default();
                Failure::Wrong { number: self.answered + 1, expected, got }
            }
            None => Failure::Unexpected { got },
        })
    }

    // --- How it ends ---------------------------------------------------------------------------------------------------

    /// All was sent, and all answers have come.
    fn finish(self) -> Result<(), Failure> {
        if self.replies && !self.partial.is_empty() {
            return Err(Failure::Unexpected { got: self.partial });
        }
        match self.messages_end {
            Some(Err(error)) => Err(Failure::Input { error, sent: self.outbox.messages() }),
            _ => Ok(()),
        }
    }

    /// The server has ended the connection before its time, or the connection broke.
    fn ended(&mut self, error: Option<io::Error>) -> Failure {
        let rest = mem::take(&mut self.partial);
        if let Some(text) = rest.strip_prefix(SERVER_ERROR) {
            let other_delimiter = Some(self.delimiter.clone());
            return Failure::ServerError { text: text.to_vec(), other_delimiter };
        }
        if self.replies {
            Failure::Ended { error, unanswered: Some(self.outbox.messages() - self.answered), rest }
        } else {
            Failure::Ended { error, unanswered: None, rest: Vec::new() }
        }
    }

    /// The deadline has passed.
    fn late(&mut self) -> Failure {
        let timeout = self.terms.timeout;
        if let Some(error) = self.write_error.take() {
            return self.ended(Some(error));
        }
        match self.outbox.next_awaited() {
            Some((message, Some(_))) => Failure::Late {
                number: self.answered + 1,
                message: message.as_bytes().to_vec(),
                timeout,
                delimiter: Some(Box::new(self.delimiter.clone())),
                rest: mem::take(&mut self.partial),
            },
            _ if self.shut_down.is_some() => Failure::NotEnded { timeout, replies: false },
            _ => Failure::Stuck { timeout },
        }
    }
}
