//! One conversation.
//!
//! A [`Session`] is a value: input, the end of input, room for output and time go in; replies, the next deadline, what
//! it wants next ([`Want`]) and at last its [`Verdict`] come out. It does no I/O. Replies leave through a closure that
//! takes bytes and says how many of them the peer's side has room for, so that they can be sent from the thread's
//! [`Scratch`] without passing through the session. Whatever is not taken, the session keeps: between any two calls
//! everything unfinished is inside it, and it could be put away and go on elsewhere.
//!
//! What it may have to keep are three buffers, each empty (and not allocated) most of the time:
//!
//! ```text
//! partial   the reply to the message in progress, as far as it is known:  "server got:aa"
//! owed      replies that the peer has not taken yet
//! held      input that was read, but not looked at yet, since there were replies enough for one turn
//! ```
//!
//! While anything is owed or held, nothing is read. So `owed` is at most 64 KiB and one reply, `held` what is left of one
//! read, `partial` one reply.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::framer::{Frame, Framer};
use super::reply::{ENOUGH, Output, Scratch};
use super::rules::{Deadlines, Rules, Span, Unterminated};
use super::unfinished::{Awaited, Content, Rest, Unfinished};
use super::verdict::Verdict;

/// A reply that is complete but was begun in an earlier call is copied together with those after it up to this size,
/// in bytes; a larger one is sent by itself.
const SMALL: usize = 4096;

/// How long the last words may take where `deadlines.write` is off.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// After the end of our stream, how long input is still taken and dropped, so that closing sends no reset which would
/// destroy what is on its way to the peer.
const LINGER: Duration = Duration::from_secs(1);

/// How much is taken and dropped then, in bytes.
const LINGER_BYTES: u32 = 1024 * 1024;

/// One conversation. See the module's head.
#[derive(Debug)]
pub struct Session {
    rules: Arc<Rules>,
    framer: Framer,
    phase: Phase,
    /// Whether the peer has ended its stream.
    input_ended: bool,
    opened: Instant,
    last_byte: Instant,
    totals: Totals,
    /// What is kept from one call to the next; nothing most of the time, and then no memory either.
    unfinished: Option<Box<Unfinished>>,
}

/// What a session wants to happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Input: [`Session::receive`], or [`Session::end_of_input`].
    Read,
    /// Room for output: [`Session::resume`].
    Write,
    /// The end of our stream to be sent: shut down the sending side, then [`Session::sent_end`].
    Shutdown,
    /// Nothing any more; close the connection.
    Close,
}

/// What went through a session.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Bytes received, those dropped at the end not counted.
    pub bytes_in: u64,
    /// Bytes that the peer's side took.
    pub bytes_out: u64,
    /// Messages answered.
    pub messages: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// We stop for this reason: no input is taken any more, what was read gets its replies. Unless we drain, they have
    /// until then.
    Stopping(Verdict, Instant),
    /// The peer has ended its stream; what was read gets its replies.
    Finishing(Verdict),
    /// The last words are on their way; they have until then.
    Ending(Verdict, Instant),
    /// Our stream has ended; input is dropped until then, this many more bytes of it.
    Lingering(Verdict, Instant, u32),
    Done(Verdict),
}

// --- Outputs ---------------------------------------------------------------------------------------------------------

impl Session {
    /// What it wants next. Each is to be done before asking again; [`Session::tick`] may come at any time. Input that it
    /// does not want takes the place of what it keeps, which is then lost.
    #[must_use]
    #[inline]
    pub fn wants(&self) -> Want {
        if matches!(self.phase, Phase::Done(_)) {
            Want::Close
        } else if self.is_behind() {
            Want::Write
        } else if matches!(self.phase, Phase::Ending(..)) {
            Want::Shutdown
        } else {
            Want::Read
        }
    }

    /// When [`Session::tick`] has something to do, should nothing else happen before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.next_deadline().map(|(until, _)| until)
    }

    /// Why it ended, once that is certain.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        match self.phase {
            // Something else may still come between.
            Phase::Open | Phase::Stopping(..) | Phase::Finishing(_) => None,
            Phase::Ending(verdict, _) | Phase::Lingering(verdict, ..) | Phase::Done(verdict) => Some(verdict),
        }
    }

    /// What went through it.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many bytes its buffers occupy: 0 while nothing is unfinished.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.unfinished.as_ref().map_or(0, |unfinished| unfinished.memory())
    }

    /// When it began.
    #[must_use]
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// The rules it was accepted with.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether replies are owed, or input is held: then nothing is read.
    #[inline]
    fn is_behind(&self) -> bool {
        self.unfinished.as_ref().is_some_and(|unfinished| unfinished.is_behind())
    }

    /// The deadline that runs, and what it would come to.
    fn next_deadline(&self) -> Option<(Instant, Verdict)> {
        match self.phase {
            Phase::Open | Phase::Finishing(_) => {
                earlier(self.patience(), self.after(self.opened, |d| &d.lifetime, Verdict::Lifetime))
            }
            Phase::Stopping(Verdict::Shutdown, _) => self.patience(),
            Phase::Stopping(verdict, until) | Phase::Ending(verdict, until) | Phase::Lingering(verdict, until, _) => {
                Some((until, verdict))
            }
            Phase::Done(_) => None,
        }
    }

    /// How long we wait for the peer to do its part, and what it comes to if it does not.
    fn patience(&self) -> Option<(Instant, Verdict)> {
        match self.unfinished.as_ref().map_or(Awaited::Beginning, |unfinished| unfinished.awaited()) {
            Awaited::Beginning => self.after(self.last_byte, |d| &d.idle, Verdict::IdleDeadline),
            Awaited::RestOfMessage(until) => until.map(|until| (until, Verdict::ReadDeadline)),
            Awaited::Taking(since) => self.after(since, |d| &d.write, Verdict::WriteDeadline),
        }
    }

    fn after(
        &self,
        since: Instant,
        deadline: impl Fn(&Deadlines) -> &Option<Span>,
        verdict: Verdict,
    ) -> Option<(Instant, Verdict)> {
        let span = deadline(&self.rules.deadlines).as_ref()?;
        // A time beyond all times never comes.
        since.checked_add(span.length()).map(|until| (until, verdict))
    }
}

fn earlier(one: Option<(Instant, Verdict)>, other: Option<(Instant, Verdict)>) -> Option<(Instant, Verdict)> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
        (one, other) => one.or(other),
    }
}

// --- Inputs ----------------------------------------------------------------------------------------------------------

impl Session {
    /// A conversation that begins at `now`.
    #[must_use]
    pub fn new(rules: Arc<Rules>, now: Instant) -> Self {
        Self {
            rules,
            framer: Framer::default(),
            phase: Phase::Open,
            input_ended: false,
            opened: now,
            last_byte: now,
            totals: Totals::default(),
            unfinished: None,
        }
    }

    /// `count` bytes came, and lie in `scratch`. Their replies go to `send`, as far as it takes them: it is given bytes
    /// and says how many of them it took. When it takes fewer than it was given, it is not asked again in this call.
    #[inline]
    pub fn receive(&mut self, now: Instant, scratch: &mut Scratch, count: usize, send: impl FnMut(&[u8]) -> usize) {
        match &mut self.phase {
            Phase::Open => {}
            // A peer that we leave did no wrong: what it is owed lies in the kernel, and would go if we closed before it
            // has stopped to send. How long all that may take is limited by who stops us.
            Phase::Lingering(Verdict::Shutdown, until, _) => {
                *until = now + LINGER;
                return;
            }
            Phase::Lingering(verdict, _, room) => {
                *room = room.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
                if *room == 0 {
                    self.phase = Phase::Done(*verdict);
                }
                return;
            }
            Phase::Stopping(..) | Phase::Finishing(_) | Phase::Ending(..) | Phase::Done(_) => return,
        }
        self.totals.bytes_in += count as u64;
        self.last_byte = now;
        let end = Scratch::START + count;
        let at = self.answer(now, &mut scratch.input, Scratch::START..end, &mut scratch.output, send);
        if at < end {
            self.unfinished(now).held = Rest::of(&scratch.input[at..end]);
        }
        self.settle(now);
    }

    /// The peer has ended its stream: no more input will come.
    pub fn end_of_input(&mut self, now: Instant) {
        self.input_ended = true;
        match self.phase {
            Phase::Open => {}
            Phase::Lingering(verdict, ..) => {
                self.phase = Phase::Done(verdict);
                return;
            }
            Phase::Stopping(..) | Phase::Finishing(_) | Phase::Ending(..) | Phase::Done(_) => return,
        }
        let bytes = self.framer.taken();
        if bytes > self.rules.max_message {
            // Bytes that might have begun the delimiter did not.
            return self.end(Verdict::TooLong, now);
        }
        let mut verdict = Verdict::PeerClosed;
        if let Some((content, mut reply)) = self.take_message() {
            match self.rules.unterminated {
                Unterminated::Discard if content == Content::LineEnds => {}
                Unterminated::Discard => {
                    verdict = Verdict::Unterminated { bytes: u32::try_from(bytes).unwrap_or(u32::MAX) };
                }
                Unterminated::Accept => {
                    reply.reserve_exact(self.rules.delimiter.len());
                    reply.extend_from_slice(self.rules.delimiter.as_bytes());
                    self.totals.messages += 1;
                    self.owe(now, Rest::from(reply, 0));
                }
            }
        }
        self.framer = Framer::default();
        self.phase = Phase::Finishing(verdict);
        self.settle(now);
    }

    /// There may be room for output again: sends what is owed, then goes on with the input that is held, until `send`
    /// (see [`Session::receive`]) takes less than it is given, or there were 64 KiB of further replies.
    pub fn resume(&mut self, now: Instant, scratch: &mut Scratch, mut send: impl FnMut(&[u8]) -> usize) {
        let Some(unfinished) = &mut self.unfinished else { return };
        if !unfinished.owed.is_empty() {
            let taken = send(unfinished.owed.as_slice());
            unfinished.taken(now, taken);
            self.count_sent(now, taken);
        }
        if let Some((mut bytes, at)) = self.unfinished.as_mut().and_then(|unfinished| unfinished.take_held()) {
            let end = bytes.len();
            let at = self.answer(now, &mut bytes, at..end, &mut scratch.output, send);
            if at < end {
                self.unfinished(now).held = Rest::from(bytes, at);
            }
        }
        self.settle(now);
    }

    /// Our end of the stream was sent, as [`Want::Shutdown`] asked. If nothing has passed for a while in either direction,
    /// there is nothing on its way that closing could destroy.
    pub fn sent_end(&mut self, now: Instant) {
        if self.wants() != Want::Shutdown {
            return;
        }
        if let Phase::Ending(verdict, _) = self.phase {
            if self.input_ended || now.saturating_duration_since(self.last_byte) >= LINGER {
                self.finish(verdict);
            } else {
                self.phase = Phase::Lingering(verdict, now + LINGER, LINGER_BYTES);
            }
        }
    }

    /// The connection broke: nothing can be sent or received any more.
    pub fn reset(&mut self) {
        self.finish(match self.phase {
            Phase::Open | Phase::Stopping(..) | Phase::Finishing(_) => Verdict::PeerReset,
            Phase::Ending(verdict, _) | Phase::Lingering(verdict, ..) | Phase::Done(verdict) => verdict,
        });
    }

    /// Time has passed: acts on the deadlines that are over.
    pub fn tick(&mut self, now: Instant) {
        let Some((until, verdict)) = self.next_deadline() else { return };
        if until > now {
            return;
        }
        match self.phase {
            Phase::Open | Phase::Finishing(_) if verdict != Verdict::WriteDeadline => self.stop(verdict, now),
            _ => self.finish(verdict),
        }
    }

    /// We want to stop: nothing more is read, what was read is answered, then the stream ends.
    pub fn drain(&mut self, now: Instant) {
        if self.phase == Phase::Open {
            self.stop(Verdict::Shutdown, now);
        }
    }

    /// We cannot serve this peer any further: `verdict` says why. What was read before is answered.
    pub fn refuse(&mut self, verdict: Verdict, now: Instant) {
        self.stop(verdict, now);
    }

    /// There is no memory for what it would have to keep: gives everything back, input that was not looked at among it.
    /// A peer that has not taken the replies it is owed loses them, and with them the words that would have told it why.
    pub fn out_of_memory(&mut self, now: Instant) {
        if self.unfinished.as_ref().is_some_and(|unfinished| !unfinished.owed.is_empty()) {
            self.finish(self.verdict().unwrap_or(Verdict::Busy));
        } else if matches!(self.phase, Phase::Open | Phase::Stopping(..) | Phase::Finishing(_)) {
            self.end(Verdict::Busy, now);
        }
    }
}

// --- In between ------------------------------------------------------------------------------------------------------

impl Session {
    /// Answers the messages in `input[range]`, and returns up to where it came: to the end, or until there were replies
    /// enough for one call. Nothing is owed when it is called. `input` before the range may be overwritten.
    #[inline]
    fn answer(
        &mut self,
        now: Instant,
        input: &mut [u8],
        range: std::ops::Range<usize>,
        output: &mut Output,
        mut send: impl FnMut(&[u8]) -> usize,
    ) -> usize {
        let (mut at, end) = (range.start, range.end);
        output.clear();
        while at < end {
            if output.len() >= ENOUGH {
                // Enough for one call, even if all of it was taken: others want their turn.
                self.send_now(now, output, &mut send);
                return at;
            }
            match self.framer.next(&self.rules.delimiter, self.rules.max_message, &input[at..end]) {
                Frame::Complete(taken) => {
                    self.totals.messages += 1;
                    let from = at;
                    at += taken;
                    if let Some((_, mut reply)) = self.take_message() {
                        reply.reserve_exact(taken);
                        reply.extend_from_slice(&input[from..at]);
                        // It is the first of this input, so output is empty.
                        if reply.len() <= SMALL {
                            output.push(&reply);
                        } else {
                            let taken = send(&reply);
                            self.count_sent(now, taken);
                            if taken < reply.len() {
                                self.owe(now, Rest::from(reply, taken));
                                return at;
                            }
                        }
                    } else if at == end && output.len() == 0 && from >= self.rules.prefix.len() {
                        // Answered where it lies. What is overwritten was answered before.
                        let start = from - self.rules.prefix.len();
                        input[start..from].copy_from_slice(self.rules.prefix.as_bytes());
                        let reply = &input[start..end];
                        let taken = send(reply);
                        self.count_sent(now, taken);
                        if taken < reply.len() {
                            self.owe(now, Rest::of(&reply[taken..]));
                        }
                        return end;
                    } else {
                        output.push_reply(&self.rules.prefix, input, from, at);
                    }
                }
                Frame::Unfinished => {
                    let rules = Arc::clone(&self.rules);
                    self.unfinished(now).keep(now, &rules, &input[at..end]);
                    at = end;
                }
                Frame::TooLong => {
                    self.send_now(now, output, &mut send);
                    self.end(Verdict::TooLong, now);
                    return end;
                }
            }
        }
        self.send_now(now, output, &mut send);
        end
    }

    /// Sends `output` and empties it; what is not taken becomes owed.
    #[inline]
    fn send_now(&mut self, now: Instant, output: &mut Output, send: &mut impl FnMut(&[u8]) -> usize) {
        if output.len() > 0 {
            let taken = send(output.as_bytes());
            self.count_sent(now, taken);
            let rest = &output.as_bytes()[taken..];
            if !rest.is_empty() {
                self.owe(now, Rest::of(rest));
            }
            output.clear();
        }
    }

    /// What is kept, made if nothing is.
    fn unfinished(&mut self, now: Instant) -> &mut Unfinished {
        self.unfinished.get_or_insert_with(|| Box::new(Unfinished::new(now)))
    }

    /// The message in progress, if there is one: what it consists of, and its reply as far as it is known.
    #[inline]
    fn take_message(&mut self) -> Option<(Content, Vec<u8>)> {
        self.unfinished.as_mut()?.take_message()
    }

    /// Something is owed, where nothing was.
    fn owe(&mut self, now: Instant, rest: Rest) {
        self.unfinished(now).owe(now, rest);
    }

    #[inline]
    fn count_sent(&mut self, now: Instant, taken: usize) {
        if taken > 0 {
            self.totals.bytes_out += taken as u64;
            self.last_byte = now;
        }
    }

    /// After every input: what is finished gives its memory back, and may end the phase. The read deadline runs only
    /// while we read.
    #[inline]
    fn settle(&mut self, now: Instant) {
        let reading = !self.is_behind();
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.run_clock(now, reading);
            if unfinished.is_empty() {
                self.unfinished = None;
            }
        }
        match self.phase {
            Phase::Stopping(verdict, _) if reading => self.end(verdict, now),
            Phase::Finishing(verdict) if reading => self.finish(verdict),
            _ => {}
        }
    }

    /// Takes no more input, and ends the conversation as soon as what was read is answered.
    fn stop(&mut self, verdict: Verdict, now: Instant) {
        if matches!(self.phase, Phase::Open | Phase::Finishing(_)) {
            self.take_message();
            self.phase = Phase::Stopping(verdict, self.last_words_until(now));
            self.settle(now);
        }
    }

    /// Ends the conversation from our side: drops input, and adds the last words. They get no more time than what was
    /// given to the replies before them.
    fn end(&mut self, verdict: Verdict, now: Instant) {
        let until = match self.phase {
            Phase::Stopping(Verdict::Shutdown, _) => self.last_words_until(now),
            Phase::Stopping(_, until) => until,
            _ => self.last_words_until(now),
        };
        self.framer = Framer::default();
        let mut owed = self.unfinished.take().map(|unfinished| unfinished.owed).unwrap_or_default();
        if self.rules.error_replies {
            if let Some(words) = verdict.last_words(&self.rules) {
                owed.push(&words);
            }
        }
        if !owed.is_empty() {
            self.owe(now, owed);
        }
        self.phase = Phase::Ending(verdict, until);
    }

    /// Last words are bounded in time as a whole: a peer that takes a byte now and then gains nothing by it.
    fn last_words_until(&self, now: Instant) -> Instant {
        let limit = self.rules.deadlines.write.as_ref().map_or(LAST_WORDS, Span::length);
        now.checked_add(limit).unwrap_or(now + LAST_WORDS)
    }

    /// Ends it for good; nothing is kept.
    fn finish(&mut self, verdict: Verdict) {
        self.framer = Framer::default();
        self.unfinished = None;
        self.phase = Phase::Done(verdict);
    }
}
