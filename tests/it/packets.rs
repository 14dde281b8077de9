//! Connections of packets (SOCK_SEQPACKET): one packet is one message, and one is its reply.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use common::packets::{PacketPeer, unix_address};
use common::service_manager::activated_command;
use common::{Daemon, Peer, now, wait_until};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, socketpair, sockopt};
use rustix::process::Signal;

const LISTEN: [&str; 2] = ["--listen", "seqpacket:DIR/packets"];

fn start(configuration: &str) -> Daemon {
    Daemon::start_with(configuration, &LISTEN)
}

fn connect(daemon: &Daemon) -> PacketPeer {
    PacketPeer::connect(&daemon.addresses()[0])
}

#[test]
fn each_packet_is_a_message_and_is_answered_with_one_packet() {
    let daemon = start("");
    let peer = connect(&daemon);
    for message in ["a", "a\tb\t", "\t", "server got:a", "line\r\n", "\0\u{ff}"] {
        peer.exchange(message);
    }
    // Any number without waiting.
    for number in 0..100 {
        peer.send(format!("{number}"));
    }
    for number in 0..100 {
        peer.expect(format!("server got:{number}"));
    }
    daemon.stop();
}

#[test]
fn an_empty_packet_is_a_message_and_not_the_end() {
    let daemon = start("");
    let peer = connect(&daemon);
    for _ in 0..3 {
        peer.exchange("");
    }
    peer.exchange("still here");
    // The end with an empty packet right before it, and many.
    for _ in 0..20 {
        peer.send("");
    }
    peer.shutdown();
    for _ in 0..20 {
        peer.expect("server got:");
    }
    peer.expect_close();
    let log = daemon.stop();
    assert!(log.iter().any(|line| line.contains("24 messages, 1 connections in all")), "{log:#?}");
}

#[test]
fn a_client_that_half_closes_gets_every_reply() {
    let daemon = start("");
    for _ in 0..20 {
        let peer = connect(&daemon);
        for number in 0..50 {
            peer.send(format!("{number}"));
        }
        peer.shutdown();
        for number in 0..50 {
            peer.expect(format!("server got:{number}"));
        }
        peer.expect_close();
    }
    daemon.stop();
}

#[test]
fn a_packet_of_max_message_is_answered_and_one_byte_more_ends_the_connection() {
    for (configuration, longest) in
        [("", 65_536), ("[defaults]\nmax_message = '10B'\n", 10), ("[defaults]\nmax_message = '128KiB'\n", 131_072)]
    {
        let daemon = start(configuration);
        let peer = connect(&daemon);
        let message = "x".repeat(longest);
        peer.exchange(&message);
        peer.send("before");
        peer.send(message + "x");
        // They are dropped, and yet destroy nothing that comes back.
        for _ in 0..5 {
            peer.send("after");
        }
        peer.expect("server got:before");
        peer.expect(format!("server error:message exceeds {longest} bytes"));
        peer.expect_close();
        assert!(daemon.wait_for_log("too-long").contains("ended: too-long; 2 messages"));
        daemon.stop();
    }
}

#[test]
fn without_error_replies_there_is_no_final_reply() {
    let daemon = start("[defaults]\nerror_replies = false\nmax_message = '3B'\n");
    let peer = connect(&daemon);
    peer.send("four");
    peer.expect_close();
    daemon.stop();
}

#[test]
fn with_raw_framing_a_packet_is_echoed_unchanged_and_there_is_no_final_reply() {
    let daemon = start("[defaults]\nframing = 'raw'\nmax_message = '1000B'\n");
    let peer = connect(&daemon);
    // Raw framing takes up to 512 bytes of a stream; a packet is one message nevertheless.
    for packet in [&b"a\tb\t"[..], b"", &[b'x'; 1000]] {
        peer.send(packet);
        peer.expect(packet);
    }
    peer.send([b'x'; 1001]);
    peer.expect_close();
    daemon.wait_for_log("ended: too-long; 3 messages");
    daemon.stop();
}

#[test]
fn an_empty_prefix_makes_a_pure_echo() {
    let daemon = start("[defaults]\nprefix = ''\n");
    let peer = connect(&daemon);
    for message in ["a", "", "b"] {
        peer.send(message);
        peer.expect(message);
    }
    daemon.stop();
}

#[test]
fn packets_get_the_fixed_reply_and_then_the_reply_delay() {
    let daemon =
        start("[defaults]\nreply = 'fixed'\nfixed_reply = 'Hello!'\nreply_delay = '500ms'\ndeadlines.idle = '400ms'\n");
    let (peer, start) = (connect(&daemon), now());
    for packet in ["a", "", "ccc"] {
        peer.send(packet);
    }
    for _ in 0..3 {
        peer.expect("Hello!");
    }
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    // After the reply delay and the idle deadline.
    peer.expect("server error:no message within 400ms");
    peer.expect_close();
    assert!(start.elapsed() >= Duration::from_millis(1_900), "{:?}", start.elapsed());
    daemon.stop();
}

#[test]
fn with_reply_none_packets_are_not_answered() {
    let daemon = start("[defaults]\nreply = 'none'\nlog_messages = 'full'\n");
    let peer = connect(&daemon);
    for packet in ["a", "bb"] {
        peer.send(packet);
    }
    daemon.wait_for_log(": \"a\"");
    daemon.wait_for_log(": \"bb\"");
    peer.shutdown();
    peer.expect_close();
    daemon.stop();
}

#[test]
fn a_client_that_sends_nothing_is_closed_at_the_idle_deadline() {
    let daemon = start("[defaults.deadlines]\nidle = '1500ms'\nread = '10ms'\n");
    let peer = connect(&daemon);
    let start = now();
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(500));
        peer.exchange("a");
    }
    let last = now();
    peer.expect("server error:no message within 1500ms");
    peer.expect_close();
    assert!(last.elapsed() > Duration::from_millis(1490) && start.elapsed() > Duration::from_millis(3490));
    daemon.stop();
}

#[test]
fn a_busy_connection_ends_at_its_lifetime() {
    let daemon = start("[defaults.deadlines]\nlifetime = '500ms'\n");
    let (peer, start) = (connect(&daemon), now());
    let end = loop {
        peer.send("a");
        match peer.receive() {
            reply if reply == b"server got:a" => {}
            end => break end,
        }
    };
    assert_eq!(end, b"server error:connection older than 500ms");
    peer.expect_close();
    assert!(start.elapsed() > Duration::from_millis(490));
    daemon.stop();
}

#[test]
fn a_client_that_does_not_read_is_not_read_from_and_closed_at_the_write_deadline() {
    let daemon = start("[defaults.deadlines]\nwrite = '300ms'\n");
    let peer = connect(&daemon);
    let mut sent = 0;
    let start = now();
    while !daemon.log().iter().any(|line| line.contains("write-deadline")) {
        sent += peer.send_what_fits(&[b'x'; 1000]);
        thread::sleep(Duration::from_millis(5));
        assert!(start.elapsed() < common::TEST_TIMEOUT, "it is not cut");
    }
    assert!(start.elapsed() > Duration::from_millis(290));
    // What the kernel holds on both ways, and no more.
    assert!((100..5000).contains(&sent), "{sent}");
    connect(&daemon).exchange("another");
    daemon.stop();
}

#[test]
fn a_user_is_limited_to_connections_per_source() {
    let daemon = start("[limits]\nconnections_per_source = 2\n");
    let [first, second, third] = [connect(&daemon), connect(&daemon), connect(&daemon)];
    first.exchange("a");
    second.exchange("b");
    third.send("c");
    third.expect("server error:too many connections from this source (limit 2)");
    third.expect_close();
    let line = daemon.wait_for_log("too-many");
    let uid = rustix::process::getuid().as_raw();
    assert!(line.contains(&format!("from uid {uid} pid {} ended: too-many", std::process::id())), "{line}");
    first.close();
    connect(&daemon).exchange("d");
    daemon.stop();
}

/// A client that has closed a connection may open the next one at once, whatever the daemon is doing.
#[test]
fn closed_connections_do_not_count_against_their_source() {
    let daemon = start("[service]\nworkers = 2\n[limits]\nconnections_per_source = 4\n");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let peer = connect(&daemon);
                    peer.exchange("a");
                    peer.close();
                }
            });
        }
    });
    daemon.stop();
}

#[test]
fn connections_beyond_the_limit_wait() {
    let daemon = start("[limits]\nconnections = 1\nreclaim_idle = 'off'\n");
    let first = connect(&daemon);
    first.exchange("a");
    let second = connect(&daemon);
    second.send("b");
    daemon.wait_for_log("connection limit reached (limits.connections=1)");
    first.exchange("c");
    drop(first);
    second.expect("server got:b");
    daemon.stop();
}

#[test]
fn replies_that_exceed_the_buffer_memory_end_their_connection() {
    let daemon = start("[limits]\nbuffer_memory = '64KiB'\n[defaults.deadlines]\nwrite = 'off'\n");
    // Two replies that are not taken do not fit.
    let non_reading = [connect(&daemon), connect(&daemon)];
    wait_until("a connection has ended", || {
        for peer in &non_reading {
            peer.send_what_fits(&[b'x'; 40_000]);
        }
        daemon.log().iter().any(|line| line.contains("ended: busy"))
    });
    // What is answered at once is not kept.
    let peer = connect(&daemon);
    for _ in 0..3 {
        peer.send([b'y'; 60_000]);
        assert_eq!(peer.receive().len(), 60_011);
    }
    drop(non_reading);
    daemon.stop();
}

#[test]
fn clients_that_send_much_at_once_and_do_not_read_leave_memory_to_others() {
    let limits = "[limits]\nbuffer_memory = '32MiB'\nconnections_per_source = 0\n";
    let daemon = start(&format!("{limits}[defaults.deadlines]\nwrite = 'off'\n"));
    let non_reading: Vec<_> = (0..200).map(|_| connect(&daemon)).collect();
    for peer in &non_reading {
        sockopt::set_socket_send_buffer_size(peer.fd(), 1 << 20).unwrap();
    }
    for _ in 0..4 {
        for peer in &non_reading {
            peer.send_what_fits(&[b'x'; 60_000]);
        }
    }
    let other = connect(&daemon);
    other.send([b'y'; 60_000]);
    assert_eq!(other.receive().len(), 60_011);
    assert!(!daemon.log().iter().any(|line| line.contains("ended: busy")), "{:#?}", daemon.log());
    drop(non_reading);
    daemon.stop();
}

#[test]
fn messages_are_logged_with_their_peer() {
    let configuration = "[log]\nlevel = 'debug'\n[defaults]\nlog_messages = 'summary'\n";
    let daemon = start(configuration);
    let peer = connect(&daemon);
    peer.exchange("a\tb");
    peer.exchange("");
    drop(peer);
    let peer_text = format!("from uid {} pid {}", rustix::process::getuid().as_raw(), std::process::id());
    daemon.wait_for_log(&format!("connection 1 on echo {peer_text}"));
    daemon.wait_for_log(&format!("message on connection 1 on echo {peer_text}: \"a\\tb\""));
    daemon.wait_for_log(&format!("message on connection 1 on echo {peer_text}: \"\""));
    let end = daemon.wait_for_log("ended:");
    assert!(end.contains(&format!("{peer_text} ended: peer-closed; 2 messages, 3 bytes in, 25 bytes out")), "{end}");
    daemon.stop();

    let daemon = start("[defaults]\nlog_messages = 'full'\n");
    let peer = connect(&daemon);
    let long = "long ".repeat(1000);
    peer.exchange(&long);
    daemon.wait_for_log(&format!("message on connection 1 on echo {peer_text}: \"{long}\""));
    daemon.stop();
}

#[test]
fn pending_replies_are_sent_before_the_daemon_exits() {
    let mut daemon = start("[service]\ndrain_timeout = '20s'\n[defaults.deadlines]\nwrite = '20s'\n");
    let (idle, busy) = (connect(&daemon), connect(&daemon));
    idle.exchange("a");
    while busy.send_what_fits(&[b'x'; 1000]) > 0 {
        thread::sleep(Duration::from_millis(20));
    }
    daemon.signal(Signal::TERM);
    idle.expect_close();
    let mut replies = 0;
    loop {
        match busy.receive() {
            end if end.is_empty() => break,
            reply => assert_eq!(reply, ["server got:".as_bytes(), &[b'x'; 1000]].concat()),
        }
        replies += 1;
    }
    drop((idle, busy));
    assert!(daemon.wait().success());
    let said = format!("{} messages, 2 connections in all", replies + 1);
    assert!(daemon.log().iter().any(|line| line.contains(&said)), "{said}: {:#?}", daemon.log());
    assert!(daemon.log().iter().any(|line| line.contains("2 connections finished, 0 cut")), "{:#?}", daemon.log());
}

#[test]
fn a_flooding_client_does_not_delay_others() {
    let arguments = ["--listen", "seqpacket:DIR/packets", "--listen", "127.0.0.1:0"];
    let daemon = Daemon::start_with("[service]\nworkers = 1\n", &arguments);
    let flood = connect(&daemon);
    let (sender, receiver) = (flood.fd().try_clone_to_owned().unwrap(), flood.fd().try_clone_to_owned().unwrap());
    let ended = std::sync::atomic::AtomicBool::new(false);
    let is_stopped = || ended.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let (sender, receiver) = (PacketPeer::from_fd(sender), PacketPeer::from_fd(receiver));
        let is_stopped = &is_stopped;
        scope.spawn(move || {
            while !is_stopped() {
                sender.send("flood");
            }
            sender.shutdown();
        });
        scope.spawn(move || while !receiver.receive().is_empty() {});
        let packets = connect(&daemon);
        let mut stream = Peer::connect(&daemon.addresses()[1]);
        for number in 0..200 {
            packets.exchange(&format!("{number}"));
            stream.exchange(&format!("{number}"));
        }
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    daemon.stop();
}

// --- Where it listens ------------------------------------------------------------------------------------------------

#[test]
fn a_stale_socket_file_is_replaced_a_live_one_is_kept_and_ours_is_removed_at_exit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("packets");
    let address = format!("seqpacket:{}", path.display());
    let stale = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&stale, &unix_address(&address)).unwrap();
    drop(stale);
    assert!(path.exists());
    let daemon = Daemon::start(&["--listen", &address]);
    assert_eq!(daemon.addresses(), std::slice::from_ref(&address));
    PacketPeer::connect(&address).exchange("a");
    // Whatever wants to be there.
    for scheme in ["seqpacket", "unix", "unixgram"] {
        let other = format!("{scheme}:{}", path.display());
        let command = &mut std::process::Command::new(env!("CARGO_BIN_EXE_echoed"));
        let mut second = Daemon::spawn_with(command, "", &["--listen", &other]);
        assert_eq!(second.wait().code(), Some(71));
        second.wait_for_log(&format!("cannot listen on {other}: another process listens there"));
    }
    PacketPeer::connect(&address).exchange("b");
    daemon.stop();
    assert!(!path.exists());
}

#[test]
fn an_abstract_unix_address_is_served() {
    let address = format!("seqpacket:@echoed-test-packets-{}", std::process::id());
    let daemon = Daemon::start(&["--listen", &address]);
    assert_eq!(daemon.addresses(), std::slice::from_ref(&address));
    PacketPeer::connect(&address).exchange("a");
    daemon.stop();
}

#[test]
fn a_socket_passed_by_systemd_is_served_with_clients_that_connected_before_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("seqpacket:{}", directory.path().join("packets").display());
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&listener, &unix_address(&address)).unwrap();
    listen(&listener, 10).unwrap();
    let (empty, ended) = (PacketPeer::connect(&address), PacketPeer::connect(&address));
    empty.send("");
    ended.send("last");
    ended.send("");
    ended.shutdown();
    let mut command = activated_command("3<&0", vec![listener], "packets");
    let daemon = Daemon::spawn_with_stdio(&mut command, "[listener.packets]\nprefix = 'p:'\n", &[]);
    daemon.wait_for_log(&format!("listening on {address} (packets)"));
    empty.expect("p:");
    empty.send("a");
    empty.expect("p:a");
    ended.expect("p:last");
    ended.expect("p:");
    ended.expect_close();
    daemon.stop();
}

#[test]
fn a_connection_from_systemd_is_served_until_it_ends() {
    let (client, connection): (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let peer = PacketPeer::from_fd(client);
    peer.send("");
    let mut command = activated_command("3<&0", vec![connection], "connection");
    let mut daemon = Daemon::spawn_with_stdio(&mut command, "", &[]);
    peer.expect("server got:");
    peer.exchange("a");
    peer.shutdown();
    peer.expect_close();
    assert_eq!(daemon.wait().code(), Some(0));
}
