//! The exit of an idle process (`service.idle_exit`), which loses no client.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::service_manager::activated_command;
use common::{Daemon, Peer, ServiceManager, TEST_TIMEOUT, now};
use rustix::process::Signal;

const ECHOED: &str = env!("CARGO_BIN_EXE_echoed");

/// What systemd does with a service that may end, under systemd-socket-activate, which starts it only once.
const RESTARTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/idle_exit/restarter.py");

/// A daemon on the Unix socket `socket` of its directory, that is started for a client and again for a later one.
fn spawn_activated(configuration: &str) -> Option<Daemon> {
    let activate = common::program_or_skip("systemd-socket-activate")?;
    let python = common::program_or_skip("python3")?;
    let arguments = ["-l", "DIR/socket", "--fdname=echo", python.to_str()?, RESTARTER, ECHOED];
    let daemon = Daemon::spawn_with(&mut Command::new(activate), configuration, &arguments);
    daemon.wait_for_log("Listening on");
    Some(daemon)
}

/// One exchange on a connection of its own, as far as it goes.
fn exchange(socket: &Path, message: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TEST_TIMEOUT))?;
    stream.write_all(format!("{message}\t").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

#[test]
fn a_process_is_started_again_for_the_next_client_after_an_idle_exit() {
    let Some(daemon) = spawn_activated("[service]\nidle_exit = '200ms'\n") else { return };
    let socket = daemon.directory().join("socket");
    for round in 1..=3 {
        assert_eq!(exchange(&socket, "a").unwrap(), "server got:a\t");
        daemon.wait_for_log_times("started ", round);
        daemon.wait_for_log_times("stopping: no connection for 200ms (service.idle_exit)", round);
        let ended = daemon.wait_for_log_times("ended with", round);
        assert!(ended.iter().all(|line| line == "ended with 0"), "{ended:?}");
    }
}

#[test]
fn a_thousand_clients_around_idle_exits_are_all_served() {
    let Some(daemon) = spawn_activated("[service]\nidle_exit = '20ms'\n") else { return };
    let socket = daemon.directory().join("socket");
    let served = AtomicUsize::new(0);
    // After each exchange, a client waits about as long as the process does before it exits, a little more or less each
    // time, so that clients come in every moment of its end.
    thread::scope(|scope| {
        for client in 0..4_u64 {
            let (socket, served) = (&socket, &served);
            scope.spawn(move || {
                for round in 0..250_u64 {
                    let message = format!("{client}-{round}");
                    match exchange(socket, &message) {
                        Ok(reply) => assert_eq!(reply, format!("server got:{message}\t")),
                        Err(error) => panic!("{message}: {error}"),
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                    if client == 0 {
                        thread::sleep(Duration::from_micros(19_000 + round * 40));
                    } else if round % 25 == 24 {
                        // In between all of them are away at once.
                        thread::sleep(Duration::from_millis(500));
                    }
                }
            });
        }
    });
    assert_eq!(served.load(Ordering::Relaxed), 1000);
    let exits = daemon.log().iter().filter(|line| line.starts_with("ended with")).count();
    assert!(exits >= 20, "the process ended only {exits} times");
    assert!(!daemon.log().iter().any(|line| line.starts_with("ended with") && line != "ended with 0"));
}

#[test]
fn the_daemon_exits_after_the_idle_time_and_notifies_the_service_manager() {
    let manager = ServiceManager::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut command = activated_command("3<&0", vec![listener.try_clone().unwrap().into()], "echo");
    manager.set_notify_socket(&mut command);
    let mut daemon = Daemon::spawn_with_stdio(&mut command, "[service]\nidle_exit = '600ms'\n", &[]);
    manager.expect("READY=1");
    let mut peer = Peer::connect(&address);
    // Longer than that, but there is a connection.
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(250));
        peer.exchange("still here");
    }
    drop(peer);
    let end = now();
    assert_eq!(daemon.wait().code(), Some(0));
    let time = end.elapsed();
    assert!(time > Duration::from_millis(550) && time < Duration::from_secs(10), "{time:?}");
    assert_eq!(manager.state_changes(), ["READY=1", "STOPPING=1"]);
    let status = manager.expect_matching("STATUS=", |_| true);
    assert_eq!(status, "stopping: no connection for 600ms (service.idle_exit)");
}

#[test]
fn a_process_without_any_client_exits_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = activated_command("3<&0", vec![listener.into()], "echo");
    let mut daemon = Daemon::spawn_with_stdio(&mut command, "[service]\nidle_exit = '100ms'\n", &[]);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_client_that_connects_at_the_idle_exit_is_served_and_the_process_stays() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut command = activated_command("3<&0", vec![listener.into()], "echo");
    let daemon = Daemon::spawn_with_stdio(&mut command, "[service]\nidle_exit = '2s'\nworkers = 1\n", &[]);
    // It is stopped within this time.
    daemon.wait_for_log("listening on");
    // The process is stopped over its time. When it continues, the time is over and a client waits.
    daemon.signal(Signal::STOP);
    thread::sleep(Duration::from_millis(2_100));
    let mut peer = Peer::connect(&address);
    peer.send("a\t");
    daemon.signal(Signal::CONT);
    peer.expect("server got:a\t");
    peer.exchange("b");
    assert!(!daemon.log().iter().any(|line| line.contains("stopping")), "{:#?}", daemon.log());
}

#[test]
fn a_process_that_bound_its_sockets_itself_does_not_exit() {
    let daemon = Daemon::start_with("[service]\nidle_exit = '50ms'\n", &["--listen", "127.0.0.1:0"]);
    daemon.connect().exchange("a");
    thread::sleep(Duration::from_millis(300));
    daemon.connect().exchange("b");
    daemon.stop();
}

#[test]
fn a_reload_changes_the_idle_exit_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = activated_command("3<&0", vec![listener.into()], "echo");
    let mut daemon = Daemon::spawn_with_stdio(&mut command, "[service]\nidle_exit = 'off'\n", &[]);
    daemon.wait_for_log("listening on");
    std::fs::write(daemon.directory().join("echoed.toml"), "[service]\nidle_exit = '100ms'\n").unwrap();
    let start: Instant = now();
    daemon.signal(Signal::HUP);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(20));
}
