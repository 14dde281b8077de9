//! What systemd is told, and when (sd_notify(3)).

use std::process::Command;

use rustix::process::Signal;

use crate::common::manager::hand_over;
use crate::common::{Daemon, Manager};
use crate::refused::netlink;
use crate::{ECHOED, connect, spawn};

/// A daemon on a Unix socket of its directory, which tells `manager` how it is.
fn watched(manager: &Manager, configuration: &str) -> Daemon {
    let mut command = Command::new(ECHOED);
    Daemon::spawn_with(manager.watch(&mut command), configuration, &["--listen", "DIR/socket"])
}

#[test]
fn ready_means_that_clients_are_served() {
    let manager = Manager::start();
    let daemon = watched(&manager, "");
    manager.expect("READY=1");
    connect(&daemon, "socket").exchange("a");
    daemon.stop();
    assert_eq!(manager.states(), ["READY=1", "STOPPING=1"]);
}

#[test]
fn clients_are_served_while_the_manager_has_no_time_to_hear_about_it() {
    let manager = Manager::start();
    manager.stop_listening();
    let daemon = watched(&manager, "");
    // It is served before there was a way to say so: nothing was said too early, nor does anybody wait for that.
    daemon.wait_for_log("listening on");
    connect(&daemon, "socket").exchange("a");
    manager.expect("READY=1");
    daemon.stop();
    assert_eq!(manager.states(), ["READY=1", "STOPPING=1"]);
}

#[test]
fn the_manager_hears_of_a_stop_before_the_last_replies_are_taken() {
    let manager = Manager::start();
    let mut daemon = watched(&manager, "[service]\ndrain = \"1min\"\n[defaults.deadlines]\nwrite = \"off\"\n");
    manager.expect("READY=1");
    let mut peer = connect(&daemon, "socket");
    peer.exchange("a");
    // More replies than fit into the socket, so that it cannot end before they are read.
    peer.send([b'\t'; 60_000]);
    peer.expect("server got:\t");
    daemon.signal(Signal::TERM);
    manager.expect("STOPPING=1");
    let replies = peer.read_to_end();
    assert!(daemon.wait().success());
    // What is owed is whole replies; the first was taken before.
    assert!(!replies.is_empty() && replies.len() % "server got:\t".len() == 0, "{} bytes", replies.len());
    assert_eq!(manager.states(), ["READY=1", "STOPPING=1"]);
}

#[test]
fn a_manager_with_an_abstract_name_is_told_the_same() {
    let manager = Manager::start_abstract();
    let daemon = watched(&manager, "");
    daemon.wait_for_log("listening on");
    connect(&daemon, "socket").exchange("a");
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.contains("cannot notify")), "{log:#?}");
    assert_eq!(manager.states(), ["READY=1", "STOPPING=1"]);
}

#[test]
fn a_manager_that_cannot_be_told_is_warned_about_and_clients_are_served() {
    let mut command = Command::new(ECHOED);
    command.env("NOTIFY_SOCKET", "/no such directory/notify");
    let daemon = Daemon::spawn_with(&mut command, "", &["--listen", "DIR/socket"]);
    let warning = daemon.wait_for_log("cannot notify");
    assert!(warning.starts_with("warn: ") && warning.contains("/no such directory/notify"), "{warning}");
    connect(&daemon, "socket").exchange("a");
    daemon.stop();
}

#[test]
fn nobody_hears_that_a_daemon_is_ready_that_is_not() {
    let manager = Manager::start();
    let mut command = hand_over("3<&0", vec![netlink()], "echo");
    manager.watch(&mut command);
    assert_eq!(spawn(command, "", &[]).wait().code(), Some(71));
    assert_eq!(manager.states(), [""; 0]);
}
