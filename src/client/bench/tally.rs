//! What is counted.

use std::collections::BTreeMap;

use super::latencies::Latencies;

/// Why messages were not answered as they should, or a connection was not made or kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Cause {
    /// A reply is not prefix + message, or nobody had asked for it.
    WrongReply,
    /// The server has said what is wrong.
    ServerError,
    /// A reply did not come within the timeout.
    Late,
    /// The server ended the connection while replies were owed.
    Closed,
    /// The connection was reset while replies were owed.
    Reset,
    /// The connection broke for another reason while replies were owed.
    Broken,
    /// Interrupted before the reply came.
    Unanswered,
    /// Nobody listens there.
    ConnectRefused,
    /// No connection within its timeout.
    ConnectTimeout,
    /// No connection for another reason.
    ConnectFailed,
    /// The connection ended with nothing owed, which is no error.
    EndedIdle,
}

impl Cause {
    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WrongReply => "wrong-reply",
            Self::ServerError => "server-error",
            Self::Late => "late",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Broken => "broken",
            Self::Unanswered => "unanswered",
            Self::ConnectRefused => "connect-refused",
            Self::ConnectTimeout => "connect-timeout",
            Self::ConnectFailed => "connect-failed",
            Self::EndedIdle => "ended-idle",
        }
    }

    /// Whether it is the server's or the network's fault that something went wrong.
    #[must_use]
    pub fn is_error(self) -> bool {
        self != Self::EndedIdle
    }
}

/// What a cause has cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loss {
    /// How often it happened.
    pub times: u64,
    /// How many messages stay unanswered for it.
    pub messages: u64,
    /// What happened, the first time.
    pub example: String,
}

/// What has happened in some time.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Messages that were begun to be sent.
    pub sent: u64,
    /// Messages that were answered as they should.
    pub answered: u64,
    /// Bytes that the system took.
    pub bytes_sent: u64,
    /// Bytes of replies.
    pub bytes_received: u64,
    /// How long the answered ones took.
    pub latencies: Latencies,
    /// What went wrong.
    pub losses: BTreeMap<Cause, Loss>,
}

impl Tally {
    /// Something went wrong, and so many messages stay unanswered. What the example is, is only asked the first time.
    pub(super) fn lose(&mut self, cause: Cause, messages: u64, example: impl FnOnce() -> String) {
        let loss = self.losses.entry(cause).or_default();
        if loss.times == 0 {
            loss.example = example();
        }
        loss.times += 1;
        loss.messages += messages;
    }

    /// What another thread has counted comes along.
    pub(super) fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.latencies.merge(&other.latencies);
        for (cause, theirs) in other.losses {
            let loss = self.losses.entry(cause).or_default();
            if loss.times == 0 {
                loss.example = theirs.example;
            }
            loss.times += theirs.times;
            loss.messages += theirs.messages;
        }
    }

    /// How many things went wrong.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.losses.iter().filter(|(cause, _)| cause.is_error()).map(|(_, loss)| loss.times).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_counted_with_their_first_example() {
        let mut tally = Tally::default();
        tally.lose(Cause::Closed, 3, || "first".to_owned());
        tally.lose(Cause::Closed, 0, || unreachable!("there is one already"));
        tally.lose(Cause::EndedIdle, 0, String::new);
        assert_eq!(tally.errors(), 2);
        let mut other = Tally { answered: 5, ..Tally::default() };
        other.lose(Cause::Closed, 1, || "other".to_owned());
        other.lose(Cause::Late, 1, || "late".to_owned());
        tally.merge(other);
        assert_eq!(tally.losses[&Cause::Closed], Loss { times: 3, messages: 4, example: "first".to_owned() });
        assert_eq!(tally.losses[&Cause::Late], Loss { times: 1, messages: 1, example: "late".to_owned() });
        assert_eq!((tally.errors(), tally.answered), (4, 5));
    }
}
