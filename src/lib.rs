//! echoed: a socket-activated daemon for the delimited echo protocol, at home in systemd.
//!
//! On the wire: a message is any bytes, ended by a delimiter (1 to 16 bytes, by default one TAB). The reply is `server
//! got:`, the message, the delimiter, in the order of the messages, however many come at once. A client may end its
//! stream and still gets every reply. An error that it can act on is reported in a final reply, `server error:` and a
//! sentence. All of it, with deadlines and limits, is in [`protocol`].
//!
//! The modules, from the bottom up. Arrows mean "may use", and none goes up:
//!
//! ```text
//!      bin/echoed ------+              bin/echoctl
//!   |      |       |     v                 |
//!   |      |       |  control, monitor     |
//!   v      v       v     |                 v
//! systemd  config  server <              client
//!          |  ^----'  |                    |
//!          v          v                    |
//!          +-----> protocol <--------------+
//! ```
//!
//! One message, socket to socket: `server/acceptor` → `server/connection` (read) → `protocol/session` →
//! `protocol/framer` → `protocol/reply` → `server/connection` (write).

#[cfg(any(feature = "daemon", feature = "client"))]
#[macro_use]
extern crate nix;

#[cfg(any(feature = "daemon", feature = "client"))]
pub mod address;
#[cfg(feature = "daemon")]
pub mod bind;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(any(feature = "daemon", feature = "client"))]
pub mod escape;
#[cfg(feature = "daemon")]
pub mod monitor;
#[cfg(any(feature = "daemon", feature = "client"))]
mod pass_rights;
pub mod protocol;
#[cfg(any(feature = "daemon", feature = "client"))]
pub mod rlimit;
#[cfg(feature = "daemon")]
pub mod server;
#[cfg(feature = "daemon")]
pub mod systemd;
pub mod units;
