//! Which messages of a socket of packets are awaited, lost or answered.
//!
//! ```text
//! number    0 … 6   7         8         9         10        11
//!                   awaited   answered  awaited   awaited   next
//!           lost: 3, 5   base^                              ^end
//! ```
//!
//! Below the base every message is answered, except the lost ones, whose numbers are kept as long as there is room: so a
//! late reply is told apart from one that comes a second time.

use std::collections::VecDeque;
use std::ops::Range;

use super::packet_format::whole_number;

/// Stands for the time of a message that is no longer awaited.
const SETTLED: u64 = u64::MAX;

/// The messages of one socket. Times are in nanoseconds.
#[derive(Debug)]
pub(super) struct Window {
    /// The number of the first message that was sent from the socket.
    first: u64,
    /// The number of the oldest message that is awaited, or of the next one.
    base: u64,
    /// When the messages from there on were sent.
    sent_at: VecDeque<u64>,
    /// The lost messages whose reply may still come, ascending.
    lost: VecDeque<u64>,
    /// How many of them are kept.
    max_lost: usize,
    /// Lost messages below this number are no longer known.
    forgotten_below: u64,
    /// One more than the highest number of which a reply came.
    highest_end: u64,
}

/// The state of the message that a reply belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageState {
    /// It was sent at this time, and no reply has come.
    Awaited { sent_at: u64 },
    /// No reply came in time, nor later.
    Lost,
    /// A reply has come before.
    Answered,
}

impl Window {
    /// Makes a window whose next message is number `first`. It keeps the numbers of `max_lost` lost messages.
    pub(super) fn new(first: u64, max_lost: usize) -> Self {
        Self {
            first,
            base: first,
            sent_at: VecDeque::new(),
            lost: VecDeque::new(),
            max_lost,
            forgotten_below: 0,
            highest_end: 0,
        }
    }

    /// Returns the numbers of all messages that were sent.
    fn numbers(&self) -> Range<u64> {
        self.first..self.base + self.sent_at.len() as u64
    }

    /// Adds the message that was sent now.
    #[inline]
    pub(super) fn push(&mut self, now: u64) {
        self.sent_at.push_back(now);
    }

    /// Returns the number of the oldest message that is awaited.
    pub(super) fn oldest(&self) -> Option<u64> {
        (!self.sent_at.is_empty()).then_some(self.base)
    }

    /// Returns the message of which these bits of its number were sent; `None` if none of them was sent.
    #[inline]
    pub(super) fn find(&self, bits: u64) -> Option<(u64, MessageState)> {
        let number = whole_number(bits, self.numbers())?;
        let state = if number >= self.base {
            match self.sent_at[self.index(number)] {
                SETTLED => MessageState::Answered,
                sent_at => MessageState::Awaited { sent_at },
            }
        } else if number < self.forgotten_below || self.lost.binary_search(&number).is_ok() {
            MessageState::Lost
        } else {
            MessageState::Answered
        };
        Some((number, state))
    }

    /// Returns where the time of a message from the base on is.
    #[inline]
    fn index(&self, number: u64) -> usize {
        usize::try_from(number - self.base).unwrap_or(usize::MAX)
    }

    /// Awaits this message no longer. Further replies to it are duplicates.
    #[inline]
    pub(super) fn settle(&mut self, number: u64) {
        if number < self.base {
            if let Ok(index) = self.lost.binary_search(&number) {
                self.lost.remove(index);
            }
            return;
        }
        let index = self.index(number);
        self.sent_at[index] = SETTLED;
        while self.sent_at.front() == Some(&SETTLED) {
            self.sent_at.pop_front();
            self.base += 1;
        }
    }

    /// Notes that a reply to this message came for the first time. Returns whether it has been overtaken by the reply to a
    /// later one (RFC 4737).
    #[inline]
    pub(super) fn is_reordered(&mut self, number: u64) -> bool {
        if number < self.highest_end {
            return true;
        }
        self.highest_end = number + 1;
        false
    }

    /// Returns whether messages are lost by now: see [`Self::lose_overdue`].
    pub(super) fn is_overdue(&self, now: u64, timeout: u64) -> bool {
        self.sent_at.front().is_some_and(|sent_at| now.saturating_sub(*sent_at) > timeout)
    }

    /// Awaits the messages no longer that were sent more than `timeout` before, and returns how many these are.
    pub(super) fn lose_overdue(&mut self, now: u64, timeout: u64) -> usize {
        let mut count = 0;
        while self.is_overdue(now, timeout) {
            self.lost.push_back(self.base);
            self.settle(self.base);
            count += 1;
        }
        while self.lost.len() > self.max_lost {
            self.forgotten_below = self.lost.pop_front().map_or(self.forgotten_below, |number| number + 1);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a window with messages that were sent at 100, 200, 300 …
    fn window(count: u64) -> Window {
        let mut window = Window::new(0, 100);
        (1..=count).for_each(|number| window.push(number * 100));
        window
    }

    fn states(window: &Window, numbers: Range<u64>) -> String {
        let letter = |number| match window.find(number) {
            None => '-',
            Some((found, state)) => {
                assert_eq!(found, number);
                match state {
                    MessageState::Awaited { sent_at } => {
                        assert_eq!(sent_at, (number + 1) * 100);
                        'w'
                    }
                    MessageState::Lost => 'l',
                    MessageState::Answered => 'a',
                }
            }
        };
        numbers.map(letter).collect()
    }

    #[test]
    fn each_message_is_awaited_until_it_is_answered() {
        let mut window = window(5);
        assert_eq!((states(&window, 0..7), window.oldest()), ("wwwww--".to_owned(), Some(0)));
        for (number, expected, oldest) in
            [(2, "wwaww--", Some(0)), (0, "awaww--", Some(1)), (1, "aaaww--", Some(3)), (4, "aaawa--", Some(3))]
        {
            window.settle(number);
            assert_eq!((states(&window, 0..7), window.oldest()), (expected.to_owned(), oldest));
        }
        window.settle(3);
        assert_eq!((states(&window, 0..7), window.oldest()), ("aaaaa--".to_owned(), None));
        window.push(600);
        assert_eq!((states(&window, 0..7), window.oldest()), ("aaaaaw-".to_owned(), Some(5)));
    }

    #[test]
    fn late_reply_is_told_from_a_second_one() {
        let mut window = window(5);
        window.settle(1);
        assert_eq!((window.is_overdue(350, 250), window.lose_overdue(350, 250)), (false, 0));
        assert_eq!((window.is_overdue(551, 250), window.lose_overdue(551, 250)), (true, 2));
        assert_eq!((states(&window, 0..6), window.oldest()), ("lalww-".to_owned(), Some(3)));
        window.settle(2);
        window.settle(2);
        assert_eq!(states(&window, 0..6), "laaww-");
        window.settle(0);
        assert_eq!(states(&window, 0..6), "aaaww-");
        assert_eq!(window.lose_overdue(u64::MAX - 1, 250), 2);
        assert_eq!((states(&window, 0..6), window.oldest()), ("aaall-".to_owned(), None));
    }

    #[test]
    fn lost_messages_beyond_those_that_are_kept_stay_lost() {
        let mut window = Window { max_lost: 2, ..window(6) };
        window.settle(0);
        window.settle(4);
        assert_eq!(window.lose_overdue(1000, 0), 4);
        // Of the forgotten ones it is unknown whether they were answered.
        assert_eq!(states(&window, 0..7), "lllla".to_owned() + "l-");
        window.settle(3);
        assert_eq!(states(&window, 0..7), "lllaal-");
    }

    #[test]
    fn reply_below_the_highest_number_is_reordered() {
        let mut window = window(9);
        let reordered: Vec<_> =
            [0, 1, 3, 2, 6, 4, 5, 7].into_iter().filter(|number| window.is_reordered(*number)).collect();
        assert_eq!(reordered, [2, 4, 5]);
    }

    #[test]
    fn messages_of_an_earlier_socket_were_not_sent_from_this_one() {
        let mut window = Window::new(3, 10);
        window.push(400);
        assert_eq!(states(&window, 0..6), "---w--");
    }
}
