//! Restarts: clients come all the time.

use common::machines::machine::{Machine, TCP, UNIX};
use common::machines::reconnecting_clients;

tests![every_client_is_answered_during_restarts, the_sockets_survive_twenty_quick_restarts];

/// What is promised to a client that sends a message as soon as it is connected: it is answered.
fn every_client_is_answered_during_restarts(machine: &Machine) {
    const RESTARTS: usize = 5;
    // A child that the test has forked keeps the sockets that clients close meanwhile open until it executes its program,
    // which may take a while on a busy machine; so more connections of one source may be open than there are clients.
    machine.write("/etc/echoed/echoed.toml.d/limits.toml", "[limits]\nconnections_per_source = 0\n");
    machine.sh("systemctl start echoed.socket");
    reconnecting_clients::connect_during(machine, RESTARTS, |_| {
        machine.sh("systemctl restart echoed.service");
    });
}

/// By whomever: by the administrator, or since it was killed.
fn the_sockets_survive_twenty_quick_restarts(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    for round in 0..20 {
        machine.connect(if round % 4 < 2 { TCP } else { UNIX }).exchange("aaaa");
        if round % 2 == 0 {
            machine.sh("systemctl restart echoed.service");
        } else {
            machine.kill_daemon();
        }
    }
    machine.connect(TCP).exchange("aaaa");
    machine.connect(UNIX).exchange("aaaa");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "active");
}
