//! The clock of threads that have no runtime.

use std::time::Instant;

/// Returns the time now.
#[expect(clippy::disallowed_methods, reason = "these threads have no runtime, so no clock that a test can stop")]
pub(super) fn now() -> Instant {
    Instant::now()
}
