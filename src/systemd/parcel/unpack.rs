//! Connections out of a parcel, which may be anything.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, IoSliceMut, Seek};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketType, getpeername, recvmsg, sockopt,
};

use super::Item;
use super::list::{self, List};
use super::pack::MOST;

/// What was in a parcel.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    pub(super) items: Vec<Item>,
    /// When it was packed, if it says.
    pub(super) time: Option<Duration>,
    pub(super) problems: Vec<String>,
}

/// Takes everything out of a parcel, and closes what is not in order.
pub(super) fn unpack(parcel: &OwnedFd) -> Unpacked {
    let mut unpacked = Unpacked::default();
    match unpack_list(parcel) {
        Ok(list) => unpack_connections(parcel, list, &mut unpacked),
        Err(problem) => unpacked.problems.push(format!("{problem}; all that is in it is closed")),
    }
    unpacked
}

fn unpack_connections(parcel: &OwnedFd, list: List, unpacked: &mut Unpacked) {
    unpacked.time = Some(list.time);
    let known = list.lines.len();
    if let Some(problem) = &list.problem {
        unpacked.problems.push(format!("its list {problem}; {known} of {} connections are known from it", list.count));
    }
    // Who is there twice counts once.
    let mut states: HashMap<_, _> = list.lines.into_iter().map(|line| (line.cookie, line.state)).collect();
    let (mut unlisted, mut unconnected) = (0, 0);
    // There is a connection in each message at least: so there are no more of them, but an end.
    for _ in 0..=known {
        let message = match receive(parcel) {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                unpacked.problems.push(format!("cannot take more out of it: {error}"));
                break;
            }
        };
        if message.is_cut {
            let problem = "descriptors were lost on the way; LimitNOFILE= of the unit is too small for all";
            unpacked.problems.push(problem.to_owned());
        }
        for socket in message.descriptors {
            let cookie = sockopt::socket_cookie(&socket).ok();
            match cookie.and_then(|cookie| states.remove(&cookie)) {
                Some(state) if is_connection(&socket) => unpacked.items.push(Item { socket, state }),
                Some(_) => unconnected += 1,
                None => unlisted += 1,
            }
        }
    }
    let mut found = |count: usize, what: &str| {
        if count > 0 {
            unpacked.problems.push(format!("{count} {what}"));
        }
    };
    found(unlisted, "descriptors in it are not on its list, closed");
    found(unconnected, "descriptors in it are no connections, closed");
    found(states.len(), "connections on its list are not in it");
}

fn unpack_list(parcel: &OwnedFd) -> Result<List, String> {
    let first = match receive(parcel) {
        Ok(Some(first)) => first,
        Ok(None) => return Err("it is empty".to_owned()),
        Err(error) => return Err(format!("cannot take anything out of it: {error}")),
    };
    let Ok([memory]) = <[OwnedFd; 1]>::try_from(first.descriptors) else {
        return Err("it does not begin with its list".to_owned());
    };
    // Also tells that it is memory: a file could be one that makes its readers wait.
    let fixed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    if !fcntl_get_seals(&memory).is_ok_and(|seals| seals.contains(fixed)) {
        return Err("it does not begin with sealed memory".to_owned());
    }
    let mut file = File::from(memory);
    let mut read = || {
        let about = file.metadata()?;
        file.rewind()?;
        Ok((about.len(), about.blocks()))
    };
    let (length, blocks) = read().map_err(|error: std::io::Error| format!("its list cannot be read: {error}"))?;
    // What has holes may be longer than there is memory.
    if blocks.saturating_mul(512) < length {
        return Err("its list has holes".to_owned());
    }
    list::read(&mut BufReader::with_capacity(64 * 1024, file), length).map_err(|problem| format!("its list {problem}"))
}

/// A message of a parcel.
struct Message {
    descriptors: Vec<OwnedFd>,
    /// Whether there were more of them.
    is_cut: bool,
}

/// The next message, if there is one. Does not wait for one.
fn receive(parcel: &OwnedFd) -> Result<Option<Message>, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = match recvmsg(parcel, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags) {
        // Somebody has the other end, and has sent nothing.
        Err(Errno::AGAIN) => return Ok(None),
        result => result?,
    };
    let mut descriptors = Vec::new();
    for one in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = one {
            descriptors.extend(some);
        }
    }
    if received.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    Ok(Some(Message { descriptors, is_cut: received.flags.contains(ReturnFlags::CTRUNC) }))
}

/// Whether this is a connected stream socket; or was, and has not said yet why it is not any more.
fn is_connection(socket: &OwnedFd) -> bool {
    sockopt::socket_type(socket) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(socket) == Ok(false)
        && (getpeername(socket).is_ok() || has_error(socket))
}

/// Whether an error waits to be told. It goes on waiting.
fn has_error(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())).is_ok() && polled[0].revents().contains(PollFlags::ERR)
}
