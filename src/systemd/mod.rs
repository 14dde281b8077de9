//! The manager's side of the process: what systemd hands over, what it is told, where log lines go. Knows nothing of
//! the other modules.

pub mod inherited;
pub mod journal;
pub mod notify;
pub mod parcel;
