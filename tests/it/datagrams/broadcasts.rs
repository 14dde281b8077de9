//! A datagram that was sent to many machines is not answered, on whatever address the listener is: each of them would
//! answer (RFC 1122).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use super::{start, start_on};
use common::network::two_machines;
use common::packets::count_dropped;
use common::{Daemon, TEST_TIMEOUT};

#[test]
fn a_broadcast_on_the_loopback_interface_is_dropped() {
    for bound in ["0.0.0.0", "[::]"] {
        let daemon = start("", &format!("udp:{bound}:0"));
        let port = daemon.addresses()[0].rsplit_once(':').unwrap().1.to_owned();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_broadcast(true).unwrap();
        client.send_to(b"broadcast", format!("127.255.255.255:{port}")).unwrap();
        expect_reply_only_to_the_next(daemon, &client, &format!("127.0.0.1:{port}"), 1);
    }
}

#[test]
fn a_listener_that_replies_to_nothing_takes_broadcasts() {
    let daemon = start("[defaults]\nreply = 'none'\nlog_messages = 'full'\n", "udp:0.0.0.0:0");
    let port = daemon.addresses()[0].rsplit_once(':').unwrap().1.to_owned();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_broadcast(true).unwrap();
    client.send_to(b"broadcast", format!("127.255.255.255:{port}")).unwrap();
    daemon.wait_for_log(": \"broadcast\"");
    daemon.stop();
}

/// Sends one more, to this machine alone, and checks that its reply is the only one.
fn expect_reply_only_to_the_next(daemon: Daemon, client: &UdpSocket, to: &str, broadcasts: u64) {
    client.set_read_timeout(Some(TEST_TIMEOUT)).expect("it can be set");
    client.send_to(b"a", to).expect("it can be sent");
    let mut buffer = [0; 100];
    let (count, from) = client.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{to}: {error}"));
    assert_eq!((&buffer[..count], from.to_string()), (&b"server got:a"[..], to.to_owned()));
    let log = daemon.stop();
    assert_eq!(count_dropped(&log, "broadcast"), broadcasts, "{to}: {log:#?}");
    assert_eq!(log.iter().filter(|line| line.contains("dropped")).count() as u64, broadcasts.min(2), "{log:#?}");
    client.set_nonblocking(true).expect("it can be set");
    assert!(client.recv(&mut buffer).is_err(), "there was another reply");
}

/// What reaches the daemon's machine and is sent to many.
const TO_MANY_V4: [&str; 3] = ["192.0.2.255", "255.255.255.255", "224.0.0.1"];

#[test]
fn broadcasts_and_multicasts_are_dropped_and_what_is_sent_to_one_machine_is_answered() {
    let Some([ours, theirs]) = two_machines() else { return };
    for (bound, client, many, one) in [
        ("0.0.0.0", "192.0.2.2:0", &TO_MANY_V4[..], "192.0.2.1"),
        ("0.0.0.0", "192.0.2.2:0", &TO_MANY_V4, "192.0.2.3"),
        // A group of IPv4 does not reach such a socket.
        ("[::]", "192.0.2.2:0", &TO_MANY_V4[..2], "192.0.2.3"),
        ("[::]", "[2001:db8::2]:0", &["[ff02::1%2]"], "[2001:db8::1]"),
        ("[2001:db8::1]", "[2001:db8::2]:0", &[], "[2001:db8::1]"),
        ("192.0.2.3", "192.0.2.2:0", &[], "192.0.2.3"),
    ] {
        // What came before the daemon did, and what comes after.
        for early in [true, false] {
            let (socket, client) = (ours.udp(&format!("{bound}:0")), theirs.udp(client));
            let port = socket.local_addr().unwrap().port();
            client.set_broadcast(true).unwrap();
            let send = || many.iter().for_each(|to| send_to(&client, to, port));
            let daemon = if early {
                send();
                start_on("", &socket)
            } else {
                let daemon = start_on("", &socket);
                send();
                daemon
            };
            expect_reply_only_to_the_next(daemon, &client, &format!("{one}:{port}"), many.len() as u64);
        }
    }
}

#[test]
fn a_listener_on_a_broadcast_or_multicast_address_answers_nothing() {
    let Some([ours, theirs]) = two_machines() else { return };
    for (bound, client) in
        TO_MANY_V4.map(|bound| (bound, "192.0.2.2:0")).into_iter().chain([("[ff02::1%2]", "[2001:db8::2]:0")])
    {
        for early in [true, false] {
            let (socket, client) = (ours.udp(&format!("{bound}:0")), theirs.udp(client));
            let port = socket.local_addr().unwrap().port();
            client.set_broadcast(true).unwrap();
            if early {
                send_to(&client, bound, port);
            }
            let daemon = start_on("", &socket);
            if !early {
                send_to(&client, bound, port);
            }
            daemon.wait_for_log("1 datagram dropped on echo: broadcast; from ");
            daemon.stop();
            client.set_nonblocking(true).unwrap();
            assert!(client.recv(&mut [0; 100]).is_err(), "{bound}");
        }
    }
}

#[test]
fn a_reply_to_what_came_before_the_start_leaves_from_the_address_that_the_client_used() {
    let Some([ours, theirs]) = two_machines() else { return };
    for bound in ["0.0.0.0:0", "[::]:0"] {
        let (socket, client) = (ours.udp(bound), theirs.udp("192.0.2.2:0"));
        // Not the one that the route would choose.
        let asked = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3)), socket.local_addr().unwrap().port());
        client.connect(asked).unwrap();
        client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        client.send(b"a").unwrap();
        let daemon = start_on("", &socket);
        assert_eq!(client.recv(&mut [0; 100]).unwrap(), b"server got:a".len(), "{bound}");
        daemon.stop();
    }
}

/// Sends to an address, which may have the number of an interface.
fn send_to(client: &UdpSocket, to: &str, port: u16) {
    let to: SocketAddr = format!("{to}:{port}").parse().expect("an address");
    client.send_to(b"to many", to).unwrap_or_else(|error| panic!("{to}: {error}"));
}
