//! The socket of a datagram's sender, if it is bound to a path.
//!
//! A datagram carries the path that its sender is bound to. The path is relative to the sender's directory, root and mount
//! namespace, and an attacker can choose these. In this process, the same path may lead to the socket of another program. So
//! the daemon opens the path, checks that it is a socket of the user that sent the datagram, and sends the reply through the
//! descriptor. Replacing the file meanwhile has no effect.
//!
//! Each of these calls asks the file system of the path, and may block, so threads of their own make them (`path_replies.rs`).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, setsockopt, sockopt::PassCred,
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};

use crate::address::UnixName;
use crate::protocol::packet::DropCause;
use crate::server::peer::Peer;

/// The default UID that the kernel shows for users without a UID in this user namespace (`kernel.overflowuid`).
const DEFAULT_OVERFLOW_UID: u32 = 65534;

/// The socket of a sender, opened with O_PATH.
#[derive(Debug)]
pub(crate) struct SenderSocket {
    descriptor: OwnedFd,
    identity: FileIdentity,
}

impl SenderSocket {
    /// Opens the socket of a user at a path. Before a reply is sent, [`SenderSocket::address`] compares it with the reserved
    /// sockets.
    ///
    /// # Errors
    /// Returns an error if the path does not lead to a socket of this user.
    pub(crate) fn open(path: &Path, uid: u32) -> Result<Self, DropCause> {
        let opened = match open_path(path) {
            Err(Errno::NOSYS | Errno::PERM) => open_plain(path),
            opened => opened,
        };
        let descriptor = opened.map_err(cause_of)?;
        let fields = StatxFlags::TYPE | StatxFlags::UID | StatxFlags::INO;
        let found = retry_on_intr(|| statx(&descriptor, "", AtFlags::EMPTY_PATH, fields)).map_err(cause_of)?;
        if FileType::from_raw_mode(found.stx_mode.into()) != FileType::Socket || found.stx_uid != uid {
            return Err(DropCause::UnsafeAddress);
        }
        Ok(Self { descriptor, identity: identity(&found) })
    }

    /// Returns an address that leads to this socket, even if its path has been replaced. `reserved` must have been listed after
    /// the socket was opened.
    ///
    /// # Errors
    /// Returns an error if the socket is reserved.
    pub(crate) fn address(&self, reserved: &ReservedFiles) -> Result<UnixAddr, DropCause> {
        if reserved.0.contains(&self.identity) {
            return Err(DropCause::UnsafeAddress);
        }
        // The path fits into an address.
        let path = format!("/proc/self/fd/{}", self.descriptor.as_raw_fd());
        UnixAddr::new(Path::new(&path)).map_err(|_| DropCause::UnsafeAddress)
    }
}

/// Sockets to which no reply may go: those of the service manager and of the journal, which trust messages of this process.
pub(crate) type ReservedSockets = Arc<[UnixName]>;

/// The rules for the sockets that may get a reply.
#[derive(Debug)]
pub(crate) struct OwnerRules {
    /// The UID that the kernel shows for users without a UID in this user namespace, if it could be determined.
    overflow_uid: Option<u32>,
    reserved: ReservedSockets,
}

impl OwnerRules {
    /// Creates rules that refuse all `reserved` sockets.
    pub(crate) fn new(reserved: ReservedSockets) -> Self {
        Self { overflow_uid: overflow_uid().ok(), reserved }
    }

    /// Returns whether a reply to `peer` may go to its address, judged by these two alone. Relative paths are refused, because
    /// they are relative to the sender's directory.
    pub(crate) fn is_allowed(&self, address: &UnixAddr, peer: Peer) -> bool {
        match (address.path(), address.as_abstract()) {
            (Some(path), _) => path.is_absolute() && self.known_uid(peer).is_some(),
            (None, Some(name)) => {
                let is_name = |one: &UnixName| matches!(one, UnixName::Abstract(one) if one.as_bytes() == name);
                !self.reserved.iter().any(is_name)
            }
            (None, None) => false,
        }
    }

    /// Returns the UID of a peer; `None` if the peer has none in this user namespace.
    pub(crate) fn known_uid(&self, peer: Peer) -> Option<u32> {
        // If the overflow UID is unknown, no UID can be trusted.
        let overflow_uid = self.overflow_uid?;
        match peer {
            Peer::Process { uid, .. } if uid != overflow_uid && uid != DEFAULT_OVERFLOW_UID => Some(uid),
            _ => None,
        }
    }

    /// Returns the files of the reserved sockets. Call it after opening the sockets that are compared with them: the journal's
    /// socket is a new file after a restart of its unit.
    ///
    /// # Errors
    /// Returns an error if a file cannot be identified, because any socket may be the reserved one then.
    pub(crate) fn reserved_files(&self) -> Result<ReservedFiles, DropCause> {
        let mut files = Vec::new();
        for one in &*self.reserved {
            let UnixName::Path(path) = one else { continue };
            match retry_on_intr(|| statx(CWD, path, AtFlags::empty(), StatxFlags::INO)) {
                Ok(reserved) => files.push(identity(&reserved)),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(cause_of(error)),
            }
        }
        Ok(ReservedFiles(files))
    }
}

/// The files of the reserved sockets, at one moment.
#[derive(Debug)]
pub(crate) struct ReservedFiles(Vec<FileIdentity>);

/// The identity of a file: major and minor device number, inode.
type FileIdentity = (u32, u32, u64);

fn identity(file: &Statx) -> FileIdentity {
    (file.stx_dev_major, file.stx_dev_minor, file.stx_ino)
}

/// Opens the path itself, not the target of a link, and neither for reading nor for writing.
const OPEN_FLAGS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a path without following a final link, because a sender cannot be bound to one. Magic links of /proc are refused: they
/// would lead to files of this process, and not of the sender.
fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| openat2(CWD, path, OPEN_FLAGS, Mode::empty(), ResolveFlags::NO_MAGICLINKS))
}

/// Opens a path as [`open_path`] does, but without openat2(2), which `RestrictSUIDSGID=` forbids. It follows magic links of
/// /proc, but the socket must still belong to the sender.
fn open_plain(path: &Path) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| rustix::fs::open(path, OPEN_FLAGS, Mode::empty()))
}

/// Returns the cause for dropping a datagram when opening its sender's socket has failed with this error.
fn cause_of(error: Errno) -> DropCause {
    match error {
        Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::NOMEM => DropCause::NoRoom,
        _ => DropCause::UnsafeAddress,
    }
}

/// Returns the UID that the kernel shows for users without a UID in this user namespace. /proc/sys may be hidden
/// (`ProcSubset=`), but the kernel shows the same UID for a datagram that was sent without credentials.
fn overflow_uid() -> io::Result<u32> {
    let (from, to) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::send(&from, b"x", SendFlags::NOSIGNAL)?;
    setsockopt(&to, PassCred, &true)?;
    let (mut byte, mut ancillary) = ([0; 1], nix::cmsg_space!(UnixCredentials));
    let mut parts = [IoSliceMut::new(&mut byte)];
    let received = recvmsg::<()>(to.as_raw_fd(), &mut parts, Some(&mut ancillary), MsgFlags::MSG_DONTWAIT)?;
    let uid = received.cmsgs()?.find_map(|message| match message {
        // A PID of 0 means that the datagram has no credentials, so the UID is the overflow UID.
        ControlMessageOwned::ScmCredentials(credentials) if credentials.pid() == 0 => Some(credentials.uid()),
        _ => None,
    });
    Ok(uid.unwrap_or(DEFAULT_OVERFLOW_UID))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixDatagram;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_overflow_uid_is_that_of_the_kernel() {
        let expected = fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap();
        assert_eq!(overflow_uid().unwrap(), expected.trim().parse::<u32>().unwrap());
    }

    #[test]
    fn a_path_behind_a_link_of_proc_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let _bound = UnixDatagram::bind(directory.path().join("socket")).unwrap();
        let path = PathBuf::from(format!("/proc/self/root{}/socket", directory.path().display()));
        assert!(fs::symlink_metadata(&path).is_ok());
        assert_eq!(open_path(&path).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_peer_without_a_known_user_owns_nothing() {
        let rules = OwnerRules::new(Arc::default());
        let address = UnixAddr::new("/run/client").unwrap();
        for (peer, is_known) in [
            (Peer::process(1000, 1), true),
            (Peer::process(0, 1), true),
            (Peer::Unknown, false),
            (Peer::process(DEFAULT_OVERFLOW_UID, 1), false),
        ] {
            assert_eq!(rules.known_uid(peer).is_some(), is_known, "{peer:?}");
            assert_eq!(rules.is_allowed(&address, peer), is_known, "{peer:?}");
        }
    }

    #[test]
    fn the_socket_of_another_user_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _bound = UnixDatagram::bind(&path).unwrap();
        let own = rustix::process::getuid().as_raw();
        assert_eq!(SenderSocket::open(&path, own).err(), None);
        assert_eq!(SenderSocket::open(&path, own + 1).err(), Some(DropCause::UnsafeAddress));
    }

    #[test]
    fn a_reserved_socket_has_no_address_also_if_it_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("reserved"), directory.path().join("other"));
        let rules = OwnerRules::new([UnixName::Path(path.clone())].into());
        let own = rustix::process::getuid().as_raw();
        let is_reserved = |path: &Path| {
            let socket = SenderSocket::open(path, own).unwrap();
            socket.address(&rules.reserved_files().unwrap()).err()
        };
        let _other = UnixDatagram::bind(&other).unwrap();
        for _ in 0..2 {
            // Without a file at the reserved path, no socket is reserved.
            assert_eq!(is_reserved(&other), None);
            let _reserved = UnixDatagram::bind(&path).unwrap();
            assert_eq!(is_reserved(&path), Some(DropCause::UnsafeAddress));
            // Also under another name.
            let link = directory.path().join("link");
            fs::hard_link(&path, &link).unwrap();
            assert_eq!(is_reserved(&link), Some(DropCause::UnsafeAddress));
            assert_eq!(is_reserved(&other), None);
            fs::remove_file(&path).unwrap();
            fs::remove_file(&link).unwrap();
        }
    }
}
