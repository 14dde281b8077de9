//! The destination of a load, looked up before it begins.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::{Instant, sleep};

use super::target::{ConnectAttempt, Target};
use crate::address::{Address, Family};
use crate::client::connect::{ConnectError, RETRY_INTERVAL, connect, look_up, unix_socket_address};

/// The destination of a load. A name is looked up only once.
#[derive(Debug)]
pub struct Destination {
    pub(super) address: Address,
    /// Where to, at least one. With UDP each address of the host, of which the first is taken at which a socket listens.
    pub(super) targets: Vec<Target>,
    /// Addresses of the host to which no socket can send.
    pub(super) failed: Vec<(SocketAddr, io::Error)>,
    /// A connection to the first target, which becomes one of the load's; none with UDP.
    pub(super) first: Option<OwnedFd>,
}

impl Destination {
    /// Connects to `address` within `limit`, the lookup of its name included. With UDP, there is nothing to connect to:
    /// that no socket listens shows only in the load.
    ///
    /// # Errors
    /// Returns an error if the server cannot be reached; see [`ConnectError`].
    pub async fn connect(address: &Address, limit: Duration) -> Result<Self, ConnectError> {
        let unix_error = |error| ConnectError::Unix { address: address.clone(), error };
        let (target, first) = match address {
            Address::Udp { host, port } => return Self::find_udp(address, host, *port, limit).await,
            Address::Unixgram(name) => {
                let target = Target::Unixgram(unix_socket_address(name).map_err(unix_error)?);
                let first = connect_unix(address, &target, limit).await?;
                (target, first)
            }
            Address::Seqpacket(name) => {
                let target = Target::Seqpacket(unix_socket_address(name).map_err(unix_error)?);
                let first = connect_unix(address, &target, limit).await?;
                (target, first)
            }
            Address::Tcp { .. } | Address::Unix(_) => {
                let first = connect(address, limit).await?.into_std().map_err(unix_error)?;
                let target = Target::from_connected(address, &first).map_err(unix_error)?;
                (target, first.into())
            }
        };
        Ok(Self { address: address.clone(), targets: vec![target], failed: Vec::new(), first: Some(first) })
    }

    async fn find_udp(address: &Address, host: &str, port: u16, limit: Duration) -> Result<Self, ConnectError> {
        let resolved = look_up(address, Family::Any, host, port, Instant::now() + limit, limit).await?;
        let (mut targets, mut failed) = (Vec::new(), Vec::new());
        for candidate in resolved {
            let target = Target::Udp(candidate);
            match target.start_connect() {
                ConnectAttempt::Failed(error) => failed.push((candidate, error)),
                _ => targets.push(target),
            }
        }
        let address = address.clone();
        match (targets.is_empty(), failed.is_empty()) {
            (true, true) => Err(ConnectError::NoAddress { address }),
            (true, false) => Err(ConnectError::Refused { address, attempts: failed }),
            (false, _) => Ok(Self { address, targets, failed, first: None }),
        }
    }

    /// Returns the error for a load that was refused at each of the targets.
    pub(super) fn refused(address: Address, targets: &[Target], failed: Vec<(SocketAddr, io::Error)>) -> ConnectError {
        let refused = targets.iter().filter_map(|target| match target {
            Target::Udp(candidate) => Some((*candidate, Errno::CONNREFUSED.into())),
            _ => None,
        });
        ConnectError::Refused { address, attempts: failed.into_iter().chain(refused).collect() }
    }
}

/// Connects to a Unix socket. As long as its backlog is full, no event says when there is room.
async fn connect_unix(address: &Address, target: &Target, limit: Duration) -> Result<OwnedFd, ConnectError> {
    let deadline = Instant::now() + limit;
    loop {
        match target.start_connect() {
            ConnectAttempt::Connected(socket) => return Ok(socket),
            ConnectAttempt::Failed(error) => return Err(ConnectError::Unix { address: address.clone(), error }),
            ConnectAttempt::InProgress(_) | ConnectAttempt::BacklogFull => sleep(RETRY_INTERVAL).await,
        }
        if Instant::now() >= deadline {
            return Err(ConnectError::TimedOut { address: address.clone(), limit });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::thread;

    use super::*;
    use crate::client::bench::{Bench, BenchError, BenchSettings};
    use crate::protocol::Delimiter;
    use crate::protocol::reply::Prefix;

    fn settings() -> BenchSettings {
        BenchSettings {
            connections: 3,
            depth: None,
            size: 16,
            threads: 2,
            duration: None,
            count: Some(20),
            warm_up: Duration::ZERO,
            rate: None,
            verify: true,
            delimiter: Delimiter::default(),
            prefix: Prefix::new(b""),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(20),
        }
    }

    fn bound_socket() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    /// Returns a host with these addresses.
    fn destination(candidates: &[SocketAddr]) -> Destination {
        Destination {
            address: "udp:several.example:1".parse().unwrap(),
            targets: candidates.iter().copied().map(Target::Udp).collect(),
            failed: vec![("[2001:db8::1]:1".parse().unwrap(), Errno::NETUNREACH.into())],
            first: None,
        }
    }

    #[test]
    fn load_goes_to_the_first_address_at_which_a_socket_listens() {
        let unused = [bound_socket().1, bound_socket().1];
        let (server, address) = bound_socket();
        thread::spawn(move || {
            let mut buffer = [0; 100];
            while let Ok((size, from)) = server.recv_from(&mut buffer) {
                // The client may be gone.
                let _ = server.send_to(&buffer[..size], from);
            }
        });
        let outcome = Bench::new(settings(), destination(&[unused[0], unused[1], address])).unwrap().run().unwrap();
        assert_eq!((outcome.measured.sent, outcome.measured.answered, outcome.measured.errors()), (20, 20, 0));
        assert!(outcome.is_ok() && !outcome.interrupted);

        let error = Bench::new(settings(), destination(&unused)).unwrap().run().unwrap_err();
        let BenchError::Refused(error) = error else { panic!("{error}") };
        let text = error.to_string();
        let [first, second] = unused;
        let each = format!("{first}: Connection refused, {second}: Connection refused; is the network up");
        assert!(text.starts_with("cannot connect to udp:several.example:1: [2001:db8::1]:1: Network is unreachable, "));
        assert!(text.contains(&each), "{text}");
    }
}
