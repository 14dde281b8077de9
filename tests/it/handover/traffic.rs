//! Messages of random sizes in random cuts while one process follows the other: nothing is lost, nothing comes twice, and
//! nothing out of order. A failure says its seed; with `ECHOED_TEST_SEED` set to that, the same is sent again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{connection_outcomes, now};
use common::random::seed;
use common::service::{FdStore, Service};
use common::{OnDrop, Random};

/// How many clients there are.
const CLIENTS: usize = 20;

/// The longest message, without its number.
const LONGEST: usize = 16 * 1024;

/// How often the process is replaced.
const RESTARTS: usize = 6;

/// No deadline nor limit may make a slow machine fail. Small buffers leave unsent replies more often.
const CONFIGURATION: &str = "
    [limits]
    connections_per_source = 0
    [defaults]
    send_buffer = '8KiB'
    [defaults.deadlines]
    read = '5min'
    write = '5min'
";

/// A message with its number at its beginning.
fn message(random: &mut Random, number: usize) -> Vec<u8> {
    [format!("{number}:").as_bytes(), &random.message(LONGEST), b"\t"].concat()
}

/// Sends messages until it is over, and reads the replies at the same time, in its own pace. Returns how many there were.
fn exchange_until_stopped(stream: &UnixStream, seed: u64, client: usize, stop: &AtomicBool) -> usize {
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let (mut messages, mut split_sizes, mut count) =
                (Random::seeded(seed, client), Random::seeded(seed ^ 0x5555, client), 0);
            let mut out = stream;
            while !stop.load(Ordering::Relaxed) {
                let mut wire = Vec::new();
                for _ in 0..=split_sizes.below(20) {
                    wire.extend(message(&mut messages, count));
                    count += 1;
                }
                let mut rest = &wire[..];
                while !rest.is_empty() {
                    let (piece, others) = rest.split_at(1 + split_sizes.below(rest.len()));
                    out.write_all(piece)
                        .unwrap_or_else(|error| panic!("cannot send: {error}; ECHOED_TEST_SEED={seed}"));
                    rest = others;
                }
                if split_sizes.below(4) == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            stream.shutdown(std::net::Shutdown::Write).expect("it can be shut down");
            count
        });
        let (mut messages, mut read_sizes, mut number) =
            (Random::seeded(seed, client), Random::seeded(seed ^ 0xaaaa, client), 0);
        let (mut received, mut buffer) = (Vec::new(), vec![0; 32 * 1024]);
        loop {
            let some = 1 + read_sizes.below(buffer.len());
            let count = (&mut &*stream).read(&mut buffer[..some]);
            let count = count.unwrap_or_else(|error| panic!("cannot receive: {error}; ECHOED_TEST_SEED={seed}"));
            if count == 0 {
                break;
            }
            received.extend_from_slice(&buffer[..count]);
            let mut at = 0;
            while let Some(tab) = received[at..].iter().position(|byte| *byte == b'\t') {
                let expected = [&b"server got:"[..], &message(&mut messages, number)].concat();
                let reply = &received[at..=at + tab];
                assert!(reply == expected, "reply {number} is wrong; ECHOED_TEST_SEED={seed}");
                (at, number) = (at + tab + 1, number + 1);
            }
            received.drain(..at);
        }
        assert!(received.is_empty(), "half a reply at the end; ECHOED_TEST_SEED={seed}");
        let sent = sending.join().expect("it has sent");
        assert_eq!(number, sent, "not every message was answered; ECHOED_TEST_SEED={seed}");
        sent
    })
}

fn restart_under_load(socket: &str) {
    let seed = seed();
    let mut service = Service::start_on(&[socket], FdStore::Enabled, CONFIGURATION);
    let streams: Vec<_> = (0..CLIENTS).map(|_| service.connect().into_stream()).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also when something fails below.
        let _stop_on_drop = OnDrop(|| stop.store(true, Ordering::Relaxed));
        let clients: Vec<_> = (1..)
            .zip(&streams)
            .map(|(number, stream)| {
                let stop = &stop;
                scope.spawn(move || exchange_until_stopped(stream, seed, number, stop))
            })
            .collect();
        for _ in 0..RESTARTS {
            // For a while it goes on undisturbed.
            let until = now() + Duration::from_millis(200);
            thread::sleep(until.saturating_duration_since(now()));
            assert_eq!(
                connection_outcomes(&service.restart(CONFIGURATION)),
                [CLIENTS, 0, 0],
                "ECHOED_TEST_SEED={seed}"
            );
        }
        stop.store(true, Ordering::Relaxed);
        let counts: Vec<_> =
            clients.into_iter().map(|client| client.join().expect("it has received everything")).collect();
        println!("{} messages over {RESTARTS} restarts", counts.iter().sum::<usize>());
    });
    service.daemon.stop();
}

#[test]
fn random_messages_survive_restarts_over_tcp() {
    restart_under_load("tcp:echo");
}

#[test]
fn random_messages_survive_restarts_over_a_unix_socket() {
    restart_under_load("unix:echo");
}
