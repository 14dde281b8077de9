//! The notify protocol (sd_notify(3)) against a fake service manager: reload, status, watchdog, the time for an end,
//! the barrier. When READY=1 and STOPPING=1 are sent is tested in activation/notifications.rs.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::hang::hang_thread;
use common::{Daemon, Peer, ServiceManager, TEST_TIMEOUT, now};
use rustix::fs::{FileType, Mode};
use rustix::process::Signal;
use tempfile::TempDir;

const ECHOED: &str = env!("CARGO_BIN_EXE_echoed");

/// Starts a daemon on a port of its own, with `manager` as its service manager.
fn start_with_manager(manager: &ServiceManager, configuration: &str, environment: &[(&str, &str)]) -> Daemon {
    let mut command = Command::new(ECHOED);
    manager.set_notify_socket(&mut command).envs(environment.iter().copied());
    let daemon = Daemon::spawn_with(&mut command, configuration, &["--listen", "127.0.0.1:0"]);
    manager.expect("READY=1");
    // A thread of its own logs it, some time later.
    daemon.wait_for_log("listening on");
    daemon
}

fn write_configuration(daemon: &Daemon, text: &str) {
    fs::write(daemon.directory().join("echoed.toml"), text).expect("the directory is ours");
}

#[test]
fn a_reload_sends_reloading_with_a_timestamp_and_then_ready() {
    let manager = ServiceManager::start();
    let daemon = start_with_manager(&manager, "[limits]\nconnections = 7\n", &[]);
    let before = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    daemon.signal(Signal::HUP);
    manager.expect_times("READY=1", 2);
    let after = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    daemon.stop();
    assert_eq!(manager.state_changes(), ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]);
    let messages = manager.notifications();
    let (_, reloading) = messages.iter().find(|(_, message)| message[0] == "RELOADING=1").expect("it is one message");
    // systemd drops the announcement of a reload that began before the one it asked for (sd_notify(3)).
    let [_, time] = &reloading[..] else { panic!("{reloading:?}") };
    let time: i64 = time.strip_prefix("MONOTONIC_USEC=").expect("it says when").parse().expect("it is a number");
    let micros = |time: rustix::time::Timespec| time.tv_sec * 1_000_000 + time.tv_nsec / 1000;
    assert!((micros(before)..=micros(after)).contains(&time), "{before:?} {time} {after:?}");
}

#[test]
fn a_failed_reload_ends_with_ready_and_the_status_shows_the_error() {
    let manager = ServiceManager::start();
    let daemon = start_with_manager(&manager, "[limits]\nconnections = 7\n", &[]);
    assert_eq!(manager.expect_matching("STATUS=", |_| true), "0/7 connections, 1 listener, 0 messages");
    write_configuration(&daemon, "[limits]\nconnections = 8\nconections = 9\n");
    daemon.signal(Signal::HUP);
    manager.expect_times("READY=1", 2);
    let status = manager.expect_matching("STATUS=", |_| true);
    let file = daemon.directory().join("echoed.toml");
    let start = format!("0/7 connections, 1 listener, 0 messages; failed to reload: {}:3:1: ", file.display());
    assert!(status.starts_with(&start) && status.contains("is connections meant?"), "{status}");

    write_configuration(&daemon, "[limits]\nconnections = 8\n");
    daemon.signal(Signal::HUP);
    manager.expect_times("READY=1", 3);
    assert_eq!(manager.expect_matching("STATUS=", |_| true), "0/8 connections, 1 listener, 0 messages");
    daemon.stop();
    let reload = ["RELOADING=1", "READY=1"];
    assert_eq!(manager.state_changes(), [&["READY=1"][..], &reload, &reload, &["STOPPING=1"]].concat());
}

#[test]
fn text_in_the_status_cannot_inject_other_assignments() {
    let manager = ServiceManager::start();
    let daemon = start_with_manager(&manager, "[log]\nlevel = \"info\"\n", &[]);
    write_configuration(&daemon, "\"x\\nSTOPPING=1\\nMAINPID=1\" = 1\n");
    daemon.signal(Signal::HUP);
    manager.expect_times("READY=1", 2);
    assert!(manager.expect_matching("STATUS=", |_| true).contains("STOPPING=1"), "it is a part of the text");
    let mut peer = daemon.connect();
    peer.exchange("\nSTOPPING=1\nSTATUS=mine\n");
    peer.send("\nMAINPID=1\n");
    peer.reset();
    daemon.stop();
    assert_eq!(manager.state_changes(), ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]);
    let known =
        ["READY=1", "RELOADING=1", "MONOTONIC_USEC=", "STATUS=", "STOPPING=1", "EXTEND_TIMEOUT_USEC=", "BARRIER=1"];
    for (_, message) in manager.notifications() {
        for sent in message.iter().filter(|sent| *sent != "END=1") {
            assert!(known.iter().any(|known| sent.starts_with(known)), "{sent}");
        }
    }
}

#[test]
fn the_status_is_updated_at_most_every_5_seconds_and_only_when_it_changed() {
    let manager = ServiceManager::start();
    let daemon = start_with_manager(&manager, "", &[]);
    let mut peer = daemon.connect();
    for _ in 0..1234 {
        peer.exchange("");
    }
    manager.expect("STATUS=1/4096 connections, 1 listener, 1,234 messages");
    peer.exchange("");
    manager.expect("STATUS=1/4096 connections, 1 listener, 1,235 messages");
    // Nothing happens now, for longer than until the next time.
    thread::sleep(Duration::from_millis(5500));
    let sent: Vec<_> = manager
        .notifications()
        .into_iter()
        .filter(|(_, message)| message.iter().any(|sent| sent.starts_with("STATUS=")))
        .collect();
    assert_eq!(sent.len(), 3, "with READY=1, and the two that were waited for: {sent:#?}");
    for pair in sent.windows(2) {
        assert!(pair[1].0 - pair[0].0 > Duration::from_millis(4900), "{sent:#?}");
    }
    peer.expect_silence(Duration::from_millis(1));
    daemon.stop();
}

#[test]
fn watchdog_pings_are_sent_at_half_the_watchdog_interval() {
    let manager = ServiceManager::start();
    let daemon = start_with_manager(&manager, "", &[("WATCHDOG_USEC", "1000000")]);
    let pings = manager.expect_times("WATCHDOG=1", 4);
    assert!(pings[3] - pings[0] >= Duration::from_millis(1400), "{pings:?}");
    daemon.stop();
}

#[test]
fn a_hung_worker_stops_the_watchdog_pings_while_others_still_serve() {
    let manager = ServiceManager::start();
    let daemon = start_with_manager(&manager, "[service]\nworkers = 2\n", &[("WATCHDOG_USEC", "200000")]);
    // The second connection is on the second worker, which goes on.
    let (mut first, mut second) = (daemon.connect(), daemon.connect());
    first.exchange("a");
    second.exchange("a");
    manager.expect_times("WATCHDOG=1", 3);
    if !hang_thread(daemon.pid(), "worker-0") {
        return;
    }
    daemon.wait_for_log("a worker thread is not responding");
    let count = || manager.notifications().iter().filter(|(_, message)| message[0] == "WATCHDOG=1").count();
    let pings = count();
    second.exchange("b");
    first.send("b\t");
    first.expect_silence(Duration::from_secs(1));
    second.exchange("c");
    assert_eq!(count(), pings);
}

#[test]
fn a_watchdog_of_another_process_gets_no_pings() {
    let manager = ServiceManager::start();
    let daemon = start_with_manager(&manager, "", &[("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")]);
    thread::sleep(Duration::from_millis(500));
    daemon.stop();
    manager.state_changes();
    assert!(!manager.notifications().iter().any(|(_, message)| message[0].starts_with("WATCHDOG")));
}

#[test]
fn the_daemon_extends_its_stop_timeout_while_it_drains() {
    let manager = ServiceManager::start();
    let mut command = Command::new(ECHOED);
    let configuration = "[service]\ndrain_timeout = \"1h\"\n[defaults.deadlines]\nwrite = \"off\"\n";
    let mut daemon =
        Daemon::spawn_with(manager.set_notify_socket(&mut command), configuration, &["--listen", "DIR/socket"]);
    daemon.wait_for_log("listening on");
    let mut peer = daemon.connect();
    // More replies than fit into the socket, so that it cannot end before they are read.
    peer.send([b'\t'; 60_000]);
    peer.expect("server got:\t");
    daemon.signal(Signal::TERM);
    // Again before the time that was asked for is over.
    let asked = manager.expect_times("EXTEND_TIMEOUT_USEC=20000000", 2);
    assert!(asked[1] - asked[0] < Duration::from_secs(20), "{asked:?}");
    peer.read_to_end();
    assert!(daemon.wait().success());
}

#[test]
fn the_daemon_waits_for_the_notify_barrier_before_it_exits() {
    for manager in [ServiceManager::start(), ServiceManager::start_abstract()] {
        let daemon = start_with_manager(&manager, "", &[]);
        daemon.stop();
        // It could not have ended otherwise: the answer to the barrier is that its descriptor is closed.
        assert_eq!(manager.received_descriptors(), 1);
        let messages = manager.notifications();
        assert_eq!(messages.last().map(|(_, message)| &message[..]), Some(&["BARRIER=1".to_owned()][..]));
    }
}

/// Starts a daemon whose service manager has a socket with room for the notifications, and reads nothing. Returns that as well.
fn start_with_silent_manager() -> (Daemon, (TempDir, UnixDatagram)) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("the path is free");
    let mut command = Command::new(ECHOED);
    command.env("NOTIFY_SOCKET", path);
    let daemon = Daemon::spawn_with(&mut command, "", &["--listen", "127.0.0.1:0"]);
    daemon.wait_for_log("listening on");
    (daemon, (directory, socket))
}

#[test]
fn a_service_manager_that_no_longer_reads_delays_the_exit_by_at_most_5_seconds() {
    let (mut daemon, _manager) = start_with_silent_manager();
    let start = now();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    let time = start.elapsed();
    assert!(time > Duration::from_millis(4900) && time < TEST_TIMEOUT, "{time:?}");
    daemon.wait_for_log("failed to notify the service manager");
}

#[test]
fn clients_are_served_while_the_service_manager_does_not_read() {
    let manager = ServiceManager::start();
    let daemon = start_with_manager(&manager, "", &[("WATCHDOG_USEC", "100000")]);
    manager.suspend_reading();
    for message in ["a", "b", "c"] {
        Peer::connect(&daemon.addresses()[0]).exchange(message);
    }
    let before = manager.notifications().len();
    manager.expect_times("WATCHDOG=1", 5);
    assert!(manager.notifications().len() > before);
    daemon.stop();
}

#[test]
fn signals_do_not_prolong_the_wait_for_the_notify_barrier() {
    let (daemon, _manager) = start_with_silent_manager();
    let start = now();
    daemon.signal(Signal::TERM);
    while !daemon.log().iter().any(|line| line.contains("failed to notify the service manager")) {
        assert!(start.elapsed() < TEST_TIMEOUT, "it still waits");
        // Some more often than the time that is waited for.
        daemon.signal(Signal::HUP);
        thread::sleep(Duration::from_millis(100));
    }
    assert!(start.elapsed() > Duration::from_millis(4900), "{:?}", start.elapsed());
}

/// Has the service manager notified several times, as far as that is possible: of reloads, and of their ends.
fn notify_again(daemon: &Daemon) {
    for times in 1..=3 {
        daemon.signal(Signal::HUP);
        daemon.wait_for_log_times("reloaded: ", times);
    }
}

#[test]
fn an_address_of_the_service_manager_that_is_not_supported_is_reported_once() {
    for address in ["vsock-stream:2:1234", "vsock:2:1234", "notify", "@", "/"] {
        let mut command = Command::new(ECHOED);
        command.env("NOTIFY_SOCKET", address).env("WATCHDOG_USEC", "20000").env_remove("WATCHDOG_PID");
        let daemon = Daemon::spawn_with(&mut command, "", &["--listen", "127.0.0.1:0"]);
        let said = daemon.wait_for_log("NOTIFY_SOCKET=");
        let expected = format!("warn: ignoring NOTIFY_SOCKET={address}: only a path and @NAME are supported");
        assert!(said.starts_with(&expected), "{said}");
        daemon.wait_for_log("listening on");
        notify_again(&daemon);
        let log = daemon.stop();
        assert_eq!(log.iter().filter(|line| line.contains("notif")).count(), 1, "{log:#?}");
    }
}

#[test]
fn a_service_manager_that_cannot_be_reached_is_reported_once() {
    let mut command = Command::new(ECHOED);
    command.env("NOTIFY_SOCKET", "/no such directory/notify");
    command.env("WATCHDOG_USEC", "20000").env_remove("WATCHDOG_PID");
    let daemon = Daemon::spawn_with(&mut command, "", &["--listen", "127.0.0.1:0"]);
    daemon.wait_for_log("failed to notify the service manager on /no such directory/notify: No such file");
    daemon.wait_for_log("listening on");
    notify_again(&daemon);
    let log = daemon.stop();
    assert_eq!(log.iter().filter(|line| line.contains("failed to notify")).count(), 1, "{log:#?}");
}

/// Replaces the configuration by a pipe to which no process writes yet.
fn replace_configuration_by_pipe(daemon: &Daemon) -> std::path::PathBuf {
    let path = daemon.directory().join("echoed.toml");
    fs::remove_file(&path).expect("the directory is ours");
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .expect("there are pipes");
    path
}

#[test]
fn a_reload_that_takes_long_delays_neither_watchdog_pings_nor_the_status() {
    let manager = ServiceManager::start();
    let daemon = start_with_manager(&manager, "[limits]\nconnections = 7\n", &[("WATCHDOG_USEC", "100000")]);
    let pipe = replace_configuration_by_pipe(&daemon);
    daemon.signal(Signal::HUP);
    manager.expect("RELOADING=1");
    let count =
        |what: &str| manager.notifications().iter().filter(|(_, sent)| sent.iter().any(|one| one == what)).count();
    let before = count("WATCHDOG=1");
    let mut peer = daemon.connect();
    peer.exchange("a");
    manager.expect_times("WATCHDOG=1", before + 5);
    manager.expect("STATUS=1/7 connections, 1 listener, 1 messages");
    assert_eq!(count("READY=1"), 1);
    // What is asked for meanwhile is done afterwards.
    daemon.signal(Signal::HUP);
    fs::write(&pipe, "[limits]\nconnections = 8\n").expect("it is read");
    manager.expect_times("READY=1", 2);
    manager.expect_times("RELOADING=1", 2);
    fs::write(&pipe, "[limits]\nconnections = 9\n").expect("it is read");
    manager.expect_times("READY=1", 3);
    assert_eq!(manager.expect_matching("STATUS=", |_| true), "1/9 connections, 1 listener, 1 messages");
    daemon.stop();
}

#[test]
fn a_daemon_whose_reload_takes_long_ends_when_it_is_asked_to() {
    for signal in [Signal::TERM, Signal::INT] {
        let manager = ServiceManager::start();
        let mut daemon = start_with_manager(&manager, "[limits]\nconnections = 7\n", &[]);
        replace_configuration_by_pipe(&daemon);
        daemon.signal(Signal::HUP);
        manager.expect("RELOADING=1");
        daemon.signal(signal);
        assert!(daemon.wait().success());
        assert_eq!(manager.state_changes(), ["READY=1", "RELOADING=1", "STOPPING=1"]);
    }
}
