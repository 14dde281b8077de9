//! From the first connection to the last: start, reload, restart, stop, failures, and the end of an unused process.

use crate::machine::Machine;

tests![the_first_connection_starts_the_service];

fn the_first_connection_starts_the_service(machine: &Machine) {
    machine.sh("systemctl start echoed.socket");
    assert_eq!(machine.property("echoed.service", "ActiveState"), "inactive");
    for address in ["tcp:127.0.0.1:8085", "unix:/run/echoed.sock"] {
        machine.connect(address).exchange("aaaa");
    }
    assert_eq!(machine.property("echoed.service", "ActiveState"), "active");
    assert!(machine.daemon().is_some());
}
