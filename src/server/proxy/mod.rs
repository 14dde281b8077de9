//! The PROXY protocol (haproxy.org, doc/proxy-protocol.txt), versions 1 and 2: what a load balancer says of the client
//! before anything else.
//!
//! A connection whose listener demands the header waits for it apart from those that are served, and costs them
//! nothing. What comes is looked at in the kernel's buffer first. While the header is incomplete, all of it belongs to
//! the header and is consumed, so the kernel's buffer may be smaller than the header. Once it is complete, not a byte
//! more is consumed: so what lies behind it is the connection's first input, as if there had been no header.

mod input_stream;
mod pending;

pub(crate) use pending::PendingHeader;
