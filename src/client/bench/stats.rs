//! The counters of a load.

use std::collections::BTreeMap;

use super::latencies::LatencyHistogram;

/// Why messages were not answered as they should, or a connection was not made or kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Cause {
    /// A reply is not prefix + message, or no message had asked for it.
    WrongReply,
    /// The server has sent a final reply that says what is wrong.
    ServerError,
    /// A packet got no reply within the timeout.
    Lost,
    /// A reply of a stream did not come within the timeout. Of packets: it came after its message was lost.
    Late,
    /// A packet came as the reply to a message that was answered before.
    Duplicate,
    /// The network reports that no socket receives the datagrams.
    Refused,
    /// The network reports for another reason that datagrams do not arrive.
    Unreachable,
    /// The system did not send a datagram.
    NotSent,
    /// The server ended the connection while replies were owed.
    Closed,
    /// The connection was reset while replies were owed.
    Reset,
    /// The connection broke for another reason while replies were owed.
    Broken,
    /// Interrupted before the reply came.
    Unanswered,
    /// No socket listens at the address.
    ConnectRefused,
    /// No connection within its timeout.
    ConnectTimeout,
    /// No connection for another reason.
    ConnectFailed,
    /// The connection ended with no reply owed, which is not an error.
    EndedIdle,
}

impl Cause {
    /// Returns its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WrongReply => "wrong-reply",
            Self::ServerError => "server-error",
            Self::Lost => "lost",
            Self::Late => "late",
            Self::Duplicate => "duplicate",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::NotSent => "not-sent",
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

    /// Returns whether it is a fault of the server or the network.
    #[must_use]
    pub fn is_error(self) -> bool {
        self != Self::EndedIdle
    }
}

/// The failures with one cause.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failures {
    /// How often it happened.
    pub times: u64,
    /// How many messages stay unanswered for it.
    pub messages: u64,
    /// The first occurrence, in words.
    pub example: String,
}

/// The counters of one period.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Messages that were begun to be sent.
    pub sent: u64,
    /// Messages that were answered as they should.
    pub answered: u64,
    /// First replies to a message that came after the reply to a later one (packets).
    pub reordered: u64,
    /// Bytes that the system took.
    pub bytes_sent: u64,
    /// Bytes of replies.
    pub bytes_received: u64,
    /// The latencies of the answered messages.
    pub latencies: LatencyHistogram,
    /// Failures by their cause.
    pub failures: BTreeMap<Cause, Failures>,
}

impl Stats {
    /// Records a failure that leaves this many messages unanswered. Calls `example` only the first time.
    pub(super) fn record_failure(&mut self, cause: Cause, messages: u64, example: impl FnOnce() -> String) {
        let failures = self.failures.entry(cause).or_default();
        if failures.times == 0 {
            failures.example = example();
        }
        failures.times += 1;
        failures.messages += messages;
    }

    /// Adds the counters of another thread.
    pub(super) fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.reordered += other.reordered;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.latencies.merge(&other.latencies);
        for (cause, theirs) in other.failures {
            let failures = self.failures.entry(cause).or_default();
            if failures.times == 0 {
                failures.example = theirs.example;
            }
            failures.times += theirs.times;
            failures.messages += theirs.messages;
        }
    }

    /// Returns the number of messages that were sent and not answered as they should.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.answered)
    }

    /// Returns how often this has happened.
    #[must_use]
    pub fn times(&self, cause: Cause) -> u64 {
        self.failures.get(&cause).map_or(0, |failures| failures.times)
    }

    /// Returns the number of failures that are errors.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.failures.iter().filter(|(cause, _)| cause.is_error()).map(|(_, failures)| failures.times).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_counted_with_their_first_example() {
        let mut stats = Stats::default();
        stats.record_failure(Cause::Closed, 3, || "first".to_owned());
        stats.record_failure(Cause::Closed, 0, || unreachable!("there is one already"));
        stats.record_failure(Cause::EndedIdle, 0, String::new);
        assert_eq!(stats.errors(), 2);
        let mut other = Stats { answered: 5, ..Stats::default() };
        other.record_failure(Cause::Closed, 1, || "other".to_owned());
        other.record_failure(Cause::Late, 1, || "late".to_owned());
        stats.merge(other);
        assert_eq!(stats.failures[&Cause::Closed], Failures { times: 3, messages: 4, example: "first".to_owned() });
        assert_eq!(stats.failures[&Cause::Late], Failures { times: 1, messages: 1, example: "late".to_owned() });
        assert_eq!((stats.errors(), stats.answered), (4, 5));
    }
}
