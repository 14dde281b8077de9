//! Whoever came and went, and however: nothing of them is left.

mod common;

use std::thread;

use common::{Daemon, Peer, wait_until};

/// How many threads have connections at once, and how many each of them.
const THREADS: usize = 4;
const AT_ONCE: usize = 25;

/// In how many ways a connection may end.
const WAYS: usize = 10;

/// What one client does before it goes, in one of the ways. Half of them leave something unfinished.
fn visit(peer: &mut Peer, way: usize) {
    match way {
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
fn visits(addresses: &[String], count: usize) {
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for round in 0..count / THREADS / AT_ONCE {
                    // Each way over each kind of socket.
                    let address = &addresses[round % addresses.len()];
                    let mut peers: Vec<_> = (0..AT_ONCE).map(|_| Peer::connect(address)).collect();
                    let way = |number: usize| (thread + round + number) % WAYS;
                    for (number, peer) in peers.iter_mut().enumerate() {
                        visit(peer, way(number));
                    }
                    for (number, peer) in peers.into_iter().enumerate() {
                        if [6, 7].contains(&way(number)) {
                            peer.reset();
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn ten_thousand_connections_that_came_and_went_leave_nothing_behind() {
    let config = "[limits]\nconnections_per_source = 0\n[defaults.deadlines]\nread = '1min'\n";
    let daemon = Daemon::start_with(config, &["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock"]);
    let addresses = daemon.addresses();
    let descriptors = daemon.descriptors();
    let gone = || wait_until("they are all gone", || daemon.descriptors() == descriptors);
    // The allocator keeps what it needed once.
    visits(&addresses, 4000);
    gone();
    let before = daemon.status_number("VmRSS");
    visits(&addresses, 10_000);
    gone();
    let after = daemon.status_number("VmRSS");
    // 64 bytes for each of them would be 625 kB.
    assert!(after < before + 512, "{after} kB after {before} kB");
    let log = daemon.stop();
    let last = log.iter().find(|line| line.contains("stopped: ")).expect("it is said");
    let all = "stopped: 0 connections finished, 0 cut; ";
    assert!(last.contains(all) && last.ends_with(" on 14000 connections in all"), "{log:#?}");
    assert!(!log.iter().any(|line| line.starts_with("warn") || line.starts_with("error")), "{log:#?}");
}
