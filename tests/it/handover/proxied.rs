//! Behind a load balancer: the client that the PROXY header names is the peer after a restart, too.

use rustix::process::Signal;

use super::connection_outcomes;
use common::service::{FdStore, Service};

const REQUIRED: &str =
    "[defaults]\nproxy_protocol = 'required'\n[limits]\nconnections_per_source = 2\n[log]\nlevel = 'debug'\n";
const OFF: &str = "[limits]\nconnections_per_source = 2\n[log]\nlevel = 'debug'\n";

/// From clients of one /64, and of one address.
const HEADERS: [&str; 4] = [
    "PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n",
    "PROXY TCP4 192.0.2.1 198.51.100.7 40124 8085\r\n",
    "PROXY TCP6 2001:db8::1 2001:db8::2 40125 8085\r\n",
    "PROXY UNKNOWN\r\n",
];

#[test]
fn the_client_address_from_the_proxy_header_survives_restarts() {
    for socket in ["tcp:echo", "unix:echo"] {
        let mut service = Service::start_on(&[socket], FdStore::Enabled, REQUIRED);
        let mut peers = HEADERS.map(|header| {
            let mut peer = service.connect();
            peer.send(format!("{header}a\tbegun"));
            // Now it has read all that came with this.
            peer.expect("server got:a\t");
            peer
        });
        for configuration in [REQUIRED, REQUIRED, OFF] {
            assert_eq!(connection_outcomes(&service.restart(configuration)), [4, 0, 0]);
            for peer in &mut peers {
                // No further header is expected of them.
                peer.send("\tbegun");
                peer.expect("server got:begun\t");
            }
            let log = service.daemon.wait_for_log_times(" resumed", 4);
            for client in ["192.0.2.1:40123", "192.0.2.1:40124", "[2001:db8::1]:40125"] {
                assert!(log.iter().any(|line| line.contains(&format!(" from {client} "))), "{client}: {log:#?}");
            }
        }
        // They count for their own sources.
        service.restart(REQUIRED);
        let mut third = service.connect();
        third.send(HEADERS[0]);
        third.expect("server error:too many connections from this source (limit 2)\t");
        let mut other = service.connect();
        other.send(HEADERS[2]);
        other.exchange("served");
        drop(peers);
        service.daemon.wait_for_log("from 192.0.2.1:40124 ended: unterminated");
        service.daemon.stop();
    }
}

#[test]
fn a_connection_with_an_incomplete_proxy_header_is_closed_at_a_restart() {
    let mut service = Service::start(REQUIRED);
    let (mut waiting, mut begun) = (service.connect(), service.connect());
    begun.send(&HEADERS[0][..20]);
    service.daemon.wait_for_log_times("connection 2 on ", 1);
    service.stop(Signal::TERM);
    service.start_next(REQUIRED);
    // Nothing of it is taken for a message.
    for peer in [&mut waiting, &mut begun] {
        assert_eq!(peer.read_to_end(), b"");
    }
    let mut next = service.connect();
    next.send(HEADERS[0]);
    next.exchange("served");
    service.daemon.stop();
}
