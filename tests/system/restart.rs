//! Restarts: clients come all the time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::common::wait_until;
use crate::machine::{Machine, TCP, UNIX};

tests![every_client_is_answered_over_restarts, the_sockets_outlive_twenty_quick_starts];

/// What is promised to a client that sends a message as soon as it is connected: it is answered.
fn every_client_is_answered_over_restarts(machine: &Machine) {
    const CLIENTS: usize = 200;
    const RESTARTS: usize = 5;
    // Who has left counts until the daemon has heard of it, which may take its time on a busy machine.
    machine.write("/etc/echoed/echoed.toml.d/limits.toml", "[limits]\nconnections_per_source = 0\n");
    machine.sh("systemctl start echoed.socket");
    let (answered, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (answered, enough) = (&answered, &enough);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let mut peer = machine.connect(if client % 2 == 0 { TCP } else { UNIX });
                    peer.exchange("aaaa");
                    answered.fetch_add(1, Ordering::Relaxed);
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
pub struct OnDrop<F: Fn()>(pub F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
