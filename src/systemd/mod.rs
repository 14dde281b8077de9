//! The interface to systemd: the sockets that it passes, notifications, the fd store, the journal. Uses no other
//! module.

pub mod activation;
pub mod fdstore;
pub mod journal;
pub mod notify;

mod clock;
mod poll;
mod sealed_memory;
mod send_fds;
