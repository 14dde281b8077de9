//! Listening by hand, and what sockets are bound to.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{SockaddrStorage, getsockname};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::address::{Address, Family, UnixName};
use crate::server::socket::SocketKind;

/// Any CID (vsock(7)).
const ANY_CID: u32 = u32::MAX;

/// Returns the address that a socket is bound to, as clients can use it: `tcp:127.0.0.1:8085`, `unix:/run/x.sock`.
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

/// The identity of a file.
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
/// A Unix path with a socket on which no process listens is replaced.
///
/// # Errors
/// Returns an error if the name is not known, if the address is taken or not ours, or if something other than such a socket
/// lies at the path. The
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

/// Resolves a host to its wanted addresses; at least one.
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
        return Err(io::Error::new(ErrorKind::AlreadyExists, "a file that is not a socket has this path; remove it"));
    }
    // Does not wait: a listener whose backlog is full lives as well (EAGAIN, connect(2)), and so does a socket of
    // another type (EPROTOTYPE).
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    match rustix::net::connect(&probe, &rustix::net::SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::CONNREFUSED) => remove_file_if(path, FileId::of(&found)),
        _ => Err(explain(ErrorKind::AddrInUse.into())),
    }
}

/// Adds to an error of bind(2) what to do about it.
fn explain(error: io::Error) -> io::Error {
    let advice = match error.kind() {
        ErrorKind::AddrInUse => "another process listens there; stop it or choose another address",
        ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
        ErrorKind::PermissionDenied => "permission denied; only root may use ports below 1024 and most directories",
        ErrorKind::NotFound => "the directory does not exist",
        _ => return error,
    };
    io::Error::new(error.kind(), advice)
}
