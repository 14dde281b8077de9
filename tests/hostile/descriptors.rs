//! Descriptors that peers send (SCM_RIGHTS, unix(7)): closing one may block for as long as its sender likes. No client
//! notices, on this kernel and on one that cannot refuse them.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::libc;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, set_socket_passcred};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname, listen,
    recv, send, sendto, socket_with,
};
use rustix::process::Signal;

use common::descriptors::send_descriptors;
use common::packets::count_dropped;
use common::service::{FdStore, Service};
use common::service_manager::activated_command;
use common::{self, Daemon, Peer, find_program, kernel, skip_test, wait_until};

/// The kinds of sockets with connections.
const KINDS: [SocketType; 2] = [SocketType::STREAM, SocketType::SEQPACKET];

/// A listener in the abstract namespace that no process serves yet, and a TCP listener beside it.
struct Sockets {
    kind: SocketType,
    unix: OwnedFd,
    tcp: TcpListener,
}

impl Sockets {
    fn new(kind: SocketType) -> Self {
        let unix = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .expect("sockets can be made and connected");
        // A name that the kernel chooses (unix(7), autobind).
        bind(&unix, &rustix::net::SocketAddrUnix::new_unnamed()).expect("sockets can be made and connected");
        if kind != SocketType::DGRAM {
            listen(&unix, 100).expect("sockets can be made and connected");
        }
        Self { kind, unix, tcp: TcpListener::bind("127.0.0.1:0").expect("sockets can be made and connected") }
    }

    fn connect(&self) -> Client {
        let address = SocketAddrUnix::try_from(getsockname(&self.unix).expect("sockets can be made and connected"))
            .expect("sockets can be made and connected");
        Client::connect(self.kind, &address)
    }

    fn tcp(&self) -> Peer {
        Peer::connect(&self.tcp.local_addr().expect("sockets can be made and connected").to_string())
    }

    /// Starts a daemon with one worker on these sockets: on a kernel that can refuse descriptors, or as on one that cannot.
    /// `None` if the latter cannot be tried.
    fn start(&self, kernel: Kernel, configuration: &str) -> Option<Daemon> {
        self.start_with_wrapper("", kernel, configuration)
    }

    /// The same, run by a program that sets something before.
    fn start_with_wrapper(&self, wrapper: &str, kernel: Kernel, configuration: &str) -> Option<Daemon> {
        let sockets = vec![
            self.unix.try_clone().expect("sockets can be made and connected"),
            self.tcp.try_clone().expect("sockets can be made and connected").into(),
        ];
        let mut command = activated_command("3<&0 4<&1", sockets, "echo:echo");
        command.env("TEST_WRAPPER", format!("{wrapper} {}", kernel.wrapper()?));
        let configuration = format!("[service]\nworkers = 1\n{configuration}");
        let daemon = Daemon::spawn_with_stdio(&mut command, &configuration, &[]);
        daemon.wait_for_log_times("listening on", 2);
        Some(daemon)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    This,
    /// Before Linux 6.16.
    Old,
}

impl Kernel {
    /// Returns a command that runs another one as on this kernel. `None` if that cannot be tried.
    fn wrapper(self) -> Option<String> {
        if self == Self::This {
            return Some(String::new());
        }
        let Some(python) = find_program("python3") else {
            skip_test("descriptors on old kernels: python3 is not installed");
            return None;
        };
        Some(format!("{} {}", python.display(), concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile/old_kernel.py")))
    }
}

/// A client on the Unix socket.
struct Client {
    stream: UnixStream,
    kind: SocketType,
}

impl Client {
    fn connect(kind: SocketType, address: &SocketAddrUnix) -> Self {
        let client = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
            .expect("sockets can be made and connected");
        connect(&client, address).expect("sockets can be made and connected");
        let stream = UnixStream::from(client);
        stream.set_read_timeout(Some(common::TEST_TIMEOUT)).expect("sockets can be made and connected");
        Self { stream, kind }
    }

    fn message(&self, text: &str) -> String {
        if self.kind == SocketType::STREAM { format!("{text}\t") } else { text.to_owned() }
    }

    /// Sends a message, with descriptors of which this process keeps no copy.
    fn send_with(&self, text: &str, descriptors: Vec<OwnedFd>) -> Result<(), Errno> {
        let message = self.message(text);
        let result = send_descriptors(&self.stream, message.as_bytes(), &descriptors, SendFlags::empty());
        if result.is_err() {
            // This process is not to wait for them either.
            for descriptor in &descriptors {
                let _ = set_socket_linger(descriptor, None);
            }
        }
        // If the daemon was faster, this one is the last, and its close blocks: not the test.
        thread::spawn(move || drop(descriptors));
        result
    }

    fn send(&self, text: &str) {
        send(&self.stream, self.message(text).as_bytes(), SendFlags::NOSIGNAL)
            .expect("sockets can be made and connected");
    }

    fn send_header(&self) {
        send(&self.stream, b"PROXY UNKNOWN\r\n", SendFlags::NOSIGNAL).expect("sockets can be made and connected");
    }

    fn expect(&mut self, text: &str) {
        let expected = self.message(&format!("server got:{text}"));
        let mut reply = vec![0; expected.len()];
        self.stream.read_exact(&mut reply).unwrap_or_else(|error| panic!("no reply to {text}: {error}"));
        assert_eq!(String::from_utf8_lossy(&reply), expected);
    }

    fn exchange(&mut self, text: &str) {
        self.send(text);
        self.expect(text);
    }
}

/// A TCP connection whose last close(2) blocks for an hour, unless its receiver goes away.
struct Blocker {
    receiver: TcpStream,
}

impl Blocker {
    fn new() -> (Self, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("sockets can be made and connected");
        let sender = TcpStream::connect(listener.local_addr().expect("sockets can be made and connected"))
            .expect("sockets can be made and connected");
        let (receiver, _) = listener.accept().expect("sockets can be made and connected");
        set_socket_linger(&sender, Some(Duration::from_secs(3600))).expect("sockets can be made and connected");
        sender.set_nonblocking(true).expect("sockets can be made and connected");
        while send(&sender, &[b'x'; 65_536], SendFlags::NOSIGNAL).is_ok() {}
        (Self { receiver }, sender.into())
    }

    /// The same inside another socket, where SO_LINGER cannot be turned off: closing it blocks.
    fn nested() -> (Self, OwnedFd) {
        let (blocker, inner) = Self::new();
        let (outer, carrier) = UnixStream::pair().expect("sockets can be made and connected");
        send_descriptors(&carrier, b"x", &[inner], SendFlags::empty()).expect("sockets can be made and connected");
        (blocker, outer.into())
    }

    /// Lets the close go on.
    fn release(self) {
        set_socket_linger(&self.receiver, Some(Duration::ZERO)).expect("sockets can be made and connected");
    }
}

fn pipe() -> OwnedFd {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("sockets can be made and connected").0
}

#[test]
fn a_descriptor_that_blocks_its_closer_delays_no_client() {
    for kind in KINDS {
        for kernel in [Kernel::This, Kernel::Old] {
            for nested in [false, true] {
                println!("{kind:?}, {kernel:?}, nested: {nested}");
                let sockets = Sockets::new(kind);
                let mut evil = sockets.connect();
                let (_blocker, descriptor) = if nested { Blocker::nested() } else { Blocker::new() };
                evil.send_with("first", vec![descriptor]).expect("the kernel queues it");
                let (mut unix, mut tcp) = (sockets.connect(), sockets.tcp());
                unix.send("before");
                // No shutdown waits for what a peer sent.
                let Some(daemon) = sockets.start(kernel, "drain_timeout = '1h'\n") else { continue };
                tcp.exchange("tcp");
                unix.expect("before");
                evil.expect("first");
                drop(evil);
                sockets.connect().exchange("new");
                unix.exchange("again");
                tcp.exchange("again");
                daemon.stop();
            }
        }
    }
}

#[test]
fn a_descriptor_that_blocks_its_closer_delays_no_client_while_connections_are_refused() {
    // Of those that are refused, more wait to be closed than may be served.
    const LIMITS: &str = "[limits]\nconnections = 20\nconnections_per_source = 1\nreclaim_idle = 'off'\n";
    for kind in KINDS {
        for kernel in [Kernel::This, Kernel::Old] {
            let sockets = Sockets::new(kind);
            let mut first = sockets.connect();
            first.send("first");
            // More than get a final reply: the others are closed with what is queued in them.
            let (mut refused, mut blockers) = (Vec::new(), Vec::new());
            for number in 0..95 {
                let client = sockets.connect();
                let descriptor = if number % 20 == 0 {
                    let (blocker, descriptor) = Blocker::nested();
                    blockers.push(blocker);
                    descriptor
                } else {
                    pipe()
                };
                client.send_with("refused", vec![descriptor]).expect("the kernel queues it");
                refused.push(client);
            }
            let mut tcp = sockets.tcp();
            let Some(daemon) = sockets.start(kernel, LIMITS) else { continue };
            first.expect("first");
            daemon.wait_for_log_times("too-many", 95);
            for _ in 0..10 {
                tcp.exchange("tcp");
                sockets.tcp().exchange("new");
                first.exchange("again");
            }
            daemon.stop();
        }
    }
}

#[test]
fn a_descriptor_that_blocks_its_closer_delays_no_client_while_connections_drain() {
    for kind in KINDS {
        let sockets = Sockets::new(kind);
        let mut evil = sockets.connect();
        evil.send("before");
        let mut tcp = sockets.tcp();
        let Some(mut daemon) = sockets.start(Kernel::Old, "drain_timeout = '1h'\n[defaults.deadlines]\nwrite = '1h'\n")
        else {
            return;
        };
        evil.expect("before");
        // It is owed replies, so the daemon does not end before it has read them.
        tcp.send_what_fits(&b"owed\t".repeat(4_000_000));
        // Stopped, so that it finds the descriptor while it drains.
        daemon.signal(Signal::STOP);
        let (_blocker, descriptor) = Blocker::nested();
        evil.send_with("while it drains", vec![descriptor]).expect("this kernel does not refuse it");
        daemon.signal(Signal::TERM);
        daemon.signal(Signal::CONT);
        daemon.wait_for_log("stopping");
        let received = tcp.read_to_end();
        assert!(received.len() > 100_000 && received.ends_with(b"server got:owed\t"), "{} bytes", received.len());
        assert_eq!(daemon.wait().code(), Some(0), "{kind:?}");
    }
}

#[test]
fn a_descriptor_that_blocks_its_closer_delays_no_restart_and_loses_no_message() {
    for (kind, socket) in KINDS.into_iter().zip(["unix:echo", "seqpacket:echo"]) {
        let Some(wrapper) = Kernel::Old.wrapper() else { return };
        let old_kernel = |command: &mut Command| {
            command.env("TEST_WRAPPER", &wrapper);
        };
        let mut service = Service::start_on_with(&[socket], FdStore::Enabled, "", old_kernel);
        let path = service.address(0).split_once(':').expect("it is one of a Unix socket").1.to_owned();
        let connect = || Client::connect(kind, &SocketAddrUnix::new(path.as_str()).expect("it is short"));
        let (mut evil, mut other) = (connect(), connect());
        other.exchange("before");
        // It waits to be closed while the process ends, and the message behind it is not read.
        let (_first, descriptor) = Blocker::nested();
        evil.send_with("first", vec![descriptor]).expect("this kernel does not refuse it");
        evil.expect("first");
        evil.send_with("second", vec![pipe()]).expect("this kernel does not refuse it");
        let log = service.stop(Signal::TERM);
        assert!(log.iter().any(|line| line.contains("2 connections handed over")), "{log:#?}");
        // There is no process.
        let mut waiting = connect();
        let (_second, descriptor) = Blocker::nested();
        waiting.send_with("waiting", vec![descriptor]).expect("the kernel queues it");
        let (_third, descriptor) = Blocker::nested();
        evil.send_with("third", vec![descriptor]).expect("this kernel does not refuse it");
        other.send("between");
        service.start_next_with("", old_kernel);
        connect().exchange("new");
        waiting.expect("waiting");
        other.expect("between");
        other.exchange("after");
        evil.expect("second");
        evil.expect("third");
        service.stop(Signal::TERM);
    }
}

#[test]
fn a_connection_that_brought_no_descriptor_does_not_wait_for_those_of_another() {
    for kind in KINDS {
        let sockets = Sockets::new(kind);
        let mut evil = sockets.connect();
        let (_blocker, descriptor) = Blocker::nested();
        evil.send_with("first", vec![descriptor]).expect("the kernel queues it");
        let Some(daemon) = sockets.start(Kernel::Old, "[limits]\nconnections = 3\nreclaim_idle = 'off'\n") else {
            return;
        };
        evil.expect("first");
        // Each needs the permit of one before.
        for number in 0..10 {
            sockets.connect().exchange(&number.to_string());
        }
        daemon.stop();
    }
}

#[test]
fn a_descriptor_that_blocks_its_closer_is_closed_as_soon_as_its_lingering_can_be_turned_off() {
    for kind in KINDS {
        let sockets = Sockets::new(kind);
        let mut evil = sockets.connect();
        let (_blocker, descriptor) = Blocker::new();
        evil.send_with("first", vec![descriptor]).expect("the kernel queues it");
        let Some(daemon) = sockets.start(Kernel::Old, "") else { return };
        evil.expect("first");
        // It is read again, so its descriptor is closed.
        evil.exchange("second");
        let before = daemon.descriptor_count();
        for message in ["third", ""] {
            evil.send_with(message, vec![pipe()]).expect("this kernel does not refuse it");
            evil.expect(message);
            evil.exchange("fourth");
        }
        assert_eq!(daemon.descriptor_count(), before);
        daemon.stop();
    }
}

#[test]
fn every_message_with_descriptors_is_answered() {
    for kind in KINDS {
        for kernel in [Kernel::This, Kernel::Old] {
            let sockets = Sockets::new(kind);
            let mut client = sockets.connect();
            for number in 0..8 {
                client.send_with(&format!("aaaa{number}"), vec![pipe()]).expect("the kernel queues it");
            }
            client.send("without");
            let Some(daemon) = sockets.start(kernel, "") else { continue };
            for number in 0..8 {
                client.expect(&format!("aaaa{number}"));
            }
            client.expect("without");
            daemon.stop();
        }
    }
}

#[test]
fn a_peer_cannot_send_descriptors_if_the_kernel_can_refuse_them() {
    if !kernel::refuses_descriptors() {
        return skip_test("refusing descriptors: this kernel is older than 6.16");
    }
    for kind in KINDS {
        let sockets = Sockets::new(kind);
        let (mut early, daemon) = (sockets.connect(), sockets.start(Kernel::This, "").unwrap());
        early.exchange("early");
        let mut late = sockets.connect();
        late.exchange("late");
        for client in [&mut early, &mut late] {
            assert_eq!(client.send_with("with", vec![pipe()]), Err(Errno::PERM));
            client.exchange("without");
        }
        daemon.stop();
    }
}

#[test]
fn a_connection_holds_its_permit_until_its_descriptors_are_closed() {
    for kind in KINDS {
        let sockets = Sockets::new(kind);
        let mut evil = sockets.connect();
        let (blocker, descriptor) = Blocker::nested();
        evil.send_with("first", vec![descriptor]).expect("the kernel queues it");
        let Some(daemon) = sockets.start(Kernel::Old, "[limits]\nconnections = 2\nreclaim_idle = 'off'\n") else {
            return;
        };
        evil.expect("first");
        let mut other = sockets.connect();
        other.exchange("other");
        drop(evil);
        let mut waiting = sockets.connect();
        waiting.send("waiting");
        daemon.wait_for_log("limits.connections=2");
        // Its close was processed before these were.
        for _ in 0..3 {
            other.exchange("again");
        }
        waiting.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(waiting.stream.read(&mut [0; 10]).is_err(), "it has no permit");
        waiting.stream.set_read_timeout(Some(common::TEST_TIMEOUT)).unwrap();
        blocker.release();
        waiting.expect("waiting");
        daemon.stop();
    }
}

#[test]
fn peers_make_the_daemon_hold_a_bounded_number_of_descriptors() {
    for kind in KINDS {
        let sockets = Sockets::new(kind);
        let (_blocker, descriptor) = Blocker::nested();
        let mut blocking = sockets.connect();
        blocking.send_with("blocking", vec![descriptor]).expect("the kernel queues it");
        let Some(daemon) = sockets.start(Kernel::Old, "") else { return };
        blocking.expect("blocking");
        let mut honest = sockets.connect();
        honest.exchange("honest");
        let before = daemon.descriptor_count() - 1;
        let evil: Vec<_> = (0..12).map(|_| sockets.connect()).collect();
        for client in &evil {
            client.send_with("many", (0..253).map(|_| pipe()).collect()).expect("this kernel does not refuse it");
        }
        wait_until("the daemon holds 1,024 of them", || daemon.descriptor_count() >= before + 1024);
        for number in 0..100 {
            honest.exchange(&number.to_string());
            sockets.connect().exchange("new");
        }
        // One message beyond the bound, its 12 and one more connections, and what the exchange above leaves behind.
        let held = daemon.descriptor_count() - before;
        assert!(held <= 1024 + 253 + 13 + 10, "{held}");
        daemon.stop();
    }
}

/// Connections have to begin with a PROXY header, which may take long.
const PROXIED: &str = "[defaults]\nproxy_protocol = 'required'\ndeadlines.read = '1h'\n";

/// Checks that nothing comes to this client for a while.
fn expect_silence(client: &mut Client) {
    client.stream.set_read_timeout(Some(Duration::from_millis(300))).expect("it can be set");
    let received = client.stream.read(&mut [0; 10]);
    assert!(received.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{received:?}");
    client.stream.set_read_timeout(Some(common::TEST_TIMEOUT)).expect("it can be set");
}

#[test]
fn a_connection_that_awaits_its_proxy_header_is_not_read_while_its_descriptors_wait() {
    // The descriptor comes with a part of the header, or with all of it.
    for (first, rest) in [("PROXY UN", "KNOWN\r\naaaa\t"), ("PROXY UNKNOWN\r\n", "aaaa\t")] {
        for kernel in [Kernel::This, Kernel::Old] {
            println!("{first:?}, {kernel:?}");
            let sockets = Sockets::new(SocketType::STREAM);
            let mut evil = sockets.connect();
            let (blocker, descriptor) = Blocker::nested();
            send_descriptors(&evil.stream, first.as_bytes(), &[descriptor], SendFlags::empty())
                .expect("the kernel queues it");
            send(&evil.stream, rest.as_bytes(), SendFlags::NOSIGNAL).unwrap();
            let Some(daemon) = sockets.start(kernel, PROXIED) else { continue };
            let mut other = sockets.connect();
            other.send_header();
            other.exchange("other");
            expect_silence(&mut evil);
            blocker.release();
            evil.expect("aaaa");
            evil.exchange("again");
            daemon.stop();
        }
    }
}

#[test]
fn a_header_with_descriptors_waits_until_there_is_room_for_them() {
    let sockets = Sockets::new(SocketType::STREAM);
    let (blocker, descriptor) = Blocker::nested();
    let mut blocking = sockets.connect();
    send_descriptors(&blocking.stream, b"PROXY UNKNOWN\r\n", &[descriptor], SendFlags::empty())
        .expect("the kernel queues it");
    blocking.send("blocking");
    let Some(daemon) = sockets.start(Kernel::Old, PROXIED) else { return };
    let mut without = sockets.connect();
    without.send_header();
    without.exchange("without");
    let before = daemon.descriptor_count();
    let many: Vec<_> = (0..5).map(|_| sockets.connect()).collect();
    for client in &many {
        let pipes: Vec<_> = (0..253).map(|_| pipe()).collect();
        send_descriptors(&client.stream, b"P", &pipes, SendFlags::empty()).expect("this kernel does not refuse it");
    }
    // The fifth of them does not fit.
    wait_until("the daemon holds four messages", || daemon.descriptor_count() >= before + 5 + 4 * 253);
    let mut waiting = sockets.connect();
    send_descriptors(
        &waiting.stream,
        b"PROXY UNKNOWN\r\n",
        &(0..20).map(|_| pipe()).collect::<Vec<_>>(),
        SendFlags::empty(),
    )
    .expect("this kernel does not refuse it");
    waiting.send("aaaa");
    without.exchange("again");
    expect_silence(&mut waiting);
    blocker.release();
    blocking.expect("blocking");
    waiting.expect("aaaa");
    drop(many);
    daemon.stop();
}

#[test]
fn a_connection_with_a_bad_header_is_not_read_while_its_descriptors_wait() {
    let sockets = Sockets::new(SocketType::STREAM);
    let (_blocker, descriptor) = Blocker::nested();
    let mut evil = sockets.connect();
    evil.send_with("bad", vec![descriptor]).expect("the kernel queues it");
    let mut other = sockets.connect();
    other.send_header();
    let Some(daemon) = sockets.start(Kernel::Old, PROXIED) else { return };
    other.exchange("other");
    // The daemon has ended its stream, and lingers.
    assert_eq!(evil.stream.read(&mut [0; 10]).unwrap(), 0);
    let before = daemon.descriptor_count();
    for _ in 0..2 {
        evil.send_with("more", (0..100).map(|_| pipe()).collect()).expect("this kernel does not refuse it");
    }
    for _ in 0..20 {
        other.exchange("again");
    }
    assert!(daemon.descriptor_count() <= before, "{} after {before}", daemon.descriptor_count());
    daemon.stop();
}

/// Starts a daemon that may have few descriptors, as on a kernel that cannot refuse those of peers.
fn start_with_few_descriptors(sockets: &Sockets) -> Option<Daemon> {
    if find_program("prlimit").is_none() {
        skip_test("few descriptors: prlimit is not installed");
        return None;
    }
    sockets.start_with_wrapper("prlimit --nofile=120", Kernel::Old, "[limits]\nconnections = 40\n")
}

#[test]
fn a_low_limit_on_descriptors_does_not_make_a_worker_close_those_of_peers() {
    for kind in KINDS {
        for is_blocked in [false, true] {
            println!("{kind:?}, blocked: {is_blocked}");
            let sockets = Sockets::new(kind);
            let send_many = || {
                let (client, (blocker, last)) = (sockets.connect(), Blocker::nested());
                let descriptors = (0..200).map(|_| pipe()).chain([last]).collect();
                client.send_with("many", descriptors).expect("the kernel queues it");
                (client, blocker)
            };
            // Before the daemon runs. Otherwise it might close its copy first, and the last one, here, blocks.
            let mut blocking = sockets.connect();
            let (_blocker, descriptor) = if is_blocked { Blocker::nested() } else { Blocker::new() };
            blocking.send_with("blocking", vec![descriptor]).expect("the kernel queues it");
            let early: Vec<_> = (0..if is_blocked { 0 } else { 12 }).map(|_| send_many()).collect();
            let Some(daemon) = start_with_few_descriptors(&sockets) else { return };
            let (mut honest, mut tcp) = (sockets.connect(), sockets.tcp());
            let mut late = Vec::new();
            if is_blocked {
                blocking.expect("blocking");
                late.extend((0..12).map(|_| send_many()));
            }
            for number in 0..20 {
                honest.exchange(&number.to_string());
                tcp.exchange(&number.to_string());
                sockets.connect().exchange("new");
            }
            let log = daemon.stop();
            assert!(!log.iter().any(|line| line.contains("cannot accept")), "{log:#?}");
            drop((early, late));
        }
    }
}

#[test]
fn a_connection_that_brings_more_descriptors_than_the_process_can_have_ends() {
    for kind in KINDS {
        let sockets = Sockets::new(kind);
        let Some(daemon) = start_with_few_descriptors(&sockets) else { return };
        let mut client = sockets.connect();
        client.send_with("a few", (0..10).map(|_| pipe()).collect()).expect("this kernel does not refuse it");
        client.expect("a few");
        client.send_with("many", (0..200).map(|_| pipe()).collect()).expect("this kernel does not refuse it");
        // The end of the stream, or a reset for the unread message.
        assert!(matches!(client.stream.read(&mut [0; 10]), Ok(0) | Err(_)));
        sockets.connect().exchange("other");
        daemon.stop();
    }
}

#[test]
fn a_datagram_that_brings_more_descriptors_than_the_process_can_have_is_dropped() {
    let (sockets, mut client) = datagram_sockets();
    let Some(daemon) = start_with_few_descriptors(&sockets) else { return };
    client.exchange("before");
    client.send_with("many", (0..200).map(|_| pipe()).collect()).expect("this kernel does not refuse it");
    client.exchange("after");
    client.send_with("a few", (0..10).map(|_| pipe()).collect()).expect("this kernel does not refuse it");
    client.expect("a few");
    daemon.wait_for_log("1 datagram dropped on echo");
    daemon.stop();
}

#[test]
fn a_datagram_whose_descriptors_the_process_cannot_have_is_dropped_while_no_descriptor_is_free() {
    let (sockets, mut client) = datagram_sockets();
    let Some(daemon) = sockets.start(Kernel::Old, "") else { return };
    client.exchange("before");
    daemon.leave_free_descriptors(0);
    for text in ["one", "other"] {
        client.send_with(text, vec![pipe()]).expect("this kernel does not refuse it");
        client.exchange("after");
    }
    daemon.wait_for_log("1 datagram dropped on echo");
    daemon.stop();
}

#[test]
fn messages_of_several_writers_on_one_connection_are_all_answered() {
    let sockets = Sockets::new(SocketType::STREAM);
    // As PassCredentials=yes of the socket unit does.
    set_socket_passcred(&sockets.unix, true).unwrap();
    let mut client = sockets.connect();
    let write = |client: &Client, text: &str| {
        let stream: OwnedFd = client.stream.try_clone().unwrap().into();
        let status = Command::new("printf").arg(format!("{text}\\t")).stdout(Stdio::from(stream)).status().unwrap();
        assert!(status.success());
    };
    for number in 0..4 {
        write(&client, &format!("other{number}"));
        client.send(&format!("own{number}"));
    }
    let daemon = sockets.start(Kernel::This, "").unwrap();
    for number in 0..4 {
        client.expect(&format!("other{number}"));
        client.expect(&format!("own{number}"));
    }
    let mut late = sockets.connect();
    for number in 0..4 {
        write(&late, &format!("other{number}"));
        late.send(&format!("own{number}"));
    }
    for number in 0..4 {
        late.expect(&format!("other{number}"));
        late.expect(&format!("own{number}"));
    }
    daemon.stop();
}

/// SO_PASSPIDFD of asm-generic/socket.h (Linux 6.5), which no library names.
const SO_PASSPIDFD: i32 = 76;

sockopt_impl!(
    /// Whether each message comes with a descriptor of its sender (`PassPIDFD=` of a socket unit).
    PassPidfd,
    SetOnly,
    libc::SOL_SOCKET,
    SO_PASSPIDFD,
    bool
);

#[test]
fn descriptors_that_the_kernel_would_add_are_not_collected() {
    for kind in [KINDS[0], KINDS[1], SocketType::DGRAM] {
        for kernel in [Kernel::This, Kernel::Old] {
            let sockets = Sockets::new(kind);
            if nix::sys::socket::setsockopt(&sockets.unix, PassPidfd, &true).is_err() {
                return skip_test("descriptors of senders (SO_PASSPIDFD): this kernel is older than 6.5");
            }
            let mut client = sockets.connect();
            if kind == SocketType::DGRAM {
                bind(&client.stream, &SocketAddrUnix::new_unnamed()).expect("a name can be bound");
            }
            let Some(daemon) = sockets.start(kernel, "") else { return };
            client.exchange("first");
            let before = daemon.descriptor_count();
            // Fewer than one source may send in a second.
            for number in 0..50 {
                client.exchange(&number.to_string());
            }
            assert!(daemon.descriptor_count() <= before + 1, "{kind:?}, {kernel:?}");
            daemon.stop();
        }
    }
}

/// Urgent data (send(2), MSG_OOB) is in the stream like all other bytes, wherever it stands.
#[test]
fn messages_around_urgent_data_are_all_answered() {
    for position in 0..=3 {
        for kernel in [Kernel::This, Kernel::Old] {
            let sockets = Sockets::new(SocketType::STREAM);
            let (mut client, mut tcp) = (sockets.connect(), sockets.tcp());
            let Some(daemon) = sockets.start(kernel, "") else { continue };
            client.exchange("before");
            tcp.exchange("before");
            let mut urgent = "";
            for number in 0..=3 {
                if number == position {
                    assert_eq!(send(tcp.fd(), b"!", SendFlags::OOB), Ok(1));
                    // A kernel may be built without it (AF_UNIX_OOB).
                    match send(&client.stream, b"!", SendFlags::OOB) {
                        Ok(1) => urgent = "!",
                        result => assert_eq!(result, Err(Errno::OPNOTSUPP)),
                    }
                }
                let message = format!("m{number}");
                client.send(&message);
                tcp.send(format!("{message}\t"));
            }
            for number in 0..=3 {
                let before = |urgent| if number == position { urgent } else { "" };
                client.expect(&format!("{}m{number}", before(urgent)));
                tcp.expect(format!("server got:{}m{number}\t", before("!")));
            }
            client.exchange("after");
            tcp.exchange("after");
            daemon.stop();
        }
    }
}

/// Sends a byte of urgent data, with a descriptor of which this process keeps no copy.
fn send_urgent(client: &Client, descriptor: OwnedFd) -> Result<(), Errno> {
    send_descriptors(&client.stream, b"!", &[descriptor], SendFlags::OOB)
}

#[test]
fn a_descriptor_that_comes_with_urgent_data_delays_no_client() {
    if send_urgent(&Sockets::new(SocketType::STREAM).connect(), pipe()) == Err(Errno::OPNOTSUPP) {
        return skip_test("urgent data on Unix sockets: this kernel is built without it");
    }
    // It comes before the daemon starts, or while it serves.
    for (kernel, early) in [(Kernel::This, true), (Kernel::Old, true), (Kernel::Old, false)] {
        for rest in ["rest", ""] {
            println!("{kernel:?}, early: {early}, {rest:?}");
            let sockets = Sockets::new(SocketType::STREAM);
            let mut evil = sockets.connect();
            let (_blocker, descriptor) = Blocker::nested();
            let mut descriptor = Some(descriptor);
            let mut queue = |evil: &Client| {
                send_urgent(evil, descriptor.take().expect("it was not sent")).expect("the kernel queues it");
            };
            if early {
                queue(&evil);
            }
            let Some(daemon) = sockets.start(kernel, "") else { continue };
            if !early {
                evil.exchange("first");
                queue(&evil);
            }
            if !rest.is_empty() {
                evil.send(rest);
            }
            drop(evil);
            let mut tcp = sockets.tcp();
            for number in 0..3 {
                tcp.exchange(&number.to_string());
                sockets.connect().exchange("new");
            }
            daemon.stop();
        }
    }
}

/// A datagram listener that no process serves yet, and a client of it.
fn datagram_sockets() -> (Sockets, Client) {
    let sockets = Sockets::new(SocketType::DGRAM);
    let client = sockets.connect();
    // A name that the kernel chooses, so that there is somewhere to reply to.
    bind(&client.stream, &SocketAddrUnix::new_unnamed()).expect("a name can be bound");
    (sockets, client)
}

#[test]
fn a_datagram_with_a_descriptor_that_blocks_its_closer_delays_no_client() {
    for kernel in [Kernel::This, Kernel::Old] {
        let (sockets, mut evil) = datagram_sockets();
        let (_blocker, descriptor) = Blocker::nested();
        evil.send_with("first", vec![descriptor]).expect("the kernel queues it");
        let mut tcp = sockets.tcp();
        let Some(daemon) = sockets.start(kernel, "drain_timeout = '1h'\n") else { continue };
        tcp.exchange("tcp");
        evil.expect("first");
        evil.exchange("second");
        let mut other = sockets.connect();
        bind(&other.stream, &SocketAddrUnix::new_unnamed()).unwrap();
        other.exchange("other");
        if kernel == Kernel::Old {
            let before = daemon.descriptor_count();
            evil.send_with("third", vec![pipe()]).expect("this kernel does not refuse it");
            evil.expect("third");
            assert_eq!(daemon.descriptor_count(), before + 1, "it waits behind the first");
        }
        tcp.exchange("again");
        daemon.stop();
    }
}

#[test]
fn a_flood_of_datagrams_with_descriptors_does_not_hide_who_sends_at_a_path() {
    const SENT: u32 = 1000;
    const FLOODERS: u32 = 4;
    let sockets = Sockets::new(SocketType::DGRAM);
    let Some(daemon) = sockets.start(Kernel::Old, "[limits]\ndatagrams_per_source = 'off'\n") else { return };
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..FLOODERS {
            scope.spawn(|| {
                // Without a name, each is dropped; the socket is always full.
                let (flooder, descriptors) = (sockets.connect(), [pipe()]);
                while !ends.load(Ordering::Relaxed) {
                    send_descriptors(&flooder.stream, b"flood", &descriptors, SendFlags::empty())
                        .expect("this kernel does not refuse it");
                }
            });
        }
        daemon.wait_for_log("nameless");
        let client = UnixDatagram::bind(daemon.directory().join("client")).expect("it can be bound");
        let to = getsockname(&sockets.unix).expect("it is bound");
        for _ in 0..SENT {
            // As soon as there is room, with all that wait for it.
            sendto(&client, b"a", SendFlags::NOSIGNAL, &to).expect("it is sent");
            while recv(&client, &mut [0; 100], RecvFlags::DONTWAIT).is_ok() {}
        }
        ends.store(true, Ordering::Relaxed);
    });
    let log = daemon.stop();
    let hidden = count_dropped(&log, "unsafe-address");
    // A few come at the moment when the kernel adds no credentials.
    assert!(hidden <= u64::from(SENT) / 100, "{hidden} of {SENT}");
}
