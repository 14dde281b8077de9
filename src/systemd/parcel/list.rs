//! The packing list of a parcel, as bytes. All numbers are unsigned and in little endian.
//!
//! ```text
//! 65 63 68 6f 65 64 20 70 61 72 63 65 6c 0a 1a 00   "echoed parcel", LF, SUB, NUL
//! 01 00 00 00                                       the version of all that follows
//! 02 00 00 00                                       how many connections there are
//! 15 cd 5b 07 00 00 00 00                           when it was packed: nanoseconds of CLOCK_BOOTTIME
//!
//! 2a 00 00 00 00 00 00 00                           SO_COOKIE of the first
//! 03 00 00 00 00 00 00 00                           the length of its state
//! 61 62 63                                          its state
//!                                                   and so on
//! ```

use std::fmt;
use std::io::{self, Read, Write};
use std::time::Duration;

const MAGIC: [u8; 16] = *b"echoed parcel\n\x1a\0";

/// The version that is written. Who changes what is written raises it, and goes on reading the older ones.
const VERSION: u32 = 1;

/// The bytes before the first line.
const HEAD: u64 = 32;

/// The bytes of a line before its state.
const LINE: u64 = 16;

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line<S> {
    /// Its SO_COOKIE.
    pub(super) cookie: u64,
    /// What it is to go on from.
    pub(super) state: S,
}

/// A list as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    /// When it was packed: since the machine was booted.
    pub(super) time: Duration,
    /// How many connections there should be.
    pub(super) count: u32,
    /// Those that are whole.
    pub(super) lines: Vec<Line<Vec<u8>>>,
    /// What is wrong with the others.
    pub(super) problem: Option<Problem>,
}

/// What is wrong with a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Something else.
    Foreign,
    /// Written by a later version.
    Version(u32),
    /// Shorter than it says.
    Cut,
    /// Longer than it says, by so many bytes.
    Longer(u64),
    /// It cannot be read.
    Unreadable(io::ErrorKind),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => f.write_str("is not one of echoed"),
            Self::Version(version) => {
                write!(f, "has version {version}, and this version of echoed knows {VERSION} at most")
            }
            Self::Cut => f.write_str("is cut off"),
            Self::Longer(bytes) => write!(f, "has {bytes} bytes after its end"),
            Self::Unreadable(kind) => write!(f, "cannot be read: {kind}"),
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Cut,
            kind => Self::Unreadable(kind),
        }
    }
}

/// Writes a list.
///
/// # Errors
/// It cannot be written.
pub(super) fn write<'a>(
    to: &mut impl Write,
    time: Duration,
    lines: impl ExactSizeIterator<Item = Line<&'a [u8]>>,
) -> io::Result<()> {
    let too_many = |_| io::Error::from(io::ErrorKind::InvalidInput);
    to.write_all(&MAGIC)?;
    to.write_all(&VERSION.to_le_bytes())?;
    to.write_all(&u32::try_from(lines.len()).map_err(too_many)?.to_le_bytes())?;
    to.write_all(&u64::try_from(time.as_nanos()).map_err(too_many)?.to_le_bytes())?;
    for Line { cookie, state } in lines {
        to.write_all(&cookie.to_le_bytes())?;
        to.write_all(&(state.len() as u64).to_le_bytes())?;
        to.write_all(state)?;
    }
    Ok(())
}

/// Reads a list of so many bytes; takes no more memory than about twice as many. Lines before something wrong are good.
///
/// # Errors
/// There are no good lines.
pub(super) fn read(from: &mut impl Read, length: u64) -> Result<List, Problem> {
    let Some(mut left) = length.checked_sub(HEAD) else { return Err(Problem::Foreign) };
    if number::<16>(from)? != MAGIC {
        return Err(Problem::Foreign);
    }
    let version = u32::from_le_bytes(number(from)?);
    if version != VERSION {
        return Err(Problem::Version(version));
    }
    let count = u32::from_le_bytes(number(from)?);
    let time = Duration::from_nanos(u64::from_le_bytes(number(from)?));
    let mut lines = Vec::new();
    let mut problem = None;
    for _ in 0..count {
        match line(from, &mut left) {
            Ok(line) => lines.push(line),
            Err(wrong) => {
                problem = Some(wrong);
                break;
            }
        }
    }
    if problem.is_none() && left > 0 {
        problem = Some(Problem::Longer(left));
    }
    Ok(List { time, count, lines, problem })
}

/// A line of a list of which so many bytes are left.
fn line(from: &mut impl Read, left: &mut u64) -> Result<Line<Vec<u8>>, Problem> {
    *left = left.checked_sub(LINE).ok_or(Problem::Cut)?;
    let cookie = u64::from_le_bytes(number(from)?);
    let length = u64::from_le_bytes(number(from)?);
    *left = left.checked_sub(length).ok_or(Problem::Cut)?;
    let mut state = vec![0; usize::try_from(length).map_err(|_| Problem::Cut)?];
    from.read_exact(&mut state)?;
    Ok(Line { cookie, state })
}

fn number<const BYTES: usize>(from: &mut impl Read) -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
