//! Restart after restart, while clients send all the time: nothing is lost, nothing comes twice, all is in order. A
//! failure says its seed; with `ECHOED_TEST_SEED` set to that, the same is sent again.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::{PATIENT, expect_no_warnings, restart, start};
use common::OnDrop;
use common::machines::machine::{Machine, TCP, UNIX};
use common::random::seed;
use common::{Random, wait_until};

tests![two_hundred_clients_lose_nothing_in_ten_restarts];

const CLIENTS: usize = 200;
const RESTARTS: usize = 10;

/// The longest message.
const LONGEST: usize = 4096;

/// Sends messages in random pieces until it is enough, and then ends the stream. Returns how many.
fn send(mut stream: &UnixStream, seed: u64, client: usize, stop: &AtomicBool) -> usize {
    // The thread that reads the replies knows the messages from the same seed.
    let (mut messages, mut split_sizes) = (Random::seeded(seed, client), Random::seeded(!seed, client));
    let (mut count, mut unsent) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..=split_sizes.below(8) {
            unsent.extend(messages.message(LONGEST));
            unsent.push(b'\t');
            count += 1;
        }
        // What is left is the beginning of the next piece.
        while unsent.len() > 4096 {
            let piece = 1 + split_sizes.small_below(unsent.len());
            stream.write_all(&unsent[..piece]).expect("the connection goes on");
            unsent.drain(..piece);
        }
        // There are many clients, and each is to run.
        thread::sleep(Duration::from_millis(20));
    }
    stream.write_all(&unsent).expect("the connection goes on");
    stream.shutdown(Shutdown::Write).expect("the connection goes on");
    count
}

/// Reads replies until the stream ends, and compares each with what it should be. Returns how many.
fn receive(mut stream: &UnixStream, seed: u64, client: usize, answered: &AtomicUsize) -> usize {
    let mut messages = Random::seeded(seed, client);
    let (mut count, mut buffer) = (0, vec![0; 64 * 1024]);
    let mut due: Vec<u8> = Vec::new();
    loop {
        let got = stream.read(&mut buffer).expect("the connection goes on");
        if got == 0 {
            assert!(due.is_empty(), "client {client}: the last reply is cut, {} bytes of it are missing", due.len());
            return count;
        }
        let mut got = &buffer[..got];
        while !got.is_empty() {
            if due.is_empty() {
                due = [b"server got:", &*messages.message(LONGEST), b"\t"].concat();
            }
            let both = due.len().min(got.len());
            let as_due = got[..both] == due[..both];
            assert!(as_due, "client {client}, reply {count}: {}", got[..both].escape_ascii());
            due.drain(..both);
            got = &got[both..];
            if due.is_empty() {
                count += 1;
                answered.store(count, Ordering::Relaxed);
            }
        }
    }
}

fn two_hundred_clients_lose_nothing_in_ten_restarts(machine: &Machine) {
    start(machine, PATIENT);
    let seed = seed();
    let streams: Vec<_> = (0..CLIENTS).map(|client| machine.connect([TCP, UNIX][client % 2]).into_stream()).collect();
    let answered: Vec<_> = (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect();
    let stop = AtomicBool::new(false);
    let stop = &stop;
    thread::scope(|scope| {
        let _stop_on_drop = OnDrop(|| stop.store(true, Ordering::Relaxed));
        let mut clients = Vec::new();
        for (client, (stream, answered)) in streams.iter().zip(&answered).enumerate() {
            let sender = scope.spawn(move || send(stream, seed, client, stop));
            clients.push((sender, scope.spawn(move || receive(stream, seed, client, answered))));
        }
        for _ in 0..RESTARTS {
            let before: Vec<_> = answered.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            wait_until("every client has got a reply", || {
                let has_failed = clients.iter().any(|(_, receiver)| receiver.is_finished());
                let now = answered.iter().map(|count| count.load(Ordering::Relaxed));
                has_failed || now.zip(&before).all(|(now, before)| now > *before)
            });
            restart(machine);
        }
        stop.store(true, Ordering::Relaxed);
        let mut total = 0;
        for (client, (sender, receiver)) in clients.into_iter().enumerate() {
            let (sent, received) = (sender.join(), receiver.join());
            let (Ok(sent), Ok(received)) = (sent, received) else { panic!("client {client}; ECHOED_TEST_SEED={seed}") };
            assert_eq!(received, sent, "client {client}; ECHOED_TEST_SEED={seed}");
            total += received;
        }
        println!("systemd {}: {total} messages in {RESTARTS} restarts", machine.version());
    });
    expect_no_warnings(machine);
}
