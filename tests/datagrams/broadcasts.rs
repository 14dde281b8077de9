//! A datagram that was sent to many machines is not answered, on whatever address the listener is: each of them would
//! answer (RFC 1122).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::getuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::{Daemon, TEST_TIMEOUT, program_or_skip, skip_test};
use crate::safety::count_dropped;
use crate::{start, start_on};

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

/// A network namespace, as long as its one process runs.
struct Network(Child);

impl Network {
    fn new() -> Self {
        // It says when it is there, and ends when nobody reads from it.
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; read end"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("unshare can be started");
        let mut ready = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().expect("it is piped"), &mut ready).expect("it starts");
        Self(child)
    }

    fn ip(&self, arguments: &str) {
        let process = self.0.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &process, "ip"]).args(arguments.split(' '));
        let output = command.output().expect("nsenter can be started");
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Returns a socket of this network, bound to an address. The thread that makes it is not used for anything else.
    fn bind(&self, address: &str) -> UdpSocket {
        let namespace = format!("/proc/{}/ns/net", self.0.id());
        let bind = || {
            let namespace = open(namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("it is there");
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), network).expect("root may enter it");
            UdpSocket::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"))
        };
        thread::scope(|scope| scope.spawn(bind).join().expect("it does not panic"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Two machines, the daemon's and its client's, on one Ethernet. The daemon's has two addresses of IPv4.
fn two_machines() -> Option<[Network; 2]> {
    program_or_skip("unshare")?;
    program_or_skip("ip")?;
    if !getuid().is_root() {
        skip_test("only root can make networks");
        return None;
    }
    let machines = [Network::new(), Network::new()];
    machines[0].ip(&format!("link add veth0 type veth peer name veth0 netns {}", machines[1].0.id()));
    for (machine, addresses) in machines.iter().zip([
        &["192.0.2.1/24 brd 192.0.2.255", "192.0.2.3/24 brd 192.0.2.255", "2001:db8::1/64 nodad"][..],
        &["192.0.2.2/24 brd 192.0.2.255", "2001:db8::2/64 nodad"],
    ]) {
        for address in addresses {
            machine.ip(&format!("address add {address} dev veth0"));
        }
        machine.ip("link set lo up");
        machine.ip("link set veth0 up");
        // For 255.255.255.255, and for every group.
        machine.ip("route add default dev veth0");
    }
    Some(machines)
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
            let (socket, client) = (ours.bind(&format!("{bound}:0")), theirs.bind(client));
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
            let (socket, client) = (ours.bind(&format!("{bound}:0")), theirs.bind(client));
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
        let (socket, client) = (ours.bind(bound), theirs.bind("192.0.2.2:0"));
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
