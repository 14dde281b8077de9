//! Live connections go on over a restart, with everything unfinished in them. What stands in for systemd keeps them
//! meanwhile.

mod common;
#[path = "carry/messages.rs"]
mod messages;
#[path = "carry/packets.rs"]
mod packets;
#[path = "carry/proxied.rs"]
mod proxied;
#[path = "carry/refused.rs"]
mod refused;
#[path = "carry/service.rs"]
mod service;
#[path = "carry/settings.rs"]
mod settings;
#[path = "carry/thaw.rs"]
mod thaw;
#[path = "carry/traffic.rs"]
mod traffic;

use std::thread;
use std::time::Duration;

use common::{Peer, now};
use rustix::process::Signal;
use service::{Service, Store};

/// The line of the log that says what became of connections at the end.
fn stopped(log: &[String]) -> &str {
    log.iter().find(|line| line.contains("stopped: ")).unwrap_or_else(|| panic!("it did not stop: {log:#?}"))
}

/// How many connections were handed over, finished and cut.
fn fates(log: &[String]) -> [usize; 3] {
    let line = stopped(log);
    [" connections handed over", " finished", " cut"].map(|fate| {
        let before = line.split(fate).next().expect("there is something");
        let number = before.rsplit(' ').next().expect("there is something");
        number.parse().unwrap_or_else(|_| panic!("no{fate} in {line}"))
    })
}

#[test]
fn a_message_is_half_sent_before_a_restart_and_half_after_it() {
    for socket in ["tcp:echo", "unix:echo"] {
        let mut service = Service::start_on(&[socket], Store::Some, "");
        let mut peer = service.connect();
        peer.exchange("before");
        peer.send("one\tha");
        // Now it has read the half, since it came together with this.
        peer.expect("server got:one\t");
        assert_eq!(fates(&service.restart("")), [1, 0, 0]);
        peer.send("lf\t");
        peer.expect("server got:half\t");
        service.daemon.wait_for_log("1 connections of the process before go on");
        assert!(service.manager.stored().is_empty(), "nothing stays in the store");
        peer.exchange("after");
        service.daemon.stop();
    }
}

#[test]
fn what_comes_while_no_process_is_there_is_answered_by_the_next_one() {
    let mut service = Service::start("");
    let (mut silent, mut begun, mut ended) = (service.connect(), service.connect(), service.connect());
    for peer in [&mut silent, &mut begun, &mut ended] {
        peer.send("a\tx");
        peer.expect("server got:a\t");
    }
    assert_eq!(fates(&service.end(Signal::TERM)), [3, 0, 0]);
    begun.send("yz\tmore\t");
    ended.send("yz\t");
    ended.shutdown();
    let mut new = service.connect();
    new.send("waits\t");
    service.begin("");
    begun.expect("server got:xyz\tserver got:more\t");
    ended.expect("server got:xyz\t");
    ended.expect_close();
    new.expect("server got:waits\t");
    silent.send("\t");
    silent.expect("server got:x\t");
    service.daemon.stop();
}

#[test]
fn a_hundred_connections_go_on_and_the_log_has_one_line_for_them() {
    let mut service = Service::start("");
    let mut peers: Vec<_> = (0..100).map(|_| service.connect()).collect();
    for restart in 0..3 {
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.send(format!("{number}\tin restart {restart}"));
            peer.expect(format!("server got:{number}\t"));
        }
        let log = service.restart("");
        assert_eq!(fates(&log), [100, 0, 0]);
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
fn a_client_that_does_not_read_gets_all_its_replies_afterwards() {
    const SMALL: &str = "[defaults]\nsend_buffer = '4KiB'\n[defaults.deadlines]\nwrite = 'off'\n";
    let mut service = Service::start(SMALL);
    let mut peer = service.connect();
    let messages = "aaaaaaaaa\t".repeat(10_000);
    // Until the daemon is stuck: then it has replies for all that it has read.
    let mut sent = 0;
    loop {
        let count = peer.send_what_fits(&messages.as_bytes()[sent % 10..]);
        sent += count;
        if count == 0 && peer.waiting().coming > 0 {
            break;
        }
    }
    assert_eq!(fates(&service.restart(SMALL)), [1, 0, 0]);
    assert_eq!(fates(&service.restart(SMALL)), [1, 0, 0]);
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
fn deadlines_go_on_while_no_process_is_there() {
    const READ: Duration = Duration::from_secs(3);
    const CONFIGURATION: &str = "[defaults.deadlines]\nread = '3s'\n";
    let mut service = Service::start(CONFIGURATION);
    let (mut late, mut in_time) = (service.connect(), service.connect());
    for peer in [&mut late, &mut in_time] {
        peer.send("a\thalf");
        peer.expect("server got:a\t");
    }
    let heard = now();
    service.end(Signal::TERM);
    // It comes in time, but nobody is there to read it.
    in_time.send(" and half\t");
    thread::sleep((heard + READ + Duration::from_millis(10)).saturating_duration_since(now()));
    service.begin(CONFIGURATION);
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
fn a_pause_after_a_greeting_goes_on_while_no_process_is_there() {
    const PAUSE: Duration = Duration::from_secs(3);
    const CONFIGURATION: &str = "[defaults]\nframing = 'raw'\nreply = 'fixed'\ntext = 'Hello!'\nreply_delay = '3s'\n";
    let mut service = Service::start(CONFIGURATION);
    let mut peer = service.connect();
    let start = now();
    // One part of it is read and held, the other comes while nobody is there.
    peer.send("a".repeat(513));
    peer.expect("Hello!");
    service.end(Signal::TERM);
    peer.send("b");
    service.begin(CONFIGURATION);
    let begun = now();
    peer.expect("Hello!");
    assert!(start.elapsed() >= PAUSE, "{:?}", start.elapsed());
    peer.expect("Hello!");
    assert!(start.elapsed() >= 2 * PAUSE, "{:?}", start.elapsed());
    assert!(begun.elapsed() >= PAUSE, "not without the second pause: {:?}", begun.elapsed());
    service.daemon.stop();
}

#[test]
fn connections_keep_their_numbers_and_new_ones_get_others() {
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
            let goes_on = format!("connection {number} on echo from ");
            assert!(log.iter().any(|line| line.contains(&goes_on) && line.contains(" ended: carried; 1 messages")));
            assert!(service.daemon.wait_for_log(&goes_on).ends_with(" goes on"));
        }
    }
    let mut last = service.connect();
    last.exchange("here");
    service.daemon.wait_for_log("connection 7 on echo from ");
    service.daemon.stop();
}

#[test]
fn a_worker_that_hangs_takes_only_its_own_connections_with_it() {
    let configuration = "[service]\nworkers = 2\n[defaults.deadlines]\nread = '5min'\n";
    let mut service = Service::start_on(&["tcp:echo"], Store::Some, configuration);
    service.end(Signal::INT);
    service.begin_with(configuration, |command| {
        command.env("ECHOED_TEST_HANG_ON_SIGUSR1", "1");
    });
    // One for each worker.
    let (mut first, mut second) = (service.connect(), service.connect());
    for peer in [&mut first, &mut second] {
        peer.send("a\thalf");
        peer.expect("server got:a\t");
    }
    service.daemon.signal(Signal::USR1);
    // It may still be about to hang.
    common::wait_until("it hangs", || {
        let mut peer = service.connect();
        peer.send("a\t");
        peer.receive_for(Duration::from_millis(100)) == 0
    });
    let log = service.restart(configuration);
    assert!(fates(&log)[2] >= 1, "{log:#?}");
    assert!(log.iter().any(|line| line.contains("their worker does not answer")), "{log:#?}");
    second.send("\t");
    second.expect("server got:half\t");
    first.read_to_end();
    service.daemon.stop();
}
