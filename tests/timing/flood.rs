//! A client that floods a worker, and another one of the same worker that is not delayed.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{Daemon, now, wait_until};

use crate::alone;

#[test]
fn a_flooding_client_does_not_delay_others() {
    let _alone = alone();
    let daemon = Daemon::start_with("[service]\nworkers = 1\n", &["--listen", "127.0.0.1:0"]);
    let mut calm = daemon.connect();
    calm.exchange("before");
    let flood = daemon.connect().into_stream();
    let flooded = AtomicU64::new(0);
    thread::scope(|scope| {
        let chunk: Vec<u8> = b"x\t".repeat(32 * 1024);
        let mut sending = &flood;
        let mut receiving = &flood;
        let flooded = &flooded;
        scope.spawn(move || while sending.write_all(&chunk).is_ok() {});
        scope.spawn(move || {
            let mut room = vec![0; 256 * 1024];
            while let Ok(count @ 1..) = receiving.read(&mut room) {
                flooded.fetch_add(count as u64, Ordering::Relaxed);
            }
        });
        wait_until("the flood runs", || flooded.load(Ordering::Relaxed) > 1_000_000);
        let before = flooded.load(Ordering::Relaxed);
        let mut slowest = Duration::ZERO;
        for ping in 0..200 {
            let start = now();
            calm.exchange(&format!("ping {ping}"));
            slowest = slowest.max(start.elapsed());
        }
        wait_until("the flood goes on", || flooded.load(Ordering::Relaxed) > before + 1_000_000);
        flood.shutdown(Shutdown::Both).unwrap();
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    });
    drop((calm, flood));
    daemon.stop();
}
