//! Sends messages and awaits their replies in turns: the next message when the one before is answered.
//!
//! ```text
//! Messages ──> one message ──> stream or packets ──> what comes ──> compared with it ──> Report
//! ```
//!
//! That is how packets are exchanged, since more of them on the way may be lost, and streams without a delimiter, where
//! nobody could tell the replies of two messages apart. Reading goes on while a message is being written: so neither
//! side can be stuck with full buffers while the other is, too.

use std::io::{self, ErrorKind};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::select;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::failure::Failure;
use super::input::{InputError, Messages, Next};
use super::message::Message;
use super::report::{Reply, Report};
use super::terms::{Answer, Terms};
use crate::protocol::verdict::SERVER_ERROR;

/// Sends all messages, and returns when all replies have come and were right. Where anything answers a message
/// ([`Answer::Anything`]), that is when something has come after it, and on a stream the server has ended it after the
/// last.
///
/// When the input fails, what was sent before is still answered.
///
/// # Errors
/// The first thing that goes wrong, see [`Failure`].
pub async fn take_turns<R: Report>(
    connection: Connection,
    messages: Messages,
    terms: &Terms,
    report: &mut R,
) -> Result<(), Failure> {
    let mut chunk = connection.buffer();
    let mut turns = Turns::new(connection, messages, terms, report);
    loop {
        turns.take_message()?;
        if turns.is_done() {
            break;
        }
        turns.end_sending();
        let (interest, deadline) = (turns.interest(), turns.deadline());
        select! {
            () = ready(&turns.connection, interest), if interest.is_some() => {
                turns.step(&mut chunk)?;
            }
            () = turns.messages.wait(), if turns.wants_message() => {}
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                // What was possible all the time while this process was stopped is not late: a last look.
                yield_now().await;
                if turns.is_late_for_good() || !turns.step(&mut chunk)? {
                    return Err(turns.late());
                }
            }
        }
    }
    turns.finish()
}

async fn ready(connection: &Connection, interest: Option<Interest>) {
    match interest {
        Some(interest) => connection.ready(interest).await,
        None => std::future::pending().await,
    }
}

/// The message whose turn it is, or was last.
struct Turn {
    message: Message,
    written: usize,
    /// When its last byte was written, if it is: just before the call.
    sent: Option<Instant>,
    /// What has come of its reply.
    reply: Vec<u8>,
    answered: bool,
}

/// Everything that is known between two steps.
struct Turns<'a, R> {
    connection: Connection,
    terms: &'a Terms,
    report: &'a mut R,
    messages: Messages,
    /// How the messages ended, when they have.
    messages_end: Option<Result<(), InputError>>,
    turn: Option<Turn>,
    /// Whose turn is next.
    next: Option<Message>,
    /// How many messages were taken, and how many are answered.
    taken: u64,
    answered: u64,
    last_progress: Instant,
    /// Why nothing can be written any more.
    write_error: Option<io::Error>,
    /// When the server has ended its stream with nothing owed, while there may still be messages.
    server_ended: Option<Instant>,
    /// When we have ended ours.
    shut_down: Option<Instant>,
}

impl<'a, R: Report> Turns<'a, R> {
    fn new(connection: Connection, messages: Messages, terms: &'a Terms, report: &'a mut R) -> Self {
        Self {
            connection,
            terms,
            report,
            messages,
            messages_end: None,
            turn: None,
            next: None,
            taken: 0,
            answered: 0,
            last_progress: Instant::now(),
            write_error: None,
            server_ended: None,
            shut_down: None,
        }
    }

    // --- What comes next -----------------------------------------------------------------------------------------------

    /// Whether the message is sent, and answered where it should be.
    fn is_turn_over(&self) -> bool {
        self.turn.as_ref().is_none_or(|turn| turn.sent.is_some() && (turn.answered || !self.terms.answer.is_expected()))
    }

    fn is_unsent(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.sent.is_none())
    }

    /// Whether to look for the next message: already while the one before is not answered, to know which is the last.
    fn wants_message(&self) -> bool {
        self.messages_end.is_none() && self.next.is_none() && !self.is_unsent()
    }

    /// Whether everything was sent that ever will be.
    fn is_sent(&self) -> bool {
        self.messages_end.is_some() && self.next.is_none() && !self.is_unsent()
    }

    /// Whether only the server's end tells that it has taken, or said, everything.
    fn waits_for_end(&self) -> bool {
        match self.terms.answer {
            Answer::Nothing => self.connection.has_end(),
            Answer::Anything => !self.connection.is_packets(),
            Answer::Echo(_) | Answer::Exactly(_) => false,
        }
    }

    fn is_done(&self) -> bool {
        let ended = !self.waits_for_end() || self.server_ended.is_some();
        self.is_sent() && self.is_turn_over() && ended
    }

    fn interest(&self) -> Option<Interest> {
        let read = self.server_ended.is_none().then_some(Interest::READABLE);
        let write = (self.is_unsent() && self.write_error.is_none()).then_some(Interest::WRITABLE);
        match (read, write) {
            (Some(read), Some(write)) => Some(read | write),
            (read, write) => read.or(write),
        }
    }

    /// When to give up, unless something happens before.
    fn deadline(&self) -> Option<Instant> {
        let since = if let Some(ended) = self.server_ended {
            // Where nobody has more to say, this is no fault. At a terminal, nobody may ever say so.
            ended
        } else if self.is_unsent() {
            self.last_progress
        } else if !self.is_turn_over() {
            self.turn.as_ref()?.sent?
        } else {
            let shut_down = self.shut_down?;
            // Where no replies are expected, they do not gain the server time.
            if self.terms.answer.is_expected() { self.last_progress.max(shut_down) } else { shut_down }
        };
        Some(since + self.terms.timeout)
    }

    /// Whether at the deadline nothing can come any more that would change it.
    fn is_late_for_good(&self) -> bool {
        self.server_ended.is_some()
    }

    // --- What happens --------------------------------------------------------------------------------------------------

    /// Takes the next message if it is there, and when its turn has come, too, begins it.
    fn take_message(&mut self) -> Result<(), Failure> {
        if self.wants_message() {
            match self.messages.next() {
                Ok(Next::Message(message)) => {
                    self.taken += 1;
                    self.next = Some(message);
                    if self.server_ended.is_some() {
                        return Err(self.ended(None));
                    }
                }
                Ok(Next::NotYet) => {}
                Ok(Next::End) => self.messages_end = Some(Ok(())),
                Err(error) => self.messages_end = Some(Err(error)),
            }
        }
        if self.is_turn_over() {
            if let Some(message) = self.next.take() {
                self.turn = Some(Turn { message, written: 0, sent: None, reply: Vec::new(), answered: false });
                self.last_progress = Instant::now();
            }
        }
        Ok(())
    }

    /// Ends our stream when all is sent, where the server is to end its own.
    fn end_sending(&mut self) {
        if self.is_sent() && self.waits_for_end() && self.shut_down.is_none() {
            self.connection.end();
            self.shut_down = Some(Instant::now());
        }
    }

    /// Writes and reads what is possible now. Whether anything was.
    fn step(&mut self, chunk: &mut [u8]) -> Result<bool, Failure> {
        let wrote = self.write()?;
        if self.server_ended.is_some() {
            return Ok(wrote);
        }
        let read = match self.connection.try_read(chunk) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(wrote),
            Ok(Some(count)) => self.received(&chunk[..count]).and_then(|()| {
                let printed = self.report.pause().map_err(Failure::Report);
                self.last_progress = Instant::now();
                printed
            }),
            Ok(None) if self.may_end() => {
                self.server_ended = Some(Instant::now());
                Ok(())
            }
            Ok(None) => Err(self.ended(None)),
            Err(error) => Err(self.ended(Some(error))),
        };
        if read.is_err() {
            // The wrong reply is to be seen, too. That this cannot be printed is not what went wrong first.
            let _ = self.report.pause();
        }
        read.map(|()| true)
    }

    fn write(&mut self) -> Result<bool, Failure> {
        let Some(turn) = self.turn.as_mut().filter(|turn| turn.sent.is_none()) else { return Ok(false) };
        if self.write_error.is_some() {
            return Ok(false);
        }
        // A write to a server on the same machine may last until the reply is there: the round trip begins before it.
        let now = Instant::now();
        match self.connection.try_write(&turn.message.terminated()[turn.written..]) {
            Ok(count) => {
                turn.written += count;
                self.last_progress = now;
                if turn.written == turn.message.terminated().len() {
                    turn.sent = Some(now);
                } else if count == 0 {
                    self.write_error = Some(ErrorKind::WriteZero.into());
                }
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::MSGSIZE) => {
                let size = turn.message.as_bytes().len();
                Err(Failure::TooLarge { number: self.taken, size })
            }
            // What the server said last may still be on its way, and says more: so reading goes on.
            Err(error) => {
                self.write_error = Some(error);
                Ok(true)
            }
        }
    }

    /// Whether the server may end its stream now: it owes nothing, and has taken everything so far. Should there be more
    /// messages, that is another matter.
    fn may_end(&self) -> bool {
        self.is_turn_over()
    }

    /// Something has come: a packet, or a piece of a stream.
    fn received(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let now = Instant::now();
        let packets = self.connection.is_packets();
        let is_error = packets && self.terms.answer != Answer::Anything;
        let words = bytes.strip_prefix(SERVER_ERROR).filter(|_| is_error);
        let error = words.map(|text| Failure::ServerError { text: text.to_vec(), other_delimiter: None });
        match self.terms.answer {
            Answer::Nothing => return error.map_or(Ok(()), Err),
            Answer::Anything => return self.anything(bytes, now),
            Answer::Echo(_) | Answer::Exactly(_) => {}
        }
        let turn = self.turn.as_mut().filter(|turn| !turn.answered && (turn.sent.is_some() || !packets));
        let Some(turn) = turn else {
            self.report_reply(bytes, false, now)?;
            return Err(error.unwrap_or_else(|| Failure::Unexpected { got: bytes.to_vec() }));
        };
        turn.reply.extend_from_slice(bytes);
        let message = turn.message.as_bytes();
        let right = turn.sent.is_some() && self.terms.answer.is_right(&turn.reply, message);
        let expected = self.terms.answer.right(message).unwrap_or_default();
        if !right && !packets && turn.reply.len() < expected.len() && expected.starts_with(&turn.reply) {
            return Ok(());
        }
        let reply = std::mem::take(&mut turn.reply);
        turn.answered = right;
        self.report_reply(&reply, right, now)?;
        if right {
            self.answered += 1;
            return Ok(());
        }
        Err(error.unwrap_or(Failure::Wrong { number: self.answered + 1, expected, got: reply }))
    }

    /// Whatever comes is an answer.
    fn anything(&mut self, bytes: &[u8], now: Instant) -> Result<(), Failure> {
        self.report_reply(bytes, true, now)?;
        if let Some(turn) = self.turn.as_mut().filter(|turn| !turn.answered) {
            turn.answered = true;
            self.answered += 1;
        }
        Ok(())
    }

    fn report_reply(&mut self, bytes: &[u8], ok: bool, now: Instant) -> Result<(), Failure> {
        // A wrong reply to a message that is answered already is none.
        let turn = self.turn.as_ref().filter(|turn| ok || !turn.answered);
        let round_trip = turn.and_then(|turn| turn.sent).map(|sent| now - sent);
        let message = turn.map(|turn| turn.message.as_bytes());
        self.report.reply(Reply { bytes, message, ok, round_trip }).map_err(Failure::Report)
    }

    // --- How it ends ---------------------------------------------------------------------------------------------------

    /// All was sent, and all answers have come.
    fn finish(self) -> Result<(), Failure> {
        // We are done, whether the server can still be told so or not.
        self.connection.end();
        match self.messages_end {
            Some(Err(error)) => Err(Failure::Input { error, sent: self.taken }),
            _ => Ok(()),
        }
    }

    /// The server has ended the connection before its time, or the connection broke.
    fn ended(&mut self, error: Option<io::Error>) -> Failure {
        let error = match error.map(|error| self.connection.refusal(error)) {
            Some(Ok(refusal)) => return Failure::Connect(refusal),
            Some(Err(error)) => Some(error),
            None => None,
        };
        let rest = self.turn.as_mut().map(|turn| std::mem::take(&mut turn.reply)).unwrap_or_default();
        let unanswered = self.terms.answer.is_expected().then(|| self.taken - self.answered);
        Failure::Ended { error, unanswered, rest }
    }

    /// The deadline has passed.
    fn late(&mut self) -> Failure {
        let timeout = self.terms.timeout;
        if self.server_ended.is_some() {
            return self.ended(None);
        }
        if let Some(error) = self.write_error.take() {
            return self.ended(Some(error));
        }
        let is_over = self.is_turn_over();
        match &mut self.turn {
            Some(turn) if turn.sent.is_none() => Failure::Stuck { timeout },
            Some(turn) if !is_over => Failure::Late {
                number: self.answered + 1,
                message: turn.message.as_bytes().to_vec(),
                timeout,
                delimiter: None,
                rest: std::mem::take(&mut turn.reply),
            },
            _ => Failure::NotEnded { timeout, replies: self.terms.answer.is_expected() },
        }
    }
}
