//! A journald that hangs or is started anew: no client notices, and what is missing is said.

use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::catalog::expect_explained;
use super::entries::{entries, wait_for_entries};
use super::rate_limit::assert_in_order;
use super::{TCP, listen};
use common::machines::machine::Machine;
use common::{Peer, now, wait_until};

tests![
    a_journald_that_hangs_for_30_s_under_load_delays_no_client,
    full_messages_wait_for_a_hung_journald,
    a_restarted_journald_gets_new_entries_also_if_its_sockets_are_made_anew_and_in_a_namespace,
    no_full_message_is_lost_when_journald_restarts,
];

/// How long it hangs.
const HANG_TIME: Duration = Duration::from_secs(30);

/// The longest that a client may wait: more than a busy machine needs, and less than it hangs.
const MAX_DELAY: Duration = Duration::from_secs(10);

const MESSAGE: &str = "MESSAGE_ID=d460f42094ba4f3184a826c2496d3caf";

fn a_journald_that_hangs_for_30_s_under_load_delays_no_client(machine: &Machine) {
    listen(machine, "[log]\nlevel = 'debug'");
    let mut first = machine.connect(TCP);
    first.exchange("a");
    let daemon = machine.daemon_pid();
    let connected = AtomicU64::new(1);
    let suspended = machine.suspend("systemd-journal");
    let until = now() + HANG_TIME;
    let connect_once = |address| {
        machine.connect(address).exchange("a");
        connected.fetch_add(1, Ordering::Relaxed);
    };
    let longest = thread::scope(|scope| {
        let threads = [
            scope.spawn(|| longest_run(until, || connect_once(TCP))),
            scope.spawn(|| longest_run(until, || connect_once("unix:/run/echoed.sock"))),
            scope.spawn(|| longest_run(until, || first.exchange("a"))),
        ];
        threads.map(|thread| thread.join().expect("no client was refused"))
    });
    drop((suspended, first));
    println!("{connected:?} connections while journald hung; the longest wait: {longest:?}");
    assert!(longest.iter().all(|longest| *longest < MAX_DELAY), "{longest:?}");
    // Each connection is two entries. They are logged, or said to be missing.
    let (opened, ended) = ("5e6bb97ac5ed4e8b88b6ad89fce92c4f", "d1ac960d4f644c8a808b48f90e84cb07");
    wait_until("it adds up", || {
        let logged = entries(machine, &format!("-u echoed MESSAGE_ID={opened} MESSAGE_ID={ended}")).len() as u64;
        let lost = entries(machine, "-u echoed MESSAGE_ID=c60cb380c451445a9c1783033806b8fa");
        let lost = lost
            .iter()
            .filter_map(|entry| entry.text("MESSAGE").strip_prefix("dropped ")?.split(' ').next()?.parse::<u64>().ok());
        let lost = lost.sum::<u64>();
        lost > 0 && logged + lost == 2 * connected.load(Ordering::Relaxed)
    });
    expect_explained(machine, "Entries of the log were lost");
    // It is the same process, and it logs again.
    assert_eq!(machine.daemon_pid(), daemon);
    connect_once(TCP);
    let last = format!("-u echoed CONNECTION={}", connected.into_inner());
    wait_for_entries(machine, &last, 2);
}

/// Does something again and again, with a rest of 2 ms, and returns the longest that it took.
fn longest_run(until: Instant, mut action: impl FnMut()) -> Duration {
    let mut longest = Duration::ZERO;
    while now() < until {
        let start = now();
        action();
        longest = longest.max(start.elapsed());
        thread::sleep(Duration::from_millis(2));
    }
    longest
}

/// Numbers, each a message; the replies are checked by [`expect_numbers`].
fn send_numbers(peer: &Peer, numbers: Range<usize>) {
    let text: String = numbers.map(|number| format!("{number}\t")).collect();
    peer.stream().write_all(text.as_bytes()).expect("the daemon reads");
}

fn expect_numbers(peer: &mut Peer, numbers: Range<usize>) {
    numbers.for_each(|number| peer.expect(format!("server got:{number}\t")));
}

fn full_messages_wait_for_a_hung_journald(machine: &Machine) {
    listen(machine, "[defaults]\nlog_messages = 'full'");
    let mut peer = machine.connect(TCP);
    peer.exchange("0");
    let suspended = machine.suspend("systemd-journal");
    // More than the queues of the daemon and of the socket hold.
    send_numbers(&peer, 1..10_000);
    // Until replies stop for so long that the daemon has noticed.
    let mut came = peer.receive_for(Duration::from_secs(3));
    while came > 0 {
        came = peer.receive_for(Duration::from_secs(3));
    }
    drop(suspended);
    expect_numbers(&mut peer, 1..10_000);
    assert_in_order(&wait_for_entries(machine, MESSAGE, 10_000));
    expect_explained(machine, "Messages of clients cannot be written now");
    expect_explained(machine, "Messages of clients are written again");
}

fn a_restarted_journald_gets_new_entries_also_if_its_sockets_are_made_anew_and_in_a_namespace(machine: &Machine) {
    listen(machine, "[log]\nlevel = 'debug'\n[defaults]\nlog_messages = 'full'");
    for connection in 1..=3 {
        machine.connect(TCP).exchange(&connection.to_string());
        wait_for_entries(machine, &format!("-u echoed CONNECTION={connection}"), 3);
        machine.sh("systemctl restart systemd-journald");
    }
    let daemon = machine.daemon_pid();
    let sockets = "systemd-journald.socket systemd-journald-dev-log.socket";
    let units = format!("systemd-journald.service {sockets}");
    machine.sh(&format!("systemctl stop {units}"));
    let mut peer = machine.connect(TCP);
    peer.send("4\t");
    wait_until("the status says that it waits", || {
        let status = machine.sh("systemctl show --property=StatusText echoed.service");
        status.contains("; log unavailable, ") && status.trim_end().ends_with(" entries waiting")
    });
    machine.sh(&format!("systemctl start {units}"));
    peer.expect("server got:4\t");
    drop(peer);
    assert_eq!(machine.daemon_pid(), daemon);
    wait_for_entries(machine, "-u echoed CONNECTION=4", 3);
    assert_eq!(message_texts(machine, ""), ["1", "2", "3", "4"]);

    machine.write("/etc/systemd/system/echoed.service.d/50-test.conf", "[Service]\nLogNamespace=own");
    machine.sh("systemctl daemon-reload && systemctl restart echoed");
    machine.connect(TCP).exchange("5");
    // (To stop its socket would stop the service: systemd makes it require the socket.)
    machine.sh("systemctl restart systemd-journald@own.service");
    machine.connect(TCP).exchange("6");
    wait_for_entries(machine, &format!("--namespace=own {MESSAGE}"), 2);
    assert_eq!(message_texts(machine, "--namespace=own"), ["5", "6"]);
    wait_for_entries(machine, "--namespace=own -u echoed VERDICT=peer-closed", 2);
    assert_eq!(message_texts(machine, ""), ["1", "2", "3", "4"]);
}

/// The messages in a journal, in their order.
fn message_texts(machine: &Machine, journal: &str) -> Vec<String> {
    entries(machine, &format!("{journal} {MESSAGE}")).iter().map(|entry| entry.text("MESSAGE")).collect()
}

fn no_full_message_is_lost_when_journald_restarts(machine: &Machine) {
    listen(machine, "[defaults]\nlog_messages = 'full'");
    let mut peer = machine.connect(TCP);
    for number in 0..3 {
        let numbers = number * 1000..(number + 1) * 1000;
        send_numbers(&peer, numbers.clone());
        machine.sh("systemctl restart systemd-journald");
        expect_numbers(&mut peer, numbers);
    }
    assert_in_order(&wait_for_entries(machine, MESSAGE, 3000));
}
