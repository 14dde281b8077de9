//! The manager's side of the process: what systemd hands over, what it is told, where log lines go. Knows nothing of
//! the other modules.

pub mod activation;
pub mod fdstore;
pub mod journal;
pub mod notify;
