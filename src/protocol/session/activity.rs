//! What a session is doing, in a word, for lists of connections.

use super::{Awaited, Phase, Session, Want};

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It waits for a message to begin.
    Idle,
    /// A message is in progress.
    Receiving,
    /// Its peer has to take replies.
    Sending,
    /// The lossless log has to take a message.
    Logging,
    /// A reply waits for the end of `reply_delay`.
    Delaying,
    /// It is ending.
    Closing,
}

impl Activity {
    /// Returns its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Receiving => "receiving",
            Self::Sending => "sending",
            Self::Logging => "logging",
            Self::Delaying => "delaying",
            Self::Closing => "closing",
        }
    }
}

impl Session {
    /// Returns what it is doing.
    #[must_use]
    pub fn activity(&self) -> Activity {
        match self.wants() {
            Want::Write => Activity::Sending,
            Want::Log => Activity::Logging,
            Want::Delay => Activity::Delaying,
            Want::Read if self.phase == Phase::Open && self.awaited() == Awaited::MessageStart => Activity::Idle,
            Want::Read if self.phase == Phase::Open => Activity::Receiving,
            Want::Read | Want::Shutdown | Want::Close => Activity::Closing,
        }
    }
}
