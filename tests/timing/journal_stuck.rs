//! A journal that hangs under load: no client notices, and nothing grows.
//!
//! The journal hangs for 30 s where everything is demanded (`make test REQUIRE=all`), and for 6 s elsewhere.

use std::env;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::fake_journald::{Entry, FakeJournald};
use common::{Daemon, OnDrop, Peer, now, wait_until};
use rustix::process::Signal;

use crate::alone;

/// Clients that stay, as a load that is there in both phases.
const STEADY_CLIENTS: usize = 300;

/// Threads whose clients come and go, each of them two entries or more.
const SHORT_CLIENT_THREADS: usize = 2;

/// How long each of those threads rests between two clients, so that the machine is busy but not overrun.
const SHORT_CLIENT_INTERVAL: Duration = Duration::from_millis(2);

/// Clients that are measured.
const MEASURED_CLIENTS: usize = 4;

/// How long it is measured without the journal hanging.
const BASELINE_TIME: Duration = Duration::from_secs(6);

const CONFIG: &str = "
    [log]
    level = 'debug'
    [defaults]
    max_message = '4KiB'
    [limits]
    connections_per_source = 0
    [defaults.deadlines]
    idle = '5min'
";

/// One client that comes and goes, in one of several ways.
fn run_short_client(address: &str, behavior: usize) {
    let mut peer = Peer::connect(address);
    match behavior % 4 {
        0 => {}
        1 => peer.exchange("a"),
        2 => {
            peer.send("y".repeat(5000));
            peer.expect("server error:message exceeds 4096 bytes\t");
        }
        _ => {
            peer.send("a\thalf");
            peer.shutdown();
            peer.expect("server got:a\t");
            peer.expect_close();
        }
    }
}

/// The round trips of some clients for this long, the shortest first.
fn round_trips(address: &str, time: Duration) -> Vec<Duration> {
    let until = now() + time;
    let mut all = thread::scope(|scope| {
        let measure = || {
            let mut peer = Peer::connect(address);
            let mut taken = Vec::new();
            while now() < until {
                let start = now();
                peer.exchange("how long does this take?");
                taken.push(start.elapsed());
                thread::sleep(Duration::from_millis(1));
            }
            taken
        };
        let threads: Vec<_> = (0..MEASURED_CLIENTS).map(|_| scope.spawn(measure)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("it has measured")).collect::<Vec<_>>()
    });
    all.sort();
    all
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn hang_time() -> Duration {
    let all = env::var("ECHOED_TEST_REQUIRE").is_ok_and(|all| all == "all");
    Duration::from_secs(if all { 30 } else { 6 })
}

#[test]
fn a_hung_journal_under_load_delays_no_client_and_memory_does_not_grow() {
    let _alone = alone();
    let Some(journal) = FakeJournald::start() else { return };
    let arguments = ["--listen", "127.0.0.1:0", "--listen", "DIR/socket"];
    let mut daemon = Daemon::spawn_with(&mut journal.command(), CONFIG, &arguments);
    let addresses = journal.addresses(2);
    let mut steady: Vec<_> = (0..STEADY_CLIENTS).map(|number| Peer::connect(&addresses[number % 2])).collect();
    for peer in &mut steady {
        peer.exchange("here");
    }
    let (stop, short_clients) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        // Also when something fails below.
        let _stop_on_drop = OnDrop(|| stop.store(true, Ordering::Relaxed));
        for _ in 0..SHORT_CLIENT_THREADS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Those of a Unix socket leave no ports behind that wait.
                    run_short_client(&addresses[1], short_clients.fetch_add(1, Ordering::Relaxed));
                    thread::sleep(SHORT_CLIENT_INTERVAL);
                }
            });
        }
        let baseline = round_trips(&addresses[0], BASELINE_TIME);

        journal.suspend();
        // More entries than the queue and the socket hold: from here on each one is lost.
        let (start, before) = (now(), short_clients.load(Ordering::Relaxed));
        wait_until("the queue is full", || short_clients.load(Ordering::Relaxed) > before + 1500);
        let (written, memory, descriptors) =
            (journal.count(), daemon.status_number("VmRSS"), daemon.descriptor_count());
        let stuck = round_trips(&addresses[0], hang_time());
        let (count, later) = (journal.count(), daemon.status_number("VmRSS"));
        let short_clients = short_clients.load(Ordering::Relaxed) - before;
        print_facts(&baseline, &stuck, start, short_clients);

        assert_eq!(count, written, "the journal did not hang");
        let [baseline, stuck] = [&baseline, &stuck].map(|sorted| percentile(sorted, 99));
        // A machine shared with others is never quite calm. An entry that is waited for would take seconds.
        assert!(stuck <= baseline * 4 + Duration::from_millis(10), "99 % took {stuck:?}, and {baseline:?} before");
        // An entry for each of those short connections would be some megabytes.
        assert!(later <= memory + 1024, "{later} kB after {memory} kB");
        let open_clients = SHORT_CLIENT_THREADS + MEASURED_CLIENTS + 1;
        assert!(
            daemon.descriptor_count() <= descriptors + open_clients,
            "{} after {descriptors}",
            daemon.descriptor_count()
        );
    });

    journal.resume();
    let is_lost = |entry: &Entry| entry.text("MESSAGE").ends_with("log entries here: writing the log was too slow");
    journal.expect("the number of lost entries", is_lost);
    // It goes on as if nothing had been.
    let mut last = Peer::connect(&addresses[0]);
    last.exchange("still there");
    for peer in &mut steady {
        peer.exchange("still there");
    }
    drop((last, steady));
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    let entries = journal.stop_and_collect();
    let last = entries.last().expect("there is one").text("MESSAGE");
    assert!(last.starts_with("stopped: "), "{last}");
}

fn print_facts(baseline: &[Duration], stuck: &[Duration], start: Instant, short_clients: usize) {
    let shown = |all: &[Duration]| {
        let [p50, p99] = [50, 99].map(|percent| percentile(all, percent));
        format!("{} round trips, half within {p50:?}, 99 % within {p99:?}", all.len())
    };
    println!("before: {}", shown(baseline));
    println!("while it hung for {:?}, with {short_clients} short connections: {}", start.elapsed(), shown(stuck));
}
