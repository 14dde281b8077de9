//! What is said about sockets: their kinds, their peers; and listening by hand.

use std::fmt;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType};
use tokio::net::UnixStream;

use super::accept::Listener;
use super::admission::{Permit, Source};
use super::disposal::Disposal;
use super::peer_descriptors::{self, PeerDescriptors};
use crate::address::{Address, Family, UnixName};

/// What a socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// Connections, each a stream of bytes: SOCK_STREAM of any family.
    Stream,
    /// Connections of packets: SOCK_SEQPACKET.
    Seqpacket,
    /// Packets from anybody: SOCK_DGRAM.
    Datagram,
}

impl SocketKind {
    /// The kind of a socket.
    ///
    /// # Errors
    /// What getsockopt(2) says; it is of another kind.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        match sockopt::socket_type(socket)? {
            SocketType::STREAM => Ok(Self::Stream),
            SocketType::SEQPACKET => Ok(Self::Seqpacket),
            SocketType::DGRAM => Ok(Self::Datagram),
            _ => Err(io::Error::new(ErrorKind::Unsupported, "it carries neither streams, nor packets, nor datagrams")),
        }
    }
}

/// The other end of a connection, or the sender of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// An address and a port.
    Ip(SocketAddr),
    /// The same, of the client that a load balancer speaks for: as its PROXY header says.
    Proxied(SocketAddr),
    /// A process on this machine.
    Process {
        /// Its user; 65534 where that is one of another user namespace.
        uid: u32,
        /// Its number; `None` in another PID namespace.
        pid: Option<i32>,
    },
    /// A peer without an address and without credentials.
    Unknown,
}

impl Peer {
    /// The peer of a stream, as accept(2) named it, or as the stream itself knows it.
    pub(crate) fn of(socket: impl AsFd, accepted_from: Option<SocketAddrAny>) -> Self {
        let address = accepted_from.or_else(|| rustix::net::getpeername(&socket).ok().flatten());
        if let Some(ip) = address.and_then(|address| SocketAddr::try_from(address).ok()) {
            return Self::Ip(SocketAddr::new(ip.ip().to_canonical(), ip.port()));
        }
        // A TCP socket without a peer any more has none of these either.
        let credentials = getsockopt(&socket, PeerCredentials).ok().filter(|cred| cred.uid() != u32::MAX);
        credentials.map_or(Self::Unknown, |cred| Self::process(cred.uid(), cred.pid()))
    }

    /// A process, of which the kernel says this.
    pub(crate) fn process(uid: u32, pid: i32) -> Self {
        // 0 stands for a process of another PID namespace.
        Self::Process { uid, pid: Some(pid).filter(|pid| *pid != 0) }
    }

    /// Returns the source that its connections count for, if they are limited.
    pub(crate) fn source(&self) -> Option<Source> {
        match self {
            Self::Ip(address) | Self::Proxied(address) => Source::of_ip(address.ip()),
            Self::Process { uid, .. } => Source::of_uid(*uid),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) | Self::Proxied(address) => address.fmt(f),
            Self::Process { uid: 65534, .. } | Self::Unknown => f.write_str("unknown"),
            Self::Process { uid, pid: Some(pid) } => write!(f, "uid {uid} pid {pid}"),
            Self::Process { uid, pid: None } => write!(f, "uid {uid}"),
        }
    }
}

/// A connected socket, and which descriptors its peer may have sent.
#[derive(Debug)]
pub(crate) struct AcceptedSocket {
    pub(crate) socket: OwnedFd,
    pub(crate) descriptors: PeerDescriptors,
}

impl AcceptedSocket {
    /// Takes a socket that was accepted from `listener`; `inherits` says that it has connected after the options of the
    /// listener were set.
    pub(crate) fn new(socket: OwnedFd, listener: &Listener, inherits: bool) -> Self {
        let descriptors = match listener.descriptors {
            PeerDescriptors::Queued if inherits => PeerDescriptors::None,
            PeerDescriptors::None => PeerDescriptors::None,
            _ => PeerDescriptors::refuse(&socket),
        };
        // A Unix stream: no other listener has any.
        if listener.descriptors != PeerDescriptors::None && listener.kind == SocketKind::Stream {
            if descriptors != PeerDescriptors::None {
                peer_descriptors::merge_writers(&socket);
            }
            peer_descriptors::include_urgent_data(&socket);
        }
        Self { socket, descriptors }
    }

    /// Registers the socket with a reactor. `register` closes its descriptor if it fails: so that this is not the last one of a
    /// socket in which descriptors may be queued, there is a copy meanwhile.
    ///
    /// # Errors
    /// Returns the error, and the socket if it is still to be closed.
    pub(crate) fn register(
        self,
        register: impl FnOnce(OwnedFd) -> io::Result<UnixStream>,
    ) -> Result<(UnixStream, PeerDescriptors), (io::Error, Option<Self>)> {
        let Self { socket, descriptors } = self;
        let copy = match descriptors {
            PeerDescriptors::None => None,
            _ => match socket.try_clone() {
                Ok(copy) => Some(copy),
                Err(error) => return Err((error, Some(Self { socket, descriptors }))),
            },
        };
        match register(socket) {
            Ok(stream) => Ok((stream, descriptors)),
            Err(error) => Err((error, copy.map(|socket| Self { socket, descriptors }))),
        }
    }

    /// Closes the socket, and then releases the permit: on the disposal thread, if descriptors may be queued in it.
    pub(crate) fn close(self, disposal: &Disposal, permit: Permit) {
        if self.descriptors == PeerDescriptors::None || peer_descriptors::shut_down_empty(&self.socket) {
            drop(self.socket);
            drop(permit);
        } else {
            disposal.close(self.socket, Some(permit));
        }
    }
}

impl AsFd for AcceptedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Any CID (vsock(7)).
const ANY_CID: u32 = u32::MAX;

/// What a socket is bound to, as an address that people can use: `tcp:127.0.0.1:8085`, `unix:/run/x.sock`.
#[must_use]
pub fn bound_to(socket: impl AsFd) -> String {
    let (ip_scheme, unix_scheme) = match SocketKind::of(&socket) {
        Ok(SocketKind::Datagram) => ("udp", "unixgram"),
        Ok(SocketKind::Seqpacket) => ("seqpacket", "seqpacket"),
        _ => ("tcp", "unix"),
    };
    match rustix::net::getsockname(&socket) {
        Ok(address) => {
            if let Ok(ip) = SocketAddr::try_from(address.clone()) {
                return format!("{ip_scheme}:{ip}");
            }
            let Ok(address) = rustix::net::SocketAddrUnix::try_from(address) else {
                let address = getsockname::<SockaddrStorage>(socket.as_fd().as_raw_fd());
                return address.map_or("an unknown address".to_owned(), |address| match address.as_vsock_addr() {
                    // As systemd.socket(5) has it.
                    Some(address) if address.cid() == ANY_CID => format!("vsock::{}", address.port()),
                    Some(address) => format!("vsock:{}:{}", address.cid(), address.port()),
                    None => address.to_string(),
                });
            };
            if let Some(name) = address.abstract_name() {
                return format!("{unix_scheme}:@{}", name.escape_ascii());
            }
            let path = address.path_bytes().unwrap_or_default();
            format!("{unix_scheme}:{}", String::from_utf8_lossy(path).escape_debug())
        }
        Err(error) => format!("an unknown address ({error})"),
    }
}

/// How many connections may wait; the kernel cuts it to net.core.somaxconn.
const MAX_BACKLOG: i32 = i32::MAX;

/// A socket that we bound ourselves. Its file, where it has one, goes when this is dropped.
#[derive(Debug)]
pub struct BoundSocket {
    /// The socket, which listens if it is one for connections.
    pub socket: OwnedFd,
    /// The file to be removed.
    pub file: Option<SocketFile>,
}

/// The file of a Unix socket that we bound, removed when this is dropped, unless another one lies there by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: FileId,
}

impl SocketFile {
    /// Takes the file at `path`, which was made just now.
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: FileId::of(&fs::symlink_metadata(path)?) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // There is nowhere to report an error.
        let _ = remove_file_if(&self.path, self.id);
    }
}

/// What tells a file from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(found: &Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino() }
    }
}

/// Removes the file at `path` if it is this one: another daemon may have replaced it.
fn remove_file_if(path: &Path, id: FileId) -> io::Result<()> {
    if FileId::of(&fs::symlink_metadata(path)?) == id { fs::remove_file(path) } else { Ok(()) }
}

/// Listens on an address: on each of those that its host name stands for.
///
/// A Unix path with a socket on it that nobody listens on is replaced.
///
/// # Errors
/// The name is not known, the address is taken or not ours, something that is no dead socket lies at the path. The
/// error says what to do.
pub fn listen(address: &Address) -> io::Result<Vec<BoundSocket>> {
    let bound = |socket| BoundSocket { socket, file: None };
    match address {
        Address::Tcp { family, host, port } => {
            let wanted = |ip: &SocketAddr| match family {
                Family::Any => true,
                Family::V4 => ip.is_ipv4(),
                Family::V6 => ip.is_ipv6(),
            };
            let listen = |ip| listen_tcp(ip, *family == Family::V6).map(bound).map_err(explain);
            resolve(host, *port, wanted)?.into_iter().map(listen).collect()
        }
        Address::Udp { host, port } => {
            let bind = |ip| UdpSocket::bind(ip).map(|socket| bound(socket.into())).map_err(explain);
            resolve(host, *port, |_| true)?.into_iter().map(bind).collect()
        }
        Address::Unix(name) => Ok(vec![listen_unix(name, SocketType::STREAM)?]),
        Address::Seqpacket(name) => Ok(vec![listen_unix(name, SocketType::SEQPACKET)?]),
        Address::Unixgram(name) => Ok(vec![listen_unix(name, SocketType::DGRAM)?]),
    }
}

/// Those addresses of a host that are wanted; at least one.
fn resolve(host: &str, port: u16, wanted: impl Fn(&SocketAddr) -> bool) -> io::Result<Vec<SocketAddr>> {
    let mut found: Vec<_> = (host, port).to_socket_addrs()?.filter(wanted).collect();
    found.dedup();
    if found.is_empty() {
        return Err(io::Error::new(ErrorKind::NotFound, "the name has no address of this kind"));
    }
    Ok(found)
}

fn listen_unix(name: &UnixName, kind: SocketType) -> io::Result<BoundSocket> {
    let (address, path) = match name {
        UnixName::Path(path) => {
            remove_stale_socket(path)?;
            (rustix::net::SocketAddrUnix::new(path)?, Some(path))
        }
        UnixName::Abstract(name) => (rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes())?, None),
    };
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &address).map_err(|error| explain(error.into()))?;
    let file = path.map(|path| SocketFile::at(path)).transpose()?;
    if kind != SocketType::DGRAM {
        rustix::net::listen(&socket, MAX_BACKLOG)?;
    }
    Ok(BoundSocket { socket, file })
}

fn listen_tcp(ip: SocketAddr, only_v6: bool) -> io::Result<OwnedFd> {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if only_v6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &ip)?;
    rustix::net::listen(&socket, MAX_BACKLOG)?;
    Ok(socket)
}

fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "something that is no socket is in the way; remove it"));
    }
    // Does not wait: a listener whose backlog is full lives as well (EAGAIN, connect(2)), and so does a socket of
    // another type (EPROTOTYPE).
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    match rustix::net::connect(&probe, &rustix::net::SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::CONNREFUSED) => remove_file_if(path, FileId::of(&found)),
        _ => Err(explain(ErrorKind::AddrInUse.into())),
    }
}

/// What to do about an address that cannot be had.
fn explain(error: io::Error) -> io::Error {
    let advice = match error.kind() {
        ErrorKind::AddrInUse => "another process listens there; stop it or choose another address",
        ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
        ErrorKind::PermissionDenied => "permission denied; ports below 1024 and most directories are root's",
        ErrorKind::NotFound => "the directory does not exist",
        _ => return error,
    };
    io::Error::new(error.kind(), advice)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_that_cannot_be_registered_is_not_closed_if_descriptors_may_be_queued_in_it() {
        for (descriptors, is_open) in
            [(PeerDescriptors::None, false), (PeerDescriptors::Queued, true), (PeerDescriptors::Any, true)]
        {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.set_nonblocking(true).unwrap();
            let socket = AcceptedSocket { socket: server.into(), descriptors };
            let (_, socket) = socket.register(|_| Err(ErrorKind::StorageFull.into())).unwrap_err();
            // The end of the stream says that it is closed.
            assert_eq!(client.read(&mut [0]).is_err(), is_open, "{descriptors:?}");
            assert_eq!(socket.map(|socket| socket.descriptors), Some(descriptors).filter(|_| is_open));
        }
    }
}
