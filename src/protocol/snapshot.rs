//! Encodes a session as bytes, to be continued in another process.
//!
//! # Notation
//!
//! Numbers are big-endian. A *time* is an `i64`: nanoseconds after the session was stored, negative if before, so the time
//! between storing and restoring counts. `7f ff ff ff ff ff ff ff` is a time that never comes. *Bytes* are their number, a
//! `u64`, and then the bytes. A *verdict* is one byte, its code in the table of [`verdict`](super::verdict); `too-many` and
//! `unterminated` have a number, which follows as a `u32`.
//!
//! ```text
//! 00 01                                         version: u16
//! 00 00 00 00 00 00 00 07                       connection id: u64
//! 00 00 00 00 00 00 00 04 65 63 68 6f           name of the listener, UTF-8: bytes                       "echo"
//! 00                                            kind (below)                                             a stream
//! 00                                            phase (below)                                            open
//! 00                                            whether the peer has ended its stream: 0, 1
//! ff ff ff ff c4 65 36 00                       when the connection was opened: time                     1 s ago
//! ff ff ff ff e2 32 9b 00                       last activity: time                                      0.5 s ago
//! 00 00 00 00 00 00 00 07                       bytes received: u64
//! 00 00 00 00 00 00 00 10                       bytes sent: u64
//! 00 00 00 00 00 00 00 01                       messages answered: u64
//! 01                                            message (below)                                          in progress
//!    00 00 00 00 59 68 2f 00                       read deadline, if the session reads on: time            in 1.5 s
//!    00 00 00 00 00 00 00 02 62 62                 the part that was received: bytes                       "bb"
//! ff ff ff ff e2 32 9b 00                       when the peer last took a byte of the replies, or when a
//!                                               message began to wait for the log: time
//! 00 00 00 00 00 00 00 00                       outbound, replies that the peer has not taken: bytes
//! 00 00 00 00 00 00 00 00                       inbound, input that was not processed: bytes
//! 7f ff ff ff ff ff ff ff                       when the delay after a reply ends: time                  none
//! 00                                            client (below)                                           none
//! ```
//!
//! | kind | | |
//! |---|---|---|
//! | 0 | a stream | |
//! | 1 | packets | *outbound* consists of packets, each as *bytes*; *inbound* is empty, and no message is in progress |
//!
//! | phase | | followed by |
//! |---|---|---|
//! | 0 | open | |
//! | 1 | stopping: no further input is read | verdict, until when: time |
//! | 2 | half-closed: the peer has ended its stream | verdict |
//! | 3 | closing: the final reply is being sent | verdict, until when: time |
//! | 4 | lingering: input is dropped | verdict, until when: time, how many bytes more: `u32` |
//! | 5 | logging: the connection is broken, messages wait for the log | verdict |
//! | 6 | done | verdict |
//!
//! | message | | followed by |
//! |---|---|---|
//! | 0 | none | |
//! | 1 | in progress | time, bytes |
//! | 2 | waits for the log; without its delimiter | bytes |
//!
//! | client | | followed by |
//! |---|---|---|
//! | 0 | none: no PROXY header named one | |
//! | 4 | IPv4 | 4 bytes of address, port: `u16` |
//! | 6 | IPv6 | 16 bytes of address, port: `u16` |
//!
//! There is one version so far. A later daemon must read all versions up to its own, and must write the lowest version that can
//! express the session, so that an older daemon can continue it where possible. A code or a version is never reused.
//!
//! # Safe against any bytes
//!
//! [`Snapshot::decode`] accepts only states that a session can be in, even from hostile bytes, and allocates no more memory
//! than the bytes occupy.

mod bytes;
mod error;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::buffers::{BuffersCheckpoint, MessageCheckpoint};
use super::relative_time::RelativeTime;
use super::rules::Rules;
use super::session::{self, Checkpoint, Phase, Session, Totals};
use super::verdict::Verdict;
use bytes::{Reader, Writer};
pub use error::Error;

/// The latest version. All versions from 1 on can be read.
pub const VERSION: u16 = 1;

/// Encodes a session at the time `now`, with the name of its listener, the id of its connection, and the client that a PROXY
/// header named. There is no reason to store a session that is done ([`super::Want::Close`]).
#[must_use]
pub fn encode(
    session: &Session,
    listener_name: &str,
    connection_id: u64,
    client: Option<SocketAddr>,
    now: Instant,
) -> Vec<u8> {
    let Checkpoint { phase, input_ended, opened, last_activity, totals, buffers } = session.checkpoint(now);
    let mut writer = Writer::default();
    writer.u16(VERSION);
    writer.u64(connection_id);
    writer.bytes(listener_name.as_bytes());
    writer.u8(session.rules().packets.into());
    write_phase(&mut writer, phase);
    writer.u8(input_ended.into());
    writer.time(opened);
    writer.time(last_activity);
    writer.count(totals.bytes_in);
    writer.count(totals.bytes_out);
    writer.count(totals.messages);
    match &buffers.message {
        MessageCheckpoint::None => writer.u8(0),
        MessageCheckpoint::InProgress(until, bytes) => {
            writer.u8(1);
            writer.time(*until);
            writer.bytes(bytes);
        }
        MessageCheckpoint::Unlogged(message) => {
            writer.u8(2);
            writer.bytes(message);
        }
    }
    writer.time(buffers.waiting_since);
    writer.bytes(&buffers.outbound);
    writer.bytes(&buffers.inbound);
    writer.time(buffers.delay_until);
    write_client(&mut writer, client);
    writer.into_bytes()
}

/// A decoded snapshot.
#[derive(Debug)]
pub struct Snapshot {
    listener_name: String,
    connection_id: u64,
    client: Option<SocketAddr>,
    has_packets: bool,
    checkpoint: Checkpoint<'static>,
}

impl Snapshot {
    /// Decodes what [`encode`] wrote, in this version or an older one.
    ///
    /// # Errors
    /// Returns an error if the version is unknown, or if no version writes these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes);
        let version = reader.u16("version")?;
        if !(1..=VERSION).contains(&version) {
            return Err(Error::UnknownVersion(version));
        }
        let connection_id = reader.u64("connection's number")?;
        let listener_name = reader.bytes("listener's name")?.to_vec();
        let listener_name = String::from_utf8(listener_name).map_err(|_| Error::NotUtf8)?;
        let has_packets = read_flag(&mut reader, "kind")?;
        let phase = read_phase(&mut reader)?;
        let input_ended = read_flag(&mut reader, "end of input")?;
        let opened = reader.time("time of its beginning")?;
        let last_activity = reader.time("time of its last byte")?;
        let bytes_in = reader.count("number of bytes received")?;
        let bytes_out = reader.count("number of bytes sent")?;
        let messages = reader.count("number of messages")?;
        let message = match reader.u8("message")? {
            0 => MessageCheckpoint::None,
            1 => {
                let until = reader.time("read deadline")?;
                MessageCheckpoint::InProgress(until, reader.bytes("message in progress")?.to_vec().into())
            }
            2 => MessageCheckpoint::Unlogged(reader.bytes("message for the log")?.to_vec().into()),
            code => return Err(Error::UnknownCode { field: "message", code }),
        };
        let waiting_since = reader.time("time of waiting")?;
        let outbound = reader.bytes("replies")?.to_vec().into();
        let inbound = reader.bytes("input")?.to_vec().into();
        let delay_until = reader.time("end of the delay")?;
        let client = read_client(&mut reader)?;
        reader.expect_end()?;
        let totals = Totals { bytes_in, bytes_out, messages };
        let buffers = BuffersCheckpoint { message, waiting_since, delay_until, outbound, inbound };
        let checkpoint = Checkpoint { phase, input_ended, opened, last_activity, totals, buffers };
        if !is_consistent(&checkpoint) || has_packets && !is_of_packets(&checkpoint) {
            return Err(Error::Inconsistent);
        }
        Ok(Self { listener_name, connection_id, client, has_packets, checkpoint })
    }

    /// Returns the name of the listener.
    #[must_use]
    pub fn listener_name(&self) -> &str {
        &self.listener_name
    }

    /// Returns the id of the connection.
    #[must_use]
    pub fn connection_id(&self) -> u64 {
        self.connection_id
    }

    /// Returns the client that a PROXY header named.
    #[must_use]
    pub fn client(&self) -> Option<SocketAddr> {
        self.client
    }

    /// Returns whether the connection is one of packets.
    #[must_use]
    pub fn has_packets(&self) -> bool {
        self.has_packets
    }

    /// Restores the session under the current rules of its listener; only [`Rules::packets`] is taken from the snapshot.
    /// `stored_at` is when it was stored, on the clock of this process. The next [`Session::handle_timeout`] acts on deadlines
    /// that have passed since then.
    #[must_use]
    pub fn restore(self, rules: Arc<Rules>, stored_at: Instant) -> Session {
        let Self { has_packets: packets, checkpoint, .. } = self;
        let rules = if rules.packets == packets { rules } else { Arc::new(Rules { packets, ..(*rules).clone() }) };
        checkpoint.restore(rules, stored_at)
    }
}

/// Returns whether the buffers are possible in the phase.
fn is_consistent(checkpoint: &Checkpoint<'_>) -> bool {
    let BuffersCheckpoint { message, delay_until, outbound, inbound, .. } = &checkpoint.buffers;
    if *delay_until != RelativeTime::NEVER
        && (checkpoint.phase != Phase::Open || !matches!(message, MessageCheckpoint::None))
    {
        return false;
    }
    if matches!(message, MessageCheckpoint::InProgress(_, bytes) if bytes.is_empty()) {
        return false;
    }
    let no_message = matches!(message, MessageCheckpoint::None);
    match checkpoint.phase {
        Phase::Open | Phase::Stopping(..) | Phase::HalfClosed(_) => true,
        Phase::Closing(..) => no_message && inbound.is_empty(),
        Phase::Lingering(..) | Phase::Done(_) => no_message && outbound.is_empty() && inbound.is_empty(),
        Phase::Logging(_) => {
            outbound.is_empty()
                && (matches!(message, MessageCheckpoint::Unlogged(_)) || no_message && !inbound.is_empty())
        }
    }
}

/// Returns whether the buffers are possible for a connection of packets.
fn is_of_packets(checkpoint: &Checkpoint<'_>) -> bool {
    let BuffersCheckpoint { message, outbound, inbound, .. } = &checkpoint.buffers;
    !matches!(message, MessageCheckpoint::InProgress(..)) && inbound.is_empty() && session::are_packets(outbound)
}

fn read_flag(reader: &mut Reader<'_>, field: &'static str) -> Result<bool, Error> {
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        code => Err(Error::UnknownCode { field, code }),
    }
}

fn write_client(writer: &mut Writer, client: Option<SocketAddr>) {
    let Some(client) = client else { return writer.u8(0) };
    match client.ip() {
        IpAddr::V4(ip) => {
            writer.u8(4);
            writer.array(ip.octets());
        }
        IpAddr::V6(ip) => {
            writer.u8(6);
            writer.array(ip.octets());
        }
    }
    writer.u16(client.port());
}

/// Reads the client; `None` if no PROXY header named one.
fn read_client(reader: &mut Reader<'_>) -> Result<Option<SocketAddr>, Error> {
    let ip = match reader.u8("kind of address")? {
        0 => return Ok(None),
        4 => IpAddr::V4(reader.array::<4>("client's address")?.into()),
        6 => IpAddr::V6(reader.array::<16>("client's address")?.into()),
        code => return Err(Error::UnknownCode { field: "kind of address", code }),
    };
    Ok(Some(SocketAddr::new(ip, reader.u16("client's port")?)))
}

fn write_phase(writer: &mut Writer, phase: Phase<RelativeTime>) {
    match phase {
        Phase::Open => writer.u8(0),
        Phase::Stopping(verdict, until) => {
            writer.u8(1);
            write_verdict(writer, verdict);
            writer.time(until);
        }
        Phase::HalfClosed(verdict) => {
            writer.u8(2);
            write_verdict(writer, verdict);
        }
        Phase::Closing(verdict, until) => {
            writer.u8(3);
            write_verdict(writer, verdict);
            writer.time(until);
        }
        Phase::Lingering(verdict, until, remaining) => {
            writer.u8(4);
            write_verdict(writer, verdict);
            writer.time(until);
            writer.u32(remaining);
        }
        Phase::Logging(verdict) => {
            writer.u8(5);
            write_verdict(writer, verdict);
        }
        Phase::Done(verdict) => {
            writer.u8(6);
            write_verdict(writer, verdict);
        }
    }
}

fn read_phase(reader: &mut Reader<'_>) -> Result<Phase<RelativeTime>, Error> {
    let until = |reader: &mut Reader<'_>| reader.time("end of the phase");
    Ok(match reader.u8("phase")? {
        0 => Phase::Open,
        1 => Phase::Stopping(read_verdict(reader)?, until(reader)?),
        2 => Phase::HalfClosed(read_verdict(reader)?),
        3 => Phase::Closing(read_verdict(reader)?, until(reader)?),
        4 => Phase::Lingering(read_verdict(reader)?, until(reader)?, reader.u32("number of bytes to drop")?),
        5 => Phase::Logging(read_verdict(reader)?),
        6 => Phase::Done(read_verdict(reader)?),
        code => return Err(Error::UnknownCode { field: "phase", code }),
    })
}

fn write_verdict(writer: &mut Writer, verdict: Verdict) {
    writer.u8(verdict.code());
    if let Some(number) = verdict.number() {
        writer.u32(number);
    }
}

fn read_verdict(reader: &mut Reader<'_>) -> Result<Verdict, Error> {
    let code = reader.u8("verdict")?;
    Verdict::from_code(code, |field| reader.u32(field))?.ok_or(Error::UnknownCode { field: "verdict", code })
}
