//! No descriptors left: connected clients notice nothing, the others wait, and the daemon does not spin.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use common::fake_journald::FakeJournald;
use common::service_manager::activated_command;
use common::strace::Strace;
use common::{Daemon, Peer, ServiceManager, now, program_or_skip};
use rustix::process::{Resource, Signal, getrlimit};

/// A daemon that has used up its descriptors, the connections that it serves, and some that wait.
fn start_without_free_descriptors() -> (Daemon, Vec<Peer>, Vec<Peer>) {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0"]);
    daemon.leave_free_descriptors(8);
    let mut served: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    for peer in &mut served {
        peer.exchange("before");
    }
    let mut waiting: Vec<_> = (0..6).map(|_| daemon.connect()).collect();
    for peer in &mut waiting {
        peer.send("waiting\t");
    }
    let line = daemon.wait_for_log("failed to accept");
    let expected = "warn: failed to accept on echo: Too many open files (os error 24); retrying when a connection ends";
    assert_eq!(line, expected);
    (daemon, served, waiting)
}

#[test]
fn connected_clients_are_served_without_busy_looping_when_descriptors_run_out() {
    let (daemon, mut served, mut waiting) = start_without_free_descriptors();
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
fn waiting_clients_are_served_as_soon_as_a_descriptor_is_free() {
    let (daemon, mut served, waiting) = start_without_free_descriptors();
    let start = now();
    for mut next in waiting {
        drop(served.remove(0));
        next.expect("server got:waiting\t");
        served.push(next);
    }
    // If they were served only at the next try, a second after the last, these six would take more than five.
    assert!(start.elapsed() < Duration::from_millis(2_500), "{:?}", start.elapsed());
    drop(served);
    // No client waits, and there are enough descriptors: the daemon notices without another client.
    daemon.wait_for_log("info: accepting on echo again");
    daemon.connect().exchange("after");
    let log = daemon.stop();
    for text in ["failed to accept on echo", "accepting on echo again"] {
        let said = log.iter().filter(|line| line.contains(text)).count();
        assert_eq!(said, 1, "it was one shortage: {log:#?}");
    }
}

#[test]
fn waiting_clients_are_served_soon_after_the_nofile_limit_was_raised() {
    let (daemon, mut served, waiting) = start_without_free_descriptors();
    daemon.set_nofile_limit(getrlimit(Resource::Nofile).current);
    for mut next in waiting {
        next.expect("server got:waiting\t");
        served.push(next);
    }
    daemon.wait_for_log("info: accepting on echo again");
    drop(served);
    daemon.stop();
}

#[test]
fn watchdog_pings_and_reloads_work_while_no_descriptor_is_free() {
    let manager = ServiceManager::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    manager.set_notify_socket(&mut command).env("WATCHDOG_USEC", "200000");
    let daemon = Daemon::spawn_with(&mut command, "", &["--listen", "127.0.0.1:0"]);
    manager.expect_times("WATCHDOG=1", 1);
    let before = manager.expect_times("READY=1", 1).len();
    daemon.leave_free_descriptors(0);
    let _waiting = daemon.connect();
    daemon.wait_for_log("failed to accept");
    let pings = manager.notifications().iter().filter(|(_, message)| message[0] == "WATCHDOG=1").count();
    manager.expect_times("WATCHDOG=1", pings + 3);
    daemon.signal(Signal::HUP);
    manager.expect_times("READY=1", before + 1);
    manager.expect("RELOADING=1");
    daemon.stop();
}

/// A daemon from a shell that limits descriptors as `ulimit` says.
fn start_with_ulimit(ulimit: &str, configuration: &str) -> Daemon {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{ulimit}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_echoed")]);
    let daemon = Daemon::spawn_with(&mut command, configuration, &["--listen", "127.0.0.1:0"]);
    daemon.wait_for_log("listening on");
    daemon
}

/// Its soft limit on descriptors.
fn soft_limit(daemon: &Daemon) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("it runs");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("there is such a limit");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn the_soft_limit_is_raised_to_what_the_connections_need() {
    let two_workers = "[service]\nworkers = 2\n[limits]\n";
    let daemon = start_with_ulimit("ulimit -Sn 100", &format!("{two_workers}connections = 200\n"));
    // 96 connections may have no permit. 1,024 sockets of theirs may wait to be closed, and as many descriptors that peers sent;
    // each worker and the services may receive those of one message and have some of their own.
    let others = 64 + 96 + 2 * 1024 + 3 * 257;
    assert_eq!(soft_limit(&daemon), 200 + others);
    // So does a reload.
    fs::write(daemon.directory().join("echoed.toml"), format!("{two_workers}connections = 300\n")).unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("info: reloaded");
    assert_eq!(soft_limit(&daemon), 300 + others);
    let mut peers: Vec<_> = (0..300).map(|_| daemon.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.exchange("all fit"));
    drop(peers);
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.contains("descriptors") || line.contains("cannot accept")), "{log:#?}");

    // One that is higher stays.
    let daemon = start_with_ulimit("ulimit -Sn 5000", &format!("{two_workers}connections = 200\n"));
    assert_eq!(soft_limit(&daemon), 5000);
    daemon.stop();
}

#[test]
fn a_hard_limit_that_is_too_low_is_logged() {
    // Each worker needs descriptors of its own.
    let settings = |connections: usize| format!("[service]\nworkers = 1\n[limits]\nconnections = {connections}\n");
    let daemon = start_with_ulimit("ulimit -n 200", &settings(200));
    let warning = "warn: 200 descriptors are too few for limits.connections=200, further clients will wait; \
                   raise LimitNOFILE= of the service (ulimit -Hn of a shell)";
    assert_eq!(daemon.wait_for_log("too few"), warning);
    daemon.connect().exchange("served all the same");
    fs::write(daemon.directory().join("echoed.toml"), settings(32)).unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("info: reloaded");
    fs::write(daemon.directory().join("echoed.toml"), settings(33)).unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log_times("info: reloaded", 2);
    daemon.wait_for_log_times("200 descriptors are too few", 2);
    let log = daemon.stop();
    assert_eq!(log.iter().filter(|line| line.starts_with("warn: ")).count(), 2, "{log:#?}");
}

#[test]
fn a_thread_that_cannot_be_started_ends_the_start_with_71_and_a_line() {
    // The log, and two workers.
    for (number, what) in
        [(1, "cannot start the log: "), (2, "cannot start the workers: "), (3, "cannot start the workers: ")]
    {
        let inject = format!("clone3:error=EAGAIN:when={number}");
        let Some(strace) = Strace::new("clone3", &[inject]) else { return };
        let mut command = strace.command(env!("CARGO_BIN_EXE_echoed"));
        let mut daemon = Daemon::spawn_with(&mut command, "[service]\nworkers = 2\n", &["--listen", "127.0.0.1:0"]);
        assert_eq!(daemon.wait().code(), Some(71), "thread {number}: {:#?}", daemon.log());
        let log = daemon.log();
        let expected = format!("echoed: {what}Resource temporarily unavailable (os error 11)");
        let (last, before) = log.split_last().expect("there is a line");
        assert_eq!(*last, expected, "thread {number}");
        assert!(before.iter().all(|line| line.starts_with("info: listening on ")), "thread {number}: {log:#?}");
    }
}

#[test]
fn clients_that_were_served_before_a_thread_could_not_be_started_are_counted() {
    for number in 1..=3 {
        let inject = format!("clone3:error=EAGAIN:when={number}");
        let Some(strace) = Strace::new("clone3", &[inject]) else { return };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = format!("tcp:{}", listener.local_addr().expect("it is bound"));
        let mut peers: Vec<_> = (0..3).map(|_| Peer::connect(&address)).collect();
        peers.iter_mut().for_each(|peer| peer.send("whole\thalf"));
        let mut command = activated_command("3<&0", vec![listener.into()], "echo");
        command.env("TEST_WRAPPER", strace.wrapper());
        let mut daemon = Daemon::spawn_with_stdio(&mut command, "[service]\nworkers = 2\n", &[]);
        assert_eq!(daemon.wait().code(), Some(71), "thread {number}: {:#?}", daemon.log());
        for peer in &mut peers {
            peer.expect("server got:whole\t");
            peer.expect_close();
        }
        let log = daemon.log();
        let cut = "error: cut 3 connections, because the start failed";
        assert!(log.iter().any(|line| line == cut), "thread {number}: {log:#?}");
    }
}

#[test]
fn too_few_descriptors_for_a_start_end_it_with_71_and_a_line() {
    if program_or_skip("prlimit").is_none() {
        return;
    }
    // From those that a library needs while it is loaded, to the first that are enough for two workers and a listener.
    // How many those are depends on what this process has inherited.
    for limit in 4..=64 {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(env!("CARGO_BIN_EXE_echoed"));
        let mut daemon = Daemon::spawn_with(&mut command, "[service]\nworkers = 2\n", &["--listen", "127.0.0.1:0"]);
        if daemon.starts() {
            daemon.stop();
            assert!(limit >= 10, "it starts with {limit} descriptors");
            return;
        }
        assert_eq!(daemon.wait().code(), Some(71), "{limit} descriptors: {:#?}", daemon.log());
        let log = daemon.log();
        let is_named = |line: &String| line.starts_with("echoed: cannot ") && line.ends_with("(os error 24)");
        assert!(log.last().is_some_and(is_named), "{limit} descriptors: {log:#?}");
    }
    panic!("64 descriptors are too few");
}

#[test]
fn the_log_reaches_the_journal_if_clients_take_all_descriptors_before_it_is_connected() {
    let (Some(journal), Some(prlimit)) = (FakeJournald::start(), program_or_skip("prlimit")) else { return };
    let Some(strace) = Strace::new("connect", &["connect:delay_enter=1500000:when=1".to_owned()]) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = format!("tcp:{}", listener.local_addr().expect("it is bound"));
    let mut command = journal.command();
    command.env("LISTEN_FDNAMES", "echo").stdin(OwnedFd::from(listener));
    command.env("TEST_WRAPPER", format!("{} --nofile=32:32 {}", prlimit.display(), strace.wrapper()));
    let mut daemon = Daemon::spawn_with_stdio(&mut command, "", &[]);
    let peers: Vec<_> = (0..40).map(|_| Peer::connect(&address)).collect();
    journal.expect("the pause", |entry| {
        entry.text("MESSAGE").starts_with("failed to accept on echo: Too many open files")
    });
    drop(peers);
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    assert_eq!(daemon.log(), [""; 0], "entries were written as lines");
}

#[test]
fn messages_are_logged_and_answered_if_clients_took_all_descriptors_before_the_first_message() {
    let Some(journal) = FakeJournald::start() else { return };
    let settings = "[defaults]\nlog_messages = 'full'\n";
    let daemon =
        Daemon::spawn_with(&mut journal.command(), settings, &["--listen", "127.0.0.1:0", "--log-level", "debug"]);
    let address = &journal.addresses(1)[0];
    let mut first = Peer::connect(address);
    journal.expect("the beginning of its connection", |entry| !entry.text("PEER").is_empty());
    daemon.leave_free_descriptors(0);
    first.exchange("logged");
    journal.expect("its message", |entry| entry.text("MESSAGE") == "logged");
    // The journal's socket is made anew.
    journal.take_down();
    first.send("later\t");
    journal.bring_up();
    first.expect("server got:later\t");
    daemon.signal(Signal::TERM);
}
