//! The errors of invalid snapshots.

use std::fmt;

use super::VERSION;

/// Why bytes are not a valid snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Written by a version that is not known here.
    UnknownVersion(u16),
    /// It ends within this part of it.
    Truncated(&'static str),
    /// So many bytes follow its end.
    TrailingBytes(usize),
    /// A code that stands for nothing.
    UnknownCode {
        /// The part of it.
        field: &'static str,
        /// The value in the snapshot.
        code: u8,
    },
    /// More than could have been counted.
    CountTooLarge {
        /// The part of it.
        field: &'static str,
        /// The value in the snapshot.
        count: u64,
    },
    /// Its listener's name is not UTF-8.
    NotUtf8,
    /// Its parts contradict each other.
    Inconsistent,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVersion(version) => {
                write!(f, "snapshot of unknown version {version} (known: up to {VERSION})")
            }
            Self::Truncated(field) => write!(f, "damaged snapshot: it ends within its {field}"),
            Self::TrailingBytes(count) => write!(f, "damaged snapshot: {count} bytes follow its end"),
            Self::UnknownCode { field, code } => write!(f, "damaged snapshot: invalid {field} {code}"),
            Self::CountTooLarge { field, count } => write!(f, "damaged snapshot: invalid {field} {count}"),
            Self::Inconsistent => write!(f, "damaged snapshot: its content contradicts its kind and phase"),
            Self::NotUtf8 => write!(f, "damaged snapshot: its listener's name is not UTF-8"),
        }
    }
}

impl std::error::Error for Error {}
