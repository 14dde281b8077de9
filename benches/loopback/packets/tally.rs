//! The outcomes of messages.

use std::ops::AddAssign;

/// The outcomes of the messages of a load.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Messages that got the right reply in time.
    pub(crate) answered: u64,
    /// Messages without a reply for a second, after which their source sent the next one.
    pub(crate) lost: u64,
    /// Lost messages that got a reply later.
    pub(crate) late: u64,
    /// Further replies to answered messages.
    pub(crate) twice: u64,
    /// Replies that no message was owed.
    pub(crate) wrong: u64,
}

impl Tally {
    /// Returns whether every message got the right reply.
    pub(crate) fn is_clean(&self) -> bool {
        [self.lost, self.late, self.twice, self.wrong] == [0; 4]
    }

    /// Returns the cells of a table.
    pub(crate) fn cells(&self) -> impl Iterator<Item = String> + use<> {
        [self.answered, self.lost, self.late, self.twice, self.wrong].into_iter().map(|number| number.to_string())
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.answered += other.answered;
        self.lost += other.lost;
        self.late += other.late;
        self.twice += other.twice;
        self.wrong += other.wrong;
    }
}
