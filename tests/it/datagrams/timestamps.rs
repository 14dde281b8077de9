//! The time when the kernel received a datagram, where its socket asks for that (`Timestamping=` of the socket unit).

use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use rustix::process::Signal;

use super::senders::expect_answered;
use common::packets::DatagramPeer;
use common::service_manager::activated_command;
use common::{Daemon, wait_until};

/// A kind of socket, and what systemd sets on it.
struct Case {
    is_unix: bool,
    /// `us`, `ns`.
    timestamping: Option<&'static str>,
}

const CASES: [Case; 6] = [
    Case { is_unix: false, timestamping: Some("us") },
    Case { is_unix: false, timestamping: Some("ns") },
    Case { is_unix: false, timestamping: None },
    Case { is_unix: true, timestamping: Some("us") },
    Case { is_unix: true, timestamping: Some("ns") },
    Case { is_unix: true, timestamping: None },
];

/// Starts a daemon on a socket of this kind. Returns its address as well.
fn start(case: &Case, directory: &tempfile::TempDir, configuration: &str) -> (Daemon, String) {
    let (socket, address): (OwnedFd, _) = if case.is_unix {
        let path = directory.path().join("socket");
        (UnixDatagram::bind(&path).expect("it can be bound").into(), format!("unixgram:{}", path.display()))
    } else {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("it can be bound");
        let address = format!("udp:{}", socket.local_addr().expect("it is bound"));
        (socket.into(), address)
    };
    match case.timestamping {
        Some("us") => setsockopt(&socket, sockopt::ReceiveTimestamp, &true).expect("it can be set"),
        Some(_) => setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("it can be set"),
        None => {}
    }
    let mut command = activated_command("3<&0", vec![socket], "echo");
    let daemon = Daemon::spawn_with_stdio(&mut command, configuration, &[]);
    daemon.wait_for_log("listening on");
    (daemon, address)
}

/// Returns a socket for which the kernel notes when datagrams come, once it does: it begins with that a while after it was asked.
/// While one socket has it, others have it at once.
fn stamped_socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("it can be bound");
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("it can be set");
    wait_until("the kernel notes the time", || {
        socket.send_to(b"a", socket.local_addr().expect("it is bound")).expect("it can be sent");
        let sent = SystemTime::now();
        thread::sleep(Duration::from_millis(5));
        let (mut byte, mut ancillary) = ([0; 1], nix::cmsg_space!(TimeSpec));
        let mut parts = [IoSliceMut::new(&mut byte)];
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut ancillary), MsgFlags::empty());
        let received = received.expect("it came");
        let mut messages = received.cmsgs().expect("there is room for them");
        let Some(ControlMessageOwned::ScmTimestampns(time)) = messages.next() else { panic!("there is no time") };
        SystemTime::UNIX_EPOCH + Duration::from(time) <= sent
    });
    socket
}

#[test]
fn messages_are_logged_with_the_time_when_the_kernel_received_them() {
    let _stamped = stamped_socket();
    for (case, log) in CASES.iter().flat_map(|case| ["summary", "full"].map(|log| (case, log))) {
        let directory = tempfile::tempdir().unwrap();
        let (daemon, address) = start(case, &directory, &format!("[defaults]\nlog_messages = '{log}'\n"));
        let peer = DatagramPeer::to(&address);
        peer.exchange("first");
        // It is received while the daemon does not run, and logged later.
        daemon.signal(Signal::STOP);
        let before = SystemTime::now();
        peer.send("second");
        let after = SystemTime::now();
        thread::sleep(Duration::from_millis(50));
        daemon.signal(Signal::CONT);
        peer.expect("server got:second");
        let received_at = |message: &str| {
            let line = daemon.wait_for_log(&format!(": \"{message}\""));
            let (_, described) = line.split_once(" from ").unwrap();
            let (peer, _) = described.split_once(": \"").unwrap();
            peer.split_once(" at ").map(|(_, time)| time.to_owned())
        };
        let times = ["first", "second"].map(received_at);
        match (case.timestamping, times) {
            (Some(precision), [Some(first), Some(second)]) => {
                let time = humantime::parse_rfc3339(&second).unwrap();
                // The kernel's microseconds are cut.
                let before = before - Duration::from_micros(1);
                assert!(before <= time && time <= after, "{second}: not from {before:?} to {after:?}");
                let has_micros = |time: &str| time.ends_with("000Z");
                assert_eq!(has_micros(&first) && has_micros(&second), precision == "us", "{first} {second}");
            }
            (None, [None, None]) => {}
            (_, times) => panic!("{times:?} with Timestamping={:?}", case.timestamping),
        }
        daemon.stop();
    }
}

#[test]
fn a_client_at_a_path_is_known_also_if_times_are_asked_for() {
    for case in CASES.iter().filter(|case| case.is_unix) {
        let directory = tempfile::tempdir().unwrap();
        let (daemon, address) = start(case, &directory, "");
        DatagramPeer::to(&address).exchange("a");
        let (client, path) = (daemon.directory().join("client"), directory.path().join("socket"));
        // Where the sender is looked for.
        std::os::unix::fs::symlink(path, daemon.directory().join("socket")).unwrap();
        expect_answered(&daemon, &client);
        let log = daemon.stop();
        assert!(!log.iter().any(|line| line.contains("dropped")), "{log:#?}");
    }
}
