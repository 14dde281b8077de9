//! Behind a load balancer: each connection begins with a PROXY header, which names the client.

mod haproxy;

use std::io::Write;
use std::time::Duration;

use common::{Daemon, Peer, now, wait_until};
use rustix::process::Signal;

const LISTEN: [&str; 4] = ["--listen", "127.0.0.1:0", "--listen", "DIR/echo.sock"];

/// Starts a daemon on a TCP and on a Unix socket, where headers are required, which logs everything.
fn start_daemon(configuration: &str) -> Daemon {
    let configuration =
        format!("[defaults]\nproxy_protocol = \"required\"\n{configuration}\n[log]\nlevel = \"debug\"\n");
    Daemon::start_with(&configuration, &LISTEN)
}

/// A header of version 2: command, family, and what follows.
fn v2_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).expect("it fits").to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &len, rest].concat()
}

/// 192.0.2.1:40123.
const V4_ADDRESSES: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0x9c, 0xbb, 0x1f, 0x95];

fn v6_addresses() -> Vec<u8> {
    let octets = |ip: &str| ip.parse::<std::net::Ipv6Addr>().expect("it is one").octets();
    [&octets("2001:db8::1")[..], &octets("2001:db8::2"), &[0x9c, 0xbb, 0x1f, 0x95]].concat()
}

const V1_HEADER: &str = "PROXY TCP4 192.0.2.1 198.51.100.7 40123 8085\r\n";

/// Headers, and the client that each names, if any.
fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
    let with_more = [&V4_ADDRESSES[..], &[0xe0, 0x0f, 0xe1], &[b'x'; 4065]].concat();
    vec![
        (V1_HEADER.into(), Some("192.0.2.1:40123")),
        ("PROXY TCP6 2001:db8::1 2001:db8::2 40123 8085\r\n".into(), Some("[2001:db8::1]:40123")),
        ("PROXY UNKNOWN\r\n".into(), None),
        ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".into(), None),
        (v2_header(0x21, 0x11, &V4_ADDRESSES), Some("192.0.2.1:40123")),
        (v2_header(0x21, 0x21, &v6_addresses()), Some("[2001:db8::1]:40123")),
        (v2_header(0x21, 0x11, &with_more), Some("192.0.2.1:40123")),
        (v2_header(0x21, 0x31, &[0; 216]), None),
        (v2_header(0x20, 0x00, &[]), None),
        (v2_header(0x20, 0x11, &V4_ADDRESSES), None),
    ]
}

/// The end of the connection with this number, as it is logged.
fn wait_for_end(daemon: &Daemon, connection: usize) -> String {
    let of_it = |line: &String| line.contains(&format!("connection {connection} on ")) && line.contains(" ended: ");
    wait_until("the connection has ended", || daemon.log().iter().any(of_it));
    daemon.log().into_iter().find(of_it).expect("it is there")
}

#[test]
fn after_the_header_messages_are_answered_as_without_it() {
    let daemon = start_daemon("");
    let mut number = 0;
    for address in daemon.addresses() {
        for (header, client) in headers() {
            number += 1;
            let mut peer = Peer::connect(&address);
            // What lies behind it in one packet are messages.
            peer.send([&header, &b"aaaa\t\tb"[..]].concat());
            peer.expect("server got:aaaa\tserver got:\t");
            peer.send("b\t");
            peer.expect("server got:bb\t");
            peer.exchange("PROXY UNKNOWN\r\n");
            peer.shutdown();
            peer.expect_close();
            let end = wait_for_end(&daemon, number);
            assert!(end.contains("ended: peer-closed; 4 messages"), "{end}");
            let from = |peer_text: &str| end.contains(&format!(" from {peer_text} ended"));
            match client {
                Some(client) => assert!(from(client), "{end}"),
                // The one that connected, as it was said at the beginning.
                None => assert!(end.contains(" from 127.0.0.1:") || end.contains(" from uid "), "{end}"),
            }
        }
    }
    daemon.stop();
}

#[test]
fn a_header_can_arrive_byte_by_byte() {
    let daemon = start_daemon("deadlines.read = \"1h\"\n");
    for address in daemon.addresses() {
        for (header, _) in headers().into_iter().filter(|(header, _)| header.len() < 100) {
            let mut peer = Peer::connect(&address);
            for byte in [&header, &b"a\t"[..]].concat() {
                peer.send([byte]);
                // Some of them in packets of their own.
                peer.receive_for(Duration::from_millis(1));
            }
            peer.expect("server got:a\t");
        }
    }
    daemon.stop();
}

#[test]
fn an_invalid_header_closes_the_connection_without_a_final_reply_and_its_first_bytes_are_logged() {
    // Nothing but the deadline would end a connection that may still become right.
    let daemon = start_daemon("deadlines.read = \"1h\"\n");
    let too_long = [&V4_ADDRESSES[..], &[0; 4069]].concat();
    let (missing, malformed, long) = ("no PROXY header", "malformed PROXY header", "PROXY header too long");
    let mut number = 0;
    for address in daemon.addresses() {
        for (wrong, reason, shown) in [
            (&b"aaaa\t"[..], missing, r#""aaaa\t""#),
            (b"\t", missing, r#""\t""#),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", missing, r#""GET / HTTP/1.1\r\nHost: a\r\n\r\n""#),
            (&[0xff; 5000], missing, &format!("\"{}\"…", r"\xff".repeat(32))),
            (b"PROXY TCP4 192.0.2.1\r\n", malformed, r#""PROXY TCP4 192.0.2.1\r\n""#),
            (b"PROXY UDP4 192.0.2.1 198.51.100.7 40123 8085\r\n", malformed, r#""PROXY UDP4 192.0.2.1 198.51.100."…"#),
            (
                b"PROXY TCP4 192.0.2.256 198.51.100.7 40123 8085\r\na\t",
                malformed,
                r#""PROXY TCP4 192.0.2.256 198.51.10"…"#,
            ),
            (&[&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat(), long, r#""PROXY UNKNOWN xxxxxxxxxxxxxxxxxx"…"#),
            (&b"PROXY ".repeat(100), long, r#""PROXY PROXY PROXY PROXY PROXY PR"…"#),
            (&v2_header(0x31, 0x11, &V4_ADDRESSES), malformed, r#""\r\n\r\n\0\r\nQUIT\n1\u{11}\0\u{c}"#),
            (&v2_header(0x21, 0x11, &V4_ADDRESSES[..11]), malformed, r#""\r\n\r\n\0\r\nQUIT\n!\u{11}\0\u{b}"#),
            (&v2_header(0x21, 0x11, &too_long)[..16], long, r#""\r\n\r\n\0\r\nQUIT\n!\u{11}\u{f}\xf1""#),
            (&v2_header(0x21, 0x99, &V4_ADDRESSES), malformed, r#""\r\n\r\n\0\r\nQUIT\n!\x99\0\u{c}"#),
        ] {
            number += 1;
            let mut peer = Peer::connect(&address);
            peer.send(wrong);
            peer.expect_close();
            drop(peer);
            let (end, len) = (wait_for_end(&daemon, number), wrong.len());
            let bytes = if len == 1 { "byte" } else { "bytes" };
            let expected = format!("ended: bad-proxy-header ({reason}; {len} {bytes} came: {shown}");
            assert!(end.starts_with("info: ") && end.contains(&expected), "{end}, expected {expected}");
            assert!(end.contains(&format!("); 0 messages, {len} bytes in, 0 bytes out, ")), "{end}");
            assert!(end.contains(" from 127.0.0.1:") || end.contains(" from uid "), "{end}");
        }
    }
    daemon.stop();
}

/// Headers of version 2 with something behind the addresses, from `from` bytes to the longest.
fn long_headers(from: usize) -> impl Iterator<Item = Vec<u8>> {
    let with_len = |len: usize| {
        let value = vec![b'x'; len - 16 - V4_ADDRESSES.len() - 3];
        let value_len = u16::try_from(value.len()).expect("it fits").to_be_bytes();
        v2_header(0x21, 0x11, &[&V4_ADDRESSES[..], &[0xe0], &value_len, &value].concat())
    };
    (from..4096).step_by(311).chain([4095, 4096]).map(with_len)
}

#[test]
fn a_header_of_4_kib_fits_whatever_the_receive_buffer() {
    for size in ["1KiB", "2KiB", "4KiB"] {
        let daemon = start_daemon(&format!("receive_buffer = \"{size}\"\ndeadlines.read = \"1h\"\n"));
        for address in daemon.addresses() {
            for header in long_headers(100) {
                let mut peer = Peer::connect(&address);
                peer.send([&header, &b"aaaa\tb"[..]].concat());
                peer.expect("server got:aaaa\t");
                peer.send("b\t");
                peer.expect("server got:bb\t");
            }
        }
        daemon.stop();
    }
}

#[test]
fn a_truncated_header_is_invalid_and_a_missing_one_is_a_normal_close() {
    let daemon = start_daemon("deadlines.read = \"1h\"\n");
    let mut number = 0;
    for address in daemon.addresses() {
        let header = &V1_HEADER[..30];
        let truncated =
            format!("bad-proxy-header (malformed PROXY header; 30 bytes came: \"{header}\"); 0 messages, 30");
        for (partial, verdict) in [
            ("P", "bad-proxy-header (malformed PROXY header; 1 byte came: \"P\"); 0 messages, 1"),
            (header, &*truncated),
            ("", "peer-closed; 0 messages, 0"),
        ] {
            number += 1;
            let mut peer = Peer::connect(&address);
            peer.send(partial);
            peer.shutdown();
            peer.expect_close();
            let end = wait_for_end(&daemon, number);
            assert!(end.contains(&format!("ended: {verdict} bytes in")), "{end}");
        }
    }
    // One that breaks is gone before anything is expected of it.
    let mut peer = daemon.connect();
    peer.send(&V1_HEADER[..30]);
    daemon.wait_for_log(&format!("connection {} on ", number + 1));
    peer.reset();
    let end = wait_for_end(&daemon, number + 1);
    assert!(end.contains("ended: peer-reset; 0 messages"), "{end}");
    daemon.stop();
}

#[test]
fn a_late_or_endless_header_ends_the_connection_at_the_read_deadline() {
    let daemon = start_daemon("deadlines.read = \"500ms\"\n");
    for (number, (partial, came)) in (1..).zip([
        ("", "nothing came)"),
        ("PROXY TCP4 192.0.2.1 ", "21 bytes came: \"PROXY TCP4 192.0.2.1 \")"),
        ("\r\n\r\n", r#"4 bytes came: "\r\n\r\n")"#),
    ]) {
        let start = now();
        let mut peer = daemon.connect();
        peer.send(partial);
        let took = peer.time_until_close(start);
        assert!(took >= Duration::from_millis(500), "{took:?}");
        peer.expect_close();
        drop(peer);
        let end = wait_for_end(&daemon, number);
        let expected = format!("ended: bad-proxy-header (no complete PROXY header in time; {came}; 0 messages");
        assert!(end.starts_with("info: ") && end.contains(&expected), "{end}, expected {expected}");
    }
    // More bytes do not extend it.
    let start = now();
    let mut peer = daemon.connect();
    for byte in V1_HEADER.bytes() {
        peer.receive_for(Duration::from_millis(50));
        if peer.stream().write_all(&[byte]).is_err() {
            break;
        }
    }
    peer.read_to_end();
    let end = wait_for_end(&daemon, 4);
    assert!(end.contains("ended: bad-proxy-header"), "{end}");
    assert!(start.elapsed() < common::TEST_TIMEOUT);
    // For messages, it is another one.
    let mut peer = daemon.connect();
    peer.send(V1_HEADER);
    peer.expect_silence(Duration::from_millis(700));
    peer.send("half a mess");
    peer.expect("server error:message not finished within 500ms\t");
    daemon.stop();
}

#[test]
fn the_idle_deadline_starts_with_the_header() {
    let daemon = start_daemon("deadlines.read = \"1h\"\ndeadlines.idle = \"500ms\"\n");
    let mut peer = daemon.connect();
    peer.expect_silence(Duration::from_millis(700));
    let start = now();
    peer.send(V1_HEADER);
    peer.expect("server error:no message within 500ms\t");
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
    daemon.stop();
}

#[test]
fn clients_are_limited_by_the_address_in_their_header() {
    let daemon = start_daemon("[limits]\nconnections_per_source = 3\n");
    let from = |client: &str| format!("PROXY TCP4 {client} 198.51.100.7 40123 8085\r\n");
    for address in daemon.addresses().iter().rev() {
        let served = |client: &str| {
            let mut peer = Peer::connect(address);
            peer.send(from(client));
            peer.exchange("served");
            peer
        };
        let mut peers: Vec<_> = (0..3).map(|_| served("192.0.2.1")).collect();
        let mut others: Vec<_> = (0..3).map(|_| served("192.0.2.2")).collect();
        let mut refused = Peer::connect(address);
        refused.send(from("192.0.2.1") + "a\t");
        refused.expect("server error:too many connections from this source (limit 3)\t");
        refused.expect_close();
        for peer in peers.iter_mut().chain(&mut others) {
            peer.exchange("still served");
        }
        drop(peers.pop());
        wait_until("there is room for another", || {
            let mut peer = Peer::connect(address);
            peer.send(from("192.0.2.1") + "a\t");
            peer.next_reply() == b"server got:a\t"
        });
        drop((peers, others));
        let line = daemon.wait_for_log("too-many");
        assert!(line.contains(" from 192.0.2.1:40123 "), "{line}");
        wait_until("they are all gone", || {
            let mut peers: Vec<_> = (0..3).map(|_| Peer::connect(address)).collect();
            peers.iter_mut().for_each(|peer| peer.send(from("192.0.2.1") + "a\t"));
            peers.iter_mut().all(|peer| peer.next_reply() == b"server got:a\t")
        });
    }
    daemon.stop();
}

#[test]
fn before_its_header_arrives_a_connection_counts_against_no_source() {
    let daemon = start_daemon("deadlines.read = \"1h\"\n[limits]\nconnections_per_source = 3\n");
    // There the source is our user.
    let address = &daemon.addresses()[1];
    let mut waiting: Vec<_> = (0..600).map(|_| Peer::connect(address)).collect();
    daemon.wait_for_log("connection 600 on ");
    for (number, peer) in waiting.iter_mut().enumerate() {
        peer.send(format!("PROXY TCP4 192.0.{}.{} 198.51.100.7 40123 8085\r\n", 2 + number / 250, number % 250));
    }
    for peer in &mut waiting {
        peer.exchange("served");
    }
    drop(waiting);
    // A connection whose header names no client counts for our user from then on.
    let mut unnamed: Vec<_> = (0..4).map(|_| Peer::connect(address)).collect();
    let (last, first) = unnamed.split_last_mut().expect("there are four");
    for peer in first {
        peer.send("PROXY UNKNOWN\r\n");
        peer.exchange("served");
    }
    last.send("PROXY UNKNOWN\r\na\t");
    last.expect("server error:too many connections from this source (limit 3)\t");
    last.expect_close();
    let mut named = Peer::connect(address);
    named.send(V1_HEADER);
    named.exchange("served");
    daemon.stop();
}

#[test]
fn a_quarter_of_all_connections_may_await_their_header_and_others_are_served_meanwhile() {
    let configuration = "[limits]\nconnections = 8\n[listener.proxied]\nproxy_protocol = \"required\"\n\
                         deadlines.read = \"1h\"\n";
    let daemon = Daemon::start_with(configuration, &["--listen", "proxied=127.0.0.1:0", "--listen", "127.0.0.1:0"]);
    let addresses = daemon.addresses();
    let mut waiting = [Peer::connect(&addresses[0]), Peer::connect(&addresses[0])];
    let line = daemon.wait_for_log("PROXY header");
    let expected = "PROXY header limit reached (2 connections, a quarter of limits.connections=8), new connections wait in the \
                    backlog";
    assert!(line.starts_with("warn: ") && line.contains(expected), "{line}");
    let mut third = Peer::connect(&addresses[0]);
    third.send([V1_HEADER, "a\t"].concat());
    third.expect_silence(Duration::from_millis(200));
    let mut others: Vec<_> = (0..6).map(|_| Peer::connect(&addresses[1])).collect();
    for peer in &mut others {
        peer.exchange("served");
    }
    drop(others);
    // A header that comes makes room.
    waiting[0].send([V1_HEADER, "a\t"].concat());
    waiting[0].expect("server got:a\t");
    third.expect("server got:a\t");
    daemon.stop();
}

#[test]
fn two_listeners_with_headers_wait_for_room_without_busy_looping() {
    let configuration = "[limits]\nconnections = 4\n[defaults]\nproxy_protocol = 'required'\ndeadlines.read = '1h'\n";
    let daemon = Daemon::start_with(configuration, &["--listen", "127.0.0.1:0", "--listen", "DIR/proxied"]);
    let addresses = daemon.addresses();
    // In the middle of a message, none of them is closed for another one.
    let mut holders: Vec<_> = (0..4)
        .map(|_| {
            let mut peer = Peer::connect(&addresses[0]);
            peer.send([V1_HEADER, "one\tha"].concat());
            peer.expect("server got:one\t");
            peer
        })
        .collect();
    let mut waiting: Vec<_> = addresses.iter().map(|address| Peer::connect(address)).collect();
    for peer in &mut waiting {
        peer.send([V1_HEADER, "later\t"].concat());
        peer.expect_silence(Duration::from_millis(100));
    }
    // Unless something else needs its time meanwhile, twice at most.
    wait_until("the daemon is idle", || {
        let before = daemon.cpu_nanos();
        holders[0].expect_silence(Duration::from_millis(500));
        daemon.cpu_nanos() - before < 100_000_000
    });
    holders.truncate(2);
    for peer in &mut waiting {
        peer.expect("server got:later\t");
    }
    daemon.stop();
}

#[test]
fn connections_without_a_header_hold_no_permits_while_they_are_closed() {
    let daemon = start_daemon("[limits]\nconnections = 1\n");
    let address = &daemon.addresses()[0];
    // They stay open on the client's side, so the daemon waits up to a second for each of them to go.
    let start = now();
    let mut wrong: Vec<_> = (0..60).map(|_| Peer::connect(address)).collect();
    for peer in &mut wrong {
        peer.send("wrong\t");
    }
    for peer in &mut wrong {
        peer.expect_close();
    }
    let mut right = Peer::connect(address);
    right.send(V1_HEADER);
    right.exchange("served");
    // One after the other, they would take a minute.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    drop(right);
    daemon.stop();
}

#[test]
fn messages_are_logged_with_the_client_from_the_header() {
    let daemon = start_daemon("log_messages = \"summary\"\n");
    let mut peer = daemon.connect();
    peer.send(V1_HEADER);
    peer.exchange("hello");
    let line = daemon.wait_for_log("hello");
    assert!(line.contains("message on connection 1 on echo from 192.0.2.1:40123: \"hello\""), "{line}");
    // When it is accepted, it is logged with the address that it comes from.
    assert!(daemon.wait_for_log("connection 1 on echo from 127.0.0.1:").starts_with("debug: "));
    daemon.stop();
}

#[test]
fn connections_that_wait_for_a_header_do_not_delay_the_exit() {
    let daemon = start_daemon("deadlines.read = \"1h\"\n[limits]\nconnections = 8\n");
    let mut waiting = [daemon.connect(), daemon.connect()];
    waiting[0].send(&V1_HEADER[..10]);
    daemon.wait_for_log("PROXY header limit reached (2 connections");
    let mut third = daemon.connect();
    third.send([V1_HEADER, "a\t"].concat());
    third.expect_silence(Duration::from_millis(200));
    waiting[1].shutdown();
    waiting[1].expect_close();
    third.expect("server got:a\t");
    let start = now();
    let log = daemon.stop();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(waiting[0].read_to_end(), b"");
    assert!(log.iter().any(|line| line.contains("connection 1 ") && line.contains("ended: shutdown")), "{log:#?}");
}

#[test]
fn a_listener_without_proxy_protocol_treats_headers_as_messages() {
    let configuration = "[listener.proxied]\nproxy_protocol = \"required\"\n";
    let daemon = Daemon::start_with(configuration, &["--listen", "127.0.0.1:0", "--listen", "proxied=127.0.0.1:0"]);
    let addresses = daemon.addresses();
    Peer::connect(&addresses[0]).exchange("PROXY UNKNOWN\r\n");
    let mut peer = Peer::connect(&addresses[1]);
    peer.send("PROXY UNKNOWN\r\na\t");
    peer.expect("server got:a\t");
    daemon.stop();
}

#[test]
fn a_reload_changes_proxy_protocol_for_new_connections() {
    let daemon = Daemon::start_with("[defaults]\nproxy_protocol = \"off\"\n", &["--listen", "127.0.0.1:0"]);
    let mut before = daemon.connect();
    before.exchange("a");
    let file = daemon.directory().join("echoed.toml");
    std::fs::write(file, "[defaults]\nproxy_protocol = \"required\"\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("reloaded");
    before.exchange(V1_HEADER);
    let mut after = daemon.connect();
    after.send([V1_HEADER, "a\t"].concat());
    after.expect("server got:a\t");
    let mut bare = daemon.connect();
    bare.send("a\t");
    bare.expect_close();
    daemon.stop();
}
