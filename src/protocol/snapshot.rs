//! A session as bytes, to go on in another process.
//!
//! # Notation
//!
//! Numbers are big-endian. A *time* is an `i64`: nanoseconds after the freeze, before it where negative; so what passes
//! until the thaw counts. *Bytes* are a `u64`, which says how many, and they. A *verdict* is one byte; two of them have a
//! number, which follows as a `u32`.
//!
//! ```text
//! 00 01                                         version: u16
//! 00 00 00 00 00 00 00 07                       the connection's number: u64
//! 00 00 00 00 00 00 00 04 65 63 68 6f           its listener's name, UTF-8: bytes                        "echo"
//! 00                                            phase (below)                                            open
//! 00                                            whether the peer has ended its stream: 0, 1
//! ff ff ff ff c4 65 36 00                       when it began: time                                      1 s ago
//! ff ff ff ff e2 32 9b 00                       when the last byte passed: time                          0.5 s ago
//! 00 00 00 00 00 00 00 07                       bytes received: u64
//! 00 00 00 00 00 00 00 10                       bytes sent: u64
//! 00 00 00 00 00 00 00 01                       messages answered: u64
//! 01                                            message (below)                                          in progress
//!    00 00 00 00 59 68 2f 00                       its read deadline, if we read on: time                in 1.5 s
//!    00 00 00 00 00 00 00 02 62 62                 what came of it: bytes                                "bb"
//! ff ff ff ff e2 32 9b 00                       when the peer last took of what it was owed, or since when a
//!                                               message waits for the log: time
//! 00 00 00 00 00 00 00 00                       owed, replies that were not taken: bytes
//! 00 00 00 00 00 00 00 00                       held, input that was not looked at: bytes
//! ```
//!
//! Where a PROXY header has told a client, this follows, and the version is 2:
//!
//! ```text
//! 04 c0 00 02 01                                4 or 6, and its address                                  192.0.2.1
//! 9c bb                                         its port: u16                                            40123
//! ```
//!
//! Where there is a pause after a reply, this follows in the place of that, and the version is 3:
//!
//! ```text
//! 00 00 00 00 59 68 2f 00                       when it ends: time                                       in 1.5 s
//! 00                                            0, or a client as in version 2                           none
//! ```
//!
//! | phase | | followed by |
//! |---|---|---|
//! | 0 | open | |
//! | 1 | stopping: no input is taken any more | verdict, until when: time |
//! | 2 | finishing: the peer has ended its stream | verdict |
//! | 3 | ending: the last words are on their way | verdict, until when: time |
//! | 4 | lingering: input is dropped | verdict, until when: time, how many bytes more: `u32` |
//! | 5 | logging: the connection is broken, messages wait for the log | verdict |
//! | 6 | done | verdict |
//!
//! | message | | followed by |
//! |---|---|---|
//! | 0 | none | |
//! | 1 | in progress | time (`7f ff ff ff ff ff ff ff`: never), bytes |
//! | 2 | waits for the log; without its delimiter | bytes |
//!
//! | verdict | | verdict | | verdict | |
//! |---|---|---|---|---|---|
//! | 1 | too-long | 5 | too-many, `u32` | 9 | peer-reset |
//! | 2 | read-deadline | 6 | busy | 10 | unterminated, `u32` |
//! | 3 | idle-deadline | 7 | write-deadline | 11 | shutdown |
//! | 4 | lifetime | 8 | peer-closed | 12 | carried |
//! | | | | | 13 | bad-proxy-header |
//!
//! Codes and versions are never used again for something else. Version 1 is the first, and still written where there is no more
//! to say than what it can: so an older daemon can go on with it.
//!
//! # Safe against any bytes
//!
//! What [`Snapshot::read`] accepts is something a session can be in, whoever wrote it, and takes no more memory than the
//! bytes it was read from.

mod bytes;
mod error;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::moment::Moment;
use super::rules::Rules;
use super::session::{Phase, Session, State, Totals};
use super::unfinished::{Begun, Kept};
use super::verdict::Verdict;
use bytes::{Reader, Writer};
pub use error::Error;

/// The latest version. Those from 1 on are read.
pub const VERSION: u16 = 3;

/// A session as bytes: everything of it between two calls, at `now`, with the name of its listener, the number of its
/// connection, and the client that a PROXY header told. One that is over ([`super::Want::Close`]) is so afterwards, too;
/// there is no reason to put it away.
#[must_use]
pub fn freeze(session: &Session, listener: &str, connection: u64, client: Option<SocketAddr>, now: Instant) -> Vec<u8> {
    let State { phase, input_ended, opened, last_byte, totals, kept } = session.freeze(now);
    let mut to = Writer::default();
    let pauses = kept.pause != Moment::NEVER;
    to.u16(match client {
        _ if pauses => 3,
        Some(_) => 2,
        None => 1,
    });
    to.u64(connection);
    to.bytes(listener.as_bytes());
    write_phase(&mut to, phase);
    to.u8(input_ended.into());
    to.moment(opened);
    to.moment(last_byte);
    to.count(totals.bytes_in);
    to.count(totals.bytes_out);
    to.count(totals.messages);
    match &kept.message {
        Begun::Nothing => to.u8(0),
        Begun::InProgress(until, bytes) => {
            to.u8(1);
            to.moment(*until);
            to.bytes(bytes);
        }
        Begun::Unlogged(message) => {
            to.u8(2);
            to.bytes(message);
        }
    }
    to.moment(kept.waits_since);
    to.bytes(&kept.owed);
    to.bytes(&kept.held);
    if pauses {
        to.moment(kept.pause);
    }
    match client {
        Some(client) => write_client(&mut to, client),
        None if pauses => to.u8(0),
        None => {}
    }
    to.into_bytes()
}

/// A session that was put away.
#[derive(Debug)]
pub struct Snapshot {
    listener: String,
    connection: u64,
    client: Option<SocketAddr>,
    state: State<'static>,
}

impl Snapshot {
    /// What [`freeze`] wrote, here or in an older version.
    ///
    /// # Errors
    /// A version that is not known, or bytes that no version has written.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        let mut from = Reader::new(bytes);
        let version = from.u16("version")?;
        if !(1..=VERSION).contains(&version) {
            return Err(Error::Version(version));
        }
        let connection = from.u64("connection's number")?;
        let listener = from.bytes("listener's name")?.to_vec();
        let listener = String::from_utf8(listener).map_err(|_| Error::NotText)?;
        let phase = read_phase(&mut from)?;
        let input_ended = match from.u8("end of input")? {
            0 => false,
            1 => true,
            code => return Err(Error::Code { what: "end of input", code }),
        };
        let opened = from.moment("time of its beginning")?;
        let last_byte = from.moment("time of its last byte")?;
        let bytes_in = from.count("number of bytes received")?;
        let bytes_out = from.count("number of bytes sent")?;
        let messages = from.count("number of messages")?;
        let message = match from.u8("message")? {
            0 => Begun::Nothing,
            1 => {
                let until = from.moment("read deadline")?;
                Begun::InProgress(until, from.bytes("message in progress")?.to_vec().into())
            }
            2 => Begun::Unlogged(from.bytes("message for the log")?.to_vec().into()),
            code => return Err(Error::Code { what: "message", code }),
        };
        let waits_since = from.moment("time of waiting")?;
        let owed = from.bytes("replies")?.to_vec().into();
        let held = from.bytes("input")?.to_vec().into();
        let pause = if version < 3 { Moment::NEVER } else { from.moment("pause")? };
        let client = if version == 1 { None } else { read_client(&mut from)? };
        if version == 2 && client.is_none() {
            return Err(Error::Code { what: "kind of address", code: 0 });
        }
        from.end()?;
        let totals = Totals { bytes_in, bytes_out, messages };
        let kept = Kept { message, waits_since, pause, owed, held };
        let state = State { phase, input_ended, opened, last_byte, totals, kept };
        if !is_possible(&state) {
            return Err(Error::Impossible);
        }
        Ok(Self { listener, connection, client, state })
    }

    /// The name of its listener.
    #[must_use]
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// The number of its connection.
    #[must_use]
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// The client that a PROXY header told.
    #[must_use]
    pub fn client(&self) -> Option<SocketAddr> {
        self.client
    }

    /// The session, which goes on under the rules that now hold for its listener. `frozen_at` is when it was put away, on
    /// the clock of this process. Deadlines that passed meanwhile are acted upon by the next [`Session::tick`].
    #[must_use]
    pub fn thaw(self, rules: Arc<Rules>, frozen_at: Instant) -> Session {
        self.state.thaw(rules, frozen_at)
    }
}

/// Whether what is kept goes with the phase.
fn is_possible(state: &State<'_>) -> bool {
    let Kept { message, pause, owed, held, .. } = &state.kept;
    if *pause != Moment::NEVER && (state.phase != Phase::Open || !matches!(message, Begun::Nothing)) {
        return false;
    }
    if matches!(message, Begun::InProgress(_, bytes) if bytes.is_empty()) {
        return false;
    }
    let no_message = matches!(message, Begun::Nothing);
    match state.phase {
        Phase::Open | Phase::Stopping(..) | Phase::Finishing(_) => true,
        Phase::Ending(..) => no_message && held.is_empty(),
        Phase::Lingering(..) | Phase::Done(_) => no_message && owed.is_empty() && held.is_empty(),
        Phase::Logging(_) => {
            owed.is_empty() && (matches!(message, Begun::Unlogged(_)) || no_message && !held.is_empty())
        }
    }
}

fn write_client(to: &mut Writer, client: SocketAddr) {
    match client.ip() {
        IpAddr::V4(ip) => {
            to.u8(4);
            to.array(ip.octets());
        }
        IpAddr::V6(ip) => {
            to.u8(6);
            to.array(ip.octets());
        }
    }
    to.u16(client.port());
}

/// `None` for one that is not there.
fn read_client(from: &mut Reader<'_>) -> Result<Option<SocketAddr>, Error> {
    let ip = match from.u8("kind of address")? {
        0 => return Ok(None),
        4 => IpAddr::V4(from.array::<4>("client's address")?.into()),
        6 => IpAddr::V6(from.array::<16>("client's address")?.into()),
        code => return Err(Error::Code { what: "kind of address", code }),
    };
    Ok(Some(SocketAddr::new(ip, from.u16("client's port")?)))
}

fn write_phase(to: &mut Writer, phase: Phase<Moment>) {
    match phase {
        Phase::Open => to.u8(0),
        Phase::Stopping(verdict, until) => {
            to.u8(1);
            write_verdict(to, verdict);
            to.moment(until);
        }
        Phase::Finishing(verdict) => {
            to.u8(2);
            write_verdict(to, verdict);
        }
        Phase::Ending(verdict, until) => {
            to.u8(3);
            write_verdict(to, verdict);
            to.moment(until);
        }
        Phase::Lingering(verdict, until, room) => {
            to.u8(4);
            write_verdict(to, verdict);
            to.moment(until);
            to.u32(room);
        }
        Phase::Logging(verdict) => {
            to.u8(5);
            write_verdict(to, verdict);
        }
        Phase::Done(verdict) => {
            to.u8(6);
            write_verdict(to, verdict);
        }
    }
}

fn read_phase(from: &mut Reader<'_>) -> Result<Phase<Moment>, Error> {
    let until = |from: &mut Reader<'_>| from.moment("end of the phase");
    Ok(match from.u8("phase")? {
        0 => Phase::Open,
        1 => Phase::Stopping(read_verdict(from)?, until(from)?),
        2 => Phase::Finishing(read_verdict(from)?),
        3 => Phase::Ending(read_verdict(from)?, until(from)?),
        4 => Phase::Lingering(read_verdict(from)?, until(from)?, from.u32("number of bytes to drop")?),
        5 => Phase::Logging(read_verdict(from)?),
        6 => Phase::Done(read_verdict(from)?),
        code => return Err(Error::Code { what: "phase", code }),
    })
}

fn write_verdict(to: &mut Writer, verdict: Verdict) {
    match verdict {
        Verdict::TooLong => to.u8(1),
        Verdict::ReadDeadline => to.u8(2),
        Verdict::IdleDeadline => to.u8(3),
        Verdict::Lifetime => to.u8(4),
        Verdict::TooMany { limit } => {
            to.u8(5);
            to.u32(limit);
        }
        Verdict::Busy => to.u8(6),
        Verdict::WriteDeadline => to.u8(7),
        Verdict::PeerClosed => to.u8(8),
        Verdict::PeerReset => to.u8(9),
        Verdict::Unterminated { bytes } => {
            to.u8(10);
            to.u32(bytes);
        }
        Verdict::Shutdown => to.u8(11),
        Verdict::Carried => to.u8(12),
        Verdict::BadProxyHeader => to.u8(13),
    }
}

fn read_verdict(from: &mut Reader<'_>) -> Result<Verdict, Error> {
    Ok(match from.u8("verdict")? {
        1 => Verdict::TooLong,
        2 => Verdict::ReadDeadline,
        3 => Verdict::IdleDeadline,
        4 => Verdict::Lifetime,
        5 => Verdict::TooMany { limit: from.u32("verdict's limit")? },
        6 => Verdict::Busy,
        7 => Verdict::WriteDeadline,
        8 => Verdict::PeerClosed,
        9 => Verdict::PeerReset,
        10 => Verdict::Unterminated { bytes: from.u32("verdict's bytes")? },
        11 => Verdict::Shutdown,
        12 => Verdict::Carried,
        13 => Verdict::BadProxyHeader,
        code => return Err(Error::Code { what: "verdict", code }),
    })
}
