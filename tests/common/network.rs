//! Networks of namespaces: machines with addresses of their own, and links between them that can break.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::getuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{TEST_TIMEOUT, program_or_skip, skip_test};

/// A network namespace, as long as its one process runs.
pub struct Network(Child);

impl Network {
    /// Makes a network with nothing in it.
    pub fn start() -> Self {
        // The shell writes a line once it runs in the namespace, and ends when its stdin is closed.
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; read end"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("unshare can be started");
        let mut ready = [0; 1];
        child.stdout.as_mut().expect("it is piped").read_exact(&mut ready).expect("it starts");
        Self(child)
    }

    /// Runs ip(8).
    pub fn ip(&self, arguments: &str) {
        let process = self.0.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &process, "ip"]).args(arguments.split(' '));
        let output = command.output().expect("nsenter can be started");
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a function in this network: in a thread that is not used for anything else.
    pub fn run<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        let namespace = format!("/proc/{}/ns/net", self.0.id());
        let run = || {
            let namespace = open(namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("it is there");
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).expect("root may enter it");
            function()
        };
        thread::scope(|scope| scope.spawn(run).join().expect("it does not panic"))
    }

    /// Returns a UDP socket of this network, bound to an address.
    pub fn udp(&self, address: &str) -> UdpSocket {
        self.run(|| UdpSocket::bind(address).unwrap_or_else(|error| panic!("{address}: {error}")))
    }

    /// Returns a TCP socket of this network that listens on an address.
    pub fn tcp_listener(&self, address: &str) -> TcpListener {
        self.run(|| TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}")))
    }

    /// Returns a TCP connection from this network.
    pub fn connect(&self, address: SocketAddr) -> TcpStream {
        let connect = || TcpStream::connect_timeout(&address, TEST_TIMEOUT);
        self.run(|| connect().unwrap_or_else(|error| panic!("{address}: {error}")))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Two machines, the daemon's and its client's, on one Ethernet with an MTU of 1500. The daemon's has two addresses of
/// IPv4. `None` if that cannot be had here.
pub fn two_machines() -> Option<[Network; 2]> {
    program_or_skip("unshare")?;
    program_or_skip("ip")?;
    if !getuid().is_root() {
        skip_test("only root can make networks");
        return None;
    }
    let machines = [Network::start(), Network::start()];
    machines[0].ip(&format!("link add veth0 type veth peer name veth0 netns {}", machines[1].0.id()));
    for (machine, addresses) in machines.iter().zip([
        &["192.0.2.1/24 brd 192.0.2.255", "192.0.2.3/24 brd 192.0.2.255", "2001:db8::1/64 nodad"][..],
        &["192.0.2.2/24 brd 192.0.2.255", "2001:db8::2/64 nodad"],
    ]) {
        for address in addresses {
            machine.ip(&format!("address add {address} dev veth0"));
        }
        machine.ip("link set lo up");
        // Each packet is one of the wire, as long as its MTU at most.
        machine.ip("link set veth0 gso_max_segs 1 up");
        // For 255.255.255.255, and for every group.
        machine.ip("route add default dev veth0");
    }
    Some(machines)
}
