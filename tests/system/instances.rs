//! Instances: processes beside echoed.service, each with sockets, settings and limits of its own.

use common::machines::machine::{Machine, TCP};
use common::wait_until;

tests![
    an_instance_has_sockets_settings_and_limits_of_its_own,
    connections_of_an_instance_survive_its_restarts,
    a_unit_for_one_connection_that_is_started_by_hand_says_what_it_is_for,
];

const BLUE: &str = "unix:/run/echoed-blue.sock";

fn main_pid(machine: &Machine, unit: &str) -> String {
    machine.property(unit, "MainPID")
}

fn an_instance_has_sockets_settings_and_limits_of_its_own(machine: &Machine) {
    machine.configure("[defaults]\nprefix = 'system:'\n");
    machine.write("/etc/echoed/instances/blue/echoed.toml", "[limits]\nconnections = 7\n");
    machine.write("/etc/echoed/instances/blue/echoed.toml.d/50-local.toml", "[defaults]\nprefix = 'blue:'\n");
    machine.edit("echoed-instance@blue.socket", "[Socket]\nListenStream=127.0.0.1:10007\n");
    machine.edit("echoed-instance@blue.service", "[Service]\nMemoryMax=64M\n");
    let instances = ["blue", "green"].map(|name| format!("echoed-instance@{name}.socket")).join(" ");
    machine.sh(&format!("systemctl enable --quiet --now echoed.socket {instances}"));
    for (address, reply) in [
        (TCP, "system:aaaa\t"),
        (BLUE, "blue:aaaa\t"),
        ("tcp:127.0.0.1:10007", "blue:aaaa\t"),
        ("unix:/run/echoed-green.sock", "server got:aaaa\t"),
    ] {
        let mut peer = machine.connect(address);
        peer.send("aaaa\t");
        peer.expect(reply);
    }
    let units = ["echoed.service", "echoed-instance@blue.service", "echoed-instance@green.service"];
    let mut processes = units.map(|unit| main_pid(machine, unit)).to_vec();
    processes.sort();
    processes.dedup();
    assert_eq!(processes.len(), 3, "{processes:?}");
    machine.wait_for_property(units[1], "StatusText", "0/7 connections, 2 listeners, 2 messages");
    assert_eq!(machine.property(units[1], "MemoryMax"), (64 << 20).to_string());
    assert_eq!(machine.property(units[2], "MemoryMax"), machine.property(units[0], "MemoryMax"));

    // Each is reloaded and stopped by itself.
    machine.write("/etc/echoed/instances/blue/echoed.toml.d/50-local.toml", "[defaults]\nprefix = 'new:'\n");
    machine.sh("systemctl reload echoed-instance@blue.service");
    let reply = || machine.sh(r"printf 'aaaa\t' | socat -t10 - UNIX-CONNECT:/run/echoed-blue.sock");
    wait_until("the new settings hold", || reply() == "new:aaaa\t");
    let said = machine.wait_for_journal("--unit=echoed-instance@blue.service --grep='^reloaded'");
    let files = "/etc/echoed/instances/blue/echoed.toml, /usr/lib/echoed/echoed.toml.d/10-sockets.toml, \
                 /etc/echoed/instances/blue/echoed.toml.d/50-local.toml";
    assert!(said.contains(&format!("(read {files})")), "{said}");
    machine.sh("systemctl stop echoed.socket");
    assert_eq!(reply(), "new:aaaa\t");
    machine.sh("systemctl stop echoed-instance@blue.socket");
    assert!(!machine.path("/run/echoed-blue.sock").exists());
    machine.connect("unix:/run/echoed-green.sock").exchange("aaaa");
}

fn connections_of_an_instance_survive_its_restarts(machine: &Machine) {
    const SERVICE: &str = "echoed-instance@blue.service";
    machine.write("/etc/echoed/instances/blue/echoed.toml", "[defaults.deadlines]\nread = '5min'\n");
    machine.sh("systemctl start echoed-instance@blue.socket");
    let mut peer = machine.connect(BLUE);
    peer.exchange("aaaa");
    let process = main_pid(machine, SERVICE);
    // Read together, the half with the whole one.
    peer.send("whole\thalf and ");
    peer.expect("server got:whole\t");
    machine.sh(&format!("systemctl restart {SERVICE}"));
    assert_ne!(main_pid(machine, SERVICE), process);
    peer.send("half\t");
    peer.expect("server got:half and half\t");
    // It is shut in as the other is.
    let said = machine.sh(&format!("systemd-analyze security --no-pager {SERVICE}"));
    assert!(said.contains(&format!("Overall exposure level for {SERVICE}: 0.1 ")), "{said}");
    let verified = machine.run("systemd-analyze verify --man=no echoed-instance@x.socket echoed-instance@x.service");
    assert_eq!(verified.output, "");
}

fn a_unit_for_one_connection_that_is_started_by_hand_says_what_it_is_for(machine: &Machine) {
    let started = machine.run("systemctl start echoed@2.service");
    assert_ne!(started.code, Some(0), "{}", started.output);
    // Not by its unit: journald may look for that when the process has ended.
    let said = machine.wait_for_journal("--identifier=echoed --grep='^failed to start'");
    assert!(said.contains("systemd starts echoed@.service for each connection"), "{said}");
    assert!(said.contains("echoed-instance@NAME.socket"), "{said}");
}
