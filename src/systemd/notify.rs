//! What systemd is told (sd_notify(3)). Silent where nobody listens: `NOTIFY_SOCKET` is not set then.
//!
//! Each call opens a blocking socket of its own, so it must not be made on a thread that serves.

use std::io;

use sd_notify::NotifyState;

/// Everything is being served.
///
/// # Errors
/// There is somebody who wants to know, but cannot be told.
pub fn ready() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready])
}

/// The end has begun; nothing new is accepted.
///
/// # Errors
/// There is somebody who wants to know, but cannot be told.
pub fn stopping() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Stopping])
}
