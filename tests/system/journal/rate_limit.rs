//! Many entries at once: the rate limit suppresses entries of one kind, and their number is logged; messages of clients
//! (`log_messages`) are not limited.

use super::catalog::expect_explained;
use super::entries::{Entry, entries, wait_for_entries};
use super::{TCP, listen};
use common::machines::machine::Machine;

tests![
    messages_of_one_kind_are_rate_limited_and_the_suppressed_ones_counted,
    all_20000_full_messages_are_logged_in_order
];

const CLIENTS: u64 = 1000;
const MESSAGES: usize = 20_000;

fn messages_of_one_kind_are_rate_limited_and_the_suppressed_ones_counted(machine: &Machine) {
    listen(machine, "[defaults]\nmax_message = '4B'");
    for _ in 0..CLIENTS {
        let mut peer = machine.connect("unix:/run/echoed.sock");
        peer.send("too long");
        peer.expect("server error:message exceeds 4 bytes\t");
    }
    // Another kind is logged all the same, and at the end the number of entries suppressed so far.
    machine.sh("systemctl stop echoed.service");
    wait_for_entries(machine, "-u echoed MESSAGE_ID=a5b78d5defc24e4788ea54eeed27f183", 1);
    expect_explained(machine, "Entries of one kind were suppressed");
    let logged = entries(machine, "-u echoed VERDICT=too-long").len() as u64;
    let reports = entries(machine, "-u echoed MESSAGE_ID=3b46abbb33834701a85bd7e385371fed");
    let suppressed = reports.iter().map(|report| {
        let text = report.text("MESSAGE");
        let rest = text.strip_prefix("suppressed ").expect("the verb comes first");
        let (number, rest) = rest.split_once(' ').expect("a number is next");
        let expected = "too-long messages (limit: 100 per 10s)";
        assert_eq!(rest, expected);
        number.parse::<u64>().expect("a number")
    });
    assert_eq!(logged + suppressed.sum::<u64>(), CLIENTS);
    // One report for each 10 s in which there were too many; in the last there may have been fewer.
    let most = 100 * (reports.len() as u64 + 1);
    assert!(logged >= 100 && logged <= most, "{logged} in {} reports", reports.len());
}

fn all_20000_full_messages_are_logged_in_order(machine: &Machine) {
    // The limit of journald itself, which by default depends on how large the disk is.
    machine.write("/etc/systemd/journald.conf.d/50-test.conf", "[Journal]\nRateLimitBurst=10");
    machine.sh("systemctl restart systemd-journald");
    listen(machine, "[defaults]\nlog_messages = 'full'");
    let mut peer = machine.connect(TCP);
    for start in (0..MESSAGES).step_by(100) {
        let numbers = start..start + 100;
        peer.send(numbers.clone().map(|number| format!("{number}\t")).collect::<String>());
        peer.expect(numbers.map(|number| format!("server got:{number}\t")).collect::<String>());
    }
    assert_in_order(&wait_for_entries(machine, "MESSAGE_ID=d460f42094ba4f3184a826c2496d3caf", MESSAGES));
}

/// Checks that these are the numbers from 0 on, each once.
pub fn assert_in_order(messages: &[Entry]) {
    for (number, entry) in messages.iter().enumerate() {
        assert_eq!(entry.text("MESSAGE"), number.to_string(), "{entry:?}");
    }
}
