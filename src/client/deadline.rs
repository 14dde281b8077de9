//! Waits for a deadline, if there is one.

use std::future::pending;

use tokio::time::{Instant, sleep_until};

/// Waits until the deadline passes: forever if there is none.
pub(super) async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
