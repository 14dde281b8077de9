//! The two command lines.

#[cfg(feature = "client")]
pub mod echoctl;
#[cfg(feature = "daemon")]
pub mod echoed;
