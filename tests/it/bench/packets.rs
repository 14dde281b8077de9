//! Packets: what is lost, late, wrong, there twice and overtaken is counted exactly, over sockets of all three kinds.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, SocketAddrAny, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, listen, recvmsg, send, sendto, socket_with,
};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{bench, cause, check_count};
use common::echoctl::{ExpectJson, Running, command, echoctl};
use common::{Daemon, TEST_TIMEOUT, wait_until};

/// A message that the server of the test has received.
struct Received<'a> {
    /// Counted from 0, over all sources.
    number: usize,
    /// Counted from 0, in the order of their first messages.
    source: usize,
    bytes: &'a [u8],
}

impl Received<'_> {
    /// Returns the right reply.
    fn reply(&self) -> Vec<u8> {
        [b"server got:", self.bytes].concat()
    }
}

/// A server of one kind (`udp`, `unixgram`, `seqpacket`).
struct Server {
    address: String,
    _directory: Option<TempDir>,
}

impl Server {
    /// Serves any number of sources: `answer` returns the packets that are sent to the source of each message; `None`
    /// closes the socket.
    fn start(kind: &str, answer: impl FnMut(&Received) -> Option<Vec<Vec<u8>>> + Send + 'static) -> Self {
        let answer = Answer { answer, number: 0, sources: 0 };
        if kind == "udp" {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("there is a free port");
            let address = format!("udp:{}", socket.local_addr().expect("it is bound"));
            thread::spawn(move || serve_datagrams(&socket.into(), answer));
            return Self { address, _directory: None };
        }
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("echo.sock");
        let address = format!("{kind}:{}", path.display());
        if kind == "unixgram" {
            let socket = UnixDatagram::bind(&path).expect("the path is free");
            thread::spawn(move || serve_datagrams(&socket.into(), answer));
        } else {
            serve_connections(&path, answer);
        }
        Self { address, _directory: Some(directory) }
    }
}

/// What the server answers, with what it has counted.
struct Answer<F> {
    answer: F,
    number: usize,
    sources: usize,
}

impl<F: FnMut(&Received) -> Option<Vec<Vec<u8>>>> Answer<F> {
    fn next(&mut self, source: usize, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
        let number = self.number;
        self.number += 1;
        (self.answer)(&Received { number, source, bytes })
    }
}

fn serve_datagrams(socket: &OwnedFd, mut answer: Answer<impl FnMut(&Received) -> Option<Vec<Vec<u8>>>>) {
    let mut sources: HashMap<String, usize> = HashMap::new();
    while let Some((packet, Some(from))) = receive(socket) {
        let count = sources.len();
        let source = *sources.entry(format!("{from:?}")).or_insert(count);
        let Some(replies) = answer.next(source, &packet) else { return };
        for reply in replies {
            // The client may be gone.
            let _ = sendto(socket, &reply, SendFlags::NOSIGNAL, &from);
        }
    }
}

fn serve_connections(path: &PathBuf, answer: Answer<impl FnMut(&Received) -> Option<Vec<Vec<u8>>> + Send + 'static>) {
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("there are such sockets");
    bind(&listener, &SocketAddrUnix::new(path).expect("it is short enough")).expect("the path is free");
    listen(&listener, 100).expect("it is bound");
    let answer = Arc::new(Mutex::new(answer));
    thread::spawn(move || {
        while let Ok(socket) = accept_with(&listener, SocketFlags::CLOEXEC) {
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                let mut source = None;
                while let Some((packet, _)) = receive(&socket) {
                    let mut answer = answer.lock().expect("no test has failed in it");
                    let source = *source.get_or_insert_with(|| {
                        answer.sources += 1;
                        answer.sources - 1
                    });
                    let Some(replies) = answer.next(source, &packet) else { return };
                    drop(answer);
                    for reply in replies {
                        // The client may be gone.
                        let _ = send(&socket, &reply, SendFlags::NOSIGNAL);
                    }
                }
            });
        }
    });
}

/// Receives a packet, of which none is empty; `None` at the end of a connection.
fn receive(socket: &OwnedFd) -> Option<(Vec<u8>, Option<SocketAddrAny>)> {
    let mut buffer = vec![0; 300_000];
    let mut nothing = RecvAncillaryBuffer::default();
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut nothing, RecvFlags::empty()).ok()?;
    assert!(!received.flags.contains(ReturnFlags::TRUNC));
    (received.bytes > 0).then(|| (buffer[..received.bytes].to_vec(), received.address))
}

const KINDS: [&str; 3] = ["udp", "unixgram", "seqpacket"];

/// Runs a load, and checks that its totals agree with each other.
#[track_caller]
fn bench_packets(code: i32, arguments: &[&str]) -> Value {
    let json = bench(code, arguments);
    let count = |key: &str| json[key].number();
    assert_eq!(count("sent"), count("answered") + count("lost"), "{json:?}");
    let unanswered: f64 = json["causes"].list().iter().map(|cause| cause["messages"].number()).sum();
    assert_eq!(count("lost"), unanswered, "{json:?}");
    let bars: f64 = json["histogram"].list().iter().map(|bar| bar["count"].number()).sum();
    assert_eq!(count("answered"), bars, "{json:?}");
    for (key, name) in [("late", "late"), ("duplicates", "duplicate"), ("wrong", "wrong-reply")] {
        assert_eq!(count(key), cause(&json, name).0, "{json:?}");
    }
    json
}

/// Checks how many messages were sent, answered and lost, and how many replies were late, duplicate, wrong, reordered.
#[track_caller]
fn check_totals(json: &Value, [sent, answered, lost]: [f64; 3], replies: [f64; 4]) {
    assert_eq!(["sent", "answered", "lost"].map(|key| json[key].number()), [sent, answered, lost], "{json:?}");
    let found = ["late", "duplicates", "wrong", "reordered"].map(|key| json[key].number());
    assert_eq!(found, replies, "{json:?}");
}

// --- Everything is answered --------------------------------------------------------------------------------------------

#[test]
fn every_packet_is_answered_by_the_daemon() {
    for kind in ["udp:127.0.0.1:0", "udp:[::1]:0", "unixgram:DIR/echo.sock", "seqpacket:DIR/echo.sock"] {
        let daemon = Daemon::start_with("[limits]\ndatagrams_per_source = 'off'\n", &["--listen", kind]);
        let address = &daemon.addresses()[0];
        for load in [
            &["--count", "1"][..],
            &["--count", "1000", "--connections", "7"],
            &["--count", "10007", "--connections", "9", "--depth", "4", "--threads", "3"],
            &["--count", "500", "--connections", "40", "--size", "12B"],
            &["--count", "100", "--connections", "2", "--size", "60KiB"],
            &["--count", "500", "--connections", "10", "--depth", "3", "--rate", "100000/s", "--threads", "2"],
            &["--count", "100", "--connections", "3", "--rate", "1000/s", "--no-verify"],
        ] {
            let json = bench_packets(0, &[load, &["--timeout", "20s", address]].concat());
            let count: f64 = load[1].parse().unwrap();
            check_count(&json, count);
            check_totals(&json, [count, count, 0.0], [0.0, 0.0, 0.0, json["reordered"].number()]);
            let size = json["load"]["size"].number();
            let bytes = ["bytes_sent", "bytes_received"].map(|key| json[key].number());
            assert_eq!(bytes, [count * size, count * (size + 11.0)]);
        }
        daemon.stop();
    }
}

#[test]
fn each_source_is_a_socket_and_each_message_differs() {
    for kind in KINDS {
        let (sender, received) = mpsc::channel();
        let server = Server::start(kind, move |message| {
            sender.send((message.source, message.bytes.to_vec())).unwrap();
            Some(vec![message.reply()])
        });
        let load = ["--count", "60", "--connections", "5", "--threads", "2", "--size", "40B", "--timeout", "20s"];
        check_count(&bench_packets(0, &[&load[..], &[&server.address]].concat()), 60.0);
        let received: Vec<_> = received.try_iter().collect();
        let (mut messages, mut sources) = (HashMap::new(), HashMap::new());
        for (source, bytes) in &received {
            assert_eq!(bytes.len(), 40);
            *messages.entry(bytes).or_insert(0) += 1;
            // The same socket has the same number in all its messages.
            assert_eq!(*sources.entry(source).or_insert(&bytes[..5]), &bytes[..5]);
        }
        assert_eq!((received.len(), messages.len(), sources.len()), (60, 60, 5), "{kind}");
    }
}

#[test]
fn report_tells_what_became_of_packets() {
    for (kind, name) in [("udp", "sources"), ("unixgram", "sources"), ("seqpacket", "connections")] {
        let server = Server::start(kind, |message| Some(vec![message.reply()]));
        let output = echoctl(&["bench", "--count", "20", "--connections", "2", "--timeout", "20s", &server.address]);
        let text = &output.check(0).stdout;
        for part in [
            &format!("{}: 2 {name}, 1 message of 16 B at once, 1 thread\n", server.address),
            "messages   20 answered in ",
            "           20 sent, 0 lost\nreplies    0 late, 0 duplicate, 0 wrong, 0 reordered\n",
            "errors     none\n",
        ] {
            assert!(text.contains(part), "no \"{part}\" in {text}");
        }
        let arguments = ["bench", "--count", "20", "--connections", "2", "--rate", "1000/s", &server.address];
        let text = echoctl(&arguments).check(0).stdout.clone();
        assert!(text.contains(&format!(": 2 {name}, messages of 16 B, 1 thread, 1,000/s wanted\n")), "{text}");
    }
}

#[test]
fn a_full_socket_is_waited_for() {
    // Many more messages than its queue has room for (net.unix.max_dgram_qlen).
    let server = Server::start("unixgram", |message| Some(vec![message.reply()]));
    let load = ["--count", "5000", "--depth", "2000", "--timeout", "50s", &server.address];
    check_count(&bench_packets(0, &load), 5000.0);
}

#[test]
fn nothing_is_sent_when_the_time_is_over() {
    // More sources than its queue has room for wait while it stands still, until after the end.
    let server = Server::start("unixgram", |message| {
        match message.number {
            0..5 => {}
            5 => thread::sleep(Duration::from_secs(1)),
            _ => thread::sleep(Duration::from_millis(2)),
        }
        Some(vec![message.reply()])
    });
    let load = ["--duration", "300ms", "--connections", "900", "--timeout", "20s", &server.address];
    let json = bench_packets(0, &load);
    assert_eq!(json["sent"].number(), json["answered"].number(), "{json:?}");
}

// --- Servers that misbehave --------------------------------------------------------------------------------------------

/// Answers 20 messages of one source, some of them badly.
fn answer_with_every_fault(message: &Received, earlier: &mut Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let right = message.reply();
    earlier.push(right.clone());
    let altered = |at: usize| {
        let mut reply = right.clone();
        reply[at] ^= 0x80;
        vec![reply]
    };
    match message.number {
        1 => vec![right.clone(), right],
        // It is sent with the next one.
        2 | 4 => Vec::new(),
        5 => vec![earlier[4].clone(), right],
        // The last byte, and one of the number.
        6 => altered(right.len() - 1),
        7 => altered(12),
        8 => vec![Vec::new(), right],
        10 => vec![earlier[3].clone(), right, earlier[3].clone()],
        // The reply to one that is sent later, and to one that had a wrong one.
        11 => vec![b"server got:0000000000130000".to_vec(), earlier[6].clone(), right],
        // A late one, again.
        12 => vec![earlier[4].clone(), right],
        _ => vec![right],
    }
}

fn every_fault_is_counted_exactly(kind: &str) {
    let mut earlier = Vec::new();
    let server = Server::start(kind, move |message| Some(answer_with_every_fault(message, &mut earlier)));
    let json = bench_packets(1, &["--count", "20", "--timeout", "2s", &server.address]);
    check_totals(&json, [20.0, 16.0, 4.0], [1.0, 5.0, 4.0, 0.0]);
    let (times, messages, example) = cause(&json, "lost");
    assert_eq!((times, messages, &*example), (3.0, 3.0, "no reply within 2s (--timeout)"), "{json:?}");
    let (times, messages, example) = cause(&json, "wrong-reply");
    assert_eq!((times, messages), (4.0, 1.0), "{json:?}");
    assert!(example.starts_with("expected \"server got:000000000006"), "{example}");
    let (times, messages, example) = cause(&json, "late");
    assert_eq!((times, messages, &*example), (1.0, 0.0, "a reply came after more than 2s (--timeout)"), "{json:?}");
    let (times, messages, example) = cause(&json, "duplicate");
    assert_eq!((times, messages), (5.0, 0.0), "{json:?}");
    assert!(
        example.starts_with("got \"server got:000000000001") && example.ends_with("\" more than once"),
        "{example}"
    );
}

#[test]
fn every_fault_is_counted_exactly_over_udp() {
    every_fault_is_counted_exactly("udp");
}

#[test]
fn every_fault_is_counted_exactly_over_unixgram() {
    every_fault_is_counted_exactly("unixgram");
}

#[test]
fn every_fault_is_counted_exactly_over_seqpacket() {
    every_fault_is_counted_exactly("seqpacket");
}

#[test]
fn lost_and_duplicate_packets_of_many_sources_are_counted_exactly_at_a_rate() {
    for kind in ["udp", "seqpacket"] {
        let server = Server::start(kind, |message| {
            let copies = if message.number % 10 == 3 { 0 } else { 1 + usize::from(message.number % 7 == 1) };
            Some(vec![message.reply(); copies])
        });
        let load = ["--rate", "200/s", "--count", "400", "--connections", "16", "--threads", "2", "--timeout", "3s"];
        let json = bench_packets(1, &[&load[..], &[&server.address]].concat());
        let duplicates = (0..400).filter(|number| number % 10 != 3 && number % 7 == 1).count();
        check_totals(&json, [400.0, 360.0, 40.0], [0.0, duplicates as f64, 0.0, 0.0]);
        assert!(json["load"].is_null_at("depth"), "{json}");
    }
}

#[test]
fn overtaken_replies_are_counted_and_are_not_an_error() {
    for kind in KINDS {
        let mut held = Vec::new();
        let server = Server::start(kind, move |message| {
            let right = message.reply();
            Some(match message.number % 4 {
                1 => {
                    held = right;
                    Vec::new()
                }
                2 => vec![right, std::mem::take(&mut held)],
                _ => vec![right],
            })
        });
        let json = bench_packets(0, &["--count", "40", "--depth", "4", "--timeout", "20s", &server.address]);
        check_totals(&json, [40.0, 40.0, 0.0], [0.0, 0.0, 0.0, 10.0]);
    }
}

#[test]
fn reply_that_is_received_after_its_time_is_late() {
    let (sender, pid) = mpsc::channel();
    let pid = Mutex::new(pid);
    let server = Server::start("udp", move |message| {
        let pid = pid.lock().unwrap().recv().unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        wait_until("it is stopped", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
            stat.rsplit(") ").next().is_some_and(|state| state.starts_with('T'))
        });
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(2500));
            kill_process(pid, Signal::CONT).unwrap();
        });
        // It finds this when it runs again, together with its timer.
        Some(vec![message.reply()])
    });
    let load = ["bench", "--json", "--count", "1", "--timeout", "2s", &server.address];
    let running = Running::start(&mut command(&load));
    sender.send(running.pid()).unwrap();
    let json = running.wait().check(1).json();
    check_totals(&json, [1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn reply_to_another_source_is_wrong() {
    let mut first = Vec::new();
    let server = Server::start("udp", move |message| {
        // The second source gets the reply of the first.
        if message.source == 0 {
            first = message.reply();
            return Some(Vec::new());
        }
        Some(vec![first.clone()])
    });
    let json = bench_packets(1, &["--count", "2", "--connections", "2", "--timeout", "500ms", &server.address]);
    check_totals(&json, [2.0, 0.0, 2.0], [0.0, 0.0, 1.0, 0.0]);
    assert_eq!(cause(&json, "lost").1, 2.0, "{json:?}");
}

#[test]
fn without_verification_packets_are_still_told_apart() {
    let server = || {
        Server::start("udp", |message| {
            let mut reply = message.reply();
            match message.number {
                1 => reply[25] ^= 1,
                2 => reply.push(b'x'),
                3 => return Some(vec![reply.clone(), reply]),
                _ => {}
            }
            Some(vec![reply])
        })
    };
    let load = ["--count", "10", "--timeout", "20s"];
    let json = bench_packets(1, &[&load[..], &["--no-verify", &server().address]].concat());
    check_totals(&json, [10.0, 9.0, 1.0], [0.0, 1.0, 1.0, 0.0]);
    let json = bench_packets(1, &[&load[..], &[&server().address]].concat());
    check_totals(&json, [10.0, 8.0, 2.0], [0.0, 1.0, 2.0, 0.0]);
}

#[test]
fn wrong_prefix_does_not_wait_for_the_timeout() {
    for kind in KINDS {
        let server = Server::start(kind, |message| Some(vec![message.bytes.to_vec()]));
        let json = bench_packets(1, &["--count", "500", "--timeout", "20s", &server.address]);
        check_totals(&json, [500.0, 0.0, 500.0], [0.0, 0.0, 500.0, 0.0]);
        assert!(json["seconds"].number() < 20.0, "{json:?}");
        let json = bench_packets(0, &["--count", "500", "--timeout", "20s", "--prefix", "", &server.address]);
        check_count(&json, 500.0);
    }
}

#[test]
fn packets_without_end_do_not_keep_bench_from_ending() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = format!("udp:{}", socket.local_addr().unwrap());
    let stopped = Arc::new(AtomicBool::new(false));
    let is_stopped = Arc::clone(&stopped);
    let flood = thread::spawn(move || {
        let (_, client) = socket.recv_from(&mut [0; 100]).unwrap();
        // From several threads, so that more comes than one can receive.
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !is_stopped.load(Ordering::Relaxed) {
                        // The client may be gone.
                        let _ = socket.send_to(&[b'x'; 12], client);
                    }
                });
            }
        });
    });
    let json = bench_packets(1, &["--count", "3", "--timeout", "300ms", &address]);
    stopped.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    assert_eq!(["sent", "lost"].map(|key| json[key].number()), [3.0, 3.0], "{json:?}");
    assert!(json["wrong"].number() > 0.0, "{json:?}");
}

#[test]
fn ended_connections_of_packets_are_counted_and_replaced() {
    let server = Server::start("seqpacket", |message| (message.number % 2 == 0).then(|| vec![message.reply()]));
    let json = bench_packets(1, &["--count", "20", &server.address]);
    check_totals(&json, [20.0, 10.0, 10.0], [0.0; 4]);
    let (times, messages, example) = cause(&json, "closed");
    assert_eq!((times, messages, &*example), (10.0, 10.0, "the server ended the connection"), "{json:?}");

    // While many are on their way.
    let server = Server::start("seqpacket", |message| (message.number % 50 < 49).then(|| vec![message.reply()]));
    let json = bench_packets(1, &["--count", "3000", "--depth", "1000", "--connections", "3", &server.address]);
    assert_eq!((json["sent"].number(), json["wrong"].number()), (3000.0, 0.0), "{json:?}");

    let server = Server::start("seqpacket", |message| {
        Some(vec![if message.number == 5 { b"server error:out of buffer memory".to_vec() } else { message.reply() }])
    });
    let json = bench_packets(1, &["--count", "6", &server.address]);
    let (times, messages, example) = cause(&json, "server-error");
    assert_eq!((times, messages, json["answered"].number()), (1.0, 1.0, 5.0), "{json:?}");
    assert_eq!(example, "the server says: out of buffer memory");
}

// --- A rate ------------------------------------------------------------------------------------------------------------

#[test]
fn lost_packet_delays_none_after_it_at_a_rate() {
    let server = Server::start("udp", |_| Some(Vec::new()));
    let load = ["--rate", "100/s", "--duration", "500ms", "--timeout", "1s"];
    let json = bench_packets(1, &[&load[..], &[&server.address]].concat());
    let (sent, unsent) = (json["sent"].number(), json["unsent"].number());
    assert!(sent > 10.0 && sent + unsent == 50.0, "{json:?}");
    // Unless so few may be on their way.
    let json = bench_packets(1, &[&load[..], &["--depth", "1", &server.address]].concat());
    assert_eq!(json["sent"].number(), 1.0, "{json:?}");
    assert!(json["unsent"].number() >= 49.0, "{json:?}");
}

#[test]
fn stall_of_the_server_shows_in_the_percentiles_of_packets() {
    for kind in KINDS {
        // Whether a message is sent when it is due, or waits until there is room, its latency is the same.
        for depth in [&[][..], &["--depth", "1"]] {
            // Half of the messages are due while it stands still.
            let server = Server::start(kind, |message| {
                if message.number == 100 {
                    thread::sleep(Duration::from_secs(1));
                }
                Some(vec![message.reply()])
            });
            let load = ["--rate", "100/s", "--count", "200", "--timeout", "20s", &server.address];
            let json = bench_packets(0, &[depth, &load].concat());
            check_count(&json, 200.0);
            let latency = |key| json["latency_us"][key].number();
            assert!(latency("max") >= 999_000.0 && latency("p90") >= 600_000.0, "{kind} {depth:?}: {json:?}");
        }
    }
}

#[test]
fn warm_up_of_packets_is_counted_apart() {
    let server = Server::start("udp", |message| Some(vec![message.reply()]));
    let load = ["--duration", "300ms", "--warm-up", "200ms", "--connections", "4", "--timeout", "20s"];
    let json = bench_packets(0, &[&load[..], &[&server.address]].concat());
    let (warm_up, sent) = (&json["warm_up"], json["sent"].number());
    assert!(sent > 0.0 && warm_up["sent"].number() > 0.0, "{json:?}");
    assert_eq!(warm_up["sent"].number(), warm_up["answered"].number(), "{json:?}");
}

// --- No server ---------------------------------------------------------------------------------------------------------

#[test]
fn load_does_not_begin_where_no_socket_listens() {
    let hint = "Connection refused; does a server listen there?\n";
    let address = format!("udp:{}", UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    for load in [&["--threads", "2", "--connections", "5"][..], &["--rate", "1/s"], &["--warm-up", "1h"]] {
        let output = echoctl(&[&["bench", "--json"], load, &[&*address]].concat());
        output.check_failure(2, &format!("echoctl: cannot connect to {address}: {hint}"));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    drop(UnixDatagram::bind(&path).unwrap());
    for kind in ["unixgram", "seqpacket"] {
        let address = format!("{kind}:{}", path.display());
        echoctl(&["bench", &address]).check_failure(2, &format!("echoctl: cannot connect to {address}: {hint}"));
        let error = format!("cannot connect to {address}/x: Not a directory");
        echoctl(&["bench", &format!("{address}/x")]).check_failure(2, &error);
    }
}

#[test]
fn datagrams_go_to_the_address_of_the_host_where_a_socket_listens() {
    // Where localhost has two addresses, the one at which none listens may come first.
    let server = Server::start("udp", |message| Some(vec![message.reply()]));
    let port = server.address.rsplit(':').next().unwrap();
    let address = format!("udp:localhost:{port}");
    let load = ["--count", "100", "--connections", "3", "--threads", "2", "--timeout", "20s", &address];
    check_count(&bench_packets(0, &load), 100.0);
}

#[test]
fn server_that_goes_is_reported_by_what_it_means() {
    let server = Server::start("udp", |message| (message.number < 3).then(|| vec![message.reply()]));
    let json = bench_packets(1, &["--count", "6", "--timeout", "1s", &server.address]);
    // It closes its socket when the fourth comes; to the two after that, no socket listens.
    check_totals(&json, [6.0, 3.0, 3.0], [0.0; 4]);
    assert_eq!(cause(&json, "lost").1, 3.0, "{json:?}");
    let (times, messages, example) = cause(&json, "refused");
    assert_eq!((messages, &*example), (0.0, "no socket listens there (Connection refused)"), "{json:?}");
    assert!((1.0..=3.0).contains(&times), "{json:?}");

    let server = Server::start("unixgram", |message| (message.number < 3).then(|| vec![message.reply()]));
    let timeouts = ["--timeout", "500ms", "--connect-timeout", "300ms", &server.address];
    let json = bench_packets(1, &[&["--count", "1000000"], &timeouts[..]].concat());
    assert_eq!(json["answered"].number(), 3.0, "{json:?}");
    let (times, messages, example) = cause(&json, "connect-refused");
    assert!(times >= 1.0 && messages == 0.0 && example == "cannot connect: Connection refused", "{json:?}");
}

// --- Ctrl-C, and the command line --------------------------------------------------------------------------------------

#[test]
fn ctrl_c_ends_a_load_of_packets_with_what_was_counted() {
    for kind in KINDS {
        let (sender, seen) = mpsc::channel();
        let server = Server::start(kind, move |_| {
            // The test waits for the first two.
            let _ = sender.send(());
            Some(Vec::new())
        });
        let load = ["bench", "--json", "--duration", "1h", "--timeout", "1h", "--connections", "2", &server.address];
        let running = Running::start(&mut command(&load));
        seen.recv_timeout(TEST_TIMEOUT).unwrap();
        seen.recv_timeout(TEST_TIMEOUT).unwrap();
        running.interrupt();
        let json = running.wait().check(1).json();
        assert!(json["interrupted"].is_true());
        check_totals(&json, [2.0, 0.0, 2.0], [0.0; 4]);
        assert_eq!(cause(&json, "unanswered").1, 2.0, "{json:?}");
    }
}

#[test]
fn a_size_that_packets_cannot_have_is_refused() {
    for (size, address, error) in [
        (
            "11B",
            "udp:127.0.0.1:1",
            "--size 11B is too short: each packet has its number in it, so it has at least 12 bytes",
        ),
        ("65508B", "udp:127.0.0.1:1", "--size 65508B does not fit into one datagram, which has at most 65507 bytes"),
        ("65500B", "udp:127.0.0.1:1", "the reply to --size 65500B would have 65511 bytes with the prefix"),
        ("1GiB", "udp:127.0.0.1:1", "does not fit into one datagram"),
    ] {
        echoctl(&["bench", "--size", size, address]).check_failure(2, error);
    }
    for kind in ["unixgram", "seqpacket"] {
        let server = Server::start(kind, |message| Some(vec![message.reply()]));
        for (size, error) in [("10MiB", "does not fit into one packet, which has at most "), ("0B", "is too short")] {
            echoctl(&["bench", "--size", size, &server.address]).check_failure(2, error);
        }
    }
    let server = Server::start("udp", |message| Some(vec![message.bytes.to_vec()]));
    let longest = ["--size", "65507B", "--prefix", "", "--count", "3", "--timeout", "20s", &server.address];
    check_count(&bench_packets(0, &longest), 3.0);
}
