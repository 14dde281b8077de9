//! Fd stores that were tampered with: the service starts, serves, restores what is in order, closes what is not, and
//! logs that.

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::forger::tamper;
use super::{Clients, PATIENT, expect_empty_store, start};
use common::Peer;
use common::machines::machine::{Machine, TCP};

tests![the_service_restores_the_valid_connections_of_a_tampered_fd_store];

/// How many connections are in the store.
const CONNECTIONS: usize = 4;

/// What is done to the store, how many of the connections go on, and what the journal says.
const FORGERIES: &[(&str, usize, &[&str])] = &[
    ("none", 4, &[]),
    ("first-snapshot", 4, &[]),
    (
        "truncated",
        3,
        &["its manifest is cut off; 3 of 4 connections are known", "1 descriptors in it are not in its manifest"],
    ),
    ("damaged", 2, &["a connection: "]),
    ("later-manifest", 0, &["its manifest has version 99"]),
    ("later-snapshot", 3, &["a connection: .*99"]),
    (
        "forged",
        2,
        &[
            "1 descriptors in it are not connections",
            "2 descriptors in it are not in its manifest",
            "1 connections in its manifest are not in it",
        ],
    ),
    ("holes", 0, &["its manifest has holes"]),
    ("empty", 0, &["it is empty"]),
    (
        "foreign",
        0,
        &[
            "its manifest is not from echoed",
            ".handover. from systemd is not a Unix seqpacket",
            ".stored. from systemd is no",
        ],
    ),
];

fn the_service_restores_the_valid_connections_of_a_tampered_fd_store(machine: &Machine) {
    start(machine, PATIENT);
    for (forgery, survivors, warnings) in FORGERIES {
        machine.sh("journalctl --rotate --vacuum-time=1s");
        let mut clients = Clients::connect(machine, CONNECTIONS);
        clients.send_first_halves();
        tamper(machine, forgery);
        assert_eq!(machine.property("echoed.service", "ActiveState"), "active", "{forgery}");
        machine.connect(TCP).exchange("new");
        let numbered: Vec<_> = clients.0.into_iter().enumerate().collect();
        let (open, closed): (Vec<_>, Vec<_>) = numbered.into_iter().partition(|(_, peer)| is_open(peer));
        assert_eq!((open.len(), open.len() + closed.len()), (*survivors, CONNECTIONS), "{forgery}");
        for (number, mut peer) in open {
            peer.send(format!("of {number}\t"));
            peer.expect(format!("server got:second of {number}\t"));
            peer.exchange("another");
        }
        for (_, mut peer) in closed {
            peer.expect_close();
        }
        for text in *warnings {
            machine.wait_for_journal(&format!("--identifier=echoed --priority=warning --grep='{text}'"));
        }
        expect_empty_store(machine);
    }
    assert_eq!(machine.property("echoed.service", "NRestarts"), "0");
    assert_eq!(machine.sh("journalctl --quiet --identifier=echoed --priority=warning --grep=panicked || true"), "");
}

/// Whether the other side has not ended the stream; nothing else may have come.
fn is_open(peer: &Peer) -> bool {
    match recv(peer.fd(), &mut [0; 16], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN) => true,
        Ok((0, _)) => false,
        other => panic!("{other:?}"),
    }
}
