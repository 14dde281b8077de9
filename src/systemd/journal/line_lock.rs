//! Lines of two threads on one output: the log's own, and whole messages. A line is written whole before another one begins,
//! also where write(2) takes only a part of it (a pipe in non-blocking mode, a disk that is full).

use std::borrow::Cow;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{FIRST_RETRY_DELAY, MAX_RETRY_DELAY};

/// Held while a line is written.
#[derive(Debug, Default)]
pub(super) struct LineLock {
    /// Whether the last line was given up in its middle.
    is_torn: Mutex<bool>,
}

impl LineLock {
    /// Writes a line with its line feed, however long it takes; other lines wait meanwhile, once it has begun. After an error it tries again, ever later, if `retries` says so,
    /// which is given that delay; otherwise the line is given up.
    pub(super) fn write(
        &self,
        output: &mut dyn Write,
        line: &[u8],
        mut retries: impl FnMut(&io::Error, Duration) -> bool,
    ) {
        let mut delay = FIRST_RETRY_DELAY;
        loop {
            let mut is_torn = self.is_torn.lock().unwrap_or_else(PoisonError::into_inner);
            let line: Cow<'_, [u8]> = if *is_torn { [b"\n", line].concat().into() } else { line.into() };
            let mut at = 0;
            while at < line.len() {
                let error = match output.write(&line[at..]) {
                    Ok(0) => ErrorKind::WriteZero.into(),
                    Ok(count) => {
                        (at, delay) = (at + count, FIRST_RETRY_DELAY);
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => error,
                };
                if !retries(&error, delay) {
                    // The line feed that ends a torn line is not one of this line.
                    *is_torn = if *is_torn { at != 1 } else { at > 0 };
                    return;
                }
                if at == 0 {
                    // Another line may come before.
                    break;
                }
                pause(&mut delay);
            }
            if at == line.len() {
                *is_torn = false;
                return;
            }
            drop(is_torn);
            pause(&mut delay);
        }
    }
}

/// Waits, and doubles the delay.
fn pause(delay: &mut Duration) {
    thread::sleep(*delay);
    *delay = (*delay * 2).min(MAX_RETRY_DELAY);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output that takes two bytes at a time, and fails as it is told.
    #[derive(Default)]
    struct Failing {
        written: Vec<u8>,
        /// How many bytes it takes before the next error, and what that is.
        errors: Vec<(usize, ErrorKind)>,
    }

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some((at, error)) = self.errors.first().copied() {
                if self.written.len() >= at {
                    self.errors.remove(0);
                    return Err(error.into());
                }
            }
            let count = bytes.len().min(2);
            self.written.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn is_only_slow(error: &io::Error, _: Duration) -> bool {
        error.kind() == ErrorKind::WouldBlock
    }

    #[test]
    fn a_line_that_has_to_wait_is_written_whole() {
        let errors = vec![(0, ErrorKind::WouldBlock), (0, ErrorKind::Interrupted), (4, ErrorKind::WouldBlock)];
        let (lock, mut output) = (LineLock::default(), Failing { errors, ..Failing::default() });
        lock.write(&mut output, b"one line\n", is_only_slow);
        assert_eq!(output.written, b"one line\n");
    }

    #[test]
    fn after_a_line_that_was_given_up_the_next_one_begins_a_line() {
        let errors = vec![(0, ErrorKind::StorageFull), (4, ErrorKind::StorageFull), (4, ErrorKind::StorageFull)];
        let (lock, mut output) = (LineLock::default(), Failing { errors, ..Failing::default() });
        for line in ["nothing\n", "half of it\n", "nothing\n", "all\n", "all\n"] {
            lock.write(&mut output, line.as_bytes(), is_only_slow);
        }
        assert_eq!(output.written, b"half\nall\nall\n");
    }
}
