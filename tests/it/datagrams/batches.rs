//! Datagrams that are received with one call: each is checked and answered by itself, and each is counted.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use rustix::net::sockopt;
use rustix::process::Signal;

use super::{datagram_peer, start, start_on};
use common::packets::count_dropped;
use common::service_manager::activated_command;
use common::{Daemon, TEST_TIMEOUT, wait_until};

/// More than one call receives.
const MANY: usize = 100;

const UNLIMITED: &str = "[limits]\ndatagrams_per_source = 'off'\n";

/// A socket for the daemon, with its address, and a client.
fn socket_and_client() -> (UdpSocket, SocketAddr, UdpSocket) {
    let (socket, client) = (
        UdpSocket::bind("127.0.0.1:0").expect("sockets can be bound"),
        UdpSocket::bind("127.0.0.1:0").expect("sockets can be bound"),
    );
    client.set_read_timeout(Some(TEST_TIMEOUT)).expect("it can be set");
    let address = socket.local_addr().expect("it is bound");
    (socket, address, client)
}

fn receive(client: &UdpSocket) -> String {
    let mut buffer = [0; 4096];
    let count = client.recv(&mut buffer).expect("a reply comes");
    String::from_utf8(buffer[..count].to_vec()).expect("it is text")
}

/// Checks that nothing else comes. The daemon has ended: what it has sent over the loopback interface is here.
fn expect_nothing(client: &UdpSocket) {
    client.set_nonblocking(true).expect("it can be set");
    assert!(client.recv(&mut [0; 10]).is_err(), "there was another reply");
}

#[test]
fn each_datagram_of_a_batch_is_checked_and_answered_by_itself() {
    let (socket, address, client) = socket_and_client();
    let long = "x".repeat(200);
    let mut expected = Vec::new();
    for number in 0..MANY {
        match number % 5 {
            0 => client.send_to(long.as_bytes(), address),
            1 => client.send_to(format!("server got:{number}").as_bytes(), address),
            2 => client.send_to(b"", address).inspect(|_| expected.push("server got:".to_owned())),
            _ => {
                expected.push(format!("server got:message {number}"));
                client.send_to(format!("message {number}").as_bytes(), address)
            }
        }
        .unwrap();
    }
    let daemon = start_on(&format!("[defaults]\nmax_message = '100B'\n{UNLIMITED}"), &socket);
    // They are all there before the daemon is.
    for expected in &expected {
        assert_eq!(receive(&client), *expected);
    }
    let log = daemon.stop();
    expect_nothing(&client);
    assert_eq!((count_dropped(&log, "too-long"), count_dropped(&log, "own-reply")), (20, 20), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("60 messages, 0 connections")), "{log:#?}");
}

#[test]
fn each_reply_of_a_batch_leaves_from_the_address_that_was_asked() {
    let (socket, client) = (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let port = socket.local_addr().unwrap().port();
    // In runs of different lengths.
    let asked: Vec<_> = (0..64_u8).map(|number| Ipv4Addr::new(127, 0, 0, 1 + number / 3 % 4)).collect();
    for ip in &asked {
        client.send_to(ip.to_string().as_bytes(), (*ip, port)).unwrap();
    }
    let daemon = start_on(UNLIMITED, &socket);
    for ip in &asked {
        let mut buffer = [0; 100];
        let (count, from) = client.recv_from(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..count]);
        assert_eq!((&*text, from), (&*format!("server got:{ip}"), SocketAddr::from((*ip, port))));
    }
    daemon.stop();
}

#[test]
fn a_reply_that_cannot_be_sent_keeps_no_other_of_its_batch_from_being_sent() {
    let daemon = start(UNLIMITED, "unixgram:DIR/socket");
    let (client, mut gone) = (datagram_peer(&daemon), 0);
    // From now on, it does not ask each datagram whether descriptors come with it.
    client.exchange("first");
    pause(&daemon);
    // No more than fit into the queue of a Unix socket (net.unix.max_dgram_qlen), which are 10 on some machines.
    for number in 0..10 {
        if [0, 4, 5, 9].contains(&number) {
            datagram_peer(&daemon).send("gone");
            gone += 1;
        } else {
            client.send(number.to_string());
        }
    }
    daemon.signal(Signal::CONT);
    for number in [1, 2, 3, 6, 7, 8] {
        client.expect(format!("server got:{number}"));
    }
    client.exchange("last");
    let log = daemon.stop();
    assert_eq!(count_dropped(&log, "unreachable"), gone, "{log:#?}");
}

/// Stops a daemon until it gets SIGCONT.
fn pause(daemon: &Daemon) {
    daemon.signal(Signal::STOP);
    wait_until("it is stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).expect("it runs");
        stat.rsplit(')').next().is_some_and(|fields| fields.starts_with(" T"))
    });
}

/// Waits until the daemon has received everything.
fn wait_until_empty(socket: &UdpSocket) {
    // The daemon has made it non-blocking.
    wait_until("the socket is empty", || socket.peek(&mut [0; 1]).is_err());
}

/// How many replies come before this one.
fn count_before(client: &UdpSocket, last: &str) -> usize {
    let mut count = 0;
    while receive(client) != last {
        count += 1;
    }
    count
}

#[test]
fn what_the_kernel_drops_is_counted_exactly() {
    const SENT: usize = 1000;
    let (socket, address, client) = socket_and_client();
    sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
    let flood = || (0..SENT).for_each(|_| _ = client.send_to(&[b'x'; 100], address).unwrap());
    // Most of these are lost before the daemon is there: it does not count them.
    flood();
    let daemon = start_on(UNLIMITED, &socket);
    wait_until_empty(&socket);
    client.send_to(b"first", address).unwrap();
    assert!(count_before(&client, "server got:first") < SENT);
    pause(&daemon);
    flood();
    daemon.signal(Signal::CONT);
    wait_until_empty(&socket);
    client.send_to(b"second", address).unwrap();
    let answered = count_before(&client, "server got:second");
    let lost = |log: &[String]| usize::try_from(count_dropped(log, "kernel")).unwrap();
    // The first report is made at once.
    wait_until("it is logged", || lost(&daemon.log()) == SENT - answered);
    assert_eq!(lost(&daemon.stop()), SENT - answered);
    assert!(answered < SENT);
}

#[test]
fn what_is_lost_after_the_last_datagram_is_counted_at_the_end() {
    let (socket, address, client) = socket_and_client();
    sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
    let daemon = start_on("[defaults]\nlog_messages = 'full'\n", &socket);
    client.send_to(b"first", address).unwrap();
    receive(&client);
    pause(&daemon);
    (0..1000).for_each(|_| _ = client.send_to(&[b'x'; 100], address).unwrap());
    // The signal to end is pending when the daemon continues, so it receives no further datagram.
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::CONT);
    let log = daemon.stop();
    let mut left = 0;
    while socket.recv(&mut [0; 200]).is_ok() {
        left += 1;
    }
    let logged = log.iter().filter(|line| line.contains(": \"xxx")).count();
    let dropped = ["rate", "kernel"].map(|cause| usize::try_from(count_dropped(&log, cause)).unwrap());
    assert_eq!(logged + dropped[0] + dropped[1] + left, 1000, "{log:#?}");
    assert!(dropped[1] > 0, "{log:#?}");
}

#[test]
fn sockets_of_one_port_are_served_by_a_thread_each_and_have_one_rate_together() {
    let bind = |address: SocketAddr| {
        let (domain, kind) = (rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM);
        let socket = rustix::net::socket_with(domain, kind, rustix::net::SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_reuseport(&socket, true).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        UdpSocket::from(socket)
    };
    let first = bind("127.0.0.1:0".parse().unwrap());
    let address = first.local_addr().unwrap();
    let sockets = [first, bind(address)];
    // The kernel chooses a socket by the address of the client: 64 of them choose the same with a chance of 1 to 2^63.
    let clients: Vec<_> = (0..64).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    clients.iter().for_each(|client| _ = client.send_to(b"a", address).unwrap());
    let waiting = |socket: &UdpSocket| {
        socket.set_nonblocking(true).unwrap();
        socket.peek(&mut [0; 1]).is_ok()
    };
    assert!(sockets.iter().all(waiting), "both have some");
    let mut command = activated_command(
        "3<&0 4<&1 1>&2",
        sockets.iter().map(|socket| socket.try_clone().unwrap().into()).collect(),
        "echo:echo",
    );
    let daemon = Daemon::spawn_with_stdio(&mut command, "[limits]\ndatagrams_per_source = '10/s'\n", &[]);
    let start = super::now();
    daemon.wait_for_log("listening on");
    sockets.iter().for_each(wait_until_empty);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    assert_eq!(names.filter(|name| name.trim() == "datagrams").count(), 2);
    let log = daemon.stop();
    let answered = clients.iter().filter(|client| {
        client.set_nonblocking(true).unwrap();
        client.recv(&mut [0; 100]).is_ok()
    });
    let (answered, dropped) = (answered.count(), usize::try_from(count_dropped(&log, "rate")).unwrap());
    assert_eq!(answered + dropped, clients.len(), "{log:#?}");
    let most = 10 + 10 * (usize::try_from(start.elapsed().as_secs()).unwrap() + 1);
    assert!((10..=most).contains(&answered), "{answered} answered");
}

/// The memory of a process that is resident, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("there is such a line");
    line.trim().strip_suffix(" kB").expect("a number").parse::<u64>().expect("a number") * 1024
}

#[test]
fn two_hundred_thousand_sources_take_little_memory() {
    let (socket, address, _) = socket_and_client();
    let daemon = start_on("", &socket);
    let SocketAddr::V4(to) = address else { unreachable!() };
    let to = SockaddrIn::from(to);
    // Any address of 127/8 is one of this machine: the sender says from which it sends. The replies come to a socket that
    // nothing reads.
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    let send = |from: Ipv4Addr| {
        let ipi_spec_dst = in_addr { s_addr: u32::from(from).to_be() };
        let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: in_addr { s_addr: 0 } };
        let ancillary = [ControlMessage::Ipv4PacketInfo(&info)];
        sendmsg(client.as_raw_fd(), &[IoSlice::new(b"a")], &ancillary, MsgFlags::empty(), Some(&to)).unwrap();
    };
    let source = |number: u32| Ipv4Addr::from(0x7f01_0000 + number);
    (0..1000).for_each(|number| send(source(number)));
    wait_until_empty(&socket);
    let before = resident(daemon.pid());
    for number in 1000..200_000 {
        send(source(number));
        if number % 100 == 0 {
            wait_until_empty(&socket);
        }
    }
    wait_until_empty(&socket);
    let grown = resident(daemon.pid()).saturating_sub(before);
    // The table of 16,384 sources takes 2 MiB.
    assert!(grown < 4 << 20, "{grown} bytes more");
    let log = daemon.stop();
    let lost = count_dropped(&log, "kernel");
    assert!(log.iter().any(|line| line.contains(&format!("{} messages, 0 connections", 200_000 - lost))), "{log:#?}");
}
