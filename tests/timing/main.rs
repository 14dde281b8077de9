//! Tests that measure time, and one that takes all processors: they run one after another, and no other program of tests runs
//! beside them. What they demand is what is demanded even of a slow machine.

/// When connections are closed, and how long the daemon takes to end.
mod deadlines;
/// A client that floods, and one beside it.
mod flood;
/// A journal that hangs: no client notices in its round trips.
mod journal_stuck;
/// A thousand connections at once.
mod load;
/// `make STATIC=1`: no time is measured, but it compiles for a minute.
mod static_build;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits until no other test runs. None does until what this returns is dropped.
///
/// Each test here begins with it: so they run alone whatever number of threads cargo or a package gives them.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed had its turn.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
