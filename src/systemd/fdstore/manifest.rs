//! The manifest of a bundle, as bytes. All numbers are unsigned and big-endian, as in the snapshots.
//!
//! ```text
//! 65 63 68 6f 65 64 20 62 75 6e 64 6c 65 0a 1a 00   "echoed bundle", LF, SUB, NUL
//! 00 00 00 01                                       version of all that follows
//! 00 00 00 02                                       number of entries
//! 00 00 00 00 07 5b cd 15                           when it was stored: nanoseconds of CLOCK_BOOTTIME
//!
//! 00 00 00 00 00 00 00 2a                           SO_COOKIE of the first connection
//! 00 00 00 00 00 00 00 03                           length of its snapshot
//! 61 62 63                                          its snapshot
//!                                                   and so on
//! ```
//!
//! An entry with [`STATE_COOKIE`] belongs to no connection: it is the state of the process.

use std::fmt;
use std::io::{self, Read, Write};
use std::time::Duration;

const MAGIC: [u8; 16] = *b"echoed bundle\n\x1a\0";

/// The version that is written. Every change of the format raises it; older versions stay readable.
const VERSION: u32 = 1;

/// The cookie of the state of the process. The kernel gives it to no socket.
pub(super) const STATE_COOKIE: u64 = 0;

/// The bytes before the first entry.
const HEADER_LEN: u64 = 32;

/// The bytes of an entry before its snapshot.
const ENTRY_HEADER_LEN: u64 = 16;

/// The entry of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry<S> {
    /// Its SO_COOKIE.
    pub(super) cookie: u64,
    /// Its snapshot.
    pub(super) snapshot: S,
}

/// A manifest as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    /// When it was packed: since the machine was booted.
    pub(super) stored_at: Duration,
    /// How many entries there should be.
    pub(super) count: u32,
    /// The entries that are whole.
    pub(super) entries: Vec<Entry<Vec<u8>>>,
    /// The problem with the others.
    pub(super) problem: Option<ManifestError>,
}

/// The problem with a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ManifestError {
    /// It is not a manifest of echoed.
    BadMagic,
    /// Written by a later version.
    UnknownVersion(u32),
    /// Shorter than it says.
    Truncated,
    /// Longer than it says, by so many bytes.
    TrailingBytes(u64),
    /// It cannot be read.
    Unreadable(io::ErrorKind),
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadMagic => f.write_str("is not from echoed"),
            Self::UnknownVersion(version) => {
                write!(f, "has version {version}, and this version of echoed knows {VERSION} at most")
            }
            Self::Truncated => f.write_str("is cut off"),
            Self::TrailingBytes(bytes) => write!(f, "has {bytes} bytes after its end"),
            Self::Unreadable(kind) => write!(f, "cannot be read: {kind}"),
        }
    }
}

impl From<io::Error> for ManifestError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            kind => Self::Unreadable(kind),
        }
    }
}

/// Writes a manifest.
///
/// # Errors
/// Returns an error if the manifest cannot be written.
pub(super) fn write<'a>(
    to: &mut impl Write,
    time: Duration,
    entries: impl ExactSizeIterator<Item = Entry<&'a [u8]>>,
) -> io::Result<()> {
    let too_many = |_| io::Error::from(io::ErrorKind::InvalidInput);
    to.write_all(&MAGIC)?;
    to.write_all(&VERSION.to_be_bytes())?;
    to.write_all(&u32::try_from(entries.len()).map_err(too_many)?.to_be_bytes())?;
    to.write_all(&u64::try_from(time.as_nanos()).map_err(too_many)?.to_be_bytes())?;
    for Entry { cookie, snapshot } in entries {
        to.write_all(&cookie.to_be_bytes())?;
        to.write_all(&(snapshot.len() as u64).to_be_bytes())?;
        to.write_all(snapshot)?;
    }
    Ok(())
}

/// Reads a manifest of `length` bytes; takes no more memory than about twice as many. Entries before a damaged one are
/// good.
///
/// # Errors
/// Returns an error if the header cannot be read, or is not that of a known manifest.
pub(super) fn read(from: &mut impl Read, length: u64) -> Result<Manifest, ManifestError> {
    let Some(mut remaining) = length.checked_sub(HEADER_LEN) else { return Err(ManifestError::BadMagic) };
    if read_bytes::<16>(from)? != MAGIC {
        return Err(ManifestError::BadMagic);
    }
    let version = u32::from_be_bytes(read_bytes(from)?);
    if version != VERSION {
        return Err(ManifestError::UnknownVersion(version));
    }
    let count = u32::from_be_bytes(read_bytes(from)?);
    let stored_at = Duration::from_nanos(u64::from_be_bytes(read_bytes(from)?));
    let mut entries = Vec::new();
    let mut problem = None;
    for _ in 0..count {
        match read_entry(from, &mut remaining) {
            Ok(entry) => entries.push(entry),
            Err(error) => {
                problem = Some(error);
                break;
            }
        }
    }
    if problem.is_none() && remaining > 0 {
        problem = Some(ManifestError::TrailingBytes(remaining));
    }
    Ok(Manifest { stored_at, count, entries, problem })
}

/// Reads an entry of a manifest of which `remaining` bytes are left.
fn read_entry(from: &mut impl Read, remaining: &mut u64) -> Result<Entry<Vec<u8>>, ManifestError> {
    *remaining = remaining.checked_sub(ENTRY_HEADER_LEN).ok_or(ManifestError::Truncated)?;
    let cookie = u64::from_be_bytes(read_bytes(from)?);
    let length = u64::from_be_bytes(read_bytes(from)?);
    *remaining = remaining.checked_sub(length).ok_or(ManifestError::Truncated)?;
    let mut snapshot = vec![0; usize::try_from(length).map_err(|_| ManifestError::Truncated)?];
    from.read_exact(&mut snapshot)?;
    Ok(Entry { cookie, snapshot })
}

fn read_bytes<const BYTES: usize>(from: &mut impl Read) -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
