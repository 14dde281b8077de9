//! A source of packets: its socket, and what it has on the way.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{SocketAddrUnix, SocketType};

use crate::address::{Address, Transport};
use crate::packets::packet_io::PacketIo;
use crate::packets::tally::Tally;
use crate::packets::window::{MAX_WINDOW, Reply, Window};
use crate::socket_io::{connect_unix, open_connection};
use crate::{Context as _, Result};

/// How often a load is to call [`Source::give_up_overdue`].
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// After how many of these calls a message counts as lost. They are counted, not timed: when the load itself had to wait for
/// the CPU, replies may be there that it has not seen.
const LOST_AFTER: u32 = 10;

/// A source of packets.
pub(crate) struct Source {
    /// Its socket.
    pub(crate) socket: OwnedFd,
    key: u32,
    window: Window,
    /// How often it was looked at since a reply came.
    checks: u32,
}

impl Source {
    /// Opens a source. `key` is its number among those of the server at `address`.
    pub(crate) fn open(address: &Address, transport: Transport, key: usize) -> Result<Self> {
        let socket = match (transport, address) {
            (Transport::UnixgramPath, Address::Unixgram(server)) => {
                let path = PathBuf::from(format!("{}-{key}", server.display()));
                // One of a load that has ended.
                drop(fs::remove_file(&path));
                let own = SocketAddrUnix::new(&path);
                let socket = own.and_then(|own| connect_unix(SocketType::DGRAM, Some(&own), server));
                socket.context(format_args!("connecting to {address:?} from {}", path.display()))?
            }
            _ => open_connection(address, key)?,
        };
        let key = u32::try_from(key).context("numbering a source")?;
        Ok(Self { socket, key, window: Window::default(), checks: 0 })
    }

    /// Returns the number of messages on the way.
    pub(crate) fn outstanding(&self) -> usize {
        self.window.outstanding()
    }

    /// Sends so many messages, or as many as the socket takes now, and returns how many these are.
    pub(crate) fn send(&mut self, io: &mut PacketIo, count: usize) -> Result<usize> {
        let count = count.min(self.window.room());
        if count == 0 {
            return Ok(0);
        }
        let sent = io.send(&self.socket, self.key, self.window.next(), count)?;
        if self.window.outstanding() == 0 {
            self.checks = 0;
        }
        self.window.note_sent(sent);
        Ok(sent)
    }

    /// Receives the replies that are there, and returns how many messages these answer.
    pub(crate) fn receive(&mut self, io: &mut PacketIo, tally: &mut Tally) -> Result<usize> {
        let before = self.window.outstanding();
        loop {
            let asked = self.window.outstanding().clamp(1, MAX_WINDOW);
            let received = io.receive(&self.socket, asked)?;
            for index in 0..received {
                match io.number_of_reply(self.key, index).map(|number| self.window.note_reply(number)) {
                    Some(Reply::Due) => tally.answered += 1,
                    Some(Reply::Late) => tally.late += 1,
                    Some(Reply::Twice) => tally.twice += 1,
                    Some(Reply::Unasked) | None => tally.wrong += 1,
                }
            }
            if received < asked || self.window.outstanding() == 0 {
                break;
            }
        }
        let answered = before - self.window.outstanding();
        if answered > 0 {
            self.checks = 0;
        }
        Ok(answered)
    }

    /// Gives up what has had no reply for too long, and returns how many messages these are.
    pub(crate) fn give_up_overdue(&mut self, tally: &mut Tally) -> usize {
        self.checks += 1;
        if self.window.outstanding() == 0 || self.checks <= LOST_AFTER {
            return 0;
        }
        let lost = self.window.give_up();
        tally.lost += lost as u64;
        lost
    }
}
