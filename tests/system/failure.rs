//! A process that dies, hangs, or cannot start: systemd brings it back, and clients that come meanwhile wait.

use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use common::hang::hang_thread;
use common::machines::machine::{Machine, TCP, UNIX};

tests![
    a_killed_process_is_restarted_and_serves_the_next_clients,
    a_hung_process_is_killed_and_restarted,
    an_invalid_configuration_does_not_cause_a_restart_loop_and_loses_no_connection,
];

fn a_killed_process_is_restarted_and_serves_the_next_clients(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    machine.connect(TCP).exchange("aaaa");
    for address in [TCP, UNIX] {
        machine.kill_daemon();
        let mut peers: Vec<_> = (0..10).map(|_| machine.connect(address)).collect();
        peers.iter_mut().for_each(|peer| peer.exchange("aaaa"));
    }
    assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
    assert_eq!(machine.property("echoed.service", "NRestarts"), "2");
    let status = machine.property("echoed.service", "StatusText");
    assert!(status.contains("2 listeners"), "{status}");
}

fn a_hung_process_is_killed_and_restarted(machine: &Machine) {
    machine.edit("echoed.service", "[Service]\nWatchdogSec=2s\n");
    machine.sh("systemctl start echoed.socket");
    machine.connect(TCP).exchange("aaaa");
    let process = machine.daemon_pid();
    if !hang_thread(process.expect("it runs"), "worker-0") {
        return;
    }
    // A worker does not respond: no connection is accepted any longer.
    machine.wait_for_journal("--unit=echoed.service MESSAGE_ID=c23afd953c994d5faca7c84a4df579f4");
    let mut peers: Vec<_> = [TCP, UNIX].iter().cycle().take(20).map(|address| machine.connect(address)).collect();
    peers.iter_mut().for_each(|peer| peer.exchange("aaaa"));
    assert_ne!(machine.daemon_pid(), process);
    machine.wait_for_journal("UNIT=echoed.service UNIT_RESULT=watchdog");
}

fn an_invalid_configuration_does_not_cause_a_restart_loop_and_loses_no_connection(machine: &Machine) {
    const PATIENT: &str = "[defaults.deadlines]\nread = '10min'\n";
    machine.configure(PATIENT);
    machine.sh("systemctl start echoed.socket");
    let mut live = [TCP, UNIX].map(|address| machine.connect(address));
    for peer in &mut live {
        peer.send("first\thalf of the ");
        peer.expect("server got:first\t");
    }
    // As an upgrade does it to a version that does not know a key of the settings.
    machine.configure("[defaults.deadlines]\nread = 10\n");
    machine.sh("systemctl restart --no-block echoed.service");
    machine.wait_for_property("echoed.service", "ExecMainStatus", "78");
    let mut peers = [TCP, UNIX].map(|address| machine.connect(address));
    peers.iter_mut().for_each(|peer| peer.send("aaaa\t"));
    // When it was started, in seconds: "[   12.345678] machine systemd[1]: Starting …".
    let starts = || {
        let entries = "UNIT=echoed.service MESSAGE_ID=7d4958e842da4a758f6c1cdc7b36dcc5";
        let starts = machine.wait_for_journal(&format!("--output=short-monotonic {entries}"));
        let time = |line: &str| line.trim_start_matches(['[', ' ']).split(']').next()?.parse::<f64>().ok();
        starts.lines().map(|line| time(line).unwrap_or_else(|| panic!("{line}"))).collect::<Vec<_>>()
    };
    // After the one that succeeded.
    let first = starts()[1];
    let seconds = || Duration::try_from(clock_gettime(ClockId::Monotonic)).expect("it is positive").as_secs_f64();
    while seconds() < first + 20.0 {
        thread::sleep(Duration::from_millis(100));
    }
    let starts = starts();
    let late = starts.iter().filter(|time| (first + 10.0..first + 20.0).contains(*time)).count();
    // Beyond those that were tried to begin with, it is still being tried.
    assert!((1..10).contains(&late), "{late} starts in 10 s: {starts:?}");
    // Unless it is being tried just now.
    machine.wait_for_property("echoed.service", "ExecMainStatus", "78");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "active");

    // More than five starts have failed, and the connections of before still wait.
    assert!(starts.len() > 6, "{starts:?}");
    assert_eq!(machine.property("echoed.service", "NFileDescriptorStore"), "1");

    machine.configure(PATIENT);
    for peer in &mut live {
        peer.send("second\t");
        peer.expect("server got:half of the second\t");
    }
    peers.iter_mut().for_each(|peer| peer.expect("server got:aaaa\t"));
}
