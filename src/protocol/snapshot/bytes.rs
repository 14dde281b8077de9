//! Writes and reads the numbers and bytes of a snapshot.

use super::Error;
use crate::protocol::relative_time::RelativeTime;

/// The maximum value of a count. Later additions to it cannot overflow.
const MAX_COUNT: u64 = u64::MAX / 2;

/// Bytes that are being written.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, number: u8) {
        self.0.push(number);
    }

    pub(super) fn u16(&mut self, number: u16) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    pub(super) fn u32(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    pub(super) fn u64(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    /// Writes a count, capped at [`MAX_COUNT`].
    pub(super) fn count(&mut self, count: u64) {
        self.u64(count.min(MAX_COUNT));
    }

    pub(super) fn time(&mut self, RelativeTime(nanoseconds): RelativeTime) {
        self.0.extend_from_slice(&nanoseconds.to_be_bytes());
    }

    pub(super) fn array<const LENGTH: usize>(&mut self, bytes: [u8; LENGTH]) {
        self.0.extend_from_slice(&bytes);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// The unread rest of bytes that are being read. Each read gets the name of its field, for errors.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn array<const LENGTH: usize>(&mut self, field: &'static str) -> Result<[u8; LENGTH], Error> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Error::Truncated(field))?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, Error> {
        self.array(field).map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, Error> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, Error> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, Error> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// Reads a count, which is at most [`MAX_COUNT`].
    pub(super) fn count(&mut self, field: &'static str) -> Result<u64, Error> {
        let count = self.u64(field)?;
        if count > MAX_COUNT { Err(Error::CountTooLarge { field, count }) } else { Ok(count) }
    }

    pub(super) fn time(&mut self, field: &'static str) -> Result<RelativeTime, Error> {
        self.array(field).map(|bytes| RelativeTime(i64::from_be_bytes(bytes)))
    }

    pub(super) fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], Error> {
        let length = usize::try_from(self.u64(field)?).map_err(|_| Error::Truncated(field))?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Error::Truncated(field))?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Checks that all bytes were read.
    pub(super) fn expect_end(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::TrailingBytes(self.0.len())) }
    }
}
