//! Callers that do not behave: what they may cost, and that others are answered meanwhile.

use std::io::Write;

use super::{Varlink, list, start};
use common::{Peer, ensure_nofile_limit};
use rustix::net::{SendFlags, send};

/// How much memory the daemon may take besides, in kB.
const MAX_MORE_MEMORY: u64 = 4 * 1024;

const LIST: &[u8] = b"{\"method\":\"io.echoed.Connections\",\"more\":true}\0";

/// A list is longer than what the socket takes, and so are the calls that come meanwhile.
#[test]
fn callers_that_read_no_replies_are_bounded_in_memory_and_time_and_others_are_answered() {
    const CONNECTIONS: usize = 2000;
    if !ensure_nofile_limit(3 * CONNECTIONS as u64) {
        return;
    }
    let (daemon, path) = start("[limits]\nconnections = 4000\n");
    let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| daemon.connect()).collect();
    common::wait_until("all are accepted", || list(&path, None).len() == CONNECTIONS);
    let before = daemon.status_number("VmRSS");
    let mut callers: Vec<_> = (0..12).map(|_| Varlink::connect(&path)).collect();
    for caller in &callers {
        // Until the daemon takes no more of it.
        while send(&caller.stream, &LIST.repeat(100), SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok() {}
    }
    for peer in &mut peers {
        peer.exchange("meanwhile");
    }
    assert_eq!(list(&path, None).len(), CONNECTIONS);
    let after = daemon.status_number("VmRSS");
    assert!(after < before + MAX_MORE_MEMORY, "{before} kB before, {after} kB after");
    // What comes until then is not read: each ends, in the middle of a list.
    for caller in &mut callers {
        common::wait_until("the caller is cut off", || caller.stream.write_all(LIST).is_err());
    }
    daemon.stop();
}

/// They hold all places only until they are silent for too long, and wait for each other in the backlog.
#[test]
fn a_thousand_connections_at_once_are_served_in_turn() {
    if !ensure_nofile_limit(4000) {
        return;
    }
    let (daemon, path) = start("");
    let mut callers: Vec<_> = (0..1000)
        .map(|number| {
            // The backlog is shorter: the others wait in connect(2).
            let path = path.clone();
            std::thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn(move || {
                    let mut caller = Varlink::connect(&path);
                    if number % 2 == 0 {
                        caller.send(b"garbage\0");
                        return caller.next_reply().is_none();
                    }
                    caller.call(r#"{"method":"io.echoed.Status"}"#)[0]["parameters"]["ready"] == true
                })
                .expect("there can be threads")
        })
        .collect();
    let mut peer = daemon.connect();
    (0..100).for_each(|_| peer.exchange("meanwhile"));
    for caller in callers.drain(..) {
        assert!(caller.join().expect("it does not panic"));
    }
    daemon.stop();
}

/// A list whose reader is gone, and a call whose caller is gone, end with it.
#[test]
fn callers_that_are_gone_free_their_places() {
    let (daemon, path) = start("");
    let _peers: Vec<Peer> = (0..20).map(|_| daemon.connect()).collect();
    // Otherwise some would be accepted after their descriptors were counted.
    common::wait_until("all are accepted", || list(&path, None).len() == 20);
    let before = daemon.descriptor_count();
    for _ in 0..200 {
        let mut caller = Varlink::connect(&path);
        caller.send(LIST);
        drop(caller);
    }
    common::wait_until("their sockets are closed", || daemon.descriptor_count() <= before);
    daemon.stop();
}
