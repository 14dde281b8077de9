//! Datagrams under load: each rule holds for each of them, each is counted once, and no client is served less because of
//! what another one does.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, getsockopt, sendmsg};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use rustix::process::Signal;

use crate::memory::MemInfo;
use common::packets::{DatagramPeer, count_dropped, count_messages};
use common::service_manager::activated_command;
use common::{self, Daemon, OnDrop, wait_until};

/// How long another client may have to wait, whatever floods.
const SOON: Duration = Duration::from_secs(5);

/// How many threads send.
const SENDERS: u32 = 4;

/// The prefix of a reply that is more than three times as large as the datagram, if that is short.
const LONG_PREFIX: &str = "pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp";

/// A socket of UDP that shares its port.
fn shared_socket(address: SocketAddr) -> UdpSocket {
    let socket =
        socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).expect("there are sockets");
    sockopt::set_socket_reuseport(&socket, true).expect("it can be set");
    bind(&socket, &address).expect("it can be bound");
    socket.into()
}

/// A daemon on these sockets, which stay ours, too: two at most.
fn start_on(sockets: &[&dyn AsFd], configuration: &str) -> Daemon {
    let passed: Vec<OwnedFd> =
        sockets.iter().map(|socket| socket.as_fd().try_clone_to_owned().expect("it can be duplicated")).collect();
    let (redirections, names) = if passed.len() == 1 { ("3<&0", "echo") } else { ("3<&0 4<&1 1>&2", "echo:echo") };
    let daemon = Daemon::spawn_with_stdio(&mut activated_command(redirections, passed, names), configuration, &[]);
    daemon.wait_for_log_times("listening on", sockets.len());
    daemon
}

/// What the kernel keeps in a socket, and may keep: received bytes, their limit, sent bytes, their limit.
fn memory(socket: impl AsFd) -> [i32; 4] {
    let [received, receive_limit, sent, send_limit, ..] = getsockopt(&socket, MemInfo).expect("it is new enough");
    [received, receive_limit, sent, send_limit]
}

/// Waits until the receive buffer of the daemon has so much room that these threads lose nothing.
fn wait_for_room(socket: &UdpSocket) {
    let is_full = || {
        let [received, limit, ..] = memory(socket);
        received > limit / 4
    };
    while is_full() {
        thread::yield_now();
    }
}

fn wait_until_empty(socket: &UdpSocket) {
    wait_until("the socket is empty", || memory(socket)[0] == 0);
}

/// Counts the datagrams that have come to a socket: those that are there, and those that it had no room for.
fn count_received(socket: &UdpSocket) -> u64 {
    socket.set_nonblocking(true).expect("it can be set");
    let dropped = getsockopt(socket, MemInfo).expect("it is new enough")[8];
    let waiting = std::iter::from_fn(|| socket.recv(&mut [0; 2048]).ok()).count();
    waiting as u64 + u64::try_from(dropped).expect("it is not negative")
}

/// A socket on a port of services, if this process may have one.
fn service_socket() -> Option<UdpSocket> {
    (900..1024).rev().find_map(|port| UdpSocket::bind(("127.0.0.1", port)).ok())
}

#[test]
fn each_rule_holds_under_load_and_each_datagram_is_counted_once() {
    const ROUNDS: u64 = 1000;
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let to: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    let configuration =
        format!("[defaults]\nmax_message = '100B'\nprefix = '{LONG_PREFIX}'\n[limits]\ndatagrams_per_source = 'off'\n");
    let daemon = start_on(&[&socket], &configuration);
    let service = service_socket();
    let clients: Vec<_> = (0..SENDERS).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    thread::scope(|scope| {
        for client in &clients {
            client.set_broadcast(true).unwrap();
            let (socket, service) = (&socket, service.as_ref());
            scope.spawn(move || {
                let send = |from: &UdpSocket, bytes: &[u8], to: SocketAddr| {
                    wait_for_room(socket);
                    from.send_to(bytes, to).unwrap();
                };
                for round in 0..ROUNDS {
                    send(client, format!("message {round}").as_bytes(), to);
                    send(client, &[b'x'; 101], to);
                    send(client, format!("{LONG_PREFIX}x").as_bytes(), to);
                    send(client, b"server error:x", to);
                    send(client, b"x", to);
                    send(client, b"to many", (Ipv4Addr::new(127, 255, 255, 255), port).into());
                    // As if it came from the daemon itself.
                    send(socket, b"from itself", to);
                    if let Some(service) = service {
                        send(service, b"from a service", to);
                    }
                }
            });
        }
    });
    wait_until_empty(&socket);
    let log = daemon.stop();
    let all = u64::from(SENDERS) * ROUNDS;
    assert_eq!(count_messages(&log), all, "{log:#?}");
    let of_services = if service.is_some() { all } else { 0 };
    for (cause, expected) in [
        ("too-long", all),
        ("own-reply", 2 * all),
        ("amplifies", all),
        ("broadcast", all),
        ("own-address", all),
        ("service-port", of_services),
    ] {
        assert_eq!(count_dropped(&log, cause), expected, "{cause}: {log:#?}");
    }
    assert!(
        !["kernel", "rate", "unreachable", "no-room"].iter().any(|cause| count_dropped(&log, cause) > 0),
        "{log:#?}"
    );
    // Nothing else was answered.
    for client in &clients {
        assert_eq!(count_received(client), ROUNDS);
    }
    assert!(service.is_none_or(|service| count_received(&service) == 0));
}

/// Sends from an address of this machine: any of 127/8.
fn send_from(client: &UdpSocket, from: Ipv4Addr, to: SocketAddrV4) {
    let ipi_spec_dst = in_addr { s_addr: u32::from(from).to_be() };
    let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: in_addr { s_addr: 0 } };
    let (ancillary, to) = ([ControlMessage::Ipv4PacketInfo(&info)], SockaddrIn::from(to));
    sendmsg(client.as_raw_fd(), &[IoSlice::new(b"a")], &ancillary, MsgFlags::empty(), Some(&to)).expect("it is sent");
}

#[test]
fn what_is_sent_is_answered_or_counted_as_dropped_or_lost_whatever_the_load() {
    /// Of each sender in each round.
    const DATAGRAMS: u32 = 4000;
    const ROUNDS: u32 = 4;
    let first = shared_socket("127.0.0.1:0".parse().unwrap());
    let SocketAddr::V4(to) = first.local_addr().unwrap() else { unreachable!() };
    let sockets = [first, shared_socket(to.into())];
    for socket in &sockets {
        // Some 80 datagrams.
        sockopt::set_socket_recv_buffer_size(socket, 32 * 1024).unwrap();
    }
    let daemon = start_on(&[&sockets[0], &sockets[1]], "[limits]\ndatagrams_per_source = '100/s'\n");
    let clients: Vec<_> = (0..SENDERS).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect();
    for round in 0..ROUNDS {
        if round == 1 {
            // Whatever is sent now is lost when the sockets are full.
            daemon.signal(Signal::STOP);
        }
        thread::scope(|scope| {
            for (client, sender) in clients.iter().zip(0..) {
                scope.spawn(move || {
                    for number in 0..DATAGRAMS {
                        // Half of them from one source, the others from one each.
                        let one = 0x7f01_0000 + sender * 0x10000;
                        let forged = one + 1 + number + round * DATAGRAMS;
                        send_from(client, Ipv4Addr::from(if number % 2 == 0 { one } else { forged }), to);
                    }
                });
            }
        });
        daemon.signal(Signal::CONT);
    }
    sockets.iter().for_each(wait_until_empty);
    let log = daemon.stop();
    let sent = u64::from(SENDERS * DATAGRAMS * ROUNDS);
    let [rate, kernel, other] =
        [&["rate"][..], &["kernel"], &["no-room", "send-buffer", "unreachable", "own-address", "broadcast"]]
            .map(|causes| causes.iter().map(|cause| count_dropped(&log, cause)).sum::<u64>());
    let answered = count_messages(&log);
    assert_eq!((answered + rate + kernel, other), (sent, 0), "{log:#?}");
    assert!(rate > 0 && kernel > 0 && answered > 0, "{rate} {kernel} {answered}");
    let received: u64 = clients.iter().map(count_received).sum();
    assert_eq!(received, answered, "each message has one reply");
}

#[test]
fn a_source_that_saturates_the_daemon_keeps_no_reply_from_another() {
    // As many as are within the rate at once.
    const EXCHANGES: u64 = 90;
    for limit in ["100/s", "off"] {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = format!("udp:{}", socket.local_addr().unwrap());
        let daemon = start_on(&[&socket], &format!("[limits]\ndatagrams_per_source = '{limit}'\n"));
        let (has_ended, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let flood = DatagramPeer::bind("127.0.0.1:0", &address);
                while !has_ended.load(Ordering::Relaxed) {
                    wait_for_room(&socket);
                    flood.send("flood");
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            let _end_on_drop = OnDrop(|| has_ended.store(true, Ordering::Relaxed));
            let other = DatagramPeer::bind("127.0.0.2:0", &address);
            for number in 0..EXCHANGES {
                // There is a flood.
                let before = sent.load(Ordering::Relaxed);
                wait_until("it floods", || sent.load(Ordering::Relaxed) > before + 50);
                let start = common::now();
                other.exchange(&number.to_string());
                assert!(start.elapsed() < SOON, "{limit}: {:?}", start.elapsed());
            }
        });
        wait_until_empty(&socket);
        let log = daemon.stop();
        let dropped = count_dropped(&log, "rate");
        assert_eq!(dropped > 0, limit != "off", "{log:#?}");
        assert_eq!(count_messages(&log) + dropped, sent.into_inner() + EXCHANGES, "{limit}: {log:#?}");
        assert_eq!(
            log.iter().filter(|line| line.contains("dropped") && !line.contains(": rate;")).count(),
            0,
            "{log:#?}"
        );
    }
}

/// Sends until it has as many unread replies as it can have.
fn hoard(address: &str) -> DatagramPeer {
    let client = DatagramPeer::to(address);
    // As many as its queue takes where the kernel has its default (net.unix.max_dgram_qlen), or more of them.
    (0..11).for_each(|_| client.send("unread"));
    client
}

#[test]
fn unix_clients_that_never_read_do_not_delay_others_until_the_send_buffer_is_full() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (socket, address) = (UnixDatagram::bind(&path).unwrap(), format!("unixgram:{}", path.display()));
    let daemon = start_on(&[&socket], "[limits]\ndatagrams_per_source = 'off'\n");
    let used = || {
        let [.., sent, limit] = memory(&socket);
        (sent, limit)
    };
    let (other, mut hoarders) = (DatagramPeer::to(&address), Vec::new());
    while used().0 < used().1 * 3 / 4 {
        hoarders.push(hoard(&address));
        let start = common::now();
        other.exchange("read");
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    }
    let log = daemon.log();
    assert_eq!(count_dropped(&log, "send-buffer"), 0, "{log:#?}");
    // Now it is full. The log says so, and not that some client does not read: which does not, is not known.
    while count_dropped(&daemon.log(), "send-buffer") == 0 {
        hoarders.push(hoard(&address));
        assert!(hoarders.len() < 1000, "{:?}", used());
    }
    let (sent, limit) = used();
    assert!(sent >= limit && sent < limit + 4096, "{sent} of {limit}");
    // Closing a socket frees the replies that it has not read.
    drop(hoarders.drain(..hoarders.len() / 2));
    wait_until("it is freed", || used().0 < used().1);
    for _ in 0..20 {
        other.exchange("read");
    }
    daemon.stop();
}
