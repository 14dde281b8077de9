//! Bundles that are not, or no longer, what was packed.

use std::io::{IoSlice, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair, sockopt};

use super::{closed, connect, expect_connected, packed_whole};
use crate::systemd::fdstore::manifest::{self, Entry};
use crate::systemd::fdstore::*;
use crate::systemd::send_fds::send_with_fds;

/// Unpacks a single bundle that is not in order, and returns its connections and its problems.
fn problems(bundle: OwnedFd) -> (Vec<StoredConnection>, Vec<String>) {
    let unpacked = unpack(vec![bundle]);
    let problems = unpacked
        .problems
        .into_iter()
        .map(|problem| problem.strip_prefix("bundle 1 of 1: ").unwrap_or_else(|| panic!("{problem}")).to_owned());
    (unpacked.connections, problems.collect())
}

/// Returns a bundle with these messages in it, and its other end.
fn bundle_of(messages: &[&[BorrowedFd<'_>]]) -> (OwnedFd, OwnedFd) {
    let (sending, bundle) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    for descriptors in messages {
        send_with_fds(&sending, &[IoSlice::new(b"any text")], descriptors, SendFlags::empty()).unwrap();
    }
    (bundle, sending)
}

const SEALED: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK);

fn memory(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let memory = memfd_create("test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    let mut file = std::fs::File::from(memory);
    file.write_all(bytes).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

/// Returns the manifest of these connections.
fn manifest_of<'a>(connections: impl IntoIterator<Item = &'a StoredConnection>) -> Vec<u8> {
    let entry = |connection: &'a StoredConnection| Entry {
        cookie: sockopt::socket_cookie(&connection.socket).unwrap(),
        snapshot: &*connection.snapshot,
    };
    let lines: Vec<_> = connections.into_iter().map(entry).collect();
    let mut bytes = Vec::new();
    manifest::write(&mut bytes, now(), lines.into_iter()).unwrap();
    bytes
}

/// Unpacks these connections with these bytes as their manifest. Returns how many of them were unpacked, and the
/// problems.
fn unpack_with_manifest(bytes: &[u8], connections: &[StoredConnection]) -> (usize, Vec<String>) {
    let manifest = memory(bytes, SEALED);
    let sockets: Vec<_> = connections.iter().map(|connection| connection.socket.as_fd()).collect();
    let (connections, problems) = problems(bundle_of(&[&[manifest.as_fd()], &sockets]).0);
    (connections.len(), problems)
}

#[test]
fn a_bundle_can_be_unpacked_only_once() {
    let (connections, mut peers) = connect(2);
    let bundles = packed_whole(connections);
    let again = bundles[0].try_clone().unwrap();
    expect_connected(unpack(bundles).connections, &mut peers, 0);
    let (connections, said) = problems(again);
    assert!(connections.is_empty());
    assert_eq!(said, ["it is empty; closed all of its connections"]);
}

#[test]
fn unpacking_does_not_wait_for_another_holder_of_the_bundle() {
    let (bundle, _sending) = bundle_of(&[]);
    assert_eq!(problems(bundle).1, ["it is empty; closed all of its connections"]);
    let (connections, mut peers) = connect(3);
    let manifest = memory(&manifest_of(&connections), SEALED);
    let (bundle, _sending) = bundle_of(&[&[manifest.as_fd()], &[connections[0].socket.as_fd()]]);
    drop(connections);
    let (connections, said) = problems(bundle);
    assert_eq!(said, ["2 connections in its manifest are not in it"]);
    expect_connected(connections, &mut peers[..1], 0);
    assert!(peers[1..].iter_mut().all(closed));
}

#[test]
fn the_order_of_connections_does_not_matter() {
    let (connections, mut peers) = connect(20);
    let manifest = memory(&manifest_of(connections.iter().rev()), SEALED);
    let messages: Vec<_> = connections.iter().map(|connection| [connection.socket.as_fd()]).collect();
    let messages: Vec<&[_]> = messages.iter().map(|message| &message[..]).collect();
    let (connections, said) = problems(bundle_of(&[&[&[manifest.as_fd()][..]], &messages[..]].concat()).0);
    assert_eq!(said, [""; 0]);
    expect_connected(connections, &mut peers, 0);
}

#[test]
fn unlisted_and_missing_connections_are_reported_and_the_others_unpacked() {
    let (connections, mut peers) = connect(10);
    // The first has no descriptor, the last has no entry.
    let manifest = memory(&manifest_of(&connections[..9]), SEALED);
    let sockets: Vec<_> = connections[1..].iter().map(|connection| connection.socket.as_fd()).collect();
    let (bundle, _) = bundle_of(&[&[manifest.as_fd()], &sockets]);
    drop(connections);
    let (connections, said) = problems(bundle);
    assert_eq!(
        said,
        ["1 descriptors in it are not in its manifest, closed", "1 connections in its manifest are not in it"]
    );
    expect_connected(connections, &mut peers[1..9], 1);
    assert!(closed(&mut peers[0]) && closed(&mut peers[9]));
}

#[test]
fn no_more_messages_are_read_than_the_manifest_has_entries() {
    let (connections, mut peers) = connect(5);
    let manifest = memory(&manifest_of(&connections[..1]), SEALED);
    let messages: Vec<_> = connections.iter().map(|connection| [connection.socket.as_fd()]).collect();
    let messages: Vec<&[_]> = messages.iter().map(|message| &message[..]).collect();
    let (bundle, _) = bundle_of(&[&[&[manifest.as_fd()][..]], &messages[..]].concat());
    drop(connections);
    let (connections, said) = problems(bundle);
    assert_eq!(said, ["1 descriptors in it are not in its manifest, closed"]);
    expect_connected(connections, &mut peers[..1], 0);
    assert!(peers[1..].iter_mut().all(closed));
}

#[test]
fn duplicate_connections_are_unpacked_once() {
    let (connections, mut peers) = connect(1);
    let manifest = memory(&manifest_of([&connections[0], &connections[0]]), SEALED);
    let twice = [connections[0].socket.as_fd(), connections[0].socket.as_fd()];
    let (connections, said) = problems(bundle_of(&[&[manifest.as_fd()], &twice]).0);
    assert_eq!(said, ["1 descriptors in it are not in its manifest, closed"]);
    expect_connected(connections, &mut peers, 0);
}

#[test]
fn descriptors_that_are_not_connections_are_closed() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let (packets, _theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let sockets: [OwnedFd; 7] = [
        ours.into(),
        packets,
        TcpListener::bind("127.0.0.1:0").unwrap().into(),
        UnixListener::bind(directory.path().join("socket")).unwrap().into(),
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, rustix::net::SocketFlags::CLOEXEC, None)
            .unwrap(),
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, rustix::net::SocketFlags::CLOEXEC, None)
            .unwrap(),
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
    ];
    let connections = sockets.map(|socket| StoredConnection { socket, snapshot: Vec::new() });
    let (restored, said) = unpack_with_manifest(&manifest_of(&connections), &connections);
    assert_eq!((restored, said), (2, vec!["5 descriptors in it are not connections, closed".to_owned()]));
    // A descriptor that is not a socket has no cookie.
    let manifest = memory(&manifest_of(&connections[..1]), SEALED);
    let (restored, said) = problems(bundle_of(&[&[manifest.as_fd()], &[manifest.as_fd()]]).0);
    assert_eq!(restored.len(), 0);
    assert_eq!(
        said,
        ["1 descriptors in it are not in its manifest, closed", "1 connections in its manifest are not in it"]
    );
}

#[test]
fn a_bundle_without_a_manifest_is_closed() {
    let (connections, mut peers) = connect(4);
    let sockets: Vec<_> = connections.iter().map(|connection| connection.socket.as_fd()).collect();
    let manifest = memory(&manifest_of(&connections), SEALED);
    let file = tempfile::tempfile().unwrap();
    for (first, expected) in [
        (&[][..], "it does not begin with its manifest"),
        (&sockets[..], "it does not begin with its manifest"),
        (&[manifest.as_fd(), manifest.as_fd()], "it does not begin with its manifest"),
        (&[sockets[0]], "it does not begin with sealed memory"),
        (&[file.as_fd()], "it does not begin with sealed memory"),
    ] {
        let (connections, said) = problems(bundle_of(&[first, &sockets]).0);
        assert!(connections.is_empty());
        assert_eq!(said, [format!("{expected}; closed all of its connections")]);
    }
    drop(connections);
    assert!(peers.iter_mut().all(closed));
}

#[test]
fn a_manifest_that_is_not_sealed_is_not_read() {
    let (connections, _peers) = connect(1);
    let sockets = [connections[0].socket.as_fd()];
    for missing in [SealFlags::WRITE, SealFlags::GROW, SealFlags::SHRINK] {
        let manifest = memory(&manifest_of(&connections), SEALED.difference(missing));
        let (_, said) = problems(bundle_of(&[&[manifest.as_fd()], &sockets]).0);
        assert_eq!(said, ["it does not begin with sealed memory; closed all of its connections"]);
    }
}

#[test]
fn a_manifest_is_read_from_its_start_whatever_its_offset() {
    let (connections, mut peers) = connect(3);
    let mut manifest = std::fs::File::from(memory(&manifest_of(&connections), SEALED));
    let sockets: Vec<_> = connections.iter().map(|connection| connection.socket.as_fd()).collect();
    manifest.seek(SeekFrom::Start(20)).unwrap();
    let (connections, said) = problems(bundle_of(&[&[manifest.as_fd()], &sockets]).0);
    assert_eq!(said, [""; 0]);
    expect_connected(connections, &mut peers, 0);
}

#[test]
fn a_sparse_manifest_is_not_read() {
    let (connections, _peers) = connect(1);
    let mut bytes = manifest_of(&connections);
    // The length of the first snapshot: everything that follows.
    bytes[40..48].copy_from_slice(&((1 << 40) - 48_u64).to_be_bytes());
    let manifest = std::fs::File::from(memory(&bytes, SealFlags::empty()));
    manifest.set_len(1 << 40).unwrap();
    fcntl_add_seals(&manifest, SEALED).unwrap();
    let (_, said) = problems(bundle_of(&[&[manifest.as_fd()], &[connections[0].socket.as_fd()]]).0);
    assert_eq!(said, ["its manifest has holes; closed all of its connections"]);
}

#[test]
fn foreign_and_later_manifests_are_rejected() {
    let (connections, _peers) = connect(2);
    let good = manifest_of(&connections);
    let mut foreign = good.clone();
    foreign[0] = b'E';
    let mut later = good.clone();
    later[19] = 2;
    for (bytes, expected) in [
        (&b""[..], "its manifest is not from echoed"),
        (b"any text that is as long as the header of a manifest is, or longer", "its manifest is not from echoed"),
        (&foreign, "its manifest is not from echoed"),
        (&good[..31], "its manifest is not from echoed"),
        (&later, "its manifest has version 2, and this version of echoed knows 1 at most"),
    ] {
        let found = unpack_with_manifest(bytes, &connections);
        assert_eq!(found, (0, vec![format!("{expected}; closed all of its connections")]));
    }
}

#[test]
fn a_truncated_manifest_yields_its_whole_entries() {
    let (connections, _peers) = connect(5);
    let good = manifest_of(&connections);
    for length in 32..good.len() {
        let (restored, said) = unpack_with_manifest(&good[..length], &connections);
        let end = |at: usize| manifest_of(&connections[..at]).len();
        let whole = (0..5).filter(|at| end(at + 1) <= length).count();
        assert_eq!(restored, whole, "{length}");
        assert_eq!(said[0], format!("its manifest is cut off; {whole} of 5 connections are known from it"));
        assert_eq!(said[1..], [format!("{} descriptors in it are not in its manifest, closed", 5 - whole)]);
    }
    let longer = [&good[..], b"more"].concat();
    let (restored, said) = unpack_with_manifest(&longer, &connections);
    assert_eq!(restored, 5);
    assert_eq!(said, ["its manifest has 4 bytes after its end; 5 of 5 connections are known from it"]);
}

#[test]
fn impossible_lengths_in_a_manifest_allocate_nothing() {
    let (connections, _peers) = connect(2);
    for length in [1, u64::from(u32::MAX), u64::MAX / 2, u64::MAX] {
        let mut bytes = manifest_of(&connections);
        let last = bytes.len() - 8 - connections[1].snapshot.len();
        bytes[last..last + 8]
            .copy_from_slice(&(connections[1].snapshot.len() as u64).saturating_add(length).to_be_bytes());
        let (restored, said) = unpack_with_manifest(&bytes, &connections);
        assert_eq!(restored, 1, "{length}");
        assert_eq!(said[0], "its manifest is cut off; 1 of 2 connections are known from it");
    }
    let mut bytes = manifest_of(&connections);
    bytes[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
    let (restored, said) = unpack_with_manifest(&bytes, &connections);
    assert_eq!(restored, 2);
    assert_eq!(said, ["its manifest is cut off; 2 of 4294967295 connections are known from it"]);
}
