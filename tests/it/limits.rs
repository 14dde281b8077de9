//! Limits of shared resources: connections, buffers, time on a worker. Exactly as many as the limit says, and no client pays
//! for another one.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use common::peer::QueuedBytes;
use common::{Daemon, Peer, ensure_nofile_limit, now, wait_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, send, socket_with};
use rustix::process::Signal;

// --- Connections -------------------------------------------------------------------------------------------------------

/// No connection waits for the kernel's table to grow when it comes.
#[test]
fn the_descriptor_table_is_preallocated_for_all_connections_at_the_start() {
    if !ensure_nofile_limit(6_000) {
        return;
    }
    let daemon = Daemon::start_with("[limits]\nconnections = 5000\n", &["--listen", "127.0.0.1:0"]);
    let room = daemon.status_number("FDSize");
    assert!(room >= 5_000, "{room}");
}

#[test]
fn a_connection_beyond_the_limit_waits_until_another_one_ends() {
    let daemon = Daemon::start_with("[limits]\nconnections = 8\nreclaim_idle = 'off'\n", &["--listen", "127.0.0.1:0"]);
    let mut served: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    for peer in &mut served {
        peer.exchange("served");
    }
    let line = daemon.wait_for_log("limits.connections");
    assert_eq!(line, "warn: connection limit reached (limits.connections=8), new connections wait in the backlog");

    // Each client that goes releases a permit for one of those that wait, in their order.
    let mut waiting: Vec<_> = (0..7).map(|_| daemon.connect()).collect();
    for peer in &mut waiting {
        peer.send("later\t");
    }
    while !waiting.is_empty() {
        waiting[0].expect_silence(Duration::from_millis(100));
        let mut next = waiting.remove(0);
        drop(served.remove(0));
        next.expect("server got:later\t");
        served.push(next);
    }
    for peer in &mut served {
        peer.exchange("still served");
    }
    drop(served);
    let log = daemon.stop();
    let said = log.iter().filter(|line| line.contains("limits.connections")).count();
    assert_eq!(said, 1, "connects and closes at the limit are not logged again: {log:#?}");
}

#[test]
fn reaching_a_small_limit_is_logged_only_once() {
    let daemon = Daemon::start_with("[limits]\nconnections = 2\n", &["--listen", "127.0.0.1:0"]);
    let mut served: Vec<_> = (0..2).map(|_| daemon.connect()).collect();
    daemon.wait_for_log("limits.connections");
    for _ in 0..5 {
        let mut next = daemon.connect();
        next.send("later\t");
        drop(served.remove(0));
        next.expect("server got:later\t");
        served.push(next);
    }
    drop(served);
    let log = daemon.stop();
    assert_eq!(log.iter().filter(|line| line.contains("limits.connections")).count(), 1, "{log:#?}");
}

/// Opens connections until one is served.
fn connect_until_served(address: &str) -> Peer {
    let mut served = None;
    wait_until("a client is served again", || {
        let mut peer = Peer::connect(address);
        peer.send("a\t");
        let is_served = peer.next_reply() == b"server got:a\t";
        served = is_served.then_some(peer);
        is_served
    });
    served.expect("that is what was waited for")
}

/// Checks that exactly 3 connections to this address are served at once.
fn check_three_of_one_source(address: &str) {
    let mut peers: Vec<_> = (0..3).map(|_| connect_until_served(address)).collect();
    for _ in 0..3 {
        let mut refused = Peer::connect(address);
        refused.expect("server error:too many connections from this source (limit 3)\t");
        refused.expect_close();
    }
    for peer in &mut peers {
        peer.exchange("still served");
    }
    drop(peers.remove(1));
    peers.push(connect_until_served(address));
    let mut refused = Peer::connect(address);
    refused.send("not answered\t");
    refused.expect("server error:too many connections from this source (limit 3)\t");
    refused.expect_close();
    drop(peers);
    // Nothing of them is left.
    let again: Vec<_> = (0..3).map(|_| connect_until_served(address)).collect();
    drop(again);
}

#[test]
fn a_user_on_a_unix_socket_is_limited_to_connections_per_source() {
    let daemon = Daemon::start_with("[limits]\nconnections_per_source = 3\n", &["--listen", "DIR/echo.sock"]);
    check_three_of_one_source(&daemon.addresses()[0]);
    let line = daemon.wait_for_log("too-many");
    assert!(line.contains("(limits.connections_per_source=3)"), "{line}");
    daemon.stop();
}

/// A client that has closed a connection may open the next one at once, whatever the daemon is doing.
#[test]
fn closed_connections_do_not_count_against_their_source() {
    let check_with_header = |header: &str, connections: usize| {
        let listener = if header.is_empty() { "" } else { "[defaults]\nproxy_protocol = 'required'\n" };
        let limits =
            format!("[limits]\nconnections = {connections}\nconnections_per_source = 4\nreclaim_idle = 'off'\n");
        let config = format!("[service]\nworkers = 2\n{limits}{listener}");
        let daemon = Daemon::start_with(&config, &["--listen", "DIR/echo.sock"]);
        let address = &daemon.addresses()[0];
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mut peer = Peer::connect(address);
                        peer.send(header);
                        peer.exchange("a");
                        peer.close();
                    }
                });
            }
        });
        daemon.stop();
    };
    // Also with hardly a place for those that come before the others are gone.
    for connections in [4096, 5, 4, 1] {
        check_with_header("", connections);
        check_with_header("PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n", connections);
    }
}

#[test]
fn an_address_is_limited_to_connections_per_source() {
    // Nothing is sent: it only asks for the way there.
    let local_address = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9))?;
        socket.local_addr()
    });
    let Some(ours) =
        local_address.ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    else {
        return common::skip_test("this machine has no address but loopback ones");
    };
    let daemon = Daemon::start_with("[limits]\nconnections_per_source = 3\n", &["--listen", &format!("{ours}:0")]);
    check_three_of_one_source(&daemon.addresses()[0]);
    daemon.stop();
}

#[test]
fn loopback_addresses_are_exempt_from_the_limit_of_a_source() {
    let config = "[limits]\nconnections_per_source = 1\n";
    let daemon = Daemon::start_with(config, &["--listen", "127.0.0.1:0", "--listen", "[::1]:0"]);
    for address in daemon.addresses() {
        let mut peers: Vec<_> = (0..5).map(|_| Peer::connect(&address)).collect();
        for peer in &mut peers {
            peer.exchange("a");
        }
    }
    daemon.stop();
}

#[test]
fn refused_connections_hold_no_permits() {
    let config = "[limits]\nconnections = 4\nconnections_per_source = 1\n";
    let daemon = Daemon::start_with(config, &["--listen", "DIR/echo.sock", "--listen", "127.0.0.1:0"]);
    let addresses = daemon.addresses();
    let mut first = Peer::connect(&addresses[0]);
    first.exchange("a");
    // The daemon waits up to a second for each of them to go. If they held permits, they would have to queue up.
    let start = now();
    let mut refused: Vec<_> = (0..60).map(|_| Peer::connect(&addresses[0])).collect();
    for peer in &mut refused {
        peer.expect("server error:too many connections from this source (limit 1)\t");
    }
    let mut others: Vec<_> = (0..2).map(|_| Peer::connect(&addresses[1])).collect();
    for peer in &mut others {
        peer.exchange("b");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    // More than can get the final reply at once are closed without it.
    let mut flood: Vec<_> = (0..200).map(|_| Peer::connect(&addresses[0])).collect();
    for peer in &mut flood {
        let final_reply = peer.read_to_end();
        let refusal = b"server error:too many connections from this source (limit 1)\t";
        assert!(final_reply.is_empty() || final_reply == refusal, "{}", final_reply.escape_ascii());
    }
    first.exchange("still served");
    drop((first, others, refused, flood));
    daemon.stop();
}

#[test]
fn every_refused_connection_is_counted_and_logged() {
    const HEADER: &str = "PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n";
    for (kind, header) in [("", ""), ("seqpacket:", ""), ("", HEADER)] {
        let listener = if header.is_empty() { "" } else { "[defaults]\nproxy_protocol = 'required'\n" };
        let config = format!("[log]\nlevel = 'debug'\n[limits]\nconnections_per_source = 1\n{listener}");
        let daemon = Daemon::start_with(&config, &["--listen", &format!("{kind}DIR/echo.sock")]);
        let path = daemon.directory().join("echo.sock");
        let connect = || {
            let kind = if kind.is_empty() { SocketType::STREAM } else { SocketType::SEQPACKET };
            let socket =
                socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("there are descriptors");
            rustix::net::connect(&socket, &SocketAddrUnix::new(&path).expect("it is short")).expect("it listens");
            // It may have been refused already.
            let _ = send(&socket, header.as_bytes(), SendFlags::NOSIGNAL);
            socket
        };
        let first = connect();
        daemon.wait_for_log("connection 1 on ");
        // More than can get the final reply at once.
        let flood: Vec<_> = (0..200).map(|_| connect()).collect();
        let ended = |verdict: &str| daemon.log().iter().filter(|line| line.contains(verdict)).count();
        wait_until("all of them are refused", || ended(" ended: too-many") == 200);
        drop((first, flood));
        wait_until("all have ended", || ended(" ended: ") == 201);
        let log = daemon.stop();
        assert!(log.last().is_some_and(|line| line.ends_with(", 201 connections in all")), "{log:#?}");
    }
}

#[test]
fn a_flood_of_one_source_does_not_take_the_places_of_others() {
    // With fewer places left than are accepted in a row, all of them would be held while the flood is being refused.
    let config = "[service]\nworkers = 2\n[limits]\nconnections = 20\nconnections_per_source = 4\n";
    let daemon = Daemon::start_with(config, &["--listen", "DIR/echo.sock", "--listen", "127.0.0.1:0"]);
    let addresses = daemon.addresses();
    let mut served: Vec<_> = (0..4).map(|_| Peer::connect(&addresses[0])).collect();
    served.extend((0..4).map(|_| Peer::connect(&addresses[1])));
    for peer in &mut served {
        peer.exchange("before");
    }
    daemon.signal(Signal::STOP);
    let mut flood: Vec<_> = (0..200).map(|_| Peer::connect(&addresses[0])).collect();
    let mut others: Vec<_> = (0..8).map(|_| Peer::connect(&addresses[1])).collect();
    daemon.signal(Signal::CONT);
    for peer in others.iter_mut().chain(&mut served) {
        peer.exchange("meanwhile");
    }
    for peer in &mut flood {
        let final_reply = peer.read_to_end();
        let refusal = b"server error:too many connections from this source (limit 4)\t";
        assert!(final_reply.is_empty() || final_reply == refusal, "{}", final_reply.escape_ascii());
    }
    // Now there is room for one more of that source, and it is served.
    served.remove(0).close();
    Peer::connect(&addresses[0]).exchange("after");
    drop((served, others));
    let log = daemon.stop();
    // There were never more than 17 connections that were not refused.
    assert!(!log.iter().any(|line| line.contains("limits.connections=")), "{log:#?}");
}

#[test]
fn a_thousand_connections_opened_and_closed_at_once_leak_no_descriptors() {
    if !ensure_nofile_limit(4096) {
        return;
    }
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0"]);
    let mut calm = daemon.connect();
    calm.exchange("before");
    let descriptors = daemon.descriptor_count();
    let peers: Vec<_> = (0..1000).map(|_| daemon.connect()).collect();
    drop(peers);
    calm.exchange("after");
    wait_until("they are all gone", || daemon.descriptor_count() == descriptors);
    drop(calm);
    let log = daemon.stop();
    assert!(log.last().is_some_and(|line| line.ends_with("; 2 messages, 1001 connections in all")), "{log:#?}");
}

#[test]
fn a_reset_in_the_middle_of_a_message_does_not_affect_others() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--log-level", "debug"]);
    let mut calm = daemon.connect();
    calm.exchange("before");
    let descriptors = daemon.descriptor_count();
    for _ in 0..20 {
        let mut resetting = daemon.connect();
        resetting.send("answered\thalf a mess");
        resetting.wait_until_read();
        resetting.reset();
        calm.exchange("meanwhile");
    }
    daemon.wait_for_log_times("ended: peer-reset; 1 messages", 20);
    wait_until("they are all gone", || daemon.descriptor_count() == descriptors);
    calm.exchange("after");
    drop(calm);
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.starts_with("warn") || line.starts_with("error")), "{log:#?}");
}

// --- Buffers -----------------------------------------------------------------------------------------------------------

#[test]
fn a_client_that_exceeds_the_buffer_memory_gets_an_error_and_others_are_not_affected() {
    let config = "
        [service]
        workers = 1    # so that what one peer does comes before what the next one does
        [limits]
        buffer_memory = '160KiB'
        [defaults.deadlines]
        read = '1min'
    ";
    let daemon = Daemon::start_with(config, &["--listen", "127.0.0.1:0"]);
    // However its parts arrive, a message of 60 KiB occupies between 60 and not much more than 64 KiB.
    let (long, half) = ("x".repeat(60 * 1024), "x".repeat(50 * 1024));
    let mut calm = daemon.connect();
    for _ in 0..10 {
        let mut holders = [daemon.connect(), daemon.connect()];
        for peer in &mut holders {
            peer.send(&long);
            peer.wait_until_read();
        }
        let mut third = daemon.connect();
        third.send(&half);
        third.expect("server error:out of buffer memory\t");
        third.expect_close();
        // What needs no memory, or little, goes on.
        calm.exchange("calm");
        calm.exchange(&"x".repeat(10 * 1024));
        for peer in &mut holders {
            peer.send("\t");
            peer.expect(format!("server got:{long}\t"));
        }
        // There is room again.
        let mut fourth = daemon.connect();
        fourth.send(&half);
        fourth.wait_until_read();
        fourth.send("\t");
        fourth.expect(format!("server got:{half}\t"));
    }
    daemon.wait_for_log_times("busy", 10);
    drop(calm);
    daemon.stop();
}

#[test]
fn a_connection_closed_at_the_write_deadline_releases_its_buffer_memory() {
    let config = "
        [service]
        workers = 1
        [limits]
        buffer_memory = '250KiB'
        [defaults.deadlines]
        write = '200ms'
    ";
    let daemon = Daemon::start_with(config, &["--listen", "DIR/echo.sock"]);
    for round in 1..=5 {
        // More replies than the kernel takes, so that the daemon keeps some.
        let mut non_reading = daemon.connect();
        non_reading.send([b'\t'; 60_000]);
        daemon.wait_for_log_times("ended: write-deadline", round);
    }
    let mut other = daemon.connect();
    other.exchange(&"x".repeat(60_000));
    drop(other);
    daemon.stop();
}

/// Sends empty messages until nothing more is taken for a while, without reading a single reply.
fn send_until_blocked(peer: &mut Peer) {
    let chunk = [b'\t'; 4096];
    loop {
        while peer.send_what_fits(&chunk) > 0 {}
        let a_while = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
        if poll(&mut [PollFd::new(&peer.fd(), PollFlags::OUT)], Some(&a_while)).expect("it is open") == 0 {
            return;
        }
    }
}

#[test]
fn socket_buffers_are_as_large_as_configured() {
    let config = "
        [listener.small]
        receive_buffer = '4KiB'
        send_buffer = '4KiB'
        [defaults.deadlines]
        write = '1min'
    ";
    let daemon = Daemon::start_with(config, &["--listen", "127.0.0.1:0", "--listen", "small=127.0.0.1:0"]);
    let addresses = daemon.addresses();
    let mut large = Peer::connect(&addresses[0]);
    send_until_blocked(&mut large);
    wait_until("the default buffers hold much", || {
        let QueuedBytes { unread, from_daemon, .. } = large.queued_bytes();
        unread > 32 * 1024 && from_daemon > 128 * 1024
    });
    let mut small = Peer::connect(&addresses[1]);
    send_until_blocked(&mut small);
    let waiting = small.queued_bytes();
    // The kernel doubles what is asked for (socket(7)), and takes a segment more, which on this way may have 64 KiB.
    assert!(waiting.unread <= 8 * 1024 && waiting.from_daemon <= 80 * 1024, "{waiting:?}");
    drop((large, small));
    daemon.stop();
}
