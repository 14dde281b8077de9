//! Clients of the monitor that do not behave: they get an error or the end, and nothing else is disturbed.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::http::{Client, get};
use super::{address_of, metrics, start};
use common::{Daemon, Peer, now};

/// How much memory the daemon may take besides, in kB.
const MAX_MORE_MEMORY: u64 = 8 * 1024;

#[test]
fn what_is_not_http_1_gets_an_error_or_the_end() {
    let daemon = start("", &["monitor"]);
    let address = address_of(&daemon, "monitor");
    let tls_hello: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03garbage\r\n\r\n";
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        tls_hello,
        b"garbage\r\n\r\n",
        b"\r\n\r\n\r\nGET\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        &[0; 10_000],
    ] {
        let mut client = Client::connect(&address);
        client.send(bytes);
        if let Some(response) = client.response(true) {
            assert!((400..600).contains(&response.status), "{bytes:?}: {response:?}");
        }
        client.expect_close();
    }
    daemon.connect().exchange("aaaa");
    daemon.stop();
}

#[test]
fn a_header_has_8_kib_at_most() {
    let daemon = start("", &["monitor"]);
    let address = address_of(&daemon, "monitor");
    let mut client = Client::connect(&address);
    assert_eq!(client.get("/readyz", &format!("X: {}\r\n", "x".repeat(7 * 1024))).status, 200);
    let before = daemon.status_number("VmRSS");
    for headers in [format!("X: {}\r\n", "x".repeat(9 * 1024)), "X: y\r\n".repeat(1000)] {
        let mut client = Client::connect(&address);
        client.request("GET", "/readyz", &headers);
        assert_eq!(client.response(true).map(|response| response.status), Some(431), "{}", headers.len());
        client.expect_close();
    }
    // What exceeds it is not kept; the connection ends meanwhile.
    let mut stream = Peer::connect(&address).into_stream();
    let mut sent = std::io::Write::write_all(&mut stream, b"GET /readyz HTTP/1.1\r\nX: ");
    // More than all buffers of the kernel hold.
    for _ in 0..64 {
        sent = sent.and_then(|()| std::io::Write::write_all(&mut stream, &[b'x'; 1024 * 1024]));
    }
    assert!(sent.is_err(), "all of it was read");
    assert!(daemon.status_number("VmRSS") < before + MAX_MORE_MEMORY);
    daemon.stop();
}

#[test]
fn a_slow_header_ends_after_5_s() {
    let daemon = start("", &["monitor"]);
    let begun = now();
    let mut client = Client::connect(&address_of(&daemon, "monitor"));
    client.send("GET /readyz HTTP/1.1\r\n");
    client.expect_close();
    let took = begun.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(15)).contains(&took), "{took:?}");
    daemon.stop();
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let daemon = start("", &["monitor"]);
    let mut client = Client::connect(&address_of(&daemon, "monitor"));
    let paths = ["/readyz", "/nothing", "/metrics", "/livez"];
    client.send(paths.map(|path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).concat().repeat(20));
    for _ in 0..20 {
        assert_eq!(paths.map(|_| client.response(true).expect("it is answered").status), [200, 404, 200, 200]);
    }
    daemon.stop();
}

#[test]
fn a_client_that_reads_no_answers_is_bounded_in_memory() {
    let daemon = start("", &["monitor"]);
    let address = address_of(&daemon, "monitor");
    let before = daemon.status_number("VmRSS");
    let mut peers: Vec<_> = (0..60).map(|_| Peer::connect(&address)).collect();
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    // Until the daemon takes no more of it.
    for _ in 0..100 {
        let sent: usize = peers.iter_mut().map(|peer| peer.send_what_fits(request.as_bytes())).sum();
        if sent == 0 {
            break;
        }
    }
    daemon.connect().exchange("aaaa");
    let after = daemon.status_number("VmRSS");
    assert!(after < before + MAX_MORE_MEMORY, "{before} kB before, {after} kB after");
    drop(peers);
    assert_eq!(get(&address, "/readyz").status, 200);
    daemon.stop();
}

#[test]
fn a_thousand_scrapers_at_once_are_all_answered_and_messages_meanwhile() {
    if !common::ensure_nofile_limit(4000) {
        return;
    }
    let daemon = start("", &["monitor"]);
    let address = address_of(&daemon, "monitor");
    // The backlog is as long as the system allows, and the kernel tries again.
    let mut clients: Vec<_> = (0..1000).map(|_| Client::connect(&address)).collect();
    clients.iter_mut().for_each(|client| client.request("GET", "/metrics", ""));
    let mut peer = daemon.connect();
    (0..100).for_each(|_| peer.exchange("aaaa"));
    for client in &mut clients {
        assert_eq!(client.response(true).expect("it is answered").status, 200);
    }
    daemon.stop();
}

#[test]
fn descriptors_break_the_connection_to_the_monitor() {
    let daemon = Daemon::start_with(
        "[listener.monitor]\nrole = 'monitor'\n",
        &["--listen", "127.0.0.1:0", "--listen", "monitor=unix:DIR/monitor"],
    );
    let address = address_of(&daemon, "monitor");
    let stream = Peer::connect(&address).into_stream();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [stream.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let request = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";
    // Newer kernels refuse it.
    if sendmsg(&stream, &[IoSlice::new(request)], &mut ancillary, SendFlags::NOSIGNAL).is_ok() {
        let answer = std::io::Read::read(&mut &stream, &mut [0; 100]);
        assert!(matches!(answer, Ok(0) | Err(_)), "{answer:?}");
    }
    assert_eq!(get(&address, "/readyz").status, 200);
    assert!(!metrics(&daemon).is_empty());
    daemon.stop();
}
