//! Clients that hold all permits and send nothing: others are served all the same, and no message or reply is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::io::ioctl_fionread;
use rustix::process::Signal;

use common::packets::PacketPeer;
use common::{self, Daemon, Peer, ensure_nofile_limit};

/// How long another client may have to wait, whatever holds the places.
const SOON: Duration = Duration::from_secs(5);

/// The final reply to a connection that was closed for another client.
const RECLAIMED: &str = "server error:connection reclaimed, the server is full";

#[test]
fn another_client_is_served_while_idle_connections_hold_all_places() {
    if !ensure_nofile_limit(9000) {
        return;
    }
    let addresses = ["127.0.0.1:0", "DIR/stream", "seqpacket:DIR/packets"];
    let limits = "[limits]\nconnections_per_source = 0\n";
    let daemon = Daemon::start_with(limits, &addresses.map(|address| ["--listen", address]).concat());
    let [tcp, unix, packets] = daemon.addresses().try_into().expect("there are three");
    let mut holders: Vec<Peer> = (0..4096).map(|_| Peer::connect(&tcp)).collect();
    holders[4095].exchange("the last one is served");
    let (mut others, mut packet_peers) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        for address in [&tcp, &unix] {
            let start = common::now();
            let mut other = Peer::connect(address);
            other.exchange("served");
            assert!(start.elapsed() < SOON, "{address}: {:?}", start.elapsed());
            others.push(other);
        }
        let start = common::now();
        let other = PacketPeer::connect(&packets);
        other.exchange("served");
        assert!(start.elapsed() < SOON, "{packets}: {:?}", start.elapsed());
        packet_peers.push(other);
    }
    // The longest idle ones were closed, with a reason.
    assert_eq!(holders[0].read_to_end(), format!("{RECLAIMED}\t").into_bytes());
    assert_eq!(holders[59].read_to_end(), format!("{RECLAIMED}\t").into_bytes());
    holders[60].exchange("still served");
    holders[4095].exchange("still served");
    daemon.stop();
}

#[test]
fn idle_connections_of_packets_do_not_hold_places_either() {
    let limits = "[limits]\nconnections = 20\nconnections_per_source = 0\n";
    let daemon = Daemon::start_with(limits, &["--listen", "seqpacket:DIR/packets", "--listen", "127.0.0.1:0"]);
    let [packets, tcp] = daemon.addresses().try_into().expect("there are two");
    let holders: Vec<_> = (0..20).map(|_| PacketPeer::connect(&packets)).collect();
    holders[19].exchange("the last one is served");
    let start = common::now();
    let mut others: Vec<_> = (0..5).map(|_| Peer::connect(&tcp)).collect();
    others.iter_mut().for_each(|peer| peer.exchange("served"));
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    let closed: Vec<_> = holders.iter().filter(|peer| ioctl_fionread(peer.fd()).expect("it is a socket") > 0).collect();
    assert_eq!(closed.len(), 5);
    for peer in closed {
        peer.expect(RECLAIMED);
        peer.expect_close();
    }
    daemon.stop();
}

/// A daemon with four places for one source, all of which are held; and its address.
fn start_full(configuration: &str) -> (Daemon, String, Vec<Peer>) {
    let configuration = format!("[service]\nworkers = 2\n[limits]\nconnections = 4\n{configuration}");
    let daemon = Daemon::start_with(&configuration, &["--listen", "127.0.0.1:0"]);
    let address = daemon.addresses().remove(0);
    let mut holders: Vec<_> = (0..4).map(|_| Peer::connect(&address)).collect();
    holders.iter_mut().for_each(|peer| peer.exchange("holder"));
    (daemon, address, holders)
}

#[test]
fn only_an_idle_connection_is_closed_for_another_client() {
    let (daemon, address, mut holders) = start_full("[defaults.deadlines]\nread = '10min'\nwrite = '10min'\n");
    // In the middle of a message; owed replies; and one that is idle, between two that are not.
    holders[0].send("in the middle");
    holders[1].send_what_fits(&"many replies\t".repeat(2_000_000).into_bytes());
    holders[3].send("of a message");
    holders[0].wait_until_read();
    holders[3].wait_until_read();
    Peer::connect(&address).exchange("served");
    assert_eq!(holders[2].read_to_end(), format!("{RECLAIMED}\t").into_bytes());
    holders[0].send("\t");
    holders[0].expect("server got:in the middle\t");
    holders[3].send("\t");
    holders[3].expect("server got:of a message\t");
    let lines = daemon.wait_for_log_times("ended: reclaimed", 1);
    assert_eq!(lines.len(), 1);
    daemon.stop();
}

#[test]
fn no_connection_is_closed_for_a_client_that_is_refused() {
    let refusal = "server error:too many connections from this source (limit 1)";
    // All users count, and no loopback address does.
    let limits = "[service]\nworkers = 2\n[limits]\nconnections = 5\nconnections_per_source = 1\n";
    let addresses = ["DIR/stream", "seqpacket:DIR/packets", "127.0.0.1:0"];
    let daemon = Daemon::start_with(limits, &addresses.map(|address| ["--listen", address]).concat());
    let [unix, packets, tcp] = daemon.addresses().try_into().expect("there are three");
    let mut first = Peer::connect(&unix);
    let mut holders: Vec<_> = (0..4).map(|_| Peer::connect(&tcp)).collect();
    holders.iter_mut().chain([&mut first]).for_each(|peer| peer.exchange("holder"));
    for _ in 0..20 {
        assert_eq!(Peer::connect(&unix).read_to_end(), format!("{refusal}\t").into_bytes());
        PacketPeer::connect(&packets).expect(refusal);
    }
    let start = common::now();
    holders.iter_mut().chain([&mut first]).for_each(|peer| peer.exchange("still served"));
    Peer::connect(&tcp).exchange("served");
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    drop((first, holders));
    let log = daemon.stop();
    assert_eq!(log.iter().filter(|line| line.contains("ended: reclaimed")).count(), 1, "{log:#?}");
}

#[test]
fn no_connection_of_a_listener_without_an_idle_deadline_is_closed_for_another_client() {
    let (daemon, address, mut holders) = start_full("[defaults]\ndeadlines.idle = 'off'\n");
    let mut waiting = Peer::connect(&address);
    waiting.send("later\t");
    waiting.expect_silence(Duration::from_secs(2));
    holders.iter_mut().for_each(|peer| peer.exchange("still there"));
    holders.pop();
    waiting.expect("server got:later\t");
    daemon.stop();
}

#[test]
fn a_message_that_was_not_read_yet_keeps_its_connection_from_being_closed_for_another_client() {
    let (daemon, address, mut holders) = start_full("");
    daemon.signal(Signal::STOP);
    for holder in &mut holders[..3] {
        holder.send("just in time\t");
    }
    let mut other = Peer::connect(&address);
    other.send("served\t");
    daemon.signal(Signal::CONT);
    other.expect("server got:served\t");
    for holder in &mut holders[..3] {
        holder.expect("server got:just in time\t");
    }
    assert_eq!(holders[3].read_to_end(), format!("{RECLAIMED}\t").into_bytes());
    daemon.stop();
}

/// Connects again and again, has a message answered each time, and keeps the connection for a moment. Returns how often, when it
/// is to stop.
fn come_and_go(address: &str, stop: &AtomicBool) -> usize {
    let mut count = 0;
    loop {
        let mut peer = Peer::connect(address);
        // It is never idle.
        peer.send("a\tb");
        peer.expect("server got:a\t");
        thread::sleep(Duration::from_millis(20));
        count += 1;
        // Not before: on a busy machine it may begin late.
        if stop.load(Ordering::Relaxed) {
            return count;
        }
    }
}

#[test]
fn clients_that_come_and_go_do_not_keep_a_load_balancer_out_of_a_full_server() {
    let settings = "[limits]\nconnections = 4\n[defaults]\ndeadlines.read = 'off'\n\
                    [listener.proxied]\nproxy_protocol = 'required'\n";
    let addresses = ["plain=127.0.0.1:0", "proxied=127.0.0.1:0"];
    let daemon = Daemon::start_with(settings, &addresses.map(|address| ["--listen", address]).concat());
    let [plain, proxied] = daemon.addresses().try_into().expect("there are two");
    let busy = [0; 3].map(|_| {
        let mut peer = Peer::connect(&plain);
        peer.send("a\tb");
        peer.expect("server got:a\t");
        peer
    });
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let others: Vec<_> = (0..4).map(|_| scope.spawn(|| come_and_go(&plain, &stop))).collect();
        for _ in 0..3 {
            let mut balancer = Peer::connect(&proxied);
            balancer.send("PROXY TCP4 192.0.2.9 198.51.100.7 40123 8085\r\n");
            balancer.exchange("served");
        }
        stop.store(true, Ordering::Relaxed);
        let served: usize = others.into_iter().map(|other| other.join().expect("each reply came")).sum();
        assert!(served > 0);
    });
    drop(busy);
    daemon.stop();
}
