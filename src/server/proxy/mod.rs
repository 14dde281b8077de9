//! The PROXY protocol, versions 1 and 2 (haproxy.org, doc/proxy-protocol.txt): the header by which a load balancer tells the
//! address of the client.
//!
//! A connection that has to begin with a header waits for it in a task of the services, so other connections pay nothing for
//! it. The task first peeks at the input. An incomplete header is consumed, so the kernel's buffer may be smaller than the
//! header. Of the last part, only the bytes of the header are consumed: the bytes behind it are the connection's first input,
//! as if there had been no header.

mod input_stream;
mod pending;

pub(crate) use pending::PendingHeader;
