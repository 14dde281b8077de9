//! The errors of invalid snapshots.

use std::fmt;

use super::VERSION;

/// The reason why bytes are not a valid snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The snapshot has an unknown version.
    UnknownVersion(u16),
    /// It ends within this field.
    Truncated(&'static str),
    /// This number of bytes follows its end.
    TrailingBytes(usize),
    /// A field has an unknown code.
    UnknownCode {
        /// The field.
        field: &'static str,
        /// The value in the snapshot.
        code: u8,
    },
    /// A count exceeds its maximum.
    CountTooLarge {
        /// The field.
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
