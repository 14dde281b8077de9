//! An idle process exits (`service.idle_exit`), and is started again for the next client.

use std::thread;
use std::time::Duration;

use common::machines::machine::{Machine, TCP, UNIX};
use common::wait_until;

tests![
    an_idle_process_exits_and_is_started_again_for_the_next_client,
    a_thousand_clients_around_idle_exits_are_all_served,
    the_sockets_survive_fifty_idle_exits_in_a_row,
];

fn an_idle_process_exits_and_is_started_again_for_the_next_client(machine: &Machine) {
    machine.configure("[service]\nidle_exit = '200ms'\n");
    machine.sh("systemctl start echoed.socket");
    for address in [TCP, UNIX] {
        machine.connect(address).exchange("aaaa");
        machine.wait_for_property("echoed.service", "ActiveState", "inactive");
        assert_eq!(machine.property("echoed.service", "Result"), "success");
        assert_eq!(machine.daemon_pid(), None);
    }
}

fn a_thousand_clients_around_idle_exits_are_all_served(machine: &Machine) {
    machine.configure("[service]\nidle_exit = '20ms'\n");
    machine.sh("systemctl start echoed.socket");
    // Each round, all are away for about as long as the process waits, a little longer each time: so they come in every
    // moment of its end.
    for round in 0..50 {
        thread::scope(|scope| {
            for client in 0..20 {
                scope.spawn(move || {
                    thread::sleep(Duration::from_micros(17_000 + 200 * round + 100 * client));
                    machine.connect(if client % 2 == 0 { TCP } else { UNIX }).exchange(&format!("{round}-{client}"));
                });
            }
        });
    }
    let exits = count_exits(machine);
    assert!(exits >= 5, "the process ended only {exits} times");
}

fn the_sockets_survive_fifty_idle_exits_in_a_row(machine: &Machine) {
    machine.configure("[service]\nidle_exit = '1ms'\n");
    // Limits that count at all are reached with this, also where 50 ends take their time.
    machine.edit("echoed.socket", "[Socket]\nTriggerLimitBurst=2\n");
    machine.edit("echoed.service", "[Unit]\nStartLimitBurst=2\n");
    machine.sh("systemctl start echoed.socket");
    for round in 1..=50 {
        machine.connect(if round % 2 == 0 { TCP } else { UNIX }).exchange("aaaa");
        wait_until("the process has ended", || machine.daemon_pid().is_none());
    }
    wait_until("all have ended", || count_exits(machine) == 50);
    machine.connect(TCP).exchange("aaaa");
    machine.connect(UNIX).exchange("aaaa");
    assert_eq!(machine.property("echoed.socket", "ActiveState"), "active");
}

/// How many processes have ended well.
fn count_exits(machine: &Machine) -> usize {
    // "Deactivated successfully", which systemd says of a unit.
    let exits =
        machine.wait_for_journal("--output=cat UNIT=echoed.service MESSAGE_ID=7ad2d189f7e94e70a38c781354912448");
    exits.lines().count()
}
