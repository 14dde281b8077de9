//! What systemd is told (sd_notify(3)). Silent where nobody listens: `NOTIFY_SOCKET` is not set then.
//!
//! Each call opens a blocking socket of its own, so it must not be made on a thread that serves.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::slice;

use sd_notify::NotifyState;

/// Everything is being served.
///
/// # Errors
/// There is somebody who wants to know, but cannot be told.
pub fn ready() -> io::Result<()> {
    tell(&NotifyState::Ready)
}

/// The end has begun; nothing new is accepted.
///
/// # Errors
/// There is somebody who wants to know, but cannot be told.
pub fn stopping() -> io::Result<()> {
    tell(&NotifyState::Stopping)
}

fn tell(state: &NotifyState<'_>) -> io::Result<()> {
    match env::var_os("NOTIFY_SOCKET").as_deref().map(|name| name.as_bytes().strip_prefix(b"@")) {
        // sd-notify takes the name of an abstract socket for a path.
        Some(Some(name)) => {
            let address = SocketAddr::from_abstract_name(name)?;
            UnixDatagram::unbound()?.send_to_addr(format!("{state}\n").as_bytes(), &address).map(drop)
        }
        _ => sd_notify::notify(slice::from_ref(state)),
    }
}
