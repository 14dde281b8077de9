//! The memory of the kernel that peers make the daemon hold by sending, and not reading their replies. It counts as memory of
//! the service.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::getsockopt;
use rustix::net::{AddressFamily, SendFlags, send, sockopt};

use crate::common::network::two_machines;
use crate::common::packets::PacketPeer;
use crate::common::service_manager::activated_command;
use crate::common::{Daemon, Peer};

/// As many clients as one source may have.
const CLIENTS: usize = 256;

/// How much memory one client may hold with what it sent, and with the replies to it: as docs/configuration.md says.
const MAX_RECEIVED: usize = 128 * 1024;
const MAX_REPLIES: usize = 208 * 1024;

/// By how much the kernel may go beyond that: the last packet.
const PACKET: usize = 64 * 1024;

/// How much memory one source may hold: the same page.
const MAX_OF_SOURCE: usize = 84 << 20;

/// SO_MEMINFO of asm-generic/socket.h, which no library names.
const SO_MEMINFO: i32 = 55;

sockopt_impl!(
    /// The memory of a socket, as in linux/sock_diag.h.
    MemInfo,
    GetOnly,
    libc::SOL_SOCKET,
    SO_MEMINFO,
    [i32; 9]
);

/// The memory of the kernel on the daemon's side of a connection, in bytes.
struct Held {
    received: usize,
    replies: usize,
}

/// Returns the memory of each connection of a daemon: `None` if this process may not look.
fn held_memory(daemon: &Daemon) -> Option<Vec<Held>> {
    let memory = |socket: OwnedFd| {
        let [received, _, allocated, _, _, queued, ..] = getsockopt(&socket, MemInfo).expect("it is new");
        let is_unix = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
        // What is sent to a Unix socket is in the sender's buffer: the daemon does not pay for what it receives.
        let (received, replies) = if is_unix { (0, allocated) } else { (received, queued) };
        let bytes = |count| usize::try_from(count).unwrap_or_default();
        Held { received: bytes(received), replies: bytes(replies) }
    };
    Some(daemon.connections()?.into_iter().map(memory).collect())
}

/// Sends to the daemon over all connections until nothing more is taken, and reads nothing.
fn fill(clients: &[OwnedFd], message: &[u8]) {
    let mut quiet_rounds = 0;
    // What counts is how much is taken in the end: a round too few makes the test weaker, not wrong.
    while quiet_rounds < 20 {
        let mut sent = false;
        for client in clients {
            while send(client, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok() {
                sent = true;
            }
        }
        quiet_rounds = if sent { 0 } else { quiet_rounds + 1 };
        thread::sleep(Duration::from_millis(20));
    }
}

/// The write deadline is long, so that all connections are there when they are counted.
const PATIENT: &str = "[defaults.deadlines]\nread = '10min'\nwrite = '10min'\n[limits]\nconnections_per_source = 0\n";

fn check_memory(daemon: &Daemon, name: &str, clients: &[OwnedFd]) {
    let message = [&[b'x'; 1000][..], b"\t"].concat().repeat(10);
    fill(clients, &message);
    let Some(held) = held_memory(daemon) else { return };
    assert_eq!(held.len(), CLIENTS, "{name}: connections are there");
    let replies = held.iter().map(|held| held.replies);
    let total = replies.clone().sum::<usize>();
    assert!(total > 8 << 20, "{name}: {total} bytes of replies; the clients did not send");
    let most = replies.max().unwrap_or_default();
    assert!(most <= MAX_REPLIES + PACKET, "{name}: {most} bytes of replies on one connection");
    let most = held.iter().map(|held| held.received).max().unwrap_or_default();
    assert!(most <= MAX_RECEIVED + PACKET, "{name}: {most} bytes received on one connection");
    let total = held.iter().map(|held| held.received + held.replies).sum::<usize>();
    assert!(total <= MAX_OF_SOURCE, "{name}: {total} bytes in all");
}

#[test]
fn remote_clients_that_send_and_do_not_read_hold_a_bounded_memory_of_the_kernel() {
    let Some([ours, theirs]) = two_machines() else { return };
    let listener = ours.tcp_listener("192.0.2.1:0");
    let address = listener.local_addr().expect("it is bound");
    // Also those that were in the backlog before the daemon came.
    let mut clients: Vec<OwnedFd> = (0..CLIENTS / 2).map(|_| theirs.connect(address).into()).collect();
    let daemon = Daemon::spawn_with_stdio(&mut activated_command("3<&0", vec![listener.into()], "echo"), PATIENT, &[]);
    daemon.wait_for_log("listening on");
    clients.extend((CLIENTS / 2..CLIENTS).map(|_| OwnedFd::from(theirs.connect(address))));
    check_memory(&daemon, "veth", &clients);
    daemon.stop();
}

#[test]
fn clients_of_this_machine_that_send_and_do_not_read_hold_a_bounded_memory_of_the_kernel() {
    for address in ["127.0.0.1:0", "DIR/stream", "seqpacket:DIR/packets"] {
        let daemon = Daemon::start_with(PATIENT, &["--listen", address]);
        let address = &daemon.addresses()[0];
        let connect = || -> OwnedFd {
            if address.starts_with("seqpacket:") {
                PacketPeer::connect(address).fd().try_clone_to_owned().expect("it can be duplicated")
            } else {
                Peer::connect(address).stream().into()
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| connect()).collect();
        check_memory(&daemon, address, &clients);
        daemon.stop();
    }
}
