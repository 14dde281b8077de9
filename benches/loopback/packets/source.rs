//! A source of packets: its socket, and what it has on the way.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{SocketAddrUnix, SocketType};

use crate::address::{Address, Transport};
use crate::packets::packet_io::PacketIo;
use crate::packets::tally::Tally;
use crate::packets::window::{MAX_WINDOW, Reply, Window};
use crate::socket_io::{connect_unix, open_connection};
use crate::{Context as _, Result};

/// After how long a message counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// A source of packets.
pub(crate) struct Source {
    /// Its socket.
    pub(crate) socket: OwnedFd,
    key: u32,
    window: Window,
    /// Since when no reply has come.
    waiting_since: Instant,
}

impl Source {
    /// Opens a source. `key` is its number among those of the server at `address`.
    pub(crate) fn open(address: &Address, transport: Transport, key: usize, time: Instant) -> Result<Self> {
        let socket = match (transport, address) {
            (Transport::UnixgramPath, Address::Unixgram(server)) => {
                let mut path = server.as_os_str().to_owned();
                path.push(format!("-{key}"));
                // One of a load that has ended.
                drop(fs::remove_file(&path));
                let own = SocketAddrUnix::new(&*path);
                let socket = own.and_then(|own| connect_unix(SocketType::DGRAM, Some(&own), server));
                socket.context(format_args!("connecting to {address:?} from {}", path.display()))?
            }
            _ => open_connection(address, key)?,
        };
        let key = u32::try_from(key).context("numbering a source")?;
        Ok(Self { socket, key, window: Window::default(), waiting_since: time })
    }

    /// How many messages are on the way.
    pub(crate) fn outstanding(&self) -> usize {
        self.window.outstanding()
    }

    /// Sends so many messages, or as many as the socket takes now, and returns how many these are.
    pub(crate) fn send(&mut self, io: &mut PacketIo, count: usize, time: Instant) -> Result<usize> {
        let count = count.min(self.window.room());
        if count == 0 {
            return Ok(0);
        }
        let sent = io.send(&self.socket, self.key, self.window.next(), count)?;
        if self.window.outstanding() == 0 {
            self.waiting_since = time;
        }
        self.window.note_sent(sent);
        Ok(sent)
    }

    /// Receives the replies that are there, and returns how many messages these answer.
    pub(crate) fn receive(&mut self, io: &mut PacketIo, tally: &mut Tally, time: Instant) -> Result<usize> {
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
            self.waiting_since = time;
        }
        Ok(answered)
    }

    /// Gives up what has had no reply for too long, and returns how many messages these are.
    pub(crate) fn give_up_overdue(&mut self, tally: &mut Tally, time: Instant) -> usize {
        if self.window.outstanding() == 0 || time.saturating_duration_since(self.waiting_since) < LOST_AFTER {
            return 0;
        }
        let lost = self.window.give_up();
        tally.lost += lost as u64;
        lost
    }
}
