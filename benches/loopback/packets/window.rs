//! Which messages of a source are on the way.

/// How many messages of a source may be on the way.
pub(crate) const MAX_WINDOW: usize = 64;

/// The messages of one source that are on the way, by their numbers.
#[derive(Default)]
pub(crate) struct Window {
    /// The first number that has no reply.
    first: u32,
    /// The number of the next message.
    next: u32,
    /// Which of those from `first` on have one: bit 0 is that of `first`.
    answered: u64,
    /// Numbers that were given up.
    lost: Vec<u32>,
}

/// The kinds of replies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    /// The first one to its message, which was on the way.
    Due,
    /// The reply to a message that was given up.
    Late,
    /// A further one.
    Twice,
    /// The reply to a message that was not sent.
    Unasked,
}

impl Window {
    /// Returns the number of messages on the way.
    pub(crate) fn outstanding(&self) -> usize {
        (self.next.wrapping_sub(self.first) - self.answered.count_ones()) as usize
    }

    /// Returns how many more messages may be sent now.
    pub(crate) fn room(&self) -> usize {
        MAX_WINDOW - self.next.wrapping_sub(self.first) as usize
    }

    /// Returns the number of the next message.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// Notes that so many messages were sent, [`Self::room`] at most.
    pub(crate) fn note_sent(&mut self, count: usize) {
        debug_assert!(count <= self.room());
        self.next = self.next.wrapping_add(u32::try_from(count).unwrap_or_default());
    }

    /// Notes a reply.
    pub(crate) fn note_reply(&mut self, number: u32) -> Reply {
        let offset = number.wrapping_sub(self.first);
        if offset < self.next.wrapping_sub(self.first) {
            if self.answered & (1 << offset) != 0 {
                return Reply::Twice;
            }
            self.answered |= 1 << offset;
            let done = self.answered.trailing_ones();
            self.answered = self.answered.checked_shr(done).unwrap_or(0);
            self.first = self.first.wrapping_add(done);
            return Reply::Due;
        }
        if let Some(index) = self.lost.iter().position(|&lost| lost == number) {
            self.lost.swap_remove(index);
            return Reply::Late;
        }
        if self.first.wrapping_sub(number) <= u32::MAX / 2 { Reply::Twice } else { Reply::Unasked }
    }

    /// Gives up all messages that are on the way, and returns how many.
    pub(crate) fn give_up(&mut self) -> usize {
        let before = self.lost.len();
        let count = self.next.wrapping_sub(self.first);
        let open = (0..count).filter(|offset| self.answered & (1 << offset) == 0);
        self.lost.extend(open.map(|offset| self.first.wrapping_add(offset)));
        (self.first, self.answered) = (self.next, 0);
        self.lost.len() - before
    }
}
