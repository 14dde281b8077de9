//! What the connections of a listener are for.

/// What the connections of a listener are for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Messages and replies.
    #[default]
    Messages,
    /// HTTP: metrics, health, status.
    Monitor,
    /// The agent-check of HAProxy.
    Agent,
    /// Varlink: connections are listed and closed.
    Control,
}

/// What the agent answers while the daemon is ready.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Always 100 percent.
    #[default]
    Constant,
    /// How many of the places for connections are free, in percent.
    Free,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Messages, Self::Monitor, Self::Agent, Self::Control];

    /// Returns its word in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Monitor => "monitor",
            Self::Agent => "agent",
            Self::Control => "control",
        }
    }

    /// Returns how many connections there may be at once to all listeners with this role, besides those of messages.
    #[must_use]
    pub fn permits(self) -> usize {
        match self {
            Self::Messages => 0,
            Self::Monitor => 64,
            Self::Agent | Self::Control => 16,
        }
    }

    /// Returns whether listeners with this role use a key of `[listener.NAME]`.
    pub(super) fn uses(self, key: &str) -> bool {
        match key {
            "listen" | "role" => true,
            "weight" => self == Self::Agent,
            _ => self == Self::Messages,
        }
    }
}

impl Weight {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Constant, Self::Free];

    /// Returns its word in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Free => "free",
        }
    }
}
