//! What cannot be carried is closed and said; the daemon starts whatever is in the store, and serves.

use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use rustix::process::{Signal, geteuid};

use super::common::program_or_leave_out;
use super::service::Service;
use super::{Peer, fates};

/// A parcel with these messages in it, each with a descriptor or none.
fn parcel(messages: &[(&[u8], Option<&OwnedFd>)]) -> OwnedFd {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (sending, parcel) = pair.expect("a pair can be made");
    for (bytes, descriptor) in messages {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.iter().map(|descriptor| descriptor.as_fd()).collect();
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        sendmsg(&sending, &[std::io::IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).expect("there is room");
    }
    parcel
}

#[test]
fn whatever_is_in_the_store_the_daemon_starts_and_serves() {
    let file = |text: &str| {
        let mut file = tempfile::tempfile().expect("a file can be made");
        file.write_all(text.as_bytes()).expect("it can be written");
        OwnedFd::from(file)
    };
    let stream = || OwnedFd::from(UnixStream::pair().expect("a pair can be made").0);
    let stores = [
        ("nothing in it", parcel(&[])),
        ("no descriptor", parcel(&[(b"x", None)])),
        ("no list", parcel(&[(b"\n", Some(&file("this is no list")))])),
        ("no list, but a connection", parcel(&[(b"\n", Some(&file("this is no list"))), (b"\n", Some(&stream()))])),
        ("only a connection", parcel(&[(b"\n", Some(&stream()))])),
        ("no parcel", stream()),
    ];
    let mut service = Service::start("");
    for (what, store) in stores {
        // Not TERM, which would store whoever it has not seen go.
        service.end(Signal::INT);
        service.manager.store("parcel", store);
        service.begin("");
        println!("{what}: {:?}", service.daemon.log());
        service.connect().exchange("new");
        assert!(service.manager.stored().is_empty(), "{what}");
        service.daemon.wait_for_log("warn: cannot go on with all that the process before has stored: ");
    }
    service.daemon.stop();
}

#[test]
fn a_store_that_was_used_is_not_used_again() {
    let mut service = Service::start("");
    let mut peer = service.connect();
    peer.send("a\thalf");
    peer.expect("server got:a\t");
    service.end(Signal::TERM);
    // As if the manager had not been told to forget it.
    let (name, stale) = service.manager.stored().remove(0);
    service.begin("");
    peer.send("\t");
    peer.expect("server got:half\t");
    service.end(Signal::INT);
    service.manager.store(&name, stale);
    service.begin("");
    service.connect().exchange("new");
    assert!(service.manager.stored().is_empty());
    service.daemon.stop();
}

#[test]
fn a_connection_that_died_meanwhile_ends_and_others_go_on() {
    let debug = "[log]\nlevel = 'debug'\n";
    let mut service = Service::start(debug);
    let (mut one, mut other) = (service.connect(), service.connect());
    one.exchange("a");
    other.exchange("a");
    service.end(Signal::TERM);
    one.reset();
    service.begin(debug);
    service.daemon.wait_for_log("ended: peer-reset");
    other.exchange("b");
    service.daemon.stop();
}

#[test]
fn a_process_that_crashes_loses_its_connections_and_the_next_one_serves() {
    let mut service = Service::start("");
    let mut peer = service.connect();
    peer.exchange("a");
    service.restart("");
    service.daemon.signal(Signal::KILL);
    service.daemon.wait();
    peer.read_to_end();
    let mut new = service.connect();
    new.send("waits\t");
    service.begin("");
    new.expect("server got:waits\t");
    assert!(service.manager.stored().is_empty());
    service.daemon.stop();
}

/// How many connections one of two services has, and the other.
const STORED: usize = 120;
const MANY: usize = 300;

/// What the second one may have open: enough for all its connections, but not for those in flight together with the
/// first one's.
const MAY_OPEN: &str = "340";

#[test]
fn more_than_may_be_in_flight_are_cut_and_said() {
    if !super::common::may_open(2 * MANY as u64) || program_or_leave_out("setpriv").is_none() {
        return;
    }
    let mut first = Service::start("");
    let mut stored: Vec<_> = (0..STORED).map(|_| first.connect()).collect();
    stored.iter_mut().for_each(|peer| peer.exchange("a"));
    assert_eq!(fates(&first.end(Signal::TERM)), [STORED, 0, 0]);

    let mut second = Service::start("");
    second.end(Signal::INT);
    second.begin_with("", |command| {
        // The limit does not hold for who has these; who is not root has nothing to give away.
        let privileges = "setpriv --bounding-set=-sys_resource,-sys_admin --inh-caps=-sys_resource,-sys_admin";
        let privileges = if geteuid().is_root() { privileges } else { "" };
        command.env("TEST_WRAPPER", format!("prlimit --nofile={MAY_OPEN} {privileges}"));
        // As many as the next process can be handed here.
        command.env("FDSTORE", "1");
    });
    let mut peers: Vec<_> = (0..MANY).map(|_| second.connect()).collect();
    for peer in &mut peers {
        peer.send("a\thalf");
        peer.expect("server got:a\t");
    }
    let log = second.restart("");
    let [carried, _, cut] = fates(&log);
    assert!(carried > 0 && cut > 0 && carried + cut == MANY, "{log:#?}");
    let said = format!("{cut} of {MANY} connections are cut: ");
    let line = log.iter().find(|line| line.contains(&said)).unwrap_or_else(|| panic!("not said: {log:#?}"));
    assert!(line.contains("LimitNOFILE="), "{line}");
    // The end of the stream, not a reset.
    let goes_on = |peer: &mut Peer| {
        peer.send_what_fits(b"\t");
        let reply = peer.next_reply();
        assert!(reply == b"server got:half\t" || reply.is_empty(), "{}", reply.escape_ascii());
        !reply.is_empty()
    };
    assert_eq!(peers.iter_mut().map(goes_on).filter(|goes_on| *goes_on).count(), carried);
    first.begin("");
    stored.iter_mut().for_each(|peer| peer.exchange("b"));
    first.daemon.stop();
    second.daemon.stop();
}
