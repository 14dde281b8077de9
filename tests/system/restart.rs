//! Restarts: clients come all the time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::common::wait_until;
use crate::machine::{Machine, TCP, UNIX};

tests![no_client_is_refused_or_reset_by_restarts, the_sockets_outlive_twenty_quick_starts];

/// What is promised to a client that sends a message as soon as it is connected: nobody is refused, no connection is
/// reset, and no reply is cut. A message that the daemon has read is answered; where it was still on its way when the
/// daemon began to stop, the stream ends without a byte, and the client can ask again.
fn no_client_is_refused_or_reset_by_restarts(machine: &Machine) {
    const CLIENTS: usize = 200;
    const RESTARTS: usize = 5;
    machine.sh("systemctl start echoed.socket");
    let (answered, unanswered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (answered, unanswered, enough) = (&answered, &unanswered, &enough);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let mut peer = machine.connect(if client % 2 == 0 { TCP } else { UNIX });
                    peer.send("aaaa\t");
                    match &*peer.next_reply() {
                        b"server got:aaaa\t" => answered.fetch_add(1, Ordering::Relaxed),
                        b"" => unanswered.fetch_add(1, Ordering::Relaxed),
                        _ => panic!("a reply was cut"),
                    };
                }
            });
        }
        let _enough = OnDrop(|| enough.store(true, Ordering::Relaxed));
        for _ in 0..RESTARTS {
            let before = answered.load(Ordering::Relaxed);
            let process = machine.daemon();
            wait_until("all are being served", || answered.load(Ordering::Relaxed) >= before + 2 * CLIENTS);
            machine.sh("systemctl restart echoed.service");
            assert_ne!(machine.daemon(), process);
        }
    });
    let (answered, unanswered) = (answered.into_inner(), unanswered.into_inner());
    // Each at most once for each restart: who comes after that is the next process's.
    assert!(unanswered <= RESTARTS * CLIENTS, "{unanswered} clients got no reply, and {answered} did");
}

/// By whomever: by the administrator, or since it was killed.
fn the_sockets_outlive_twenty_quick_starts(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    for round in 0..20 {
        machine.connect(if round % 4 < 2 { TCP } else { UNIX }).exchange("aaaa");
        if round % 2 == 0 {
            machine.sh("systemctl restart echoed.service");
        } else {
            machine.kill_daemon();
        }
    }
    machine.connect(TCP).exchange("aaaa");
    machine.connect(UNIX).exchange("aaaa");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "active");
}

/// Does something at the end of a scope, also when it ends with a panic.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
