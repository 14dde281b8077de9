//! What holds for connections that were carried: the settings of now, and limits as if they had always been there.

use std::time::Duration;

use rustix::process::Signal;

use super::service::{Service, Store};
use super::{Peer, fates};

#[test]
fn connections_go_on_by_the_settings_of_now() {
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
fn connections_of_a_listener_that_is_no_more_get_what_they_are_owed_and_end() {
    let mut service = Service::start_on(&["tcp:lines", "tcp:echo"], Store::Some, "[listener.lines]\nprefix = 'l:'\n");
    let mut lines = service.connect_to(0);
    let mut echo = service.connect_to(1);
    lines.send("a\thalf");
    lines.expect("l:a\t");
    echo.send("a\thalf");
    echo.expect("server got:a\t");
    service.end(Signal::TERM);
    service.remove_socket("lines");
    service.begin("");
    lines.expect_close();
    echo.send("\t");
    echo.expect("server got:half\t");
    service.daemon.wait_for_log("1 connections of the process before go on");
    service.daemon.wait_for_log("1 of listeners that are no more");
    service.daemon.stop();
}

#[test]
fn who_goes_on_sending_to_a_listener_that_is_no_more_is_cut_when_draining_would_end() {
    let configuration = "[service]\ndrain = '200ms'\n";
    let mut service = Service::start_on(&["unix:lines", "unix:echo"], Store::Some, configuration);
    let mut lines = service.connect_to(0);
    let mut echo = service.connect_to(1);
    lines.exchange("a");
    echo.exchange("a");
    service.end(Signal::TERM);
    service.remove_socket("lines");
    service.begin(configuration);
    lines.expect_close();
    // As long as anything comes, closing would destroy what is on its way.
    super::common::wait_until("it is cut", || std::io::Write::write_all(&mut &lines.stream(), b"x").is_err());
    echo.exchange("b");
    service.daemon.stop();
}

#[test]
fn nobody_is_sent_away_for_a_lower_limit_and_all_count() {
    let mut service = Service::start("[limits]\nconnections = 3\n");
    let mut peers: Vec<_> = (0..3).map(|_| service.connect()).collect();
    for peer in &mut peers {
        peer.exchange("a");
    }
    let mut new = service.connect();
    new.send("waits\t");
    let lower = "[limits]\nconnections = 2\n";
    assert_eq!(fates(&service.restart(lower)), [3, 0, 0]);
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
fn those_of_one_source_count_for_it() {
    let configuration = |limit: usize| format!("[limits]\nconnections_per_source = {limit}\n");
    let mut service = Service::start_on(&["unix:echo"], Store::Some, &configuration(3));
    let mut peers: Vec<_> = (0..3).map(|_| service.connect()).collect();
    for peer in &mut peers {
        peer.exchange("a");
    }
    assert_eq!(fates(&service.restart(&configuration(2)))[0], 3);
    for peer in &mut peers {
        peer.exchange("b");
    }
    refused(&service, 2);
    peers.truncate(1);
    // The end of the others is heard of soon.
    super::common::wait_until("there is room for one more", || {
        let mut peer = service.connect();
        peer.send("c\t");
        peer.next_reply() == b"server got:c\t"
    });
    service.daemon.stop();
}

fn refused(service: &Service, limit: usize) {
    let mut peer = service.connect();
    peer.expect(format!("server error:too many connections from this source (limit {limit})\t"));
    peer.expect_close();
}

#[test]
fn what_does_not_fit_into_the_memory_of_now_is_busy() {
    const SIZE: usize = 15_000;
    let mut service = Service::start("");
    let mut peers: Vec<_> = (0..3).map(|_| service.connect()).collect();
    for peer in &mut peers {
        peer.send([b'x'; SIZE]);
        peer.wait_until_read();
    }
    // Room for two of them.
    let small = "[limits]\nbuffer_memory = '40KiB'\n[defaults]\nmax_message = '20KiB'\n";
    assert_eq!(fates(&service.restart(small)), [3, 0, 0]);
    let expected = format!("server got:{}\t", "x".repeat(SIZE)).into_bytes();
    let mut busy = 0;
    for peer in &mut peers {
        // Who is busy may have left already.
        peer.send_what_fits(b"\t");
        let reply = peer.next_reply();
        busy += usize::from(reply == b"server error:out of buffer memory\t");
        assert!(busy == 1 || reply == expected, "{}", reply.escape_ascii());
    }
    assert_eq!(busy, 1);
    service.daemon.stop();
}

#[test]
fn without_a_store_or_where_it_is_not_wanted_connections_are_drained() {
    let off = "[service]\ncarry_connections = false\n";
    for (store, configuration, signal) in
        [(Store::None, "", Signal::TERM), (Store::Some, off, Signal::TERM), (Store::Some, "", Signal::INT)]
    {
        let mut service = Service::start_on(&["tcp:echo"], store, configuration);
        let mut peer = service.connect();
        peer.send("a\thalf");
        peer.expect("server got:a\t");
        let log = service.end(signal);
        peer.expect_close();
        assert!(log.iter().any(|line| line.contains("stopped: 1 connections finished, 0 cut")), "{log:#?}");
        assert!(service.manager.stored().is_empty());
        service.begin(configuration);
        service.connect().exchange("new");
        service.daemon.stop();
    }
}

#[test]
fn a_reload_decides_whether_connections_are_carried() {
    let mut service = Service::start("");
    std::fs::write(service.daemon.directory().join("echoed.toml"), "").expect("the directory is ours");
    let mut peer = service.connect();
    peer.exchange("a");
    drop(peer);
    service.end(Signal::INT);
    service.begin("[service]\ncarry_connections = true\n");
    let mut peer = service.connect();
    peer.exchange("a");
    let file = service.daemon.directory().join("echoed.toml");
    std::fs::write(file, "[service]\ncarry_connections = false\n").expect("the directory is ours");
    service.daemon.signal(Signal::HUP);
    service.daemon.wait_for_log("info: reloaded");
    let log = service.end(Signal::TERM);
    assert!(log.iter().any(|line| line.contains("stopped: 1 connections finished, 0 cut")), "{log:#?}");
    peer.expect_close();
}

/// A connection that was handed over is not one that nobody uses.
#[test]
fn a_process_with_nothing_but_carried_connections_is_in_use() {
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
