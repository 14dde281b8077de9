//! The state of a load thread for packets, besides its sockets.

use super::packet_format::PacketFormat;
use super::window::Window;
use super::{BenchSettings, nanos};

/// How many lost messages are remembered by all sources together, and at least by each.
const MAX_LOST: usize = 4_000_000;
const MIN_LOST: usize = 64;

/// The state of a thread for packets.
pub(super) struct PacketTraffic<'a> {
    pub(super) format: &'a PacketFormat,
    /// The message that is sent next.
    pub(super) message: Vec<u8>,
    pub(super) timeout: u64,
    max_lost: usize,
}

impl<'a> PacketTraffic<'a> {
    pub(super) fn new(format: &'a PacketFormat, settings: &BenchSettings) -> Self {
        Self {
            format,
            message: format.template().to_vec(),
            timeout: nanos(settings.timeout),
            max_lost: (MAX_LOST / settings.connections).max(MIN_LOST),
        }
    }

    /// Returns the window of a new socket, from which message number `first` is sent next.
    pub(super) fn new_window(&self, first: u64) -> Window {
        Window::new(first, self.max_lost)
    }
}
