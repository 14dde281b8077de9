//! Connections of MPTCP.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect as connect_to, getsockname, ipproto,
    listen, recv, send, socket_with,
};

use common::network::Network;
use common::service_manager::activated_command;
use common::{Daemon, skip_test, wait_until};

/// Makes a socket of MPTCP. If there is none here, reports that the calling test is skipped.
fn make_socket() -> Option<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::MPTCP)).ok();
    if socket.is_none() {
        skip_test("there is no MPTCP");
    }
    socket
}

/// Starts a daemon with these settings, and connects to it over loopback.
pub(crate) fn connect(settings: &str) -> Option<(Daemon, OwnedFd)> {
    let client = make_socket()?;
    let (daemon, address) = start(settings)?;
    let address: SocketAddr = address.trim_start_matches("tcp:").parse().expect("it is an address");
    connect_to(&client, &address).expect("it listens");
    Some((daemon, client))
}

/// Starts a daemon on a listener of MPTCP. Returns its address besides.
pub(crate) fn start(settings: &str) -> Option<(Daemon, String)> {
    let listener = make_socket()?;
    bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port is free");
    listen(&listener, 10).expect("it can listen");
    let address = SocketAddr::try_from(getsockname(&listener).expect("it is bound")).expect("it is an IP address");
    let daemon = Daemon::spawn_with_stdio(&mut activated_command("3<&0", vec![listener], "echo"), settings, &[]);
    daemon.wait_for_log("listening on");
    Some((daemon, format!("tcp:{address}")))
}

/// Connects from one machine to another by MPTCP, and ends the first subflow when there is a second. `None` if there is no MPTCP
/// here.
pub(crate) fn connect_without_first_subflow([daemons, clients]: &[Network; 2]) -> Option<(Daemon, OwnedFd)> {
    let listener = daemons.run(make_socket)?;
    bind(&listener, &"192.0.2.1:0".parse::<SocketAddr>().expect("it is an address")).expect("it is free");
    listen(&listener, 10).expect("it can listen");
    let address = getsockname(&listener).expect("it is bound");
    [daemons, clients].iter().for_each(|network| network.ip("mptcp limits set subflows 1 add_addr_accepted 0"));
    clients.ip("address add 192.0.2.4/24 dev veth0");
    clients.ip("mptcp endpoint add 192.0.2.4 dev veth0 subflow");
    // So large that the kernel reports room in it too late.
    let settings = "[defaults]\nsend_buffer = '1MiB'\n[defaults.deadlines]\nread = '1min'\n";
    let daemon = Daemon::spawn_with_stdio(&mut activated_command("3<&0", vec![listener], "echo"), settings, &[]);
    // Not earlier: the kernel looks what ways there are when it makes the socket.
    let client = clients.run(make_socket)?;
    connect_to(&client, &address).expect("it listens");
    let established = || {
        let table = clients.run(|| fs::read_to_string("/proc/thread-self/net/tcp").expect("/proc is mounted"));
        // proc_net_tcp(5): number, local and remote address, state.
        table.lines().filter(|line| line.split_whitespace().nth(3) == Some("01")).count()
    };
    // The second one begins when data has gone both ways.
    send(&client, b"a\t", SendFlags::NOSIGNAL).expect("it is connected");
    recv(&client, &mut [0; 100][..], RecvFlags::empty()).expect("the reply comes");
    wait_until("there are two subflows", || established() == 2);
    clients.ip("mptcp endpoint delete id 0 192.0.2.2");
    wait_until("the first has ended", || established() == 1);
    Some((daemon, client))
}
