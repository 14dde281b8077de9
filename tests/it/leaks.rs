//! However clients come and go, nothing is left of their connections.

use std::thread;

use common::{Daemon, Peer, wait_until};

/// How many threads have connections at once, and how many each of them.
const THREADS: usize = 4;
const CONNECTIONS_PER_THREAD: usize = 25;

/// In how many ways a connection may end.
const BEHAVIORS: usize = 10;

/// What one client does before it goes, in one of the ways. Half of them leave a message or replies in the buffers.
fn run_client(peer: &mut Peer, behavior: usize) {
    match behavior {
        // Comes and goes.
        0 => {}
        1 => peer.exchange("a"),
        2 => {
            peer.send("a\tb\tc\t");
            peer.shutdown();
            peer.expect("server got:a\tserver got:b\tserver got:c\t");
            peer.expect_close();
        }
        3 => peer.exchange(&"x".repeat(20_000)),
        4 => {
            peer.send("y".repeat(70_000));
            peer.expect("server error:message exceeds 65536 bytes\t");
            peer.expect_close();
        }
        // Half a message, and then the end in one way or another (see below).
        5 | 6 => peer.send("half a message"),
        7 => peer.send("z".repeat(40_000)),
        8 => {
            peer.send("a\thalf");
            peer.shutdown();
            peer.expect("server got:a\t");
            peer.expect_close();
        }
        // Replies that it never reads.
        _ => peer.send([b'\t'; 10_000]),
    }
}

/// Has so many connections come and go.
fn run_clients(addresses: &[String], count: usize) {
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for round in 0..count / THREADS / CONNECTIONS_PER_THREAD {
                    // Each way over each kind of socket.
                    let address = &addresses[round % addresses.len()];
                    let mut peers: Vec<_> = (0..CONNECTIONS_PER_THREAD).map(|_| Peer::connect(address)).collect();
                    let behavior = |number: usize| (thread + round + number) % BEHAVIORS;
                    for (number, peer) in peers.iter_mut().enumerate() {
                        run_client(peer, behavior(number));
                    }
                    for (number, peer) in peers.into_iter().enumerate() {
                        if [6, 7].contains(&behavior(number)) {
                            peer.reset();
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn ten_thousand_closed_connections_leak_neither_descriptors_nor_memory() {
    let config = "[limits]\nconnections_per_source = 0\n[defaults.deadlines]\nread = '1min'\n";
    let daemon = Daemon::start_with(config, &["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock"]);
    let addresses = daemon.addresses();
    let descriptors = daemon.descriptor_count();
    let wait_until_closed = || wait_until("they are all gone", || daemon.descriptor_count() == descriptors);
    // The allocator keeps what it needed once.
    run_clients(&addresses, 4000);
    wait_until_closed();
    let before = daemon.status_number("VmRSS");
    run_clients(&addresses, 10_000);
    wait_until_closed();
    let after = daemon.status_number("VmRSS");
    // 64 bytes for each of them would be 625 kB.
    assert!(after < before + 512, "{after} kB after {before} kB");
    let log = daemon.stop();
    let last = log.iter().find(|line| line.contains("stopped: ")).expect("it is said");
    let all = "stopped: 0 connections finished, 0 cut; ";
    assert!(last.contains(all) && last.ends_with(", 14000 connections in all"), "{log:#?}");
    assert!(!log.iter().any(|line| line.starts_with("warn") || line.starts_with("error")), "{log:#?}");
}
