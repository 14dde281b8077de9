//! Live connections into the manager's fd store and out of it, so that the next process goes on with them. What they go
//! on from is opaque here.
//!
//! The manager takes as long for each descriptor as it has others, with everything else on the machine waiting. So it is
//! given one, however many connections there are: a parcel, which is an end of a socketpair with everything in flight in
//! it (unix(7)). The other end is closed by then.
//!
//! ```text
//! first message    sealed memory with the packing list: of each connection who it is and what it is to go on from
//! further ones     the connections, in the order of the list, up to 253 in each
//! ```
//!
//! A connection and its line of the list find each other by SO_COOKIE (socket(7)), which is the same in every process.

mod list;
mod pack;
mod unpack;

#[cfg(test)]
mod tests;

use std::env;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::notify;
use pack::Measures;

/// What parcels are called in the store.
const NAME: &str = "parcel";

/// What systemd calls in the store what nobody gave a name.
const NAMELESS: &str = "stored";

/// Whether what has this name comes out of the store.
pub(super) fn is_stored(name: &str) -> bool {
    [NAME, NAMELESS].contains(&name)
}

/// A connection.
#[derive(Debug)]
pub struct Item {
    /// The connection itself: a connected stream socket.
    pub socket: OwnedFd,
    /// What it is to go on from.
    pub state: Vec<u8>,
}

/// What became of connections that were to be stored.
#[derive(Debug, Default)]
pub struct Stored {
    /// How many the manager has now.
    pub carried: usize,
    /// The others, as they were.
    pub left: Vec<Item>,
    /// Why there are others, and what to do about it.
    pub problem: Option<String>,
}

/// What was in parcels.
#[derive(Debug, Default)]
pub struct Opened {
    /// The connections, in the order in which they were stored.
    pub items: Vec<Item>,
    /// How long ago they were stored, with the time that the machine slept. Zero for what comes from the future.
    pub age: Duration,
    /// What was not as it should be, each in one line. What it was about is closed.
    pub problems: Vec<String>,
}

/// Whether there is a store: systemd says how much it takes (`$FDSTORE`; before 254, the unit does).
#[must_use]
pub fn is_possible() -> bool {
    notify::is_wanted() && room() > 0
}

/// How many descriptors the store takes.
fn room() -> usize {
    env::var("FDSTORE").ok().and_then(|most| most.parse().ok()).unwrap_or(0)
}

/// Hands connections over to the manager, to be kept for the next process. Returns when it has them, or after 5 s. Those
/// that it does not get come back, so that they can be ended in another way.
///
/// # Errors
/// The manager does not answer. Whether it has the connections is not known; they are not ours any more.
pub fn store(items: Vec<Item>) -> io::Result<Stored> {
    let room = if notify::is_wanted() { room() } else { 0 };
    let stored = pack_all(items, room, &Measures::default(), |parcel| notify::store(NAME, parcel.as_fd()));
    if stored.carried > 0 {
        notify::barrier()?;
    }
    Ok(stored)
}

/// Packs connections into parcels, `most` of them at most, and hands over each.
fn pack_all(
    mut items: Vec<Item>,
    most: usize,
    measures: &Measures,
    mut hand_over: impl FnMut(OwnedFd) -> io::Result<()>,
) -> Stored {
    let time = now();
    let (mut parcels, mut carried, mut fitting) = (0, 0, usize::MAX);
    let mut problem = None;
    while parcels < most && !items.is_empty() && problem.is_none() {
        let packed = pack::pack(&items[..fitting.min(items.len())], time, measures);
        match packed.map(|(parcel, count)| (hand_over(parcel), count)) {
            Ok((Ok(()), count)) => {
                items.drain(..count);
                parcels += 1;
                carried += count;
            }
            // On its way to the manager, the parcel is in flight as well.
            Ok((Err(error), count)) if is_too_many(&error) => match count / 2 {
                0 => problem = Some(pack::TOO_MANY.to_owned()),
                half => fitting = half,
            },
            Ok((Err(error), _)) | Err(error) => problem = Some(error.to_string()),
        }
    }
    if problem.is_none() && !items.is_empty() {
        let full = || format!("the fd store takes {most} descriptors and is full (FileDescriptorStoreMax=)");
        problem = Some(if fitting < usize::MAX { pack::TOO_MANY.to_owned() } else { full() });
    }
    Stored { carried, left: items, problem }
}

fn is_too_many(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error())
}

/// Has the manager forget what it stores. What was handed over to this process stays here; without this, the manager
/// would hand it over again and again. To be called before anything is done with it: if that should end the process, then
/// only once.
///
/// # Errors
/// There is a manager, but it cannot be told.
pub fn forget() -> io::Result<()> {
    notify::forget(NAME)?;
    notify::forget(NAMELESS)
}

/// Opens parcels. What is in them may come from anybody: it takes no more memory than it has already, nothing blocks, and
/// what does not fit together is closed.
#[must_use]
pub fn open(parcels: Vec<OwnedFd>) -> Opened {
    let now = now();
    let mut opened = Opened::default();
    let count = parcels.len();
    for (number, parcel) in (1..).zip(parcels) {
        let unpacked = unpack::unpack(&parcel);
        opened.age = opened.age.max(unpacked.time.map_or(Duration::ZERO, |then| now.saturating_sub(then)));
        opened.items.extend(unpacked.items);
        opened.problems.extend(unpacked.problems.into_iter().map(|one| format!("parcel {number} of {count}: {one}")));
    }
    opened
}

/// The time since the machine was booted, also while it slept. It is the same for all processes.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}
