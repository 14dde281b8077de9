//! No descriptors left: those who are connected notice nothing, the others wait, and nobody spins.

mod common;

use std::fs;
use std::io;
use std::process::Command;
use std::time::Duration;

use common::{Daemon, Manager, Peer, now};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

/// Leaves the daemon `more` descriptors beyond those that it has.
fn leave_descriptors(daemon: &Daemon, more: usize) {
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs");
    let number = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let open: Vec<u64> = open.filter_map(number).collect();
    // The limit is not on how many there are, but on the largest number (getrlimit(2)).
    let limit = (0..).filter(|number| !open.contains(number)).nth(more);
    set_limit(daemon, limit);
}

fn set_limit(daemon: &Daemon, current: Option<u64>) {
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).expect("it is ours");
}

/// A daemon that has used up its descriptors, the connections that it serves, and some that wait.
fn exhausted() -> (Daemon, Vec<Peer>, Vec<Peer>) {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0"]);
    leave_descriptors(&daemon, 8);
    let mut served: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    for peer in &mut served {
        peer.exchange("before");
    }
    let mut waiting: Vec<_> = (0..6).map(|_| daemon.connect()).collect();
    for peer in &mut waiting {
        peer.send("waiting\t");
    }
    let line = daemon.wait_for_log("cannot accept");
    let expected =
        "warn: cannot accept on echo: Too many open files (os error 24); trying again when a connection ends";
    assert_eq!(line, expected);
    (daemon, served, waiting)
}

#[test]
fn who_is_connected_is_served_and_the_processor_has_a_rest() {
    let (daemon, mut served, mut waiting) = exhausted();
    let before = daemon.cpu_nanos();
    for peer in &mut served {
        peer.exchange("meanwhile");
    }
    waiting[0].expect_silence(Duration::from_secs(2));
    let used = Duration::from_nanos(daemon.cpu_nanos() - before);
    assert!(used < Duration::from_millis(200), "{used:?} of 2 s");
    for peer in &mut served {
        peer.exchange("after");
    }
    drop((served, waiting));
    daemon.stop();
}

#[test]
fn who_waits_is_served_as_soon_as_a_descriptor_is_free() {
    let (daemon, mut served, waiting) = exhausted();
    let mut waits = Vec::new();
    for mut next in waiting {
        drop(served.remove(0));
        let start = now();
        next.expect("server got:waiting\t");
        waits.push(start.elapsed());
        served.push(next);
    }
    // Not only at the next try, a second after the last; the first may just have met one.
    assert!(waits[1..].iter().any(|wait| *wait < Duration::from_millis(500)), "{waits:?}");
    drop(served);
    // Nobody waits any more, and there are enough: that is known without a next client.
    daemon.wait_for_log("info: accepting on echo again");
    daemon.connect().exchange("after");
    let log = daemon.stop();
    for text in ["cannot accept on echo", "accepting on echo again"] {
        let said = log.iter().filter(|line| line.contains(text)).count();
        assert_eq!(said, 1, "it was one shortage: {log:#?}");
    }
}

#[test]
fn who_waits_is_served_soon_after_the_limit_was_raised() {
    let (daemon, mut served, waiting) = exhausted();
    set_limit(&daemon, getrlimit(Resource::Nofile).current);
    for mut next in waiting {
        next.expect("server got:waiting\t");
        served.push(next);
    }
    daemon.wait_for_log("info: accepting on echo again");
    drop(served);
    daemon.stop();
}

#[test]
fn the_manager_hears_that_all_is_well_and_of_a_reload_all_the_while() {
    let manager = Manager::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    manager.watch(&mut command).env("WATCHDOG_USEC", "200000");
    let daemon = Daemon::spawn_with(&mut command, "", &["--listen", "127.0.0.1:0"]);
    manager.expect_times("WATCHDOG=1", 1);
    let before = manager.expect_times("READY=1", 1).len();
    leave_descriptors(&daemon, 0);
    let _waiting = daemon.connect();
    daemon.wait_for_log("cannot accept");
    let pings = manager.messages().iter().filter(|(_, message)| message[0] == "WATCHDOG=1").count();
    manager.expect_times("WATCHDOG=1", pings + 3);
    daemon.signal(Signal::HUP);
    manager.expect_times("READY=1", before + 1);
    manager.expect("RELOADING=1");
    daemon.stop();
}
