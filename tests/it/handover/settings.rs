//! What holds for restored connections: the current settings, and the limits as if they had always been there.

use std::time::Duration;

use rustix::process::Signal;

use super::{Peer, connection_outcomes};
use common::service::{FdStore, Service};

#[test]
fn restored_connections_use_the_new_settings() {
    let mut service = Service::start("[defaults]\nprefix = 'one:'\n");
    let mut peer = service.connect();
    peer.send("a\thalf");
    peer.expect("one:a\t");
    service.restart("[defaults]\nprefix = 'two:'\ndelimiter = ';'\n");
    peer.send(";\tx;");
    peer.expect("two:half;two:\tx;");
    service.daemon.stop();
}

#[test]
fn connections_of_a_removed_listener_are_drained_and_closed() {
    let mut service =
        Service::start_on(&["tcp:lines", "tcp:echo"], FdStore::Enabled, "[listener.lines]\nprefix = 'l:'\n");
    let mut lines = service.connect_to(0);
    let mut echo = service.connect_to(1);
    lines.send("a\thalf");
    lines.expect("l:a\t");
    echo.send("a\thalf");
    echo.expect("server got:a\t");
    service.stop(Signal::TERM);
    service.remove_socket("lines");
    service.start_next("");
    lines.expect_close();
    echo.send("\t");
    echo.expect("server got:half\t");
    service.daemon.wait_for_log("restored 1 connection from the previous process");
    service.daemon.wait_for_log("1 orphaned");
    service.daemon.stop();
}

#[test]
fn a_client_that_keeps_sending_to_a_removed_listener_is_cut_at_the_drain_timeout() {
    let configuration = "[service]\ndrain_timeout = '200ms'\n";
    let mut service = Service::start_on(&["unix:lines", "unix:echo"], FdStore::Enabled, configuration);
    let mut lines = service.connect_to(0);
    let mut echo = service.connect_to(1);
    lines.exchange("a");
    echo.exchange("a");
    service.stop(Signal::TERM);
    service.remove_socket("lines");
    service.start_next(configuration);
    lines.expect_close();
    // As long as anything comes, closing would destroy what is on its way.
    common::wait_until("it is cut", || std::io::Write::write_all(&mut &lines.stream(), b"x").is_err());
    echo.exchange("b");
    service.daemon.stop();
}

#[test]
fn restored_connections_beyond_a_lowered_limit_stay_and_are_counted() {
    let mut service = Service::start("[limits]\nconnections = 3\nreclaim_idle = 'off'\n");
    let mut peers: Vec<_> = (0..3).map(|_| service.connect()).collect();
    for peer in &mut peers {
        peer.exchange("a");
    }
    let mut new = service.connect();
    new.send("waits\t");
    let lower = "[limits]\nconnections = 2\nreclaim_idle = 'off'\n";
    assert_eq!(connection_outcomes(&service.restart(lower)), [3, 0, 0]);
    for peer in &mut peers {
        peer.exchange("b");
    }
    new.expect_silence(Duration::from_millis(100));
    peers.pop();
    new.expect_silence(Duration::from_millis(100));
    peers.pop();
    new.expect("server got:waits\t");
    service.daemon.stop();
}

#[test]
fn restored_connections_count_against_the_limit_of_their_source() {
    let configuration = |limit: usize| format!("[limits]\nconnections_per_source = {limit}\n");
    let mut service = Service::start_on(&["unix:echo"], FdStore::Enabled, &configuration(3));
    let mut peers: Vec<_> = (0..3).map(|_| service.connect()).collect();
    for peer in &mut peers {
        peer.exchange("a");
    }
    assert_eq!(connection_outcomes(&service.restart(&configuration(2)))[0], 3);
    for peer in &mut peers {
        peer.exchange("b");
    }
    expect_refusal(&service, 2);
    peers.truncate(1);
    // The daemon processes the end of the others soon.
    common::wait_until("there is room for one more", || {
        let mut peer = service.connect();
        peer.send("c\t");
        peer.next_reply() == b"server got:c\t"
    });
    service.daemon.stop();
}

fn expect_refusal(service: &Service, limit: usize) {
    let mut peer = service.connect();
    peer.expect(format!("server error:too many connections from this source (limit {limit})\t"));
    peer.expect_close();
}

#[test]
fn restored_messages_beyond_the_new_buffer_memory_get_an_error() {
    const SIZE: usize = 15_000;
    let mut service = Service::start("");
    let mut peers: Vec<_> = (0..3).map(|_| service.connect()).collect();
    for peer in &mut peers {
        peer.send([b'x'; SIZE]);
        peer.wait_until_read();
    }
    // Room for two of them.
    let small = "[limits]\nbuffer_memory = '40KiB'\n[defaults]\nmax_message = '20KiB'\n";
    assert_eq!(connection_outcomes(&service.restart(small)), [3, 0, 0]);
    let expected = format!("server got:{}\t", "x".repeat(SIZE)).into_bytes();
    let mut busy = 0;
    for peer in &mut peers {
        // A connection that is closed as `busy` may be gone already.
        peer.send_what_fits(b"\t");
        let reply = peer.next_reply();
        busy += usize::from(reply == b"server error:out of buffer memory\t");
        assert!(busy == 1 || reply == expected, "{}", reply.escape_ascii());
    }
    assert_eq!(busy, 1);
    service.daemon.stop();
}

#[test]
fn connections_are_drained_without_an_fd_store_with_handover_off_or_on_sigint() {
    let off = "[service]\nhandover = false\n";
    for (store, configuration, signal) in [
        (FdStore::Disabled, "", Signal::TERM),
        (FdStore::Enabled, off, Signal::TERM),
        (FdStore::Enabled, "", Signal::INT),
    ] {
        let mut service = Service::start_on(&["tcp:echo"], store, configuration);
        let mut peer = service.connect();
        peer.send("a\thalf");
        peer.expect("server got:a\t");
        let log = service.stop(signal);
        peer.expect_close();
        assert!(log.iter().any(|line| line.contains("stopped: 1 connections finished, 0 cut")), "{log:#?}");
        assert!(service.manager.stored_descriptors().is_empty());
        service.start_next(configuration);
        service.connect().exchange("new");
        service.daemon.stop();
    }
}

#[test]
fn a_reload_can_turn_the_handover_off() {
    let mut service = Service::start("");
    std::fs::write(service.daemon.directory().join("echoed.toml"), "").expect("the directory is ours");
    let mut peer = service.connect();
    peer.exchange("a");
    drop(peer);
    service.stop(Signal::INT);
    service.start_next("[service]\nhandover = true\n");
    let mut peer = service.connect();
    peer.exchange("a");
    let file = service.daemon.directory().join("echoed.toml");
    std::fs::write(file, "[service]\nhandover = false\n").expect("the directory is ours");
    service.daemon.signal(Signal::HUP);
    service.daemon.wait_for_log("info: reloaded");
    let log = service.stop(Signal::TERM);
    assert!(log.iter().any(|line| line.contains("stopped: 1 connections finished, 0 cut")), "{log:#?}");
    peer.expect_close();
}

#[test]
fn restored_connections_prevent_the_idle_exit() {
    let configuration = "[service]\nidle_exit = '300ms'\n";
    let mut service = Service::start(configuration);
    let mut peer: Peer = service.connect();
    peer.exchange("a");
    service.restart(configuration);
    peer.expect_silence(Duration::from_millis(600));
    peer.exchange("b");
    drop(peer);
    service.daemon.wait_for_log("no connection for 300ms (service.idle_exit)");
    assert!(service.daemon.wait().success());
}
