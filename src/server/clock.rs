//! The server's one clock.

use std::time::Instant;

use tokio::time;

/// Returns the time now. Tests of tasks can stop it.
pub(crate) fn clock() -> Instant {
    time::Instant::now().into_std()
}
