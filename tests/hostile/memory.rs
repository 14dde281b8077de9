//! The memory of the kernel that peers make the daemon hold by not reading their replies. It counts as memory of the
//! service.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::getsockopt;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, recv, send, sockopt};

use common::network::two_machines;
use common::packets::PacketPeer;
use common::service_manager::activated_command;
use common::{Daemon, Peer};

/// As many clients as one source may have.
const CLIENTS: usize = 256;

/// How much memory replies to one client may hold: as docs/configuration.md says.
const MAX_PER_CONNECTION: usize = 208 * 1024;

/// How much memory all of them may hold.
const MAX_IN_ALL: usize = 256 << 20;

/// How many bytes of replies some clients read before they stop, so that the kernel sees a reason for large buffers.
const READ_BEFORE: usize = 8 << 20;

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

/// Returns the memory of the kernel on each connection of a daemon: for what was received, and for replies. `None` if this
/// process may not look.
fn memory_of_connections(daemon: &Daemon) -> Option<Vec<(usize, usize)>> {
    let memory = |socket: OwnedFd| {
        let [received, _, allocated, _, _, queued, ..] = getsockopt(&socket, MemInfo).expect("it is new");
        let is_unix = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
        // What a client sends on a Unix socket counts as memory of the client.
        let (received, replies) = if is_unix { (0, allocated) } else { (received, queued) };
        (usize::try_from(received).unwrap_or_default(), usize::try_from(replies).unwrap_or_default())
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

/// Sends to the daemon and reads as fast as possible, until so much was read.
fn read_fast(client: &OwnedFd, message: &[u8]) {
    let mut unsent = message;
    let mut left = READ_BEFORE;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        if let Ok(count) = send(client, unsent, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            unsent = if count < unsent.len() { &unsent[count..] } else { message };
        }
        if let Ok((count, _)) = recv(client, &mut buffer[..], RecvFlags::DONTWAIT) {
            assert!(count > 0, "a client that reads is cut off");
            left = left.saturating_sub(count);
        }
    }
}

/// The write deadline is long, so that all connections are there when they are counted.
const PATIENT: &str = "[defaults.deadlines]\nread = '10min'\nwrite = '10min'\n[limits]\nconnections_per_source = 0\n";

fn check_memory(daemon: &Daemon, name: &str, clients: &[OwnedFd]) {
    let message = [&[b'x'; 1000][..], b"\t"].concat().repeat(10);
    for client in clients.iter().step_by(16) {
        read_fast(client, &message);
    }
    fill(clients, &message);
    let Some(memory) = memory_of_connections(daemon) else { return };
    assert_eq!(memory.len(), CLIENTS, "{name}: connections are there");
    let (received, replies): (Vec<_>, Vec<_>) = memory.into_iter().unzip();
    let total = |all: &[usize]| all.iter().sum::<usize>();
    assert!(total(&replies) > 8 << 20, "{name}: {} bytes of replies in all; the clients did not send", total(&replies));
    // The kernel may go beyond it by the last packet.
    let most = replies.iter().max();
    assert!(most <= Some(&(MAX_PER_CONNECTION + 64 * 1024)), "{name}: {most:?} bytes of replies to one client");
    let in_all = total(&received) + total(&replies);
    assert!(in_all <= MAX_IN_ALL, "{name}: {in_all} bytes in all, {} received", total(&received));
}

#[test]
fn replies_that_remote_clients_do_not_read_hold_a_bounded_memory_of_the_kernel() {
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
fn replies_that_clients_of_this_machine_do_not_read_hold_a_bounded_memory_of_the_kernel() {
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
