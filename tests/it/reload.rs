//! Reloading the settings (SIGHUP): all or none, for new connections, and no client notices.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{Daemon, Peer, now, program_or_skip, wait_until};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::TempDir;

/// Rewrites the configuration and has it read; waits until the log says what came of it the `times`th time.
fn reload(daemon: &Daemon, configuration: &str, said: &str, times: usize) -> String {
    fs::write(daemon.directory().join("echoed.toml"), configuration).expect("the directory is ours");
    daemon.signal(Signal::HUP);
    daemon.wait_for_log_times(said, times).pop().expect("there is one")
}

/// What `info` says when new settings hold.
const RELOADED: &str = "info: reloaded";

#[test]
fn new_connections_use_the_new_settings_and_existing_ones_keep_theirs() {
    let first = "[defaults]\nprefix = 'one:'\n[defaults.deadlines]\nread = '1h'\n";
    let daemon = Daemon::start_with(first, &["--listen", "127.0.0.1:0", "--listen", "lines=127.0.0.1:0"]);
    let addresses = daemon.addresses();
    let mut old = Peer::connect(&addresses[0]);
    old.send("a\tbegun");
    old.expect("one:a\t");
    let second = "
        [defaults]
        prefix = 'two:'
        [defaults.deadlines]
        read = '50ms'
        [listener.lines]
        delimiter = \"\\n\"
        prefix = 'three:'
    ";
    let said = reload(&daemon, second, RELOADED, 1);
    let file = daemon.directory().join("echoed.toml");
    assert!(said.ends_with(&format!("the new settings apply to new connections (read {})", file.display())), "{said}");
    let mut new = Peer::connect(&addresses[0]);
    new.send("a\tbegun");
    new.expect("two:a\tserver error:message not finished within 50ms\t");
    let mut lines = Peer::connect(&addresses[1]);
    lines.send("a\n");
    lines.expect("three:a\n");
    // It went on in its own way all the time.
    old.send(" and ended\t");
    old.expect("one:begun and ended\t");
    daemon.stop();
}

#[test]
fn new_connection_limits_apply_at_once() {
    let daemon = Daemon::start_with("[limits]\nconnections = 1\nreclaim_idle = 'off'\n", &["--listen", "127.0.0.1:0"]);
    let mut first = daemon.connect();
    first.exchange("a");
    let mut second = daemon.connect();
    second.send("waits\t");
    daemon.wait_for_log("limits.connections=1");
    // The one that waited is served as soon as the limit is raised, though no connection has ended.
    reload(&daemon, "[limits]\nconnections = 2\nreclaim_idle = 'off'\n", RELOADED, 1);
    second.expect("server got:waits\t");
    // A lowered limit closes no connection, but no other is accepted.
    reload(&daemon, "[limits]\nconnections = 1\nreclaim_idle = 'off'\n", RELOADED, 2);
    let mut third = daemon.connect();
    third.send("waits\t");
    third.expect_silence(Duration::from_millis(100));
    first.exchange("b");
    drop(second);
    third.expect_silence(Duration::from_millis(100));
    drop(first);
    third.expect("server got:waits\t");
    daemon.stop();
}

#[test]
fn the_new_buffer_memory_applies_to_existing_connections() {
    let daemon = Daemon::start_with("[limits]\nbuffer_memory = '1MiB'\n", &["--listen", "127.0.0.1:0"]);
    let mut peer = daemon.connect();
    peer.send([b'x'; 20_000]);
    peer.wait_until_read();
    reload(&daemon, "[limits]\nbuffer_memory = '10KiB'\n[defaults]\nmax_message = '10KiB'\n", RELOADED, 1);
    peer.send([b'x'; 20_000]);
    peer.expect("server error:out of buffer memory\t");
    peer.expect_close();
    daemon.stop();
}

#[test]
fn the_new_log_level_applies_to_existing_connections() {
    let daemon = Daemon::start_with("[log]\nlevel = 'info'\n", &["--listen", "127.0.0.1:0"]);
    let mut old = daemon.connect();
    old.exchange("a");
    reload(&daemon, "[log]\nlevel = 'debug'\n", RELOADED, 1);
    drop(old);
    assert!(daemon.wait_for_log("ended: peer-closed").starts_with("debug: connection 1 "));
    daemon.stop();
}

#[test]
fn invalid_settings_change_nothing_and_all_errors_are_logged() {
    let right = "[limits]\nconnections = 1\nreclaim_idle = 'off'\n[defaults]\nprefix = 'one:'\n";
    let daemon = Daemon::start_with(right, &["--listen", "127.0.0.1:0"]);
    // The first line alone would be right.
    let wrong = "[limits]\nconnections = 2\nreclaim_idle = 'off'\n[defaults]\nprefix = 'two:'\nmax_message = 3\nunterminted = 'x'\n";
    let said = reload(&daemon, wrong, "failed to reload, keeping the old settings", 1);
    assert!(said.starts_with("error: "), "{said}");
    let position = |line: usize| format!("{}:{line}:", daemon.directory().join("echoed.toml").display());
    assert!(daemon.wait_for_log(&position(6)).contains("3 has no unit"));
    assert!(daemon.wait_for_log(&position(7)).contains("is unterminated meant?"));
    let mut first = daemon.connect();
    first.send("a\t");
    first.expect("one:a\t");
    let mut second = daemon.connect();
    second.send("a\t");
    second.expect_silence(Duration::from_millis(100));
    daemon.stop();
}

#[test]
fn a_missing_configuration_file_changes_nothing() {
    let daemon = Daemon::start_with("[defaults]\nprefix = 'one:'\n", &["--listen", "127.0.0.1:0"]);
    fs::remove_file(daemon.directory().join("echoed.toml")).unwrap();
    daemon.signal(Signal::HUP);
    let said = daemon.wait_for_log("cannot be read");
    assert!(said.contains("echoed.toml") && said.contains("No such file"), "{said}");
    let mut peer = daemon.connect();
    peer.send("a\t");
    peer.expect("one:a\t");
    daemon.stop();
}

#[test]
fn keys_that_need_a_restart_are_named_and_the_rest_applies() {
    let first = "[service]\nworkers = 1\n[listener.echo]\nlisten = ['127.0.0.1:0']\n";
    let daemon = Daemon::start_with(first, &[]);
    let second = "[service]\nworkers = 2\n[listener.echo]\nlisten = ['127.0.0.1:0', '127.0.0.1:1']\nprefix = 'two:'\n";
    for times in 1..=2 {
        // The second time too: it still has not happened.
        reload(&daemon, second, RELOADED, times);
        for key in ["service.workers", "listener.echo.listen"] {
            let said = daemon.wait_for_log_times(key, times);
            assert!(said[times - 1].starts_with("warn: ") && said[times - 1].contains("restart"), "{said:?}");
        }
    }
    let mut peer = daemon.connect();
    peer.send("a\t");
    peer.expect("two:a\t");
    assert_eq!(daemon.addresses().len(), 1);
    daemon.stop();
}

#[test]
fn messages_are_answered_during_repeated_reloads() {
    let configurations = ["[limits]\nconnections = 100\n", "[limits]\nconnections = 200\n", "wrong"];
    let daemon = Daemon::start_with(configurations[0], &["--listen", "127.0.0.1:0"]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let exchange = || {
            let (mut peer, mut slowest, mut count) = (daemon.connect(), Duration::ZERO, 0);
            while !done.load(Ordering::Relaxed) || count < 100 {
                let start = now();
                peer.exchange("flows");
                slowest = slowest.max(start.elapsed());
                count += 1;
            }
            slowest
        };
        let connect = || {
            while !done.load(Ordering::Relaxed) {
                daemon.connect().exchange("new");
            }
        };
        let exchanging: Vec<_> = (0..4).map(|_| scope.spawn(exchange)).collect();
        scope.spawn(connect);
        let (mut good, mut bad) = (0, 0);
        for round in 0..60 {
            let configuration = configurations[round % 3];
            if configuration == "wrong" {
                bad += 1;
                reload(&daemon, configuration, "failed to reload", bad);
            } else {
                good += 1;
                reload(&daemon, configuration, RELOADED, good);
            }
        }
        done.store(true, Ordering::Relaxed);
        for thread in exchanging {
            let slowest = thread.join().expect("every reply was right");
            assert!(slowest < Duration::from_secs(5), "{slowest:?}");
        }
    });
    daemon.stop();
}

/// Makes a pipe for settings: a daemon waits for them until they are written.
fn pipe_for_settings(directory: &TempDir) -> String {
    let pipe = directory.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("pipes can be made");
    pipe.to_str().expect("pipes can be made").to_owned()
}

/// Waits until a daemon reads its settings from that pipe. It does so until the file that this returns is closed.
fn wait_until_it_reads(pipe: &str) -> File {
    let mut writer = None;
    wait_until("it reads its settings", || {
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).expect("it is small");
        writer = OpenOptions::new().write(true).custom_flags(nonblocking).open(pipe).ok();
        writer.is_some()
    });
    writer.expect("it is open")
}

#[test]
fn a_reload_requested_while_the_daemon_starts_is_done_when_it_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = pipe_for_settings(&directory);
    let arguments = ["--listen", "127.0.0.1:0", "--config", &pipe];
    let daemon = Daemon::spawn_with(&mut Command::new(env!("CARGO_BIN_EXE_echoed")), "", &arguments);
    let writer = wait_until_it_reads(&pipe);
    daemon.signal(Signal::HUP);
    drop(writer);
    daemon.wait_for_log("listening on");
    // The reload reads from the pipe again.
    fs::write(&pipe, "[defaults]\nprefix = 'new:'\n").unwrap();
    daemon.wait_for_log(RELOADED);
    let mut peer = daemon.connect();
    peer.send("a\t");
    peer.expect("new:a\t");
    daemon.stop();
}

/// Starts a daemon from a terminal of its own, by this command in front of it. Returns the other end of the terminal as
/// well.
fn start_from_terminal(command: &[&str]) -> Option<(Daemon, OwnedFd)> {
    let (daemon, controller) =
        spawn_from_terminal(command, "[defaults]\nprefix = 'old:'\n", &["--listen", "127.0.0.1:0"])?;
    daemon.wait_for_log("listening on");
    Some((daemon, controller))
}

/// The same with these settings and arguments, without waiting for the daemon.
fn spawn_from_terminal(command: &[&str], settings: &str, arguments: &[&str]) -> Option<(Daemon, OwnedFd)> {
    let setsid = program_or_skip("setsid")?;
    let controller =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("there are terminals");
    grantpt(&controller).expect("there are terminals");
    unlockpt(&controller).expect("there are terminals");
    let name = ptsname(&controller, Vec::new()).expect("there are terminals");
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open(name.to_str().expect("there are terminals"))
        .expect("there are terminals");
    let mut setsid = Command::new(setsid);
    setsid.arg("--ctty").args(command).arg(env!("CARGO_BIN_EXE_echoed")).stdin(terminal).stdout(Stdio::null());
    Some((Daemon::spawn_with_stdio(&mut setsid, settings, arguments), controller))
}

#[test]
fn a_daemon_whose_terminal_hangs_up_drains_and_ends() {
    let Some((mut daemon, controller)) = start_from_terminal(&[]) else { return };
    let mut peer = daemon.connect();
    peer.send("a\t");
    peer.expect("old:a\t");
    // A reload, as long as the terminal is there.
    fs::write(daemon.directory().join("echoed.toml"), "[defaults]\nprefix = 'new:'\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log(RELOADED);
    drop(controller);
    peer.expect_close();
    assert!(daemon.wait().success());
    daemon.wait_for_log("stopping: SIGHUP, the terminal has hung up");
    daemon.wait_for_log("stopped: 1 connections finished, 0 cut");
}

#[test]
fn a_daemon_whose_terminal_hangs_up_while_it_starts_ends() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = pipe_for_settings(&directory);
    let arguments = ["--listen", "127.0.0.1:0", "--config", &pipe];
    let Some((mut daemon, controller)) = spawn_from_terminal(&[], "", &arguments) else { return };
    let writer = wait_until_it_reads(&pipe);
    drop(controller);
    drop(writer);
    assert!(daemon.wait().success());
    daemon.wait_for_log("stopping: SIGHUP, the terminal has hung up");
}

#[test]
fn a_check_of_settings_ends_when_its_terminal_hangs_up() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = pipe_for_settings(&directory);
    let arguments = ["--check-config", "--config", &pipe];
    let Some((mut daemon, controller)) = spawn_from_terminal(&[], "", &arguments) else { return };
    let _writer = wait_until_it_reads(&pipe);
    drop(controller);
    assert_eq!(daemon.wait().signal(), Some(Signal::HUP.as_raw()));
}

#[test]
fn a_daemon_under_nohup_goes_on_when_its_terminal_hangs_up() {
    if program_or_skip("nohup").is_none() {
        return;
    }
    let Some((daemon, controller)) = start_from_terminal(&["nohup"]) else { return };
    drop(controller);
    daemon.wait_for_log(RELOADED);
    let mut peer = daemon.connect();
    peer.send("a\t");
    peer.expect("old:a\t");
    daemon.stop();
}
