//! Start, reload and stop, as an administrator has them.

use std::fs::File;
use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::net::sockopt::set_socket_recv_buffer_size;

use common::machines::machine::{Machine, TCP, UNIX};
use common::{Peer, now, wait_until};

tests![
    the_first_connection_starts_the_service,
    a_reload_applies_to_new_connections,
    a_reload_names_the_files_that_the_service_has_read,
    systemctl_reload_returns_when_the_new_settings_apply since 253,
    an_invalid_setting_changes_nothing_and_is_reported_with_its_position,
    with_handover_off_a_stop_delivers_pending_replies_to_a_slow_client,
];

fn the_first_connection_starts_the_service(machine: &Machine) {
    for address in [TCP, UNIX] {
        machine.sh("systemctl start echoed.socket");
        assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
        machine.connect(address).exchange("aaaa");
        assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
        machine.sh("systemctl stop echoed.service echoed.socket");
    }
    a_socket_on_stdin_is_served_and_the_log_is_in_the_journal(machine);
}

/// `StandardInput=socket` makes the socket also stdout and stderr: for one process, and for one of each connection.
fn a_socket_on_stdin_is_served_and_the_log_is_in_the_journal(machine: &Machine) {
    const ONE_SOCKET: &str = "[Socket]\nListenStream=\nListenStream=127.0.0.1:8085\n";
    machine.configure("[log]\nlevel = 'debug'\n");
    machine.sh("systemctl mask --quiet echoed-control.socket");
    for unit in ["echoed.service", "echoed@.service"] {
        let accept = unit == "echoed@.service";
        machine.edit("echoed.socket", &format!("{ONE_SOCKET}Accept={}\n", if accept { "yes" } else { "no" }));
        machine.edit(unit, "[Service]\nExecStart=\nExecStart=/usr/sbin/echoed\nStandardInput=socket\n");
        machine.sh("systemctl start echoed.socket");
        let mut peer = machine.connect(TCP);
        peer.exchange("aaaa");
        let process = machine.daemon_pid().map(|pid| machine.pid_inside(pid)).expect("it serves");
        let descriptors =
            machine.sh(&format!("readlink /proc/{process}/fd/0 /proc/{process}/fd/1 /proc/{process}/fd/2"));
        assert_eq!(descriptors, "/dev/null\n".repeat(3), "{unit}");
        peer.shutdown();
        peer.expect_close();
        let entry = machine.wait_for_journal(&format!("_PID={process} VERDICT=peer-closed"));
        assert!(entry.contains("1 messages"), "{unit}: {entry}");
        machine.sh("systemctl stop echoed.socket; systemctl stop echoed.service");
    }
}

fn a_reload_applies_to_new_connections(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    let mut old = machine.connect(TCP);
    old.exchange("aaaa");
    let process = machine.daemon_pid();
    machine.configure("[defaults]\nprefix = 'new:'\n");
    machine.sh("systemctl reload echoed.service");
    // Before 253, systemd does not know when the new settings hold.
    wait_until("the new settings hold", || reply(machine, "aaaa") == "new:aaaa\t");
    old.exchange("bbbb");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
    assert_eq!(machine.daemon_pid(), process);
}

/// A directory that was made after the start is not in the service's file system: others see more files than it does.
fn a_reload_names_the_files_that_the_service_has_read(machine: &Machine) {
    const HIDDEN: &str = "/run/echoed/echoed.toml.d/50-hidden.toml";
    // Its socket would make the directory.
    machine.sh("systemctl mask --quiet echoed-control.socket");
    machine.sh("rm -r /run/echoed; systemctl start echoed.socket echoed.service");
    machine.configure("[defaults.deadlines]\nread = '5s'\n");
    machine.write(HIDDEN, "[defaults]\nprefix = 'new:'\n");
    machine.sh("systemctl reload echoed.service");
    let said = machine.wait_for_journal("--identifier=echoed --grep='^reloaded' --output=cat");
    let files = "/etc/echoed/echoed.toml, /usr/lib/echoed/echoed.toml.d/10-sockets.toml, \
                 /etc/echoed/echoed.toml.d/50-test.toml";
    assert_eq!(said.trim_end(), format!("reloaded: the new settings apply to new connections (read {files})"));
    assert!(machine.sh("echoed --check-config").contains(HIDDEN));
    assert_eq!(reply(machine, "aaaa"), "server got:aaaa\t");
    // What the page says of it.
    machine.sh("systemctl restart echoed.service");
    assert_eq!(reply(machine, "aaaa"), "new:aaaa\t");
}

fn systemctl_reload_returns_when_the_new_settings_apply(machine: &Machine) {
    let settings = machine.path("/etc/echoed/given.toml");
    machine.sh("touch /etc/echoed/given.toml");
    machine
        .edit("echoed.service", "[Service]\nExecStart=\nExecStart=/usr/sbin/echoed --config /etc/echoed/given.toml\n");
    machine.sh("systemctl start echoed.socket");
    assert_eq!(reply(machine, "aaaa"), "server got:aaaa\t");

    // With others, systemd might believe that it is over before it has begun; too seldom to be seen here.
    assert_eq!(machine.property("echoed.service", "Type"), "notify-reload");
    // A reader of a pipe waits for a writer.
    machine.sh("cd /etc/echoed; mkfifo --mode=644 pipe; mv pipe given.toml");
    let mut reload =
        machine.command("systemctl reload echoed.service").stdin(Stdio::null()).spawn().expect("it starts");
    let mut has_returned = || reload.try_wait().expect("it is our child").is_some();
    let mut writer = None;
    wait_until("the daemon reads its settings", || {
        // Only possible while there is a reader.
        writer = open(&settings, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok();
        writer.is_some()
    });
    machine.wait_for_property("echoed.service", "SubState", "reload-notify");
    assert!(!has_returned(), "the settings are not read yet");

    let mut writer = File::from(writer.expect("it is open"));
    writer.write_all(b"[defaults]\nprefix = 'new:'\n").expect("there is a reader");
    drop(writer);
    assert!(reload.wait().expect("it is our child").success());
    assert_eq!(reply(machine, "aaaa"), "new:aaaa\t");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
}

fn an_invalid_setting_changes_nothing_and_is_reported_with_its_position(machine: &Machine) {
    const FIRST: &str = "/etc/echoed/echoed.toml.d/50-test.toml:2:8: read: 10 has no unit";
    const SECOND: &str = "/etc/echoed/echoed.toml.d/50-test.toml:3:8: idle: 5 has no unit";
    let status_text = || machine.property("echoed.service", "StatusText");
    machine.sh("systemctl start echoed.socket");
    assert_eq!(reply(machine, "aaaa"), "server got:aaaa\t");

    machine.configure("[defaults.deadlines]\nread = 10\nidle = 5\n[defaults]\nprefix = 'new:'\n");
    machine.sh("systemctl reload echoed.service");
    wait_until("the mistake is in the status", || status_text().contains("failed to reload"));
    // All of it is in one line.
    let status = machine.sh("systemctl status --full --lines=0 echoed.service");
    let line = status.lines().find(|line| line.trim_start().starts_with("Status: ")).expect("there is a status");
    assert!(line.contains(FIRST) && line.contains("(and 1 more)") && line.ends_with('"'), "{status}");
    let log = machine.wait_for_journal("--unit=echoed.service MESSAGE_ID=d6fdeeed241c4bb2a0a6970afa179744");
    assert!(log.contains(FIRST) && log.contains(SECOND), "{log}");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
    assert_eq!(reply(machine, "aaaa"), "server got:aaaa\t");

    machine.configure("[defaults]\nprefix = 'new:'\n");
    machine.sh("systemctl reload echoed.service");
    wait_until("the new settings hold", || reply(machine, "aaaa") == "new:aaaa\t");
    wait_until("the mistake is not in the status", || !status_text().contains("failed to reload"));
}

fn with_handover_off_a_stop_delivers_pending_replies_to_a_slow_client(machine: &Machine) {
    // Each is answered with twelve times as much, which fits into no buffer of the kernel: it is owed.
    const MESSAGES: usize = 100_000;
    // The client takes longer than systemd waits by itself.
    machine.edit("echoed.service", "[Service]\nTimeoutStopSec=1s\n");
    machine.configure("[service]\ndrain_timeout = '60s'\nhandover = false\n[defaults]\nsend_buffer = '16KiB'\n");
    machine.sh("systemctl start echoed.socket");
    let mut peer = machine.connect(TCP);
    peer.exchange("aaaa");
    set_socket_recv_buffer_size(peer.fd(), 16_384).expect("SO_RCVBUF can be set");
    // Read at once: while it is owed anything nothing more is.
    let suspended = machine.suspend("echoed");
    peer.send("\t".repeat(MESSAGES));
    drop(suspended);
    peer.wait_until_read();

    let mut stop = machine.command("systemctl stop echoed.service").stdin(Stdio::null()).spawn().expect("it starts");
    machine.wait_for_property("echoed.service", "ActiveState", "deactivating");
    let start = now();
    for part in 0..100 {
        if part == 50 {
            assert_eq!(machine.property("echoed.service", "ActiveState"), "deactivating");
        }
        peer.expect("server got:\t".repeat(MESSAGES / 100));
        thread::sleep(Duration::from_millis(20));
    }
    assert!(start.elapsed() > Duration::from_secs(2));
    peer.expect_close();
    drop(peer);
    assert!(stop.wait().expect("it is our child").success());
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    assert_eq!(machine.property("echoed.service", "Result"), "success");
}

/// What is answered to a message on a connection of its own.
fn reply(machine: &Machine, message: &str) -> String {
    let mut peer: Peer = machine.connect(TCP);
    peer.send(format!("{message}\t"));
    String::from_utf8_lossy(&peer.next_reply()).into_owned()
}
