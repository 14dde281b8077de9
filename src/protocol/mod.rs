//! The delimited echo protocol: bytes and time in, bytes and verdicts out.
//!
//! # On the wire
//!
//! A *message* is any sequence of bytes that does not contain the *delimiter*, followed by the delimiter: 1 to 16 bytes, by
//! default one TAB. All other byte values are data. The *reply* is the prefix, the message, the delimiter. An empty message is
//! valid.
//!
//! ```text
//! C: 61 61 61 61 09                                     aaaa<TAB>
//! S: 73 65 72 76 65 72 20 67 6f 74 3a 61 61 61 61 09    server got:aaaa<TAB>
//! ```
//!
//! Replies come in the order of the messages. A client may send any number of messages without waiting, and may end its stream
//! after the last. It still gets every reply, and then the end of the stream. The replies do not depend on how the bytes are
//! split into packets.
//!
//! If the client can act on the reason, a final reply tells it before the connection ends:
//!
//! ```text
//! C: 61 61                                              aa   … and nothing more for 2 s
//! S: 73 65 72 76 65 72 20 65 72 72 6f 72 3a …           server error:message not finished within 2s<TAB>
//! ```
//!
//! # Here
//!
//! This module has no I/O, no clock and no log, and uses only the library memchr. A [`session`] finds the end of a message with
//! its [`framer`] and builds the reply with [`reply`], by the [`rules`] of its listener, until it ends with a [`verdict`].
//! Between two calls, a session can be stored as a [`snapshot`] and restored in another process.

mod buffers;
pub mod delimiter;
pub mod framer;
pub mod packet;
pub(crate) mod peer_wait;
mod relative_time;
pub mod reply;
pub mod rules;
pub mod session;
pub mod snapshot;
pub mod verdict;

#[cfg(test)]
mod tests;

pub use delimiter::Delimiter;
pub use reply::Scratch;
pub use rules::Rules;
pub use session::{Outlet, Session, Want};
pub use snapshot::Snapshot;
pub use verdict::Verdict;
