//! Lame duck: everything is served as before, and load balancers are told to send new clients elsewhere.

use std::thread;
use std::time::Duration;

use super::{SECTION, SHORT, Varlink, start};
use crate::monitor::http::get;
use common::echoctl::echoctl;
use common::service::{FdStore, Service};
use common::{Daemon, Peer, ServiceManager, now, wait_until};
use rustix::fs::{FileType, Mode, OFlags, open};
use rustix::process::Signal;

const SECTIONS: &str = "[listener.monitor]\nrole = 'monitor'\n[listener.agent]\nrole = 'agent'\n";
const SOCKETS: [&str; 4] = ["tcp:echo", "unix:control", "tcp:monitor", "tcp:agent"];

fn start_service(configuration: &str) -> Service {
    Service::start_on(&SOCKETS, FdStore::Enabled, &[SECTION, SECTIONS, configuration].concat())
}

/// Checks what load balancers and monitoring systems are told.
fn expect_draining(service: &Service, is_draining: bool) {
    let readyz = get(service.address(2), "/readyz");
    let expected = if is_draining { (503, "draining\n") } else { (200, "ok\n") };
    assert_eq!((readyz.status, &*readyz.body), expected);
    let metrics = get(service.address(2), "/metrics").body;
    let (draining, ready) = (u8::from(is_draining), u8::from(!is_draining));
    assert!(metrics.contains(&format!("\nechoed_draining {draining}\n")), "{metrics}");
    assert!(metrics.contains(&format!("\nechoed_ready {ready}\n")), "{metrics}");
    let answer = Peer::connect(service.address(3)).read_to_end();
    assert_eq!(String::from_utf8_lossy(&answer), if is_draining { "up 0%\n" } else { "up 100%\n" });
    // Everything is served as before, new clients as well.
    service.connect().exchange("new");
}

fn control(service: &Service, command: &str) {
    let path = service.address(1).strip_prefix("unix:").expect("it is a Unix socket");
    echoctl(&[command, "--socket", path]).check(0);
}

#[test]
fn it_begins_and_ends_by_control_and_by_signals_and_each_is_logged() {
    let service = start_service("");
    let mut peer = service.connect();
    expect_draining(&service, false);
    control(&service, "drain");
    expect_draining(&service, true);
    peer.exchange("as before");
    control(&service, "resume");
    expect_draining(&service, false);
    service.daemon.signal(Signal::USR1);
    service.daemon.wait_for_log("lame duck began: SIGUSR1; load balancers are told to send new clients elsewhere");
    expect_draining(&service, true);
    service.daemon.signal(Signal::USR2);
    service.daemon.wait_for_log("lame duck ended: SIGUSR2; load balancers may send new clients again");
    expect_draining(&service, false);
    peer.exchange("as before");
    for text in [" called Drain; ", " called Resume; "] {
        service.daemon.wait_for_log(text);
    }
    service.daemon.stop();
}

#[test]
fn the_status_line_says_so_at_once() {
    let manager = ServiceManager::start();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_echoed"));
    manager.set_notify_socket(&mut command);
    let daemon = Daemon::spawn_with(&mut command, "", &["--listen", "127.0.0.1:0"]);
    manager.expect_times("READY=1", 1);
    let status = |text: &str| {
        let is_status = |line: &String| line.starts_with("STATUS=") && line.contains(text);
        manager.notifications().iter().filter(|(_, lines)| lines.iter().any(is_status)).count()
    };
    assert_eq!(status("draining"), 0);
    daemon.signal(Signal::USR1);
    wait_until("the status says so", || status("STATUS=draining; 0/4096 connections") == 1);
    daemon.signal(Signal::USR2);
    wait_until("the status no longer says so", || status("STATUS=0/4096 connections") > 1);
    daemon.stop();
}

#[test]
fn it_goes_through_restarts_with_and_without_connections() {
    for handover in ["true", "false"] {
        let configuration = [SECTION, SECTIONS, "[service]\nhandover = ", handover, "\n"].concat();
        let mut service = start_service(&format!("[service]\nhandover = {handover}\n"));
        control(&service, "drain");
        service.restart(&configuration);
        expect_draining(&service, true);
        let mut peer = service.connect();
        peer.exchange("a");
        service.restart(&configuration);
        expect_draining(&service, true);
        control(&service, "resume");
        service.restart(&configuration);
        expect_draining(&service, false);
        service.daemon.stop();
    }
}

#[test]
fn there_is_no_exit_for_idleness_meanwhile() {
    let mut service = start_service("[service]\nidle_exit = '200ms'\n");
    service.daemon.signal(Signal::USR1);
    service.daemon.wait_for_log("lame duck began");
    // Longer than idle_exit.
    thread::sleep(Duration::from_secs(1));
    assert!(service.daemon.log().iter().all(|line| !line.contains("stopping")), "{:#?}", service.daemon.log());
    service.daemon.signal(Signal::USR2);
    assert!(service.daemon.wait().success());
    service.daemon.wait_for_log("stopping: no connection for 200ms (service.idle_exit)");
}

#[test]
fn a_stop_that_drains_serves_on_for_the_time_of_service_lame_duck() {
    let (mut daemon, _) = start("[service]\nlame_duck = '1s'\n");
    let address = daemon.addresses().remove(0);
    let mut open = Peer::connect(&address);
    open.exchange("a");
    let begun = now();
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping: SIGTERM; draining, and serving as before for 1s (service.lame_duck)");
    open.exchange("as before");
    Peer::connect(&address).exchange("new");
    assert!(daemon.wait().success());
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    open.expect_close();
}

#[test]
fn a_second_signal_ends_the_time_of_service_lame_duck() {
    let (mut daemon, _) = start("[service]\nlame_duck = '1h'\n");
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("serving as before for 1h");
    daemon.signal(Signal::INT);
    assert!(daemon.wait().success());
    daemon.wait_for_log("lame duck ends: SIGINT");
}

/// Otherwise load balancers would send new clients to a daemon that is about to stop.
#[test]
fn neither_resume_nor_a_signal_ends_the_lame_duck_before_a_stop() {
    let mut service = start_service("[service]\nlame_duck = '1h'\nhandover = false\n");
    service.daemon.signal(Signal::TERM);
    service.daemon.wait_for_log("serving as before for 1h");
    let path = service.address(1).to_owned();
    let replies = Varlink::connect(&path).call(r#"{"method":"io.echoed.Resume"}"#);
    assert_eq!(replies[0]["error"], "io.echoed.Stopping");
    service.daemon.wait_for_log(" called Resume; the daemon is about to stop");
    service.daemon.signal(Signal::USR2);
    let path = path.strip_prefix("unix:").expect("it is a Unix socket");
    echoctl(&["resume", "--socket", path]).check_failure(1, "the daemon is about to stop");
    expect_draining(&service, true);
    // Calls that change nothing are no error.
    control(&service, "drain");
    expect_draining(&service, true);
    service.daemon.signal(Signal::TERM);
    assert!(service.daemon.wait().success());
    // The next process does not go on with it: it was that of the stop.
    service.start_next(&[SECTION, SECTIONS].concat());
    expect_draining(&service, false);
    service.daemon.stop();
}

#[test]
fn the_service_manager_is_told_to_wait_for_the_time_before_a_stop() {
    let manager = ServiceManager::start();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_echoed"));
    manager.set_notify_socket(&mut command);
    let configuration = "[service]\nlame_duck = '1h'\n";
    let mut daemon = Daemon::spawn_with(&mut command, configuration, &["--listen", "127.0.0.1:0"]);
    manager.expect("READY=1");
    daemon.signal(Signal::INT);
    manager.expect("STOPPING=1");
    manager.expect_matching("EXTEND_TIMEOUT_USEC=", |_| true);
    daemon.signal(Signal::INT);
    assert!(daemon.wait().success());
}

/// Programs that rotate logs may send it at any time. It would end a process that does not catch it yet.
#[test]
fn a_signal_during_the_start_is_obeyed_when_it_is_over() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let pipe = directory.path().join("pipe.toml");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("it can be made");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_echoed"));
    let arguments = ["--listen", "127.0.0.1:0", "--config", pipe.to_str().expect("it is UTF-8")];
    let daemon = Daemon::spawn_with(&mut command, "", &arguments);
    let mut writer = None;
    wait_until("the daemon reads its settings", || {
        // Only possible while there is a reader.
        writer = open(&pipe, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok();
        writer.is_some()
    });
    daemon.signal(Signal::USR1);
    drop(writer);
    daemon.wait_for_log("lame duck began: SIGUSR1");
    daemon.connect().exchange("a");
    daemon.stop();
}

#[test]
fn the_time_in_lame_duck_before_a_stop_counts() {
    let (mut daemon, path) = start("[service]\nlame_duck = '300ms'\n");
    echoctl(&["drain", "--socket", &path]).check(0);
    thread::sleep(SHORT);
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    let log = daemon.log();
    assert!(log.iter().any(|line| line.ends_with("stopping: SIGTERM")), "{log:#?}");
}

#[test]
fn a_restart_that_hands_connections_over_does_not_wait() {
    let mut service = start_service("[service]\nlame_duck = '1h'\n");
    let mut peer = service.connect();
    peer.exchange("a");
    service.restart(&[SECTION, SECTIONS].concat());
    peer.exchange("as before");
    service.daemon.stop();
}
