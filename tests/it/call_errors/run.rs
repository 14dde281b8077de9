//! One run: a daemon under strace, a client that is served all the time, and the client under test.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, connect, recv, send, shutdown, socket_with,
};

use common::packets::{DatagramPeer, PacketPeer, unix_address};
use common::strace::{Call, Strace};
use common::{Daemon, Peer, TEST_TIMEOUT, wait_until};

/// Everything but what only concerns memory, threads and signals.
const TRACE: &str = "!futex,mmap,munmap,mprotect,mremap,brk,madvise,clone3,rseq,set_robust_list,exit,exit_group,\
    sched_yield,sched_getaffinity,prctl,gettid,rt_sigaction,rt_sigprocmask,sigaltstack";

/// What kind of client is under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    /// TCP; sends nothing more before the first reply has come, or the end.
    PatientTcp,
    Unix,
    Seqpacket,
    /// TCP, with a PROXY header.
    Proxy,
    Udp,
    /// On a Unix socket with a path.
    UnixDatagram,
}

/// The input of the client under test. It sends each part after the daemon has processed the previous one.
const PARTS: [&str; 3] = ["one\t", "tw", "o\tthree\t"];

impl Kind {
    pub(crate) fn is_datagram(self) -> bool {
        matches!(self, Self::Udp | Self::UnixDatagram)
    }

    /// What the daemon listens on.
    fn address(self) -> &'static str {
        match self {
            Self::Tcp | Self::PatientTcp | Self::Proxy => "127.0.0.1:0",
            Self::Unix => "DIR/stream",
            Self::Seqpacket => "seqpacket:DIR/packets",
            Self::Udp => "udp:127.0.0.1:0",
            Self::UnixDatagram => "unixgram:DIR/datagrams",
        }
    }

    fn configuration(self) -> String {
        let proxy = if self == Self::Proxy { "proxy_protocol = 'required'\n" } else { "" };
        format!("[service]\nworkers = 1\n[log]\nlevel = 'debug'\n[defaults]\nlog_messages = 'summary'\n{proxy}")
    }

    /// All replies: of a stream in one piece.
    fn replies(self) -> Vec<String> {
        match self {
            Self::Seqpacket | Self::Udp | Self::UnixDatagram => {
                PARTS.iter().map(|part| format!("server got:{part}")).collect()
            }
            _ => vec!["server got:one\tserver got:two\tserver got:three\t".to_owned()],
        }
    }

    /// Whether these are all replies.
    pub(crate) fn is_complete(self, received: &[String]) -> bool {
        received == self.replies()
    }

    /// Whether these are replies, though some may be missing: the last ones of a connection, any of datagrams.
    pub(crate) fn is_possible(self, received: &[String]) -> bool {
        let all = self.replies();
        match self {
            Self::Udp | Self::UnixDatagram => {
                let mut all = all.iter();
                received.iter().all(|reply| all.any(|one| one == reply))
            }
            Self::Seqpacket => {
                // A packet that is longer than the socket's buffer (EMSGSIZE).
                let is_final = |reply: &String| reply.starts_with("server error:message exceeds");
                all.starts_with(
                    received.split_last().filter(|(last, _)| is_final(last)).map_or(received, |(_, rest)| rest),
                )
            }
            _ => all[0].starts_with(&received.concat()),
        }
    }
}

/// What happened in a run.
pub(crate) struct Run {
    kind: Kind,
    /// All calls of the daemon.
    pub(crate) calls: Vec<Call>,
    /// Which of them were made for the client under test, and nothing else.
    windows: Vec<Range<usize>>,
    /// What the client under test received: packets, or one string for a stream.
    pub(crate) received: Vec<String>,
    pub(crate) log: Vec<String>,
}

impl Run {
    /// The calls that were made for the client under test: with a PROXY header, by the thread that reads it. (After that, it
    /// is a client like any other.)
    fn subjects(&self) -> impl Iterator<Item = &Call> {
        let peek = self.calls.iter().find(|call| self.kind == Kind::Proxy && call.text.contains("MSG_PEEK"));
        let calls = self.windows.iter().flat_map(|window| &self.calls[window.clone()]);
        calls.filter(move |call| peek.is_none_or(|peek| peek.thread == call.thread))
    }

    /// A few of them, of each kind.
    pub(crate) fn chosen_calls(&self) -> Vec<&Call> {
        let mut chosen: Vec<&Call> = Vec::new();
        for call in self.subjects() {
            let most = if matches!(&*call.name, "recvfrom" | "recvmsg") { 2 } else { 1 };
            if chosen.iter().filter(|other| kind_of(other) == kind_of(call)).count() < most {
                chosen.push(call);
            }
        }
        chosen
    }

    /// Whether a call like this failed, for the client under test. What wakes a thread is for all clients, and how
    /// often that happens is a matter of time.
    pub(crate) fn hit(&self, call: &Call) -> bool {
        let is_hit =
            |one: &Call| one.text.contains("(INJECTED)") && one.name == call.name && operation(one) == operation(call);
        let for_all = matches!(&*call.name, "epoll_wait" | "epoll_pwait") || operation(call) == Some("eventfd");
        if for_all { self.calls.iter().any(is_hit) } else { self.subjects().any(is_hit) }
    }
}

/// What a call does with its descriptor, as far as that matters for its errors.
fn operation(call: &Call) -> Option<&'static str> {
    let operations = ["EPOLL_CTL_ADD", "EPOLL_CTL_MOD", "EPOLL_CTL_DEL", "eventfd", "F_GETFD", "AT_EMPTY_PATH"];
    let options = ["TCP_NODELAY", "SO_PASSCRED", "SO_PEERCRED", "MSG_PEEK"];
    operations.into_iter().chain(options).find(|one| call.text.contains(one))
}

/// What tells a call from others with its name: also whether it came to nothing.
fn kind_of(call: &Call) -> (&str, Option<&str>, Option<&str>) {
    let ends = ["= 0", "= -1 EAGAIN (Resource temporarily unavailable)"];
    let is_receive = matches!(&*call.name, "recvfrom" | "recvmsg");
    let end = ends.into_iter().find(|end| is_receive && call.text.ends_with(end));
    (&call.name, operation(call), end)
}

/// How many clients come before the client under test. Calls that fail are found by counting in each thread: then only
/// the thread that serves makes so many.
const EARLIER_CLIENTS: usize = 8;

/// The same with PROXY headers, which another thread reads: by then it has made more calls than the thread that serves ever
/// makes, since only one of these clients sends messages before the end.
const EARLIER_PROXY_CLIENTS: usize = 24;

/// Runs a daemon whose calls fail as `inject` says, with a client of this kind. `None` if nothing can be traced here.
pub(crate) fn run(kind: Kind, inject: &[String]) -> Option<Run> {
    let strace = Strace::new(TRACE, inject)?;
    let mut command = strace.command(env!("CARGO_BIN_EXE_echoed"));
    let daemon = Daemon::spawn_with(&mut command, &kind.configuration(), &["--listen", kind.address()]);
    daemon.wait_for_log("listening on");
    let address = daemon.addresses().remove(0);
    let path = |name: &str| daemon.directory().join(name);
    // The number of calls of a connection must not depend on the input when it is accepted, or on how many are accepted
    // together: the first ones do not inherit the options of the listener.
    let wait_until_accepted = |count: usize| {
        wait_until("it is accepted", || kind.is_datagram() || is_accepted(&strace, count));
        wait_until_idle(&strace);
    };
    let mut client_count = 0;
    let mut new_client = |name: &str| {
        let mut client = Other::new(kind, &address, path(name));
        client_count += 1;
        wait_until_accepted(client_count);
        client.introduce(kind);
        client
    };
    let (clients, busy_clients) =
        if kind == Kind::Proxy { (EARLIER_PROXY_CLIENTS, 1) } else { (EARLIER_CLIENTS, EARLIER_CLIENTS) };
    let mut others: Vec<_> = (0..clients).map(|number| new_client(&number.to_string())).collect();
    for _ in 0..3 {
        others.iter_mut().take(busy_clients).for_each(|other| other.exchange("before"));
    }
    wait_until_idle(&strace);

    let mut windows = Vec::new();
    let mut record = |begin: usize| {
        wait_until_idle(&strace);
        windows.push(begin..strace.calls().len());
        others.iter_mut().take(busy_clients).for_each(|other| other.exchange("meanwhile"));
        wait_until_idle(&strace);
        strace.calls().len()
    };
    let mut begin = strace.calls().len();
    let subject = Subject::new(kind, &address, path("subject"));
    wait_until_accepted(clients + 1);
    begin = record(begin);
    if kind == Kind::Proxy {
        for part in ["PROXY TCP4 192.0.2.1 198.", "51.100.7 40123 8085\r\n"] {
            subject.send(part);
            begin = record(begin);
        }
    }
    for part in PARTS {
        subject.send(part);
        begin = record(begin);
        if kind == Kind::PatientTcp && part == PARTS[0] {
            subject.wait_until_readable();
        }
    }
    subject.shutdown();
    begin = record(begin);
    let received = subject.finish();
    record(begin);

    let mut last = Other::new(kind, &address, path("new"));
    wait_until_accepted(clients + 2);
    last.introduce(kind);
    last.exchange("new");
    others.iter_mut().for_each(|other| other.exchange("after"));
    drop(others);
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.contains("panicked")), "{log:#?}");
    Some(Run { kind, calls: strace.calls(), windows, received, log })
}

/// Returns whether so many connections have been accepted, and no further one waits.
fn is_accepted(strace: &Strace, count: usize) -> bool {
    let calls = strace.calls();
    let accepts: Vec<_> = calls.iter().filter(|call| call.name == "accept4").collect();
    let succeeded = accepts.iter().filter(|call| !call.text.contains("= -1") && !call.text.contains("<unfinished"));
    succeeded.count() == count && accepts.last().is_some_and(|call| call.text.contains("EAGAIN"))
}

/// Waits until the daemon makes no call for a moment.
fn wait_until_idle(strace: &Strace) {
    wait_until("it is idle", || {
        let before = strace.calls().len();
        thread::sleep(Duration::from_millis(4));
        before == strace.calls().len()
    });
}

/// A client that is served all the time.
enum Other {
    Stream(Peer),
    Packets(PacketPeer),
    Udp(DatagramPeer),
    Unix(DatagramSubject),
}

impl Other {
    fn new(kind: Kind, address: &str, path: PathBuf) -> Self {
        match kind {
            Kind::Tcp | Kind::PatientTcp | Kind::Proxy | Kind::Unix => Self::Stream(Peer::connect(address)),
            Kind::Seqpacket => Self::Packets(PacketPeer::connect(address)),
            Kind::Udp => Self::Udp(DatagramPeer::to(address)),
            Kind::UnixDatagram => Self::Unix(DatagramSubject::new(address, path)),
        }
    }

    /// Sends its PROXY header, if there is to be one.
    fn introduce(&mut self, kind: Kind) {
        if let (Kind::Proxy, Self::Stream(peer)) = (kind, self) {
            peer.send("PROXY TCP4 192.0.2.2 198.51.100.7 40123 8085\r\n");
        }
    }

    fn exchange(&mut self, message: &str) {
        match self {
            Self::Stream(peer) => peer.exchange(message),
            Self::Packets(peer) => peer.exchange(message),
            Self::Udp(peer) => peer.exchange(message),
            Self::Unix(peer) => {
                peer.send(message);
                let mut buffer = [0; 1000];
                let count = peer.socket.recv(&mut buffer).expect("a reply comes");
                assert_eq!(&buffer[..count], format!("server got:{message}").as_bytes());
            }
        }
    }
}

/// A client of Unix datagrams at a path.
struct DatagramSubject {
    socket: UnixDatagram,
}

impl DatagramSubject {
    fn new(address: &str, path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(path).expect("the path is free");
        socket.connect(address.strip_prefix("unixgram:").expect("it is one")).expect("it is bound");
        socket.set_read_timeout(Some(TEST_TIMEOUT)).expect("a timeout can be set");
        Self { socket }
    }

    fn send(&self, message: &str) {
        self.socket.send(message.as_bytes()).expect("there is room");
    }
}

/// The client under test, which takes any end.
struct Subject {
    kind: Kind,
    socket: OwnedFd,
    /// Of Unix datagrams: keeps the socket bound.
    _datagrams: Option<DatagramSubject>,
}

impl Subject {
    fn new(kind: Kind, address: &str, path: PathBuf) -> Self {
        let mut datagrams = None;
        let socket: OwnedFd = match kind {
            Kind::Tcp | Kind::PatientTcp | Kind::Proxy | Kind::Unix => Peer::connect(address).into_stream().into(),
            Kind::Seqpacket => {
                let peer = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                    .expect("there are such sockets");
                connect(&peer, &unix_address(address)).expect("it listens");
                peer
            }
            Kind::Udp => {
                let peer = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port is free");
                peer.connect(address.strip_prefix("udp:").expect("it is UDP")).expect("it can");
                peer.into()
            }
            Kind::UnixDatagram => {
                let subject = DatagramSubject::new(address, path);
                let socket = subject.socket.try_clone().expect("it can be duplicated").into();
                datagrams = Some(subject);
                socket
            }
        };
        set_socket_timeout(&socket, Timeout::Recv, Some(TEST_TIMEOUT)).expect("a timeout can be set");
        Self { kind, socket, _datagrams: datagrams }
    }

    /// The connection may have ended.
    fn send(&self, text: &str) {
        let _ = send(self.socket.as_fd(), text.as_bytes(), SendFlags::NOSIGNAL);
    }

    /// Waits for a reply, or the end.
    fn wait_until_readable(&self) {
        recv(&self.socket, &mut [0; 1][..], RecvFlags::PEEK).map_or_else(
            |error| assert_ne!(error, rustix::io::Errno::AGAIN, "neither a reply nor the end comes"),
            drop,
        );
    }

    /// Ends our stream.
    fn shutdown(&self) {
        if !self.kind.is_datagram() {
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
    }

    /// Returns all that comes until the end. Of datagrams: what is there.
    fn finish(self) -> Vec<String> {
        let flags = if self.kind.is_datagram() { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
        let mut received: Vec<String> = Vec::new();
        let is_stream = !self.kind.is_datagram() && self.kind != Kind::Seqpacket;
        loop {
            let mut buffer = [0; 1000];
            match recv(&self.socket, &mut buffer[..], flags) {
                Ok((0, _)) => break,
                Ok((count, _)) => {
                    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                    match received.last_mut().filter(|_| is_stream) {
                        Some(last) => last.push_str(&text),
                        None => received.push(text),
                    }
                }
                Err(rustix::io::Errno::AGAIN) if self.kind.is_datagram() => break,
                Err(rustix::io::Errno::AGAIN) => panic!("the connection did not end; received {received:?}"),
                Err(_) => break,
            }
        }
        received
    }
}
