//! The list of connections.

use std::collections::BTreeSet;
use std::process::Command;

use super::{SECTION, list, start, start_with, wait_for_states};
use common::echoctl::echoctl;
use common::service::{FdStore, Service};
use common::{Peer, program_or_skip};
use serde_json::Value;

#[test]
fn a_connection_is_listed_with_what_it_has_done() {
    let (daemon, path) = start("");
    let mut peer = daemon.connect();
    peer.exchange("aaaa");
    peer.exchange("b");
    let connections = list(&path, Some("echo"));
    let [one] = &connections[..] else { panic!("{connections:?}") };
    let local = std::net::SocketAddr::try_from(rustix::net::getsockname(peer.fd()).expect("it has one"));
    assert_eq!(one["peer"], local.expect("it is IP").to_string());
    assert_eq!((&one["id"], &one["listener"], &one["state"]), (&1.into(), &"echo".into(), &"idle".into()));
    assert_eq!((&one["messages"], &one["bytes_in"], &one["bytes_out"]), (&2.into(), &7.into(), &29.into()));
    let [age, idle] = ["age_usec", "idle_usec"].map(|key| one[key].as_u64().expect("a number"));
    assert!(idle <= age && age < 60_000_000, "{one}");
    drop(peer);
    wait_for_states(&path, &[]);
    daemon.stop();
}

#[test]
fn the_state_says_what_a_connection_waits_for() {
    let sections = "[listener.slow]\nreply_delay = '1h'\n[listener.proxied]\nproxy_protocol = 'required'\n";
    let listen = ["slow=127.0.0.1:0", "proxied=127.0.0.1:0"];
    let (daemon, path) = start_with(sections, &listen);
    let addresses = daemon.addresses();
    let address = |name: &str| {
        let line = daemon.wait_for_log(&format!("({name})"));
        let (_, rest) = line.split_once("listening on ").expect("it says so");
        addresses.iter().find(|address| rest.starts_with(address.as_str())).expect("one of them").clone()
    };
    let _idle = Peer::connect(&address("echo"));
    wait_for_states(&path, &["idle"]);
    let mut receiving = Peer::connect(&address("echo"));
    receiving.send("half");
    wait_for_states(&path, &["idle", "receiving"]);
    let mut sending = Peer::connect(&address("echo"));
    while sending.send_what_fits(&[b'\t'; 4096]) > 0 {}
    wait_for_states(&path, &["idle", "receiving", "sending"]);
    let mut delaying = Peer::connect(&address("slow"));
    delaying.send("a\t");
    wait_for_states(&path, &["idle", "receiving", "sending", "delaying"]);
    let mut header = Peer::connect(&address("proxied"));
    wait_for_states(&path, &["idle", "receiving", "sending", "delaying", "header"]);
    header.send("PROXY TCP4 192.0.2.7 192.0.2.1 40000 8085\r\n");
    wait_for_states(&path, &["idle", "receiving", "sending", "delaying", "idle"]);
    let proxied = list(&path, Some("proxied"));
    assert_eq!((&proxied[0]["peer"], &proxied[0]["id"]), (&"192.0.2.7:40000".into(), &5.into()));
    daemon.stop();
}

#[test]
fn all_connections_of_all_workers_are_listed_as_ss_lists_them() {
    let Some(ss) = program_or_skip("ss") else { return };
    let (daemon, path) = start("[service]\nworkers = 2\n");
    let peers: Vec<_> = (0..600).map(|_| daemon.connect()).collect();
    common::wait_until("all are accepted", || list(&path, None).len() == peers.len());
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let listed: Vec<_> = list(&path, None).iter().map(|connection| text(&connection["peer"])).collect();
    let port = daemon.addresses()[0].rsplit(':').next().expect("it has a port").to_owned();
    let output = Command::new(ss).args(["-Htn", "state", "established", &format!("sport = :{port}")]).output();
    let output = String::from_utf8(output.expect("it runs").stdout).expect("it is text");
    let column = |line: &str| line.split_whitespace().nth(3).map(str::to_owned);
    let expected: BTreeSet<_> = output.lines().filter_map(column).collect();
    assert_eq!((listed.len(), listed.into_iter().collect::<BTreeSet<_>>()), (600, expected));
    let printed = echoctl(&["connections", "--socket", &path]);
    printed.check(0);
    assert!(printed.stdout.ends_with("\n600 connections\n"), "{}", printed.stdout);
    assert_eq!(echoctl(&["connections", "--json", "--socket", &path]).json_lines().len(), 600);
    daemon.stop();
}

#[test]
fn a_connection_has_the_same_id_after_a_restart() {
    let configuration = SECTION;
    let sockets = ["tcp:echo", "unix:control"];
    let mut service = Service::start_on(&sockets, FdStore::Enabled, configuration);
    let ids = |service: &Service| -> Vec<_> {
        let mut ids: Vec<_> = list(service.address(1), None).iter().map(|one| one["id"].as_u64()).collect();
        ids.sort_unstable();
        ids
    };
    let first = service.connect();
    let mut peers = [service.connect(), service.connect()];
    peers.iter_mut().for_each(|peer| peer.exchange("a"));
    drop(first);
    common::wait_until("the first has ended", || ids(&service) == [Some(2), Some(3)]);
    for _ in 0..2 {
        service.restart(configuration);
        assert_eq!(ids(&service), [Some(2), Some(3)]);
    }
    let mut later = service.connect();
    later.exchange("a");
    assert_eq!(ids(&service), [Some(2), Some(3), Some(4)]);
    service.daemon.stop();
}
