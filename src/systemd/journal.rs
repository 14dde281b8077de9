//! The log: one thread that does nothing but write, behind a bounded queue.
//!
//! Writing may block for as long as the reader of stderr likes, so no thread that serves connections does it. What
//! does not fit into the queue is counted, and the number is written as soon as there is room again.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How many lines may wait to be written.
const QUEUE: usize = 1024;

/// How long the last lines may take to be written when the log is closed.
const CLOSING: Duration = Duration::from_secs(1);

/// The way into the log; cheap to clone.
#[derive(Debug, Clone)]
pub struct Log {
    queue: SyncSender<String>,
    lost: Arc<AtomicU64>,
}

/// The writing thread. To be closed last.
#[derive(Debug)]
pub struct Writer {
    done: Receiver<()>,
    thread: JoinHandle<()>,
}

/// Starts to write to `out`, a line at a time.
///
/// # Errors
/// The thread cannot be made.
pub fn start(out: impl Write + Send + 'static) -> io::Result<(Log, Writer)> {
    let (queue, lines) = sync_channel(QUEUE);
    let (finished, done) = sync_channel(1);
    let lost = Arc::new(AtomicU64::new(0));
    let log = Log { queue, lost: Arc::clone(&lost) };
    let thread = thread::Builder::new().name("log".to_owned()).spawn(move || {
        write_all(out, &lines, &lost);
        // Nobody waits any more, or somebody does.
        let _ = finished.try_send(());
    })?;
    Ok((log, Writer { done, thread }))
}

impl Log {
    /// Has a line written, as soon as those before it are. Never waits.
    pub fn write(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(line) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Writer {
    /// Waits until everything is written, but not for ever. The last [`Log`] must be gone.
    pub fn close(self) {
        match self.done.recv_timeout(CLOSING) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                // A panic was reported where it happened.
                let _ = self.thread.join();
            }
            // Whoever reads our stderr does not. The thread ends with the process.
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn write_all(mut out: impl Write, lines: &Receiver<String>, lost: &AtomicU64) {
    while let Ok(mut line) = lines.recv() {
        line.push('\n');
        // A log that cannot be written to is no reason to stop serving, and there is nowhere to say so.
        let _ = out.write_all(line.as_bytes());
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = out.write_all(format!("warn: {lost} lines were left out here, the log was too slow\n").as_bytes());
        }
    }
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    /// Says that it writes, and then waits until it may.
    struct Slow {
        begins: std::sync::mpsc::Sender<()>,
        may: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.begins.send(());
            let _ = self.may.recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_reader_makes_nobody_wait_and_what_is_lost_is_counted() {
        let (begins, begun) = channel();
        let (go, may) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let (log, writer) = start(Slow { begins, may, written: Arc::clone(&written) }).unwrap();
        log.write("first".to_owned());
        begun.recv().unwrap();
        for number in 0..QUEUE + 7 {
            log.write(format!("line {number}"));
        }
        drop(log);
        drop(go);
        writer.close();
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = written.lines().collect();
        assert_eq!(lines[..3], ["first", "warn: 7 lines were left out here, the log was too slow", "line 0"]);
        assert_eq!(lines.len(), QUEUE + 2);
    }
}
