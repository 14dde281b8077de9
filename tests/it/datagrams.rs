//! Datagrams (UDP, Unix): one is one message, and one is its reply. The rules against abuse are tested in `safety`,
//! that replies go to the sender only in `senders` and `broadcasts`, that no client's file system holds up others in
//! `silent`, what is received with one call in `batches`, the times of the kernel in `timestamps`; `in_process` has the
//! tests with a server in this process.

mod batches;
mod broadcasts;
mod in_process;
mod safety;
mod senders;
mod silent;
mod silent_fs;
mod timestamps;

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::Duration;

use common::packets::DatagramPeer;
use common::service_manager::activated_command;
use common::{Daemon, Peer, now, wait_until};
use nix::sys::socket::{TimestampingFlag, setsockopt, sockopt};
use rustix::process::Signal;

/// A daemon that listens on an address.
pub(crate) fn start(configuration: &str, address: &str) -> Daemon {
    Daemon::start_with(configuration, &["--listen", address])
}

/// A daemon that was handed this socket, which stays ours, too.
pub(crate) fn start_on(configuration: &str, socket: &UdpSocket) -> Daemon {
    let mut command = activated_command("3<&0", vec![socket.try_clone().expect("it can be duplicated").into()], "echo");
    let daemon = Daemon::spawn_with_stdio(&mut command, configuration, &[]);
    daemon.wait_for_log("listening on");
    daemon
}

pub(crate) fn datagram_peer(daemon: &Daemon) -> DatagramPeer {
    DatagramPeer::to(&daemon.addresses()[0])
}

const ADDRESSES: [&str; 3] = ["udp:127.0.0.1:0", "udp:[::1]:0", "unixgram:DIR/socket"];

#[test]
fn each_datagram_is_a_message_and_is_answered_with_one_datagram() {
    for address in ADDRESSES {
        let daemon = start("", address);
        assert_eq!(daemon.addresses()[0].split(':').next(), address.split(':').next());
        let peer = datagram_peer(&daemon);
        for message in ["a", "", "a\tb\t", "\t", "line\r\n", "\0\u{ff}"] {
            peer.exchange(message);
        }
        let log = daemon.stop();
        assert!(log.iter().any(|line| line.contains("6 messages, 0 connections in all")), "{log:#?}");
    }
}

#[test]
fn with_raw_framing_a_datagram_is_echoed_unchanged() {
    let unix = format!("unixgram:@echoed-test-raw-{}", std::process::id());
    for address in [ADDRESSES[0], ADDRESSES[1], &unix] {
        let daemon = start("[defaults]\nframing = 'raw'\n", address);
        let peer = datagram_peer(&daemon);
        for datagram in [&b"a"[..], b"", b"a\tb\t", &[0xff; 1000]] {
            peer.send(datagram);
            peer.expect(datagram);
        }
        daemon.stop();
    }
}

#[test]
fn datagrams_get_the_fixed_reply_without_delay_unless_it_amplifies() {
    // There is no connection that could wait.
    let configuration = "[defaults]\nreply = 'fixed'\nfixed_reply = 'Hello, you who sent this!'\nreply_delay = '1h'\n";
    for address in ADDRESSES {
        let daemon = start(configuration, address);
        let peer = datagram_peer(&daemon);
        for datagram in ["a", "", "a\tb\t"] {
            peer.send(datagram);
            peer.expect("Hello, you who sent this!");
        }
        daemon.stop();
    }
    let daemon = start(&format!("[defaults]\nreply = 'fixed'\nfixed_reply = '{}'\n", "x".repeat(57)), ADDRESSES[0]);
    let peer = datagram_peer(&daemon);
    // 28 bytes of headers make 84; and one more.
    peer.send("");
    daemon.wait_for_log("amplifies");
    peer.send("a");
    peer.expect("x".repeat(57));
    daemon.stop();
}

#[test]
fn with_reply_none_datagrams_are_not_answered() {
    for address in ADDRESSES {
        let daemon = start("[defaults]\nreply = 'none'\nlog_messages = 'full'\n", address);
        let peer = datagram_peer(&daemon);
        for datagram in ["a", "bb"] {
            peer.send(datagram);
        }
        daemon.wait_for_log(": \"a\"");
        daemon.wait_for_log(": \"bb\"");
        // Nothing was dropped, and nothing came back.
        let log = daemon.stop();
        assert!(log.iter().any(|line| line.contains("2 messages, 0 connections in all")), "{log:#?}");
        assert_eq!(peer.count_until_silent(Duration::from_millis(50)), 0);
    }
}

#[test]
fn a_datagram_of_max_message_is_answered_and_one_byte_more_is_dropped() {
    for address in ADDRESSES {
        for longest in [1, 10, 10_000] {
            let daemon = start(&format!("[defaults]\nmax_message = '{longest}B'\n"), address);
            let peer = datagram_peer(&daemon);
            let message = "x".repeat(longest);
            peer.exchange(&message);
            peer.send(message.clone() + "x");
            // It is not answered with a part of it, nor at all, and what comes after it is.
            peer.exchange(&message);
            daemon.wait_for_log("1 datagram dropped on echo: too-long; from");
            daemon.stop();
        }
    }
}

#[test]
fn a_datagram_whose_reply_exceeds_the_udp_size_limit_is_dropped() {
    let daemon = start("", "udp:127.0.0.1:0");
    let peer = datagram_peer(&daemon);
    // The largest that there is over IPv4, less the prefix.
    let most = 65_507 - "server got:".len();
    peer.exchange(&"x".repeat(most));
    peer.send("x".repeat(most + 1));
    peer.send("x".repeat(65_507));
    peer.exchange("after");
    daemon.wait_for_log("1 datagram dropped on echo: reply-too-long; from 127.0.0.1:");
    let log = daemon.stop();
    assert!(log.iter().any(|line| line.contains("1 datagram dropped on echo: reply-too-long")), "{log:#?}");
}

#[test]
fn a_reply_is_sent_from_the_address_that_the_client_used() {
    for (bound, asked) in [("0.0.0.0", ["127.0.0.1", "127.0.0.5"]), ("[::]", ["[::1]", "127.0.0.7"])] {
        let daemon = start("", &format!("udp:{bound}:0"));
        let (_, port) =
            daemon.addresses()[0].rsplit_once(':').map(|(all, port)| (all.to_owned(), port.to_owned())).unwrap();
        for asked in asked {
            let from = if asked.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
            let client = UdpSocket::bind(from).unwrap();
            // From then on it takes nothing from any other address.
            client.connect(format!("{asked}:{port}")).unwrap();
            client.set_read_timeout(Some(common::TEST_TIMEOUT)).unwrap();
            client.send(b"a").unwrap();
            let mut buffer = [0; 100];
            let count = client.recv(&mut buffer).unwrap_or_else(|error| panic!("{asked}: {error}"));
            assert_eq!(&buffer[..count], b"server got:a", "{asked}");
        }
        daemon.stop();
    }
}

#[test]
fn an_abstract_unix_address_is_served() {
    let address = format!("unixgram:@echoed-test-datagrams-{}", std::process::id());
    let daemon = start("", &address);
    assert_eq!(daemon.addresses(), [address]);
    datagram_peer(&daemon).exchange("a");
    daemon.stop();
}

#[test]
fn a_stale_socket_file_is_replaced_a_live_one_is_kept_and_ours_is_removed_at_exit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    drop(UnixDatagram::bind(&path).unwrap());
    let address = format!("unixgram:{}", path.display());
    let daemon = start("", &address);
    datagram_peer(&daemon).exchange("a");
    let command = &mut std::process::Command::new(env!("CARGO_BIN_EXE_echoed"));
    let mut second = Daemon::spawn_with(command, "", &["--listen", &address]);
    assert_eq!(second.wait().code(), Some(71));
    second.wait_for_log("another process listens there");
    datagram_peer(&daemon).exchange("b");
    daemon.stop();
    assert!(!path.exists());
}

#[test]
fn sockets_passed_by_systemd_are_served_with_the_datagrams_queued_before_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (udp, unix) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UnixDatagram::bind(&path).unwrap());
    let addresses = [format!("udp:{}", udp.local_addr().unwrap()), format!("unixgram:{}", path.display())];
    let peers = addresses.each_ref().map(|address| DatagramPeer::to(address));
    peers.iter().for_each(|peer| peer.send("early"));
    let mut command = activated_command("3<&0 4<&1", vec![udp.into(), unix.into()], "echo:other");
    let daemon = Daemon::spawn_with_stdio(&mut command, "[listener.other]\nprefix = 'o:'\n", &[]);
    peers[0].expect("server got:early");
    peers[1].expect("o:early");
    daemon.wait_for_log_times("listening on", 2);
    assert_eq!(daemon.addresses(), addresses);
    daemon.stop();
}

#[test]
fn icmp_errors_do_not_break_the_listener() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Makes the kernel report them at the next call, whatever that is about.
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
    let daemon = start_on("", &socket);
    for _ in 0..20 {
        // The peer is usually gone when the reply comes.
        let peer = datagram_peer(&daemon);
        peer.send("a");
        drop(peer);
    }
    datagram_peer(&daemon).exchange("b");
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.contains("no longer served")), "{log:#?}");
}

#[test]
fn what_the_kernel_reports_beside_datagrams_does_not_keep_the_daemon_busy() {
    let refused = |socket: &UdpSocket| {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true).unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // The kernel keeps each error in the socket. It may say so at the next call already.
        (0..10).for_each(|_| _ = socket.send_to(b"a", closed));
    };
    let stamped = |socket: &UdpSocket| {
        // Each reply comes back to the socket with its time.
        let flags = TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
        setsockopt(socket, sockopt::Timestamping, &flags).unwrap();
    };
    for prepare in [&refused as &dyn Fn(&UdpSocket), &stamped] {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        prepare(&socket);
        let daemon = start_on("", &socket);
        datagram_peer(&daemon).exchange("a");
        datagram_peer(&daemon).exchange("b");
        let before = daemon.cpu_nanos();
        thread::sleep(Duration::from_millis(500));
        let busy = daemon.cpu_nanos() - before;
        assert!(busy < 200_000_000, "{busy} ns of CPU time in half a second");
        daemon.stop();
    }
}

#[test]
fn a_client_that_does_not_read_its_replies_does_not_delay_others() {
    let daemon = start("[limits]\ndatagrams_per_source = 'off'\n", "unixgram:DIR/socket");
    let (non_reading, other) = (datagram_peer(&daemon), datagram_peer(&daemon));
    for _ in 0..2000 {
        non_reading.send("a");
    }
    other.exchange("b");
    assert!(daemon.wait_for_log("no-room").contains("1 datagram dropped on echo: no-room; from"));
    daemon.stop();
}

#[test]
fn a_datagram_flood_does_not_starve_connections() {
    let configuration = "[service]\nworkers = 1\n[limits]\ndatagrams_per_source = 'off'\n";
    let daemon = Daemon::start_with(configuration, &["--listen", "udp:127.0.0.1:0", "--listen", "127.0.0.1:0"]);
    let addresses = daemon.addresses();
    let ended = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let flood = DatagramPeer::to(&addresses[0]);
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    flood.send("flood");
                }
            });
        }
        for _ in 0..20 {
            let mut peer = Peer::connect(&addresses[1]);
            for number in 0..20 {
                peer.exchange(&format!("{number}"));
            }
        }
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    daemon.stop();
}

#[test]
fn messages_are_logged_with_their_peer() {
    let daemon = start("[defaults]\nlog_messages = 'summary'\n", "unixgram:DIR/socket");
    datagram_peer(&daemon).exchange("a\tb");
    let peer_text = format!("uid {} pid {}", rustix::process::getuid().as_raw(), std::process::id());
    daemon.wait_for_log(&format!("message on echo from {peer_text}: \"a\\tb\""));
    daemon.stop();
    for log in ["summary", "full"] {
        let daemon = start(&format!("[defaults]\nlog_messages = '{log}'\n"), "udp:127.0.0.1:0");
        datagram_peer(&daemon).exchange("a");
        assert!(daemon.wait_for_log("message on echo from 127.0.0.1:").ends_with(": \"a\""));
        daemon.stop();
    }
}

#[test]
fn a_reload_applies_to_the_next_datagram() {
    let daemon = start("[limits]\ndatagrams_per_source = '1/s'\n", "udp:127.0.0.1:0");
    let peer = datagram_peer(&daemon);
    peer.exchange("a");
    let new = "[limits]\ndatagrams_per_source = 'off'\n[defaults]\nprefix = 'new:'\nmax_message = '70B'\n";
    std::fs::write(daemon.directory().join("echoed.toml"), new).unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("reloaded");
    for _ in 0..50 {
        peer.send("x".repeat(70));
        peer.expect(format!("new:{}", "x".repeat(70)));
    }
    peer.send("x".repeat(71));
    daemon.wait_for_log("too-long");
    daemon.stop();
}

#[test]
fn socket_buffer_sizes_can_be_configured() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let daemon = start_on("[defaults]\nreceive_buffer = '32KiB'\nsend_buffer = '16KiB'\n", &socket);
    // The kernel doubles what is asked for (socket(7)).
    assert_eq!(rustix::net::sockopt::socket_recv_buffer_size(&socket).unwrap(), 65_536);
    assert_eq!(rustix::net::sockopt::socket_send_buffer_size(&socket).unwrap(), 32_768);
    daemon.stop();
}

// --- Idle exit ---------------------------------------------------------------------------------------------------------

#[test]
fn the_idle_exit_time_counts_from_the_last_datagram() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut daemon = start_on("[service]\nidle_exit = '2s'\n", &socket);
    let peer = datagram_peer(&daemon);
    let start = now();
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(700));
        peer.exchange("still here");
    }
    let last = now();
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(last.elapsed() > Duration::from_millis(1950) && start.elapsed() > Duration::from_millis(4700));
}

#[test]
fn a_datagram_that_arrives_at_the_idle_exit_is_answered_and_the_process_stays() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // It is stopped within this time, and the second datagram comes within it.
    let daemon = start_on("[service]\nidle_exit = '2s'\nworkers = 1\n", &socket);
    let peer = datagram_peer(&daemon);
    // It sleeps over its time, and finds both when it wakes: the time over, and a datagram.
    daemon.signal(Signal::STOP);
    thread::sleep(Duration::from_millis(2_100));
    peer.send("a");
    daemon.signal(Signal::CONT);
    peer.expect("server got:a");
    peer.exchange("b");
    let log = daemon.log();
    assert!(!log.iter().any(|line| line.contains("stopping")), "{log:#?}");
}

#[test]
fn a_thousand_datagrams_around_idle_exits_are_all_answered() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = DatagramPeer::to(&format!("udp:{}", socket.local_addr().unwrap()));
    let configuration = "[service]\nidle_exit = '5ms'\nworkers = 1\n[limits]\ndatagrams_per_source = 'off'\n";
    let (mut ends, mut daemon) = (0, None::<Daemon>);
    for round in 0..1000_u64 {
        peer.send(format!("{round}"));
        // As systemd does: starts the daemon again if it has exited while a datagram waits.
        let mut answered = false;
        wait_until("it is answered", || {
            if daemon.as_mut().is_none_or(has_exited) {
                ends += u32::from(daemon.is_some());
                let passed: Vec<OwnedFd> = vec![socket.try_clone().unwrap().into()];
                let mut command = activated_command("3<&0", passed, "echo");
                daemon = Some(Daemon::spawn_with_stdio(&mut command, configuration, &[]));
            }
            let waits = rustix::event::poll(
                &mut [rustix::event::PollFd::from_borrowed_fd(peer.fd(), rustix::event::PollFlags::IN)],
                Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 2_000_000 }),
            );
            if waits.unwrap() > 0 {
                peer.expect(format!("server got:{round}"));
                answered = true;
            }
            answered
        });
        if round % 20 == 0 {
            thread::sleep(Duration::from_micros(4000 + round * 3));
        }
    }
    assert!(ends >= 3, "it ended only {ends} times");
}

/// Whether a daemon has ended, and well.
fn has_exited(daemon: &mut Daemon) -> bool {
    let exited =
        std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).is_ok_and(|stat| stat.contains(") Z "));
    if exited {
        assert_eq!(daemon.wait().code(), Some(0));
    }
    exited
}
