//! The PROXY protocol, versions 1 and 2 (haproxy.org, doc/proxy-protocol.txt): a load balancer names the client at the
//! beginning of a connection.
//!
//! A task waits for the header, so that served connections do not pay for it. It first peeks at the bytes in the
//! kernel's buffer. While the header is incomplete, all of them belong to it and are consumed, so the header may be
//! longer than the kernel's buffer. Once the header is complete, no byte after it is consumed: the session starts with
//! the first byte after the header.

mod input_stream;
mod pending;

pub(crate) use pending::PendingHeader;
