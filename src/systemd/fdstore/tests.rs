//! Bundles of real sockets, packed and unpacked. Bundles that are not in order are in [`hostile`], manifests in
//! [`manifests`].

mod hostile;
mod manifests;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::*;

/// Makes connections with both ends here: those to be stored, and their peers.
fn connect(count: usize) -> (Vec<StoredConnection>, Vec<UnixStream>) {
    may_open(4 * count);
    let pair = |number: usize| {
        let (ours, theirs) = UnixStream::pair().expect("there are enough descriptors");
        (StoredConnection { socket: ours.into(), snapshot: snapshot(number) }, theirs)
    };
    (0..count).map(pair).unzip()
}

/// Returns snapshots of different lengths, also empty ones.
fn snapshot(number: usize) -> Vec<u8> {
    format!("{number},").repeat(number % 7).into_bytes()
}

/// Sees to it that there may be so many descriptors, and those of the other tests.
fn may_open(count: usize) {
    let wanted = u64::try_from(count).expect("it is small") + 1000;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        let most = maximum.map_or(wanted.max(10_000), |maximum| maximum.min(wanted.max(10_000)));
        setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum }).expect("it is not more than the most");
    }
}

/// Packs as [`store`] does, for a store of any size.
fn packed(connections: Vec<StoredConnection>, limits: &BundleLimits) -> (Vec<OwnedFd>, StoreResult) {
    let mut bundles = Vec::new();
    let stored = store_bundles(connections, None, 100, limits, |bundle| {
        bundles.push(bundle);
        Ok(())
    });
    (bundles, stored)
}

fn packed_whole(connections: Vec<StoredConnection>) -> Vec<OwnedFd> {
    let (bundles, stored) = packed(connections, &BundleLimits::default());
    assert!(stored.remaining.is_empty() && stored.problem.is_none(), "{stored:?}");
    bundles
}

/// Checks that these are the connections to those peers, with their snapshots, in their order.
fn expect_connected(connections: Vec<StoredConnection>, peers: &mut [UnixStream], first: usize) {
    assert_eq!(connections.len(), peers.len());
    for (number, (connection, peer)) in (first..).zip(connections.into_iter().zip(peers)) {
        assert_eq!(connection.snapshot, snapshot(number));
        let mut connection = UnixStream::from(connection.socket);
        connection.write_all(&number.to_le_bytes()).unwrap();
        let mut came = [0; 8];
        peer.read_exact(&mut came).unwrap();
        assert_eq!(came, number.to_le_bytes());
    }
}

fn closed(peer: &mut UnixStream) -> bool {
    matches!(peer.read(&mut [0]), Ok(0))
}

#[test]
fn stored_connections_are_unpacked_unchanged() {
    let (connections, mut peers) = connect(1000);
    for peer in &mut peers {
        peer.write_all(b"on its way").unwrap();
    }
    let bundles = packed_whole(connections);
    assert_eq!(bundles.len(), 1);
    let unpacked = unpack(bundles);
    assert_eq!(unpacked.problems, [""; 0]);
    assert!(unpacked.age < Duration::from_secs(30), "{:?}", unpacked.age);
    for connection in &unpacked.connections {
        let mut came = [0; 20];
        let stream = UnixStream::from(connection.socket.try_clone().unwrap());
        assert_eq!((&stream).read(&mut came).unwrap(), 10);
        assert_eq!(came[..10], *b"on its way");
        assert!(rustix::io::fcntl_getfd(&connection.socket).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
    expect_connected(unpacked.connections, &mut peers, 0);
}

#[test]
fn connections_of_every_socket_family_are_stored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let mut connections = Vec::new();
    let mut peers: Vec<UnixStream> = Vec::new();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(tcp) = TcpListener::bind(address) else { continue };
        peers.push(OwnedFd::from(TcpStream::connect(tcp.local_addr().unwrap()).unwrap()).into());
        connections.push(OwnedFd::from(tcp.accept().unwrap().0));
    }
    peers.push(UnixStream::connect(&path).unwrap());
    connections.push(unix.accept().unwrap().0.into());
    let connection = |(number, socket)| StoredConnection { socket, snapshot: snapshot(number) };
    let unpacked = unpack(packed_whole(connections.into_iter().enumerate().map(connection).collect()));
    assert_eq!(unpacked.problems, [""; 0]);
    expect_connected(unpacked.connections, &mut peers, 0);
}

#[test]
fn connections_that_closed_meanwhile_are_unpacked_as_connections() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let [reset, ended] = [0, 1].map(|_| TcpStream::connect(tcp.local_addr().unwrap()).unwrap());
    let connections =
        (0..2).map(|_| StoredConnection { socket: tcp.accept().unwrap().0.into(), snapshot: Vec::new() }).collect();
    let bundles = packed_whole(connections);
    sockopt::set_socket_linger(&reset, Some(Duration::ZERO)).unwrap();
    drop((reset, ended));
    let unpacked = unpack(bundles);
    assert_eq!(unpacked.problems, [""; 0]);
    let read = |at: usize| TcpStream::from(unpacked.connections[at].socket.try_clone().unwrap()).read(&mut [0]);
    // The error was not taken away.
    assert_eq!(read(0).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(read(1).unwrap(), 0);
}

#[test]
fn large_snapshots_are_unpacked_whole() {
    let large = |byte: u8| vec![byte; 5_000_000];
    let (mut connections, _peers) = connect(3);
    for (connection, byte) in connections.iter_mut().zip(0..) {
        connection.snapshot = large(byte);
    }
    let unpacked = unpack(packed_whole(connections));
    assert!(unpacked.connections.iter().zip(0..).all(|(connection, byte)| connection.snapshot == large(byte)));
    assert_eq!(unpacked.connections.len(), 3);
}

#[test]
fn no_connections_make_no_bundle() {
    assert!(packed_whole(Vec::new()).is_empty());
    let unpacked = unpack(Vec::new());
    assert!(unpacked.connections.is_empty() && unpacked.problems.is_empty() && unpacked.age == Duration::ZERO);
}

#[test]
fn the_state_of_the_process_is_in_the_first_bundle_also_without_connections() {
    let limits = BundleLimits { fds_per_message: 3, send_buffer: Some(1) };
    for count in [0, 1, 100] {
        let (connections, mut peers) = connect(count);
        let mut bundles = Vec::new();
        let stored = store_bundles(connections, Some(b"state"), 100, &limits, |bundle| {
            bundles.push(bundle);
            Ok(())
        });
        assert!(stored.stored == count && stored.remaining.is_empty() && stored.problem.is_none(), "{stored:?}");
        assert_eq!(bundles.len() > 1, count == 100);
        let unpacked = unpack(bundles);
        assert_eq!((unpacked.state.as_deref(), unpacked.problems), (Some(&b"state"[..]), Vec::new()));
        expect_connected(unpacked.connections, &mut peers, 0);
    }
    assert_eq!(unpack(packed_whole(connect(1).0)).state, None);
}

#[test]
fn connections_that_exceed_one_bundle_go_into_further_bundles() {
    let (connections, mut peers) = connect(100);
    // The smallest buffer that there is takes a few messages.
    let (bundles, stored) = packed(connections, &BundleLimits { fds_per_message: 3, send_buffer: Some(1) });
    assert!(bundles.len() > 1, "{}", bundles.len());
    assert!(stored.stored == 100 && stored.remaining.is_empty() && stored.problem.is_none(), "{stored:?}");
    let unpacked = unpack(bundles);
    assert_eq!(unpacked.problems, [""; 0]);
    expect_connected(unpacked.connections, &mut peers, 0);
}

#[test]
fn connections_that_exceed_the_store_are_returned() {
    let (connections, mut peers) = connect(100);
    let mut bundles = Vec::new();
    let stored =
        store_bundles(connections, None, 2, &BundleLimits { fds_per_message: 3, send_buffer: Some(1) }, |bundle| {
            bundles.push(bundle);
            Ok(())
        });
    assert_eq!(bundles.len(), 2);
    assert!((2..100).contains(&stored.stored), "{}", stored.stored);
    let problem = stored.problem.unwrap();
    assert_eq!(problem, "the fd store takes 2 descriptors and is full (FileDescriptorStoreMax=)");
    expect_connected(stored.remaining, &mut peers[stored.stored..], stored.stored);
    let unpacked = unpack(bundles);
    assert_eq!(unpacked.problems, [""; 0]);
    expect_connected(unpacked.connections, &mut peers[..stored.stored], 0);
}

#[test]
fn connections_that_the_manager_does_not_take_are_returned() {
    let (connections, mut peers) = connect(10);
    let stored =
        store_bundles(connections, None, 4, &BundleLimits::default(), |_| Err(io::Error::other("it does not listen")));
    assert_eq!((stored.stored, stored.problem.as_deref()), (0, Some("it does not listen")));
    expect_connected(stored.remaining, &mut peers, 0);
    let (connections, mut peers) = connect(10);
    let stored = store_bundles(connections, None, 0, &BundleLimits::default(), |_| unreachable!());
    assert_eq!(stored.stored, 0);
    expect_connected(stored.remaining, &mut peers, 0);
}

#[test]
fn the_peer_sees_the_end_only_when_the_bundle_is_closed() {
    let (connections, mut peers) = connect(2);
    let bundles = packed_whole(connections);
    peers[0].set_nonblocking(true).unwrap();
    assert_eq!(peers[0].read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(bundles);
    peers[0].set_nonblocking(false).unwrap();
    assert!(peers.iter_mut().all(closed));
}

#[test]
fn unpacked_connections_have_the_age_of_the_oldest_bundle() {
    let (connections, _peers) = connect(1);
    let then = now().checked_sub(Duration::from_secs(3)).unwrap();
    let (bundle, _) = pack::pack(&connections, None, then, &BundleLimits::default()).unwrap();
    let age = unpack(vec![bundle]).age;
    assert!((3..30).contains(&age.as_secs()), "{age:?}");
    let (bundle, _) =
        pack::pack(&connections, None, now() + Duration::from_secs(1000), &BundleLimits::default()).unwrap();
    assert_eq!(unpack(vec![bundle]).age, Duration::ZERO);
}

/// In a process of its own, since the limit is on all of it.
#[test]
fn connections_beyond_the_limit_on_descriptors_in_flight_are_returned() {
    const INNER: &str = "ECHOED_TEST_IN_FLIGHT";
    if env::var_os(INNER).is_none() {
        let name = thread::current().name().expect("a test has a name").to_owned();
        let mut inner = Command::new(env::current_exe().expect("we know what we are"));
        let output = inner.args(["--exact", &name]).env(INNER, "1").output().expect("it can be run again");
        let problems = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && problems.contains("1 passed"), "{problems}");
        return;
    }
    let (connections, mut peers) = connect(5);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum }).unwrap();
    // Those with privileges may have more.
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (sending, _receiving) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    // The limit is on those before. Other processes of this user may have reached it.
    let sent = pack::send_fds(&sending, &[sending.as_fd(); 253]);
    assert!(matches!(sent, Ok(()) | Err(Errno::TOOMANYREFS)), "{sent:?}");
    let (bundles, stored) = packed(connections, &BundleLimits::default());
    assert!(bundles.is_empty() && stored.stored == 0, "{stored:?}");
    assert!(stored.problem.is_some_and(|problem| problem.contains("LimitNOFILE=")));
    expect_connected(stored.remaining, &mut peers, 0);
}
