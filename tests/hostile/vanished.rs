//! Clients that vanish without a packet are detected, also without a deadline.

use std::net::TcpListener;
use std::time::Duration;

use rustix::net::sockopt;

use common::network::two_machines;
use common::service_manager::activated_command;
use common::{Daemon, Peer, wait_until};

/// A line sink, with three places.
const LINES: &str = "[log]\nlevel = 'debug'\n[limits]\nconnections = 3\n[defaults]\ndelimiter = '\\n'\nreply = 'none'\ndeadlines.idle = 'off'\n";

fn start_on(listener: &TcpListener, configuration: &str) -> Daemon {
    let socket = listener.try_clone().expect("it can be duplicated").into();
    let daemon = Daemon::spawn_with_stdio(&mut activated_command("3<&0", vec![socket], "echo"), configuration, &[]);
    daemon.wait_for_log("listening on");
    daemon
}

#[test]
fn every_tcp_connection_has_keepalive() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).expect("it is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let mut early: Vec<_> = (0..5).map(|_| Peer::connect(&address)).collect();
        let daemon = start_on(&listener, "");
        early.iter_mut().for_each(|peer| peer.exchange("early"));
        let mut late = Peer::connect(&address);
        late.exchange("late");
        let Some(connections) = daemon.connections() else { return };
        // A client of another test may have come to the same port.
        assert!(connections.len() >= 6);
        for socket in connections {
            assert!(sockopt::socket_keepalive(&socket).expect("it is TCP"));
            assert_eq!(sockopt::tcp_keepidle(&socket).expect("it is TCP"), Duration::from_secs(60));
            assert_eq!(sockopt::tcp_keepintvl(&socket).expect("it is TCP"), Duration::from_secs(10));
            assert_eq!(sockopt::tcp_keepcnt(&socket).expect("it is TCP"), 6);
        }
        daemon.stop();
    }
}

#[test]
fn clients_that_have_vanished_do_not_hold_their_places() {
    let Some([ours, theirs]) = two_machines() else { return };
    let listener = ours.tcp_listener("192.0.2.1:0");
    let address = listener.local_addr().expect("it is bound");
    let daemon = start_on(&listener, LINES);
    assert!(sockopt::socket_keepalive(&listener).expect("it is TCP"), "the daemon has set it");
    // Not two minutes, for the sake of this test.
    sockopt::set_tcp_keepidle(&listener, Duration::from_secs(1)).expect("it can be set");
    sockopt::set_tcp_keepintvl(&listener, Duration::from_secs(1)).expect("it can be set");
    sockopt::set_tcp_keepcnt(&listener, 2).expect("it can be set");
    let _vanished: Vec<_> = (0..3).map(|_| theirs.connect(address)).collect();
    wait_until("all have their places", || daemon.connections().is_none_or(|all| all.len() == 3));
    // From now on their machine takes no packet, and the link of ours is still up, as behind a switch.
    theirs.ip("address del 192.0.2.2/24 dev veth0");
    let local = ours.connect(address);
    daemon.wait_for_log_times("ended: peer-reset", 3);
    drop(local);
    daemon.wait_for_log("ended: peer-closed");
    daemon.stop();
}
