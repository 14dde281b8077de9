//! The notifications to the service manager, and when they are sent (sd_notify(3)).

use std::process::Command;

use rustix::process::Signal;

use super::refused::netlink;
use super::{ECHOED, connect, spawn};
use common::service_manager::activated_command;
use common::{Daemon, ServiceManager};

/// Starts a daemon on a Unix socket of its directory, with `manager` as its service manager.
fn spawn_with_manager(manager: &ServiceManager, configuration: &str) -> Daemon {
    let mut command = Command::new(ECHOED);
    Daemon::spawn_with(manager.set_notify_socket(&mut command), configuration, &["--listen", "DIR/socket"])
}

#[test]
fn ready_means_that_clients_are_served() {
    let manager = ServiceManager::start();
    let daemon = spawn_with_manager(&manager, "");
    manager.expect("READY=1");
    connect(&daemon, "socket").exchange("a");
    daemon.stop();
    assert_eq!(manager.state_changes(), ["READY=1", "STOPPING=1"]);
}

#[test]
fn clients_are_served_while_the_service_manager_reads_no_notifications() {
    let manager = ServiceManager::start();
    manager.suspend_reading();
    let daemon = spawn_with_manager(&manager, "");
    // Clients are served before READY=1 can be sent: it is not sent too early, and no client waits for it.
    daemon.wait_for_log("listening on");
    connect(&daemon, "socket").exchange("a");
    manager.expect("READY=1");
    daemon.stop();
    assert_eq!(manager.state_changes(), ["READY=1", "STOPPING=1"]);
}

#[test]
fn stopping_is_sent_before_the_last_replies_are_read() {
    let manager = ServiceManager::start();
    let mut daemon =
        spawn_with_manager(&manager, "[service]\ndrain_timeout = \"1min\"\n[defaults.deadlines]\nwrite = \"off\"\n");
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
    assert_eq!(manager.state_changes(), ["READY=1", "STOPPING=1"]);
}

#[test]
fn notifications_are_sent_to_an_abstract_notify_socket() {
    let manager = ServiceManager::start_abstract();
    let daemon = spawn_with_manager(&manager, "");
    daemon.wait_for_log("listening on");
    connect(&daemon, "socket").exchange("a");
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.contains("failed to notify")), "{log:#?}");
    assert_eq!(manager.state_changes(), ["READY=1", "STOPPING=1"]);
}

#[test]
fn an_unreachable_notify_socket_is_logged_and_clients_are_served() {
    let mut command = Command::new(ECHOED);
    command.env("NOTIFY_SOCKET", "/no such directory/notify");
    let daemon = Daemon::spawn_with(&mut command, "", &["--listen", "DIR/socket"]);
    let warning = daemon.wait_for_log("failed to notify");
    assert!(warning.starts_with("warn: ") && warning.contains("/no such directory/notify"), "{warning}");
    connect(&daemon, "socket").exchange("a");
    daemon.stop();
}

#[test]
fn ready_is_not_sent_if_the_daemon_fails_to_start() {
    let manager = ServiceManager::start();
    let mut command = activated_command("3<&0", vec![netlink()], "echo");
    manager.set_notify_socket(&mut command);
    assert_eq!(spawn(command, "", &[]).wait().code(), Some(78));
    assert_eq!(manager.state_changes(), [""; 0]);
}
