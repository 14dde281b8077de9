//! What the kernel has promised to receive for the daemon (the window of TCP) it receives, whatever the reason for which the
//! daemon does not read: no packet of an honest client is dropped. A client whose packets are dropped sends them again ever less
//! often, and is so late that its read deadline passes.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::getsockopt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_recv_buffer_size;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::mptcp;
use common::fake_journald::FakeJournald;
use common::network::{Network, two_machines};
use common::service_manager::activated_command;
use common::{Daemon, Peer, now, wait_until};

/// SO_BUF_LOCK of asm-generic/socket.h, and SOCK_RCVBUF_LOCK of linux/socket.h, which no library names.
const SO_BUF_LOCK: i32 = 72;
const RECEIVE_BUFFER_LOCK: i32 = 2;

sockopt_impl!(
    /// Which buffers have a fixed size.
    BufferLock,
    GetOnly,
    libc::SOL_SOCKET,
    SO_BUF_LOCK,
    i32
);

/// After how much time without any progress it is assumed that there will be none.
const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };

/// How many clients send at once, so many that the daemon does not keep up.
const CLIENTS: usize = 40;

/// The length of a message, which is a packet each, with its delimiter.
const MESSAGE: usize = 100;

const TIME: Duration = Duration::from_secs(8);

/// Returns how many packets this network has dropped, since they did not fit into the receive buffer of a connection.
fn dropped_packets(network: &Network) -> u64 {
    let text = network.run(|| fs::read_to_string("/proc/thread-self/net/netstat").expect("the kernel has TCP"));
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(|line| line.split(' '));
    let (names, values) = (lines.next().expect("there are names"), lines.next().expect("there are values"));
    let (_, value) = names.zip(values).find(|(name, _)| *name == "TCPRcvQDrop").expect("the kernel counts them");
    value.parse().expect("it is a number")
}

/// Sends messages as fast as they are taken, and reads replies as fast as they come.
fn send_small_packets(network: &Network, address: SocketAddr) -> Result<(), Errno> {
    let client = network.connect(address);
    let message = [&[b'x'; MESSAGE - 1][..], b"\t"].concat();
    let (start, mut unsent) = (now(), &message[..]);
    while start.elapsed() < TIME {
        for _ in 0..20 {
            match send(&client, unsent, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => unsent = if count < unsent.len() { &unsent[count..] } else { &message },
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        match recv(&client, &mut [0; 64 * 1024][..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(Errno::PIPE),
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
        thread::sleep(Duration::from_millis(3));
    }
    Ok(())
}

#[test]
fn no_packet_is_dropped_while_the_daemon_does_not_read() {
    let Some([network, _]) = two_machines() else { return };
    let listener = network.tcp_listener("127.0.0.1:0");
    let address = listener.local_addr().expect("it is bound");
    let mut command = activated_command("3<&0", vec![listener.into()], "echo");
    // It reads much at once, and then nothing for a while.
    let daemon = Daemon::spawn_with_stdio(&mut command, "[defaults]\nreply_delay = '1ms'\n", &[]);
    daemon.wait_for_log("listening on");
    let before = dropped_packets(&network);
    let results: Vec<_> = thread::scope(|scope| {
        let client = || send_small_packets(&network, address);
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        // Otherwise nothing is shown.
        wait_until("the daemon does not read some client", || {
            let locks = |socket: &OwnedFd| getsockopt(socket, BufferLock).unwrap_or(RECEIVE_BUFFER_LOCK);
            daemon.connections().is_none_or(|all| all.iter().any(|socket| locks(socket) & RECEIVE_BUFFER_LOCK == 0))
        });
        clients.into_iter().map(|client| client.join().expect("it does not panic")).collect()
    });
    assert_eq!(results, [Ok(()); CLIENTS], "how it ended for each client");
    assert_eq!(dropped_packets(&network) - before, 0, "dropped packets");
    daemon.stop();
}

/// Whether the one connection of a daemon has a receive buffer of a fixed size, and how large it is; `None` if it is not there.
fn receive_buffer(daemon: &Daemon) -> Option<(bool, usize)> {
    let connection = daemon.connections()?.pop()?;
    let locks = getsockopt(&connection, BufferLock).expect("Linux has it since 5.14");
    Some((locks & RECEIVE_BUFFER_LOCK != 0, socket_recv_buffer_size(&connection).expect("it is a socket")))
}

/// Checks that the size is fixed while the daemon reads, and not while it does not: `stop_reading` has it stop, and `go_on` go on.
fn check_receive_buffer(
    daemon: &Daemon,
    peer: &mut Peer,
    mut stop_reading: impl FnMut(&mut Peer),
    mut go_on: impl FnMut(&mut Peer),
) {
    if daemon.connections().is_none() {
        return;
    }
    let reads = || receive_buffer(daemon) == Some((true, 128 * 1024));
    wait_until("the size is fixed before anything has come", reads);
    peer.exchange("a message");
    wait_until("the size is fixed", reads);
    wait_until("the size is not fixed", || {
        stop_reading(peer);
        receive_buffer(daemon).is_some_and(|(is_fixed, _)| !is_fixed)
    });
    wait_until("the size is fixed again", || {
        go_on(peer);
        reads()
    });
}

fn receive_all(peer: &mut Peer) {
    while poll(&mut [PollFd::new(&peer.fd(), PollFlags::IN)], Some(&SOON)).expect("it can be polled") > 0 {
        recv(peer.fd(), &mut [0; 64 * 1024][..], RecvFlags::empty()).expect("the connection is there");
    }
}

#[test]
fn the_receive_buffer_is_fixed_unless_the_client_does_not_read() {
    let daemon = Daemon::start_with("[defaults.deadlines]\nread = '1h'\n", &["--listen", "127.0.0.1:0"]);
    let mut peer = Peer::connect(&daemon.addresses()[0]);
    let message = [&[b'x'; 9999][..], b"\t"].concat();
    let mut sent = 0;
    let send_all = |peer: &mut Peer| {
        while let Ok(count) = send(peer.fd(), &message[sent % message.len()..], SendFlags::DONTWAIT) {
            sent += count;
        }
    };
    check_receive_buffer(&daemon, &mut peer, send_all, receive_all);
    daemon.stop();
}

#[test]
fn the_receive_buffer_of_a_client_without_mptcp_is_fixed_on_a_listener_of_mptcp() {
    let Some((daemon, address)) = mptcp::start("") else { return };
    // The first connection is accepted before any can have inherited something.
    for _ in 0..2 {
        let mut peer = Peer::connect(&address);
        peer.exchange("a message");
        let is_fixed = || receive_buffer(&daemon) == Some((true, 128 * 1024));
        wait_until("the size is fixed", || is_fixed() || daemon.connections().is_none());
        drop(peer);
        wait_until("it has ended", || daemon.connections().is_none_or(|all| all.is_empty()));
    }
    daemon.stop();
}

#[test]
fn the_receive_buffer_is_fixed_while_a_proxy_header_is_awaited() {
    let settings = "[defaults]\nproxy_protocol = 'required'\ndeadlines.read = '1h'\n";
    let daemon = Daemon::start_with(settings, &["--listen", "127.0.0.1:0"]);
    let _peer = Peer::connect(&daemon.addresses()[0]);
    let is_fixed = || receive_buffer(&daemon) == Some((true, 128 * 1024));
    wait_until("the size is fixed", || is_fixed() || daemon.connections().is_none());
    daemon.stop();
}

#[test]
fn the_receive_buffer_is_fixed_unless_a_reply_is_delayed() {
    let daemon = Daemon::start_with("[defaults]\nreply_delay = '1s'\n", &["--listen", "127.0.0.1:0"]);
    let mut peer = Peer::connect(&daemon.addresses()[0]);
    check_receive_buffer(&daemon, &mut peer, |peer| peer.exchange("another one"), |_| {});
    daemon.stop();
}

#[test]
fn the_receive_buffer_is_fixed_unless_the_daemon_waits_for_the_log() {
    let Some(journal) = FakeJournald::start() else { return };
    let settings = "[defaults]\nlog_messages = 'full'\n";
    let daemon = Daemon::spawn_with(&mut journal.command(), settings, &["--listen", "127.0.0.1:0"]);
    let mut peer = Peer::connect(&journal.addresses(1)[0]);
    let fill_the_log = |peer: &mut Peer| {
        journal.suspend();
        while poll(&mut [PollFd::new(&peer.fd(), PollFlags::OUT)], Some(&SOON)).expect("it can be polled") > 0 {
            peer.send("x\t".repeat(1000));
        }
    };
    let go_on = |peer: &mut Peer| {
        journal.resume();
        receive_all(peer);
    };
    check_receive_buffer(&daemon, &mut peer, fill_the_log, go_on);
    drop(journal);
    daemon.stop();
}

#[test]
fn the_receive_buffer_is_not_fixed_where_that_cannot_be_undone() {
    let Some((daemon, client)) = mptcp::connect("") else { return };
    send(&client, b"a\t", SendFlags::empty()).expect("it is connected");
    recv(&client, &mut [0; 100][..], RecvFlags::empty()).expect("there is a reply");
    let is_fixed = receive_buffer(&daemon).map(|(is_fixed, _)| is_fixed);
    assert!(is_fixed != Some(true));
    daemon.stop();
}
