//! Clients that come again and again, each for one message.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::machines::machine::{Machine, TCP, UNIX};
use crate::{OnDrop, wait_until};

/// How many there are at once: half of them over TCP, half of them over the Unix socket.
const CLIENTS: usize = 200;

/// Has them come while `step` is done so many times, each of which makes another process of the daemon. All of them are
/// answered.
pub fn connect_during(machine: &Machine, steps: usize, step: impl Fn(usize)) {
    let (answered, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (answered, stop) = (&answered, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut peer = machine.connect(if client % 2 == 0 { TCP } else { UNIX });
                    peer.exchange("aaaa");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _stop_on_drop = OnDrop(|| stop.store(true, Ordering::Relaxed));
        for number in 0..steps {
            let before = answered.load(Ordering::Relaxed);
            let process = machine.daemon_pid();
            wait_until("all are being served", || answered.load(Ordering::Relaxed) >= before + 2 * CLIENTS);
            step(number);
            assert_ne!(machine.daemon_pid(), process);
        }
    });
}
