//! The clock of the server.

use std::time::Instant;

use tokio::time;

/// Returns the current time. Tests can pause this clock.
pub(crate) fn clock() -> Instant {
    time::Instant::now().into_std()
}
