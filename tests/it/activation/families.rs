//! Whatever systemd can bind with `ListenStream=` is served: there is nothing about a family in the daemon.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{VsockAddr, getsockname};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with};

use super::spawn;
use common::service_manager::activated_command;
use common::{Peer, skip_test};

/// Any CID, or any port, of vsock(7).
const ANY: u32 = u32::MAX;

/// `SocketProtocol=mptcp`.
#[test]
fn a_multipath_tcp_socket_is_served() {
    match socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::MPTCP)) {
        Ok(multipath) => {
            bind(&multipath, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            listen(&multipath, 10).unwrap();
            let address = SocketAddr::try_from(rustix::net::getsockname(&multipath).unwrap()).unwrap();
            let daemon = spawn(activated_command("3<&0", vec![multipath], "echo"), "", &[]);
            Peer::connect(&address.to_string()).exchange("a");
            daemon.stop();
        }
        Err(error) => skip_test(&format!("there is no MPTCP: {error}")),
    }
}

/// `ListenStream=vsock:…`.
#[test]
fn a_vsock_socket_is_served() {
    match vsock_listener(ANY) {
        Ok(listener) => {
            let daemon = spawn(activated_command("3<&0", vec![listener], "echo"), "", &[]);
            assert!(daemon.wait_for_log("listening on").starts_with("info: listening on vsock::"));
            daemon.stop();
        }
        Err(error) => return skip_test(&format!("there are no sockets of virtual machines: {error}")),
    }
    // Most machines can only listen for others; some can be connected with themselves, which have CID 1.
    let Ok(listener) = vsock_listener(1) else { return };
    let address: VsockAddr = getsockname(listener.as_raw_fd()).unwrap();
    let daemon = spawn(activated_command("3<&0", vec![listener], "echo"), "", &[]);
    daemon.wait_for_log(&format!("listening on vsock:1:{} ", address.port()));
    let client = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    nix::sys::socket::connect(client.as_raw_fd(), &address).unwrap();
    // Reading and writing are the same for all of them.
    let mut client = UnixStream::from(client);
    client.write_all(b"a\tb\t").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut replies = String::new();
    client.read_to_string(&mut replies).unwrap();
    assert_eq!(replies, "server got:a\tserver got:b\t");
    daemon.stop();
}

/// A socket that listens for virtual machines at a free port.
fn vsock_listener(cid: u32) -> std::io::Result<OwnedFd> {
    let listener = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    nix::sys::socket::bind(listener.as_raw_fd(), &VsockAddr::new(cid, ANY))?;
    listen(&listener, 10)?;
    Ok(listener)
}
