//! Unpacks connections from a bundle, which may be anything.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{SealFlags, SeekFrom, fcntl_get_seals, fstat, seek};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketType, getpeername, recvmsg, sockopt,
};

use super::manifest::{self, Manifest, STATE_COOKIE};
use super::{StoredConnection, socket_cookie};
use crate::pass_rights::MAX_FDS_PER_MESSAGE;

/// The content of a bundle.
#[derive(Debug, Default)]
pub(super) struct UnpackedBundle {
    pub(super) connections: Vec<StoredConnection>,
    /// The state of the process, if it is in this bundle.
    pub(super) state: Option<Vec<u8>>,
    /// When it was packed, if it says.
    pub(super) stored_at: Option<Duration>,
    pub(super) problems: Vec<String>,
}

/// Takes everything out of a bundle, and closes what is not in order.
pub(super) fn unpack_bundle(bundle: &OwnedFd) -> UnpackedBundle {
    let mut unpacked = UnpackedBundle::default();
    match read_manifest(bundle) {
        Ok(manifest) => unpack_connections(bundle, manifest, &mut unpacked),
        Err(problem) => unpacked.problems.push(format!("{problem}; closed all of its connections")),
    }
    unpacked
}

fn unpack_connections(bundle: &OwnedFd, manifest: Manifest, unpacked: &mut UnpackedBundle) {
    unpacked.stored_at = Some(manifest.stored_at);
    let listed = manifest.entries.len();
    if let Some(problem) = &manifest.problem {
        unpacked
            .problems
            .push(format!("its manifest {problem}; {listed} of {} connections are known from it", manifest.count));
    }
    // An entry that is there twice counts once.
    let mut snapshots: HashMap<_, _> =
        manifest.entries.into_iter().map(|entry| (entry.cookie, entry.snapshot)).collect();
    unpacked.state = snapshots.remove(&STATE_COOKIE);
    let (mut unlisted, mut unconnected, mut unsupported) = (0, 0, None);
    // Each message has a connection at least, so there are no more messages than entries, and then the end.
    for _ in 0..=listed {
        let message = match receive(bundle) {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                unpacked.problems.push(format!("failed to receive more of it: {error}"));
                break;
            }
        };
        if message.is_truncated {
            let problem = "descriptors were lost in transit; LimitNOFILE= of the unit is too low";
            unpacked.problems.push(problem.to_owned());
        }
        for socket in message.fds {
            let cookie = socket_cookie(&socket);
            // Another error is one of this descriptor, which is not in the manifest then.
            if let Some(error) = cookie.as_ref().err().filter(|error| error.kind() == ErrorKind::Unsupported) {
                unsupported.get_or_insert_with(|| error.to_string());
            }
            match cookie.ok().and_then(|cookie| snapshots.remove(&cookie)) {
                Some(snapshot) if is_connection(&socket) => {
                    unpacked.connections.push(StoredConnection { socket, snapshot })
                }
                Some(_) => unconnected += 1,
                None => unlisted += 1,
            }
        }
    }
    unpacked.problems.extend(unsupported);
    let mut report = |count: usize, what: &str| {
        if count > 0 {
            unpacked.problems.push(format!("{count} {what}"));
        }
    };
    report(unlisted, "descriptors in it are not in its manifest, closed");
    report(unconnected, "descriptors in it are not connections, closed");
    report(snapshots.len(), "connections in its manifest are not in it");
}

fn read_manifest(bundle: &OwnedFd) -> Result<Manifest, String> {
    let first = match receive(bundle) {
        Ok(Some(first)) => first,
        Ok(None) => return Err("it is empty".to_owned()),
        Err(error) => return Err(format!("failed to receive any of it: {error}")),
    };
    let Ok([memory]) = <[OwnedFd; 1]>::try_from(first.fds) else {
        return Err("it does not begin with its manifest".to_owned());
    };
    // Also shows that it is memory: a file could be one that makes its readers wait.
    let required = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    if !retry_on_intr(|| fcntl_get_seals(&memory)).is_ok_and(|seals| seals.contains(required)) {
        return Err("it does not begin with sealed memory".to_owned());
    }
    let rewind_and_measure = || {
        retry_on_intr(|| seek(&memory, SeekFrom::Start(0)))?;
        let stat = retry_on_intr(|| fstat(&memory))?;
        // Neither is negative.
        Ok((u64::try_from(stat.st_size).unwrap_or_default(), u64::try_from(stat.st_blocks).unwrap_or_default()))
    };
    let (length, blocks) =
        rewind_and_measure().map_err(|error: Errno| format!("its manifest cannot be read: {error}"))?;
    // A memfd with holes may be longer than there is memory.
    if blocks.saturating_mul(512) < length {
        return Err("its manifest has holes".to_owned());
    }
    manifest::read(&mut BufReader::with_capacity(64 * 1024, File::from(memory)), length)
        .map_err(|problem| format!("its manifest {problem}"))
}

/// A message of a bundle.
struct BundleMessage {
    fds: Vec<OwnedFd>,
    /// Whether there were more of them.
    is_truncated: bool,
}

/// Receives the next message, if there is one, without waiting.
fn receive(bundle: &OwnedFd) -> Result<Option<BundleMessage>, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS_PER_MESSAGE))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = match retry_on_intr(|| recvmsg(bundle, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)) {
        // Another process has the other end, and has sent nothing.
        Err(Errno::AGAIN) => return Ok(None),
        result => result?,
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received_fds) = message {
            fds.extend(received_fds);
        }
    }
    if received.bytes == 0 && fds.is_empty() {
        return Ok(None);
    }
    Ok(Some(BundleMessage { fds, is_truncated: received.flags.contains(ReturnFlags::CTRUNC) }))
}

/// Returns whether this is a connected socket of a stream or of packets, or was one and still has a pending error.
fn is_connection(socket: &OwnedFd) -> bool {
    matches!(retry_on_intr(|| sockopt::socket_type(socket)), Ok(SocketType::STREAM | SocketType::SEQPACKET))
        && retry_on_intr(|| sockopt::socket_acceptconn(socket)) == Ok(false)
        && (retry_on_intr(|| getpeername(socket)).is_ok() || has_error(socket))
}

/// Returns whether an error is pending, and leaves it pending.
fn has_error(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    retry_on_intr(|| poll(&mut polled, Some(&Timespec::default()))).is_ok()
        && polled[0].revents().contains(PollFlags::ERR)
}
