//! What is wrong with bytes that should be a snapshot.

use std::fmt;

use super::VERSION;

/// Why some bytes are no snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Written by a version that is not known here.
    Version(u16),
    /// It ends within this part of it.
    Short(&'static str),
    /// So many bytes follow its end.
    Long(usize),
    /// A code that stands for nothing.
    Code {
        /// The part of it.
        what: &'static str,
        /// What stands there.
        code: u8,
    },
    /// More than could have been counted.
    Count {
        /// The part of it.
        what: &'static str,
        /// What stands there.
        count: u64,
    },
    /// Its listener's name is not UTF-8.
    NotText,
    /// Its parts contradict each other.
    Impossible,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "snapshot of unknown version {version} (known: up to {VERSION})"),
            Self::Short(what) => write!(f, "damaged snapshot: it ends within its {what}"),
            Self::Long(count) => write!(f, "damaged snapshot: {count} bytes follow its end"),
            Self::Code { what, code } => write!(f, "damaged snapshot: {code} is no {what}"),
            Self::Count { what, count } => write!(f, "damaged snapshot: {count} is no {what}"),
            Self::Impossible => write!(f, "damaged snapshot: what it keeps does not go with its phase"),
            Self::NotText => write!(f, "damaged snapshot: its listener's name is not UTF-8"),
        }
    }
}

impl std::error::Error for Error {}
