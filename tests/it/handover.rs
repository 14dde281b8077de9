//! Live connections are handed over at a restart, with their unfinished messages and unsent replies. A fake service
//! manager stores them meanwhile.

mod failures;
mod messages;
mod packets;
mod proxied;
mod restore;
mod settings;
mod traffic;

use std::thread;
use std::time::Duration;

use common::hang::hang_thread;
use common::service::{FdStore, Service};
use common::{Peer, now};
use rustix::process::Signal;

/// The line of the log that says what became of connections at the end.
fn stop_line(log: &[String]) -> &str {
    log.iter().find(|line| line.contains("stopped: ")).unwrap_or_else(|| panic!("it did not stop: {log:#?}"))
}

/// How many connections were handed over, finished and cut.
fn connection_outcomes(log: &[String]) -> [usize; 3] {
    let line = stop_line(log);
    [" connections handed over", " finished", " cut"].map(|outcome| {
        let before = line.split(outcome).next().expect("there is something");
        let number = before.rsplit(' ').next().expect("there is something");
        number.parse().unwrap_or_else(|_| panic!("no{outcome} in {line}"))
    })
}

#[test]
fn a_message_split_by_a_restart_is_answered() {
    for socket in ["tcp:echo", "unix:echo"] {
        let mut service = Service::start_on(&[socket], FdStore::Enabled, "");
        let mut peer = service.connect();
        peer.exchange("before");
        peer.send("one\tha");
        // Now it has read the half, since it came together with this.
        peer.expect("server got:one\t");
        assert_eq!(connection_outcomes(&service.restart("")), [1, 0, 0]);
        peer.send("lf\t");
        peer.expect("server got:half\t");
        service.daemon.wait_for_log("restored 1 connection from the previous process");
        assert!(service.manager.stored_descriptors().is_empty(), "nothing stays in the store");
        peer.exchange("after");
        service.daemon.stop();
    }
}

#[test]
fn data_that_arrives_between_two_processes_is_answered_by_the_next_one() {
    let mut service = Service::start("");
    let (mut silent, mut begun, mut ended) = (service.connect(), service.connect(), service.connect());
    for peer in [&mut silent, &mut begun, &mut ended] {
        peer.send("a\tx");
        peer.expect("server got:a\t");
    }
    assert_eq!(connection_outcomes(&service.stop(Signal::TERM)), [3, 0, 0]);
    begun.send("yz\tmore\t");
    ended.send("yz\t");
    ended.shutdown();
    let mut new = service.connect();
    new.send("waits\t");
    service.start_next("");
    begun.expect("server got:xyz\tserver got:more\t");
    ended.expect("server got:xyz\t");
    ended.expect_close();
    new.expect("server got:waits\t");
    silent.send("\t");
    silent.expect("server got:x\t");
    service.daemon.stop();
}

#[test]
fn a_hundred_connections_survive_restarts_and_are_logged_in_one_line() {
    let mut service = Service::start("");
    let mut peers: Vec<_> = (0..100).map(|_| service.connect()).collect();
    for restart in 0..3 {
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.send(format!("{number}\tin restart {restart}"));
            peer.expect(format!("server got:{number}\t"));
        }
        let log = service.restart("");
        assert_eq!(connection_outcomes(&log), [100, 0, 0]);
        assert!(log.len() < 8, "{log:#?}");
        for peer in &mut peers {
            peer.send(" \t");
            peer.expect(format!("server got:in restart {restart} \t"));
        }
    }
    let log = service.daemon.stop();
    assert!(log.len() < 8, "{log:#?}");
}

#[test]
fn a_client_that_stopped_reading_gets_all_its_replies_after_restarts() {
    const SMALL: &str = "[defaults]\nsend_buffer = '4KiB'\n[defaults.deadlines]\nwrite = 'off'\n";
    let mut service = Service::start(SMALL);
    let mut peer = service.connect();
    // Now it is accepted.
    peer.exchange("before");
    let messages = "aaaaaaaaa\t".repeat(10_000);
    // Until the daemon is stuck: then it has replies for all that it has read.
    let mut sent = 0;
    loop {
        let count = peer.send_what_fits(&messages.as_bytes()[sent % 10..]);
        sent += count;
        if count == 0 && peer.queued_bytes().to_daemon > 0 {
            break;
        }
    }
    assert_eq!(connection_outcomes(&service.restart(SMALL)), [1, 0, 0]);
    assert_eq!(connection_outcomes(&service.restart(SMALL)), [1, 0, 0]);
    // The rest of the message in which it got stuck.
    let reader = peer.stream();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut expected = "server got:aaaaaaaaa\t".repeat(sent.div_ceil(10)).into_bytes();
            let mut got = vec![0; expected.len()];
            std::io::Read::read_exact(&mut &reader, &mut got).expect("all replies come");
            assert!(got == expected, "they are the right ones");
            expected.clear();
        });
        peer.send(&messages.as_bytes()[sent % 10..][..(10 - sent % 10) % 10]);
    });
    service.daemon.stop();
}

#[test]
fn read_deadlines_keep_running_between_two_processes() {
    const READ: Duration = Duration::from_secs(3);
    const CONFIGURATION: &str = "[defaults.deadlines]\nread = '3s'\n";
    let mut service = Service::start(CONFIGURATION);
    let (mut late, mut in_time) = (service.connect(), service.connect());
    for peer in [&mut late, &mut in_time] {
        peer.send("a\thalf");
        peer.expect("server got:a\t");
    }
    let last_read = now();
    service.stop(Signal::TERM);
    // It comes in time, but no process is there to read it.
    in_time.send(" and half\t");
    thread::sleep((last_read + READ + Duration::from_millis(10)).saturating_duration_since(now()));
    service.start_next(CONFIGURATION);
    let begun = now();
    in_time.expect("server got:half and half\t");
    late.expect("server error:message not finished within 3s\t");
    assert!(begun.elapsed() < READ - Duration::from_millis(500), "not as if it had just begun: {:?}", begun.elapsed());
    late.expect_close();

    // One that has not passed is neither longer nor shorter.
    let mut peer = service.connect();
    let start = now();
    peer.send("a\thalf");
    peer.expect("server got:a\t");
    service.restart(CONFIGURATION);
    peer.expect("server error:message not finished within 3s\t");
    assert!(start.elapsed() >= READ, "{:?}", start.elapsed());
    service.daemon.stop();
}

#[test]
fn the_reply_delay_keeps_running_between_two_processes() {
    const REPLY_DELAY: Duration = Duration::from_secs(3);
    const CONFIGURATION: &str =
        "[defaults]\nframing = 'raw'\nreply = 'fixed'\nfixed_reply = 'Hello!'\nreply_delay = '3s'\n";
    let mut service = Service::start(CONFIGURATION);
    let mut peer = service.connect();
    let start = now();
    // The one part is read and goes into the snapshot, the other comes while no process is there.
    peer.send("a".repeat(513));
    peer.expect("Hello!");
    service.stop(Signal::TERM);
    peer.send("b");
    service.start_next(CONFIGURATION);
    let begun = now();
    peer.expect("Hello!");
    assert!(start.elapsed() >= REPLY_DELAY, "{:?}", start.elapsed());
    peer.expect("Hello!");
    assert!(start.elapsed() >= 2 * REPLY_DELAY, "{:?}", start.elapsed());
    assert!(begun.elapsed() >= REPLY_DELAY, "not without the second delay: {:?}", begun.elapsed());
    service.daemon.stop();
}

#[test]
fn connections_keep_their_ids_over_restarts_and_new_ones_get_new_ids() {
    const DEBUG: &str = "[log]\nlevel = 'debug'\n";
    let mut service = Service::start(DEBUG);
    let mut peers = Vec::new();
    for restart in 0..3 {
        for _ in 0..2 {
            let mut peer = service.connect();
            peer.exchange("here");
            peers.push(peer);
        }
        let log = service.restart(DEBUG);
        for number in 1..=2 * (restart + 1) {
            let prefix = format!("connection {number} on echo from ");
            assert!(log.iter().any(|line| line.contains(&prefix) && line.contains(" ended: handed-over; 1 messages")));
            assert!(service.daemon.wait_for_log(&prefix).ends_with(" resumed"));
        }
    }
    let mut last = service.connect();
    last.exchange("here");
    service.daemon.wait_for_log("connection 7 on echo from ");
    service.daemon.stop();
}

#[test]
fn a_hung_worker_loses_only_its_own_connections() {
    let configuration = "[service]\nworkers = 2\n[defaults.deadlines]\nread = '5min'\n";
    let mut service = Service::start_on(&["tcp:echo"], FdStore::Enabled, configuration);
    // One for each worker.
    let (mut first, mut second) = (service.connect(), service.connect());
    for peer in [&mut first, &mut second] {
        peer.send("a\thalf");
        peer.expect("server got:a\t");
    }
    if !hang_thread(service.daemon.pid(), "worker-0") {
        return;
    }
    let log = service.restart(configuration);
    assert!(connection_outcomes(&log)[2] >= 1, "{log:#?}");
    assert!(log.iter().any(|line| line.contains(": the worker thread is not responding")), "{log:#?}");
    second.send("\t");
    second.expect("server got:half\t");
    first.read_to_end();
    service.daemon.stop();
}

#[test]
fn signals_during_the_barrier_of_a_slow_service_manager_lose_no_connection() {
    const CONNECTIONS: usize = 50;
    let mut service = Service::start("");
    let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| service.connect()).collect();
    for peer in &mut peers {
        peer.send("a\thalf");
        peer.expect("server got:a\t");
    }
    service.manager.delay_barriers(Duration::from_millis(500));
    service.daemon.signal(Signal::TERM);
    service.manager.expect("BARRIER=1");
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        service.daemon.signal(signal);
        thread::sleep(Duration::from_millis(50));
    }
    assert!(service.daemon.wait().success());
    let log = service.daemon.log();
    assert_eq!(connection_outcomes(&log), [CONNECTIONS, 0, 0]);
    assert!(!log.iter().any(|line| line.starts_with("warn: ")), "{log:#?}");
    service.start_next("");
    for peer in &mut peers {
        peer.send("\t");
        peer.expect("server got:half\t");
    }
    service.daemon.stop();
}
