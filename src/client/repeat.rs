//! Messages again and again, each with its number.

use std::sync::Arc;
use std::time::Duration;

use tokio::select;
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::message::Message;
use super::next_message::{InputError, Next};
use crate::protocol::Delimiter;

/// The placeholder of the number in the text of a message.
pub const NUMBER_PLACEHOLDER: &str = "%d";

/// How often, and for how long.
#[derive(Debug, Clone)]
pub struct Repetition {
    /// How many messages in all; `None`: until it is stopped.
    pub count: Option<u64>,
    /// From one message to the next, more than 0; `None`: one after the other.
    pub interval: Option<Duration>,
    /// Notified when no more are wanted. Only effective between two messages that an interval separates.
    pub stop: Arc<Notify>,
}

/// Messages in rotation, with [`NUMBER_PLACEHOLDER`] replaced by the number of the message, from 1 on.
#[derive(Debug)]
pub(super) struct RepeatedMessages {
    templates: Vec<Vec<u8>>,
    delimiter: Option<Delimiter>,
    repetition: Repetition,
    /// The number of the last message.
    number: u64,
    ticker: Option<Interval>,
    /// Whether the time of the next has come.
    due: bool,
    stopped: bool,
}

impl RepeatedMessages {
    /// Creates the messages from their templates. Checks the first of each.
    pub(super) fn new(
        templates: Vec<Vec<u8>>,
        delimiter: Option<&Delimiter>,
        repetition: Repetition,
    ) -> Result<Self, InputError> {
        let stopped = templates.is_empty();
        let repeated =
            Self { templates, delimiter: delimiter.cloned(), repetition, number: 0, ticker: None, due: true, stopped };
        (1..).zip(&repeated.templates).try_for_each(|(number, _)| repeated.message(number).map(|_| ()))?;
        Ok(repeated)
    }

    fn message(&self, number: u64) -> Result<Message, InputError> {
        let index = usize::try_from((number - 1) % self.templates.len() as u64).unwrap_or_default();
        let text = expand_number(&self.templates[index], number);
        Message::new(text, self.delimiter.as_ref()).map_err(|error| InputError::Argument { number, error })
    }

    /// Returns the next message, if its time has come.
    pub(super) fn next(&mut self) -> Result<Next, InputError> {
        if self.stopped || self.repetition.count.is_some_and(|count| self.number >= count) {
            return Ok(Next::End);
        }
        if !self.due {
            return Ok(Next::Pending);
        }
        self.due = self.repetition.interval.is_none();
        self.number += 1;
        let message = self.message(self.number);
        if let (None, Some(interval)) = (&self.ticker, self.repetition.interval) {
            let mut ticker = interval_at(Instant::now() + interval, interval);
            // At a fixed interval: missed messages are skipped, and those after them keep their times.
            ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
            self.ticker = Some(ticker);
        }
        message.map(Next::Message)
    }

    /// Waits until the next message is due, or no further one is wanted.
    pub(super) async fn wait(&mut self) {
        let Some(ticker) = &mut self.ticker else { return };
        select! {
            _ = ticker.tick() => self.due = true,
            () = self.repetition.stop.notified() => self.stopped = true,
        }
    }
}

/// Replaces each [`NUMBER_PLACEHOLDER`] by the number, and `%%` by a percent sign. Any other percent sign stays as it is.
fn expand_number(text: &[u8], number: u64) -> Vec<u8> {
    let number = number.to_string();
    let mut rest = text;
    let mut message = Vec::with_capacity(text.len() + number.len());
    while let Some(index) = memchr::memchr(b'%', rest) {
        message.extend_from_slice(&rest[..index]);
        let (replacement, len) = match rest.get(index + 1) {
            Some(b'd') => (number.as_bytes(), NUMBER_PLACEHOLDER.len()),
            Some(b'%') => (&b"%"[..], 2),
            _ => (&b"%"[..], 1),
        };
        message.extend_from_slice(replacement);
        rest = &rest[index + len..];
    }
    message.extend_from_slice(rest);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::message::MessageError;

    fn repeated(templates: &[&str], count: Option<u64>, interval: Option<Duration>) -> (RepeatedMessages, Arc<Notify>) {
        let stop = Arc::new(Notify::new());
        let repetition = Repetition { count, interval, stop: Arc::clone(&stop) };
        let templates = templates.iter().map(|text| text.as_bytes().to_vec()).collect();
        (RepeatedMessages::new(templates, Some(&Delimiter::default()), repetition).expect("they can be sent"), stop)
    }

    /// Returns the next message, and when it came.
    async fn next(repeated: &mut RepeatedMessages) -> Option<String> {
        loop {
            match repeated.next().expect("it can be sent") {
                Next::Message(message) => return Some(String::from_utf8_lossy(message.as_bytes()).into_owned()),
                Next::Pending => repeated.wait().await,
                Next::End => return None,
            }
        }
    }

    #[tokio::test]
    async fn messages_alternate_and_contain_their_number() {
        let (mut repeated, _stop) = repeated(&["%d Hello, server!", "100% %d%d", "x"], Some(4), None);
        for expected in ["1 Hello, server!", "100% 22", "x", "4 Hello, server!"] {
            assert_eq!(next(&mut repeated).await.as_deref(), Some(expected));
        }
        assert_eq!(next(&mut repeated).await, None);
    }

    #[test]
    fn two_percent_signs_are_one_and_no_placeholder() {
        for (text, expected) in
            [("%%d", "%d"), ("%%%d", "%7"), ("%d%%", "7%"), ("%", "%"), ("%x%", "%x%"), ("%%%", "%%"), ("", "")]
        {
            assert_eq!(String::from_utf8_lossy(&expand_number(text.as_bytes(), 7)), expected, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn messages_keep_the_interval_and_missed_ones_are_skipped() {
        let start = Instant::now();
        let (mut repeated, _stop) = repeated(&["%d"], None, Some(Duration::from_secs(2)));
        let mut times = Vec::new();
        for number in 1..=5 {
            assert_eq!(next(&mut repeated).await, Some(number.to_string()));
            times.push(start.elapsed().as_secs());
            if number == 2 {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
        // That of 4 s came at once, late, and then those after it at their time.
        assert_eq!(times, [0, 2, 7, 8, 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_messages_follow_a_stop() {
        let (mut repeated, stop) = repeated(&["x"], None, Some(Duration::from_secs(2)));
        assert!(next(&mut repeated).await.is_some());
        stop.notify_one();
        let start = Instant::now();
        assert_eq!((next(&mut repeated).await, start.elapsed()), (None, Duration::ZERO));
    }

    #[tokio::test]
    async fn a_number_that_is_the_delimiter_cannot_be_sent() {
        let delimiter = Delimiter::from_escaped("10").expect("it is one");
        let repetition = Repetition { count: None, interval: None, stop: Arc::default() };
        let mut repeated =
            RepeatedMessages::new(vec![b"x%dx".to_vec()], Some(&delimiter), repetition).expect("1 is fine");
        for _ in 1..10 {
            assert!(repeated.next().is_ok());
        }
        let error = repeated.next().expect_err("10 is not");
        let wrong = MessageError::Delimiter(delimiter);
        assert!(matches!(error, InputError::Argument { number: 10, error } if error == wrong));
    }
}
