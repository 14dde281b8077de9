//! How much is logged.

use std::fmt;
use std::str::FromStr;

/// How much is logged: what is as urgent as the level, or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something failed that an administrator has to fix.
    Error,
    /// Something is not as it should be; the message says what is done instead.
    Warn,
    /// Events of the daemon, and peers that broke a rule.
    Info,
    /// Every connection.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Returns its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|level| level.as_str() == text);
        found.ok_or_else(|| match Self::ALL.into_iter().find(|level| level.as_str().eq_ignore_ascii_case(text)) {
            Some(level) => format!("write {level}, in lower case"),
            None => "write one of error, warn, info, debug, trace".to_owned(),
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
